"""What a model sees, on the scan's own grid and in its own grey values."""

from __future__ import annotations

import numpy as np

from monailabel_app.preprocessing.normalize import grey_values
from monailabel_app.preprocessing.pipeline import to_native
from monailabel_app.types import PreparedVolume

from .analysis import Analysis

# Of a voxel's value, how much must come from inside the model's brain mask.
_LEAST_WEIGHT = 0.01


def native_reconstruction(analysis: Analysis) -> np.ndarray | None:
    """The pseudo-healthy brain (x, y, z) float32 in the scan's grey values, 0 outside what was analysed.

    None for a method that makes none. Two things do not come back: values beyond the normalisation's limits, which
    clips them, and where a model corrects the bias field, that field.
    """
    made = analysis.reconstruction
    if made is None:
        return None
    prepared = analysis.prepared
    grey = grey_values(made, *scale_of(prepared))
    # Divided by the share inside, or the rim would fade into the zeros around the model's brain.
    weight = to_native(prepared.brain_mask.astype(np.float32), prepared)
    values = to_native(np.where(prepared.brain_mask, grey, 0).astype(np.float32), prepared)
    inside = weight > _LEAST_WEIGHT
    return np.divide(values, weight, out=np.zeros(values.shape, values.dtype), where=inside)


def scale_of(prepared: PreparedVolume) -> tuple[str, float, float]:
    """How the last normalisation scaled the scan: its kind, and the grey values that it was made with."""
    for step in reversed(prepared.steps):
        if "low" in step and "median" in step:
            return "median", float(step["low"]), float(step["median"])
        if step.get("step") == "normalize":
            return str(step["kind"]), float(step["low"]), float(step["high"])
    raise KeyError("a prepared volume records its normalisation")
