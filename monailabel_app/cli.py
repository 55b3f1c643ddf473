"""The command line: one thin function per command; the work is in ``monailabel_app.pipelines``.

Imports of pipelines stay inside the functions, so that ``--help`` answers at once and each command needs only
the packages it uses.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Annotated

import typer

from monailabel_app.errors import AnomalyAppError

ROOT = Path(__file__).resolve().parent.parent

app = typer.Typer(
    name="main.py",
    help="Brain anomaly segmentation for MONAI Label, learnt from healthy scans. Research use only.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


class _Commands(typer.core.TyperGroup):
    """Shows a named error as one line instead of a traceback."""

    def invoke(self, ctx):
        try:
            return super().invoke(ctx)
        except AnomalyAppError as error:
            typer.secho(f"{type(error).__name__}: {error}", err=True, fg="red")
            raise typer.Exit(2) from error


app.info.cls = _Commands


@app.callback()
def main(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log what is being done.")] = False,
) -> None:
    """Brain anomaly segmentation for MONAI Label, learnt from healthy scans. Research use only."""
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )


@app.command()
def doctor(
    host: Annotated[str, typer.Option(help="Address the server will listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port the server will listen on.")] = 8000,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Check versions, device, weights, port and folders; say how to mend each fault (exit code 1 if any)."""
    from monailabel_app.pipelines import doctor as checks

    results = checks.examine(ROOT, host=host, port=port)
    typer.echo(checks.as_json(results)) if as_json else checks.print_table(results)
    raise typer.Exit(checks.exit_code(results))


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def serve(
    context: typer.Context,
    studies: Annotated[
        str | None, typer.Option(help="Folder of scans, or a DICOMweb address (default: the sample scans).")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0: everyone's.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8000,
    models: Annotated[str, typer.Option(help="Model names separated by commas, or all.")] = "all",
) -> None:
    """Start the stock MONAI Label server with this app; unknown options are passed on to it."""
    from monailabel_app.pipelines import serve as server

    sys.exit(server.run(ROOT, studies, host=host, port=port, models=models, extra=context.args))
