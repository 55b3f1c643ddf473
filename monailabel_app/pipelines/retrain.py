"""The training that replaces a version whose patient is forgotten: planned from its manifest, from prepared scans."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from monailabel_app.errors import InvalidSettings, TrainingFailed
from monailabel_app.training.forgotten import now, refuse_forgotten
from monailabel_app.training.healthy_loop import TrainProgress
from monailabel_app.training.manifest import Manifest, ScanRecord
from monailabel_app.training.privacy_settings import PrivacySettings
from monailabel_app.training.run_folders import new_run_folder
from monailabel_app.training.site_key import keyed_hash, site_key
from monailabel_app.weights import versions
from monailabel_app.weights.model_folder import WEIGHTS, open_model_folder, seal, write_config

from .calibrate import calibrate_prepared
from .forget_plan import PreparedScan, Replacement
from .held_out_quality import HeldOutQuality
from .prepared_cache import ScanSource, prepare_sources
from .prepared_store import PreparedStore, purge
from .site_options import SCRATCH, SiteOptions
from .site_publish import Stage, write_card
from .site_scans import named_scans
from .site_training import TO_BE_FORGOTTEN, carry_out
from .training_run import Plan, PlannedScan, device_of, unfinished_run


def retrain(
    root: Path,
    item: Replacement,
    *,
    stage: Stage | None = None,
    progress: Callable[[TrainProgress], None] | None = None,
) -> versions.Version:
    """Train (or only calibrate) what replaces a version, with that one's options, and let it serve.

    Raises AnomalyAppError; nothing is published then.
    """
    root = Path(root)
    if item.recalibrate:
        return _calibrate_anew(root, item, stage)
    plan = plan_of(root, item)
    run_folder = _killed_run(root, plan)
    resume = run_folder is not None
    if run_folder is None:
        run_folder = new_run_folder(root, item.name)
        plan.write(run_folder)
    made = carry_out(root, run_folder, plan, resume=resume, stage=stage, progress=progress)
    return _version(root, item.name, made.version)


def plan_of(root: Path, item: Replacement) -> Plan:
    """The run that replaces a version: its options and network, the scans that are left, the starting weights."""
    manifest = item.old.manifest
    start = item.start.id if item.start is not None else SCRATCH
    options = replace(options_of(manifest), model_name=item.name, start_from=start, promote="always", resume=False)
    config = open_model_folder(item.parent or item.old.folder).config["config"]
    left_out = dict(manifest.left_out)
    before = len(manifest.train) + len(manifest.held_out)
    left_out[TO_BE_FORGOTTEN] = left_out.get(TO_BE_FORGOTTEN, 0) + before - len(item.train) - len(item.held_out)
    return Plan(
        options=options,
        config=config,
        train=_planned(item.train),
        held_out=_planned(item.held_out),
        start=item.start,
        start_folder=str(item.parent.relative_to(root)) if item.parent is not None else "",
        contaminated=manifest.contaminated,
        left_out=left_out,
    )


def options_of(manifest: Manifest) -> SiteOptions:
    """The options of a training as its manifest tells them. Raises TrainingFailed when they cannot be used."""
    known = {entry.name for entry in fields(SiteOptions)}
    values: dict[str, Any] = {name: value for name, value in manifest.settings.items() if name in known}
    values |= {"method": manifest.method, "modality": manifest.modality}
    if manifest.privacy:
        spent = {**manifest.privacy, "epsilon": manifest.privacy.get("epsilon_target", manifest.privacy.get("epsilon"))}
        budget = {entry.name for entry in fields(PrivacySettings)} - {"seed"}
        values["privacy"] = {name: value for name, value in spent.items() if name in budget}
    try:
        return SiteOptions.from_json(values)
    except (TypeError, InvalidSettings) as error:
        raise TrainingFailed(
            f"expected the options of the earlier training in its manifest, got others ({error}); train a new version "
            "by hand and let it serve"
        ) from error


def recover(
    root: Path, folder: Path, wanted: tuple[PreparedScan, ...], modality: str, *, stage: Stage | None = None
) -> dict[str, str]:
    """Prepare the scans of a folder again: keyed hash of content and of scan id -> digest, for the wanted ones.

    What was prepared beside them, the forgotten patient's scans above all, is removed again. Raises TrainingFailed.
    """
    key, store = site_key(root), PreparedStore(root / "cache")
    before = {path.stem for path in store.folder.glob("*.safetensors")}
    sources = [ScanSource(scan.path, keyed_hash(key, "scan", scan.id), "") for scan in named_scans(folder)]
    wanted_contents = {scan.record.content for scan in wanted}
    wanted_scans = {scan.record.scan for scan in wanted}
    found: dict[str, str] = {}
    try:
        tell = (lambda done, total: stage("preparing", done, total)) if stage is not None else None
        made = prepare_sources(sources, modality, root / "cache", progress=tell)
        for scan, digest in zip(made.cache.ids, made.digests, strict=True):
            content = keyed_hash(key, "content", digest)
            if content in wanted_contents:
                found[content] = digest
            elif scan in wanted_scans:
                # The preparation has changed since: the same scan, but another digest.
                found[scan] = digest
    finally:
        now_there = {path.stem for path in store.folder.glob("*.safetensors")}
        purge(root / "cache", now_there - before - set(found.values()))
    return found


def _calibrate_anew(root: Path, item: Replacement, stage: Stage | None) -> versions.Version:
    """The same weights with thresholds and figures from the scans that are left."""
    started, manifest = time.monotonic(), item.old.manifest
    plan = plan_of(root, item)
    staged = versions.new_staging(root, item.name)
    try:
        opened = open_model_folder(item.old.folder)
        config = dict(opened.config)
        # The loss on the held-out scans was one figure of the patient's, too.
        config["training"] = {k: v for k, v in dict(config.get("training") or {}).items() if k != "history"}
        shutil.copyfile(item.old.folder / WEIGHTS, staged / WEIGHTS)
        write_config(staged, config)
        quality: dict[str, Any] = {}
        if manifest.privacy:
            # Its thresholds are those of public weights; private scans have no part in them.
            for file in item.old.folder.glob("calibration.*"):
                shutil.copyfile(file, staged / file.name)
        else:
            quality = _calibrated(root, plan, staged, stage)
        records: tuple[ScanRecord, ...] = tuple(sorted(scan.record for scan in item.held_out))
        made = replace(
            manifest,
            held_out=records,
            left_out=plan.left_out,
            quality=quality,
            date=now(),
            seconds=round(time.monotonic() - started, 1),
            run="",
        )
        refuse_forgotten(root, made)
        made.write(staged)
        write_card(staged, item.name, made, quality, made.privacy)
        return versions.publish(root, item.name, staged, promote=True, reason="calibrated without a forgotten patient")
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _calibrated(root: Path, plan: Plan, staged: Path, stage: Stage | None) -> dict[str, Any]:
    seal(staged)
    held_out, device = plan.cache(root, plan.held_out), device_of(plan.options)
    tell = (lambda done, total: stage("calibrating", done, total)) if stage is not None else None
    name = open_model_folder(staged).config["training_data"]["name"]
    calibrate_prepared(staged, held_out, healthy={"data": name}, device=device, progress=tell)
    return HeldOutQuality(held_out, seed=0).full(staged, device).to_json()


def _killed_run(root: Path, plan: Plan) -> Path | None:
    """A run with exactly this plan that has a checkpoint and no result."""
    run_folder = unfinished_run(root, plan.options.name, plan.options.method)
    if run_folder is None:
        return None
    names = ("options", "train", "held_out", "start", "start_folder")
    found = Plan.read(run_folder)
    return run_folder if all(getattr(found, name) == getattr(plan, name) for name in names) else None


def _planned(scans: tuple[PreparedScan, ...]) -> tuple[PlannedScan, ...]:
    return tuple(PlannedScan(scan.record.patient, scan.record.scan, scan.digest) for scan in scans)


def _version(root: Path, name: str, number: str) -> versions.Version:
    return next(version for version in versions.versions(root, name) if version.version == number)
