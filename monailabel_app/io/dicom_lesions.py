"""The lesions of a finding as numbered segments, so that a report can refer to each one."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from monailabel_app.errors import InvalidVolume
from monailabel_app.types import Finding

_TOUCHING = np.ones((3, 3, 3), dtype=bool)


def number_lesions(finding: Finding) -> tuple[np.ndarray, dict[int, str]]:
    """The finding's mask with each lesion's ``index`` as its value, (x, y, z) uint16, and names for the segments.

    So written by ``write_dicom_seg`` every lesion is a segment of its own, which a report can refer to.
    Raises InvalidVolume when the mask does not consist of the lesions listed.
    """
    numbered = np.zeros(finding.mask.shape, dtype=np.uint16)
    found = ndimage.find_objects((finding.mask > 0).view(np.uint8))
    # All work is on the box of the mask: a whole head in 64-bit numbers is a gigabyte.
    box = found[0] if found else (slice(0, 0),) * 3
    parts, count = ndimage.label(finding.mask[box] > 0, structure=_TOUCHING)
    at = np.nonzero(parts)
    part = parts[at]
    sizes = np.bincount(part, minlength=count + 1)
    centres = np.stack([np.bincount(part, axis, count + 1)[1:] for axis in at], axis=1) / sizes[1:, None]
    centres += [side.start for side in box]
    voxel_ml = float(abs(np.linalg.det(np.asarray(finding.affine, dtype=np.float64)[:3, :3]))) / 1000
    index_of = np.zeros(count + 1, dtype=np.uint16)
    for lesion in finding.lesions if count else ():
        nearest = 1 + int(np.argmin(np.linalg.norm(centres - lesion.centroid_voxel, axis=1)))
        if index_of[nearest] == 0 and sizes[nearest] == round(lesion.volume_ml / voxel_ml):
            index_of[nearest] = lesion.index
    if len(finding.lesions) != count or not index_of[1:].all():
        raise InvalidVolume(
            f"expected a mask of the {len(finding.lesions)} lesions that are listed, got one of {count} other parts: "
            "send mask and lesions of the same run"
        )
    numbered[box] = index_of[parts]
    return numbered, {lesion.index: segment_name(lesion.index) for lesion in finding.lesions}


def segment_name(index: int) -> str:
    """Name of a lesion's segment, and its tracking identifier in reports."""
    return f"anomaly {index}"
