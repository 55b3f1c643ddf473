"""One scan of a data set into a prepared case on disk: what a worker process does."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from monailabel_app.errors import AnomalyAppError, EvaluationFailed, InvalidVolume
from monailabel_app.io.geometry import resample, voxel_to_mm
from monailabel_app.io.images import read_volume
from monailabel_app.preprocessing.brain_mask import BrainExtractor
from monailabel_app.preprocessing.normalize import NORMALIZATIONS
from monailabel_app.preprocessing.pipeline import PrepareSettings, Preprocessor
from monailabel_app.preprocessing.slice_alignment import prepare_slice
from monailabel_app.preprocessing.template import Template
from monailabel_app.types import CONNECTIVITY_26, BrainMask, PreparedVolume, Volume

from ..implants import ImplantPlan, implant_first_fitting, standard_to_template
from ..levels import Levels, at_levels
from .cases import PreparedCase, alignment_of, load_case, on_model_grid, save_case
from .dataset_types import EXTRACT, NONZERO, DatasetScan, Picture


@dataclass(frozen=True)
class Recipe:
    """What is the same for all scans of a set. level: of slices; picture: how pictures of them lie."""

    template: Path
    extractor: Path
    settings: PrepareSettings
    device: str = "cpu"
    slices: bool = False
    level: int | None = None
    picture: Picture | None = None


@dataclass(frozen=True)
class Implant:
    """A lesion to put into a healthy scan. aligned: the prepared scan, for its alignment. shapes: in their order."""

    plan: ImplantPlan
    shapes: tuple[Path, ...]
    aligned: Path


@dataclass(frozen=True)
class PrepareJob:
    """path: where the case goes; another normalisation of it lies beside it. levels, cut: its levels, where wanted."""

    scan: DatasetScan = field(repr=False)
    recipe: Recipe
    path: Path
    implant: Implant | None = None
    levels: Levels | None = None
    cut: Path | None = None


def prepare_case(job: PrepareJob) -> str:
    """Write the case, and its levels where wanted; the reason where that cannot be done, without any name or path."""
    try:
        native = _read(job)
        if not job.path.is_file():
            save_case(job.path, _prepared(job, native))
        if job.cut is not None and not job.cut.is_file():
            save_case(job.cut, _levels(job, native))
        return ""
    except AnomalyAppError as error:
        return str(error)
    except OSError as error:
        # The error's own text names the file.
        return f"expected a readable scan, got {type(error).__name__}; restore its files"
    except MemoryError:
        return "expected a scan that fits into memory, it did not; use fewer workers, or leave it out"
    except Exception as error:  # whatever a strange file provokes must not end the others
        return f"expected a scan that can be prepared, got {type(error).__name__}; leave it out"


@dataclass(frozen=True)
class _Native:
    """A scan as it was read. brain: the true one, None where only the app's extraction knows. given: used as it is."""

    volume: Volume
    gt_mask: np.ndarray
    brain: np.ndarray | None
    given: BrainMask | None
    details: dict[str, Any]


def _read(job: PrepareJob) -> _Native:
    scan, recipe = job.scan, job.recipe
    volume = read_volume(scan.image, slices=recipe.slices, pixel_mm=recipe.picture and recipe.picture.pixel_mm)
    if recipe.slices and recipe.picture is not None and recipe.picture.left_is_left:
        volume = replace(volume, affine=np.diag([-1.0, 1, 1, 1]) @ volume.affine)
    truth = np.zeros(volume.shape, dtype=bool)
    for path in scan.labels:
        truth |= _labels(path, volume, recipe.slices) > 0.5
    brain, given, details = None, None, {}
    if scan.brain == NONZERO and not recipe.slices:  # of slices, closed and filled, it is what is analysed
        brain = volume.data[0] != 0
    elif isinstance(scan.brain, Path):
        labelled = _labels(scan.brain, volume, recipe.slices) > 0.5
        brain = labelled
        if scan.regions:
            brain = ndimage.binary_fill_holes(ndimage.binary_closing(labelled, iterations=2))
        else:
            given = BrainMask(labelled, "given")
    if job.implant is not None:
        volume, truth, details = _with_implant(job, volume, brain)
    return _Native(volume, truth, brain, given, details)


def _labels(path: Path, volume: Volume, slices: bool) -> np.ndarray:
    """A label on the grid of its scan. An empty one is a label, too: nothing was found."""
    try:
        found = read_volume(path, slices=slices)
    except InvalidVolume as error:
        if "the scan is empty" in str(error):
            return np.zeros(volume.shape, dtype=np.float32)
        raise
    if slices and found.shape == volume.shape and path.suffix.lower() == ".png":
        return found.data[0]
    if found.shape == volume.shape and np.allclose(found.affine, volume.affine, atol=1e-3):
        return found.data[0]
    if sorted(found.shape) == sorted(volume.shape) and np.allclose(
        sorted(found.spacing_mm), sorted(volume.spacing_mm), rtol=1e-3
    ):  # the same grid in another voxel order, if it covers the same place
        moved = resample(found.data[0], found.affine, volume.shape, volume.affine, order=0)
        if np.isclose(moved.sum(), found.data.sum(), rtol=1e-3):
            return moved
    raise EvaluationFailed(
        f"expected a mask on the grid of its scan {volume.shape}, got {found.shape} or another place; resample it first"
    )


def _with_implant(job: PrepareJob, volume: Volume, brain: np.ndarray | None) -> tuple[Volume, np.ndarray, dict]:
    case = load_case(job.implant.aligned)
    to_native = np.linalg.inv(alignment_of(case.prepared))
    if brain is None:
        brain = (
            resample(
                case.prepared.brain_mask.astype(np.float32),
                case.prepared.model_affine,
                volume.shape,
                volume.affine,
                transform=to_native,
            )
            >= 0.5
        )
    template = _template(job.recipe.template)
    to_native_mm = to_native @ standard_to_template(template.brain_mask, template.affine)
    image, truth, shape = implant_first_fitting(volume, brain, job.implant.plan, job.implant.shapes, to_native_mm)
    details = {
        "contrast": job.implant.plan.contrast,
        "volume_ml": float(truth.sum()) * volume.voxel_volume_mm3 / 1000,
        "shape": shape.name.split("_")[0],
    }
    return replace(volume, data=image[None]), truth, details


def _prepared(job: PrepareJob, native: _Native) -> PreparedCase:
    started = time.perf_counter()
    prepared, seconds = _bring(job, native, started)
    truth = on_model_grid(native.gt_mask, prepared)
    counted = prepared.brain_mask if native.brain is None else on_model_grid(native.brain, prepared)
    if job.scan.brain == EXTRACT:
        # What the extraction cuts off of a lesion is not found, and must not be left out of what there was to find.
        counted = counted | truth
    truth &= counted
    details = {**native.details, **_losses(native, prepared, truth)}
    return PreparedCase("", "", prepared, truth, counted, details, seconds)


def _bring(job: PrepareJob, native: _Native, started: float) -> tuple[PreparedVolume, float]:
    recipe = job.recipe
    if recipe.slices:
        made = prepare_slice(native.volume, _template(recipe.template), recipe.level, brain=native.given)
        return made, time.perf_counter() - started
    twin = _twin(job.path)
    if twin is not None and not recipe.settings.bias_field:
        return _normalized_anew(twin, native.volume, recipe.settings), twin.seconds
    made = _preprocessor(recipe).prepare(native.volume, recipe.settings, brain=native.given)
    return made, time.perf_counter() - started


def _levels(job: PrepareJob, native: _Native) -> PreparedCase:
    started = time.perf_counter()
    whole = _preprocessor(job.recipe).prepare(native.volume, job.recipe.settings, brain=native.given)
    made = at_levels(whole, native.volume, _template(job.recipe.template), job.levels)
    nothing = np.zeros_like(made.brain_mask)
    return PreparedCase("", "", made, nothing, nothing, seconds=time.perf_counter() - started)


def _losses(native: _Native, prepared: PreparedVolume, truth: np.ndarray) -> dict[str, Any]:
    """The truth before it came to the model grid, and how many of its lesions have no voxel left there."""
    labels, count = ndimage.label(native.gt_mask, structure=CONNECTIVITY_26)
    found = np.zeros(count + 1, dtype=bool)
    voxels = np.argwhere(native.gt_mask)
    if len(voxels):
        to_model = np.linalg.inv(prepared.model_affine) @ prepared.native_to_template @ native.volume.affine
        at = np.round(voxel_to_mm(to_model, voxels)).astype(int)
        inside = ((at >= 0) & (at < truth.shape)).all(axis=1)
        at, names = at[inside], labels[tuple(voxels[inside].T)]
        found[names[truth[tuple(at.T)]]] = True
    return {
        "native_ml": float(native.gt_mask.sum()) * native.volume.voxel_volume_mm3 / 1000,
        "native_lesions": int(count),
        "lost_lesions": int(count - found[1:].sum()),
    }


def _twin(path: Path) -> PreparedCase | None:
    """The same case as prepared in another normalisation, if it was."""
    others = (path.with_stem(name) for name in NORMALIZATIONS if name != path.stem)
    return next((load_case(other) for other in others if other.is_file()), None)


def _normalized_anew(twin: PreparedCase, volume: Volume, settings: PrepareSettings) -> PreparedVolume:
    """What preprocessing makes of the volume, with the brain mask and the alignment that it made before."""
    made, alignment = twin.prepared, alignment_of(twin.prepared)
    image = resample(volume.data[0], volume.affine, made.brain_mask.shape, made.model_affine, transform=alignment)
    normalized, _ = NORMALIZATIONS[settings.normalization](image, made.brain_mask)
    return replace(
        made,
        image=normalized[None],
        native_to_template=alignment,
        native_affine=volume.affine,
        native_shape=volume.shape,
    )


@lru_cache(maxsize=1)
def _template(folder: Path) -> Template:
    return Template.load(folder)


@lru_cache(maxsize=1)
def _extractor(folder: Path, device: str) -> BrainExtractor:
    return BrainExtractor.load(folder, device=device)


def _preprocessor(recipe: Recipe) -> Preprocessor:
    return Preprocessor(
        _template(recipe.template), lambda volume: _extractor(recipe.extractor, recipe.device).extract(volume)
    )
