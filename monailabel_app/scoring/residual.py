"""Voxel-wise differences between an image and its reconstruction.

Simple and blind to a lesion as bright as the tissue it replaces (Meissen et al., On the pitfalls of using the
residual error as anomaly score, MIDL 2022).
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np

from monailabel_app.errors import InvalidSettings
from monailabel_app.scoring.inputs import ArrayLike, score_inputs

Direction = Literal["both", "positive", "negative"]


def l1_residual(image: ArrayLike, reconstruction: ArrayLike, brain_mask: ArrayLike) -> np.ndarray:
    """|image - reconstruction| inside the brain, 0 outside: (X, Y, Z) float32."""
    image, reconstruction, brain_mask = score_inputs(image, reconstruction, brain_mask)
    return ((image - reconstruction).abs() * brain_mask).cpu().numpy()


def squared_residual(image: ArrayLike, reconstruction: ArrayLike, brain_mask: ArrayLike) -> np.ndarray:
    """(image - reconstruction)^2 inside the brain, 0 outside: (X, Y, Z) float32."""
    image, reconstruction, brain_mask = score_inputs(image, reconstruction, brain_mask)
    return ((image - reconstruction).square() * brain_mask).cpu().numpy()


def signed_residual(
    image: ArrayLike,
    reconstruction: ArrayLike,
    brain_mask: ArrayLike,
    *,
    direction: Direction = "both",
) -> np.ndarray:
    """image - reconstruction inside the brain, 0 outside: (X, Y, Z) float32.

    direction: ``both`` keeps the sign; ``positive`` keeps what is brighter than expected and ``negative``
    what is darker, each as a magnitude >= 0. Stroke on T1 is darker, oedema on T2 and FLAIR brighter.

    Raises InvalidSettings for another direction.
    """
    if direction not in get_args(Direction):
        raise InvalidSettings(f"Expected direction to be one of {get_args(Direction)}, got {direction!r}")
    image, reconstruction, brain_mask = score_inputs(image, reconstruction, brain_mask)
    difference = (image - reconstruction) * brain_mask
    if direction != "both":
        difference = (difference if direction == "positive" else -difference).clamp(min=0)
    return difference.cpu().numpy()
