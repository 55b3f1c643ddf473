"""The commands ``models ...``: list, show, verify, promote, roll back and remove the versions of models.

A running server follows what is done here at its next request, without a restart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from monailabel_app.errors import InvalidSettings
from monailabel_app.pipelines.option_checks import known_device

ROOT = Path(__file__).resolve().parent.parent

models_app = typer.Typer(help="The models of this app and their versions.", no_args_is_help=True)

_Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
_Reason = Annotated[str, typer.Option(help="Why, for the history; no patient data.")]


def register(app: typer.Typer) -> None:
    """Offer the commands as ``models ...`` of ``app``."""
    app.add_typer(models_app, name="models")


@models_app.command("list")
def list_models(as_json: _Json = False) -> None:
    """What serves under each name, and its other versions."""
    from monailabel_app.pipelines.model_overview import overview

    records = overview(ROOT)
    if as_json:
        _print_json(records)
        return
    rows = []
    for record in records:
        others = [item["version"] for item in record["versions"] if not item["serves"]]
        rows.append((record["name"], record["version"], *_columns(record), ", ".join(others)))
    _print_table(("name", "serves", "method", "modality", "date (UTC)", "quality", "hash", "others"), rows)
    for record in records:
        if record.get("fault"):
            typer.secho(f"{record['name']}: {record['fault']}", fg="yellow")


@models_app.command()
def show(
    model: Annotated[str, typer.Argument(metavar="NAME[@VERSION]", help="Default: the version that serves.")],
    as_json: _Json = False,
) -> None:
    """Configuration, training, history and card of a version."""
    from monailabel_app.pipelines.model_overview import details

    record = details(ROOT, model)
    if as_json:
        _print_json(record)
        return
    typer.secho(f"{record['id']}{' (serves)' if record['serves'] else ''}  {record['hash']}", bold=True)
    for part in ("config", "training"):
        if record[part]:
            _print_table((part, ""), list(_flat(record[part])))
    if record["history"]:
        columns = ("time", "action", "version", "reason")
        _print_table(columns, [tuple(str(entry.get(key) or "") for key in columns) for entry in record["history"]])
    typer.echo(record["card"])


@models_app.command()
def verify(
    model: Annotated[
        str | None, typer.Argument(metavar="[NAME[@VERSION]]", help="A model, one version, or a folder; else all.")
    ] = None,
) -> None:
    """Check every file against its checksum; exit code 2 when one is missing or changed."""
    from monailabel_app.pipelines.model_overview import check_all

    faults = 0
    for checked in check_all(ROOT, model):
        faults += bool(checked.fault)
        if checked.fault:
            typer.secho(f"{checked.id}: {checked.fault}", fg="red")
        else:
            typer.echo(f"{checked.id}: every file matches, {checked.hash}")
    if faults:
        raise typer.Exit(2)


@models_app.command()
def promote(
    name: Annotated[str, typer.Argument(help="Name of a model.")],
    version: Annotated[str, typer.Argument(help="Version, such as 0002 or 2, or shipped.")],
    reason: _Reason = "",
) -> None:
    """Let a version serve."""
    from monailabel_app.audit import command_noted
    from monailabel_app.weights import versions

    with command_noted(ROOT, "promoted", model=name, version=version):
        folder = versions.promote(ROOT, name, version, reason=reason)
    _say_serves(name, folder)


@models_app.command()
def rollback(
    name: Annotated[str, typer.Argument(help="Name of a model.")],
    reason: _Reason = "",
) -> None:
    """Let the version serve again that served before, or the shipped model."""
    from monailabel_app.audit import command_noted
    from monailabel_app.weights import versions

    with command_noted(ROOT, "rolled_back", model=name):
        folder = versions.rollback(ROOT, name, reason=reason)
    _say_serves(name, folder)


@models_app.command()
def remove(
    model: Annotated[str, typer.Argument(metavar="NAME@VERSION", help="A version that does not serve.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    every: Annotated[bool, typer.Option("--all", help="With a NAME: all its versions, the serving one too.")] = False,
    reason: _Reason = "",
) -> None:
    """Delete a version for good."""
    from monailabel_app.audit import command_noted
    from monailabel_app.weights import versions
    from monailabel_app.weights.version_layout import home

    name, version = versions.split_id(model)
    if (version is None) is not every:
        raise InvalidSettings(f"expected NAME@VERSION, or NAME and --all, got {model!r}{' and --all' if every else ''}")
    if every:
        versions.check_name(name)
        folders = [home(ROOT, name), *(found.folder for found in versions.versions(ROOT, name))]
        _check_unused(name, folders)
        count = len(folders) - 1
        if not yes:
            typer.confirm(f"Delete {name} with {count} versions?", abort=True)
        with command_noted(ROOT, "model_removed", model=name, versions=count):
            versions.remove_model(ROOT, name)
    else:
        _check_unused(model, [versions.locate(ROOT, name, version)])
        if not yes:
            typer.confirm(f"Delete {model}?", abort=True)
        with command_noted(ROOT, "model_removed", model=name, version=version):
            versions.remove(ROOT, name, version, reason=reason)
    typer.echo(f"{model} is deleted")


@models_app.command()
def ensemble(
    members: Annotated[str, typer.Option(help="Models separated by commas, with a score if need be: a,b:signed.")],
    name: Annotated[str, typer.Option(help="Name of the ensemble.")],
    healthy: Annotated[
        Path | None, typer.Option(help="Held-out healthy scans to calibrate on: a folder, or a cache (.safetensors).")
    ] = None,
    shipped: Annotated[bool, typer.Option("--shipped", help="Make it in model_weights/, not in model/.")] = False,
    device: Annotated[str, typer.Option(help="cpu or cuda.", callback=known_device)] = "cpu",
) -> None:
    """Combine calibrated models into one; best calibrated on the scans that calibrated them."""
    from functools import partial

    from monailabel_app.pipelines.calibrate import calibrate_on
    from monailabel_app.pipelines.ensemble import make_ensemble
    from monailabel_app.pipelines.predict import find_model
    from monailabel_app.pipelines.progress_bar import bars
    from monailabel_app.weights.version_layout import SHIPPED, check_name, home

    check_name(name)
    folder = ROOT / SHIPPED / name if shipped else home(ROOT, name)
    chosen = []
    for item in filter(None, (text.strip() for text in members.split(","))):
        model, _, score = item.partition(":")
        chosen.append((find_model(model, ROOT), score or None))
    make_ensemble(folder, chosen)
    if healthy is None:
        typer.echo(f"made: {folder}; before use: python main.py calibrate --model {folder} --healthy FOLDER")
        return
    with bars() as bar:
        calibrate_on(folder, healthy, device=device, progress=partial(bar.stage, "calibrating"))
    typer.echo(f"made and calibrated: {folder}")


def _check_unused(model: str, folders: Sequence[Path]) -> None:
    """Raises PublishFailed for a model that others combine: they could not be loaded any more."""
    from monailabel_app.errors import PublishFailed
    from monailabel_app.weights.listing import made_of

    users = sorted({user for folder in folders for user in made_of(ROOT, folder)})
    if users:
        raise PublishFailed(
            f"expected a model that no other one is made of, got {model}, which {', '.join(users)} combines with "
            f"others; first remove that: python main.py models remove {users[0]} --all"
        )


def _say_serves(name: str, folder: Path) -> None:
    from monailabel_app.weights.version_layout import version_of

    typer.echo(f"{name}: version {version_of(ROOT, name, folder)} serves from the next request on")


def _columns(record: Mapping[str, Any]) -> tuple[str, ...]:
    quality = record.get("quality")
    return (
        record.get("method", ""),
        record.get("modality", ""),
        record.get("date", "")[:16].replace("T", " "),
        "" if quality is None else f"{quality:.3f}",
        record.get("hash", "")[:12],
    )


def _flat(values: Mapping[str, Any], before: str = "") -> Any:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", str(value)


def _print_table(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    # Not cut to eighty columns where the output is a file.
    console = Console() if Console().is_terminal else Console(width=160)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    console.print(table)


def _print_json(value: Any) -> None:
    import json

    typer.echo(json.dumps(value, indent=1))
