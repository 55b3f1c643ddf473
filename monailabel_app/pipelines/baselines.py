"""The two baselines every detector has to beat: smoothed intensity and smoothed voxel-wise atlas z-scores."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from monailabel_app.calibration.calibrated_map import analysed_mask
from monailabel_app.errors import CorruptModel
from monailabel_app.methods.atlas_zscore import healthy_moments
from monailabel_app.postprocessing.smooth import gaussian_smooth
from monailabel_app.training.cache import TrainingCache
from monailabel_app.types import PreparedVolume

_FILE = "atlas.safetensors"


@dataclass(frozen=True)
class IntensityAtlas:
    """Voxel-wise mean and deviation of the normalised intensity of healthy brains, (X, Y, Z) float32."""

    mean: np.ndarray
    std: np.ndarray

    @classmethod
    def fit(cls, cache: TrainingCache) -> IntensityAtlas:
        """From a training cache, one volume at a time. The deviation has a floor of 0.01."""
        mean, std = (values.numpy() for values in healthy_moments(cache.images, cache.brain_masks))
        return cls(mean.astype(np.float32), std.astype(np.float32))

    def save(self, folder: Path) -> None:
        """Half precision beside a template."""
        tensors = {"mean": torch.from_numpy(self.mean).half(), "std": torch.from_numpy(self.std).half()}
        save_file(tensors, str(folder / _FILE))

    @classmethod
    def load(cls, folder: Path) -> IntensityAtlas:
        """Raises CorruptModel when there is none."""
        if not (folder / _FILE).is_file():
            raise CorruptModel(f"expected {_FILE} in {folder.name}, found none; rebuild it with `make weights`")
        tensors = load_file(str(folder / _FILE))
        return cls(tensors["mean"].float().numpy(), tensors["std"].float().numpy())


def atlas_z(prepared: PreparedVolume, atlas: IntensityAtlas) -> np.ndarray:
    """Signed z-score of each brain voxel among healthy brains at the same place: (X, Y, Z)."""
    z = (prepared.image[0] - atlas.mean) / atlas.std
    return np.where(prepared.brain_mask, z, 0.0).astype(np.float32)


def smoothed_magnitude(z: np.ndarray, prepared: PreparedVolume, sigma_mm: float, erosion_mm: float) -> np.ndarray:
    """|smoothed z|: deviations of both signs count, as no detector is told the sign beforehand.

    The brain's rim is cut as it is for the model, or its misalignment would be held against the baseline alone.
    """
    smooth = gaussian_smooth(z, prepared.brain_mask, sigma_mm=sigma_mm, spacing_mm=(2.0, 2.0, 2.0))
    inside = analysed_mask(prepared.brain_mask, erosion_mm)
    return np.where(inside, np.abs(smooth), 0.0).astype(np.float32)
