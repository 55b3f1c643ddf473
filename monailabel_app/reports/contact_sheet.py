"""Slices side by side in one picture, with a fixed grey window so that pictures of different times can be compared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw

Kind = Literal["image", "residual"]
# Intensities in [0, 1]; healthy tissue ends near 0.8, see preprocessing.normalize.
WINDOWS: dict[Kind, tuple[float, float]] = {"image": (0.0, 0.9), "residual": (-0.2, 0.2)}
_SCALE, _GAP, _HEADER = 2, 4, 16
_INK = (200, 200, 200)


def contact_sheet(
    rows: Sequence[Sequence[tuple[Kind, np.ndarray]]], columns: Sequence[str], captions: Sequence[str]
) -> np.ndarray:
    """One picture (H, W, 3) uint8: a caption above each row, column names at the top.

    rows: per row one (kind, slice (X, Y)) per column; front is up and the patient's right on the left, as radiologists
    look at it. A residual of 0 is mid-grey, brighter than expected is brighter.
    """
    tiles = [[_grey(values, *WINDOWS[kind]) for kind, values in row] for row in rows]
    height, width = tiles[0][0].shape
    step_y, step_x = height + _GAP + _HEADER, width + _GAP
    sheet = Image.new("RGB", (step_x * len(columns) + _GAP, _HEADER + step_y * len(tiles)))
    draw = ImageDraw.Draw(sheet)
    for index, name in enumerate(columns):
        draw.text((_GAP + index * step_x, 2), name, fill=_INK)
    for row, (caption, line) in enumerate(zip(captions, tiles, strict=True)):
        top = _HEADER + row * step_y
        draw.text((_GAP, top + 2), caption, fill=_INK)
        for column, tile in enumerate(line):
            sheet.paste(Image.fromarray(tile), (_GAP + column * step_x, top + _HEADER))
    return np.asarray(sheet)


def _grey(values: np.ndarray, low: float, high: float) -> np.ndarray:
    scaled = np.clip((np.asarray(values, dtype=np.float32) - low) / (high - low), 0, 1)
    upright = np.rot90((scaled * 255).round().astype(np.uint8)[::-1])
    return np.ascontiguousarray(upright.repeat(_SCALE, axis=0).repeat(_SCALE, axis=1))
