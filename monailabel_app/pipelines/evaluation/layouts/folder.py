"""Layout ``folder``: a pattern finds the images, and its fields say where label and brain mask of each lie."""

from __future__ import annotations

from pathlib import Path

from ..description_file import Keys
from .rows import ROW_KEYS, Defaults, Row, Selection, select
from .templates import matches

KEYS = ROW_KEYS | {"image", "label", "healthy_images"}


def read_folder(
    keys: Keys, root: Path, split: str | None, *, unlabelled: str = "error", notes: tuple[str, ...] = ()
) -> Selection:
    """The scans that ``image`` finds, and as healthy ones those that ``healthy_images`` finds."""
    image = keys.text("image", longest=400)
    rows = [_row(path, fields, root) for path, fields in matches(keys, "image", image, root)]
    if keys.has("healthy_images"):
        pattern = keys.text("healthy_images", longest=400)
        healthy = [_row(path, fields, root, True) for path, fields in matches(keys, "healthy_images", pattern, root)]
        paths = {row.image for row in healthy}
        rows = [row for row in rows if row.image not in paths] + healthy
    names = {name for row in rows for name in row.fields}
    default = "{id}" if "id" in names else "{patient}" if "patient" in names else "{path}"
    patient = "{patient}" if all("patient" in row.fields for row in rows) else None
    # Patterns of their own may name fewer fields: an empty value is one that is not known.
    rows = [Row(r.where, {**dict.fromkeys(names, ""), **r.fields}, r.image, r.labels, None, r.healthy) for r in rows]
    return select(keys, root, rows, split, Defaults(default, patient, unlabelled, notes=list(notes)))


def _row(path: Path, fields: dict[str, str], root: Path, healthy: bool | None = None) -> Row:
    relative = path.relative_to(root).as_posix()
    return Row(relative, {"path": relative, **fields}, path, () if healthy else None, None, healthy)
