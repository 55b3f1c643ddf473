"""Build every shipped model anew from the data folder: template and atlas, brain extraction, every method's models."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from monailabel_app.errors import InvalidSettings
from monailabel_app.preprocessing.template import Template
from monailabel_app.training import brain_training
from monailabel_app.training.cache import TrainingCache
from monailabel_app.weights.model_folder import CARD, seal, write_config

from .baselines import IntensityAtlas
from .build_model import prepare_set
from .build_template import build_template
from .calibrate import calibrate_prepared
from .ensemble import make_ensemble
from .fit import export_model, fit, training_settings
from .input_gate import FOLDER as GATE
from .input_gate import NETWORK_FOLDER, build_input_gate
from .ixi import list_ixi
from .shipped_data import ShippedData, shipped_data
from .shipped_models import SHIPPED, ShippedModel

if TYPE_CHECKING:
    from .progress_bar import Bars

TARGETS = ("template", "brain_extraction", *SHIPPED, GATE)
_BRAIN_STEPS = 12000


def rebuild_weights(
    root: Path,
    data: Path,
    *,
    minutes: float,
    device: str,
    only: str | None,
    bar: Bars,
    preset: str | None = None,
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
    for name in SHIPPED:
        if name in wanted:
            yield rebuild_model(SHIPPED[name], root, data, minutes=minutes, device=device, preset=preset, bar=bar)
    # Its healthy figures are those of one network: with another one, the gate has to be made anew.
    if GATE in wanted or NETWORK_FOLDER in wanted:
        yield _rebuild_gate(weights / GATE, data, cache, bar)


def rebuild_model(
    shipped: ShippedModel, root: Path, data: Path, *, minutes: float, device: str, preset: str | None, bar: Bars
) -> str:
    """Train and calibrate one shipped model; preset replaces its own, such as ``large`` where there is a GPU.

    The folder is replaced as a whole when everything has gone well.
    """
    healthy = shipped_data(shipped.data, data, root / "cache", stage=bar.stage)
    if shipped.members:
        return _rebuild_ensemble(shipped, root, healthy, bar)
    run, folder = root / "runs" / shipped.name, root / "model_weights" / shipped.name
    shutil.rmtree(run, ignore_errors=True)
    settings = training_settings(**{"minutes": minutes, "steps": 60000, "device": device, **shipped.training})
    fit(
        shipped.method,
        healthy.train,
        run,
        settings,
        preset=preset or shipped.preset,
        validation_file=healthy.held_out,
        progress=bar.training,
    )
    made = root / "runs" / f"{shipped.name}.new" / shipped.name
    shutil.rmtree(made.parent, ignore_errors=True)
    export_model(
        run,
        made,
        modality=healthy.modality,
        training_data=healthy.record,
        overrides=shipped.overrides,
        scores=shipped.scores or None,
        description=healthy.description,
        extra={**healthy.config, **shipped.config},
    )
    calibrate_prepared(
        made,
        TrainingCache.load(healthy.held_out),
        healthy={"data": healthy.record["name"]},
        device=settings.device,
        progress=partial(bar.stage, "calibrating"),
    )
    shutil.rmtree(folder, ignore_errors=True)
    made.replace(folder)
    made.parent.rmdir()
    return f"{shipped.name}: {folder}"


def _rebuild_gate(folder: Path, data: Path, cache: Path, bar: Bars) -> str:
    healthy = shipped_data("ixi_t1", data, cache, stage=bar.stage)
    scans = [(scan.volume(), scan.brain_mask()) for scan in list_ixi(data / "ixi_t1", "val")]
    build_input_gate(
        folder,
        TrainingCache.load(healthy.train),
        TrainingCache.load(healthy.held_out),
        [float(mask.sum()) * volume.voxel_volume_mm3 / 1000 for volume, mask in scans],
        Template.load(folder.parent / "template"),
        healthy.record,
        progress=partial(bar.stage, "calibrating the input gate"),
    )
    return f"input gate: {folder}"


def _rebuild_ensemble(shipped: ShippedModel, root: Path, healthy: ShippedData, bar: Bars) -> str:
    weights = root / "model_weights"
    folder = weights / shipped.name
    shutil.rmtree(folder, ignore_errors=True)
    make_ensemble(folder, [(weights / name, score) for name, score in shipped.members])
    calibrate_prepared(
        folder,
        TrainingCache.load(healthy.held_out),
        healthy={"data": healthy.record["name"]},
        progress=partial(bar.stage, "calibrating"),
    )
    return f"{shipped.name}: {folder}"


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
