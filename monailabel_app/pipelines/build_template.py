"""Build the template from healthy scans: align, average, take the majority of the region labels."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

from monailabel_app.preprocessing.align import align_brain
from monailabel_app.preprocessing.normalize import normalize_intensity
from monailabel_app.preprocessing.template import TEMPLATE_AFFINE, TEMPLATE_SHAPE, Template

from .ixi import IxiScan, list_ixi

_FIRST_ROUND = 40


@dataclass(frozen=True)
class _Target:
    image: np.ndarray
    mask: np.ndarray


def build_template(ixi_folder: Path, pose_image: Path, *, workers: int = 2) -> tuple[Template, list[float]]:
    """Average the ``ixi_t1`` train brains in two rounds.

    pose_image: a skull-stripped brain in standard space; only its position and orientation are used: a first mean
    of 40 brains laid over it gives the pose, and that mean, brought back to the subjects' mean size, is what all
    brains are aligned to in the second round. So one template voxel is 2 mm of an average brain, and the origin is
    near the anterior commissure.

    Returns the template and the Dice of every aligned brain mask with the first mean's mask.
    """
    scans = list_ixi(ixi_folder, "train")
    pose = _pose_target(pose_image)
    with ProcessPoolExecutor(workers) as pool:
        matrices = list(pool.map(_align_to, [(scan, pose) for scan in scans[:_FIRST_ROUND]]))
        scale = float(np.mean([np.linalg.det(m[:3, :3]) ** (-1 / 3) for m, _ in matrices]))
        rescaled = [np.diag([scale, scale, scale, 1.0]) @ matrix for matrix, _ in matrices]
        moved = list(pool.map(_move_brain, zip(scans[:_FIRST_ROUND], rescaled, strict=True)))
        first = _Target(
            np.mean([image for image, _, _ in moved], axis=0), np.mean([m for _, m, _ in moved], axis=0) >= 0.5
        )
        aligned = list(pool.map(_align_to, [(scan, first) for scan in scans]))
        moved = list(pool.map(_move_brain, zip(scans, [matrix for matrix, _ in aligned], strict=True)))
    probability = np.mean([mask for _, mask, _ in moved], axis=0).astype(np.float32)
    regions = _majority([labels for _, _, labels in moved])
    regions[probability < 0.5] = 0
    mean = np.mean([image for image, _, _ in moved], axis=0).astype(np.float32)
    return Template(mean, probability, regions, TEMPLATE_AFFINE), [dice for _, dice in aligned]


def _pose_target(path: Path) -> _Target:
    image = nib.as_closest_canonical(nib.load(path))
    data = image.get_fdata(dtype=np.float32)
    smooth = ndimage.gaussian_filter(data, 0.8)
    to_voxel = np.linalg.inv(image.affine)
    mask = _resample((data > 0).astype(np.float32), to_voxel, 1) > 0.5
    return _Target(normalize_intensity(_resample(smooth, to_voxel, 1), mask)[0], mask)


def _brain(scan: IxiScan) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    volume, mask = scan.volume(), scan.brain_mask()
    return normalize_intensity(volume.data[0], mask)[0], mask, volume.affine


def _align_to(job: tuple[IxiScan, _Target]) -> tuple[np.ndarray, float]:
    scan, target = job
    image, mask, affine = _brain(scan)
    found = align_brain(image, affine, mask, target.image, TEMPLATE_AFFINE, target.mask)
    return found.matrix, found.mask_dice


def _move_brain(job: tuple[IxiScan, np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    scan, matrix = job
    image, mask, affine = _brain(scan)
    to_voxel = np.linalg.inv(affine) @ np.linalg.inv(matrix)
    labels = _resample(scan.region_labels().astype(np.float32), to_voxel, 0).astype(np.uint8)
    return _resample(image, to_voxel, 1), _resample(mask.astype(np.float32), to_voxel, 1), labels


def _resample(data: np.ndarray, mm_to_voxel: np.ndarray, order: int) -> np.ndarray:
    matrix = mm_to_voxel @ TEMPLATE_AFFINE
    return ndimage.affine_transform(
        data, matrix[:3, :3], matrix[:3, 3], output_shape=TEMPLATE_SHAPE, order=order, output=np.float32
    )


def _majority(labels: list[np.ndarray]) -> np.ndarray:
    """Most frequent label per voxel, counted label by label so that memory stays at two count volumes."""
    stack = np.stack(labels)
    best, count = np.zeros(stack.shape[1:], np.uint8), np.zeros(stack.shape[1:], np.int16)
    for value in np.unique(stack):
        votes = (stack == value).sum(axis=0, dtype=np.int16)
        best = np.where(votes > count, value, best)
        count = np.maximum(votes, count)
    return best.astype(np.uint8)
