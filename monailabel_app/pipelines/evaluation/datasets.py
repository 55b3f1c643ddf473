"""Data sets for the evaluation: shipped descriptions, a user's own, or a folder whose layout is recognised.

Reading one costs the listing of its files; no image is opened.
"""

from __future__ import annotations

import difflib
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from monailabel_app.errors import AnomalyAppError, EvaluationFailed, InvalidSettings

from .dataset_types import Dataset, DatasetScan, ImplantRule, Picture, describe
from .description_file import WORD, Keys, absolute, inside, read_description
from .layouts import bids, folder, plain, studies, table
from .layouts.rows import COMMON_KEYS, Selection

__all__ = [
    "Dataset", "DatasetScan", "ImplantRule", "Picture", "describe", "described", "load_dataset", "overview",
]  # fmt: skip

DESCRIPTIONS = Path(__file__).resolve().parents[2] / "datasets"
_IMPLANTED_KEYS = COMMON_KEYS | {"of", "split", "shapes", "per_scan", "contrast", "seed"}
_LAYOUTS = {
    "folder": (folder.KEYS, folder.read_folder),
    "csv": (table.KEYS, table.read_table),
    "bids": (bids.KEYS, bids.read_bids),
    "datastore": (studies.KEYS, studies.read_studies),
}


@lru_cache(maxsize=1)
def _described() -> dict[str, Path]:
    return {path.stem: path for path in sorted(DESCRIPTIONS.glob("*.yaml"))}


def described() -> dict[str, Path]:
    """The descriptions that come with the app, by name."""
    return dict(_described())


def load_dataset(
    spec: str | Path, *, data_root: Path | None, split: str | None = None, modality: str | None = None
) -> Dataset:
    """A data set by the name of a shipped description, from a .yaml file, or from a folder.

    data_root: the folder that the shipped descriptions' data lie in; the root in a user's own description is absolute
    or starts from its file. split: None takes the description's default. modality: of a folder's scans; of a described
    set it must be the description's.

    Raises InvalidSettings for what is said wrongly, and EvaluationFailed for data that are not as described.
    """
    split = split or None
    name = str(spec)
    if name in _described():
        return _from_file(_described()[name], data_root, split, modality, shipped=True)
    path = absolute(Path(spec))
    if path.suffix.lower() in (".yaml", ".yml") and path.is_file():
        return _from_file(path, data_root, split, modality, shipped=False)
    if path.is_dir():
        return _from_folder(path, split, modality)
    close = difflib.get_close_matches(name, _described(), n=1)
    raise InvalidSettings(
        f"expected a data set out of {', '.join(_described())}, a .yaml file or a folder, got {name[:200]!r}"
        f"{f'; did you mean {close[0]}?' if close else ''}"
    )


def overview(data_root: Path | None) -> list[dict[str, Any]]:
    """Each shipped description as ``describe`` has it; ``available`` false with a ``reason`` where data are missing."""
    listed = []
    for name, path in _described().items():
        try:
            listed.append({**describe(load_dataset(name, data_root=data_root)), "available": True})
        except AnomalyAppError as error:
            keys = read_description(path)
            said = {key: keys.text(key, "") for key in ("title", "modality", "licence")}
            listed.append({"name": name, **said, "available": False, "reason": str(error)})
    return listed


def _from_file(
    path: Path, data_root: Path | None, split: str | None, modality: str | None, *, shipped: bool
) -> Dataset:
    keys = read_description(path, own=not shipped)
    layout = keys.choice("layout", (*_LAYOUTS, "implanted"))
    keys.only(_IMPLANTED_KEYS if layout == "implanted" else _LAYOUTS[layout][0])
    root = _root_of(keys, path, data_root, shipped)
    said = keys.text("modality", longest=32)
    if not WORD.fullmatch(said):
        raise keys.error("modality", "a short word in small letters such as t1, t2 or flair", repr(said))
    if modality is not None and modality.lower() != said:
        raise InvalidSettings(f"{keys.file}: expected its modality {said}, got {modality[:40]!r}")
    if layout == "implanted":
        return _implanted(keys, path, root, data_root, split, shipped)
    selection = _LAYOUTS[layout][1](keys, root, split)
    return _finished(keys, path.stem, root, selection)


def _root_of(keys: Keys, path: Path, data_root: Path | None, shipped: bool) -> Path:
    said = keys.text("root", ".")
    if shipped:
        if data_root is None:
            raise InvalidSettings(f"{keys.file}: expected the folder of the data (--data-root), got none")
        root = inside(absolute(data_root), said, f"{keys.file}: root")
    else:
        root = keys.path("root", path.parent) if keys.has("root") else path.parent
    if not root.is_dir():
        raise EvaluationFailed(
            f"{keys.file}: root: expected a folder {root}, found none; "
            f"{'give the folder that holds it with --data-root' if shipped else 'correct root'}"
        )
    return root


def _finished(keys: Keys, stem: str, root: Path, selection: Selection) -> Dataset:
    tune = keys.text("tune_split") if keys.has("tune_split") else None
    if tune is not None and not selection.splits.get(tune):
        raise keys.error("tune_split", f"a split out of {', '.join(selection.splits) or 'none'}", repr(tune))
    slices, level, picture = _slices(keys)
    name = keys.text("name", stem, longest=64)
    return Dataset(
        name=name,
        title=keys.text("title", name, longest=200),
        modality=keys.text("modality", longest=32),
        licence=keys.text("licence", "not stated", longest=500),
        root=root,
        split=selection.split,
        scans=selection.scans,
        slices=slices,
        level_mm=level,
        tune_split=tune,
        picture=picture,
        splits=selection.splits,
        notes=selection.notes,
        description=keys.text("description", ""),
        citation=keys.text("citation", ""),
    )


def _slices(keys: Keys) -> tuple[bool, float | None, Picture | None]:
    if not keys.has("slices"):
        return False, None, None
    part = keys.part("slices")
    part.only({"level_mm", "pixel_mm", "left_is_left"})
    level = part.number("level_mm", None, -200, 200)
    if level is None:
        raise part.error("level_mm", "the height of the slices in the template in mm", "nothing")
    picture = Picture(part.number("pixel_mm", None, 0.05, 20), part.flag("left_is_left", False))
    return True, level, picture


def _implanted(
    keys: Keys, path: Path, root: Path, data_root: Path | None, split: str | None, shipped: bool
) -> Dataset:
    if keys.has("slices") or keys.has("tune_split"):
        raise keys.error("layout", "no slices and no tune_split with layout implanted", "one of them")
    if keys.has("split") and not isinstance(keys.values["split"], str):
        raise keys.error("split", "the name of a split of the healthy set", "something else")
    wanted = split or (keys.text("split") if keys.has("split") else None)
    of = keys.text("of", longest=400)
    source = _described().get(of) or keys.path("of", path.parent)
    if not source.exists():
        raise keys.error("of", f"a set out of {', '.join(_described())}, a .yaml file or a folder", repr(of[:80]))
    if source.is_file() and read_description(source).values.get("layout") == "implanted":
        raise keys.error("of", "a set of real healthy scans", "one that is itself implanted")
    source = of if of in _described() else source
    base = load_dataset(source, data_root=data_root, split=wanted, modality=keys.text("modality"))
    if not base.healthy or base.slices:
        raise keys.error("of", "a set of volumes with healthy scans", f"{base.name}, which has none")
    shapes = keys.path("shapes", root)
    if not any(shapes.glob("*.nii.gz")):
        raise EvaluationFailed(f"{keys.file}: shapes: expected lesion shapes (*.nii.gz) in {shapes}, found none")
    contrast = keys.values.get("contrast", [0.10, 0.40])
    plain = isinstance(contrast, list) and len(contrast) == 2 and all(type(v) in (int, float) for v in contrast)
    if not plain or not 0 < contrast[0] <= contrast[1] <= 1:
        raise keys.error("contrast", "two numbers above 0 and at most 1, the smaller first", repr(contrast)[:60])
    rule = ImplantRule(
        shapes,
        keys.whole("per_scan", 2, 1, 100),
        (float(contrast[0]), float(contrast[1])),
        keys.whole("seed", 7, 0, 2**31),
    )
    made = _finished(keys, path.stem, root, Selection(base.healthy, base.split, base.splits, base.notes))
    return replace(made, implants=rule)


def _from_folder(path: Path, split: str | None, modality: str | None) -> Dataset:
    """BIDS and MONAI Label's studies are known by their files; otherwise the names of the files say what they are."""
    is_bids, is_studies = (path / bids.DESCRIPTION).is_file(), (path / studies.TABLE).is_file()
    if modality is None and is_bids and not is_studies:
        modality = bids.modality_of(path)
    modality = (modality or "").lower()
    if not WORD.fullmatch(modality):
        raise InvalidSettings(
            f"{path.name}: expected the sequence of the folder's scans (t1, t2, flair, ...), got {modality[:40]!r}; "
            "give the modality, or describe the folder in a .yaml file"
        )
    values: dict[str, Any] = {"modality": modality, "description": "A folder as it is, without a description."}
    if is_studies:
        keys = Keys(values, path.name)
        return _finished(keys, path.name, path, studies.read_studies(keys, path, split))
    if is_bids:
        keys = Keys({**values, **bids.about(path), "unlabelled": "skip"}, path.name)
        return _finished(keys, path.name, path, bids.read_bids(keys, path, split))
    return _finished(Keys(values, path.name), path.name, path, plain.read_plain(path.name, path, modality, split))
