"""``main.py report``: the page of an evaluation made again, with blind spots and fairness beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ROOT = Path(__file__).resolve().parent.parent


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(report)


def report(
    evaluation: Annotated[Path, typer.Option(help="evaluation.json of `evaluate`, or its folder.")] = ROOT
    / "runs"
    / "evaluation",
    selftest: Annotated[
        list[Path] | None, typer.Option(help="blind_spots.json of `selftest`, or its folder; once per model.")
    ] = None,
    fairness: Annotated[Path | None, typer.Option(help="fairness.json of `fairness`, or its folder.")] = None,
    out: Annotated[Path | None, typer.Option(help="The page (default: report.html beside the evaluation).")] = None,
) -> None:
    """Make one self-contained HTML page of an evaluation, its pictures, blind spots and fairness."""
    from monailabel_app.pipelines.evaluation.page import write_page

    folder = evaluation if evaluation.is_dir() else evaluation.parent
    page = write_page(evaluation, out or folder / "report.html", selftests=selftest or (), fairness=fairness)
    typer.echo(f"{page} ({page.stat().st_size / 1e6:.1f} MB)")
