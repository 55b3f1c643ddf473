"""Which scans a folder holds, and whom they show; the IXI scans with the brain masks of their region labels."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nibabel.filebasedimages import ImageFileError

from monailabel_app.errors import TrainingFailed, UnreadableVolume
from monailabel_app.preprocessing.pipeline import PrepareSettings
from monailabel_app.training.cache import TrainingCache
from monailabel_app.types import BrainMask, Volume

from .ixi import IxiScan, list_ixi
from .prepared_cache import ScanSource, prepare_sources

_SUFFIXES = (".nii", ".nii.gz", ".nrrd")
_SUBJECT = re.compile(r"(sub-[0-9a-zA-Z]+)(?=[_./]|$)")


@dataclass(frozen=True)
class IxiSource(ScanSource):
    """An IXI scan. regions: its region labels, from which the brain mask is made."""

    regions: Path

    def files(self) -> list[Path]:
        """The scan and its labels."""
        return [self.path, self.regions]

    def read(self) -> tuple[Volume, BrainMask]:
        """Both on RAS axes. Raises UnreadableVolume."""
        scan = IxiScan(self.id, self.path, self.regions)
        try:
            return scan.volume(), BrainMask(scan.brain_mask(), "given")
        except (OSError, ImageFileError) as error:
            raise UnreadableVolume(
                f"expected a readable scan with region labels, got {type(error).__name__}; restore its files"
            ) from None


def prepare_ixi(
    folder: Path,
    split: str,
    template_folder: Path,
    settings: PrepareSettings = PrepareSettings(),
    *,
    cache_folder: Path,
    workers: int = 2,
    progress: Callable[[int, int], None] | None = None,
) -> TrainingCache:
    """Cache one split of ``ixi_t1`` with the brain masks of its region labels."""
    sources = [IxiSource(scan.image, scan.id, scan.id, scan.regions) for scan in list_ixi(folder, split)]
    made = prepare_sources(
        sources,
        "t1",
        cache_folder,
        workers=workers,
        progress=progress,
        settings=settings,
        template_folder=template_folder,
    )
    return made.cache


def list_scans(folder: Path) -> list[Path]:
    """The NIfTI and NRRD files of a folder, and every folder in or below it that holds a DICOM series.

    Raises TrainingFailed when there are none.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise TrainingFailed(f"expected a folder of scans, found none at {folder}; check the path")
    files = [p for p in folder.iterdir() if p.name.lower().endswith(_SUFFIXES) and p.is_file()]
    paths = sorted([*files, *_series_folders(folder)])
    if not paths:
        raise TrainingFailed(
            f"expected NIfTI or NRRD scans or folders of DICOM series in {folder}, found none; give the folder that "
            "holds them"
        )
    return paths


def list_sources(folder: Path) -> list[ScanSource]:
    """The scans of a folder with an id each and whom they show, as far as names tell.

    Scans of one person share a BIDS subject (``sub-01_ses-2_T1w.nii.gz``) or, for DICOM, the folder directly in
    ``folder``; any other scan counts as a person of its own. Raises TrainingFailed when there are none.
    """
    folder = Path(folder)
    sources = []
    for index, path in enumerate(list_scans(folder)):
        inside = path.relative_to(folder).as_posix()
        subject = _SUBJECT.search(inside)
        patient = subject.group(1) if subject is not None else inside.split("/")[0]
        sources.append(ScanSource(path, f"scan{index:05d}", patient))
    return sources


def _series_folders(folder: Path) -> list[Path]:
    """Every folder with DICOM files directly in it; what lies below one belongs to it, as the reader takes it."""
    found = []
    for root, folders, names in os.walk(folder):
        if any(_is_dicom(Path(root) / name) for name in sorted(names)):
            found.append(Path(root))
            folders.clear()
    return found


def _is_dicom(path: Path) -> bool:
    try:
        with path.open("rb") as stream:
            return stream.read(132)[128:] == b"DICM"
    except OSError:
        return False
