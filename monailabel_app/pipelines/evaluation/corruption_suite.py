"""How a model's results drift when healthy heads are corrupted, and whether the input gate catches them.

Every corruption goes through the whole pipeline: brain extraction, alignment, normalisation, analysis. What preparing
and the gate make of it does not depend on the model and is kept for the next one. All figures are paired with the same
head as it is, which goes the same way.

corruptions [{name, scans, refused (preparation answered with an error), refusals [reason], caught {n, found, recall,
    interval} (by the gate), reasons [the gate's, most frequent first], scan_score {clean, corrupted, ratio, interval},
    p_value (median), points {point: {false_ml {clean, corrupted}, ratio, interval}}}]
clean, corrupted: means over heads. ratio: the median over heads of corrupted to clean (of volumes after adding 0.1 ml
to both, so that a clean map does not divide by nothing); interval: bootstrapped over heads, null for fewer than 3.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from monailabel_app.calibration.calibrated_map import scan_score
from monailabel_app.errors import AnomalyAppError, EvaluationFailed
from monailabel_app.files import replace_file, replacing
from monailabel_app.io.images import read_volume
from monailabel_app.metrics.imagewise import rank_p_value
from monailabel_app.postprocessing.delineate import delineated
from monailabel_app.preprocessing.corruptions import CLEAN, CORRUPTIONS, head_on_ras_axes
from monailabel_app.types import PreparedVolume, to_json
from monailabel_app.weights.version_layout import recorded_hash

from ..input_gate import FOLDER as GATE_FOLDER
from ..predict import SHIPPED_MODELS, AnomalyModel, PredictSettings, analyse, load_model, prepare
from ..workers import WorkerDied, map_in_processes
from .blind_spot_figures import wilson
from .blind_spot_lesions import marked, model_spacing
from .blind_spots import SMOOTHING, Job, Reader
from .healthy_set import HealthySet

VERSION = 1
GIVEN = "given sequence"
QUICK = (
    "bias field 40 %", "noise 10 %", "gamma 2", "left-right flip", "missing slab, top", "blur 2 mm", "motion ghosts",
    "slices of 6 mm", "contrast of T2", "mask: whole head",
)  # fmt: skip
_ADDED_ML = 0.1
_RESAMPLES = 1000
Stage = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Corrupt:
    """One head in one corruption. file: where what preparing made of it is kept."""

    model: Path
    head: Path
    name: str
    scan: int
    file: Path


def corruption_suite(
    model: AnomalyModel,
    healthy: HealthySet,
    job: Job,
    cache_folder: Path,
    *,
    scans: int,
    names: Sequence[str] = tuple(CORRUPTIONS),
    given: Sequence[Path] = (),
    workers: int = 2,
    stage: Stage | None = None,
) -> list[dict[str, Any]]:
    """Corrupt the first ``scans`` heads of the set; goes on where it was interrupted.

    job: of the blind-spot test, whose unaltered scans calibrate. given: scans of a wrong sequence, judged as they
    are. Raises EvaluationFailed without raw heads, or for a model of single levels.
    """
    tell = stage or (lambda name, done, total: None)
    if not healthy.heads or model.levels is not None:
        raise EvaluationFailed(
            "expected raw healthy heads and a model of volumes for the corruptions, got "
            f"{'a model of single levels' if healthy.heads else 'prepared brains only'}; give a folder of scans"
        )
    wanted = [CLEAN, *(name for name in names if name != CLEAN)]
    folder = cache_folder / "corrupted" / _recipe(model)[:16]
    items = [
        Corrupt(model.folder, healthy.heads[scan].path, name, scan, folder / _file(healthy, scan, name))
        for scan in range(min(scans, len(healthy.heads)))
        for name in wanted
    ]
    items += [
        Corrupt(model.folder, path, GIVEN, -1, folder / f"given_{_digest(path)}.safetensors") for path in given
    ]
    missing = [item for item in items if not item.file.is_file()]
    tell("corrupted scans", len(items) - len(missing), len(items))
    done = len(items) - len(missing)
    for _, answer in map_in_processes(prepare_corrupted, missing, min(workers, len(missing))):
        if isinstance(answer, WorkerDied):
            raise EvaluationFailed(
                "expected a prepared scan, the process that made it died (for want of memory?); use fewer workers"
            )
        done += 1
        tell("corrupted scans", done, len(items))
    reader = Reader(model, job)
    measured = []
    kept = _Kept(job.work / "corrupted.json")
    for index, item in enumerate(items):
        key = _digest(item.file)
        if key not in kept.values:
            kept.add(key, _measure(model, reader, job, item))
        measured.append({"name": item.name, "scan": item.scan, **kept.values[key]})
        tell("analysing corrupted scans", index + 1, len(items))
    named = [*wanted[1:], *([GIVEN] if given else [])]
    return [to_json(_row(name, measured, list(model.calibration.score(job.score).points[SMOOTHING]))) for name in named]


def prepare_corrupted(item: Corrupt) -> str:
    """Corrupt, prepare and judge one head; leaves a file with the brain, the gate's verdict, or the refusal."""
    model = _model(item.model)
    item.file.parent.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, torch.Tensor] = {"empty": torch.zeros(1)}
    about: dict[str, Any] = {}
    try:
        volume, brain = read_volume(item.head), None
        if item.name != GIVEN:
            head = head_on_ras_axes(volume, _brain(item.model, item.head), 1000 + item.scan)
            volume, brain = CORRUPTIONS[item.name](head)
        prepared = prepare(volume, model, brain=brain)
        gate = model.gate
        t1 = model.modality == "t1" and model.prepare_settings.normalization == "percentile"
        report = gate.check(prepared, model.template, modality="t1" if t1 else "other") if gate is not None else None
        about = {"gate": report.to_json() if report is not None else None, "refused": ""}
        image = np.round(prepared.image[0] * 255).astype(np.uint8)
        tensors = {"image": torch.from_numpy(image), "brain": torch.from_numpy(np.packbits(prepared.brain_mask))}
    except AnomalyAppError as error:
        about = {"gate": None, "refused": type(error).__name__}
    with replacing(item.file) as partial:
        save_file(tensors, str(partial), {"about": json.dumps(about)})
    return item.file.name


def sentences(rows: Sequence[Mapping[str, Any]], point: str) -> list[str]:
    """Which corruptions the gate lets pass although they change the result, and which it stops."""
    judged = [row for row in rows if row["scans"]]
    passed, stopped = [], []
    for row in judged:
        stopped_share = (row["refused"] + (row["caught"]["found"] or 0)) / row["scans"]
        ratio = (row["points"].get(point) or {}).get("ratio")
        if stopped_share >= 0.5:
            stopped.append(row["name"])
        elif ratio is not None and (ratio >= 2 or ratio <= 0.5):
            passed.append(f"{row['name']} ({_times(ratio)})")
    said = []
    if stopped:
        said.append(f"The input gate or the preparation stops at least half of the scans with: {'; '.join(stopped)}.")
    if passed:
        said.append(
            "Passes the input gate in most scans although the falsely marked volume changes at least twofold: "
            f"{'; '.join(passed)}."
        )
    return said


def _times(ratio: float) -> str:
    return f"{ratio:.1f} times" if ratio >= 0.95 else f"{ratio:.2f} times"


def _measure(model: AnomalyModel, reader: Reader, job: Job, item: Corrupt) -> dict[str, Any]:
    tensors, about = load_file(str(item.file)), _about(item.file)
    found: dict[str, Any] = {"gate": about["gate"], "refused": about["refused"]}
    if about["refused"]:
        return found
    image = tensors["image"].numpy().astype(np.float32) / 255
    mask = np.unpackbits(tensors["brain"].numpy(), count=image.size).astype(bool).reshape(image.shape)
    held = analyse(_prepared(image, mask, model), model, PredictSettings(device=job.device))
    # A given scan shows nobody of the set.
    values = reader.calibrated(held, item.scan if item.scan >= 0 else None)
    calibration = model.calibration.score(job.score)
    voxel_ml = float(abs(np.linalg.det(model.template.affine[:3, :3]))) / 1000
    outlined = delineated(values, model_spacing(held.prepared))
    score = scan_score(values)
    found["scan_score"] = score
    found["p_value"] = rank_p_value(score, calibration.scan_scores[SMOOTHING])
    found["false_ml"] = {
        name: float(marked(outlined, point.threshold, voxel_ml).sum()) * voxel_ml
        for name, point in calibration.points[SMOOTHING].items()
    }
    return found


def _row(name: str, measured: Sequence[Mapping[str, Any]], points: Sequence[str]) -> dict[str, Any]:
    own = [entry for entry in measured if entry["name"] == name]
    clean = {entry["scan"]: entry for entry in measured if entry["name"] == CLEAN and not entry["refused"]}
    used = [entry for entry in own if not entry["refused"]]
    gates = [entry["gate"] for entry in used if entry["gate"] is not None]
    caught = sum(not gate["passed"] for gate in gates)
    reasons = Counter(reason for gate in gates for reason in gate["reasons"][:1])
    row: dict[str, Any] = {
        "name": name,
        "scans": len(own),
        "refused": len(own) - len(used),
        "refusals": sorted({entry["refused"] for entry in own if entry["refused"]}),
        "caught": {
            "n": len(gates),
            "found": caught,
            "recall": caught / len(gates) if gates else None,
            "interval": wilson(caught, len(gates)),
        },
        "reasons": [reason for reason, _ in reasons.most_common(3)],
        "scan_score": None,
        "p_value": float(np.median([entry["p_value"] for entry in used])) if used else None,
        "points": {},
    }
    pairs = [(clean[entry["scan"]], entry) for entry in used if entry["scan"] in clean]
    if pairs:
        scores = np.array([[pair[i]["scan_score"] for i in (0, 1)] for pair in pairs])
        row["scan_score"] = {**_means(scores), **_ratio(scores)}
        for point in points:
            ml = np.array([[pair[i]["false_ml"][point] for i in (0, 1)] for pair in pairs])
            row["points"][point] = {"false_ml": _means(ml), **_ratio(ml + _ADDED_ML)}
    return row


def _means(values: np.ndarray) -> dict[str, float]:
    return {"clean": float(values[:, 0].mean()), "corrupted": float(values[:, 1].mean())}


def _ratio(values: np.ndarray) -> dict[str, Any]:
    ratios = values[:, 1] / np.maximum(values[:, 0], 1e-6)
    interval = None
    if len(ratios) >= 3:
        picks = np.random.default_rng(0).integers(len(ratios), size=(_RESAMPLES, len(ratios)))
        interval = [float(v) for v in np.quantile(np.median(ratios[picks], axis=1), (0.025, 0.975))]
    return {"ratio": float(np.median(ratios)), "interval": interval}


class _Kept:
    """What has been measured so far, in a file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.values: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}

    def add(self, key: str, value: Mapping[str, Any]) -> None:
        self.values[key] = to_json(dict(value))
        replace_file(self._path, json.dumps(self.values))


def _prepared(image: np.ndarray, mask: np.ndarray, model: AnomalyModel) -> PreparedVolume:
    affine = model.template.affine
    return PreparedVolume(image[None], mask, affine, np.eye(4), affine, tuple(mask.shape), mask)


def _about(file: Path) -> dict[str, Any]:
    from safetensors import safe_open

    with safe_open(str(file), framework="pt") as handle:
        return json.loads((handle.metadata() or {})["about"])


def _recipe(model: AnomalyModel) -> str:
    """Names everything but the head and the corruption that decides what a file holds."""
    gate = model.gate.hash if model.gate is not None else ""
    t1 = model.modality == "t1"
    parts = [VERSION, str(model.prepare_settings), gate, t1]
    parts += [recorded_hash(SHIPPED_MODELS / name) for name in ("template", "brain_extraction")]
    return hashlib.sha256(json.dumps([*parts, GATE_FOLDER]).encode()).hexdigest()


def _file(healthy: HealthySet, scan: int, name: str) -> str:
    brain = np.ascontiguousarray(healthy.cache.images[scan].numpy()).tobytes()
    slug = re.sub(r"\W+", "_", name).strip("_")
    return f"{slug}_{scan:03d}_{hashlib.sha256(brain).hexdigest()[:12]}.safetensors"


def _digest(path: Path) -> str:
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    return hashlib.sha256(b"".join(hashlib.sha256(file.read_bytes()).digest() for file in files)).hexdigest()[:16]


@lru_cache(maxsize=2)
def _brain(model: Path, head: Path) -> np.ndarray:
    """The brain of a head as it is, found once for all its corruptions."""
    return _model(model).extractor("cpu").extract(read_volume(head)).mask


@lru_cache(maxsize=1)
def _model(folder: Path) -> AnomalyModel:
    return load_model(folder)


