"""Scan-level results as a table: the scans.csv of ``main.py evaluate``, or any CSV whose columns are named."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from monailabel_app.errors import EvaluationFailed, InvalidSettings

SCORE, FALSE_ML = "scan_score", "false_ml_"
# What the table may be asked for by another name; false_ml stands for any one volume.
NAMES = ("model", "set", "split", "id", "patient", "healthy", SCORE, "false_ml")
_TRUE, _FALSE = {"1", "true", "yes", "y", "1.0"}, {"0", "false", "no", "n", "0.0"}
_LARGEST = 200 * 2**20  # bytes


@dataclass(frozen=True)
class ScanResult:
    """One scan as one model sees it. values: ``scan_score`` and the volumes ``false_ml_<point>`` that are given.

    cells: the whole line as text, for attributes. line: ``scans.csv, line 3``, for messages.
    """

    model: str
    set: str
    split: str
    patient: str
    healthy: bool
    values: Mapping[str, float]
    cells: Mapping[str, str]
    line: str


def parse_columns(text: str) -> dict[str, str]:
    """``scan_score=score,false_ml=volume`` as a mapping. Raises InvalidSettings for other forms and names."""
    found: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, column = (piece.strip() for piece in part.partition("="))
        if not equals or not column or name not in NAMES:
            raise InvalidSettings(f"expected columns as NAME=COLUMN with NAME out of {', '.join(NAMES)}, got {part!r}")
        found[name] = column
    return found


def read_results(
    path: Path, columns: Mapping[str, str] | None = None, *, positives: str | None = None
) -> list[ScanResult]:
    """The lines of a table (CSV with commas, semicolons or tabs).

    columns: what the file calls them, where that is not their own name. positives: a column that says which scans show
    an anomaly, instead of ``healthy``. Without ``patient`` every scan is somebody else's. Raises EvaluationFailed, with
    line and column, for what is missing or is no number.
    """
    header, lines = _lines(path)
    names = {name: (columns or {}).get(name, name) for name in NAMES}
    for name, column in (columns or {}).items():
        _require(header, column, f"--columns {name}={column}", path)
    truth = positives or names["healthy"]
    _require(header, truth, "which scans are healthy (1 or 0); name it with --columns healthy=COLUMN", path)
    if names["patient"] not in header and names["id"] not in header:
        _require(header, names["patient"], "whom a scan shows; name it with --columns patient=COLUMN", path)
    measures = {SCORE: names[SCORE]} if names[SCORE] in header else {}
    if "false_ml" in (columns or {}):
        measures[f"{FALSE_ML}given"] = names["false_ml"]
    measures |= {name: name for name in header if name.startswith(FALSE_ML)}
    if not measures:
        raise EvaluationFailed(
            f"expected a column scan_score or false_ml_<operating point> in {path.name}, got {', '.join(header)}; "
            "name yours with --columns scan_score=COLUMN"
        )
    return [_result(cells, line, names, truth, positives is not None, measures) for line, cells in lines]


def _result(
    cells: Mapping[str, str],
    line: str,
    names: Mapping[str, str],
    truth: str,
    inverted: bool,
    measures: Mapping[str, str],
) -> ScanResult:
    def text(name: str, otherwise: str = "") -> str:
        return cells.get(names[name]) or otherwise

    said = cells[truth].lower()
    if said not in _TRUE | _FALSE:
        raise EvaluationFailed(f"{line}: expected 1 or 0 (true, false, yes, no) in {truth}, got {cells[truth]!r}")
    values = {}
    for name, column in measures.items():
        if cells[column]:
            values[name] = number(cells[column], column, line)
    whose = text("patient") or text("id")
    if not whose:
        raise EvaluationFailed(f"{line}: expected whom the scan shows in {names['patient']}, it is empty")
    healthy = (said in _TRUE) is not inverted
    return ScanResult(text("model", "model"), text("set"), text("split"), whose, healthy, values, cells, line)


def number(text: str, column: str, line: str) -> float:
    """A finite number. Raises EvaluationFailed that names line and column."""
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not abs(value) < float("inf"):
        raise EvaluationFailed(f"{line}: expected a number in {column}, got {text!r}; correct the table")
    return value


def read_lines(path: Path, required: Sequence[str]) -> list[tuple[str, dict[str, str]]]:
    """Where and what the lines of another table are. Raises EvaluationFailed without one of its columns."""
    header, lines = _lines(path)
    for column in required:
        _require(header, column, "one of " + ", ".join(required), Path(path))
    return lines


def _lines(path: Path) -> tuple[list[str], list[tuple[str, dict[str, str]]]]:
    path = Path(path)
    try:
        if path.stat().st_size > _LARGEST:
            raise EvaluationFailed(f"expected a table of at most {_LARGEST >> 20} MiB, got a larger one: {path.name}")
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise EvaluationFailed(
            f"expected a CSV table (UTF-8), got {type(error).__name__} reading {path.name}; "
            "give scans.csv of `evaluate`"
        ) from None
    first = text.partition("\n")[0]
    separator = max(",;\t", key=first.count)
    try:
        reader = csv.reader(io.StringIO(text), delimiter=separator)
        rows = [(f"{path.name}, line {reader.line_num}", row) for row in reader if any(row)]
    except csv.Error as error:
        raise EvaluationFailed(f"expected a CSV table, got {path.name}, in which {error}") from None
    if len(rows) < 2:
        raise EvaluationFailed(f"expected a header and at least one scan in {path.name}, got {len(rows)} lines")
    header = [name.strip() for name in rows[0][1]]
    if len(set(header)) < len(header):
        twice = next(name for name in header if header.count(name) > 1)
        raise EvaluationFailed(f"expected columns of different names in {path.name}, got {twice!r} twice")
    for line, row in rows[1:]:
        if len(row) != len(header):
            raise EvaluationFailed(f"{line}: expected {len(header)} cells, got {len(row)}")
    return header, [(line, dict(zip(header, (cell.strip() for cell in row), strict=True))) for line, row in rows[1:]]


def _require(header: Sequence[str], column: str, what: str, path: Path) -> None:
    if column not in header:
        raise EvaluationFailed(f"expected the column {column!r} in {path.name} ({what}), found {', '.join(header)}")
