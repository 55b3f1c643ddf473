"""What a model cannot see, measured with synthetic anomalies in healthy scans: the record and how it is made.

blind_spots.json
    version, made {time, app_version, seconds, processor_seconds, command}, model {id, hash, result_hash, method,
    modality, score, smoothing, calibration {data, scans, kind, id, hash}}, data {name, scans (altered),
    calibrating_scans, key, leave_one_out, refused}, manifest {seed, replicates, volumes_ml, contrasts, textures,
    regions, kinds, gap_mm, rule, scans, analyses, anomalies, not_placed, key}, default_point,
    thresholds {point: value}, points {point: figures}, cells [{kind, volume_ml, contrast, texture, region,
    points {point: {n, found}}}], sentences [text] (of the default point), whole_pipeline {...} or null,
    corruptions [...] or null, placed [{number, kind, volume_ml, contrast, texture, region, scan, run, centre [voxel],
    structure}]
figures (per operating point)
    matrix {volumes_ml [v], contrasts [c], n, found, recall, interval: lists [v][c]} (recall null where n is 0)
    smallest_contrast [{volume_ml, sign either|darker|brighter, contrast or null (not reached), interval [low, high],
    each null where not reached, at_smallest_tried, recall_at_strongest, n}]
    by_volume, by_sign, by_texture, by_region, by_kind: [{<name of the group>, n, found, recall, interval [low, high]}]
    by_region_and_volume, by_texture_and_volume, by_kind_and_volume: the same with volume_ml
    chance {n, found, recall, interval, by_volume, marked_before}: places where nothing was put; share of all places
    that the unaltered scans have marked. not_judged: places the unaltered scan marks too much of
whole_pipeline {scans, lesions, same_verdict, marked_difference (mean absolute), recall_model_grid, recall_raw_head,
    cases [{scan, number, kind, volume_ml, contrast, model_grid, raw_head}]}
corruptions: see ``corruption_suite``
selftest.csv: one line per anomaly (kind, size, contrast, texture, region, place; found, marked and before by point).
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from monailabel_app import __version__
from monailabel_app.calibration.background import matched
from monailabel_app.calibration.calibrated_map import calibrated_map
from monailabel_app.errors import EvaluationFailed
from monailabel_app.files import replace_file, replacing
from monailabel_app.preprocessing.slice_alignment import level_affine
from monailabel_app.training.cache import TrainingCache
from monailabel_app.types import PreparedVolume, to_json
from monailabel_app.weights.model_folder import result_hash

from ..analysis import Analysis, Evidence
from ..calibration_choice import SITE
from ..healthy_reference import HealthyReference, level_statistics
from ..levels import middle_level, on_grid_of
from ..members import EnsembleEvidence
from ..predict import AnomalyModel, PredictSettings, analyse, load_model
from ..workers import WorkerDied, map_in_processes
from . import blind_spot_figures as figures
from .blind_spot_lesions import FOUND_SHARE, alter, judge, model_spacing
from .blind_spot_plan import (
    CONTRAST,
    CONTRASTS,
    GAP_MM,
    ISO_KINDS,
    NOTHING,
    TEXTURES,
    VOLUMES_ML,
    Placed,
    design,
    fluid_mask,
    place,
    region_groups,
)
from .healthy_set import HealthySet

VERSION = 1
SMOOTHING, DEFAULT_POINT = "standard", "balanced"
_FEWEST_HEALTHY = 5
_RULE = (
    f"at least {100 * FOUND_SHARE:.0f} % of its voxels newly marked against the unaltered scan, by components that "
    "rise most in it or within 4 mm of it"
)
Stage = Callable[[str, int, int], None]


@dataclass(frozen=True)
class SelftestSettings:
    """replicates: lesions per volume and contrast. score: None is the model's default. device: cpu or cuda[:n].

    calibration: ``site`` (the site's own where one is in use) or ``shipped``.
    """

    replicates: int = 12
    seed: int = 20
    score: str | None = None
    device: str = "cpu"
    workers: int = 2
    calibration: str = SITE


@dataclass(frozen=True)
class Job:
    """What every worker process needs to know. folder: of the model; work: of this test's files.

    calibration: ``site`` (where one is in use) or ``shipped``.
    """

    folder: Path
    work: Path
    score: str
    device: str
    seed: int
    calibration: str


def blind_spots(
    model: AnomalyModel,
    healthy: HealthySet,
    out: Path,
    settings: SelftestSettings = SelftestSettings(),
    *,
    scans: int | None = None,
    stage: Stage | None = None,
) -> tuple[dict[str, Any], Job]:
    """Measure, or take up where an earlier run with the same scans, model and settings was interrupted.

    scans: only the first so many are altered; all of the set calibrate. Returns the record of ``blind_spots.json``
    without its whole-pipeline check and corruptions but with the ``rows`` of the table, and writes nothing but the
    work folder ``out``/partial. Raises EvaluationFailed for fewer than one scan.
    """
    tell = stage or (lambda name, done, total: None)
    started = time.time()
    count = len(healthy.cache)
    if not count:
        raise EvaluationFailed("expected at least one healthy scan, got none")
    model = model.with_calibration(settings.calibration)
    score = settings.score or model.scores[0]
    thresholds = {name: p.threshold for name, p in model.calibration.score(score).points[SMOOTHING].items()}
    altered = min(count, scans or count)
    placed, homeless, regions = plan(model, healthy.cache.select(range(altered)), settings)
    manifest = _manifest(model, healthy, settings, score, placed, len(homeless), regions)
    work = out / "partial" / manifest["key"][:16]
    work.mkdir(parents=True, exist_ok=True)
    if not (work / "brains.safetensors").is_file():
        healthy.cache.save(work / "brains.safetensors")
    (work / "plan.json").write_text(json.dumps([item.to_json() for item in placed]))
    job = Job(model.folder, work, score, settings.device, settings.seed, settings.calibration)

    runs = {scan: len({item.run for item in placed if item.scan == scan}) for scan in range(altered)}
    done = [0]

    def over(name: str, make: Callable[[tuple[Job, int]], float], file: str, weight: Mapping[int, int]) -> float:
        missing = [scan for scan in weight if not (work / file.format(scan)).is_file()]
        done[0], total = sum(weight[scan] for scan in weight if scan not in missing), sum(weight.values())
        tell(name, done[0], total)
        spent = 0.0
        workers = min(settings.workers, len(missing)) if settings.device == "cpu" else 0
        for position, answer in map_in_processes(make, [(job, scan) for scan in missing], workers):
            if isinstance(answer, WorkerDied):
                raise EvaluationFailed(
                    "expected an analysis, the process that made it died (for want of memory?); use fewer workers and "
                    "start again: what is done is kept"
                )
            spent += answer
            done[0] += weight[missing[position]]
            tell(name, done[0], total)
        return spent

    spent = over("unaltered scans", clean_scan, "clean_{:03d}.safetensors", dict.fromkeys(range(count), 1))
    spent += over("altered scans", altered_scan, "rows_{:03d}.json", runs)
    rows, one_out = [], False
    for scan in range(altered):
        kept = json.loads((work / f"rows_{scan:03d}.json").read_text())
        rows += kept["rows"]
        one_out = one_out or kept["leave_one_out"]
    rows.sort(key=lambda row: row["number"])
    by_point = {name: figures.aggregate(rows, name, seed=settings.seed) for name in thresholds}
    point = DEFAULT_POINT if DEFAULT_POINT in thresholds else next(iter(thresholds))
    calibration = model.calibration.healthy
    record = {
        "version": VERSION,
        "made": {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S"),
            "app_version": __version__,
            "seconds": round(time.time() - started, 1),
            "processor_seconds": round(spent, 1),
        },
        "model": {
            "id": model.id,
            "hash": model.hash,
            "result_hash": result_hash(model.folder),
            "method": str(model.meta["method"]),
            "modality": model.modality,
            "score": score,
            "smoothing": SMOOTHING,
            "calibration": {
                "data": str(calibration.get("data", "")),
                "scans": calibration.get("scans"),
                **{name: model.calibration_id.get(name) for name in ("kind", "id", "hash")},
            },
        },
        "data": {
            "name": healthy.name,
            "scans": altered,
            "calibrating_scans": count,
            "key": healthy.key,
            "leave_one_out": one_out,
            "refused": healthy.refused,
        },
        "manifest": manifest,
        "default_point": point,
        "thresholds": thresholds,
        "points": by_point,
        "cells": figures.cells(rows, list(thresholds)),
        "sentences": figures.sentences(by_point[point], point=point, strongest=max(abs(c) for c in CONTRASTS)),
        "whole_pipeline": None,
        "corruptions": None,
        "placed": [item.to_json() for item in placed],
        "rows": rows,
    }
    return to_json(record), job


def plan(
    model: AnomalyModel, cache: TrainingCache, settings: SelftestSettings
) -> tuple[list[Placed], list[Any], list[str]]:
    """The anomalies and where they go, those without a place, and the names of the regions."""
    prepared = cache.prepared(0, model_affine(model, cache))
    labels = on_grid_of(model.template.regions, model.template, prepared)
    voxel_ml = _voxel_ml(prepared)
    brains = [cache.brain_masks[index].numpy() for index in range(len(cache))]
    groups = region_groups(labels, np.mean(brains, axis=0) >= 0.5, voxel_ml)
    wanted = design(list(groups), replicates=settings.replicates, seed=settings.seed)
    placed, homeless = place(wanted, brains, groups, labels, prepared.model_affine, seed=settings.seed)
    return placed, homeless, list(groups)


def model_affine(model: AnomalyModel, cache: TrainingCache) -> np.ndarray:
    """Of the grid the cached brains lie on: the template's, or the middle one of a slice model's levels."""
    if model.levels is None:
        return model.template.affine
    return level_affine(model.template, middle_level(model.levels))


def clean_scan(item: tuple[Job, int]) -> float:
    """Analyse one unaltered scan and keep its raw maps; processor seconds."""
    job, scan = item
    started = time.process_time()
    model = _model(job)
    prepared = _brains(job.work).prepared(scan, model_affine(model, _brains(job.work)))
    held = analyse(prepared, model, PredictSettings(device=job.device))
    tensors = {"score": torch.from_numpy(held.raw(job.score))}
    if model.members:
        for index, (member, name) in enumerate(zip(held.evidence.members, model.config.scores, strict=True)):
            tensors[f"member_{index}"] = torch.from_numpy(member.raw(name))
    file = job.work / f"clean_{scan:03d}.safetensors"
    with replacing(file) as partial:
        save_file({name: values.contiguous() for name, values in tensors.items()}, str(partial))
    return time.process_time() - started


def altered_scan(item: tuple[Job, int]) -> float:
    """Make, analyse and judge all altered versions of one scan; keeps ``rows_000.json``; processor seconds."""
    job, scan = item
    started = time.process_time()
    model, reader = _model(job), _reader(job)
    prepared = reader.scans[scan].prepared
    clean = reader.calibrated(reader.scans[scan], scan)
    fluid = fluid_mask(on_grid_of(model.template.regions, model.template, prepared))
    thresholds = {name: p.threshold for name, p in model.calibration.score(job.score).points[SMOOTHING].items()}
    placed = [Placed.from_json(value) for value in json.loads((job.work / "plan.json").read_text())]
    rows = []
    for run in sorted({item.run for item in placed if item.scan == scan}):
        own = [item for item in placed if item.run == run]
        changed, places = alter(prepared, own, fluid, seed=job.seed)
        held = analyse(changed, model, PredictSettings(device=job.device))
        verdicts = judge(clean, reader.calibrated(held, scan), places, thresholds, model_spacing(prepared))
        rows += [{**item.to_json(), **verdict} for item, verdict in zip(own, verdicts, strict=True)]
    file = job.work / f"rows_{scan:03d}.json"
    replace_file(file, json.dumps(to_json({"leave_one_out": reader.one_out, "rows": rows})))
    return time.process_time() - started


class Reader:
    """Calibrated maps of scans; those of a scan the calibration knows are made without that person."""

    def __init__(self, model: AnomalyModel, job: Job) -> None:
        self._model, self._score = model, job.score
        cache = _brains(job.work)
        affine = model_affine(model, cache)
        self._patients = cache.patients
        self.scans = [_kept(model, job, cache.prepared(i, affine), i) for i in range(len(cache))]
        enough = len(self.scans) >= _FEWEST_HEALTHY
        self._reference = HealthyReference(model, self.scans, patients=cache.patients) if enough else None
        self.one_out = self._reference is not None and self._reference.same_scans(job.score)

    def calibrated(self, scan: Analysis, without: int | None) -> np.ndarray:
        """The calibrated map of an analysis of scan ``without``, altered or not; None for a scan of somebody else.

        Where the calibration knows the scans, all of the same person are left out of it.
        """
        if self.one_out:
            return self._reference.map_of(scan, self._score, SMOOTHING, without=self._of_the_same_person(without))
        known, erosion_mm = self._model.calibration.score(self._score), self._model.calibration.erosion_mm
        mask = scan.prepared.brain_mask
        level = 0 if mask.shape[2] == 1 else None
        statistics = level_statistics(known.statistics, mask.shape, level)
        about = {"score": self._score, "smoothing": SMOOTHING, "erosion_mm": erosion_mm}
        values = calibrated_map(scan.raw(self._score), mask, statistics, **about)
        return matched(values, mask, known, **about)[0]

    def _of_the_same_person(self, scan: int | None) -> tuple[int, ...]:
        return () if scan is None else self._reference.of_patient(self._patients[scan])


def _manifest(
    model: AnomalyModel,
    healthy: HealthySet,
    settings: SelftestSettings,
    score: str,
    placed: Sequence[Placed],
    homeless: int,
    regions: Sequence[str],
) -> dict[str, Any]:
    about = {
        "seed": settings.seed,
        "replicates": settings.replicates,
        "volumes_ml": VOLUMES_ML,
        "contrasts": CONTRASTS,
        "textures": TEXTURES,
        "regions": list(regions),
        "kinds": [CONTRAST, *ISO_KINDS, NOTHING],
        "gap_mm": GAP_MM,
        "rule": _RULE,
        "scans": len({item.scan for item in placed}),
        "analyses": len({item.run for item in placed}) + len(healthy.cache),
        "anomalies": len(placed),
        "not_placed": homeless,
    }
    statistics = model.calibration.score(score).statistics
    calibration = hashlib.sha256(statistics.mean.tobytes() + statistics.std.tobytes()).hexdigest()
    points = {name: asdict(p) for name, p in model.calibration.score(score).points[SMOOTHING].items()}
    identity = [VERSION, about, model.hash, calibration, points, score, healthy.key, [p.to_json() for p in placed]]
    key = hashlib.sha256(json.dumps(to_json(identity), sort_keys=True).encode()).hexdigest()
    return {**about, "key": key}


def _voxel_ml(prepared: PreparedVolume) -> float:
    return float(abs(np.linalg.det(prepared.model_affine[:3, :3]))) / 1000


def _kept(model: AnomalyModel, job: Job, prepared: PreparedVolume, scan: int) -> Analysis:
    tensors = load_file(str(job.work / f"clean_{scan:03d}.safetensors"))
    image, mask = prepared.image[0], prepared.brain_mask
    maps = {job.score: tensors["score"].numpy()}
    if not model.members:
        return Analysis(prepared, Evidence(image, mask, None, maps))
    members = tuple(
        Evidence(image, mask, None, {name: tensors[f"member_{index}"].numpy()})
        for index, name in enumerate(model.config.scores)
    )
    return Analysis(prepared, EnsembleEvidence(image, mask, None, maps, members=members))


# A process works on one model and one set; the next test must not find what this one has loaded.
@lru_cache(maxsize=1)
def _model(job: Job) -> AnomalyModel:
    return load_model(job.folder).with_calibration(job.calibration)


@lru_cache(maxsize=1)
def _brains(work: Path) -> TrainingCache:
    return TrainingCache.load(work / "brains.safetensors")


@lru_cache(maxsize=1)
def _reader(job: Job) -> Reader:
    return Reader(_model(job), job)
