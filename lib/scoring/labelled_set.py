"""The datastore as a data set for the evaluation: final labels as truth, scans known as healthy as negatives."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from monailabel.interfaces.datastore import Datastore

from lib.healthy import HealthySelection, final_labels, patient_of
from lib.reviewed import FINAL, UNREADABLE
from lib.scoring.sequences import sequence_of
from monailabel_app.errors import AnomalyAppError, EvaluationFailed
from monailabel_app.pipelines.evaluation.dataset_types import Dataset, DatasetScan

logger = logging.getLogger(__name__)

ATTRIBUTES = ("age", "sex", "site")
NO_LABEL = "their final label could not be fetched or read"
NOT_FETCHED = "they could not be fetched"
LEARNT_FROM = "a model that is evaluated has learnt from them"
HOW_TO_LABEL = "submit final labels in the viewer first; an empty one says that nothing is abnormal"


def labelled_scans(datastore: Datastore) -> list[str]:
    """Ids of the scans with a final label that is not empty, as far as it is known without fetching anything."""
    reviewed = getattr(datastore, "reviewed_images", datastore.get_labeled_images)()
    known = set(datastore.list_images())
    return [image for image in reviewed if image in known and any(final_labels(datastore, image, False).values())]


def labelled_sets(
    datastore: Datastore, selection: HealthySelection, *, sequence: str, learnt_from: Collection[str] = ()
) -> list[Dataset]:
    """One data set per sequence of which there are labelled scans.

    sequence: of the scans about which nobody said any. learnt_from: healthy scans that prove nothing, because a model
    knows them. Of several final labels the one under ``final`` is the truth, or, where that is empty, the others
    joined. Raises EvaluationFailed without a labelled scan, ArchiveUnreachable.
    """
    healthy = {scan.id: scan for scan in selection.scans}
    groups: dict[str, list[DatasetScan]] = {}
    left_out: dict[str, Counter[str]] = {}
    for image in sorted(datastore.list_images()):
        info = datastore.get_image_info(image) or {}
        finals = final_labels(datastore, image, True)
        if image not in healthy and not any(finals.values()):
            continue
        own = sequence_of(image, info) or sequence
        aside = left_out.setdefault(own, Counter())
        if image in healthy and image in learnt_from:
            aside[LEARNT_FROM] += 1
            continue
        try:
            path = Path(datastore.get_image_uri(image))
        except AnomalyAppError as error:
            logger.warning("a scan is left out: it could not be fetched (%s)", type(error).__name__)
            aside[NOT_FETCHED] += 1
            continue
        labels = () if image in healthy else _label_files(datastore, image, finals)
        if image not in healthy and not labels:
            aside[NO_LABEL] += 1
            continue
        patient = healthy[image].patient if image in healthy else patient_of(datastore, image)
        scan = DatasetScan(image, patient, path, labels, image in healthy, attributes=_attributes(info))
        groups.setdefault(own, []).append(scan)
    sets = [
        _dataset(name, scans, left_out[name]) for name, scans in sorted(groups.items()) if any(s.labels for s in scans)
    ]
    if not sets:
        reasons = Counter()
        for aside in left_out.values():
            reasons.update(aside)
        why = "".join(f"; {count} scans are left out because {reason}" for reason, count in reasons.items())
        raise EvaluationFailed(f"expected scans with a final label that is not empty, got none{why}: {HOW_TO_LABEL}")
    return sets


def _dataset(sequence: str, scans: list[DatasetScan], left_out: Counter[str]) -> Dataset:
    notes = tuple(f"{count} scans were left out: {why}" for why, count in sorted(left_out.items()))
    return Dataset(
        name=f"site_{sequence}",
        title=f"Final labels of this site, {sequence.upper()}",
        modality=sequence,
        licence="the site's own scans",
        root=scans[0].image.parent,
        split=None,
        scans=tuple(scans),
        notes=notes,
        description="Scans of this server's datastore: final labels as truth; scans known as healthy as negatives.",
    )


def _label_files(datastore: Datastore, image: str, finals: Mapping[str, int]) -> tuple[Path, ...]:
    """The files of the labels that count; none where one of them cannot be had."""
    filled = [tag for tag, voxels in finals.items() if voxels]
    chosen = [FINAL] if FINAL in filled else filled
    if any(finals[tag] == UNREADABLE for tag in chosen):
        return ()
    try:
        paths = [_label_file(datastore, image, tag) for tag in chosen]
    except Exception as error:
        # A segmentation of the archive is converted by a tool of others.
        logger.warning("a scan is left out: its final label could not be fetched (%s)", type(error).__name__)
        return ()
    files = [Path(path) for path in paths if path]
    return tuple(files) if len(files) == len(chosen) and all(path.is_file() for path in files) else ()


def _label_file(datastore: Datastore, image: str, tag: str) -> str:
    if tag.startswith("archive "):
        return datastore.get_label_uri(tag.removeprefix("archive "), FINAL, image)
    return datastore.get_label_uri(image, tag)


def _attributes(info: Mapping[str, Any]) -> dict[str, str | float]:
    given = {key: info.get(key) for key in ATTRIBUTES}
    return {
        key: float(value) if isinstance(value, (int, float)) else str(value)[:64]
        for key, value in given.items()
        if isinstance(value, (int, float, str)) and not isinstance(value, bool) and value != ""
    }
