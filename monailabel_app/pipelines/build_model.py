"""A whole model from a folder of healthy scans: prepare, train, export, calibrate on scans held out of training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from monailabel_app.training.cache import TrainingCache
from monailabel_app.training.healthy_loop import TrainProgress, TrainSettings
from monailabel_app.training.split import split_by_patient
from monailabel_app.types import Volume

from .calibrate import calibrate_model, calibrate_prepared
from .fit import export_model, fit
from .ixi import list_ixi
from .predict import SHIPPED_MODELS
from .prepare import list_sources, prepare_ixi
from .prepared_cache import prepare_sources

HELD_OUT_SHARE = 0.15
Stage = Callable[[str, int, int], None]


@dataclass(frozen=True)
class HealthySet:
    """Where the prepared healthy scans are. validation_cache: those held out of training, for calibration.

    held_out: loaders of the same scans as they were scanned, where calibration takes them through the whole way,
    brain extraction included, because the prepared ones got their brain masks from elsewhere.
    """

    train_cache: Path
    validation_cache: Path
    data: Mapping[str, Any]
    held_out: tuple[Callable[[], Volume], ...] = ()


def is_ixi(folder: Path) -> bool:
    """Whether a folder is the IXI data set with its splits and region labels."""
    return (folder / "participants.csv").is_file() and (folder / "dlmuse").is_dir()


def prepare_set(
    folder: Path, modality: str, cache_folder: Path, *, workers: int = 2, seed: int = 0, stage: Stage | None = None
) -> HealthySet:
    """Prepare a folder of healthy scans once; what ``cache_folder`` holds already is not prepared again.

    The IXI folder comes with its splits. Of any other folder about 15 % of the patients (at least 5, drawn with
    ``seed``) are held out for calibration. Raises TrainingFailed with fewer than 10 patients with usable scans.
    """
    if is_ixi(folder):
        return _prepare_ixi(folder, cache_folder, workers, stage)
    sources = list_sources(folder)
    tell = partial(stage, "preparing scans") if stage else None
    # Too few of them are noticed before an hour of preparing, too few usable ones after it.
    split_by_patient([source.patient for source in sources], HELD_OUT_SHARE, key=_key(seed))
    cache = prepare_sources(sources, modality, cache_folder, workers=workers, progress=tell).cache
    split = split_by_patient(cache.patients, HELD_OUT_SHARE, key=_key(seed))
    numbers = {patient: f"patient{i:05d}" for i, patient in enumerate(sorted(set(cache.patients)))}
    unnamed = replace(cache, patients=tuple(numbers[patient] for patient in cache.patients))
    files = {}
    for name, indices in (("train", split.training), ("validation", split.held_out)):
        files[name] = cache_folder / f"{modality}_{name}.safetensors"
        unnamed.select(indices).save(files[name])
    data = {"name": folder.name, "scans": len(split.training), "licence": "not stated"}
    return HealthySet(files["train"], files["validation"], data)


def build_model(
    method_id: str,
    healthy: HealthySet,
    folder: Path,
    run_folder: Path,
    settings: TrainSettings,
    *,
    modality: str,
    preset: str = "compact",
    resume: bool = False,
    overrides: Mapping[str, Any] | None = None,
    progress: Callable[[TrainProgress], None] | None = None,
    stage: Stage | None = None,
) -> Path:
    """Train, export and calibrate; returns the finished model folder."""
    fit(
        method_id,
        healthy.train_cache,
        run_folder,
        settings,
        preset=preset,
        validation_file=healthy.validation_cache,
        resume=resume,
        progress=progress,
    )
    export_model(run_folder, folder, modality=modality, training_data=healthy.data, overrides=overrides)
    tell = partial(stage, "calibrating") if stage else None
    record = {"data": healthy.data.get("name", "")}
    if healthy.held_out:
        calibrate_model(folder, healthy.held_out, healthy=record, device=settings.device, progress=tell)
    else:
        held_out = TrainingCache.load(healthy.validation_cache)
        calibrate_prepared(folder, held_out, healthy=record, device=settings.device, progress=tell)
    return folder


def _key(seed: int) -> bytes:
    return f"seed {seed}".encode()


def _prepare_ixi(folder: Path, cache_folder: Path, workers: int, stage: Stage | None) -> HealthySet:
    files = {}
    for split in ("train", "val"):
        files[split] = cache_folder / f"ixi_t1_{split}.safetensors"
        if not files[split].is_file():
            tell = partial(stage, f"preparing {split} scans") if stage else None
            made = prepare_ixi(
                folder,
                split,
                SHIPPED_MODELS / "template",
                cache_folder=cache_folder,
                workers=workers,
                progress=tell,
            )
            made.save(files[split])
    data = {
        "name": "IXI T1 (brain-development.org), 134 healthy adults, Philips 3T, resampled to 2 mm",
        "scans": len(list_ixi(folder, "train")),
        "licence": "CC BY-SA 3.0",
    }
    held_out = tuple(scan.volume for scan in list_ixi(folder, "val"))
    return HealthySet(files["train"], files["val"], data, held_out)
