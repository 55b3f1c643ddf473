"""A label on its way to the archive: written as a DICOM Segmentation, and what is remembered of what was sent.

A submission whose answer was lost is submitted again, and must then be the same instance. But a reader who goes back to
an earlier drawing has submitted something new, which must not look older than what it replaces. So a segmentation is
told apart by its content and by the series it follows, and the label's information keeps both.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pydicom

from lib.dicom_results import algorithm_of, labelled_series, named_errors, names_of, segments_of_result
from monailabel_app.calibration.bands import COLOURS
from monailabel_app.io.dicom_seg import read_labelmap, write_dicom_seg

logger = logging.getLogger(__name__)

_SERIES = "SeriesInstanceUID"
# Of a final label: the series of the segmentations that earlier final labels were sent as, and the one it follows.
_REPLACED, _FOLLOWS = "replaced_series", "follows_series"
# Of an image: the same of a final label that was sent and whose answer has not come. The next one takes its place, too.
UNANSWERED = "label_sent"


def write_label(
    label: str | Path,
    series: Path,
    label_info: list[dict[str, Any]] | None,
    result: Mapping[str, Any],
    reviewed: bool = False,
    follows: str = "",
) -> str:
    """Write a label file as a DICOM Segmentation of the series in folder ``series``; the caller removes it.

    A result that nobody has reviewed has a segment per lesion, as in ``lib.dicom_results``; a reviewed label has one
    per value. Bands of suspicion have the page's colours. follows: the series of the segmentation it comes after.
    Raises UnreadableVolume, InvalidVolume.
    """
    voxels, affine = read_labelmap(label)
    names, labels = names_of(label_info), None
    if not reviewed:
        voxels, names, labels = segments_of_result(voxels, affine, result, names)
    algorithm = algorithm_of(result, reviewed)
    with tempfile.NamedTemporaryFile(prefix="anomaly_", suffix=".dcm", delete=False) as handle:
        path = handle.name
    try:
        with named_errors():
            colours = {value: COLOURS[name] for value, name in names.items() if name in COLOURS}
            write_dicom_seg(
                path, voxels, affine, series, algorithm, names, labels=labels, distinct=follows, colours=colours
            )
    except BaseException:
        os.unlink(path)
        raise
    return path


@contextmanager
def submitted(
    label: str | Path, series: Path, info: Mapping[str, Any], former: Mapping[str, Any]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """A final label as a segmentation's file, which goes afterwards, and its information once that has been sent.

    info, former: of this label, and of the one that it takes the place of.
    """
    sent = series_sent(former)
    last, follows = (sent[-1] if sent else ""), str(former.get(_FOLLOWS) or "")
    path = write_label(label, series, info.get("label_info"), dict(info), True, follows)
    try:
        reference = _reference(path)
        if last and reference[_SERIES] != last:
            os.unlink(path)
            follows = last
            path = write_label(label, series, info.get("label_info"), dict(info), True, follows)
            reference = _reference(path)
        replaced = [uid for uid in sent if uid != reference[_SERIES]]
        yield path, {**_with(info, replaced, follows), **reference}
    finally:
        with suppress(FileNotFoundError):
            os.unlink(path)


def not_sent(info: Mapping[str, Any], former: Mapping[str, Any]) -> dict[str, Any]:
    """The information of a label that stays here: what was sent before it stays in the archive, and is not forgotten.

    A newer review does not remove it there, but it says nothing any more.
    """
    return _with(info, series_sent(former), str(former.get(_FOLLOWS) or ""))


def unanswered(info: Mapping[str, Any]) -> dict[str, Any]:
    """What an image's information says of a label that was sent and perhaps not taken; empty where that is over."""
    said = info.get(UNANSWERED)
    replaced = said.get(_REPLACED, []) if isinstance(said, Mapping) else None
    if not isinstance(replaced, list) or not all(isinstance(uid, str) for uid in (*replaced, said.get(_SERIES))):
        return {}
    return dict(said)


def to_note(info: Mapping[str, Any]) -> dict[str, Any]:
    """What has to be noted before a label of this information is sent: its answer may be lost."""
    return {key: info[key] for key in (_SERIES, _REPLACED, _FOLLOWS) if key in info}


def answered(info: Mapping[str, Any], noted: Mapping[str, Any]) -> dict[str, Any]:
    """What becomes of the note once its label is kept; one of another label, sent meanwhile, stays."""
    return {UNANSWERED: None} if info.get(UNANSWERED) == noted else {}


def series_sent(info: Mapping[str, Any]) -> list[str]:
    """The series of the segmentations that a label and those before it were sent as, the last one last."""
    return [str(uid) for uid in (*(info.get(_REPLACED) or ()), info.get(_SERIES)) if uid]


def labelled(headers: Sequence[Mapping[str, Any]]) -> str:
    """The series that a segmentation of the archive labels, from its headers as DICOM JSON; empty where none is said.

    Empty also for headers that cannot be read: one such must not hide the labels of all the others.
    """
    try:
        return labelled_series(headers[0]) if headers else ""
    except Exception as error:
        # Not a list of kinds, as in ``archive_lists.series_of``.
        logger.warning("a segmentation of the archive cannot be read: %s", type(error).__name__)
        return ""


def _with(info: Mapping[str, Any], replaced: list[str], follows: str) -> dict[str, Any]:
    kept = {_REPLACED: replaced, _FOLLOWS: follows}
    return {**info, **{key: value for key, value in kept.items() if value}}


def _reference(path: str) -> dict[str, str]:
    header = pydicom.dcmread(path, stop_before_pixels=True)
    return {_SERIES: str(header.SeriesInstanceUID), "StudyInstanceUID": str(header.StudyInstanceUID), "Modality": "SEG"}
