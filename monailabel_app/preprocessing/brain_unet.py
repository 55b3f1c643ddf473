"""The brain extraction network: a strided 3-D residual U-Net and its input and output conventions.

The first convolution already has stride 2, so that every feature map lives at 4 mm or coarser and only the
last layer, a sub-voxel shuffle, reaches 2 mm. On a CPU this is about five times cheaper than a U-Net with
full-resolution features, for a boundary that is smooth at that scale anyway.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from monai.networks.nets import UNet

SPACING_MM = 2.0
DEFAULT_NETWORK: dict[str, Any] = {
    "channels": [24, 48, 80, 96, 96],
    "strides": [2, 2, 2, 2],
    "num_res_units": 2,
    "head_channels": 32,
}


def build_brain_unet(network: Mapping[str, Any] | None = None) -> UNet:
    """A 3-D UNet with one input channel and two outputs (background, brain); strides start with 2."""
    # Here, as MONAI takes longer to import than all else together, and who is given brain masks builds no network.
    from monai.networks.blocks import SubpixelUpsample
    from monai.networks.nets import UNet

    settings = dict(DEFAULT_NETWORK if network is None else network)
    unet = UNet(
        spatial_dims=3,
        in_channels=1,
        out_channels=2,
        channels=tuple(settings["channels"]),
        strides=tuple(settings["strides"]),
        num_res_units=int(settings["num_res_units"]),
    )
    # MONAI's last layer normalises its two outputs per scan, and a normalised output cannot say "no brain here"
    # or tell a small brain from a large one. This head has no normalisation, and no
    # convolution at 2 mm, which would cost more than the rest of the network.
    features, width = 2 * int(settings["channels"][0]), int(settings["head_channels"])
    unet.model[2] = nn.Sequential(
        nn.Conv3d(features, width, kernel_size=3, padding=1),
        nn.PReLU(),
        SubpixelUpsample(3, width, 2, scale_factor=2, apply_pad_pool=False),
    )
    return unet


def size_multiple(network: Mapping[str, Any]) -> int:
    """The number every side of the input must be a multiple of."""
    product = 1
    for stride in network["strides"]:
        product *= int(stride)
    return product


def scale_intensity(image: torch.Tensor, inside: torch.Tensor | None = None) -> torch.Tensor:
    """``image`` mapped linearly so that its 0.5 and 99.5 percentiles become 0 and 1, clipped to [0, 1].

    ``inside`` (bool, same shape) marks the voxels that were measured; the rest is padding, ignored for the
    percentiles and set to 0. A constant image becomes all zeros.
    """
    # A regular subsample bounds the cost of sorting; 30,000 values fix a 0.5 percentile well enough.
    step = max(1, int((image.numel() / 30_000) ** (1 / 3)))
    some = image[::step, ::step, ::step]
    values = (some.flatten() if inside is None else some[inside[::step, ::step, ::step]]).float()
    if values.numel() == 0:
        return torch.zeros_like(image)
    ordered = values.sort().values
    low = ordered[int(0.005 * (len(ordered) - 1))]
    high = ordered[int(0.995 * (len(ordered) - 1))]
    if high <= low:  # more than 99 % background: use the true extremes
        low, high = ordered[0], ordered[-1]
    if high <= low:
        return torch.zeros_like(image)
    scaled = ((image - low) / (high - low)).clamp(0, 1)
    return scaled if inside is None else scaled * inside
