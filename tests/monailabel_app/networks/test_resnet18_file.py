"""A site's own ResNet-18: read from either format, and refused with a reason where it is something else."""

import pytest
import torch
from safetensors.torch import save_file

from monailabel_app.errors import InvalidSettings
from monailabel_app.networks.resnet18_file import read_resnet18
from monailabel_app.networks.resnet_trunk import RESNET18, ResNetTrunk


def resnet18_state(seed=0, prefix=""):
    """A whole state dict with torchvision's names (layer3, layer4 and fc stand for themselves by one tensor each)."""
    generator = torch.Generator().manual_seed(seed)
    state = {
        name: torch.rand(value.shape, generator=generator) * 0.1 + 0.01
        for name, value in ResNetTrunk(RESNET18).state_dict().items()
    }
    state["bn1.num_batches_tracked"] = torch.tensor(7)
    state["layer3.0.conv1.weight"] = torch.zeros(256, 128, 3, 3)
    state["fc.weight"] = torch.zeros(1000, 512)
    return {prefix + name: value for name, value in state.items()}


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_both_formats_give_the_trunk_s_weights(tmp_path, suffix, prefix):
    state, file = resnet18_state(prefix=prefix), tmp_path / f"resnet18{suffix}"
    save_file(state, str(file)) if suffix == ".safetensors" else torch.save(state, file)
    read = read_resnet18(file)
    ResNetTrunk(RESNET18).load_state_dict(read)
    assert all(torch.equal(value, state[prefix + name]) for name, value in read.items())


def test_code_in_a_file_is_not_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"conv1.weight": Trap()}, tmp_path / "trap.pth")
    with pytest.raises(InvalidSettings, match="cannot be read"):
        read_resnet18(tmp_path / "trap.pth")
    assert not (tmp_path / "ran").exists()


def test_other_networks_and_broken_files_are_refused_with_the_reason(tmp_path):
    wide = resnet18_state() | {"conv1.weight": torch.zeros(64, 1, 7, 7)}
    torch.save(wide, tmp_path / "grey.pth")
    with pytest.raises(InvalidSettings, match=r"conv1.weight should be \(64, 3, 7, 7\), is \(64, 1, 7, 7\)"):
        read_resnet18(tmp_path / "grey.pth")
    short = {name: value for name, value in resnet18_state().items() if not name.startswith("layer2.")}
    torch.save(short, tmp_path / "short.pth")
    with pytest.raises(InvalidSettings, match=r"layer2.*nothing"):
        read_resnet18(tmp_path / "short.pth")
    torch.save(resnet18_state() | {"bn1.running_var": torch.full((64,), torch.nan)}, tmp_path / "nan.pth")
    with pytest.raises(InvalidSettings, match="finite"):
        read_resnet18(tmp_path / "nan.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(InvalidSettings, match="names and tensors"):
        read_resnet18(tmp_path / "list.pth")
    for name in ("text.pth", "text.safetensors"):
        (tmp_path / name).write_text("no weights")
        with pytest.raises(InvalidSettings, match="cannot be read"):
            read_resnet18(tmp_path / name)
    with pytest.raises(InvalidSettings, match="cannot be read"):
        read_resnet18(tmp_path / "absent.pth")
