"""``main.py fairness``: what a model makes of healthy people of different groups."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from monailabel_app.errors import InvalidSettings

ROOT = Path(__file__).resolve().parent.parent


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(fairness)


def fairness(
    table: Annotated[
        list[Path],
        typer.Option(help="scans.csv of `evaluate`, or any table of scans (CSV); may be given several times."),
    ],
    by: Annotated[str, typer.Option(help="Columns to group by (default: those of sex, age, site that it has).")] = "",
    bands: Annotated[str, typer.Option(help="Limits of the age bands, in years.")] = "40,60",
    min_group: Annotated[int, typer.Option(help="People that a group must have to be reported.")] = 10,
    point: Annotated[str, typer.Option(help="Operating point whose volume is tested (default: balanced).")] = "",
    positives: Annotated[
        str | None,
        typer.Option(help="Scans with anomalies: a table, or a column that marks them (default: those not healthy)."),
    ] = None,
    mixtures: Annotated[
        Path | None, typer.Option(help="Table (model, attribute, group, share): what each model was trained on.")
    ] = None,
    columns: Annotated[
        str, typer.Option(help="Other names of columns: scan_score=..,false_ml=..,healthy=..,patient=..,model=..")
    ] = "",
    intersections: Annotated[bool, typer.Option(help="Also groups by several attributes at once.")] = True,
    together: Annotated[bool, typer.Option("--together", help="Join the splits of a set.")] = False,
    resamples: Annotated[int, typer.Option(help="Bootstrap resamples of the patients.")] = 2000,
    permutations: Annotated[int, typer.Option(help="Permutations drawn where not all can be counted.")] = 10_000,
    out: Annotated[Path | None, typer.Option(help="Write fairness.json, .csv and .md into this folder.")] = None,
) -> None:
    """Compare healthy false-positive volume and sAUROC between sexes, age bands, sites and their intersections."""
    from monailabel_app.pipelines.evaluation import fairness as pipeline
    from monailabel_app.pipelines.evaluation.score_table import parse_columns
    from monailabel_app.pipelines.progress_bar import bars
    from monailabel_app.reports.fairness_table import fairness_markdown

    if positives is not None and positives.endswith(".csv") and not Path(positives).is_file():
        raise InvalidSettings(f"expected a table for --positives, found none at {positives}")
    if resamples < 100 or permutations < 100:
        raise InvalidSettings("expected at least 100 resamples and permutations: fewer say nothing about 5 %")
    with bars() as bar:
        record = pipeline.fairness(
            table,
            pipeline.FairnessOptions(
                by=tuple(filter(None, (name.strip() for name in by.split(",")))),
                bands=_ages(bands),
                min_group=min_group,
                point=point,
                intersections=intersections,
                together=together,
                resamples=resamples,
                permutations=permutations,
            ),
            columns=parse_columns(columns),
            positives=positives,
            mixtures=mixtures,
            progress=partial(bar.stage, "comparing groups"),
        )
    typer.echo(fairness_markdown(record))
    if out is not None:
        for path in pipeline.write_fairness(record, out):
            typer.echo(path)


def _ages(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise InvalidSettings(f"expected ages such as 40,60 for --bands, got {text!r}") from None
