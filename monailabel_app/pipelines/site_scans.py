"""The healthy scans of a folder: which there are, whose they are, and what a list says about them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from monailabel_app.errors import TrainingFailed
from monailabel_app.io.healthy_list import read_healthy_list, without_extension

from .prepare import list_sources
from .site_training import HealthyScanFile


def scans_of_folder(folder: Path, healthy_list: Path | None = None) -> tuple[list[HealthyScanFile], dict[str, int]]:
    """The healthy scans, and how many were left out by reason.

    Without a list every scan of the folder counts as healthy; with one, those of its rows that say healthy. A scan's
    patient is what the list says, else what its name or folder tells (``prepare.list_sources``). Raises TrainingFailed
    when nothing is left, InvalidSettings for a list that cannot be understood.
    """
    found = named_scans(folder)
    if healthy_list is None:
        return found, {}
    matches = read_healthy_list(healthy_list).match([scan.id for scan in found])
    scans, left_out = [], Counter()
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
