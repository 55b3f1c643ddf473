"""A cohort from its listing to its tables: what has a current record is left out, the rest is analysed by workers."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from monailabel_app.errors import InvalidSettings, UnknownModel
from monailabel_app.weights.listing import ModelEntry, list_models, read_entry

from ..find_model import find_model
from ..predict import PredictSettings
from ..sequences import default_model, stand_in
from .basis import ModelBasis, basis_of, is_current, stamp_of
from .journal import Journal
from .processes import Lost
from .progress import State, Tell
from .scans import CohortScan, list_cohort
from .tables import Row, TableWriter, row_of
from .unit import KEEP, Task, now, unanswered

logger = logging.getLogger(__name__)

AUTO = "auto"
TITLE = "Cohort"
# A scan that cost a worker is tried again by later runs, but not for ever.
MOST_TRIES = 6


class Pool(Protocol):
    """What analyses tasks: processes of this machine, or Ray actors."""

    @property
    def size(self) -> int: ...

    def results(self, tasks: Iterator[Task]) -> Iterator[tuple[Task, dict[str, Any] | Lost]]: ...


@dataclass(frozen=True)
class Options:
    """model: ``auto`` (by each scan's sequence), a name, a name with version, or a folder. keep: ``none``, ``masks`` or
    ``maps``. again: analyse also what has a current record. retry_failed: also scans whose failure is no passing one.
    pattern: of names.
    """

    model: str = AUTO
    settings: PredictSettings = field(default_factory=PredictSettings)
    keep: str = KEEP[0]
    again: bool = False
    retry_failed: bool = False
    pattern: str = "*"

    def __post_init__(self) -> None:
        if self.keep not in KEEP:
            raise InvalidSettings(f"expected keep out of {', '.join(KEEP)}, got {self.keep!r}")


@dataclass(frozen=True)
class Summary:
    """Counts of a run. without_model: scans of sequences that no model is made for, among failed_total."""

    scans: int
    current: int
    analysed: int
    failed: int
    without_model: int
    damaged_lines: int
    per_hour: float | None


@dataclass
class _Known:
    """Of a scan's newest record what decides whether it is current, and where the record is."""

    place: int
    basis: str
    stamp: str
    failed: bool
    passing: bool
    tries: int
    input: str
    kept: str

    def record(self) -> dict[str, str]:
        return {"basis": self.basis, "stamp": self.stamp}


@dataclass
class _Book:
    """The newest records of the listed scans: their rows, and what is known of them."""

    rows: dict[str, Row] = field(default_factory=dict)
    known: dict[str, _Known] = field(default_factory=dict)

    def take(self, place: int, record: Mapping[str, Any]) -> None:
        key, files = record["scan"], record.get("files") or {}
        self.rows[key] = row_of(record)
        self.known[key] = _Known(
            place,
            str(record.get("basis") or ""),
            str(record.get("stamp") or ""),
            record.get("state") == "failed",
            bool(record.get("passing")),
            int(record.get("tries") or 0),
            str(record.get("input") or ""),
            "maps" if "map" in files else "masks" if "mask" in files else "none",
        )


def run_cohort(
    source: Path,
    root: Path,
    out: Path,
    pool: Callable[[], Pool],
    options: Options = Options(),
    tell: Tell | None = None,
    noted: Callable[[Mapping[str, Any]], Any] | None = None,
) -> Summary:
    """Analyse the scans of ``source`` (a folder or list) that have no current record in ``out``.

    root: the app's folder, with its models. pool: gives what analyses, only called if there is something to do. noted:
    called here, not in the workers, with the record of each scan that was analysed or failed, before it counts as done.
    The tables are written as the run goes on and at its end, however it ends. Raises UnreadableVolume, InvalidSettings,
    UnknownModel, FolderInUse, WorkersFail, OSError for a full disk, KeyboardInterrupt.
    """
    listing = list_cohort(source, options.pattern)
    choose = _Chooser(root, options)
    with Journal(out) as journal:
        listed = {scan.key for scan in listing.scans}
        book = _Book()
        for place, record in journal.records():
            if record["scan"] in listed:
                book.take(place, record)
        if journal.damaged:
            logger.warning("%d lines of %s are no records, as a kill leaves them", journal.damaged, journal.path.name)
        tasks, without = [], 0
        for scan in listing.scans:
            try:
                model = choose(scan)
            except UnknownModel as error:
                without += 1
                book.rows[scan.key] = row_of(_refused(scan, error))
                continue
            task = _task(scan, model, options, out, book.known.get(scan.key))
            if task is not None:
                tasks.append(task)
        # Those without any record first: a new model begins with what nobody has looked at.
        tasks.sort(key=lambda task: task.key in book.known)
        state = State(len(tasks), current=len(listing.scans) - len(tasks) - without)
        writer = TableWriter(out, TITLE)

        def notes() -> list[str]:
            return _notes(book.rows, state, options, listing.aside)

        try:
            if tasks:
                tables = lambda: writer.maybe(book.rows.values(), notes)  # noqa: E731
                _analyse(pool(), tasks, journal, book, state, tell, tables, noted)
        finally:
            writer.write(book.rows.values(), notes())
        failed = state.failed + without
        analysed = state.done - state.failed
        return Summary(len(listing.scans), state.current, analysed, failed, without, journal.damaged, state.per_hour)


def _analyse(
    pool: Pool,
    tasks: list[Task],
    journal: Journal,
    book: _Book,
    state: State,
    tell: Tell | None,
    tables: Callable[[], Any],
    noted: Callable[[Mapping[str, Any]], Any] | None,
) -> None:
    state.workers = pool.size
    if tell is not None:
        tell(state)
    with closing(pool.results(iter(tasks))) as results:
        for task, outcome in results:
            if isinstance(outcome, Lost):
                outcome = unanswered(task, outcome.kind, outcome.text, outcome.seconds, outcome.worker)
            if outcome["state"] == "same":
                # Only the file's date has changed: what was found holds, for this file too.
                held = journal.at(book.known[task.key].place)
                outcome = {**held, "path": task.path, "stamp": outcome["stamp"], "renewed": now()}
            elif noted is not None:
                noted(outcome)
            book.take(journal.append(outcome), outcome)
            state.finished(outcome["state"] == "failed")
            if tell is not None:
                tell(state)
            with suppress(OSError):  # The journal tells when the disk is full; the tables are made from it.
                tables()


class _Chooser:
    """The model of each scan, each looked at once per run so that all scores of a run can be compared."""

    def __init__(self, root: Path, options: Options) -> None:
        self._entries = {name: entry for name, entry in list_models(root).items() if entry.calibrated}
        self._options = options
        self._bases: dict[str, ModelBasis] = {}
        self._told: set[str] = set()
        self._fixed = self._entry(root, options.model) if options.model != AUTO else None

    def __call__(self, scan: CohortScan) -> ModelBasis:
        """Raises UnknownModel for a scan that no model is made for."""
        if self._fixed is not None:
            return self._basis(self._fixed)
        name = scan.model or default_model(self._entries, scan.sequence)
        if name not in self._entries:
            there_is = ", ".join(self._entries) or "none"
            what = f"called {name!r}" if name else f"for the sequence {scan.sequence!r}"
            raise UnknownModel(f"no model {what}; available: {there_is}")
        told = "" if scan.model else stand_in(self._entries, scan.sequence)
        if told and told not in self._told:
            self._told.add(told)
            logger.warning("%s", told)
        return self._basis(self._entries[name])

    def _basis(self, entry: ModelEntry) -> ModelBasis:
        if entry.id not in self._bases:
            self._bases[entry.id] = ModelBasis.of(entry, self._options.settings.calibration)
        return self._bases[entry.id]

    def _entry(self, root: Path, model: str) -> ModelEntry:
        folder = find_model(model, root)
        name = Path(model).name if (Path(model) / "config.yaml").is_file() else model.partition("@")[0]
        entry = read_entry(name, folder)
        if entry is None or not entry.calibrated:
            raise UnknownModel(f"expected a calibrated anomaly model, got {model!r}; see `main.py models list`")
        return entry


def _task(scan: CohortScan, model: ModelBasis, options: Options, out: Path, known: _Known | None) -> Task | None:
    """What has to be done about a scan; None where its record is current."""
    basis = basis_of(model, options.settings)
    ours = known is not None and known.basis == basis
    if ours and not options.again and is_current(known.record(), basis, stamp_of(scan.path)):
        wanting = known.failed and (options.retry_failed or (known.passing and known.tries < MOST_TRIES))
        if not wanting and _is_kept(known, options):
            return None
    same = ours and not known.failed and not options.again and _is_kept(known, options)
    return Task(
        key=scan.key,
        path=str(scan.path),
        sequence=scan.sequence,
        model=model,
        settings=options.settings,
        out=str(out),
        keep=options.keep,
        known=known.input if same else "",
        before=known.tries if ours and known.failed else 0,
    )


def _is_kept(known: _Known, options: Options) -> bool:
    """Whether the files that are wanted now were written then."""
    return known.failed or KEEP.index(known.kept) >= KEEP.index(options.keep)


def _refused(scan: CohortScan, error: UnknownModel) -> dict[str, Any]:
    """Not written to the journal: it says nothing that the next run would not see at once."""
    return {
        "scan": scan.key,
        "path": str(scan.path),
        "sequence": scan.sequence,
        "state": "failed",
        "error": str(error),
        "kind": type(error).__name__,
    }


def _notes(rows: Mapping[str, Row], state: State, options: Options, aside: Mapping[str, int]) -> list[str]:
    """Sentences above the table."""
    states = Counter(row.state for row in rows.values())
    flagged = sum(row.flagged for row in rows.values())
    hashes = sorted({f"{row.model} {row.model_hash}" for row in rows.values() if row.model_hash})
    lines = [
        f"{states['analysed']} scans analysed, {states['failed']} failed, {max(0, state.total - state.done)} to do; "
        f"{flagged} with marked regions and p at most 0.05; written {now()}.",
        f"Models and hashes: {', '.join(hashes) or 'none yet'}.",
        f"Operating point {options.settings.operating_point}, smoothing {options.settings.smoothing}, regions from "
        f"{options.settings.min_volume_ml:g} ml, calibration {options.settings.calibration}.",
        "p is the rank of a scan's score among held-out healthy scans: of healthy scans of the same kind, about one in "
        "twenty has p at most 0.05. Scores of different models do not compare; p does.",
    ]
    if state.per_hour is not None:
        lines.append(f"{state.per_hour:.1f} scans per hour with {state.workers} workers.")
    return lines + [f"{count} {what} left out." for what, count in aside.items()]
