"""Rigid then affine alignment of a brain to the template, with SimpleITK, coarse to fine."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk

from monailabel_app.errors import AlignmentFailed

_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
_SEED = 20240229
# A chin-down or chin-up head can trap the search; these starts are tried until the masks agree.
_PITCHES_DEG = (0.0, -25.0, 25.0)
_GOOD_DICE = 0.89
_ASTRAY_DICE = 0.05
_THREADS_LOCK = threading.Lock()


@dataclass(frozen=True)
class Alignment:
    """An affine map from moving RAS mm to fixed RAS mm, and how well the brains overlap after it."""

    matrix: np.ndarray
    mask_dice: float
    metric: float


def align_brain(
    moving: np.ndarray,
    moving_affine: np.ndarray,
    moving_mask: np.ndarray,
    fixed: np.ndarray,
    fixed_affine: np.ndarray,
    fixed_mask: np.ndarray,
) -> Alignment:
    """Find the affine transform that lays ``moving`` over ``fixed``.

    Both images are (x, y, z) brains, zero outside their masks, on grids whose axes are those of RAS. Mutual
    information (Mattes et al. 2003), so that other sequences align to a T1 template too, if less precisely; moments
    first, then rigid, then affine, each from coarse to fine. Deterministic: the sample points are seeded and one thread
    adds up the metric.

    Raises AlignmentFailed when the aligned brain masks hardly overlap.
    """
    fixed_image, moving_image = _to_sitk(fixed, fixed_affine), _to_sitk(moving, moving_affine)
    fixed_sitk_mask = _to_sitk(fixed_mask.astype(np.uint8), fixed_affine)
    moving_sitk_mask = _to_sitk(moving_mask.astype(np.uint8), moving_affine)

    # The volumes of the two masks give the scale: without it the affine search starts too far from its optimum
    # for large or small heads.
    scale = (_mask_mm3(moving_mask, moving_affine) / _mask_mm3(fixed_mask, fixed_affine)) ** (1 / 3)
    center = np.array(_mask_center(fixed_sitk_mask))
    shift = np.array(_mask_center(moving_sitk_mask)) - center
    target = sitk.GetArrayViewFromImage(fixed_sitk_mask) > 0

    best: tuple[float, sitk.AffineTransform, float] | None = None
    for pitch in _PITCHES_DEG:
        start = sitk.Euler3DTransform(center.tolist(), np.deg2rad(pitch), 0.0, 0.0, shift.tolist())
        rigid, _ = _optimise(
            fixed_image, moving_image, fixed_sitk_mask, start, shrink=(4,), smooth_mm=(4.0,), iterations=100
        )
        affine = sitk.AffineTransform(3)
        affine.SetCenter(center.tolist())
        affine.SetMatrix((scale * np.array(rigid.GetMatrix())).tolist())
        affine.SetTranslation(rigid.GetTranslation())
        scaled = sitk.AffineTransform(affine)
        affine, metric = _optimise(
            fixed_image, moving_image, fixed_sitk_mask, affine, shrink=(4, 2), smooth_mm=(4.0, 2.0), iterations=200
        )
        dice = _mask_dice(moving_sitk_mask, fixed_sitk_mask, target, affine)
        # The affine search can walk away from a good start; then its start is the better answer.
        start_dice = _mask_dice(moving_sitk_mask, fixed_sitk_mask, target, scaled)
        if dice < start_dice - _ASTRAY_DICE:
            dice, affine = start_dice, scaled
        if best is None or dice > best[0]:
            best = dice, affine, float(metric)
        if dice >= _GOOD_DICE:
            break
    dice, affine, metric = best
    if dice < 0.6:
        raise AlignmentFailed(
            f"expected the aligned brain to cover the template (Dice of the masks at least 0.6), got {dice:.2f}; "
            "check that the scan shows a whole brain and that its orientation is stored correctly"
        )
    return Alignment(matrix=np.linalg.inv(_to_ras(affine)), mask_dice=dice, metric=metric)


def _optimise(fixed, moving, fixed_mask, transform, *, shrink, smooth_mm, iterations):
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(32)
    method.SetMetricFixedMask(fixed_mask)
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentagePerLevel([min(1.0, 0.12 * s) for s in shrink], _SEED)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(
        learningRate=2.0, minStep=0.002, numberOfIterations=iterations, relaxationFactor=0.7
    )
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel(list(shrink))
    method.SetSmoothingSigmasPerLevel(list(smooth_mm))
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOn()
    method.SetInitialTransform(transform, inPlace=True)
    try:
        with _one_thread():
            method.Execute(fixed, moving)
    except RuntimeError as error:
        raise AlignmentFailed(
            "expected the registration to converge, but no overlap between scan and template was left; "
            "check that the scan shows a whole brain"
        ) from error
    return transform, method.GetMetricValue()


def _mask_dice(moving_mask, fixed_mask, target: np.ndarray, transform) -> float:
    """Dice of the moved brain mask with ``target``, the fixed one as an array."""
    moved = sitk.Resample(moving_mask, fixed_mask, transform, sitk.sitkNearestNeighbor)
    overlap = sitk.GetArrayViewFromImage(moved) > 0
    return 2.0 * float((overlap & target).sum()) / max(float(overlap.sum() + target.sum()), 1.0)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Run ITK on one thread: with more, the metric's sums are added in varying order and no run repeats exactly.

    The per-filter setting does not reach the metric's own threader, only the global default does.
    """
    with _THREADS_LOCK:
        before = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
        try:
            yield
        finally:
            sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(before)


def _to_sitk(data: np.ndarray, affine: np.ndarray) -> sitk.Image:
    lps = _LPS @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    array = data.astype(np.float32) if data.dtype != np.uint8 else data
    image = sitk.GetImageFromArray(np.ascontiguousarray(array.transpose(2, 1, 0)))
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    return image


def _to_ras(transform: sitk.AffineTransform) -> np.ndarray:
    """The (fixed -> moving) ITK transform as a 4x4 matrix in RAS mm."""
    matrix = np.array(transform.GetMatrix()).reshape(3, 3)
    center, translation = np.array(transform.GetCenter()), np.array(transform.GetTranslation())
    lps = np.eye(4)
    lps[:3, :3] = matrix
    lps[:3, 3] = center + translation - matrix @ center
    return _LPS @ lps @ _LPS


def _mask_mm3(mask: np.ndarray, affine: np.ndarray) -> float:
    return max(float(mask.sum()), 1.0) * float(abs(np.linalg.det(affine[:3, :3])))


def _mask_center(mask: sitk.Image) -> tuple[float, ...]:
    shape = sitk.LabelShapeStatisticsImageFilter()
    shape.Execute(mask)
    if 1 not in shape.GetLabels():
        raise AlignmentFailed("expected a brain mask with voxels in it, got an empty one; check the brain extraction")
    return shape.GetCentroid(1)
