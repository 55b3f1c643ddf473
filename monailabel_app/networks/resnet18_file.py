"""A ResNet-18 of torchvision from a file that a site brings; nothing is fetched.

The file is what ``torch.save(resnet18(weights=...).state_dict(), ...)`` or ``safetensors.torch.save_file`` writes. Only
stem, layer1 and layer2 of it are taken.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from monailabel_app.errors import InvalidSettings

from .resnet_trunk import RESNET18, ResNetTrunk

_NOT_TAKEN = ("layer3.", "layer4.", "fc.")
_PREFIX = "module."  # of state dicts saved from a parallel training


def read_resnet18(file: Path) -> dict[str, torch.Tensor]:
    """Tensors of the trunk by torchvision's names, float32, from a .safetensors, .pth or .pt file.

    A .pth file is read as tensors only: code in it is not run. Raises InvalidSettings for a file that cannot be read
    and for one that holds another network.
    """
    file = Path(file)
    try:
        if file.suffix == ".safetensors":
            found = load_file(str(file))
        else:
            found = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # of many kinds, by what the bytes happen to look like
        raise InvalidSettings(
            "expected a state dict of a ResNet-18 as .safetensors or .pth, got a file that cannot be read so "
            f"({type(error).__name__}); save it with torch.save(model.state_dict(), FILE)"
        ) from error
    if not isinstance(found, dict) or not all(isinstance(value, torch.Tensor) for value in found.values()):
        raise InvalidSettings(
            f"expected a state dict of names and tensors, got {type(found).__name__}; save model.state_dict(), not the "
            "model"
        )
    taken = {
        name.removeprefix(_PREFIX): value.float()
        for name, value in found.items()
        if not name.endswith("num_batches_tracked") and not name.removeprefix(_PREFIX).startswith(_NOT_TAKEN)
    }
    wanted = {name: tuple(value.shape) for name, value in ResNetTrunk(RESNET18).state_dict().items()}
    wrong = sorted(name for name in wanted if name not in taken or tuple(taken[name].shape) != wanted[name])
    if wrong:
        name = wrong[0]
        came = tuple(taken[name].shape) if name in taken else "nothing"
        raise InvalidSettings(
            f"expected the weights of a ResNet-18, got another network: {name} should be {wanted[name]}, is {came}; "
            "bring the state dict of torchvision's resnet18"
        )
    broken = sorted(name for name in wanted if not bool(torch.isfinite(taken[name]).all()))
    if broken:
        raise InvalidSettings(f"expected finite weights of a ResNet-18, got others in {broken[0]}; bring another file")
    return {name: taken[name] for name in wanted}
