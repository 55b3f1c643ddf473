"""The healthy scans of a folder: which there are, whose they are, and what a list says about them."""

from __future__ import annotations

from pathlib import Path

from monailabel_app.errors import TrainingFailed
from monailabel_app.io.healthy_list import bids_person, read_healthy_list

from .prepare import list_scans
from .site_training import HealthyScanFile

_EXTENSIONS = (".nii.gz", ".nii", ".nrrd")


def scans_of_folder(folder: Path, healthy_list: Path | None = None) -> tuple[list[HealthyScanFile], dict[str, int]]:
    """The healthy scans, and how many were left out by reason.

    Without a list every scan of the folder counts as healthy; with one, those of its rows that say healthy. A scan's
    patient is what the list says, else the ``sub-...`` part of a BIDS name, else the scan's own name. Raises
    TrainingFailed when nothing is left, InvalidSettings for a list that cannot be understood.
    """
    found = {scan_id(path): path for path in list_scans(folder)}
    if healthy_list is None:
        return [HealthyScanFile(path, name, bids_person(name) or name) for name, path in found.items()], {}
    matches = read_healthy_list(healthy_list).match(list(found))
    scans, left_out = [], {}
    for name, path in found.items():
        row = matches.rows.get(name)
        if row is not None and row.healthy:
            scans.append(HealthyScanFile(path, name, row.patient or bids_person(name) or name))
            continue
        reason = "not in the list" if row is None else "not healthy, by the list"
        left_out[reason] = left_out.get(reason, 0) + 1
    if not scans:
        raise TrainingFailed(
            f"expected healthy scans among the {len(found)} of the folder, the list names none of them as healthy; "
            "check its ids"
        )
    return scans, left_out


def scan_id(path: Path) -> str:
    """A scan's name: that of its file without extension, or of its folder."""
    name = Path(path).name
    for extension in _EXTENSIONS:
        if name.lower().endswith(extension):
            return name[: -len(extension)]
    return name
