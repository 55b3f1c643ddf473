"""From a training cache to a model folder: train, export, describe."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from monailabel_app import __version__
from monailabel_app.calibration.calibrated_map import Calibration
from monailabel_app.errors import TrainingFailed
from monailabel_app.registry import TRAINABLE, load_method, method_info
from monailabel_app.training.cache import TrainingCache
from monailabel_app.training.checkpoint import TrainingState, has_state, load_state
from monailabel_app.training.healthy_loop import Evaluate, TrainProgress, TrainSettings, train
from monailabel_app.weights.model_folder import CARD, open_model_folder, seal, write_config, write_weights

from .config_io import config_from_plain, config_to_plain

_PACKAGES = ("torch", "monai", "numpy", "safetensors", "SimpleITK")
EROSION_MM = 2.0
ILLUMINATION_MM = 30.0


def fit(
    method_id: str,
    cache_file: Path,
    run_folder: Path,
    settings: TrainSettings,
    *,
    preset: str = "compact",
    validation_file: Path | None = None,
    resume: bool = False,
    start_from: Mapping[str, torch.Tensor] | None = None,
    progress: Callable[[TrainProgress], None] | None = None,
    evaluate: Evaluate | None = None,
) -> TrainingState:
    """Train a method's preset on a training cache.

    start_from: weights of the same preset to begin with. evaluate: measures the averaged network at every validation.
    Raises TrainingFailed for an unknown preset, a bad cache, and a run folder that holds a run already when it is not
    to be resumed: hours of training are not overwritten by a forgotten option.
    """
    method = load_method(method_id)
    if not resume and has_state(run_folder):
        raise TrainingFailed(
            f"expected a new run folder, got {run_folder.name}, which holds a run; go on with --resume, or remove it"
        )
    if method_id not in TRAINABLE:
        raise TrainingFailed(
            f"expected a method that learns from scans, got {method_id}, whose models are made of others; see: "
            "python main.py models ensemble --help"
        )
    if preset not in method.PRESETS:
        raise TrainingFailed(f"expected a preset out of {', '.join(method.PRESETS)}, got {preset!r}")
    validation = TrainingCache.load(validation_file) if validation_file is not None else None
    return train(
        method_id,
        method.PRESETS[preset],
        TrainingCache.load(cache_file),
        validation,
        settings,
        run_folder,
        resume=resume,
        start_from=start_from,
        progress=progress,
        evaluate=evaluate,
    )


def export_model(
    run_folder: Path,
    folder: Path,
    *,
    modality: str,
    training_data: Mapping[str, Any],
    overrides: Mapping[str, Any] | None = None,
    bias_field: bool = False,
    scores: tuple[str, ...] | None = None,
    training: Mapping[str, Any] | None = None,
    state: TrainingState | None = None,
    description: str = "",
    extra: Mapping[str, Any] | None = None,
) -> Path:
    """Write the averaged weights of a run's last checkpoint as a model folder (not calibrated yet).

    Of the state only the weights, the method and its configuration are needed, so that every kind of training can end
    here; how they came about is recorded as far as it is known. training: more about that, such as what the run
    started from. state: the checkpoint, where the caller has it already (run_folder is not read then).

    A calibration that lies in the folder is removed: it belongs to the weights that are replaced.

    overrides: test-time settings of the method (noise levels, draws) that differ from those it was trained with.
    description: what it learnt from, in words. extra: further keys of config.yaml, such as the levels of a slice model.
    """
    state = load_state(run_folder) if state is None else state
    method_id = state.settings["method"]
    method, info = load_method(method_id), method_info(method_id)
    values = {**state.settings["config"], **(overrides or {})}
    config = config_from_plain(method.Config, values)
    learnt = description or f"learnt from healthy {modality.upper()} scans"
    folder.mkdir(parents=True, exist_ok=True)
    Calibration.remove(folder)
    write_weights(folder, state.ema)
    write_config(
        folder,
        {
            "kind": "anomaly",
            "method": method_id,
            "modality": modality,
            "description": f"{info.title} ({method_id}), {learnt}",
            "paper": info.paper,
            "scores": list(scores or info.scores),
            "erosion_mm": EROSION_MM,
            "bias_field": bias_field,
            "illumination_mm": illumination_of(method),
            "spacing_mm": 2.0,
            **(extra or {}),
            "config": config_to_plain(config),
            "training_data": dict(training_data),
            "training": {
                **state.settings.get("settings", {}),
                "steps": state.step,
                "minutes": round(state.seconds / 60, 1),
                "history": state.history[-1:],
                "notes": list(state.notes),
                **(training or {}),
            },
            "versions": {"app": __version__, **library_versions()},
            "commit": source_commit(),
        },
    )
    # Numbers measured with earlier weights must not stand beside new ones.
    (folder / CARD).write_text(f"# {folder.name}\n\nNot calibrated and not measured yet. Research use only.\n")
    seal(folder)
    return folder


def illumination_of(method: ModuleType) -> float:
    """The standard deviation in mm from which on a residual is illumination, not a lesion, for a method; 0: none."""
    return float(getattr(method, "ILLUMINATION_MM", ILLUMINATION_MM))


def rewrite_card(folder: Path, text: str) -> None:
    """Replace card.md and seal the folder again."""
    (folder / CARD).write_text(text)
    seal(folder)


def describe(folder: Path) -> dict[str, Any]:
    """A model folder's configuration and hash, for listings."""
    opened = open_model_folder(folder)
    return {"id": opened.id, "hash": opened.hash, **opened.config}


def training_settings(**values: Any) -> TrainSettings:
    """Settings with ``device`` resolved: the first GPU where there is one."""
    if values.get("device") in (None, "auto"):
        values["device"] = "cuda" if torch.cuda.is_available() else "cpu"
    known = asdict(TrainSettings())
    return TrainSettings(**{key: value for key, value in values.items() if key in known and value is not None})


def library_versions() -> dict[str, str]:
    """Versions of the packages that decide what a training gives."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def source_commit() -> str:
    """Commit of this source tree; `unknown` outside of one."""
    root = Path(__file__).resolve().parents[2]
    try:
        result = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return result.stdout.strip()
