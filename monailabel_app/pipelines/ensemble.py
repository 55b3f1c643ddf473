"""Make an ensemble: a model folder that names others."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from monailabel_app import __version__
from monailabel_app.calibration.calibrated_map import Calibration
from monailabel_app.errors import InvalidSettings, PublishFailed
from monailabel_app.methods.ensemble import MEMBER_SMOOTHING, Config, build
from monailabel_app.registry import method_info
from monailabel_app.weights.model_folder import (
    CARD,
    CONFIG,
    VERSIONS,
    result_hash,
    seal,
    write_config,
    write_weights,
)

from .config_io import config_to_plain
from .fit import library_versions, source_commit
from .predict import AnomalyModel, load_model

METHOD = "ensemble"


def make_ensemble(folder: Path, members: Sequence[tuple[Path, str | None]]) -> Path:
    """Write a model folder that combines the calibrated models in ``members``; not calibrated yet.

    It is best calibrated on the scans that calibrated its members (``calibrate.calibrate_on``): each of them is then
    judged without its own person at both stages.

    members: folder and score of each, the score None for the model's default. They stay where they are and are found
    again by name and hash. Raises InvalidSettings for fewer than two, for members that prepare scans differently, were
    calibrated by an earlier version, or are ensembles; PublishFailed for a folder that holds something else.
    """
    if len(members) < 2:
        raise InvalidSettings(f"expected at least two members, got {len(members)}")
    models = [load_model(path) for path, _ in members]
    scores = [score or model.scores[0] for model, (_, score) in zip(models, members, strict=True)]
    for model, score in zip(models, scores, strict=True):
        _check(model, models[0], score)
    config = Config(
        tuple(model.id for model in models), tuple(result_hash(model.folder) for model in models), tuple(scores)
    )
    _write(folder, config, models)
    return folder


def _check(model: AnomalyModel, first: AnomalyModel, score: str) -> None:
    if model.members:
        raise InvalidSettings(
            f"expected models with a method of their own, got the ensemble {model.id}; name its members instead"
        )
    if not model.calibration.score(score).tails.get(MEMBER_SMOOTHING):
        raise InvalidSettings(
            f"expected members whose calibration holds healthy tails, got {model.id}, calibrated by an earlier "
            "version; train it again, or take another model"
        )
    if (model.prepare_settings, model.levels) != (first.prepare_settings, first.levels):
        raise InvalidSettings(
            f"expected members that prepare a scan in one way, got {first.id} and {model.id}; combine models of one "
            "sequence and one kind (volumes, or single slices)"
        )


def _write(folder: Path, config: Config, models: Sequence[AnomalyModel]) -> None:
    first, info = models[0], method_info(METHOD)
    _check_free(folder)
    folder.mkdir(parents=True, exist_ok=True)
    Calibration.remove(folder)
    write_weights(folder, build(config).state_dict())
    modalities = list(dict.fromkeys(model.modality for model in models))
    parts = ", ".join(f"{name} ({score})" for name, score in zip(config.members, config.scores, strict=True))
    write_config(
        folder,
        {
            "kind": "anomaly",
            "method": METHOD,
            "modality": modalities[0] if len(modalities) == 1 else "any",
            "description": f"{info.title} ({METHOD}) for {'/'.join(modalities).upper()} scans: {parts}",
            "paper": info.paper,
            "scores": list(info.scores),
            "erosion_mm": float(first.meta["erosion_mm"]),
            "bias_field": first.prepare_settings.bias_field,
            "normalization": first.prepare_settings.normalization,
            "illumination_mm": 0.0,
            "spacing_mm": 2.0,
            **({"levels": list(first.levels)} if first.levels is not None else {}),
            "config": config_to_plain(config),
            "training_data": _training_data(models),
            "training": {"minutes": 0.0, "steps": 0, "notes": ["made of other models, nothing was trained"]},
            "versions": {"app": __version__, **library_versions()},
            "commit": source_commit(),
        },
    )
    (folder / CARD).write_text(
        f"# {folder.name}\n\nCombines {parts}. Not calibrated and not measured yet. Research use only.\n"
    )
    seal(folder)


def _check_free(folder: Path) -> None:
    """Only an ensemble is replaced, and no published version."""
    listed = folder / CONFIG
    ours = listed.is_file() and f"method: {METHOD}\n" in listed.read_text(errors="replace")
    if folder.parent.name == VERSIONS or (folder.exists() and any(folder.iterdir()) and not ours):
        raise PublishFailed(
            f"expected a new name or an ensemble to replace, got {folder.name}, which is something else; choose "
            "another name"
        )


def _training_data(models: Sequence[AnomalyModel]) -> dict[str, Any]:
    """What the members learnt from: each kind of data once."""
    found: dict[str, dict[str, Any]] = {}
    for model in models:
        data = dict(model.meta.get("training_data") or {})
        found[str(data.get("name", ""))] = data
    licences = dict.fromkeys(str(data["licence"]) for data in found.values() if data.get("licence"))
    return {
        "name": "; ".join(name for name in found if name) or "of its members",
        "scans": max((int(data.get("scans", 0)) for data in found.values()), default=0),
        "licence": "; ".join(licences) or "not stated",
    }
