"""``main.py calibrate``: a model's thresholds from the site's own healthy scans, kept beside the model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from monailabel_app.pipelines.option_checks import known_device

ROOT = Path(__file__).resolve().parent.parent


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(calibrate)


def calibrate(
    model: Annotated[str, typer.Option(help="Name of a model, NAME@VERSION, or its folder.")],
    healthy: Annotated[
        str | None,
        typer.Option(
            help="Healthy scans that did not train the model: a folder, a described set, or a cache (.safetensors)."
        ),
    ] = None,
    split: Annotated[str | None, typer.Option(help="Of a described set (default: the description's).")] = None,
    data_root: Annotated[Path, typer.Option(help="Where the data of the described sets lie.")] = ROOT.parent
    / "shared"
    / "data",
    device: Annotated[str, typer.Option(help="cpu or cuda.", callback=known_device)] = "cpu",
    only_store: Annotated[bool, typer.Option("--only-store", help="Make it, but do not use it yet.")] = False,
    list_: Annotated[bool, typer.Option("--list", help="List the site calibrations of the model.")] = False,
    use: Annotated[str | None, typer.Option(help="Use this site calibration, or `shipped`: the model's own.")] = None,
    remove: Annotated[str | None, typer.Option(help="Delete this site calibration.")] = None,
) -> None:
    """Calibrate a model on own healthy scans; the model itself is not changed. Or list, choose, remove."""
    from monailabel_app.audit import command_noted
    from monailabel_app.errors import InvalidSettings
    from monailabel_app.pipelines.find_model import find_model
    from monailabel_app.weights import site_calibrations

    if sum((healthy is not None, list_, use is not None, remove is not None)) != 1:
        raise InvalidSettings("expected one of --healthy SCANS, --list, --use ID or --remove ID, got none or several")
    folder = find_model(model, ROOT)
    if list_:
        _list(folder)
    elif use is not None:
        with command_noted(ROOT, "calibration", what="used", model=folder.name, calibration=use):
            site_calibrations.use(folder, use)
        typer.echo(f"{model}: uses {_in_use(folder)} from the next request on")
    elif remove is not None:
        with command_noted(ROOT, "calibration", what="removed", model=folder.name, calibration=remove):
            site_calibrations.remove(folder, remove)
        typer.echo(f"{remove} is deleted")
    else:
        with command_noted(ROOT, "calibration", what="made", model=folder.name, used=not only_store):
            _make(folder, str(healthy), split, data_root, device, use=not only_store)


def _make(folder: Path, healthy: str, split: str | None, data_root: Path, device: str, *, use: bool) -> None:
    from functools import partial

    from monailabel_app.pipelines.calibrate import calibrate_on
    from monailabel_app.pipelines.progress_bar import bars
    from monailabel_app.pipelines.site_calibration import calibrate_site
    from monailabel_app.weights.listing import CALIBRATION

    with bars() as bar:
        tell = partial(bar.stage, "calibrating")
        if not (folder / CALIBRATION).is_file():
            # A new ensemble has none yet: there is nothing that a site's would stand beside.
            calibrate_on(folder, Path(healthy), device=device, progress=tell)
            typer.echo(f"calibrated: {folder}")
            return
        report = calibrate_site(
            folder, healthy, data_root=data_root, split=split, device=device, use=use, progress=tell
        )
    for line in report.lines():
        typer.echo(line)
    typer.echo(f"in use: {_in_use(folder)}" + ("" if use else f" (use the new one with --use {report.made.id})"))


def _list(folder: Path) -> None:
    from monailabel_app.weights import site_calibrations

    for entry in site_calibrations.listed(folder):
        record = entry.record
        drift = record.get("drift") or {}
        state = "in use" if entry.used else "" if entry.fits else "of other weights"
        about = f"{record.get('scans', '?')} scans, {record.get('data', '?')}, p = {drift.get('p_value', '?')}"
        typer.echo(f"{entry.id}  {record.get('model', '?'):<28}  {about}  {state}".rstrip())
    typer.echo(f"in use: {_in_use(folder)}")


def _in_use(folder: Path) -> str:
    from monailabel_app.weights import site_calibrations

    used = site_calibrations.used_id(folder)
    return f"site calibration {used}" if used else "the model's own calibration (shipped)"
