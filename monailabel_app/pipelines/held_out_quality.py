"""How good a model is, measured without a drawn label: lesions implanted into healthy scans held out of training.

The lesions are the same for every model, so that two models can be compared scan by scan. Everything happens in model
space on prepared scans: no scan is read or aligned again. The lesions have exact edges and a known contrast, and push
nothing aside: the figures rank models, they do not tell how many real lesions are found.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from monailabel_app.calibration.calibrated_map import analysed_mask, calibrated_map
from monailabel_app.calibration.operating_points import choose_operating_points
from monailabel_app.calibration.voxel_statistics import HealthyMoments
from monailabel_app.errors import EvaluationFailed
from monailabel_app.metrics.voxelwise import ScoreHistogram, average_precision
from monailabel_app.postprocessing.erosion import erode_brain
from monailabel_app.postprocessing.illumination import match_illumination
from monailabel_app.preprocessing.lesion_implant import implant_lesion, random_blob
from monailabel_app.registry import load_method, method_info
from monailabel_app.reports.contact_sheet import contact_sheet
from monailabel_app.training.cache import TrainingCache
from monailabel_app.types import PreparedVolume

from .analysis import Evidence, examine, light_config
from .fit import EROSION_MM, ILLUMINATION_MM, illumination_of
from .predict import AnomalyModel, PredictSettings, analyse
from .quality_figures import Comparison, QualityFigures, compare, keep, may_replace, mean_interval, read_kept

__all__ = ["Comparison", "HeldOutQuality", "ImplantedScan", "QualityFigures", "compare", "may_replace"]

MIN_SCANS, MAX_SCANS = 5, 24
_PROTOCOL = 1  # raised when lesions or protocol change: figures kept in a file are then measured again
_SPACING = (2.0, 2.0, 2.0)
_VOLUMES_ML, _CONTRASTS, _EDGES_MM = (0.3, 10.0), (0.10, 0.40), (1.0, 3.0)
_RIM_MM = 4.0  # lesions keep this distance from the brain's edge, so that no model's erosion cuts them off
_QUICK_SCANS, _QUICK_SLICES = 6, 8
_PICTURES = 3

# (healthy or lesioned image, brain mask), both (X, Y, Z) -> what a method makes of them
Examine = Callable[[np.ndarray, np.ndarray], Evidence]


@dataclass(frozen=True)
class ImplantedScan:
    """A held-out healthy brain without and with its lesions. All (X, Y, Z): float32 in [0, 1], and bool."""

    healthy: np.ndarray
    lesioned: np.ndarray
    lesions: np.ndarray
    brain_mask: np.ndarray

    def slab(self, thickness: int) -> slice:
        """The axial slices with most lesion voxels in a row of ``thickness``."""
        per_slice = self.lesions.sum(axis=(0, 1))
        thickness = min(thickness, len(per_slice))
        first = int(np.convolve(per_slice, np.ones(thickness, dtype=int), mode="valid").argmax())
        return slice(first, first + thickness)


class HeldOutQuality:
    """Fixed synthetic lesions in the scans of a cache that no compared model was trained on.

    One scan per patient, at most 24. A scan's lesions follow from its id and the seed alone: adding scans changes no
    other scan's. Raises EvaluationFailed with fewer than 5 patients.
    """

    def __init__(self, cache: TrainingCache, seed: int = 0) -> None:
        self._cache, self._seed = cache, seed
        patients = getattr(cache, "patients", ()) or cache.ids
        first_of: dict[str, int] = {}
        for index in sorted(range(len(cache)), key=lambda i: self._hash(cache.ids[i])):
            first_of.setdefault(patients[index], index)
        self._rows = list(first_of.values())[:MAX_SCANS]
        if len(self._rows) < MIN_SCANS:
            raise EvaluationFailed(
                f"expected at least {MIN_SCANS} held-out healthy patients to measure a model on, got "
                f"{len(self._rows)}; add scans or hold a larger share out of training"
            )

    def __len__(self) -> int:
        return len(self._rows)

    def scan(self, index: int, slab: slice = slice(None)) -> ImplantedScan:
        """The held-out scan of an index, made anew at each call so that only one is in memory.

        slab: the axial slices that the lesions are put into.
        """
        row = self._rows[index]
        healthy = (self._cache.images[row].numpy() / 255).astype(np.float32)
        brain = self._cache.brain_masks[row].numpy().astype(bool)
        generator = np.random.default_rng(int(self._hash(self._cache.ids[row])[:32], 16))
        return _implanted(healthy, brain, generator, slab)

    @cached_property
    def digest(self) -> str:
        """Names the held-out scans, their lesions and the protocol together."""
        digest = hashlib.sha256(f"{_PROTOCOL}:{self._seed}".encode())
        for row in self._rows:
            digest.update(self._hash(self._cache.ids[row]).encode())
            digest.update(self._cache.images[row].numpy().tobytes())
            digest.update(self._cache.brain_masks[row].numpy().tobytes())
        return digest.hexdigest()

    def quick(
        self, method_id: str, config: Any, network: nn.Module, device: str | torch.device = "cpu"
    ) -> dict[str, float]:
        """Two figures for a training's checkpoints, from the same eight slices of six brains and one noise draw.

        ``quality``: average precision as in ``full``, of lesions implanted into these slices. ``healthy_fpr``: share of
        voxels of the slices without lesions that score as high as the upper half of the lesion voxels. They follow one
        run in seconds; models are compared by ``full``. No global random state is touched.
        """
        look = _of_network(method_id, config, network, device)
        smooth = illumination_of(load_method(method_id))
        return self.quick_of(look, method_info(method_id).scores[0], illumination_mm=smooth)

    def quick_of(self, look: Examine, score: str, *, illumination_mm: float = ILLUMINATION_MM) -> dict[str, float]:
        """``quick`` for anything that examines a brain."""
        slab = self._quick_slab
        masks = [np.ascontiguousarray(scan.brain_mask[..., slab]) for scan in self._quick_scans]
        raws = {
            name: [
                _only(look, getattr(scan, name), scan.brain_mask, slab, illumination_mm).raw(score)
                for scan in self._quick_scans
            ]
            for name in ("healthy", "lesioned")
        }
        moments = HealthyMoments(raws["healthy"], masks)
        counted, in_lesions, in_healthy = ScoreHistogram(), [], []
        for index, mask in enumerate(masks):
            statistics = moments.statistics(without=index)
            healthy, lesioned = (
                calibrated_map(
                    raws[name][index], mask, statistics, score=score, smoothing="standard", erosion_mm=EROSION_MM
                )
                for name in ("healthy", "lesioned")
            )
            lesions, inside = self._quick_scans[index].lesions[..., slab], analysed_mask(mask, EROSION_MM)
            counted.add(lesioned, lesions, inside)
            in_lesions.append(lesioned[lesions & inside])
            in_healthy.append(healthy[inside])
        threshold = np.median(np.concatenate(in_lesions))
        above = float((np.concatenate(in_healthy) >= threshold).mean())
        return {"quality": average_precision(counted), "healthy_fpr": above}

    def full(
        self,
        folder: Path,
        device: str = "cpu",
        *,
        cache_file: Path | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> QualityFigures:
        """Measure the model in ``folder`` on every held-out scan as a patient's scan would be analysed.

        Default score and standard smoothing, standardised with the healthy versions of the *other* held-out scans,
        whatever calibration the folder holds: the same protocol for every model. cache_file: JSON in which figures
        are kept by model hash and digest, so that a served model is measured once. Raises CorruptModel.
        """
        model = AnomalyModel(folder, calibrated=False)
        key = f"{model.hash}:{self.digest}"
        kept = read_kept(cache_file)
        if key in kept:
            return kept[key]
        if model.template.shape != tuple(self._cache.images.shape[1:]):
            raise EvaluationFailed(
                f"expected held-out scans on the grid of {model.id} {model.template.shape}, got "
                f"{tuple(self._cache.images.shape[1:])}; prepare them again"
            )
        settings = PredictSettings(device=device)

        def look(image: np.ndarray, brain: np.ndarray) -> Evidence:
            return analyse(_prepared(image, brain, model), model, settings).evidence

        figures = replace(
            self.full_of(
                look, str(model.meta["scores"][0]), erosion_mm=float(model.meta["erosion_mm"]), progress=progress
            ),
            model_id=model.id,
            model_hash=model.hash,
        )
        keep(cache_file, kept | {key: figures})
        return figures

    def full_of(
        self,
        look: Examine,
        score: str,
        *,
        erosion_mm: float,
        progress: Callable[[int, int], None] | None = None,
    ) -> QualityFigures:
        """``full`` for anything that examines a brain."""
        masks, healthy_raws, lesioned_raws = [], [], []
        for index in range(len(self)):
            scan = self.scan(index)
            for kept, image in ((healthy_raws, scan.healthy), (lesioned_raws, scan.lesioned)):
                kept.append(look(image, scan.brain_mask).raw(score))
            masks.append(scan.brain_mask)
            if progress is not None:
                progress(index + 1, len(self))
        moments = HealthyMoments(healthy_raws, masks)
        pooled, aps, in_healthy, in_lesions = ScoreHistogram(), [], [], []
        for index, mask in enumerate(masks):
            statistics = moments.statistics(without=index)
            healthy, lesioned = (
                calibrated_map(raw, mask, statistics, score=score, smoothing="standard", erosion_mm=erosion_mm)
                for raw in (healthy_raws[index], lesioned_raws[index])
            )
            lesions = self.scan(index).lesions
            own = ScoreHistogram.of(lesioned, lesions, mask)
            pooled = pooled + own
            aps.append(average_precision(own))
            in_healthy.append(healthy[analysed_mask(mask, erosion_mm)])
            in_lesions.append(lesioned[lesions])
        point = choose_operating_points(in_healthy)["balanced"]
        return QualityFigures(
            model_id="",
            model_hash="",
            held_out=self.digest,
            score=score,
            mean_ap=float(np.mean(aps)),
            mean_ap_interval=mean_interval(aps),
            pooled_ap=average_precision(pooled),
            per_scan_ap=tuple(aps),
            sensitivity=float((np.concatenate(in_lesions) > point.threshold).mean()),
            prevalence=pooled.prevalence,
        )

    def pictures(
        self, method_id: str, config: Any, network: nn.Module, device: str | torch.device = "cpu"
    ) -> np.ndarray:
        """A contact sheet (H, W, 3) uint8 of one slice of three brains, the same at every call.

        Columns: the healthy slice, its reconstruction and residual, then the same slice with its lesions. The
        residual is grey where nothing differs, and its window is fixed.
        """
        look = _of_network(method_id, config, network, device)
        smooth, score = illumination_of(load_method(method_id)), method_info(method_id).scores[0]
        rows = []
        for scan in self._quick_scans[:_PICTURES]:
            slab = scan.slab(1)
            row = []
            for image in (scan.healthy, scan.lesioned):
                seen = _only(look, image, scan.brain_mask, slab, smooth)
                shown = seen.image[..., 0]
                if seen.reconstruction is None:
                    raw = seen.raw(score)[..., 0]
                    row += [("image", shown), ("image", np.zeros_like(raw)), ("residual", raw)]
                else:
                    made = seen.reconstruction[..., 0]
                    row += [("image", shown), ("image", made), ("residual", shown - made)]
            rows.append(row)
        columns = ("healthy", "reconstruction", "residual", "with lesions", "reconstruction", "residual")
        return contact_sheet(rows, columns, [f"held-out {n + 1}" for n in range(len(rows))])

    @cached_property
    def _quick_slab(self) -> slice:
        """The axial slices with most brain."""
        area = sum(self._cache.brain_masks[row].sum(dim=(0, 1)) for row in self._rows[:_QUICK_SCANS]).numpy()
        thickness = min(_QUICK_SLICES, len(area))
        first = int(np.convolve(area, np.ones(thickness), mode="valid").argmax())
        return slice(first, first + thickness)

    @cached_property
    def _quick_scans(self) -> list[ImplantedScan]:
        return [self.scan(index, self._quick_slab) for index in range(min(_QUICK_SCANS, len(self)))]

    def _hash(self, scan_id: str) -> str:
        return hashlib.sha256(f"{self._seed}:{scan_id}".encode()).hexdigest()


def _implanted(healthy: np.ndarray, brain: np.ndarray, generator: np.random.Generator, slab: slice) -> ImplantedScan:
    """One or two lesions, volumes log-uniform, either sign of contrast, clear of the brain's edge."""
    allowed = np.zeros_like(brain)
    allowed[..., slab] = True
    free = erode_brain(brain, distance_mm=_RIM_MM, spacing_mm=_SPACING) & allowed
    if not free.any():
        free = brain & allowed
    image, lesions = healthy, np.zeros_like(brain)
    for _ in range(int(generator.integers(1, 3))):
        volume_ml = float(np.exp(generator.uniform(*np.log(_VOLUMES_ML))))
        volume_ml = min(volume_ml, 0.25 * float(free.sum()) * float(np.prod(_SPACING)) / 1000)
        shape = random_blob(brain.shape, generator, volume_ml=volume_ml, spacing_mm=_SPACING, inside=free)
        contrast = float(generator.choice((-1.0, 1.0)) * generator.uniform(*_CONTRASTS))
        image, truth = implant_lesion(
            image,
            shape,
            contrast=contrast,
            spacing_mm=_SPACING,
            edge_sigma_mm=float(generator.uniform(*_EDGES_MM)),
            brain_mask=brain,
        )
        lesions |= truth
        free &= ~truth
    return ImplantedScan(healthy, np.clip(image, 0, 1), lesions, brain)


def _of_network(method_id: str, config: Any, network: nn.Module, device: str | torch.device) -> Examine:
    method = load_method(method_id)
    light = light_config(method, config)

    def look(image: np.ndarray, brain: np.ndarray) -> Evidence:
        return examine(method, network, light, image, brain, device=device, scores=method_info(method_id).scores[:1])

    return look


def _only(look: Examine, image: np.ndarray, brain: np.ndarray, slab: slice, illumination_mm: float) -> Evidence:
    """What is made of some slices, in the image's illumination; the others are empty, which costs nothing."""
    part, inside = np.zeros_like(image), np.zeros_like(brain)
    part[..., slab], inside[..., slab] = image[..., slab], brain[..., slab]
    seen = look(part, inside)
    image, brain = np.ascontiguousarray(image[..., slab]), np.ascontiguousarray(brain[..., slab])
    made = seen.reconstruction
    if made is not None:
        made = match_illumination(image, np.ascontiguousarray(made[..., slab]), brain, sigma_mm=illumination_mm)
    return Evidence(image, brain, made, {name: values[..., slab] for name, values in seen.maps.items()})


def _prepared(image: np.ndarray, brain: np.ndarray, model: AnomalyModel) -> PreparedVolume:
    """A cached brain as preprocessing would hand it on; its native grid is the model's."""
    affine = model.template.affine
    return PreparedVolume(
        image=image[None],
        brain_mask=brain,
        model_affine=affine,
        native_to_template=np.eye(4),
        native_affine=affine,
        native_shape=brain.shape,
        native_brain_mask=brain,
    )
