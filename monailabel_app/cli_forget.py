"""The command ``models forget``: take a patient out of every model of this site."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from monailabel_app.errors import InvalidSettings

ROOT = Path(__file__).resolve().parent.parent


def register(models: typer.Typer) -> None:
    """Add the command to the group ``models``."""
    models.command()(forget)


def forget(
    patient: Annotated[
        str, typer.Option(help="The patient's id as the trainings had it; - reads it from standard input.")
    ],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what would be done.")] = False,
    withdraw: Annotated[
        bool, typer.Option("--withdraw", help="Let the last model without the patient serve at once.")
    ] = False,
    data: Annotated[
        Path | None, typer.Option(help="Folder of the scans, for those whose prepared copies are gone.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Retrain every model that depends on a patient without it, remove the old ones, never train on it again.

    Scans in the studies folder stay where they are. Weights that left this site cannot be called back.
    """
    from monailabel_app.pipelines import forget as pipeline
    from monailabel_app.pipelines.forget_plan import similar_ids
    from monailabel_app.pipelines.progress_bar import bars

    patient = _given(patient)
    plan = pipeline.forget(ROOT, patient, retrain=None, dry_run=True)
    for line in plan.lines():
        typer.echo(line)
    if not plan.search.found:
        for other in similar_ids(ROOT, patient):
            typer.secho(f"a similar id is in a model: {other!r}; did you mean that one?", fg="yellow")
    if dry_run:
        return
    if not yes and not typer.confirm("Do this now? It cannot be undone"):
        raise typer.Exit(1)

    from monailabel_app.audit import command_noted
    from monailabel_app.pipelines.retrain import recover, retrain

    with bars() as bar, command_noted(ROOT, "forgotten", patient=patient, versions=len(plan.search.affected)):
        pipeline.forget(
            ROOT,
            patient,
            retrain=partial(retrain, stage=bar.stage, progress=bar.training),
            withdraw=withdraw,
            data=data,
            recover=partial(recover, stage=bar.stage),
            tell=typer.echo,
        )
    typer.echo("the patient is forgotten, and excluded from all later training; recorded in model/forgotten.json")
    for line in plan.beside:
        typer.secho(f"left to you: {line}", fg="yellow")


def _given(patient: str) -> str:
    """The id itself, so that it need not stand in the shell's history. Raises InvalidSettings for an empty one."""
    if patient.strip() == "-":
        patient = typer.prompt("Patient id") if sys.stdin.isatty() else sys.stdin.readline()
    if not patient.strip():
        raise InvalidSettings(
            "expected a patient id, got nothing: give --patient ID, or - and the id on standard input"
        )
    return patient.strip()
