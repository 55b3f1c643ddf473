"""A folder without a description: images and masks under the names that people commonly give them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from monailabel_app.errors import EvaluationFailed

from ..description_file import Keys
from .folder import folder_rows, select_rows
from .rows import Selection

_EXTENSIONS = (".nii.gz", ".nii", ".nrrd", ".mha")
_MASK_NAMES = ("mask", "lesion", "lesions", "label", "labels", "seg")
_NO_IMAGE = (*_MASK_NAMES, "brainmask", "brain")
PATTERNS = (
    "images/ID.nii.gz with labels/ID.nii.gz or masks/ID.nii.gz; or ID.nii.gz with ID_mask.nii.gz (or _lesion, _label, "
    "_seg) beside it; or PATIENT/flair.nii.gz (or t1, t2, ...) with PATIENT/mask.nii.gz (or lesion, label, seg); "
    "healthy scans in healthy/ID.nii.gz; .nii, .nrrd and .mha alike"
)


def read_plain(name: str, root: Path, modality: str, split: str | None) -> Selection:
    """The scans of a folder by the first of ``PATTERNS`` that finds any. Raises EvaluationFailed."""
    for values in _patterns(modality):
        keys = Keys({**values, "healthy_images": [f"healthy/{{id}}{e}" for e in _EXTENSIONS]}, name)
        rows = [row for row in folder_rows(keys, root) if row.healthy or not _is_mask(row.image.name)]
        if any(not row.healthy for row in rows):
            return select_rows(keys, root, rows, split, unlabelled="skip")
    if rows:
        return select_rows(keys, root, rows, split)
    raise EvaluationFailed(
        f"{name}: expected images and masks as one of: {PATTERNS}. Found none; describe the folder in a .yaml file"
    )


def _patterns(modality: str) -> list[dict[str, Any]]:
    sequences = (modality, modality.upper(), f"{modality.upper()}w")
    return [
        {
            "image": [f"images/{{id}}{e}" for e in _EXTENSIONS],
            "label": [f"{folder}/{{id}}{e}" for folder in ("labels", "masks") for e in _EXTENSIONS],
        },
        {
            "image": [f"{{id}}{e}" for e in _EXTENSIONS],
            "label": [f"{{id}}_{word}{e}" for word in _MASK_NAMES for e in _EXTENSIONS],
        },
        {
            "image": [f"{{patient}}/{sequence}{e}" for sequence in sequences for e in _EXTENSIONS],
            "label": [f"{{patient}}/{word}{e}" for word in _MASK_NAMES for e in _EXTENSIONS],
        },
    ]


def _is_mask(name: str) -> bool:
    stem = next((name[: -len(e)] for e in _EXTENSIONS if name.endswith(e)), name).casefold()
    return stem.endswith(tuple(f"_{word}" for word in _NO_IMAGE))
