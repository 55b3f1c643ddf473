"""The commands ``audit verify``, ``audit head``, ``audit show``, ``audit drift``; and ``reproduce``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from monailabel_app.errors import InvalidSettings

ROOT = Path(__file__).resolve().parent.parent
_LOG = typer.Option("--log", help="The log (default: ANOMALY_AUDIT, else logs/audit.jsonl).")

audit_app = typer.Typer(help="Who did what with which model: the audit log of this app.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the group ``audit``."""
    app.add_typer(audit_app, name="audit")
    app.command()(reproduce)


@audit_app.command()
def verify(
    log: Annotated[Path | None, _LOG] = None,
    head: Annotated[
        str | None, typer.Option(help="A hash that `audit head` printed earlier: its record has to be there.")
    ] = None,
    after: Annotated[
        str | None, typer.Option(help="Hash of the last record of older files that were moved to an archive.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say whether the log is whole; if not, where it is broken and how (exit code 1)."""
    from monailabel_app.audit.verify import verify as check

    report = check(_path(log), head=head and head.strip().lower(), after=after and after.strip().lower())
    if as_json:
        faults = [vars(fault) for fault in report.faults]
        about = {"whole": report.whole, "records": report.records, "files": report.files, "faults": faults}
        about |= {"notes": report.notes, "head": vars(report.head)}
        typer.echo(json.dumps(about, indent=1))
    else:
        for fault in report.faults:
            typer.secho(fault.sentence(), fg="red")
        for note in report.notes:
            typer.secho(f"note: {note}", fg="yellow")
        state = "whole" if report.whole else "BROKEN"
        typer.echo(f"{state}: {report.records} records in {', '.join(report.files)}")
        typer.echo(f"head: {report.head.hash} (record {report.head.sequence})")
    raise typer.Exit(0 if report.whole else 1)


@audit_app.command()
def head(log: Annotated[Path | None, _LOG] = None) -> None:
    """Print the newest hash, to be written down where whoever writes the log cannot reach it."""
    from monailabel_app.audit.verify import verify as check

    report = check(_path(log))
    typer.echo(report.head.hash)
    if not report.whole:
        typer.secho("this log is broken: run `audit verify`", fg="red", err=True)
        raise typer.Exit(1)


@audit_app.command()
def show(
    log: Annotated[Path | None, _LOG] = None,
    event: Annotated[str | None, typer.Option(help="Such as analysis, label_saved, login.")] = None,
    who: Annotated[str | None, typer.Option(help="Name of a token or account.")] = None,
    outcome: Annotated[str | None, typer.Option(help="Such as ok, failed, refused.")] = None,
    image: Annotated[str | None, typer.Option(help="Id of a scan, as the datastore has it.")] = None,
    since: Annotated[str | None, typer.Option(help="2026-05-01, 2026-05-01T12:00 (UTC), 7d, 12h.")] = None,
    until: Annotated[str | None, typer.Option(help="The same; records of this moment are not shown.")] = None,
    most: Annotated[int, typer.Option(help="The newest so many.")] = 50,
    as_json: Annotated[bool, typer.Option("--json", help="The records as they stand in the log.")] = False,
) -> None:
    """Show records, oldest first."""
    from monailabel_app.audit.search import find

    found = find(
        _path(log),
        event=event,
        who=who,
        outcome=outcome,
        image=image,
        since=_moment(since, "since"),
        until=_moment(until, "until"),
        most=most,
    )
    for record in found:
        typer.echo(json.dumps(record, sort_keys=True) if as_json else _sentence(record))
    if not found and not as_json:
        typer.echo("no record fits")


@audit_app.command()
def drift(
    out: Annotated[Path, typer.Option(help="The page to write (.html); its figures go beside it (.json).")],
    log: Annotated[Path | None, _LOG] = None,
    model: Annotated[str | None, typer.Option(help="Name or id of a model (default: all).")] = None,
    days: Annotated[int, typer.Option(min=1, help="What counts as recent.")] = 30,
    reference: Annotated[int, typer.Option(min=20, help="So many of the first scans are the reference.")] = 50,
) -> None:
    """Say whether scans, scores, warnings or times have changed since this site began (exit code 1 if so)."""
    from monailabel_app.files import replace_file
    from monailabel_app.pipelines.site_drift import changes, drift_report
    from monailabel_app.reports.drift_page import drift_html

    if out.suffix.lower() not in {".html", ".htm"}:
        raise InvalidSettings(f"expected the name of a page to end with .html, got {out.name!r}")
    record = drift_report(_path(log), model=model, days=days, reference=reference)
    out.parent.mkdir(parents=True, exist_ok=True)
    replace_file(out, drift_html(record), lasting=True)
    replace_file(out.with_suffix(".json"), json.dumps(record, indent=1, sort_keys=True), lasting=True)
    found = changes(record)
    for line in found or ["no change shows"]:
        typer.echo(line)
    raise typer.Exit(1 if found else 0)


def reproduce(
    manifest: Annotated[Path, typer.Argument(help="manifest.json, or the JSON of a result or report.")],
    image: Annotated[Path, typer.Option(help="The scan: file, or folder of its DICOM series.")],
    mask: Annotated[Path | None, typer.Option(help="The earlier mask, to be told where it differs.")] = None,
    anomaly_map: Annotated[Path | None, typer.Option("--map", help="The earlier map, likewise.")] = None,
    model: Annotated[str | None, typer.Option(help="Name or folder, instead of the manifest's.")] = None,
    device: Annotated[str | None, typer.Option(help="Instead of the manifest's.")] = None,
    threads: Annotated[int | None, typer.Option(help="Instead of the manifest's.")] = None,
    pixel_mm: Annotated[float | None, typer.Option(help="Pixel size of a PNG picture that states none.")] = None,
    anyway: Annotated[bool, typer.Option("--anyway", help="Run although scan or model are not the same.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Make a result again from its run manifest and compare it to the voxel (exit code 1 where it differs)."""
    from monailabel_app.audit import note_command
    from monailabel_app.io.images import read_volume
    from monailabel_app.pipelines import reproduce as pipeline
    from monailabel_app.pipelines.predict import find_model, load_model
    from monailabel_app.pipelines.progress_bar import bars

    told = pipeline.read_manifest(manifest)
    used = pipeline.find_manifest_model(told, ROOT) if model is None else load_model(find_model(model, ROOT))
    arrays = [None if file is None else read_volume(file, slices=True).data[0] for file in (mask, anomaly_map)]
    with bars() as bar:
        made = pipeline.reproduce(
            told,
            read_volume(image, slices=True, pixel_mm=pixel_mm),
            used,
            mask=arrays[0],
            anomaly_map=arrays[1],
            device=device,
            threads=threads,
            anyway=anyway,
            progress=bar.analysis(),
        )
    note_command(ROOT, "reproduced", "ok" if made.identical else "differs", manifest=told["id"], model=used.id)
    typer.echo(json.dumps(made.to_json(), indent=1) if as_json else "\n".join(made.lines()))
    raise typer.Exit(0 if made.identical else 1)


def _sentence(record: dict) -> str:
    facts = " ".join(f"{name}={_short(value)}" for name, value in record["facts"].items())
    who = record["who"]
    person = f"{who['name']} ({who['role']}, {who['how']})"
    return f"{record['sequence']:>7}  {record['time'][:19]}Z  {record['event']} {record['outcome']}  {person}  {facts}"


def _short(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _path(log: Path | None) -> Path:
    from monailabel_app.audit import FILE, log_file

    if log is not None and log.is_dir():
        return log / FILE
    path = log or log_file(ROOT)
    if path is None:
        raise InvalidSettings("expected an audit log, got ANOMALY_AUDIT=off: give its place with --log")
    return path


def _moment(text: str | None, name: str):
    from monailabel_app.audit.search import moment

    try:
        return moment(text) if text else None
    except ValueError as error:
        raise InvalidSettings(f"expected --{name} as 2026-05-01, 2026-05-01T12:00, 7d or 12h, got {text!r}") from error
