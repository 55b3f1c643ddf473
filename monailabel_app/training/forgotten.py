"""model/forgotten.json: the patients that no training may use again, and a record of each removal, as keyed hashes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from monailabel_app.errors import CorruptModel, TrainingFailed
from monailabel_app.files import replace_file

from .manifest import MANIFEST, Manifest
from .site_key import FORGOTTEN_FILE, fingerprint, keyed_hash, site_key

try:
    import fcntl
except ImportError:  # Windows: two removals at once are not kept apart there.
    fcntl = None

FORMAT = 1
STARTED, COMPLETE = "started", "complete"


@dataclass
class Removal:
    """What one removal has done so far. Written after every step, so that a killed one goes on where it was.

    patient: keyed hash. state: ``started`` or ``complete``. affected: the versions that depended on the patient
    (name, version, hash, roles, run). contents: keyed hashes of the patient's prepared scans, so that they are found
    once the manifests are gone. runs: run folders, relative to runs/. serving: model name -> hash of the affected
    version that served. replaced, withdrawn: model name -> the version that serves instead, for good or meanwhile.
    failed: model name -> why it could not be trained anew. removed: what is gone, by name. prepared: entries removed.
    """

    patient: str
    state: str = STARTED
    started: str = ""
    completed: str = ""
    affected: list[dict[str, Any]] = field(default_factory=list)
    contents: list[str] = field(default_factory=list)
    runs: list[str] = field(default_factory=list)
    serving: dict[str, str] = field(default_factory=dict)
    replaced: dict[str, str] = field(default_factory=dict)
    withdrawn: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    removed: list[str] = field(default_factory=list)
    prepared: int = 0


class ForgottenList:
    """The list and its records. Raises CorruptModel for a damaged file and for one made with another site key."""

    def __init__(self, root: Path) -> None:
        self._path = Path(root) / "model" / FORGOTTEN_FILE
        self._key = site_key(root)
        self.removals: list[Removal] = []
        if self._path.exists():
            self._read()

    def __contains__(self, patient: str) -> bool:
        """Whether a patient, given by keyed hash, is to be forgotten."""
        return any(removal.patient == patient for removal in self.removals)

    def removal(self, patient: str) -> Removal | None:
        """The record of a patient (keyed hash)."""
        return next((removal for removal in self.removals if removal.patient == patient), None)

    def add(self, patient: str) -> Removal:
        """The patient's record, a new one where there is none; a complete one is opened again."""
        removal = self.removal(patient)
        if removal is None:
            removal = Removal(patient, started=now())
            self.removals.append(removal)
        removal.state, removal.completed = STARTED, ""
        self.save()
        return removal

    def save(self) -> None:
        """Replace the file as a whole, on disk before this returns."""
        payload = {
            "format": FORMAT,
            "site": fingerprint(self._key),
            "removals": [asdict(removal) for removal in self.removals],
        }
        self._path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(self._path, json.dumps(payload, indent=1, sort_keys=True, allow_nan=False), lasting=True)

    def _read(self) -> None:
        where = f"model/{FORGOTTEN_FILE}"
        try:
            payload = json.loads(self._path.read_text(encoding="utf-8"))
            form, site = payload["format"], payload["site"]
            removals = [Removal(**entry) for entry in payload["removals"]] if form == FORMAT else []
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CorruptModel(
                f"expected a readable {where}, got {type(error).__name__}; restore it from a backup: without it nobody "
                "knows whom no training may use"
            ) from error
        if form != FORMAT:
            raise CorruptModel(f"expected {where} of format {FORMAT}, got {form!r}; update the app")
        if site != fingerprint(self._key):
            raise CorruptModel(
                f"expected {where} made with this site's model/site.key, got one of another key; restore the key it "
                "was made with"
            )
        self.removals = removals


def is_forgotten(root: Path, patient_id: str) -> bool:
    """Whether this patient (plain id) may not be trained on. Raises CorruptModel when that cannot be told."""
    return forgotten_test(root)(patient_id)


def forgotten_test(root: Path) -> Callable[[str], bool]:
    """``is_forgotten`` for many patients: the list is read once. Without a list no site key is drawn."""
    if not (Path(root) / "model" / FORGOTTEN_FILE).exists():
        return lambda patient_id: False
    key, listed = site_key(root), ForgottenList(root)
    return lambda patient_id: keyed_hash(key, "patient", patient_id) in listed


def forgotten_hashes(root: Path) -> frozenset[str]:
    """Keyed hashes of all patients to be forgotten."""
    if not (Path(root) / "model" / FORGOTTEN_FILE).exists():
        return frozenset()
    return frozenset(removal.patient for removal in ForgottenList(root).removals)


def forgotten_contents(root: Path) -> frozenset[str]:
    """Keyed hashes of the prepared scans of those patients: a scan is known again under whatever id it comes back."""
    if not (Path(root) / "model" / FORGOTTEN_FILE).exists():
        return frozenset()
    return frozenset(content for removal in ForgottenList(root).removals for content in removal.contents)


def refuse_forgotten(root: Path, manifest: Manifest) -> None:
    """Raise TrainingFailed when a version with this manifest depends on a patient to be forgotten, or on such a scan.

    Called just before publishing: the wish may have come while the training ran.
    """
    count = len(manifest.patients() & forgotten_hashes(root))
    contents = forgotten_contents(root)
    count = count or len({s.patient for s in (*manifest.train, *manifest.held_out) if s.content in contents})
    if count:
        raise TrainingFailed(
            f"expected a model that owes nothing to forgotten patients, got one that depends on {count} of them; it is "
            "not published, train again"
        )


def refuse_forgotten_weights(root: Path, folder: Path) -> None:
    """Raise TrainingFailed when the weights in a model folder depend on a patient to be forgotten.

    Called before a training starts from them, which else would be refused when it ends.
    """
    if (Path(folder) / MANIFEST).is_file() and Manifest.read(folder).trained_patients() & forgotten_hashes(root):
        raise TrainingFailed(
            "expected weights to start from that owe nothing to forgotten patients, got some that do; run `python "
            "main.py models forget` again until it completes, or start from shipped weights or from scratch"
        )


@contextmanager
def only_one(root: Path) -> Iterator[None]:
    """One removal at a time. Raises TrainingFailed while another one runs."""
    folder = Path(root) / "model"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".forget.lock").open("a") as handle:
        if fcntl is not None:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise TrainingFailed(
                    "expected no other `models forget` at work, got one; wait until it has ended"
                ) from error
        yield


def now() -> str:
    """UTC, ISO 8601, whole seconds."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
