"""Calibrate a model on held-out healthy scans: analyse them, take voxel statistics, choose the thresholds."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from monailabel_app.calibration.calibrated_map import (
    SMOOTHING_MM,
    Calibration,
    ScoreCalibration,
    analysed_mask,
    calibrated_map,
    scan_score,
)
from monailabel_app.calibration.conformal import false_volumes, record_of, warning_of
from monailabel_app.calibration.drift import drift_reference
from monailabel_app.calibration.operating_points import choose_operating_points
from monailabel_app.calibration.tails import tail_table
from monailabel_app.calibration.voxel_statistics import PRIOR_SCANS, HealthyMoments, VoxelStatistics
from monailabel_app.errors import AnomalyAppError, TrainingFailed
from monailabel_app.io.images import read_volume
from monailabel_app.postprocessing.delineate import delineated
from monailabel_app.preprocessing.slice_alignment import level_affine
from monailabel_app.training.cache import TrainingCache
from monailabel_app.types import BrainMask, Volume
from monailabel_app.weights.model_folder import seal

from .analysis import Analysis
from .healthy_reference import without_own_person
from .levels import middle_level, middle_slice
from .predict import AnomalyModel, PredictSettings, analyse, prepare
from .prepare import list_scans

_LOG = logging.getLogger(__name__)
MIN_HEALTHY_SCANS = 5
TRUSTWORTHY_SCANS = 20


def analyse_healthy(
    volumes: Sequence[Callable[[], Volume]],
    model: AnomalyModel,
    *,
    brains: Sequence[Callable[[], BrainMask]] | None = None,
    device: str = "cpu",
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> list[Analysis]:
    """Bring healthy scans through the same path as patients' scans, one at a time.

    volumes: loaders, so that only one scan is in memory on its native grid. brains: masks to use instead of the
    app's own brain extraction. A scan that cannot be read or prepared is logged and left out.
    """
    settings = PredictSettings(device=device, seed=seed)
    scans = []
    for index, load in enumerate(volumes):
        try:
            brain = brains[index]() if brains is not None else None
            prepared = prepare(load(), model, device, brain=brain)
            if model.levels is not None:
                prepared = middle_slice(prepared)  # what is normal is kept for a single slice
            scans.append(analyse(prepared, model, settings))
        except AnomalyAppError as error:
            _LOG.warning("healthy scan %d of %d left out: %s", index + 1, len(volumes), error)
        if progress is not None:
            progress(index + 1, len(volumes))
    return scans


def analyse_cache(
    cache: TrainingCache,
    model: AnomalyModel,
    indices: Sequence[int] | None = None,
    *,
    device: str = "cpu",
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> list[Analysis]:
    """The same for scans that were prepared before (all, or those of ``indices``): nothing but the analysis.

    Raises TrainingFailed when the cache was made for another template than the model's.
    """
    settings = PredictSettings(device=device, seed=seed)
    chosen = range(len(cache)) if indices is None else indices
    grid, affine = model.template.shape, model.template.affine
    if model.levels is not None:
        grid, affine = (*grid[:2], 1), level_affine(model.template, middle_level(model.levels))
    if tuple(cache.images.shape[1:]) != grid:
        raise TrainingFailed(
            f"expected scans prepared on the model's grid {grid}, got {tuple(cache.images.shape[1:])}; "
            "prepare them again"
        )
    scans = []
    for done, index in enumerate(chosen):
        prepared = cache.prepared(index, affine)
        scans.append(analyse(prepared, model, settings))
        if progress is not None:
            progress(done + 1, len(chosen))
    return scans


def calibration_of(
    scans: Sequence[Analysis],
    scores: Sequence[str],
    *,
    erosion_mm: float,
    healthy: Mapping[str, Any],
    patients: Sequence[str] | None = None,
    prior_scans: float = PRIOR_SCANS,
) -> Calibration:
    """Voxel statistics over all scans; thresholds and scan scores from each scan standardised without its patient.

    The thresholds thereby hold for somebody whom the statistics have not seen; those of the point ``bounded`` and of
    the table of bounds are split-conformal (``calibration.conformal``). patients: whom each scan shows, by
    default somebody else each. ``healthy``, the record of what was calibrated on, gets the numbers of scans and
    patients, and below 20 patients the warning that every result carries. prior_scans: see HealthyMoments. Raises
    TrainingFailed with fewer than 5 patients: the rates would rest on nothing.
    """
    names = list(patients) if patients is not None else [str(index) for index in range(len(scans))]
    count = len(set(names))
    if count < MIN_HEALTHY_SCANS:
        raise TrainingFailed(
            f"expected at least {MIN_HEALTHY_SCANS} held-out healthy scans of as many patients to calibrate on "
            f"({TRUSTWORTHY_SCANS} or more make the thresholds trustworthy), got {len(scans)} of {count}; add scans"
        )
    masks = [scan.prepared.brain_mask for scan in scans]
    calibrated = {}
    for score in scores:
        raws = [scan.raw(score) for scan in scans]
        moments = HealthyMoments(raws, masks, prior_scans=prior_scans)
        without = [moments.statistics(without=[i for i, n in enumerate(names) if n == name]) for name in names]
        points, scan_scores, tails, bounds, drift = {}, {}, {}, {}, {}
        for smoothing in SMOOTHING_MM:
            maps, values = [], []
            for raw, mask, statistics in zip(raws, masks, without, strict=True):
                maps.append(
                    calibrated_map(raw, mask, statistics, score=score, smoothing=smoothing, erosion_mm=erosion_mm)
                )
                values.append(maps[-1][analysed_mask(mask, erosion_mm)])  # the rim is at hand still
            outlined = [delineated(made, scan.prepared.spacing_mm) for made, scan in zip(maps, scans, strict=True)]
            found = false_volumes(choose_operating_points(values, patients=names), outlined, values, names)
            points[smoothing], bounds[smoothing] = found.points, found.table
            drift[smoothing] = drift_reference(values, names)
            tails[smoothing] = tail_table(values, names)
            scan_scores[smoothing] = tuple(round(scan_score(m), 5) for m in maps)
        statistics = _as_stored(moments.statistics())
        calibrated[score] = ScoreCalibration(statistics, points, scan_scores, tails, bounds, drift)
    record = {
        **healthy,
        "scans": len(scans),
        "patients": count,
        "false_volume": record_of(count, masks[0].shape[2]),
        "warnings": _warnings(len(scans), count),
    }
    return Calibration(calibrated, erosion_mm, record)


def _warnings(scans: int, patients: int) -> list[str]:
    if patients >= TRUSTWORTHY_SCANS:
        return []
    of = "" if scans == patients else f" of {patients} patients"
    return [
        f"calibrated on {scans} healthy scans{of} only: thresholds are rough, the specific one most of all, and no "
        f"p-value is below 1/{scans + 1}; {TRUSTWORTHY_SCANS} or more would make them trustworthy",
        *filter(None, (warning_of(patients),)),
    ]


def calibrate_model(
    folder: Path,
    volumes: Sequence[Callable[[], Volume]],
    *,
    healthy: Mapping[str, Any],
    brains: Sequence[Callable[[], BrainMask]] | None = None,
    device: str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Calibration, list[Analysis]]:
    """Calibrate the model in ``folder`` on held-out healthy scans and seal the folder with the result."""
    model = AnomalyModel(folder, calibrated=False)
    scans = analyse_healthy(volumes, model, brains=brains, device=device, progress=progress)
    return _keep(model, scans, healthy), scans


def calibrate_prepared(
    folder: Path,
    cache: TrainingCache,
    indices: Sequence[int] | None = None,
    *,
    healthy: Mapping[str, Any],
    device: str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Calibration, list[Analysis]]:
    """``calibrate_model`` for scans prepared before (all of ``cache``, or those of ``indices``).

    The result is that of ``calibrate_model`` up to the cache's 8 bits. The scans must not have trained the model.
    """
    model = AnomalyModel(folder, calibrated=False)
    scans = analyse_cache(cache, model, indices, device=device, progress=progress)
    patients = [cache.patients[i] for i in (range(len(cache)) if indices is None else indices)]
    return _keep(model, scans, healthy, patients), scans


def calibrate_on(
    folder: Path, healthy: Path, *, device: str = "cpu", progress: Callable[[int, int], None] | None = None
) -> Calibration:
    """Calibrate on what ``healthy`` is: a folder of scans, or a cache of prepared ones (.safetensors)."""
    record = {"data": healthy.name}
    if healthy.suffix == ".safetensors":
        return calibrate_prepared(
            folder, TrainingCache.load(healthy), healthy=record, device=device, progress=progress
        )[0]
    loaders = [partial(read_volume, path) for path in list_scans(healthy)]
    return calibrate_model(folder, loaders, healthy=record, device=device, progress=progress)[0]


def _keep(
    model: AnomalyModel,
    scans: Sequence[Analysis],
    healthy: Mapping[str, Any],
    patients: Sequence[str] | None = None,
) -> Calibration:
    calibration = calibration_of(
        without_own_person(model, scans, patients) if model.members else scans,
        list(model.meta["scores"]),
        erosion_mm=float(model.meta["erosion_mm"]),
        healthy=healthy,
        patients=patients,
        prior_scans=model.prior_scans,
    )
    calibration.save(model.folder)
    seal(model.folder)
    return calibration


def _as_stored(statistics: VoxelStatistics) -> VoxelStatistics:
    """Rounded as the file rounds them, so that a saved and a fresh calibration give the same map."""
    return VoxelStatistics(
        statistics.mean.astype(np.float16).astype(np.float32), statistics.std.astype(np.float16).astype(np.float32)
    )
