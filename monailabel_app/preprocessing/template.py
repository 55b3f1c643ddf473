"""The template: the mean of aligned healthy brains, its mask and its region labels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from monailabel_app.errors import CorruptModel

TEMPLATE_SHAPE = (72, 96, 80)
TEMPLATE_AFFINE = np.array(
    [[2.0, 0, 0, -71.0], [0, 2.0, 0, -112.0], [0, 0, 2.0, -74.0], [0, 0, 0, 1.0]], dtype=np.float64
)
_FILE = "model.safetensors"


@dataclass(frozen=True)
class Template:
    """Everything that lives on the 2 mm model grid, RAS axes, origin near the anterior commissure.

    mean: (X, Y, Z) float32 in [0, 1], mean normalised T1 brain. brain_probability: (X, Y, Z) float32, the share of the
    training brains that cover a voxel. regions: (X, Y, Z) uint8, majority region label (DLMUSE numbering).
    """

    mean: np.ndarray
    brain_probability: np.ndarray
    regions: np.ndarray
    affine: np.ndarray

    @property
    def brain_mask(self) -> np.ndarray:
        """(X, Y, Z) bool, covered by at least half of the training brains."""
        return self.brain_probability >= 0.5

    @property
    def shape(self) -> tuple[int, int, int]:
        """Size of the model grid in voxels."""
        return tuple(int(n) for n in self.mean.shape)

    def save(self, folder: Path) -> None:
        """Write the tensors to ``folder`` (half precision: the mean of 134 brains holds no more)."""
        tensors = {
            "mean": torch.from_numpy(self.mean).half(),
            "brain_probability": torch.from_numpy(self.brain_probability).half(),
            "regions": torch.from_numpy(self.regions),
            "affine": torch.from_numpy(self.affine),
        }
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, str(folder / _FILE))

    @classmethod
    def load(cls, folder: Path) -> Template:
        """Read a template folder. Raises CorruptModel when the file is missing or incomplete."""
        path = Path(folder) / _FILE
        if not path.is_file():
            raise CorruptModel(
                f"expected the template file {_FILE} in {folder}, found none; restore model_weights/template"
            )
        try:
            tensors = load_file(str(path))
            return cls(
                mean=tensors["mean"].float().numpy(),
                brain_probability=tensors["brain_probability"].float().numpy(),
                regions=tensors["regions"].numpy(),
                affine=tensors["affine"].double().numpy(),
            )
        except (KeyError, SafetensorError) as error:
            raise CorruptModel(
                f"expected a complete template file {_FILE}, got {error}; restore model_weights/template"
            ) from error
