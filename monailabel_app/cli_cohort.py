"""``main.py cohort``: a folder or list of scans, analysed on all devices, resumed after whatever happened."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from monailabel_app.pipelines.cohort.run import Options

ROOT = Path(__file__).resolve().parent.parent
_INTERRUPTED = 130


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(cohort)


def cohort(
    source: Annotated[
        Path | None, typer.Argument(help="Folder with scans in or below it, BIDS data set, or list (CSV, TSV, TXT).")
    ] = None,
    model: Annotated[str, typer.Option(help="auto (by each scan's sequence), a model's name or its folder.")] = "auto",
    out: Annotated[Path, typer.Option(help="Where records, tables and files are written.")] = ROOT / "runs/cohort",
    workers: Annotated[int | None, typer.Option(help="Processes (default: by GPUs, or cores and memory).")] = None,
    devices: Annotated[
        str, typer.Option(help="auto (all GPUs, else the CPU), cpu, or such as cuda:0,cuda:1.")
    ] = "auto",
    keep: Annotated[str, typer.Option(help="Files kept of each scan: none, masks, or maps (masks, too).")] = "none",
    operating_point: Annotated[str, typer.Option(help="sensitive, balanced, specific or bounded.")] = "balanced",
    min_volume_ml: Annotated[float, typer.Option(help="Smaller regions are dropped.")] = 0.1,
    calibration: Annotated[str, typer.Option(help="site (own healthy scans, where there is one) or shipped.")] = "site",
    gate: Annotated[str, typer.Option(help="A scan unlike the training scans: warn, refuse or off.")] = "warn",
    pattern: Annotated[str, typer.Option(help="Only files, or folders of DICOM series, of this name.")] = "*",
    timeout: Annotated[float, typer.Option(help="Seconds after which a scan is given up.")] = 1800.0,
    ray: Annotated[
        str | None, typer.Option("--ray", help="Address of a Ray cluster (host:port): its machines do the work.")
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Analyse anew what has a current record.")] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Try every failed scan again.")] = False,
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Say what --scans would cost, from the records in --out.")
    ] = False,
    scans: Annotated[int, typer.Option(help="For --estimate.")] = 100_000,
) -> None:
    """Analyse many scans; what is done is left out, what fails is listed with its reason, Ctrl-C and kill resume.

    Writes cohort.jsonl, cohort.csv and cohort.html. These hold names and paths of scans: patient data. Research use
    only.
    """
    if source is None:
        if not estimate:
            raise typer.BadParameter("expected a folder or a list of scans (or --estimate alone)")
        _estimate(out, scans)
        return
    from monailabel_app.errors import InvalidSettings
    from monailabel_app.pipelines.cohort import plan, run
    from monailabel_app.pipelines.cohort.journal import LOCK
    from monailabel_app.pipelines.cohort.processes import ProcessPool
    from monailabel_app.pipelines.cohort.progress import bar
    from monailabel_app.pipelines.cohort.unit import Analyst
    from monailabel_app.pipelines.predict import PredictSettings

    if not timeout > 0:
        raise InvalidSettings(f"expected --timeout above 0 seconds, got {timeout:g}")
    settings = PredictSettings(
        operating_point=operating_point, min_volume_ml=min_volume_ml, gate=gate, calibration=calibration
    )
    options = run.Options(model, settings, keep, again, retry_failed, pattern)

    def pool() -> run.Pool:
        if ray is not None:
            from monailabel_app.pipelines.cohort.ray_actors import RayPool

            shared = (source.absolute(), out.absolute() / LOCK)
            return RayPool(Analyst, ray, timeout, root=ROOT, shared=shared, workers=workers, devices=devices)
        return ProcessPool(Analyst, plan.lanes(workers, devices), timeout)

    signal.signal(signal.SIGTERM, _interrupt)
    try:
        with bar() as tell, _noted(options, ray is not None) as (noted, counts):
            done = run.run_cohort(source.absolute(), ROOT, out.absolute(), pool, options, tell, noted)
            counts |= {name: getattr(done, name) for name in ("scans", "current", "analysed", "failed")}
    except KeyboardInterrupt:
        typer.echo(f"\nstopped; what is done is in {out}: the same command goes on with the rest", err=True)
        raise typer.Exit(_INTERRUPTED) from None
    typer.echo(
        f"{done.scans} scans: {done.analysed} analysed, {done.failed} failed"
        + (f" ({done.without_model} without a model for their sequence)" if done.without_model else "")
        + f", {done.current} had a current record"
        + (f"; {done.per_hour:.1f} scans per hour" if done.per_hour else "")
    )
    if done.damaged_lines:
        typer.echo(f"{done.damaged_lines} cut or damaged lines of cohort.jsonl were passed over")
    typer.echo(f"written: {out / 'cohort.csv'} and {out / 'cohort.html'} (names and paths of scans: patient data)")
    if estimate:
        _estimate(out, scans)


@contextmanager
def _noted(options: Options, ray: bool) -> Iterator[tuple[Callable[[Mapping[str, Any]], None], dict[str, Any]]]:
    """The run and each of its scans in the audit log, by this process alone, wherever they are analysed.

    Gives what notes a scan's record, and facts for the end of the run to which more may be added.
    """
    from monailabel_app.audit import command_journal
    from monailabel_app.audit.facts import cohort_facts

    about = {"model": options.model, "request": "ray" if ray else "command"}
    counts: dict[str, Any] = {}
    with command_journal(ROOT) as note:

        def scan(record: Mapping[str, Any]) -> None:
            note("cohort_scan", "ok" if record["state"] == "analysed" else "failed", **cohort_facts(record))

        note("cohort_started", **about, settings=asdict(options.settings), again=options.again)
        try:
            yield scan, counts
        except BaseException as error:
            outcome = "cancelled" if isinstance(error, KeyboardInterrupt) else "failed"
            note("cohort_ended", outcome, **about, kind=type(error).__name__)
            raise
        note("cohort_ended", **about, **counts)


def _estimate(out: Path, scans: int) -> None:
    from monailabel_app.pipelines.cohort.estimate import estimates
    from monailabel_app.pipelines.cohort.journal import Journal

    for one in estimates((record for _, record in Journal(out).records()), scans):
        for line in one.lines():
            typer.echo(line)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
