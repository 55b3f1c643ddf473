"""A finding as DICOM objects of its study: segmentation, parametric map and measurement report.

The objects of one finding are written once and kept for a while in the archive datastore's cache, under a key made of
the finding itself. So what was looked at is what is stored, to the byte, and segmentation and report refer to each
other whichever is fetched first. Written anew when they are no longer kept, they are the same instances again
(``monailabel_app.io.dicom_uids``), so that storing twice never gives the archive a second set.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from filelock import FileLock
from pydicom.dataset import Dataset

from lib.errors import InvalidRequest, NothingFound
from monailabel_app import __version__
from monailabel_app.calibration.bands import band_edges
from monailabel_app.calibration.calibrated_map import ScoreCalibration
from monailabel_app.errors import InvalidSettings, UnreadableVolume
from monailabel_app.files import replacing
from monailabel_app.io.dicom_lesions import segments_of
from monailabel_app.io.dicom_parametric_map import WINDOW, write_parametric_map
from monailabel_app.io.dicom_seg import MANUFACTURER, Algorithm, write_dicom_seg
from monailabel_app.io.dicom_sr import write_dicom_sr
from monailabel_app.types import Finding, Lesion, to_json

logger = logging.getLogger(__name__)

SEGMENTATION, PARAMETRIC_MAP, REPORT = "segmentation", "parametric_map", "report"
# The order in which they are sent: a report must not be in the archive without what it refers to.
OBJECTS = (SEGMENTATION, PARAMETRIC_MAP, REPORT)
KEPT_SETS = 32
KEPT_SECONDS = 7 * 24 * 3600.0


@dataclass(frozen=True)
class DicomObject:
    """One of ``OBJECTS`` as a file."""

    kind: str
    path: Path

    def identity(self) -> dict[str, str]:
        """What it is called in the archive."""
        header = pydicom.dcmread(self.path, stop_before_pixels=True, specific_tags=["SeriesInstanceUID"])
        return {
            "object": self.kind,
            "series_instance_uid": str(header.SeriesInstanceUID),
            "sop_instance_uid": str(header.file_meta.MediaStorageSOPInstanceUID),
        }


def check_objects(wanted: Any) -> tuple[str, ...]:
    """The kinds of objects a request asks for, in the order of ``OBJECTS``; all of them where it names none.

    A report is never alone: the segmentation that it refers to goes with it. Raises InvalidRequest.
    """
    if wanted is None or wanted == []:
        return OBJECTS
    names = [wanted] if isinstance(wanted, str) else wanted
    if not isinstance(names, (list, tuple)) or not set(map(str, names)) <= set(OBJECTS):
        raise InvalidRequest(f"expected objects to be a list of {', '.join(OBJECTS)}; got {str(wanted)[:80]!r}")
    chosen = {*names, SEGMENTATION} if REPORT in names else set(names)
    return tuple(kind for kind in OBJECTS if kind in chosen)


def map_window(calibration: ScoreCalibration, smoothing: str) -> tuple[float, float]:
    """The values that viewers show of an anomaly map: up to twice what one in a thousand healthy voxels exceeds.

    The same for every scan of a model with these settings, so that a colour has one meaning. A calibration of an
    earlier version, which does not know its healthy tails, gets the parametric map's own default.
    """
    try:
        return 0.0, 2 * band_edges(calibration, smoothing)[1]
    except InvalidSettings:
        return WINDOW


def write_objects(
    finding: Finding,
    series: Path,
    root: Path,
    wanted: Sequence[str] = OBJECTS,
    window: tuple[float, float] = WINDOW,
) -> list[DicomObject]:
    """The objects of ``finding`` on the DICOM series in folder ``series``, as files below ``root``.

    window: of the parametric map, see ``map_window``.

    A finding without a lesion has no segmentation: it is left out, and the report says that nothing was found.
    Raises NothingFound when only a segmentation is asked for, UnreadableVolume and InvalidVolume when the series
    cannot be referred to.
    """
    kinds = [kind for kind in OBJECTS if kind in wanted and (kind != SEGMENTATION or finding.lesions)]
    if not kinds:
        raise NothingFound(
            "nothing was found at this operating point, so there is no segmentation: fetch the report, which says so"
        )
    folder = root / _key(finding, series, window)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    # Before anything else: an old set that is used again is not to be removed by another request meanwhile.
    folder.touch()
    with FileLock(f"{folder}.lock"):
        written = [DicomObject(kind, _written(kind, finding, series, folder, window)) for kind in kinds]
        folder.touch()
    _purge(root)
    return written


def _written(kind: str, finding: Finding, series: Path, folder: Path, window: tuple[float, float]) -> Path:
    path = folder / f"{kind}.dcm"
    if path.is_file():
        return path
    about = {"id": finding.model_id, "hash": finding.model_hash}
    algorithm = algorithm_of({"model": about, "manifest": finding.manifest})
    with replacing(path) as partial, named_errors():
        if kind == SEGMENTATION:
            label, names, labels = segments_of(finding.mask, finding.affine, finding.lesions)
            write_dicom_seg(
                partial, label, finding.affine, series, algorithm, names, labels=labels, distinct=_run_of(finding)
            )
        elif kind == PARAMETRIC_MAP:
            write_parametric_map(
                partial,
                finding.anomaly_map,
                finding.affine,
                series,
                algorithm,
                finding.model_hash,
                window=window,
                distinct=_run_of(finding),
            )
        else:
            segmentation = _written(SEGMENTATION, finding, series, folder, window) if finding.lesions else None
            write_dicom_sr(partial, finding, series, algorithm, segmentation)
    return path


@contextmanager
def named_errors() -> Iterator[None]:
    """What highdicom raises at headers that break the standard, as UnreadableVolume; values stay out of the text."""
    try:
        yield
    except (AttributeError, KeyError, IndexError, TypeError, ValueError, NotImplementedError) as error:
        about = f" ({error.name})" if isinstance(error, AttributeError) and error.name else ""
        # Without the values of the header, which may be the patient's.
        logger.warning("a series' headers cannot be referred to: %s%s", type(error).__name__, about)
        raise UnreadableVolume(
            "expected a DICOM series whose headers follow the standard, got one with a missing or malformed "
            f"attribute{about}: results cannot be written as DICOM objects for it"
        ) from error


def algorithm_of(result: Mapping[str, Any], reviewed: bool = False) -> Algorithm:
    """Who drew a label, from the ``model`` of a result or of a label's information (a name, or id and hash).

    The version names the app's, the model's hash and the run manifest's id, both shortened.
    """
    model = result.get("model")
    model = model if isinstance(model, Mapping) else {"id": model} if model else {}
    run = result.get("manifest")
    run = f"run {str(run['id'])[:16]}" if isinstance(run, Mapping) and run.get("id") else None
    version = "+".join(part for part in (__version__, str(model.get("hash") or "")[:16], run) if part)
    return Algorithm(" ".join(str(part) for part in (MANUFACTURER, model.get("id")) if part), version, reviewed)


def segments_of_result(
    label: np.ndarray, affine: np.ndarray, result: Mapping[str, Any], names: Mapping[int, str]
) -> tuple[np.ndarray, Mapping[int, str], Mapping[int, str]]:
    """Label, names and labels of the segments of a result as its JSON describes it (see ``segments_of``).

    A result with several labels (bands of suspicion) has a segment for each; otherwise each lesion has one.
    """
    told = result.get("label_names")
    if isinstance(told, Mapping) and len(told) > 1:
        return label, {int(value): str(name) for name, value in told.items()}, {}
    lesions = result.get("lesions")
    if not lesions:
        return label, names, {}
    known = {field.name for field in fields(Lesion)}
    return segments_of(label, affine, [Lesion(**{key: item[key] for key in known & set(item)}) for item in lesions])


def names_of(label_info: list[dict[str, Any]] | None) -> dict[int, str]:
    """The names a client gives to label values, by value."""
    named = [item for item in label_info or [] if isinstance(item, dict) and item.get("name")]
    return {int(item.get("idx") or item.get("id") or number): str(item["name"]) for number, item in enumerate(named, 1)}


def labelled_series(header: Mapping[str, Any]) -> str:
    """The series that a segmentation labels, from its DICOM JSON; empty where that is not said.

    Empty also for a result of this app that nobody has reviewed: stored for the viewers, it is no label.
    """
    segmentation = Dataset.from_json(header)
    segments = segmentation.get("SegmentSequence") or ()
    ours = segmentation.get("Manufacturer") == MANUFACTURER
    if ours and segments and all(segment.get("SegmentAlgorithmType") == "AUTOMATIC" for segment in segments):
        return ""
    referenced = segmentation.get("ReferencedSeriesSequence")
    return str(referenced[0].SeriesInstanceUID) if referenced else ""


def _key(finding: Finding, series: Path, window: tuple[float, float]) -> str:
    """Of everything that the objects tell."""
    told = finding.to_json()
    told.pop("seconds", None)
    digest = hashlib.sha256(json.dumps([__version__, series.name, window, told], sort_keys=True).encode())
    for array in (finding.mask, finding.anomaly_map, np.asarray(finding.affine, dtype=np.float64)):
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:32]


def _run_of(finding: Finding) -> str:
    """By which analysis it was found: with other settings, also the same outline is another object."""
    asked = json.dumps(to_json([finding.threshold, dict(finding.settings)]), sort_keys=True)
    return hashlib.sha256(asked.encode()).hexdigest()


def _purge(root: Path) -> None:
    """Keep the newest sets, and none for longer than a week: they hold patients' data."""
    sets = sorted((path for path in root.iterdir() if path.is_dir()), key=_age)
    for number, folder in enumerate(sets):
        if number >= KEPT_SETS or _age(folder) > KEPT_SECONDS:
            shutil.rmtree(folder, ignore_errors=True)
            Path(f"{folder}.lock").unlink(missing_ok=True)


def _age(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
