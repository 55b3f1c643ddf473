"""Which scans of the datastore are healthy, and may be trained on.

A scan counts as healthy for one of four reasons, the first that holds:

* ``reviewed``: its final labels are all empty ("looked at, nothing abnormal");
* ``marked``: its image information says ``healthy: true``;
* ``listed``: the file of ``--conf healthy_list`` says so;
* ``all``: ``--conf healthy all`` says that every scan of the datastore is.

Two things overrule each of them: an image information ``healthy: false`` or a row of the list that says not healthy
(the scan is left out), and a final label that is not empty (the scan is *contaminated*: left out, and reported). A
final label is one under ``final`` or a reader's own tag such as ``final_anna``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from monailabel.interfaces.datastore import Datastore

from lib.errors import InvalidRequest
from lib.reviewed import REVIEWED, read_flag
from monailabel_app.errors import AnomalyAppError, InvalidSettings, TrainingFailed
from monailabel_app.io.healthy_list import HealthyList, Matches, bids_person, read_healthy_list
from monailabel_app.training.split import MIN_HELD_OUT_PATIENTS, MIN_TRAINING_PATIENTS

REASONS = ("reviewed", "marked", "listed", "all")
# Five patients to learn from and five held out; a patient's scans are never on both sides.
MINIMUM_PATIENTS = MIN_TRAINING_PATIENTS + MIN_HELD_OUT_PATIENTS

NOT_MARKED = "nobody said that it is healthy"
SAID_NOT_HEALTHY = "image information says that it is not healthy"
LISTED_NOT_HEALTHY = "the list says that it is not healthy"
FORGOTTEN = "to be forgotten"
LABELLED = "carries a final label that is not empty"

CONTAMINATED = {
    "reviewed": "another final label of this scan is empty, and this one is not",
    "marked": "this scan is marked as healthy and carries a final label that is not empty",
    "listed": "the list calls this scan healthy, and it carries a final label that is not empty",
    "all": "--conf healthy all calls this scan healthy, and it carries a final label that is not empty",
}
HOW_TO_MARK = (
    "mark scans by submitting an empty final label, by the image information healthy: true, by "
    "--conf healthy_list FILE, or --conf healthy all when the whole datastore is healthy"
)
_PATIENT_KEYS = ("patient", "patient_id", "PatientID", "participant_id", "subject")


@dataclass(frozen=True)
class HealthyImage:
    """One scan. reason: one of REASONS. Neither id nor patient appears in its ``repr``, which may be logged."""

    id: str = field(repr=False)
    patient: str = field(repr=False)
    reason: str
    locate: Callable[[], str] = field(repr=False, compare=False)

    @property
    def path(self) -> Path:
        """Its file; a scan of an archive is fetched at first use. Raises UnknownImage, ArchiveUnreachable."""
        return Path(self.locate())


@dataclass(frozen=True)
class HealthySelection:
    """The healthy scans of a datastore.

    contaminated: scans that somebody called healthy and that carry a final label which is not empty. left_out: the
    number of other scans by why. unmatched_rows: rows of the list about no scan here. images_without_row: scans no
    row is about; both 0 without a list.
    """

    scans: list[HealthyImage]
    contaminated: list[HealthyImage]
    left_out: dict[str, int]
    unmatched_rows: int = 0
    images_without_row: int = 0
    minimum: int = MINIMUM_PATIENTS

    def without(self, forgotten: Callable[[str], bool]) -> HealthySelection:
        """Without the scans of patients that no training may use any more, who are counted as left out."""
        scans = [scan for scan in self.scans if not forgotten(scan.patient)]
        count = len(self.scans) - len(scans)
        return replace(self, scans=scans, left_out={**self.left_out, FORGOTTEN: count}) if count else self

    @property
    def patients(self) -> int:
        """Different patients among the scans."""
        return len({scan.patient for scan in self.scans})

    @property
    def by_reason(self) -> dict[str, int]:
        """Number of scans per reason."""
        counts = Counter(scan.reason for scan in self.scans)
        return {reason: counts[reason] for reason in REASONS if counts[reason]}

    @property
    def too_few(self) -> bool:
        """Whether a training would be refused."""
        return self.patients < self.minimum

    def check(self) -> None:
        """Raises TrainingFailed when there are too few patients, saying how to add some."""
        if self.too_few:
            aside = (
                f"; {len(self.contaminated)} more carry a final label that is not empty" if self.contaminated else ""
            )
            raise TrainingFailed(
                f"expected healthy scans of at least {self.minimum} patients, got {len(self.scans)} scans of "
                f"{self.patients}{aside}: {HOW_TO_MARK}"
            )

    def counts(self) -> dict[str, Any]:
        """Numbers only, for ``/info/``, logs and model cards."""
        return {
            "scans": len(self.scans),
            "patients": self.patients,
            "minimum_patients": self.minimum,
            "too_few": self.too_few,
            "by_reason": self.by_reason,
            "contaminated": len(self.contaminated),
            "left_out": dict(self.left_out),
            "unmatched_rows": self.unmatched_rows,
            "images_without_row": self.images_without_row,
        }

    def listing(self) -> dict[str, Any]:
        """The counts and the image ids, for a caller who may see them."""
        return {
            **self.counts(),
            "images": {scan.id: scan.reason for scan in self.scans},
            "contaminated_images": {scan.id: scan.reason for scan in self.contaminated},
        }


def check_conf(conf: Mapping[str, str]) -> None:
    """Raises InvalidRequest or InvalidSettings when ``--conf healthy`` or ``healthy_list`` cannot be understood."""
    _claims_all(conf)
    _healthy_list(conf)


def healthy_scans(datastore: Datastore, conf: Mapping[str, str], *, inspect: bool = True) -> HealthySelection:
    """The scans of ``datastore`` that may be trained on. No file is fetched before its ``path`` is asked for.

    conf: ``healthy`` (all, or absent) and ``healthy_list`` (a file). inspect: False takes a segmentation that an
    archive holds and that was not looked into yet as not empty, instead of fetching it.

    Raises InvalidSettings (the list), InvalidRequest (``healthy``), ArchiveUnreachable.
    """
    everything = _claims_all(conf)
    table = _healthy_list(conf)
    images = sorted(datastore.list_images())
    infos = {image: datastore.get_image_info(image) or {} for image in images}
    known = {image: _archive_patient(datastore, image) for image in images}
    matches = Matches({}, 0, 0)
    if table is not None:
        people = {image: patient.split("^^^")[0] for image, patient in known.items() if patient}
        replaced = frozenset(image for image, info in infos.items() if "replaced_id" in info)
        matches = table.match(images, people, replaced)
    scans, contaminated, left_out = [], [], Counter()
    for image in images:
        info, row = infos[image], matches.rows.get(image)
        finals = final_labels(datastore, image, inspect)
        flag = _flag(info)
        claims = {
            "reviewed": 0 in finals.values(),
            "marked": flag is True,
            "listed": row is not None and row.healthy is True,
            "all": everything,
        }
        reason = next((name for name in REASONS if claims[name]), None)
        if flag is False:
            left_out[SAID_NOT_HEALTHY] += 1
        elif row is not None and row.healthy is False:
            left_out[LISTED_NOT_HEALTHY] += 1
        elif reason is None:
            left_out[LABELLED if any(finals.values()) else NOT_MARKED] += 1
        else:
            patient = (row.patient if row else None) or _patient(image, info, known[image])
            scan = HealthyImage(image, patient, reason, lambda image=image: datastore.get_image_uri(image))
            (contaminated if any(finals.values()) else scans).append(scan)
    return HealthySelection(scans, contaminated, dict(left_out), matches.unmatched_rows, matches.images_without_row)


def patient_of(datastore: Datastore, image: str) -> str:
    """Whom a scan shows, as far as it is known: by the archive, its information or a BIDS name; else its own id."""
    return _patient(image, datastore.get_image_info(image) or {}, _archive_patient(datastore, image))


def info_counts(datastore: Datastore, conf: Mapping[str, str], status: dict[str, Any], trains: bool) -> dict[str, Any]:
    """``/info/``'s ``datastore`` with the counts of healthy scans under ``healthy``.

    3D Slicer greys its Train button out while ``completed`` is 0, so where this server trains (``trains``),
    ``completed`` counts the scans with a final label or known as healthy; the number with a final label alone is
    ``labeled`` then. Without a trainer the counts are MONAI Label's own.
    """
    try:
        selection = healthy_scans(datastore, conf, inspect=False)
        labelled = set(datastore.get_labeled_images()) if trains else set()
    except AnomalyAppError as error:
        return {**status, "healthy": {"error": str(error)}}
    status = {**status, "healthy": selection.counts()}
    if trains:
        done = labelled | {scan.id for scan in selection.scans}
        status |= {"labeled": status.get("completed", 0), "completed": max(len(done), status.get("completed", 0))}
    return status


def abnormal_scans(datastore: Datastore) -> set[str]:
    """Ids of the scans with a final label that is not empty, as far as it is known without fetching anything."""
    try:
        labelled = getattr(datastore, "reviewed_images", datastore.get_labeled_images)()
        return {image for image in labelled if any(final_labels(datastore, image, False).values())}
    except AnomalyAppError:
        return set()


def contradiction(datastore: Datastore, conf: Mapping[str, str], image: str) -> str | None:
    """A sentence when ``image`` is called healthy and carries a final label that is not empty, else None."""
    try:
        found = next((scan for scan in healthy_scans(datastore, conf).contaminated if scan.id == image), None)
    except AnomalyAppError:
        return None
    return None if found is None else f"{CONTAMINATED[found.reason]}; it is left out of training"


def _claims_all(conf: Mapping[str, str]) -> bool:
    value = str(conf.get("healthy") or "").strip().casefold()
    if value not in {"", "all", "none"}:
        raise InvalidRequest(
            f"expected --conf healthy all (every scan of the datastore is healthy) or none, got {value[:40]!r}; "
            "a file with a list goes to --conf healthy_list"
        )
    return value == "all"


def _healthy_list(conf: Mapping[str, str]) -> HealthyList | None:
    name = str(conf.get("healthy_list") or "").strip()
    if not name:
        return None
    path = Path(name).expanduser()
    try:
        status = path.stat()
        return _read_list(path, status.st_mtime_ns, status.st_size)
    except OSError as error:
        raise InvalidSettings(f"--conf healthy_list: the file cannot be opened ({type(error).__name__})") from error
    except InvalidSettings as error:
        raise InvalidSettings(f"--conf healthy_list: {error}") from error


@lru_cache(maxsize=2)
def _read_list(path: Path, modified: int, size: int) -> HealthyList:
    return read_healthy_list(path)


def _flag(info: Mapping[str, Any]) -> bool | None:
    """What was said by hand; the automatic flag repeats what the labels say, and outlives a label removed by hand."""
    if info.get("healthy_reason") == REVIEWED:
        return None
    try:
        return read_flag(info.get("healthy"))
    except InvalidRequest:
        return False


def final_labels(datastore: Datastore, image: str, inspect: bool) -> dict[str, int]:
    """Voxels of the final labels of a scan by tag, whatever the kind of datastore. Raises ArchiveUnreachable."""
    count = getattr(datastore, "final_labels", None)
    if count is not None:
        return count(image, inspect)
    # Another kind of datastore, whose labels nobody counted: none of them is taken for empty.
    return {"final": 1} if datastore.get_label_by_image_id(image, "final") else {}


def _archive_patient(datastore: Datastore, image: str) -> str | None:
    patient_of = getattr(datastore, "patient_of", None)
    return patient_of(image) if patient_of is not None else None


def _patient(image: str, info: Mapping[str, Any], known: str | None) -> str:
    return known or _stated_patient(info) or bids_person(image) or image


def _stated_patient(info: Mapping[str, Any]) -> str | None:
    stated = (str(info[key]).strip() for key in _PATIENT_KEYS if info.get(key) is not None)
    return next((patient for patient in stated if patient not in {"", "UNK"}), None)
