"""What a method makes of one brain, and the way through a volume slice by slice that most methods share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

Progress = Callable[[float], None]
# The axis of a (X, Y, Z) volume that each plane's slices lie across.
AXIS_OF_PLANE: Mapping[str, int] = {"axial": 2, "coronal": 1, "sagittal": 0}


@dataclass(frozen=True)
class MethodOutput:
    """The raw evidence of a method for one brain on the model grid; every tensor (X, Y, Z) float32.

    reconstruction: the pseudo-healthy image in [0, 1], None for a method that makes none. maps: the method's own raw
    maps by score name, higher where it is more anomalous, 0 outside the brain. variance: of the reconstruction over
    noise draws and levels, where several were made. figures: numbers of the whole scan, such as a likelihood. draws:
    the reconstructions that ``reconstruction`` is the mean of, for scores that look at their spread.
    """

    reconstruction: torch.Tensor | None = None
    maps: Mapping[str, torch.Tensor] = field(default_factory=dict)
    variance: torch.Tensor | None = None
    figures: Mapping[str, float] = field(default_factory=dict)
    draws: Sequence[torch.Tensor] = ()


def over_slices(
    image: torch.Tensor,
    estimate: Callable[[torch.Tensor], Sequence[torch.Tensor]],
    *,
    outputs: int = 1,
    plane: str = "axial",
    batch_size: int = 16,
    progress: Progress | None = None,
) -> list[torch.Tensor]:
    """Run ``estimate`` over the slices of a volume that are not empty, in batches.

    image: (X, Y, Z). estimate: (n, 1, A, B) slices -> ``outputs`` tensors (n, 1, A, B). Returns one (X, Y, Z) float32
    tensor per output, zero in empty slices, which cost nothing.
    """
    axis = AXIS_OF_PLANE[plane]
    stack = image.movedim(axis, 0)
    made = [torch.zeros_like(stack, dtype=torch.float32) for _ in range(outputs)]
    used = torch.nonzero(stack.flatten(1).amax(dim=1) > 0).flatten()
    for first in range(0, len(used), batch_size):
        index = used[first : first + batch_size]
        for volume, values in zip(made, estimate(stack[index][:, None]), strict=True):
            volume[index] = values[:, 0].float()
        if progress is not None:
            progress(min(1.0, (first + batch_size) / len(used)))
    return [volume.movedim(0, axis).contiguous() for volume in made]


def batches(count: int, size: int) -> list[slice]:
    """``count`` items in parts of at most ``size``, which is at least one."""
    return [slice(first, first + max(1, size)) for first in range(0, count, max(1, size))]


def fast_autocast(device: torch.device) -> torch.autocast:
    """bfloat16 where the hardware computes in it; elsewhere it would only cost precision."""
    return torch.autocast(device.type, torch.bfloat16, enabled=_bfloat16_is_fast(device))


def computes_in(device: torch.device) -> str:
    """The type that ``fast_autocast`` computes in on a device, by name."""
    return "bfloat16" if _bfloat16_is_fast(device) else "float32"


def _bfloat16_is_fast(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()
