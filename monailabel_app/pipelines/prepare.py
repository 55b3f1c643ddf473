"""Bring a set of healthy scans into template space once, and keep them as one compact training cache."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import torch
from nibabel.filebasedimages import ImageFileError

from monailabel_app.errors import AnomalyAppError, TrainingFailed
from monailabel_app.io.images import read_volume
from monailabel_app.preprocessing.brain_mask import BrainExtractor
from monailabel_app.preprocessing.pipeline import PrepareSettings, Preprocessor
from monailabel_app.preprocessing.template import Template
from monailabel_app.training.cache import TrainingCache, to_cache
from monailabel_app.types import BrainMask, PreparedVolume

from .ixi import IxiScan, list_ixi

_LOG = logging.getLogger(__name__)
_SUFFIXES = (".nii", ".nii.gz", ".nrrd")


def prepare_ixi(
    folder: Path,
    split: str,
    template_folder: Path,
    settings: PrepareSettings = PrepareSettings(),
    *,
    workers: int = 2,
    progress: Callable[[int, int], None] | None = None,
) -> TrainingCache:
    """Cache one split of ``ixi_t1`` with the brain masks of its region labels."""
    scans = list_ixi(folder, split)
    job = partial(_prepare_ixi_scan, template_folder=template_folder, settings=settings)
    return _collect(scans, [scan.id for scan in scans], job, "t1", workers, progress)


def list_scans(folder: Path) -> list[Path]:
    """The NIfTI and NRRD files of a folder. Raises TrainingFailed when there are none."""
    if not Path(folder).is_dir():
        raise TrainingFailed(f"expected a folder of scans, found none at {folder}; check the path")
    paths = sorted(p for p in Path(folder).iterdir() if p.name.lower().endswith(_SUFFIXES))
    if not paths:
        raise TrainingFailed(f"expected NIfTI or NRRD scans in {folder}, found none; give the folder that holds them")
    return paths


def prepare_files(
    paths: Sequence[Path],
    modality: str,
    template_folder: Path,
    extractor_folder: Path,
    settings: PrepareSettings = PrepareSettings(),
    *,
    workers: int = 2,
    progress: Callable[[int, int], None] | None = None,
) -> TrainingCache:
    """Cache the given scans, with the app's own brain extraction.

    Raises TrainingFailed when no scan is usable; single broken scans are logged and left out.
    """
    job = partial(
        _prepare_file, template_folder=template_folder, extractor_folder=extractor_folder, settings=settings
    )
    return _collect(paths, [f"scan{i:05d}" for i in range(len(paths))], job, modality, workers, progress)


def _collect(items, ids, job, modality: str, workers: int, progress) -> TrainingCache:
    prepared: list[PreparedVolume] = []
    kept: list[str] = []
    with ProcessPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        results: Iterable[PreparedVolume | str] = pool.map(job, items)
        for index, (name, result) in enumerate(zip(ids, results, strict=True)):
            if isinstance(result, str):
                _LOG.warning("scan %d of %d left out: %s", index + 1, len(ids), result)
            else:
                prepared.append(result)
                kept.append(name)
            if progress is not None:
                progress(index + 1, len(ids))
    if not prepared:
        raise TrainingFailed("expected at least one usable scan, every one was refused; see the warnings above")
    return to_cache([p.image for p in prepared], [p.brain_mask for p in prepared], kept, modality)


def _prepare_ixi_scan(scan: IxiScan, template_folder: Path, settings: PrepareSettings) -> PreparedVolume | str:
    try:
        brain = BrainMask(scan.brain_mask(), "given")
        return Preprocessor(Template.load(template_folder)).prepare(scan.volume(), settings, brain=brain)
    except AnomalyAppError as error:
        return str(error)
    except (OSError, ImageFileError) as error:
        return f"expected a readable scan with region labels, got {type(error).__name__}; restore its files"


def _prepare_file(
    path: Path, template_folder: Path, extractor_folder: Path, settings: PrepareSettings
) -> PreparedVolume | str:
    try:
        extractor = BrainExtractor.load(extractor_folder)
        return Preprocessor(Template.load(template_folder), extractor.extract).prepare(read_volume(path), settings)
    except AnomalyAppError as error:
        return str(error)
