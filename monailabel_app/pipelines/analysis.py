"""The network's half of a prediction: a prepared brain in, the method's evidence out; every score follows from it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn

from monailabel_app.errors import InvalidSettings
from monailabel_app.methods.output import MethodOutput
from monailabel_app.postprocessing.illumination import match_illumination
from monailabel_app.scoring import SCORES
from monailabel_app.scoring.mahalanobis import mahalanobis_map
from monailabel_app.types import GateReport, PreparedVolume


@dataclass(frozen=True)
class Evidence:
    """A method's output for one brain as arrays (X, Y, Z) float32 on the model grid.

    image, brain_mask: what was analysed. reconstruction: in the image's illumination, zero outside the brain; None for
    a method that makes none. maps: the raw maps by score name that do not follow from the reconstruction alone: the
    method's own, and ``mahalanobis`` where it made several reconstructions. variance: of the reconstruction over draws.
    figures: numbers of the whole scan.
    """

    image: np.ndarray
    brain_mask: np.ndarray
    reconstruction: np.ndarray | None = None
    maps: Mapping[str, np.ndarray] = field(default_factory=dict)
    variance: np.ndarray | None = None
    figures: Mapping[str, float] = field(default_factory=dict)

    def raw(self, score: str) -> np.ndarray:
        """The uncalibrated map of one score, (X, Y, Z) float32, 0 outside the brain.

        Raises InvalidSettings for a score that this method's evidence does not hold, such as a residual of a method
        without a reconstruction.
        """
        if score in self.maps:
            return self.maps[score]
        usable = (*self.maps, *(SCORES if self.reconstruction is not None else ()))
        if score not in usable:
            raise InvalidSettings(
                f"expected a score out of {', '.join(usable)}, got {score!r}, which this method lacks"
            )
        return SCORES[score](self.image, self.reconstruction, self.brain_mask)

    @property
    def nbytes(self) -> int:
        """Memory held beside the prepared volume's, in bytes."""
        extra = [array for array in (self.reconstruction, self.variance, *self.maps.values()) if array is not None]
        return sum(array.nbytes for array in extra)


@dataclass(frozen=True)
class Analysis:
    """A prepared brain and what the method made of it.

    gate: the input gate's report; judged: whether it was asked, since of some scans it knows nothing to say. made: the
    environments (``manifest.environment``) in which it and the members' analyses were made.
    """

    prepared: PreparedVolume
    evidence: Evidence
    gate: GateReport | None = None
    judged: bool = False
    made: tuple[Mapping[str, Any], ...] = ()

    def raw(self, score: str) -> np.ndarray:
        """The uncalibrated map of one score, (X, Y, Z)."""
        return self.evidence.raw(score)

    @property
    def reconstruction(self) -> np.ndarray | None:
        """The pseudo-healthy brain on the model grid: (X, Y, Z) float32 in [0, 1], zero outside the brain."""
        return self.evidence.reconstruction

    @property
    def nbytes(self) -> int:
        """Memory held, in bytes."""
        prepared = (self.prepared.image, self.prepared.brain_mask, self.prepared.native_brain_mask)
        return self.evidence.nbytes + sum(array.nbytes for array in prepared)


def examine(
    method: ModuleType,
    network: nn.Module,
    config: Any,
    image: np.ndarray,
    brain_mask: np.ndarray,
    *,
    seed: int = 0,
    device: str | torch.device = "cpu",
    illumination_mm: float = 0.0,
    scores: Collection[str] | None = None,
    batch_size: int | None = None,
    progress: Callable[[float], None] | None = None,
) -> Evidence:
    """Run a method on one brain: image (X, Y, Z) float32 in [0, 1], brain_mask (X, Y, Z) bool, both on the model grid.

    network lives on ``device``. scores: those that will be asked for, None for any: a map over all draws, each in the
    scan's illumination, is made only where it is wanted. batch_size: slices at a time, None for the method's own; it
    changes no more than the rounding. The same seed gives the same evidence on the same device.
    """
    generator = torch.Generator().manual_seed(seed)
    output: MethodOutput = method.analyse(
        network,
        config,
        torch.from_numpy(np.ascontiguousarray(image)).to(device),
        torch.from_numpy(np.ascontiguousarray(brain_mask)).to(device),
        generator,
        progress=progress,
        **({} if batch_size is None else {"batch_size": batch_size}),
    )
    made = _array(output.reconstruction, brain_mask)
    if made is not None:
        made = match_illumination(image, made, brain_mask, sigma_mm=illumination_mm)
    maps = {name: _array(values, brain_mask) for name, values in output.maps.items()}
    if output.draws and (scores is None or "mahalanobis" in scores):
        draws = [
            match_illumination(image, _array(draw, brain_mask), brain_mask, sigma_mm=illumination_mm)
            for draw in output.draws
        ]
        maps["mahalanobis"] = mahalanobis_map(image, draws, brain_mask)
    return Evidence(
        image=image,
        brain_mask=brain_mask,
        reconstruction=made,
        maps=maps,
        variance=_array(output.variance, brain_mask),
        figures={name: float(value) for name, value in output.figures.items()},
    )


def light_config(method: ModuleType, config: Any) -> Any:
    """The method's cheaper test-time configuration, for figures that follow a training; its own where it has none."""
    return method.light(config) if hasattr(method, "light") else config


def _array(values: torch.Tensor | None, brain_mask: np.ndarray) -> np.ndarray | None:
    if values is None:
        return None
    return np.where(brain_mask, values.detach().float().cpu().numpy(), 0.0).astype(np.float32)
