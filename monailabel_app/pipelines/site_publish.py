"""The end of a training: calibrate, compare with the model that serves, describe, publish.

What serves is not touched before the last step, which is a rename.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from monailabel_app.errors import TrainingFailed
from monailabel_app.reports.site_card import site_card
from monailabel_app.training.cache import TrainingCache
from monailabel_app.training.checkpoint import TrainingState
from monailabel_app.training.forgotten import refuse_forgotten
from monailabel_app.training.manifest import Manifest, ScanRecord, config_digest, fingerprint, keyed_hash, site_key
from monailabel_app.training.privacy import privacy_report
from monailabel_app.training.split import MIN_HELD_OUT_PATIENTS
from monailabel_app.weights import versions
from monailabel_app.weights.model_folder import CONFIG, open_model_folder, seal

from .calibrate import calibrate_prepared
from .fit import export_model, library_versions, rewrite_card, source_commit
from .held_out_quality import HeldOutQuality, QualityFigures, compare, may_replace
from .site_privacy import check_membership
from .site_start import prepares_as_here
from .training_run import Plan, PlannedScan, device_of

_LOG = logging.getLogger(__name__)
Stage = Callable[[str, int, int], None]


@dataclass(frozen=True)
class SiteResult:
    """What came out. quality: held-out figures of the new version, empty for a private training."""

    name: str
    version: str
    promoted: bool
    reason: str
    run_folder: Path
    folder: Path
    quality: Mapping[str, Any]
    privacy: Mapping[str, Any] | None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types, without paths."""
        return {
            "model": self.name,
            "version": self.version,
            "promoted": self.promoted,
            "reason": self.reason,
            "quality": dict(self.quality),
            "privacy": dict(self.privacy) if self.privacy else None,
        }

    def summary(self) -> dict[str, Any]:
        """For the monitor: what became of the run."""
        shown = {"promoted": self.promoted, "model": self.name, "version": self.version, "message": self.reason}
        return shown | ({"quality": self.quality["mean_ap"]} if self.quality else {})


def publish_run(
    root: Path, run_folder: Path, plan: Plan, state: TrainingState, tell: Stage, seconds: float, *, lost: int = 0
) -> SiteResult:
    """Turn the averaged weights of a finished run into a published version.

    tell(stage, done, total). seconds: since the training was asked for. lost: scans that turned out not to be healthy
    meanwhile; the version is kept then, and does not serve. Raises AnomalyAppError, and nothing is published then.
    """
    staged = versions.new_staging(root, plan.options.name)
    try:
        return _finish(root, run_folder, plan, state, staged, tell, seconds, lost)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _finish(
    root: Path, run_folder: Path, plan: Plan, state: TrainingState, staged: Path, tell: Stage, seconds: float, lost: int
) -> SiteResult:
    options = plan.options
    count = len({scan.patient for scan in plan.train})
    data = {"name": "healthy scans of this site", "scans": len(plan.train), "patients": count, "licence": "not stated"}
    if plan.start is not None:
        data["name"] += f", starting from {plan.start.id}"
    export_model(run_folder, staged, modality=options.modality, training_data=data)
    private = options.privacy is not None
    held_out = plan.cache(root, plan.held_out)
    device = device_of(options)
    privacy = None
    quality: dict[str, Any] = {}
    promoted, reason = options.promote == "always", f"promote is {options.promote!r}"
    if private:
        # Thresholds and figures of private scans would be statistics outside the budget: the public ones stay.
        _keep_public_calibration(root / plan.start_folder, staged)
        privacy = privacy_report(state)
        tell("evaluating membership inference", 0, 1)
        check_membership(root, run_folder, plan, state)
        tell("evaluating membership inference", 1, 1)
        reason = "a private model is not compared with private scans; promote it by hand" if not promoted else reason
    else:
        record = {"data": data["name"]}
        calibrate_prepared(
            staged, held_out, healthy=record, device=device, progress=lambda d, t: tell("calibrating", d, t)
        )
        own, other, note = _compare(root, plan, staged, held_out, device, tell)
        own = replace(own, model_id=options.name)
        quality = own.to_json() | {"compared_with": other.to_json() if other else None, "note": note}
        promoted, reason = _decide(options.promote, own, other, note)
    if lost:
        promoted, reason = False, f"{lost} of its scans are not healthy any more: train anew"
    manifest = _manifest(root, run_folder, plan, state, privacy, quality, seconds)
    refuse_forgotten(root, manifest)
    manifest.write(staged)
    write_card(staged, options.name, manifest, quality, privacy)
    version = versions.publish(root, options.name, staged, promote=promoted, reason=reason)
    _LOG.info("version %s of %s published, promoted: %s", version.version, options.name, promoted)
    return SiteResult(
        options.name, version.version, promoted, reason, run_folder, version.folder, quality, privacy and dict(privacy)
    )


def write_card(
    staged: Path, name: str, manifest: Manifest, quality: Mapping[str, Any], privacy: Mapping[str, Any] | None
) -> None:
    """card.md of a version that is about to be published, from its manifest; seals the folder."""
    facts = {
        "train_scans": len(manifest.train),
        "train_patients": len({scan.patient for scan in manifest.train}),
        "held_out_scans": len(manifest.held_out),
        "held_out_patients": len({scan.patient for scan in manifest.held_out}),
        "start_from": manifest.start_from.id if manifest.start_from else "",
        "contaminated": manifest.contaminated,
        "left_out": manifest.left_out,
        "settings": manifest.settings,
        "seed": manifest.seed,
        "date": manifest.date,
    }
    config = yaml.safe_load((staged / CONFIG).read_text())
    calibration = json.loads((staged / "calibration.json").read_text())
    # Seals the folder, with the manifest in it.
    rewrite_card(staged, site_card(name, config, calibration, facts, quality, privacy))


def _keep_public_calibration(source: Path, staged: Path) -> None:
    for file in sorted(source.glob("calibration.*")):
        shutil.copyfile(file, staged / file.name)
    if not (staged / "calibration.json").is_file():
        raise TrainingFailed("expected a calibrated model to start a private training from, got one without thresholds")
    seal(staged)


def _compare(
    root: Path, plan: Plan, staged: Path, held_out: TrainingCache, device: str, tell: Stage
) -> tuple[QualityFigures, QualityFigures | None, str]:
    """Held-out figures of the candidate and of the model it would replace, on the same scans and lesions."""
    incumbent, note = versions.current(root, plan.options.name), ""
    if incumbent is not None and not prepares_as_here(open_model_folder(incumbent).config):
        # Scans prepared for the candidate would show it what it has never seen: its figure would be too low.
        incumbent, note = None, (
            f"the present {plan.options.name} prepares scans in another way (single levels, or another "
            "normalisation) and cannot be compared with it; let it serve by hand: python main.py models promote"
        )
    if incumbent is not None:
        seen = _training_patients(incumbent)
        rows = [i for i, patient in enumerate(held_out.patients) if patient not in seen]
        overlap = len(held_out) - len(rows)
        if overlap and len({held_out.patients[i] for i in rows}) >= MIN_HELD_OUT_PATIENTS:
            held_out = held_out.select(rows)
            note = f"{overlap} held-out scans trained the present model and were left out of the comparison"
        elif overlap:
            note = f"{overlap} held-out scans trained the present model: its figure is too good"
    quality = HeldOutQuality(held_out, seed=0)
    total = 1 if incumbent is None else 2
    tell("evaluating", 0, total)
    own = quality.full(staged, device)
    tell("evaluating", 1, total)
    if incumbent is None:
        return own, None, note
    # What serves is measured once for the same held-out scans.
    other = quality.full(incumbent, device, cache_file=root / "runs" / "held_out_figures.json")
    tell("evaluating", 2, total)
    return own, other, note


def _training_patients(folder: Path) -> set[str]:
    if not (folder / "training.json").is_file():
        return set()
    manifest = Manifest.read(folder)
    return {scan.patient for scan in manifest.train} | set(manifest.inherited)


def _decide(promote: str, own: QualityFigures, other: QualityFigures | None, note: str) -> tuple[bool, str]:
    """Whether the candidate serves, and why: its figure must not be lower than that of the model it replaces."""
    if promote != "if better":
        return promote == "always", f"promote is {promote!r}"
    if other is None:
        return not note, note or "the first model of this name"
    found = compare(own, other)
    low, high = found.interval
    words = (
        f"mean average precision on lesions implanted into {found.scans} held-out scans {own.mean_ap:.3f}, the present "
        f"model {other.mean_ap:.3f}; difference {found.difference:+.3f} [{low:+.3f}, {high:+.3f}], {found.verdict}"
    )
    return may_replace(own, other), words + (f"; {note}" if note else "")


def _manifest(
    root: Path,
    run_folder: Path,
    plan: Plan,
    state: TrainingState,
    privacy: Mapping[str, Any] | None,
    quality: Mapping[str, Any],
    seconds: float,
) -> Manifest:
    key = site_key(root)

    def records(scans: Sequence[PlannedScan]) -> tuple[ScanRecord, ...]:
        return tuple(sorted(ScanRecord(s.patient, s.scan, keyed_hash(key, "content", s.digest)) for s in scans))

    options = plan.options
    settings = {k: v for k, v in options.to_json().items() if k != "privacy" and v is not None}
    manifest = Manifest(
        method=options.method,
        modality=options.modality,
        site=fingerprint(key),
        train=records(plan.train),
        held_out=records(plan.held_out),
        preset=options.preset,
        config_digest=config_digest(plan.config),
        settings=settings | {"steps_done": state.step, "training_minutes": round(state.seconds / 60, 2)},
        seed=options.seed,
        contaminated=plan.contaminated,
        left_out=plan.left_out,
        privacy=privacy,
        quality=_finite(quality),
        versions=library_versions(),
        commit=source_commit(),
        seconds=round(seconds, 1),
        run=run_folder.name,
    )
    if plan.start is None:
        return manifest
    parent = root / plan.start_folder
    if plan.inherited or not (parent / "training.json").is_file():
        return replace(manifest, start_from=plan.start, ancestors=plan.ancestors, inherited=plan.inherited)
    return manifest.started_from(plan.start, Manifest.read(parent))


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _finite(v) for k, v in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
