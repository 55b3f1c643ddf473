"""Which models, runs and leftovers of a site depend on one patient, told from their keyed hashes alone."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monailabel_app.errors import CorruptModel
from monailabel_app.training.manifest import MANIFEST, Ancestor, Manifest, made_here
from monailabel_app.training.site_key import keyed_hash, site_key
from monailabel_app.weights import version_layout as layout
from monailabel_app.weights.model_folder import CONFIG, VERSIONS, is_version

TRAINING, HELD_OUT, INHERITED = "training", "held_out", "inherited"
SAME_SCAN = "same scan under another id"
_PLAN = "plan.json"


@dataclass(frozen=True)
class SiteVersion:
    """A model folder under model/. version: empty for a flat folder. fault: why its manifest cannot be searched."""

    name: str
    version: str
    folder: Path
    hash: str
    serving: bool
    manifest: Manifest | None
    fault: str = ""

    @property
    def id(self) -> str:
        """As listings name it."""
        return f"{self.name}@{self.version}" if self.version else self.name


@dataclass(frozen=True)
class SeenIn:
    """A version that depends on the patient. roles: training, held_out (its thresholds), inherited (its weights)."""

    version: SiteVersion
    roles: tuple[str, ...]

    @property
    def weights_depend(self) -> bool:
        """Whether the weights, and with them every version that started from this one, depend on the patient."""
        return _by_weights(self.roles)


@dataclass(frozen=True)
class PatientSearch:
    """What was found. patient: keyed hash. contents: keyed hashes of the patient's prepared scans.

    others: versions without the patient. runs: run folders with the patient's scans, or started
    from weights that depend on them. leftovers: folders of killed
    or unfinished publications and removals. unknown: what cannot be searched, with the reason. shipped: models that
    came with the app, which no site patient is in.
    """

    patient: str
    contents: frozenset[str]
    affected: tuple[SeenIn, ...]
    others: tuple[SiteVersion, ...]
    runs: tuple[Path, ...]
    leftovers: tuple[Path, ...]
    unknown: tuple[str, ...]
    shipped: tuple[str, ...]

    @property
    def found(self) -> bool:
        """Whether anything depends on the patient."""
        return bool(self.affected or self.runs or self.leftovers)


def versions_with_patient(root: Path, patient_id: str) -> PatientSearch:
    """Search by plain id, which is hashed at once. Raises CorruptModel for a bad site key."""
    return search(root, keyed_hash(site_key(root), "patient", patient_id))


def search(root: Path, patient: str, contents: frozenset[str] = frozenset()) -> PatientSearch:
    """Search by keyed hash.

    contents: keyed hashes of scans known to be the patient's, in addition to those that the manifests name.
    """
    root, key = Path(root), site_key(root)
    found = list(site_versions(root, key))
    plans = {run: _plan(run) for run in _run_folders(root)}
    hidden = {folder: _manifest(folder, key)[0] for folder in _leftover_folders(root)}
    manifests = [m for m in (*(v.manifest for v in found), *hidden.values()) if m is not None]
    contents = contents | {
        scan.content for m in manifests for scan in (*m.train, *m.held_out) if scan.patient == patient
    }
    contents |= {
        keyed_hash(key, "content", scan["digest"])
        for plan in plans.values()
        for scan in _scans(plan)
        if scan["patient"] == patient
    }
    affected = _affected(found, patient, contents)
    tainted = [seen.version for seen in affected if seen.weights_depend]
    runs = {run for run, plan in plans.items() if _plan_depends(plan, patient, contents, tainted, key)}
    runs |= {run for seen in affected if (run := _run_of(root, seen.version)) is not None}
    leftovers = tuple(
        folder
        for folder, manifest in hidden.items()
        if manifest is not None and (_roles(manifest, patient, contents) or _descends(manifest, tainted))
    )
    depend = {seen.version.folder for seen in affected}
    return PatientSearch(
        patient,
        contents,
        tuple(affected),
        tuple(version for version in found if version.folder not in depend),
        tuple(sorted(runs)),
        leftovers,
        tuple(f"{version.id}: {version.fault}" for version in found if version.fault)
        + tuple(
            f"run {run.parent.name}/{run.name}: its plan cannot be read" for run, plan in plans.items() if plan == {}
        ),
        tuple(sorted(path.parent.name for path in (root / "model_weights").glob(f"*/{CONFIG}"))),
    )


def site_versions(root: Path, key: bytes) -> Iterator[SiteVersion]:
    """Every published version and flat folder under model/, name by name, oldest first."""
    base = Path(root) / "model"
    for model in sorted(path for path in base.iterdir() if path.is_dir()) if base.is_dir() else ():
        if not layout.is_model_name(model.name):
            continue
        pointer = layout.pointer(root, model.name)
        for version in layout.versions(root, model.name):
            manifest, fault = _manifest(version.folder, key)
            serving = pointer == version.version
            yield SiteVersion(model.name, version.version, version.folder, version.hash, serving, manifest, fault)
        if (model / CONFIG).is_file():
            manifest, fault = _manifest(model, key)
            yield SiteVersion(model.name, "", model, layout.recorded_hash(model), pointer is None, manifest, fault)


def is_same(ancestor: Ancestor, version: SiteVersion) -> bool:
    """Whether an ancestor is this version: the same contents, or the same place where no hash was recorded."""
    if ancestor.hash and version.hash:
        return ancestor.hash == version.hash
    return (ancestor.name, ancestor.version) == (version.name, version.version)


def _affected(found: list[SiteVersion], patient: str, contents: frozenset[str]) -> list[SeenIn]:
    """Versions that name the patient, then again and again those that started from one whose weights depend on it."""
    roles = {v.folder: _roles(v.manifest, patient, contents) if v.manifest is not None else () for v in found}
    while True:
        tainted = [v for v in found if _by_weights(roles[v.folder])]
        more = [
            v
            for v in found
            if v.manifest is not None and not _by_weights(roles[v.folder]) and _descends(v.manifest, tainted)
        ]
        if not more:
            return [SeenIn(v, roles[v.folder]) for v in found if roles[v.folder]]
        for version in more:
            roles[version.folder] = (*roles[version.folder], INHERITED)


def _by_weights(roles: tuple[str, ...]) -> bool:
    return bool({TRAINING, INHERITED} & set(roles))


def _roles(manifest: Manifest, patient: str, contents: frozenset[str]) -> tuple[str, ...]:
    roles = manifest.roles(patient)
    twins = {
        TRAINING: any(scan.content in contents for scan in manifest.train),
        HELD_OUT: any(scan.content in contents for scan in manifest.held_out),
    }
    more = tuple(role for role, present in twins.items() if present and role not in roles)
    return (*roles, *more, SAME_SCAN) if more else roles


def _descends(manifest: Manifest, tainted: list[SiteVersion]) -> bool:
    lineage = (manifest.start_from, *manifest.ancestors) if manifest.start_from is not None else ()
    return any(is_same(ancestor, version) for ancestor in lineage for version in tainted)


def _manifest(folder: Path, key: bytes) -> tuple[Manifest | None, str]:
    if not (folder / MANIFEST).is_file():
        return None, "no training manifest, so nobody can tell whom it was trained on"
    try:
        manifest = Manifest.read(folder)
    except CorruptModel as error:
        return None, str(error)
    if not made_here(manifest, key):
        return None, "its manifest was made with the key of another site"
    return manifest, ""


def _leftover_folders(root: Path) -> list[Path]:
    """Folders under model/ that hold a manifest and are no model: what was staged or being removed."""
    found = {path.parent for path in (root / "model").rglob(MANIFEST)}
    return sorted(folder for folder in found if not _is_model(root, folder))


def _is_model(root: Path, folder: Path) -> bool:
    name = folder
    if folder.parent.name == VERSIONS:
        if not is_version(folder.name):
            return False
        name = folder.parent.parent
    return (folder / CONFIG).is_file() and name.parent == root / "model" and layout.is_model_name(name.name)


def _run_folders(root: Path) -> list[Path]:
    return sorted(path for path in (root / "runs").glob("*/*") if path.is_dir() and (path / _PLAN).is_file())


def _plan(run: Path) -> Mapping[str, Any]:
    """A run's plan as JSON, read leniently: an old or cut one must not hide the others. Empty when it is damaged."""
    try:
        plan = json.loads((run / _PLAN).read_text(encoding="utf-8"))
        start = plan.get("start")
        plan["start"] = Ancestor(**start) if start else None
        texts = [scan[name] for scan in _scans(plan) for name in ("patient", "digest")]
        return plan if all(isinstance(text, str) for text in texts) else {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _scans(plan: Mapping[str, Any]) -> list[Mapping[str, str]]:
    return [*plan["train"], *plan["held_out"]] if plan else []


def _plan_depends(
    plan: Mapping[str, Any], patient: str, contents: frozenset[str], tainted: list[SiteVersion], key: bytes
) -> bool:
    if any(s["patient"] == patient or keyed_hash(key, "content", s["digest"]) in contents for s in _scans(plan)):
        return True
    start = plan.get("start")
    return start is not None and any(is_same(start, version) for version in tainted)


def _run_of(root: Path, version: SiteVersion) -> Path | None:
    name = Path(version.manifest.run).name if version.manifest is not None else ""
    run = root / "runs" / version.name / name
    return run if name and run.is_dir() else None
