"""Build every shipped model anew from the data folder: template and atlas, brain extraction, ddpm."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from monailabel_app.errors import InvalidSettings
from monailabel_app.training import brain_training
from monailabel_app.training.cache import TrainingCache
from monailabel_app.weights.model_folder import CARD, seal, write_config

from .baselines import IntensityAtlas
from .build_model import build_model, prepare_set
from .build_template import build_template
from .fit import training_settings

if TYPE_CHECKING:
    from .progress_bar import Bars

TARGETS = ("template", "brain_extraction", "ddpm_t1")
_BRAIN_STEPS = 12000
# Chosen on lesions implanted into ten of the validation scans (other shapes and places than those of `evaluate`).
DDPM_T1_OVERRIDES = {"levels": [0.97, 0.93], "draws": 3}


def rebuild_weights(
    root: Path, data: Path, *, minutes: float, device: str, only: str | None, bar: Bars
) -> Iterator[str]:
    """Rebuild one target or all; yields a line for each that is done. Cards of re-trained models start anew.

    The training cache is made anew when the template is. Raises InvalidSettings for an unknown target.
    """
    if only is not None and only not in TARGETS:
        raise InvalidSettings(f"expected a target out of {', '.join(TARGETS)}, got {only!r}")
    wanted = TARGETS if only is None else (only,)
    weights, cache, runs = root / "model_weights", root / "cache", root / "runs"
    if "template" in wanted:
        shutil.rmtree(cache, ignore_errors=True)
        yield _rebuild_template(weights / "template", data, cache, bar)
    if "brain_extraction" in wanted:
        run, folder = runs / "brain_extraction", weights / "brain_extraction"
        shutil.rmtree(run, ignore_errors=True)
        budget = ["--steps", str(_BRAIN_STEPS), "--minutes", str(minutes)]
        brain_training.main(["train", "--data", str(data), "--run", str(run), *budget])
        brain_training.export_brain_unet(run, folder)
        seal(folder)
        yield f"brain extraction: {folder}"
    if "ddpm_t1" in wanted:
        healthy = prepare_set(data / "ixi_t1", "t1", cache, stage=bar.stage)
        shutil.rmtree(runs / "ddpm_t1", ignore_errors=True)
        folder = build_model(
            "ddpm",
            healthy,
            weights / "ddpm_t1",
            runs / "ddpm_t1",
            training_settings(minutes=minutes, steps=60000, device=device),
            modality="t1",
            overrides=DDPM_T1_OVERRIDES,
            progress=bar.training,
            stage=bar.stage,
        )
        yield f"ddpm for T1: {folder}"


def _rebuild_template(folder: Path, data: Path, cache: Path, bar: Bars) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    template, dices = build_template(data / "ixi_t1", data / "mslub" / "patient26" / "T1.nii.gz")
    template.save(folder)
    healthy = prepare_set(data / "ixi_t1", "t1", cache, stage=bar.stage)
    IntensityAtlas.fit(TrainingCache.load(healthy.train_cache)).save(folder)
    describe_template(folder, dices)
    return f"template: {folder}"


def describe_template(folder: Path, dices: list[float]) -> None:
    """config.yaml of the template folder, and its checksums."""
    write_config(
        folder,
        {
            "kind": "template",
            "spacing_mm": 2.0,
            "axes": "RAS, origin near the anterior commissure",
            "training_data": {
                "name": "IXI T1 (brain-development.org), 134 healthy adults, with DLMUSE region labels",
                "licence": "CC BY-SA 3.0",
            },
            "mask_dice": {"mean": round(sum(dices) / len(dices), 4), "min": round(min(dices), 4)},
        },
    )
    if not (folder / CARD).is_file():
        (folder / CARD).write_text("# Template\n\nMean of 134 aligned healthy brains.\n")
    seal(folder)
