"""A table that says which scans are healthy: CSV, TSV or a BIDS ``participants.tsv``.

The first line names the columns. One column says which scan (``image``, ``file``, ...) or which person
(``participant_id``, ``subject``, ...) a row is about; a column for the status and one for the patient may follow.
No error carries an id or a file name of a row, only its line and column.
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from monailabel_app.errors import InvalidSettings

SCAN_COLUMNS = (
    "image", "image_id", "id", "scan", "scan_id", "file", "filename", "file_name", "path",
    "seriesinstanceuid", "series_instance_uid", "series",
)  # fmt: skip
PERSON_COLUMNS = (
    "participant_id", "participant", "patient_id", "patientid", "patient", "subject_id", "subject", "sub",
)  # fmt: skip
STATUS_COLUMNS = ("healthy", "diagnosis", "dx", "group", "participant_group", "status")

HEALTHY_WORDS = frozenset({"healthy", "control", "controls", "healthy control", "hc", "normal", "1", "true", "yes"})
NOT_HEALTHY_WORDS = frozenset(
    {
        "0", "false", "no", "unhealthy", "not healthy", "abnormal", "patient", "patients", "case", "cases", "disease",
        "diseased", "lesion", "lesions", "pathological", "pathology", "sick", "ill",
    }
)  # fmt: skip
NOT_STATED = frozenset({"", "n/a", "na", "nan", "none", "null", "unknown", "?"})

_EXTENSIONS = (".seg.nrrd", ".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd")
_BIDS_PERSON = re.compile(r"(sub-[A-Za-z0-9]+)(?=_|$)")
_LARGEST_BYTES = 16 * 2**20


@dataclass(frozen=True)
class HealthyRow:
    """One row. healthy: None where the status cell is empty or says that it is not known."""

    line: int
    name: str
    healthy: bool | None
    patient: str | None


@dataclass(frozen=True)
class Matches:
    """Which row speaks of which image.

    rows: by image id. unmatched_rows: rows that speak of no image. images_without_row: images no row speaks of.
    """

    rows: Mapping[str, HealthyRow]
    unmatched_rows: int
    images_without_row: int


@dataclass(frozen=True)
class HealthyList:
    """The rows of a table. per_person: a row is about a person, and so about all scans of that person."""

    rows: tuple[HealthyRow, ...]
    per_person: bool

    def match(
        self, images: Iterable[str], people: Mapping[str, str] | None = None, skip: frozenset[str] = frozenset()
    ) -> Matches:
        """Find the images that each row is about.

        A row naming a scan matches the image of that id (a folder and the file's extension do not count). A row
        naming a person matches every image whose id begins with that BIDS subject (``sub-01`` or ``01`` matches
        ``sub-01_ses-1_T1w``) or whose person in ``people`` (image id -> id) is that one; a row naming a scan that is
        only ``sub-01`` is taken as naming the person. ``skip``: ids whose beginning says nothing about the person.
        """
        images = list(images)
        people = people or {}
        by_name: dict[str, list[str]] = {}
        by_person: dict[str, list[str]] = {}
        for image in images:
            by_name.setdefault(without_extension(image), []).append(image)
            persons = {people.get(image)}
            if image not in skip:
                persons.add(bids_person(image))
            for person in persons - {None}:
                by_person.setdefault(person, []).append(image)
        exact: dict[str, HealthyRow] = {}
        through_person: dict[str, HealthyRow] = {}
        unmatched = 0
        for row in self.rows:
            named = by_name.get(row.name, [])
            persons = by_person.get(row.name, [])
            if not persons and self.per_person:
                persons = by_person.get(f"sub-{row.name}", [])
            unmatched += not named and not persons
            exact.update(dict.fromkeys(named, row))
            through_person.update(dict.fromkeys(persons, row))
        rows = {**through_person, **exact}
        return Matches(rows, unmatched, sum(image not in rows for image in images))


def read_healthy_list(path: str | os.PathLike[str]) -> HealthyList:
    """Read a table of healthy scans.

    Tabs, commas, semicolons and bars separate columns; a byte order mark, UTF-16 and lines starting with ``#`` are
    understood. Without a status column every row is healthy. Status words: ``HEALTHY_WORDS`` are healthy,
    ``NOT_HEALTHY_WORDS`` are not, ``NOT_STATED`` leave the row undecided; case does not matter.

    Raises InvalidSettings naming line and column: no such file, no usable column, an unknown word, an empty id, two
    rows of one id that contradict each other, no row at all.
    """
    rows = _cells(_text(Path(path)))
    if not rows:
        raise InvalidSettings("expected a table with a first line that names its columns, got an empty file")
    header_line, header = rows[0]
    columns = [cell.strip().casefold().lstrip("#").strip().replace(" ", "_") for cell in header]
    name_column = _first(columns, SCAN_COLUMNS)
    per_person = name_column is None
    if per_person:
        name_column = _first(columns, PERSON_COLUMNS)
    if name_column is None:
        raise InvalidSettings(
            f"line {header_line}: expected a column named {', '.join(SCAN_COLUMNS[:7])} or "
            f"{', '.join(PERSON_COLUMNS[:2])}, subject; none of the {len(columns)} columns of the first line has such "
            "a name: name the column that holds the scans' ids"
        )
    status_column = _first(columns, STATUS_COLUMNS)
    patient_column = name_column if per_person else _first(columns, PERSON_COLUMNS)
    found: dict[str, HealthyRow] = {}
    for line, cells in rows[1:]:
        row = _row(line, cells, header, name_column, status_column, patient_column)
        former = found.setdefault(row.name, row)
        if former.healthy != row.healthy or former.patient != row.patient:
            raise InvalidSettings(
                f"line {line} speaks of the same scan or person as line {former.line} and says something else: keep one"
            )
    if not found:
        raise InvalidSettings("expected at least one row below the names of the columns, got none")
    return HealthyList(tuple(found.values()), per_person)


def bids_person(image: str) -> str | None:
    """``sub-01`` of ``sub-01_ses-1_T1w``; None for an id that is not named like this."""
    match = _BIDS_PERSON.match(image)
    return match[1] if match else None


def without_extension(name: str) -> str:
    """The last part of a path without the extension of an image file."""
    name = re.split(r"[\\/]", name.strip())[-1]
    lower = name.lower()
    for extension in _EXTENSIONS:
        if lower.endswith(extension) and len(name) > len(extension):
            return name[: -len(extension)]
    return name


def _text(path: Path) -> str:
    if not path.is_file():
        raise InvalidSettings("expected a file with the list of healthy scans, got a path where there is none")
    if path.stat().st_size > _LARGEST_BYTES:
        raise InvalidSettings(f"expected a list of at most {_LARGEST_BYTES // 2**20} MiB, got a larger file")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InvalidSettings(f"the list of healthy scans cannot be read ({type(error).__name__})") from error
    encodings = ("utf-16",) if content[:2] in (b"\xff\xfe", b"\xfe\xff") else ("utf-8-sig", "cp1252")
    for encoding in encodings:
        try:
            text = content.decode(encoding)
        except UnicodeDecodeError:
            continue
        if "\0" not in text:
            return text
    raise InvalidSettings("expected a table as text (CSV, TSV), got a file that is not text: export it as CSV")


def _cells(text: str) -> list[tuple[int, list[str]]]:
    """(line number, cells) of the lines that hold something."""
    lines = text.splitlines()
    first = next((line for line in lines if line.strip()), "")
    delimiter = max("\t,;|", key=first.count)
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
        rows = [(reader.line_num, cells) for cells in reader if any(cell.strip() for cell in cells)]
    except csv.Error as error:
        raise InvalidSettings(f"expected a table as CSV or TSV, got one that cannot be read ({error})") from error
    return rows[:1] + [row for row in rows[1:] if not row[1][0].lstrip().startswith("#")]


def _first(columns: list[str], names: tuple[str, ...]) -> int | None:
    return next((columns.index(name) for name in names if name in columns), None)


def _row(
    line: int,
    cells: list[str],
    header: list[str],
    name_column: int,
    status_column: int | None,
    patient_column: int | None,
) -> HealthyRow:
    if len(cells) > len(header) and any(cell.strip() for cell in cells[len(header) :]):
        raise InvalidSettings(f"line {line}: expected {len(header)} columns as in the first line, got {len(cells)}")

    def cell(column: int | None) -> str:
        return cells[column].strip() if column is not None and column < len(cells) else ""

    name = without_extension(cell(name_column))
    if not name:
        raise InvalidSettings(f"line {line}, column {header[name_column].strip()!r}: expected an id, got an empty cell")
    healthy: bool | None = True
    if status_column is not None:
        word = " ".join(cell(status_column).casefold().replace("_", " ").split())
        healthy = True if word in HEALTHY_WORDS else False if word in NOT_HEALTHY_WORDS else None
        if healthy is None and word not in NOT_STATED:
            raise InvalidSettings(
                f"line {line}, column {header[status_column].strip()!r}: expected one of "
                f"{', '.join(sorted(HEALTHY_WORDS))} for a healthy scan or one of "
                f"{', '.join(sorted(NOT_HEALTHY_WORDS))} for another, got {word[:24]!r}: write one of these words, "
                "or add a column 'healthy' with yes and no"
            )
    patient = cell(patient_column)
    return HealthyRow(line, name, healthy, None if patient.casefold() in NOT_STATED else patient)
