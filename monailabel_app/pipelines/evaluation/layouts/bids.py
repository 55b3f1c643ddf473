"""Layout ``bids``: images by suffix and entities, lesion masks in ``derivatives``, people in ``participants.tsv``."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from monailabel_app.errors import EvaluationFailed, InvalidSettings
from monailabel_app.io.healthy_list import HEALTHY_WORDS, STATUS_COLUMNS

from ..description_file import Keys, inside
from .rows import ROW_KEYS, Defaults, Row, Selection, select
from .table import table_rows

DESCRIPTION = "dataset_description.json"
KEYS = ROW_KEYS | {"suffix", "entities", "masks", "brain_masks"}
SUFFIXES = {"t1": "T1w", "t1c": "T1w", "t2": "T2w", "flair": "FLAIR", "pd": "PDw"}
LESION_WORDS = (
    "lesion", "lesions", "L", "T1lesion", "tumor", "tumour", "stroke", "infarct", "wmh", "edema", "hemorrhage",
    "haemorrhage", "anomaly", "abnormality",
)  # fmt: skip
_EXTENSIONS = (".nii.gz", ".nii")
_OWN_SPACE = {"", "orig", "native", "individual", "scanner"}
# What tells two images of one person apart. A mask may leave it unsaid, but not say something else.
_IDENTITY = ("acq", "ce", "rec", "dir", "run", "echo", "part")
_MOST_FILES = 1_000_000


@dataclass(frozen=True)
class Named:
    """A file by its BIDS name: ``sub-01_ses-1_run-2_FLAIR.nii.gz``."""

    path: Path
    entities: Mapping[str, str]
    suffix: str
    stem: str


def read_bids(keys: Keys, root: Path, split: str | None) -> Selection:
    """The images of one suffix, each with the masks that belong to it.

    A mask belongs to an image of the same subject and session when no other entity contradicts, and when it lies in
    the image's space. Without ``masks`` those count whose label or desc names a lesion. Raises EvaluationFailed.
    """
    modality = keys.text("modality")
    suffix = keys.text("suffix", SUFFIXES.get(modality, ""))
    if not suffix.isalnum():
        raise keys.error("suffix", "the BIDS suffix of the images such as FLAIR", repr(suffix[:40]))
    wanted = _wanted(keys.part("entities"))
    images = sorted((i for i in _images(root, suffix) if _fits(i, wanted)), key=lambda i: i.path.name)
    if "ce" not in wanted:
        # A contrast agent makes another sequence of T1.
        images = [image for image in images if ("ce" in image.entities) == (modality == "t1c")]
    if not images:
        raise EvaluationFailed(
            f"{keys.file}: expected images sub-*/[ses-*/]anat/*_{suffix}.nii.gz in {root} with the entities asked for, "
            "found none; correct suffix, entities or modality"
        )
    lesions = _masks(keys, "masks", root, ("mask", "roi", "dseg"), LESION_WORDS)
    brains = _masks(keys, "brain_masks", root, ("mask",), ("brain",)) if keys.has("brain_masks") else {}
    people = _people(root)
    columns = {name for person in people.values() for name in person}
    status = None if keys.has("healthy") else next((name for name in STATUS_COLUMNS if name in columns), None)
    rows = []
    for image in images:
        subject = image.entities["sub"]
        person = people.get(subject, {})
        labels = tuple(mask.path for mask in lesions.get(subject, ()) if _belongs(mask, image))
        brain = next((mask.path for mask in brains.get(subject, ()) if _belongs(mask, image)), None)
        if keys.has("brain_masks") and brain is None:
            raise EvaluationFailed(f"{keys.file}: brain_masks: expected a mask for {image.path.name}, found none")
        healthy = None
        if status is not None:
            healthy = not labels and person.get(status, "").casefold().replace("_", " ") in HEALTHY_WORDS
        fields = {**dict.fromkeys(columns, ""), **person, **dict.fromkeys(wanted, ""), **image.entities}
        fields |= {"patient": f"sub-{subject}", "name": image.stem, "path": image.path.relative_to(root).as_posix()}
        rows.append(Row(image.path.name, fields, image.path, labels, brain, healthy))
    names = {name for row in rows for name in row.fields}
    rows = [Row(r.where, {**dict.fromkeys(names, ""), **r.fields}, r.image, r.labels, r.brain, r.healthy) for r in rows]
    return select(keys, root, rows, split, Defaults("{name}", "{patient}", attributes=("age", "sex", "site")))


def modality_of(root: Path) -> str:
    """The sequence of a BIDS folder that holds one kind of images only. Raises InvalidSettings otherwise."""
    found = [word for word in ("t1", "t2", "flair", "pd") if any(_images(root, SUFFIXES[word]))]
    if len(found) != 1:
        raise InvalidSettings(
            f"{root.name}: expected images of one sequence in a BIDS folder without a description, got "
            f"{', '.join(found) or 'none'}; give the modality"
        )
    return found[0]


def about(root: Path) -> dict[str, str]:
    """Name and licence as ``dataset_description.json`` has them."""
    try:
        path = root / DESCRIPTION
        said = json.loads(path.read_text(encoding="utf-8-sig")) if path.stat().st_size < 2**20 else {}
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(said, dict):
        return {}
    texts = {"title": said.get("Name"), "licence": said.get("License")}
    return {key: value.strip()[:200] for key, value in texts.items() if isinstance(value, str) and value.strip()}


def _images(root: Path, suffix: str) -> Iterable[Named]:
    for folder in ("sub-*/anat", "sub-*/ses-*/anat"):
        for path in sorted(root.glob(f"{folder}/sub-*_{suffix}.nii*")):
            named = parse(path)
            if named is not None and named.suffix == suffix:
                yield named


def parse(path: Path) -> Named | None:
    """Entities and suffix of a file name; None for one that is not named as BIDS asks."""
    extension = next((e for e in _EXTENSIONS if path.name.endswith(e)), None)
    if extension is None:
        return None
    stem = path.name[: -len(extension)]
    *pairs, suffix = stem.split("_")
    entities = dict(pair.split("-", 1) for pair in pairs if "-" in pair)
    return Named(path, entities, suffix, stem) if entities.get("sub") and suffix and "-" not in suffix else None


def _wanted(part: Keys) -> dict[str, tuple[str, ...]]:
    return {str(name): part.words(name) for name in part.values}


def _fits(named: Named, wanted: Mapping[str, tuple[str, ...]]) -> bool:
    return all(named.entities.get(name, "") in values for name, values in wanted.items())


def _masks(
    keys: Keys, key: str, root: Path, suffixes: tuple[str, ...], words: tuple[str, ...]
) -> dict[str, list[Named]]:
    """The masks under a part of the description by subject."""
    part = keys.part(key)
    part.only({"folder", "suffix", "entities"})
    folder = inside(root, part.text("folder", "derivatives"), f"{keys.file}: {key}.folder")
    suffixes = part.texts("suffix") or suffixes
    wanted = _wanted(part.part("entities")) if part.has("entities") else None
    lower = {word.casefold() for word in words}
    found: dict[str, list[Named]] = defaultdict(list)
    for path in _files(folder, keys.file):
        named = parse(path)
        if named is None or named.suffix not in suffixes:
            continue
        named_so = {named.entities.get(name, "").casefold() for name in ("label", "desc")}
        if _fits(named, wanted) if wanted is not None else bool(named_so & lower):
            found[named.entities["sub"]].append(named)
    if part.values and not found:
        raise EvaluationFailed(f"{keys.file}: {key}: expected masks *_{suffixes[0]}.nii.gz in {folder}, found none")
    return found


def _files(folder: Path, file: str) -> Iterable[Path]:
    count = 0
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            count += 1
            if count > _MOST_FILES:
                raise EvaluationFailed(f"{file}: expected at most {_MOST_FILES} files in {folder}; say masks.folder")
            if name.startswith("sub-"):
                yield Path(parent, name)


def _belongs(mask: Named, image: Named) -> bool:
    one, other = mask.entities, image.entities
    space = one.get("space", "")
    same_space = space == other.get("space", "") or ("space" not in other and space in {*_OWN_SPACE, image.suffix})
    return (
        one.get("ses") == other.get("ses")
        and same_space
        and all(name not in one or one[name] == other.get(name) for name in _IDENTITY)
    )


def _people(root: Path) -> dict[str, dict[str, str]]:
    """The rows of ``participants.tsv`` by subject, without ``sub-``; empty where there is no such table."""
    path = root / "participants.tsv"
    if not path.is_file():
        return {}
    rows = table_rows(path, "\t", "participants.tsv")
    if "participant_id" not in rows[0][1]:
        raise EvaluationFailed("participants.tsv: expected a column participant_id, found none")
    return {row["participant_id"].removeprefix("sub-"): row for _, row in rows}
