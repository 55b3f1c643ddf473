"""Colours of segments as DICOM states them, so that viewers tell segments apart and choose no tissue's colour.

Recommended Display CIELab Value (PS3.3 C.10.7.1.1): L*, a* and b* in 16 bits each. The white is D65, that of sRGB, as
OHIF (dcmjs) and 3D Slicer (dcmqi) take it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# IEC 61966-2-1: linear sRGB -> CIE XYZ, and its white.
_TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
_WHITE = _TO_XYZ.sum(axis=1)
# Bright on grey, and apart from each other also for eyes that do not see red and green. The first is a lone segment's.
PALETTE = (
    (255, 0, 0),
    (86, 180, 233),
    (240, 228, 66),
    (204, 121, 167),
    (0, 158, 115),
    (230, 159, 0),
    (120, 94, 240),
)


def colour_of(number: int) -> tuple[int, int, int]:
    """(r, g, b) of 0 to 255 for segment ``number``, from 1; after those of ``PALETTE`` they begin again."""
    return PALETTE[(number - 1) % len(PALETTE)]


def cielab(rgb: Sequence[int]) -> list[int]:
    """(r, g, b) of 0 to 255 as the three 16-bit numbers of a Recommended Display CIELab Value."""
    share = np.asarray(rgb, dtype=np.float64) / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    ratio = _TO_XYZ @ linear / _WHITE
    # CIE 15: a cube root, and a straight line near black.
    x, y, z = np.where(ratio > (6 / 29) ** 3, np.cbrt(ratio), ratio * (29 / 6) ** 2 / 3 + 4 / 29)
    lab = np.array([(116 * y - 16) / 100, (500 * (x - y) + 128) / 255, (200 * (y - z) + 128) / 255])
    return [int(value) for value in np.rint(np.clip(lab, 0, 1) * 65535)]
