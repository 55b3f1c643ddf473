"""The scans of the datastore as a worklist: what is known of each without opening or fetching a single one.

A study is one scan (in an archive: one series). Its state is the first that holds of ``queued`` and ``running`` (a job
is about it), ``reviewed`` (it has a final label), ``failed`` and ``analysed`` (its newest record), ``new``.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from monailabel.interfaces.datastore import Datastore

from lib import leases
from lib.errors import InvalidRequest, UnknownImage
from lib.healthy_limit import CurrentLimits, HealthyLimits
from lib.infers import AnomalyInferTask
from lib.review import summary_of
from lib.reviewed import is_final
from lib.same_scan import REPLACED_KEY
from lib.scoring.base import whole_number
from lib.scoring.records import anomaly_rank, newest_record, records_of
from lib.scoring.sequences import ANY, default_model, sequence_of
from monailabel_app.errors import UnknownModel
from monailabel_app.pipelines.shipped_models import DEFAULTS

NEW, QUEUED, RUNNING, ANALYSED, FAILED, REVIEWED = STATES = (
    "new", "queued", "running", "analysed", "failed", "reviewed",
)  # fmt: skip
ORDERS = ("most_anomalous", "borderline", "random", "name", "newest")
LARGEST_PAGE = 1000
_DICOM_KEYS = (
    "StudyInstanceUID", "SeriesInstanceUID", "StudyDate", "StudyDescription", "SeriesDescription", "Modality",
    "PatientID", "PatientName", "AccessionNumber",
)  # fmt: skip
_UNKNOWN = "UNK"  # MONAI Label's word for what the archive did not say


@dataclass(frozen=True)
class StudyQuery:
    """One page of the worklist. state: empty for all. search: part of an id or of what the archive says, in any case.

    seed: of the order ``random``, which stays the same from page to page.
    """

    order: str = ORDERS[0]
    state: str = ""
    search: str = ""
    offset: int = 0
    limit: int = 100
    seed: str = "0"

    @classmethod
    def read(cls, given: Mapping[str, str]) -> StudyQuery:
        """Of texts by name. Raises InvalidRequest."""
        order, state = given.get("order", ORDERS[0]), given.get("state", "")
        if order not in ORDERS:
            raise InvalidRequest(f"expected order out of {', '.join(ORDERS)}, got {order[:40]!r}")
        if state and state not in STATES:
            raise InvalidRequest(f"expected state out of {', '.join(STATES)}, got {state[:40]!r}")
        offset = whole_number("offset", given.get("offset"))
        limit = whole_number("limit", given.get("limit"), cls.limit)
        if not 1 <= limit <= LARGEST_PAGE:
            raise InvalidRequest(f"expected limit from 1 to {LARGEST_PAGE}, got {limit}")
        return cls(order, state, given.get("search", "")[:200].casefold(), offset, limit, given.get("seed", "0")[:40])


@dataclass(frozen=True)
class Study:
    """What the table of images says of one scan. dicom: what the archive says; empty for files."""

    image: str
    state: str
    info: Mapping[str, Any] = field(repr=False)
    dicom: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def newest(self) -> tuple[str, Mapping[str, Any]] | None:
        """Model and record of the last analysis."""
        return newest_record(records_of(self.info))

    @property
    def record(self) -> Mapping[str, Any] | None:
        """Of the last analysis."""
        newest = self.newest
        return None if newest is None else newest[1]

    def mentions(self, text: str) -> bool:
        """Whether the id or the archive's words about it contain ``text`` (in small letters)."""
        return any(text in str(said).casefold() for said in (self.image, *self.dicom.values()))

    def to_json(self) -> dict[str, Any]:
        """For the worklist. error: why the last analysis failed. results: the records by model."""
        model, record = self.newest or (None, {})
        healthy, replaced = self.info.get("healthy"), self.info.get(REPLACED_KEY)
        return {
            "image": self.image,
            "sequence": sequence_of(self.image, {**self.dicom, **self.info}),
            "state": self.state,
            "model": model,
            **{key: record.get(key) for key in ("score", "p_value", "volume_ml", "lesions", "error", "gate", "drift")},
            "time": record.get("time"),
            "results": records_of(self.info),
            "review": summary_of(self.info),
            "lease": leases.as_told(leases.held_by(self.info)),
            "healthy": healthy if isinstance(healthy, bool) else None,
            "replaced_by_hand": dict(replaced) if isinstance(replaced, Mapping) else None,
            "dicom": dict(self.dicom) or None,
        }


def list_studies(
    datastore: Datastore,
    tasks: Mapping[str, AnomalyInferTask],
    query: StudyQuery,
    working: Mapping[str, str],
) -> dict[str, Any]:
    """A page of the worklist: studies, total (of that state), counts (of every state), default_models.

    working: ``queued`` or ``running`` by image. Raises ArchiveUnreachable.
    """
    found = [study for study in _studies(datastore, working) if study.mentions(query.search)]
    counts = Counter(study.state for study in found)
    if query.state:
        found = [study for study in found if study.state == query.state]
    limits = HealthyLimits(lambda: tasks).now()
    found.sort(key=lambda study: _rank(study, query, limits))
    return {
        "studies": [study.to_json() for study in found[query.offset : query.offset + query.limit]],
        "total": len(found),
        "counts": {state: counts[state] for state in STATES},
        "default_models": default_models(tasks),
    }


def find_study(datastore: Datastore, image: str, working: Mapping[str, str]) -> dict[str, Any]:
    """One study as in the worklist. Raises UnknownImage, ArchiveUnreachable."""
    study = next((study for study in _studies(datastore, working) if study.image == image), None)
    if study is None:
        raise UnknownImage(f"no image {image[:80]!r} in the datastore: list them with GET /anomaly/studies")
    return study.to_json()


def default_models(tasks: Mapping[str, AnomalyInferTask]) -> dict[str, str]:
    """The model that is asked first, by sequence."""
    entries = {name: task.entry for name, task in own_models(tasks).items()}
    sequences = dict.fromkeys((*DEFAULTS, *(entry.modality for entry in entries.values())))
    chosen = {name: default_model(entries, name) for name in sequences if name != ANY}
    return {sequence: model for sequence, model in chosen.items() if model is not None}


def own_models(tasks: Mapping[str, AnomalyInferTask]) -> dict[str, AnomalyInferTask]:
    """The tasks without those that only show another one's map in bands."""
    return {name: task for name, task in tasks.items() if name == task.entry.name}


def model_task(tasks: Mapping[str, AnomalyInferTask], model: str) -> AnomalyInferTask:
    """The task of a model. Raises UnknownModel naming what there is."""
    own = own_models(tasks)
    if model not in own:
        raise UnknownModel(f"no model {model[:80]!r} on this server; available: {', '.join(own) or 'none'}")
    return own[model]


def _studies(datastore: Datastore, working: Mapping[str, str]) -> list[Study]:
    """All of them, from one look at the table. An archive's series may not be in it yet."""
    images = datastore.list_images()
    entries = datastore.entries() if hasattr(datastore, "entries") else {}
    about = getattr(datastore, "series_info", None)
    # Of files, the table's tags say it; an archive may hold segmentations that the table does not know.
    reviewed = frozenset(datastore.reviewed_images() if about is not None else ())
    studies = []
    for image in images:
        info, tags = entries.get(image) or ({}, ())
        state = working.get(image) or _state(info, image in reviewed or any(map(is_final, tags)))
        studies.append(Study(image, state, info, _dicom(info, about(image) if about is not None else None)))
    return studies


def _state(info: Mapping[str, Any], reviewed: bool) -> str:
    if reviewed:
        return REVIEWED
    newest = newest_record(records_of(info))
    if newest is None:
        return NEW
    return FAILED if newest[1].get("error") else ANALYSED


def _dicom(info: Mapping[str, Any], said: Mapping[str, Any] | None) -> dict[str, str]:
    if said is None and "SeriesInstanceUID" not in info:
        return {}
    together = {**{key: info[key] for key in _DICOM_KEYS if key in info}, **(said or {})}
    return {key: str(value) for key, value in together.items() if value and value != _UNKNOWN}


def _rank(study: Study, query: StudyQuery, limits: CurrentLimits) -> tuple[Any, ...]:
    if query.order == "most_anomalous":
        return (*anomaly_rank(study.record), study.image)
    if query.order == "borderline":
        distance = None if study.newest is None else limits.distance(*study.newest)
        return (distance is None, distance or 0.0, study.image)
    if query.order == "newest":
        added = study.info.get("ts")
        return (-float(added) if isinstance(added, (int, float)) else 0.0, study.image)
    if query.order == "random":
        return (hashlib.sha256(f"{query.seed}:{study.image}".encode()).digest(),)
    return (study.image,)
