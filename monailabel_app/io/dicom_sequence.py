"""What a DICOM file's header says of its MR sequence; nothing of the patient is read."""

from __future__ import annotations

import math
from pathlib import Path

import pydicom
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError

from monailabel_app.io.dicom_limits import Bounded

_TAGS = ["SeriesDescription", "ScanningSequence", "EchoTime", "RepetitionTime", "InversionTime"]


def sequence_info(path: str | Path) -> dict[str, str]:
    """``SeriesDescription`` and, where the times of the sequence leave no doubt, ``timed``: t1, t2 or flair.

    Empty for what is no DICOM file, says nothing or is damaged.
    """
    try:
        with open(path, "rb") as file:
            header = pydicom.dcmread(Bounded(file), stop_before_pixels=True, specific_tags=_TAGS)
        told = {"SeriesDescription": str(header.get("SeriesDescription") or ""), "timed": _timed(header)}
    except (InvalidDicomError, OSError):
        return {}
    except Exception:
        # Not a list of kinds: what a parser of other people's bytes raises is open-ended, and each means the same.
        return {}
    return {key: value for key, value in told.items() if value}


def _timed(header: Dataset) -> str:
    """By bounds narrower than what is usual at 1.5 and 3 T; where they are not met, nothing is said."""
    echo, repeat, invert = (_number(header, name) for name in ("EchoTime", "RepetitionTime", "InversionTime"))
    kinds = header.get("ScanningSequence") or ()
    kinds = {kinds} if isinstance(kinds, str) else set(kinds)
    if not (echo > 0 and repeat > 0):
        return ""
    inverted = invert > 0 or "IR" in kinds
    if echo >= 70 and repeat >= 4000 and 1600 <= invert <= 3000:
        return "flair"
    if "GR" in kinds and echo <= 6 and 600 <= invert <= 1300:
        return "t1"
    if kinds == {"SE"} and not inverted:
        if echo <= 20 and 300 <= repeat <= 900:
            return "t1"
        if echo >= 80 and repeat >= 2500:
            return "t2"
    return ""


def _number(header: Dataset, name: str) -> float:
    value = header.get(name)
    value = 0.0 if value in (None, "") else float(value)
    return value if math.isfinite(value) else 0.0
