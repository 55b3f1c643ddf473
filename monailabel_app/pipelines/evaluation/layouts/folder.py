"""Layout ``folder``: a pattern finds the images, and its fields say where label and brain mask of each lie.

Beside the pattern's own fields there are ``path`` and ``folder`` of the image, ``name`` (its file without extension)
and ``scan`` (``id``, else all fields joined), which is the scan's id unless the description says otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from monailabel_app.io.healthy_list import without_extension

from ..description_file import Keys
from .rows import ROW_KEYS, Defaults, Row, Selection, select
from .templates import matches

KEYS = ROW_KEYS | {"image", "label", "healthy_images"}


def read_folder(keys: Keys, root: Path, split: str | None) -> Selection:
    """The scans that ``image`` finds, and as healthy ones those that ``healthy_images`` finds."""
    if not keys.texts("image"):
        raise keys.error("image", "a pattern such as '{patient}/flair.nii.gz'", "nothing")
    return select_rows(keys, root, folder_rows(keys, root), split)


def folder_rows(keys: Keys, root: Path) -> list[Row]:
    """A row per image that the patterns find, healthy ones last."""
    healthy = list(_found(keys, "healthy_images", root))
    known = {row.image for row in healthy}
    return [row for row in _found(keys, "image", root) if row.image not in known] + healthy


def select_rows(keys: Keys, root: Path, rows: list[Row], split: str | None, unlabelled: str = "error") -> Selection:
    """The scans of some rows of a folder."""
    names = {name for row in rows for name in row.fields}
    # A pattern of the healthy images may name other fields; those of the other one are unknown then.
    rows = [Row(r.where, {**dict.fromkeys(names, ""), **r.fields}, r.image, r.labels, None, r.healthy) for r in rows]
    return select(keys, root, rows, split, Defaults("{scan}", "{patient}" if "patient" in names else None, unlabelled))


def _found(keys: Keys, key: str, root: Path) -> Iterator[Row]:
    healthy = key == "healthy_images"
    for text in keys.texts(key):
        for path, fields in matches(keys, key, text, root):
            where = path.relative_to(root).as_posix()
            name = without_extension(path.name)
            scan = fields.get("id") or "_".join(fields.values()) or name
            parts = {"path": where, "folder": path.parent.relative_to(root).as_posix(), "name": name, "scan": scan}
            yield Row(where, parts | fields, path, () if healthy else None, None, healthy or None)
