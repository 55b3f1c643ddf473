"""The scans of a cohort: of a folder with all that is below it, of a BIDS data set, or of a list."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

from monailabel_app.errors import InvalidSettings, UnreadableVolume
from monailabel_app.io.dicom_sequence import sequence_info
from monailabel_app.io.images import ITK_SUFFIXES, NIFTI_SUFFIXES
from monailabel_app.io.picture import PICTURE_SUFFIXES

from ..sequences import sequence_of

SCAN_SUFFIXES = (*NIFTI_SUFFIXES, *ITK_SUFFIXES)
LISTS = (".csv", ".tsv", ".txt")
_PATHS = ("path", "file", "scan", "image")
_ASIDE = frozenset({"derivatives", "sourcedata", "code", "stimuli", "phenotype"})  # of a BIDS data set
_JOURNAL = "cohort.jsonl"
_LOOKED_AT = 8  # files of a folder that are opened to see whether they are DICOM


@dataclass(frozen=True)
class CohortScan:
    """key: what it is called in all records: its path within the folder, or the list's id or path. path: a file, or a
    folder with a DICOM series. sequence: ``t1``, ``flair``, ...; None where nothing says so. model: that the list asks
    for; empty for none.
    """

    key: str
    path: Path
    sequence: str | None = None
    model: str = ""


@dataclass(frozen=True)
class Listing:
    """scans: sorted by key in a folder, in the order of a list. bids: whether the folder is a BIDS data set. aside: how
    many files were left out, by reason.
    """

    scans: tuple[CohortScan, ...]
    bids: bool = False
    aside: Mapping[str, int] = field(default_factory=dict)


def list_cohort(source: Path, pattern: str = "*") -> Listing:
    """The scans in or below a folder, or those that a list names.

    Of a BIDS data set (``dataset_description.json``, or folders ``sub-*`` with ``anat`` below): what lies in ``anat``.
    A list has a heading with ``path`` (or ``file``, ``scan``, ``image``) and may have ``id``, ``sequence`` and
    ``model``; without a heading each line is a path. Paths in it are relative to the list. Nothing is opened but the
    first bytes of files that could be DICOM. pattern: of the file's name, or of the folder's of a DICOM series; a
    pattern that ends as pictures do (``*.png``) takes those, single slices.

    Raises UnreadableVolume where there is nothing, InvalidSettings for a list that cannot be understood.
    """
    source = Path(source)
    if source.is_file() and source.suffix.lower() in LISTS:
        listing = _of_list(source)
    elif source.is_dir():
        listing = _of_folder(source, pattern)
    else:
        raise UnreadableVolume(f"expected a folder of scans or a list ({', '.join(LISTS)}), found neither at {source}")
    if not listing.scans:
        raise UnreadableVolume(
            f"expected scans ({', '.join(SCAN_SUFFIXES)} or DICOM series) named {pattern} in or below {source}, found "
            "none; give the folder that holds them"
        )
    return listing


def stem(name: str) -> str:
    """A file's name without what tells its format."""
    for suffix in (*SCAN_SUFFIXES, *PICTURE_SUFFIXES):
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name


def _of_folder(root: Path, pattern: str) -> Listing:
    bids = _is_bids(root)
    wanted = (*SCAN_SUFFIXES, *(s for s in PICTURE_SUFFIXES if pattern.lower().endswith(s)))
    scans, others = [], 0
    for folder, names in _folders(root, bids):
        files = [name for name in names if name.lower().endswith(wanted)]
        if bids and files and folder.name != "anat":
            others += len(files)
            continue
        if not files and any(_is_dicom(folder / name) for name in names[:_LOOKED_AT]):
            if fnmatch(folder.name, pattern):
                key = folder.relative_to(root).as_posix()
                scans.append(CohortScan(key, folder, sequence_of(folder.name, {}) or _of_headers(folder, names)))
            continue
        for name in files:
            if fnmatch(name, pattern):
                path = folder / name
                key = path.relative_to(root).as_posix()
                scans.append(CohortScan(key, path, sequence_of(stem(key), {})))
    aside = {"files of a BIDS data set outside of anat": others} if others else {}
    return Listing(tuple(sorted(scans, key=lambda scan: scan.key)), bids, aside)


def _folders(root: Path, bids: bool) -> Iterator[tuple[Path, list[str]]]:
    """Every folder in and below ``root`` with the sorted names of its files; none that is hidden or holds results."""
    for folder, folders, names in os.walk(root):
        here = Path(folder)
        if _JOURNAL in names:
            folders.clear()
            continue
        aside = _ASIDE if bids and here == root else frozenset()
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in aside)
        yield here, sorted(name for name in names if not name.startswith("."))


def _is_bids(root: Path) -> bool:
    if (root / "dataset_description.json").is_file():
        return True
    return any((path / "anat").is_dir() or any(path.glob("ses-*/anat")) for path in sorted(root.glob("sub-*"))[:20])


def _of_list(path: Path) -> Listing:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidSettings(f"expected a list in UTF-8 at {path}, got {type(error).__name__}; save it anew") from None
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    rows = list(csv.reader(lines, delimiter=delimiter)) if path.suffix.lower() != ".txt" else [[line] for line in lines]
    heads = [head.strip().casefold() for head in rows[0]] if rows else []
    column = next((name for name in _PATHS if name in heads), None)
    if column is None and len(heads) > 1:
        raise InvalidSettings(
            f"expected a heading with one of {', '.join(_PATHS)} in {path.name}, got {', '.join(heads)[:120]}"
        )
    if column is None:
        entries = [{"path": row[0]} for row in rows]
    else:
        entries = [dict(zip(heads, row, strict=False)) for row in rows[1:]]
    scans: dict[str, CohortScan] = {}
    repeated = 0
    for entry in entries:
        said = (entry.get(column or "path") or "").strip()
        if not said:
            raise InvalidSettings(f"expected a path in every line of {path.name}, got a line without one")
        where = Path(os.path.normpath(path.parent.absolute() / said))
        key = (entry.get("id") or "").strip() or said
        sequence = sequence_of(stem(key), entry) or sequence_of(stem(said), {})
        if sequence is None and where.is_dir():
            sequence = _of_headers(where, sorted(path.name for path in where.iterdir()))
        scan = CohortScan(key, where, sequence, (entry.get("model") or "").strip())
        if scans.setdefault(key, scan) != scan:
            raise InvalidSettings(f"expected an id for one scan each in {path.name}, got {key[:80]!r} for two")
        repeated += scans[key] is not scan
    return Listing(tuple(scans.values()), aside={"lines that repeat another": repeated} if repeated else {})


def _of_headers(folder: Path, names: list[str]) -> str | None:
    """The sequence as a series' description or, where they leave no doubt, its times say it."""
    for name in names[:_LOOKED_AT]:
        info = sequence_info(folder / name)
        if info:
            return sequence_of("", info) or info.get("timed")
    return None


def _is_dicom(path: Path) -> bool:
    try:
        with path.open("rb") as stream:
            return stream.read(132)[128:] == b"DICM"
    except OSError:
        return False
