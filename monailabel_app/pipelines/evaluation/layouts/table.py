"""Layout ``csv``: a table has one row per scan; its columns say where image, label and brain mask lie."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from monailabel_app.errors import EvaluationFailed

from ..description_file import Keys
from .rows import ROW_KEYS, Defaults, Row, Selection, select

KEYS = ROW_KEYS | {"table", "image", "label", "paths", "delimiter"}
_LARGEST_BYTES = 32 * 2**20
_DELIMITERS = {"comma": ",", "semicolon": ";", "tab": "\t", "bar": "|"}


def read_table(keys: Keys, root: Path, split: str | None) -> Selection:
    """The scans of the rows. ``paths: root`` (default) or ``table`` says what relative paths start from."""
    table = keys.path("table", root)
    delimiter = keys.choice("delimiter", ("auto", *_DELIMITERS), "auto")
    rows = [
        Row(f"{table.name} line {line}", fields)
        for line, fields in table_rows(table, _DELIMITERS.get(delimiter), f"{keys.file}: table")
    ]
    keys.text("image")
    start = table.parent if keys.choice("paths", ("root", "table"), "root") == "table" else root
    columns = rows[0].fields if rows else {}
    default = next((f"{{{name}}}" for name in ("id", "scan", "image", "subject", "patient") if name in columns), "")
    if not default and not keys.has("id"):
        raise keys.error("id", f"a text of columns such as '{{{next(iter(columns), 'id')}}}'", "nothing")
    patient = next((f"{{{name}}}" for name in ("patient", "patient_id", "subject") if name in columns), None)
    return select(keys, start, rows, split, Defaults(default or "{id}", patient))


def table_rows(path: Path, delimiter: str | None, where: str) -> list[tuple[int, dict[str, str]]]:
    """The rows of a CSV or TSV file as (line, cells by column). Raises EvaluationFailed."""
    try:
        if path.stat().st_size > _LARGEST_BYTES:
            raise EvaluationFailed(f"{where}: expected a table of at most {_LARGEST_BYTES // 2**20} MiB, got more")
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise EvaluationFailed(f"{where}: expected the table {path}, found none; check root and table") from None
    except (OSError, UnicodeDecodeError) as error:
        raise EvaluationFailed(f"{where}: expected a readable table in UTF-8, got {type(error).__name__}") from None
    first = text.partition("\n")[0]
    delimiter = delimiter or max(_DELIMITERS.values(), key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    rows: list[tuple[int, dict[str, str]]] = []
    columns: list[str] = []
    try:
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if not columns:
                columns = [cell.strip() for cell in cells]
                twice = next((name for name in columns if name and columns.count(name) > 1), None)
                if twice is not None:
                    raise EvaluationFailed(f"{where}: expected a name of its own for each column, got {twice!r} twice")
                continue
            if len(cells) != len(columns):
                raise EvaluationFailed(
                    f"{where}: {path.name} line {reader.line_num}: expected {len(columns)} cells as in the first line, "
                    f"got {len(cells)}"
                )
            row = {name: cell.strip() for name, cell in zip(columns, cells, strict=True) if name}
            rows.append((reader.line_num, row))
    except csv.Error as error:
        raise EvaluationFailed(f"{where}: {path.name} line {reader.line_num}: expected cells, got: {error}") from None
    if not rows:
        raise EvaluationFailed(f"{where}: expected column names and rows below, got none in {path.name}")
    return rows
