"""What a volume must be before anything analyses it: decided from the header first, then from the voxels."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from monailabel_app.errors import InvalidVolume
from monailabel_app.io.geometry import check_affine, spacing_mm

# 630 in each direction, twice a head at 0.5 mm; takes 8 GB to analyse (``memory.BYTES_PER_VOXEL``).
MAX_VOXELS = 250_000_000
MIN_VOXELS_IN_PLANE = 16
SPACING_RANGE_MM = (0.05, 20.0)
MAX_NONFINITE_FRACTION = 0.01
# Of grey values, so that sums of their squares over a scan stay far from the ends of single precision.
LARGEST_VALUE, LEAST_CONTRAST = 1e14, 1e-14


def check_shape(sizes: Sequence[int], components: int = 1) -> tuple[int, int, int]:
    """The spatial shape (x, y, z) of a header's sizes. Called before voxels are allocated.

    Raises InvalidVolume for 2-D, several frames or components, too few or absurdly many voxels. One size may be 1;
    ``check_depth`` refuses that.
    """
    sizes = [int(n) for n in sizes]
    seen = "x".join(str(n) for n in sizes) or "no dimensions"
    if components != 1:
        raise InvalidVolume(
            f"expected one value per voxel, got {components} components (colour, vector or complex): "
            "send the scalar image"
        )
    if any(n < 1 for n in sizes):
        raise InvalidVolume(
            f"expected sizes above zero, got {seen}: the image header is damaged, export it again"
        )
    # In Python integers: a damaged header must not overflow its way past the limit.
    check_count(math.prod(sizes), seen)
    frames = [n for n in sizes[3:] if n > 1]
    if frames:
        raise InvalidVolume(
            f"expected a 3-D volume, got {len(sizes)} dimensions ({seen}): extract one frame and send that"
        )
    shape = sizes[:3]
    if len(shape) < 3 or sorted(shape)[1] == 1:
        raise InvalidVolume(
            f"expected a 3-D volume, got a single slice or less ({seen}): send the whole series"
        )
    if sorted(shape)[1] < MIN_VOXELS_IN_PLANE:
        raise InvalidVolume(
            f"expected at least {MIN_VOXELS_IN_PLANE} voxels along two axes, got {seen}: "
            "send the full scan, not a cut-out"
        )
    return tuple(shape)


def check_count(voxels: int, seen: str = "") -> None:
    """Raises InvalidVolume for more voxels than any head scan has. ``seen``: the sizes, for the message."""
    if voxels > MAX_VOXELS:
        raise InvalidVolume(
            f"expected at most {MAX_VOXELS / 1e6:.0f} million voxels, got {seen or f'{voxels:.3g}'} in the header: the "
            "header is damaged, or this is no head scan"
        )


def check_depth(shape: Sequence[int]) -> None:
    """Raises InvalidVolume when one of the three sizes is 1."""
    if min(shape) == 1:
        seen = "x".join(str(n) for n in shape)
        raise InvalidVolume(f"expected a 3-D volume, got a single slice ({seen}): send the whole series")


def check_grid(affine: np.ndarray) -> np.ndarray:
    """``affine`` as float64. Raises InvalidVolume when it is singular or its voxel sizes are no scan's."""
    affine = check_affine(affine, "the voxel-to-space matrix")
    spacing = spacing_mm(affine)
    low, high = SPACING_RANGE_MM
    if min(spacing) < low or max(spacing) > high:
        seen = " x ".join(f"{v:.4g}" for v in spacing)
        raise InvalidVolume(
            f"expected voxel sizes of {low} to {high:.0f} mm, got {seen} mm: check the unit in the image "
            "header"
        )
    return affine


def clean_voxels(data: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
    """``data`` with the few non-finite voxels replaced by the smallest finite value, and a warning that says
    so.

    Raises InvalidVolume when more than 1 % are not finite, or when all voxels have one value.
    """
    warnings: tuple[str, ...] = ()
    finite = np.isfinite(data)
    bad = data.size - int(np.count_nonzero(finite))
    if bad > MAX_NONFINITE_FRACTION * data.size:
        raise InvalidVolume(
            f"expected numbers in every voxel, got NaN or infinity in {100 * bad / data.size:.1f} % of them: "
            "replace them (background by 0) and send the scan again"
        )
    if bad:
        data = np.where(finite, data, data[finite].min())
        warnings = (f"{bad} voxels were NaN or infinite and were replaced by the smallest value",)
    low, high = float(data.min()), float(data.max())
    if low == high:
        what = "zero" if low == 0 else f"the same value ({low:.6g})"
        raise InvalidVolume(f"expected an image with contrast, got every voxel {what}: the scan is empty")
    if max(abs(low), abs(high)) > LARGEST_VALUE or high - low < LEAST_CONTRAST:
        raise InvalidVolume(
            f"expected grey values up to {LARGEST_VALUE:g} that differ by {LEAST_CONTRAST:g} or more, got {low:.3g} to "
            f"{high:.3g}: check the scale slope in the image header"
        )
    return data, warnings
