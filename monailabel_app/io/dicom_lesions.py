"""The lesions of a finding as numbered segments, so that a report can refer to each one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from monailabel_app.errors import InvalidVolume
from monailabel_app.types import CONNECTIVITY_26, Finding, Lesion

MOST_SEGMENTS = 255
ALL_TOGETHER = "anomaly"


def number_lesions(finding: Finding) -> tuple[np.ndarray, dict[int, str]]:
    """The finding's mask with each lesion's ``index`` as its value, (x, y, z) uint16, and names for the segments.

    So written by ``write_dicom_seg`` every lesion is a segment of its own, which a report can refer to.
    Raises InvalidVolume when the mask does not consist of the lesions listed.
    """
    names = {lesion.index: segment_name(lesion.index) for lesion in finding.lesions}
    return _number(finding.mask, finding.affine, finding.lesions), names


def _number(mask: np.ndarray, affine: np.ndarray, lesions: Sequence[Lesion]) -> np.ndarray:
    numbered = np.zeros(mask.shape, dtype=np.uint16)
    found = ndimage.find_objects((mask > 0).view(np.uint8))
    # All work is on the box of the mask: a whole head in 64-bit numbers is a gigabyte.
    box = found[0] if found else (slice(0, 0),) * 3
    parts, count = ndimage.label(mask[box] > 0, structure=CONNECTIVITY_26)
    at = np.nonzero(parts)
    part = parts[at]
    sizes = np.bincount(part, minlength=count + 1)
    centres = np.stack([np.bincount(part, axis, count + 1)[1:] for axis in at], axis=1) / sizes[1:, None]
    centres += [side.start for side in box]
    voxel_ml = float(abs(np.linalg.det(np.asarray(affine, dtype=np.float64)[:3, :3]))) / 1000
    index_of = np.zeros(count + 1, dtype=np.uint16)
    for lesion in lesions if count else ():
        nearest = 1 + int(np.argmin(np.linalg.norm(centres - lesion.centroid_voxel, axis=1)))
        if index_of[nearest] == 0 and sizes[nearest] == round(lesion.volume_ml / voxel_ml):
            index_of[nearest] = lesion.index
    if len(lesions) != count or not index_of[1:].all():
        raise InvalidVolume(
            f"expected a mask of the {len(lesions)} lesions that are listed, got one of {count} other parts: "
            "send mask and lesions of the same run"
        )
    numbered[box] = index_of[parts]
    return numbered


def segments_of(
    mask: np.ndarray, affine: np.ndarray, lesions: Sequence[Lesion]
) -> tuple[np.ndarray, dict[int, str], dict[int, str]]:
    """What ``write_dicom_seg`` needs to draw a finding: label (x, y, z), names and labels of its segments.

    mask: (x, y, z), 0 = nothing; affine: (4, 4) voxel -> RAS mm; lesions: those of the mask. One segment per lesion
    up to ``MOST_SEGMENTS``, listed with its region. With more of them, or with a mask that is not made of the lesions
    listed, all are one segment: viewers hold a label map in 8 bits.
    """
    if 0 < len(lesions) <= MOST_SEGMENTS:
        try:
            label = _number(mask, affine, lesions)
        except InvalidVolume:
            pass
        else:
            names = {lesion.index: segment_name(lesion.index) for lesion in lesions}
            told = {lesion.index: f": {lesion.region}" if lesion.region else "" for lesion in lesions}
            return label, names, {index: name + told[index] for index, name in names.items()}
    return (mask > 0).astype(np.uint8), {1: ALL_TOGETHER}, {}


def segment_name(index: int) -> str:
    """Name of a lesion's segment, and its tracking identifier in reports."""
    return f"anomaly {index}"
