"""Take a patient out of every model of a site: list, exclude for good, train anew without, remove what is left.

The wish is written down before anything else is done, and every step after it is found again from what lies on the
disk, so that a removal that was killed goes on when it is called again. Nothing that serves is removed before its
replacement serves. The patient's scans in the studies folder are not touched: they are the site's, not the app's.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from monailabel_app.errors import AnomalyAppError, TrainingFailed
from monailabel_app.training.forgotten import COMPLETE, ForgottenList, Removal, now, only_one, refuse_forgotten
from monailabel_app.training.manifest import Manifest
from monailabel_app.training.monitor import PROGRESS, RUNNING, read_progress
from monailabel_app.training.site_key import keyed_hash, site_key
from monailabel_app.weights import versions
from monailabel_app.weights.listing import made_of
from monailabel_app.weights.model_folder import SUMS, VERSIONS
from monailabel_app.weights.version_layout import (
    CURRENT,
    FLAT_VERSION,
    HISTORY,
    SITE_CALIBRATIONS,
    serving_version,
    use_file,
)

from .analysis_store import AnalysisStore
from .forget_plan import (
    PreparedScan,
    RemovalPlan,
    Replacement,
    fallback,
    how,
    plan_for,
    plan_removal,
    prepared_digests,
    replaces,
)
from .patient_search import PatientSearch, search
from .prepared_store import purge

_LOG = logging.getLogger(__name__)
_REASON = "a patient was forgotten"
Tell = Callable[[str], None]


class Retrain(Protocol):
    """Trains (or only calibrates) without the patient and publishes the result; raises AnomalyAppError."""

    def __call__(self, root: Path, replacement: Replacement) -> versions.Version: ...


class Recover(Protocol):
    """Prepares the scans of a folder again; returns keyed hash of scan id or content -> digest, for those wanted."""

    def __call__(self, root: Path, folder: Path, wanted: tuple[PreparedScan, ...], modality: str) -> dict[str, str]: ...


def forget(
    root: Path,
    patient_id: str,
    *,
    retrain: Retrain | None,
    dry_run: bool = False,
    withdraw: bool = False,
    data: Path | None = None,
    recover: Recover | None = None,
    tell: Tell = _LOG.info,
) -> Removal | RemovalPlan:
    """Forget a patient: exclude it from all training, replace what serves, remove every model and file made with it.

    retrain: trains without the patient and publishes. withdraw: the last unaffected version serves at once, until the
    replacement does, and stays when that fails. data, recover: a folder of scans and how to prepare them, for prepared
    entries that are gone. Returns the record, or with ``dry_run`` the plan. Raises TrainingFailed when something could
    not be replaced (its versions are kept, all else is done; calling again goes on), while a training with the patient
    runs, and while another removal does; CorruptModel for a bad key or list.
    """
    root = Path(root)
    patient = keyed_hash(site_key(root), "patient", patient_id)
    if dry_run:
        return plan_removal(root, patient)
    with only_one(root):
        listed = ForgottenList(root)
        removal = listed.add(patient)
        found = search(root, patient, frozenset(removal.contents))
        _note(removal, found, root)
        listed.save()
        if withdraw:
            _withdraw(root, listed, removal, found, tell)
        _refuse_running(found.runs)
        _replace(root, listed, removal, found, retrain, data, recover, tell)
        _clear(root, listed, removal, tell)
        if removal.failed:
            raise TrainingFailed(_what_is_left(removal))
        removal.state, removal.completed = COMPLETE, now()
        listed.save()
    return removal


def _note(removal: Removal, found: PatientSearch, root: Path) -> None:
    """Write down all that is found, because the manifests that tell it will be gone."""
    known = {(entry["name"], entry["version"], entry["hash"]) for entry in removal.affected}
    for seen in found.affected:
        version = seen.version
        if (version.name, version.version, version.hash) not in known:
            run = version.manifest.run if version.manifest is not None else ""
            removal.affected.append(
                {
                    "name": version.name,
                    "version": version.version,
                    "hash": version.hash,
                    "roles": list(seen.roles),
                    "run": run,
                }
            )
        if version.serving:
            # Also when it was replaced before and somebody let it serve again.
            removal.replaced.pop(version.name, None)
            removal.serving[version.name] = version.hash
    removal.contents = sorted({*removal.contents, *found.contents})
    removal.runs = sorted({*removal.runs, *(str(run.relative_to(root / "runs")) for run in found.runs)})
    removal.failed = {}


def _withdraw(root: Path, listed: ForgottenList, removal: Removal, found: PatientSearch, tell: Tell) -> None:
    for seen in found.affected:
        if not seen.version.serving:
            continue
        name, back = seen.version.name, fallback(root, found, seen.version)
        if back is None:
            tell(f"{name}: nothing unaffected can serve; it goes on serving until it is replaced or removed")
            continue
        try:
            versions.promote(root, name, back, reason=_REASON)
        except AnomalyAppError as error:
            tell(f"{name}: {back} cannot serve: {error}")
            continue
        removal.withdrawn[name] = back
        listed.save()
        tell(f"{name}: {back} serves meanwhile")


def _replace(
    root: Path,
    listed: ForgottenList,
    removal: Removal,
    found: PatientSearch,
    retrain: Retrain | None,
    data: Path | None,
    recover: Recover | None,
    tell: Tell,
) -> None:
    for item in plan_for(root, found, removal).replacements:
        try:
            if not _finished_before(root, found, removal, item):
                tell(f"{item.name}: {how(item)}")
                if item.missing and data is not None and recover is not None:
                    item = _recovered(root, item, data, recover)
                removal.replaced[item.name] = _trained_anew(root, item, retrain)
            tell(f"{item.name}: version {removal.replaced[item.name]} serves")
        except AnomalyAppError as error:
            removal.failed[item.name] = str(error)
            tell(f"{item.name}: not replaced: {error}")
        listed.save()


def _trained_anew(root: Path, item: Replacement, retrain: Retrain | None) -> str:
    if item.obstacle:
        raise TrainingFailed(item.obstacle)
    if item.missing:
        raise TrainingFailed(
            f"expected the prepared scans of the other patients in cache/prepared, {item.missing} of "
            f"{len(item.train) + len(item.held_out)} are gone; give the folder of the scans with --data FOLDER"
        )
    if retrain is None:
        raise TrainingFailed("expected a way to train the model anew, got none; run `python main.py models forget`")
    version = retrain(root, item)
    manifest = Manifest.read(version.folder)
    refuse_forgotten(root, manifest)
    if serving_version(root, item.name) != version.version:
        versions.promote(root, item.name, version.version, reason=_REASON)
    return version.version


def _finished_before(root: Path, found: PatientSearch, removal: Removal, item: Replacement) -> bool:
    """Whether a call that was killed has published this replacement already; it is let serve then."""
    for version in found.others:
        manifest = version.manifest
        later = version.name == item.name and version.version > item.old.version
        if later and manifest is not None and manifest.date >= removal.started and replaces(item, manifest):
            if not version.serving:
                versions.promote(root, item.name, version.version, reason=_REASON)
            removal.replaced[item.name] = version.version
            return True
    return False


def _recovered(root: Path, item: Replacement, data: Path, recover: Recover) -> Replacement:
    wanted = tuple(scan for scan in (*item.train, *item.held_out) if not scan.digest)
    digests = recover(root, data, wanted, item.old.manifest.modality)

    def filled(scans: tuple[PreparedScan, ...]) -> tuple[PreparedScan, ...]:
        return tuple(
            PreparedScan(s.record, s.digest or digests.get(s.record.content) or digests.get(s.record.scan, ""))
            for s in scans
        )

    return replace(item, train=filled(item.train), held_out=filled(item.held_out))


def _clear(root: Path, listed: ForgottenList, removal: Removal, tell: Tell) -> None:
    """Remove the affected versions of every name that was replaced or did not serve, then runs and prepared scans."""
    found = search(root, removal.patient, frozenset(removal.contents))
    for seen in found.affected:
        version = seen.version
        if version.name in removal.failed:
            continue
        if version.serving:
            removal.failed[version.name] = "its affected version serves again; run this once more"
            continue
        for user in made_of(root, version.folder):
            tell(f"{user}: combines {version.id} with others and cannot serve without it; remove it, or make it again")
        if version.version:
            versions.remove(root, version.name, version.version, reason=_REASON)
        else:
            _remove_flat(version.folder)
        _done(listed, removal, version.id, tell)
    for folder in found.leftovers:
        shutil.rmtree(folder)
        _done(listed, removal, "an unfinished publication", tell)
    runs = {*found.runs, *(root / "runs" / name for name in removal.runs)}
    for run in sorted(runs):
        if run.is_dir():
            shutil.rmtree(run)
            _done(listed, removal, f"run {run.parent.name}/{run.name}", tell)
    contents = set(removal.contents)
    gone = [digest for content, digest in prepared_digests(root).items() if content in contents]
    if gone:
        removal.prepared += purge(root / "cache", gone)
        listed.save()
        tell(f"{len(gone)} prepared scans removed")
    analyses = AnalysisStore(root / "cache" / "analyses")
    if analyses.clear():
        tell("analyses kept for viewing removed, all of them: they do not say whose they are")


def _done(listed: ForgottenList, removal: Removal, name: str, tell: Tell) -> None:
    removal.removed.append(name)
    listed.save()
    tell(f"{name}: removed")


def _remove_flat(folder: Path) -> None:
    """The files of a flat model folder that has versions beside it; the checksum list goes last."""
    own = {VERSIONS, CURRENT, HISTORY, SITE_CALIBRATIONS}
    files = [path for path in folder.iterdir() if path.name not in own and not path.name.startswith(".")]
    for path in sorted(files, key=lambda path: path.name == SUMS):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    use_file(folder / SITE_CALIBRATIONS, FLAT_VERSION).unlink(missing_ok=True)


def _refuse_running(runs: tuple[Path, ...]) -> None:
    """A training that goes on would write its checkpoints again after they were removed."""
    if any((run / PROGRESS).is_file() and read_progress(run).get("status") in RUNNING for run in runs):
        raise TrainingFailed(
            "expected no training with this patient's scans at work, got one; stop it (in the viewer, or DELETE "
            "/train/) and run this again. The patient is excluded from new trainings already"
        )


def _what_is_left(removal: Removal) -> str:
    text = "; ".join(f"{name}: {reason}" for name, reason in sorted(removal.failed.items()))
    serving = [name for name in removal.failed if name not in removal.withdrawn]
    hint = f" Still serving a model with the patient: {', '.join(serving)} (--withdraw ends that)." if serving else ""
    return f"expected to replace every model that depends on the patient, some could not be: {text}.{hint} All else " \
           "is done; mend this and run it again"  # fmt: skip
