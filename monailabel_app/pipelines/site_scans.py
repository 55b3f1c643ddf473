"""The healthy scans of a folder: which there are, whose they are, and what a list says about them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np

from monailabel_app.errors import AnomalyAppError, TrainingFailed
from monailabel_app.io.dicom_seg import read_labelmap
from monailabel_app.io.healthy_list import read_healthy_list, without_extension

from .prepare import list_sources
from .site_training import HealthyScanFile

LABELLED = "with a non-empty final label"


def scans_of_folder(folder: Path, healthy_list: Path | None = None) -> tuple[list[HealthyScanFile], dict[str, int]]:
    """The healthy scans, and how many were left out by reason.

    Without a list every scan of the folder counts as healthy; with one, those of its rows that say healthy. A scan with
    a final label that is not empty is never taken: a studies folder of MONAI Label keeps them in ``labels/final*``. A
    scan's patient is what the list says, else what its name or folder tells (``prepare.list_sources``). Raises
    TrainingFailed when nothing is left, InvalidSettings for a list that cannot be understood.
    """
    found, left_out = named_scans(folder), Counter()
    lesioned = _with_lesions(folder)
    if lesioned:
        left_out[LABELLED] = sum(scan.id in lesioned for scan in found)
        found = [scan for scan in found if scan.id not in lesioned]
    if healthy_list is None:
        return found, dict(left_out)
    matches = read_healthy_list(healthy_list).match([scan.id for scan in found])
    scans = []
    for scan in found:
        row = matches.rows.get(scan.id)
        if row is not None and row.healthy:
            scans.append(HealthyScanFile(scan.path, scan.id, row.patient or scan.patient))
        else:
            left_out["not in the list" if row is None else "not healthy, by the list"] += 1
    if not scans:
        raise TrainingFailed(
            f"expected healthy scans among the {len(found)} of the folder, the list names none of them as healthy; "
            "check its ids"
        )
    return scans, dict(left_out)


def _with_lesions(folder: Path) -> set[str]:
    """Ids of the scans with a final label that is not empty, or cannot be read."""
    found = set()
    for file in sorted(Path(folder).glob("labels/final*/*")):
        if file.is_file():
            try:
                marked = bool(np.any(read_labelmap(file)[0]))
            except AnomalyAppError:
                marked = True
            if marked:
                found.add(scan_id(file).removesuffix(".seg"))
    return found


def named_scans(folder: Path) -> list[HealthyScanFile]:
    """Every scan of a folder with an id: the name of its file or DICOM folder, with the folders above where needed."""
    sources = list_sources(folder)
    names = Counter(scan_id(source.path) for source in sources)
    scans = []
    for source in sources:
        name = scan_id(source.path)
        if names[name] > 1:
            name = without_extension("_".join(source.path.relative_to(folder).parts))
        patient = without_extension(source.patient)
        scans.append(HealthyScanFile(source.path, name, patient))
    return scans


def scan_id(path: Path) -> str:
    """A scan's name: that of its file without extension, or of its folder."""
    return without_extension(Path(path).name)
