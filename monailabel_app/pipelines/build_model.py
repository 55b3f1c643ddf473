"""A whole model from a folder of healthy scans: prepare, train, export, calibrate on scans held out of training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from monailabel_app.errors import TrainingFailed
from monailabel_app.io.images import read_volume
from monailabel_app.training.healthy_loop import TrainProgress, TrainSettings
from monailabel_app.types import Volume

from .calibrate import MIN_HEALTHY_SCANS, calibrate_model
from .fit import export_model, fit
from .ixi import list_ixi
from .predict import SHIPPED_MODELS
from .prepare import list_scans, prepare_files, prepare_ixi

Stage = Callable[[str, int, int], None]


@dataclass(frozen=True)
class HealthySet:
    """Where the healthy scans are. held_out: loaders of the scans kept for calibration only."""

    train_cache: Path
    validation_cache: Path | None
    held_out: tuple[Callable[[], Volume], ...]
    data: Mapping[str, Any]


def is_ixi(folder: Path) -> bool:
    """Whether a folder is the IXI data set with its splits and region labels."""
    return (folder / "participants.csv").is_file() and (folder / "dlmuse").is_dir()


def prepare_set(
    folder: Path, modality: str, cache_folder: Path, *, workers: int = 2, seed: int = 0, stage: Stage | None = None
) -> HealthySet:
    """Prepare a folder of healthy scans once; what is in ``cache_folder`` already is not made again.

    The IXI folder comes with its splits. Of any other folder 15 % (at least 10 scans, drawn with ``seed``) are held
    out for calibration. Raises TrainingFailed with fewer than 20 scans.
    """
    if is_ixi(folder):
        return _prepare_ixi(folder, cache_folder, workers, stage)
    paths = list_scans(folder)
    if len(paths) < 2 * MIN_HEALTHY_SCANS:
        raise TrainingFailed(
            f"expected at least {2 * MIN_HEALTHY_SCANS} healthy scans (half of them to calibrate on), "
            f"got {len(paths)}; add scans or use a shipped model"
        )
    order = np.random.default_rng(seed).permutation(len(paths))
    count = max(MIN_HEALTHY_SCANS, round(0.15 * len(paths)))
    held_out, training = [paths[i] for i in sorted(order[:count])], [paths[i] for i in sorted(order[count:])]
    files = {}
    for name, chosen in (("train", training), ("validation", held_out)):
        files[name] = cache_folder / f"{modality}_{name}.safetensors"
        if not files[name].is_file():
            tell = partial(stage, f"preparing {name} scans") if stage else None
            made = prepare_files(
                chosen,
                modality,
                SHIPPED_MODELS / "template",
                SHIPPED_MODELS / "brain_extraction",
                workers=workers,
                progress=tell,
            )
            if len(made) < MIN_HEALTHY_SCANS:
                raise TrainingFailed(
                    f"expected at least {MIN_HEALTHY_SCANS} usable {name} scans, got {len(made)} of {len(chosen)}; "
                    "see the warnings above and add scans"
                )
            made.save(files[name])
    data = {"name": folder.name, "scans": len(training), "licence": "not stated"}
    return HealthySet(files["train"], files["validation"], tuple(partial(read_volume, p) for p in held_out), data)


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
    calibrate_model(folder, healthy.held_out, healthy=record, device=settings.device, progress=tell)
    return folder


def _prepare_ixi(folder: Path, cache_folder: Path, workers: int, stage: Stage | None) -> HealthySet:
    files = {}
    for split in ("train", "val"):
        files[split] = cache_folder / f"ixi_t1_{split}.safetensors"
        if not files[split].is_file():
            tell = partial(stage, f"preparing {split} scans") if stage else None
            made = prepare_ixi(folder, split, SHIPPED_MODELS / "template", workers=workers, progress=tell)
            made.save(files[split])
    data = {
        "name": "IXI T1 (brain-development.org), 134 healthy adults, Philips 3T, resampled to 2 mm",
        "scans": len(list_ixi(folder, "train")),
        "licence": "CC BY-SA 3.0",
    }
    return HealthySet(files["train"], files["val"], tuple(scan.volume for scan in list_ixi(folder, "val")), data)
