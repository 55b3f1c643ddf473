"""What forgetting a patient takes: which versions depend on the patient, and how each that serves is replaced."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from monailabel_app.training.forgotten import ForgottenList, Removal, forgotten_hashes
from monailabel_app.training.manifest import MANIFEST, Ancestor, Manifest, ScanRecord
from monailabel_app.training.site_key import keyed_hash, site_key
from monailabel_app.training.split import MIN_HELD_OUT_PATIENTS, MIN_TRAINING_PATIENTS
from monailabel_app.weights.site_calibrations import of_app
from monailabel_app.weights.version_layout import SHIPPED_VERSION, recorded_hash, shipped_folder

from .patient_search import PatientSearch, SeenIn, SiteVersion, is_same, search
from .prepared_store import PreparedStore


@dataclass(frozen=True)
class PreparedScan:
    """A scan to train on: its keyed hashes, and the digest of its prepared entry (empty where that is gone)."""

    record: ScanRecord
    digest: str


@dataclass(frozen=True)
class Replacement:
    """How the version that serves under a name is to be replaced.

    old: the version. start, parent: the last model before it that never saw the patient and its folder; None from
    scratch. train, held_out: the scans of the old version without the patient's. recalibrate: the weights never saw
    the patient, only the thresholds did, so the weights stay. obstacle: why it cannot be done.
    """

    name: str
    old: SiteVersion
    start: Ancestor | None
    parent: Path | None
    train: tuple[PreparedScan, ...]
    held_out: tuple[PreparedScan, ...]
    recalibrate: bool
    obstacle: str = ""

    @property
    def missing(self) -> int:
        """Scans whose prepared entries are gone."""
        return sum(not scan.digest for scan in (*self.train, *self.held_out))


@dataclass(frozen=True)
class RemovalPlan:
    """What a removal would do: what depends on the patient, and how the versions that serve would be replaced.

    beside: sentences about what keeps no ids and is neither searched nor removed.
    """

    search: PatientSearch
    replacements: tuple[Replacement, ...]
    fallbacks: dict[str, str | None]
    beside: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """The plan as text, without the patient's id."""
        text = [f"{seen.version.id}{' (serving)' if seen.version.serving else ''}: {_roles(seen)}"
                for seen in self.search.affected]  # fmt: skip
        text += [f"run {run.parent.name}/{run.name}: checkpoints and pictures" for run in self.search.runs]
        text += ["an unfinished publication"] * len(self.search.leftovers)
        if not self.search.found:
            text.append(
                "no model and no run of this site depends on this patient: it will only be excluded from later training"
            )
        for item in self.replacements:
            text.append(f"{item.name}: {how(item)}")
            if item.obstacle:
                text.append(f"{item.name}: cannot be replaced yet: {item.obstacle}")
            back = self.fallbacks.get(item.name)
            text.append(f"{item.name}: with --withdraw {back} serves meanwhile" if back else
                        f"{item.name}: nothing unaffected to serve meanwhile")  # fmt: skip
        text += [f"not searchable: {entry}" for entry in self.search.unknown]
        text += self.beside
        text += [f"{name}: shipped weights: trained on public data, see card" for name in self.search.shipped]
        return text


def plan_removal(root: Path, patient: str) -> RemovalPlan:
    """What ``forget`` would do, by keyed hash; changes nothing."""
    root = Path(root)
    recorded = ForgottenList(root).removal(patient) if patient in forgotten_hashes(root) else None
    return plan_for(root, search(root, patient, frozenset(recorded.contents if recorded else ())), recorded)


def similar_ids(root: Path, patient_id: str) -> list[str]:
    """Other spellings of an id that a model does depend on: a hash forgives no missing ``sub-`` and no capital."""
    plain = patient_id.strip().removeprefix("sub-")
    spellings = {text for word in (plain, plain.upper(), plain.lower()) for text in (word, f"sub-{word}")}
    key = site_key(root)
    others = sorted(spellings - {patient_id.strip(), "", "sub-"})
    return [text for text in others if search(root, keyed_hash(key, "patient", text)).found]


def plan_for(root: Path, found: PatientSearch, removal: Removal | None = None) -> RemovalPlan:
    """The plan for what a search has found. removal: what an earlier call has done already."""
    pending = {seen.version.name: seen.version.hash for seen in found.affected if seen.version.serving}
    if removal is not None:
        pending |= {name: digest for name, digest in removal.serving.items() if name not in removal.replaced}
    digests = prepared_digests(root)
    planned = tuple(
        _replacement(root, found, seen, digests)
        for seen in found.affected
        if pending.get(seen.version.name) == seen.version.hash
    )
    fallbacks = {item.name: fallback(root, found, item.old) for item in planned}
    return RemovalPlan(found, planned, fallbacks, tuple(_beside(root)))


def _beside(root: Path) -> Iterator[str]:
    """What nobody can tell a patient's share in, and how to do without it."""
    for name, ids in of_app(root).items():
        removals = "; ".join(f"--remove {calibration}" for calibration in ids)
        yield (
            f"{name}: its site calibrations ({', '.join(ids)}) keep no ids and are not searched: if one may rest on a "
            f"scan of this patient, make it again without: python main.py calibrate --model {name} --healthy FOLDER, "
            f"then the same command with {removals}"
        )
    searched = ("cache/evaluation", "runs/evaluation", "runs/scoring", "runs/batch", "runs/cohort")
    places = [place for place in searched if (root / place).is_dir()]
    if places:
        yield (
            f"evaluations and batches ({', '.join(places)}) are not searched: python main.py evaluate --purge deletes "
            "the prepared scans; lists and reports with the patient's name or pictures are deleted by hand"
        )


def replaces(item: Replacement, manifest: Manifest) -> bool:
    """Whether a version with this manifest was made for exactly this replacement."""
    wanted = {scan.record.content for scan in (*item.train, *item.held_out)}
    return {scan.content for scan in (*manifest.train, *manifest.held_out)} == wanted


def _replacement(root: Path, found: PatientSearch, seen: SeenIn, digests: dict[str, str]) -> Replacement:
    manifest = seen.version.manifest
    forgotten = forgotten_hashes(root) | {found.patient}
    store = PreparedStore(root / "cache")

    def readable(content: str) -> str:
        digest = digests.get(content, "")
        return digest if digest and store.read(digest) is not None else ""

    def scans(records: tuple[ScanRecord, ...]) -> tuple[PreparedScan, ...]:
        kept = (r for r in records if r.patient not in forgotten and r.content not in found.contents)
        return tuple(PreparedScan(record, readable(record.content)) for record in kept)

    train, held_out = scans(manifest.train), scans(manifest.held_out)
    clean = not seen.weights_depend and not manifest.trained_patients() & forgotten
    if clean and len(_patients(held_out)) >= MIN_HELD_OUT_PATIENTS:
        return Replacement(
            seen.version.name, seen.version, manifest.start_from, None, train, held_out, recalibrate=True
        )
    obstacle = ""
    for start, parent in (*_clean_ancestors(root, found, manifest, forgotten), (None, None)):
        balanced = _balance(train, held_out, _trained_on(parent))
        if balanced is not None:
            return Replacement(seen.version.name, seen.version, start, parent, *balanced, recalibrate=False)
        obstacle = (
            f"expected scans of at least {MIN_TRAINING_PATIENTS + MIN_HELD_OUT_PATIENTS} other patients, "
            f"{len(_patients((*train, *held_out)))} are left; train a new version on more scans, or remove the model"
        )
    return Replacement(seen.version.name, seen.version, None, None, train, held_out, False, obstacle)


def _clean_ancestors(
    root: Path, found: PatientSearch, manifest: Manifest, forgotten: frozenset[str]
) -> Iterator[tuple[Ancestor, Path]]:
    """The models that this one goes back to and that never saw a forgotten patient, nearest first."""
    for ancestor in (manifest.start_from, *manifest.ancestors) if manifest.start_from is not None else ():
        if ancestor.version == SHIPPED_VERSION:
            # Weights that came with the app saw no patient of this site, whichever release of them is here now.
            folder = shipped_folder(root, ancestor.name)
            if folder is not None:
                yield Ancestor(ancestor.name, SHIPPED_VERSION, recorded_hash(folder)), folder
            continue
        for version in found.others:
            known = version.manifest is not None and not version.manifest.trained_patients() & forgotten
            if known and is_same(ancestor, version):
                yield ancestor, version.folder


def _trained_on(parent: Path | None) -> set[str]:
    return Manifest.read(parent).trained_patients() if parent is not None and (parent / MANIFEST).is_file() else set()


def _balance(
    train: tuple[PreparedScan, ...], held_out: tuple[PreparedScan, ...], seen: set[str]
) -> tuple[tuple[PreparedScan, ...], tuple[PreparedScan, ...]] | None:
    """Fill up the held-out side with patients that the starting weights have not seen; None when they are too few."""
    lacking = max(0, MIN_HELD_OUT_PATIENTS - len(_patients(held_out)))
    movable = sorted(_patients(train) - seen)[:lacking]
    moved = tuple(scan for scan in train if scan.record.patient in movable)
    train = tuple(scan for scan in train if scan.record.patient not in movable)
    if len(movable) < lacking or len(_patients(train)) < MIN_TRAINING_PATIENTS:
        return None
    return train, (*held_out, *moved)


def fallback(root: Path, found: PatientSearch, old: SiteVersion) -> str | None:
    """The last version before this one that owes nothing to the patient, else the shipped one, else a later one."""
    clean = [v.version for v in found.others if v.name == old.name and v.version and v.manifest is not None]
    earlier = [version for version in clean if old.version and int(version) < int(old.version)]
    if earlier:
        return earlier[-1]
    if shipped_folder(root, old.name) is not None:
        return SHIPPED_VERSION
    return clean[-1] if clean else None


def how(item: Replacement) -> str:
    """One line: what is done to a model, from where, on how many scans."""
    if item.recalibrate:
        return f"calibrated anew on {len(item.held_out)} scans; its weights never saw the patient and stay"
    start = item.start.id if item.start is not None else "scratch"
    gone = f", {item.missing} prepared scans are gone: give --data FOLDER" if item.missing else ""
    return f"trained anew from {start} on {len(item.train)} scans, calibrated on {len(item.held_out)}{gone}"


def _roles(seen: SeenIn) -> str:
    return ", ".join({"held_out": "calibrated on", "training": "trained on", "inherited": "started from weights that "
                      "were trained on it"}.get(role, role) for role in seen.roles)  # fmt: skip


def _patients(scans: tuple[PreparedScan, ...]) -> set[str]:
    return {scan.record.patient for scan in scans}


def prepared_digests(root: Path) -> dict[str, str]:
    """Keyed content hash -> digest of every prepared scan on the disk."""
    folder = PreparedStore(root / "cache").folder
    if not folder.is_dir():
        return {}
    key = site_key(root)
    return {keyed_hash(key, "content", path.stem): path.stem for path in sorted(folder.glob("*.safetensors"))}
