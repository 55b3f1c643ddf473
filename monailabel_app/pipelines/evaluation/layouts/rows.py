"""From rows of named fields (columns of a table, parts of a file name, entities) to scans. Every layout ends here."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from monailabel_app.errors import EvaluationFailed
from monailabel_app.io.healthy_list import HEALTHY_WORDS, NOT_STATED

from ..dataset_types import EXTRACT, NONZERO, DatasetScan
from ..description_file import Keys, require_files
from .templates import Template

# What every description may say, whatever its layout.
COMMON_KEYS = frozenset(
    {
        "name", "title", "description", "modality", "licence", "citation", "root", "layout", "tune_split", "slices",
    }
)  # fmt: skip
ROW_KEYS = COMMON_KEYS | {
    "id", "patient", "brain", "brain_holds", "healthy", "unlabelled", "missing", "split", "attributes",
}  # fmt: skip
_MOST_SCANS = 100_000
_LONGEST_ID = 160
_UNSAFE = re.compile(r"[/\\\x00-\x1f]")


@dataclass(frozen=True)
class Row:
    """What a layout found out about one scan. where: for messages. image, labels, brain: None asks the templates.

    healthy: None asks the description's rule.
    """

    where: str
    fields: Mapping[str, str]
    image: Path | None = None
    labels: tuple[Path, ...] | None = None
    brain: Path | None = None
    healthy: bool | None = None


@dataclass(frozen=True)
class Selection:
    """The scans of one split. splits: number of scans in each. notes: what was left out, in sentences."""

    scans: tuple[DatasetScan, ...]
    split: str | None
    splits: Mapping[str, int]
    notes: tuple[str, ...] = ()


@dataclass
class Defaults:
    """What a layout says where the description does not: templates of id and patient, what becomes of the rest."""

    id: str
    patient: str | None = None
    unlabelled: str = "error"
    missing: str = "error"
    attributes: tuple[str, ...] = ()
    notes: list[str] = field(default_factory=list)


def select(keys: Keys, root: Path, rows: list[Row], split: str | None, defaults: Defaults) -> Selection:
    """The scans that the rows of one split name.

    Raises InvalidSettings (a key, a split that is not there) and EvaluationFailed (files that are not there, an id
    twice, scans without label and verdict, no scan at all).
    """
    if not rows:
        raise EvaluationFailed(f"{keys.file}: expected scans, found none in {root}; check root and patterns")
    if len(rows) > _MOST_SCANS:
        raise EvaluationFailed(f"{keys.file}: expected at most {_MOST_SCANS} scans, got {len(rows)}; describe a part")
    known = frozenset().union(*(row.fields for row in rows))
    wanted, splits = _split_of(keys, rows, known, split)
    reader = _Reader(keys, root, known, defaults)
    scans, notes = reader.read(rows if wanted is None else splits[wanted])
    tune = keys.values.get("tune_split")
    if isinstance(tune, str) and tune != wanted:
        both = {scan.patient for scan in scans} & {reader.patient(row) for row in splits.get(tune, ())}
        if both:
            notes.append(
                f"{len(both)} patients are also in the split {tune}: halves of the patients tune each other instead"
            )
    return Selection(scans, wanted, {name: len(found) for name, found in splits.items()}, (*defaults.notes, *notes))


def _split_of(
    keys: Keys, rows: list[Row], known: Iterable[str], split: str | None
) -> tuple[str | None, dict[str, list[Row]]]:
    """The split to read, None for all, and the rows of each split that there is."""
    part = keys.part("split") if not isinstance(keys.values.get("split"), str) else None
    part = part or Keys({"column": keys.values["split"]}, keys.file, "split.")
    part.only({"column", "groups", "default"})
    if not part.has("column"):
        if split is not None:
            raise keys.error("split", f"a split.column to tell split {split!r} by", "none: this set has no splits")
        return None, {}
    column = part.text("column")
    if column not in known:
        raise part.error("column", f"one of {', '.join(sorted(known))}", repr(column))
    groups_part = part.part("groups")
    groups = {str(name): groups_part.words(name) for name in groups_part.values}
    values = sorted({row.fields.get(column, "") for row in rows} - {""})
    members = {value: (value,) for value in values} | groups
    splits = {name: [row for row in rows if row.fields.get(column, "") in wanted] for name, wanted in members.items()}
    chosen = split or (part.text("default") if part.has("default") else None)
    if chosen is not None and not splits.get(chosen):
        raise keys.error("split", f"one of {', '.join(name for name in splits if splits[name])}", repr(chosen[:60]))
    return chosen, splits


class _Reader:
    """The keys that say how a row becomes a scan, read once."""

    def __init__(self, keys: Keys, root: Path, known: frozenset[str], defaults: Defaults) -> None:
        self._keys, self._root = keys, root
        self._id = Template(keys, "id", keys.text("id", defaults.id), known)
        patient = keys.text("patient", defaults.patient or self._id.text)
        self._patient = Template(keys, "patient", patient, known)
        image = keys.values.get("image")
        self._image = Template(keys, "image", image if isinstance(image, str) else "{path}", None)
        self._labels = [Template(keys, "label", text, None) for text in keys.texts("label")]
        self._brain = keys.text("brain", EXTRACT)
        self._regions = keys.choice("brain_holds", ("mask", "regions"), "mask") == "regions"
        self._unlabelled = keys.choice("unlabelled", ("error", "skip", "healthy"), defaults.unlabelled)
        self._missing = keys.choice("missing", ("error", "skip"), defaults.missing)
        self._attributes = self._read_attributes(known, defaults.attributes)
        self._healthy = self._read_healthy(known)
        if self._regions and self._brain in (EXTRACT, NONZERO):
            raise keys.error("brain_holds", "a file of region labels under brain", repr(self._brain))

    def read(self, rows: list[Row]) -> tuple[tuple[DatasetScan, ...], list[str]]:
        """The scans in the order of their rows, and what was left out."""
        scans, missing, without, files = [], [], [], 0
        for row in rows:
            scan = self._scan(row)
            gone = [(f"{row.where}, {key}", path) for key, path, there in self._files(scan) if not there]
            files += len(scan.files)
            if gone and self._missing == "error":
                missing += gone
            elif gone:
                missing.append(gone[0])
            elif not scan.labels and not scan.healthy:
                without.append(row.where)
            else:
                scans.append(scan)
        notes = []
        if missing and self._missing == "error":
            require_files(self._keys.file, missing, files)
        if missing:
            notes.append(f"{len(missing)} scans were left out: a file of theirs is not there")
        if without and self._unlabelled == "error":
            raise EvaluationFailed(
                f"{self._keys.file}: expected a label or a verdict 'healthy' for each scan, {len(without)} of "
                f"{len(rows)} have neither, the first: {without[0]}; correct label or healthy, or say unlabelled: skip "
                "or unlabelled: healthy"
            )
        if without:
            notes.append(f"{len(without)} scans were left out: no label, and nobody said that they are healthy")
        self._check_ids(scans)
        if not scans:
            raise EvaluationFailed(
                f"{self._keys.file}: expected scans with labels or a verdict 'healthy', got none: "
                f"{'; '.join(notes) or 'no scan'}"
            )
        return tuple(scans), notes

    def patient(self, row: Row) -> str:
        """Empty where nothing is known; then each scan is a patient of its own."""
        return self._patient.fill(row.fields, row.where)

    def _scan(self, row: Row) -> DatasetScan:
        fields, where = row.fields, row.where
        # Ids become names of files: what would be a folder in them is part of the name.
        name = _UNSAFE.sub("_", self._id.fill(fields, where))
        if not 0 < len(name) <= _LONGEST_ID:
            raise EvaluationFailed(
                f"{self._keys.file}: {where}: id: expected an id of 1 to {_LONGEST_ID} characters, got {len(name)}"
            )
        image = row.image or self._image.path(fields, self._root, where)
        healthy = self._healthy(fields) if row.healthy is None else row.healthy
        labels = () if healthy else row.labels if row.labels is not None else self._labels_of(fields, where)
        if not labels and not healthy and self._unlabelled == "healthy":
            healthy = True
        attributes = {key: _value(fields.get(column, "")) for key, column in self._attributes}
        brain = row.brain or self._brain_of(fields, where)
        return DatasetScan(
            id=name,
            patient=self.patient(row) or name,
            image=image,
            labels=labels,
            healthy=healthy,
            brain=brain,
            attributes={key: value for key, value in attributes.items() if value is not None},
            regions=self._regions and isinstance(brain, Path),
        )

    def _labels_of(self, fields: Mapping[str, str], where: str) -> tuple[Path, ...]:
        found = []
        for template in self._labels:
            if not template.complete(fields):
                continue
            path = template.path(fields, self._root, where)
            if "*" in path.name:
                found += sorted(path.parent.glob(path.name))
            elif path.exists() or self._unlabelled == "error":
                found.append(path)
        return tuple(dict.fromkeys(found))

    def _brain_of(self, fields: Mapping[str, str], where: str) -> str | Path:
        if self._brain in (EXTRACT, NONZERO):
            return self._brain
        return Template(self._keys, "brain", self._brain, None).path(fields, self._root, where)

    @staticmethod
    def _files(scan: DatasetScan) -> list[tuple[str, Path, bool]]:
        listed = [("image", scan.image, scan.image.exists())]
        listed += [("label", path, path.is_file()) for path in scan.labels]
        if isinstance(scan.brain, Path):
            listed.append(("brain", scan.brain, scan.brain.is_file()))
        return listed

    def _read_attributes(self, known: frozenset[str], defaults: tuple[str, ...]) -> list[tuple[str, str]]:
        value = self._keys.values.get("attributes")
        if value is None:
            return [(name, name) for name in defaults if name in known]
        if isinstance(value, dict):
            part = self._keys.part("attributes")
            pairs = [(str(name), part.text(name)) for name in value]
        else:
            pairs = [(name, name) for name in self._keys.texts("attributes")]
        for _, column in pairs:
            if column not in known:
                raise self._keys.error("attributes", f"columns out of {', '.join(sorted(known))}", repr(column))
        return pairs

    def _read_healthy(self, known: frozenset[str]):
        value = self._keys.values.get("healthy")
        if value is None or isinstance(value, bool):
            return lambda fields: bool(value)
        part = self._keys.part("healthy") if isinstance(value, dict) else Keys(
            {"column": value}, self._keys.file, "healthy."
        )
        part.only({"column", "values"})
        column = part.text("column")
        if column not in known:
            raise part.error("column", f"one of {', '.join(sorted(known))}", repr(column))
        words = {word.casefold() for word in part.words("values")} or HEALTHY_WORDS
        return lambda fields: " ".join(fields.get(column, "").casefold().replace("_", " ").split()) in {
            word.replace("_", " ") for word in words
        }

    def _check_ids(self, scans: list[DatasetScan]) -> None:
        ids, images = set(), set()
        for scan in scans:
            if scan.id in ids:
                raise EvaluationFailed(
                    f"{self._keys.file}: id: expected a different id for each scan, got {scan.id[:80]!r} twice; "
                    "make the id of more columns, for example id: '{subject}_{session}'"
                )
            if scan.image in images:
                raise EvaluationFailed(
                    f"{self._keys.file}: image: expected another image for each scan, got {scan.image} twice"
                )
            ids.add(scan.id)
            images.add(scan.image)


def _value(text: str) -> str | float | None:
    text = text.strip()
    if text.casefold() in NOT_STATED:
        return None
    try:
        number = float(text)
    except ValueError:
        return text[:200]
    return number if math.isfinite(number) else None
