"""``main.py prototypes``: which healthy scans to train on, and which look wrong."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from monailabel_app.errors import InvalidSettings

if TYPE_CHECKING:
    from monailabel_app.pipelines.prototypes import PrototypeReport

ROOT = Path(__file__).resolve().parent.parent


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(prototypes)


def prototypes(
    data: Annotated[Path | None, typer.Option(help="Folder of healthy scans (NIfTI, NRRD).")] = None,
    cache: Annotated[Path | None, typer.Option(help="A training cache (.safetensors) instead of a folder.")] = None,
    k: Annotated[int, typer.Option(help="How many scans to propose.")] = 25,
    model: Annotated[str, typer.Option(help="The ddpm model that compares the scans.")] = "ddpm_t1",
    output: Annotated[
        Path | None, typer.Option(help="Write the list (CSV), as --conf healthy_list takes it.")
    ] = None,
    work: Annotated[Path, typer.Option(help="Where prepared scans and embeddings are kept.")] = ROOT / "cache",
    workers: Annotated[int, typer.Option(help="Processes that prepare scans.")] = 2,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Rank healthy scans: propose which few to train on and flag those unlike the others."""
    import json

    from monailabel_app.pipelines import prototypes as pipeline
    from monailabel_app.pipelines.predict import find_model
    from monailabel_app.pipelines.progress_bar import bars
    from monailabel_app.training.cache import TrainingCache

    if (data is None) == (cache is None):
        raise InvalidSettings("expected either --data FOLDER or --cache FILE, got both or neither")
    encoder = pipeline.Encoder(find_model(model, ROOT))
    with bars() as bar:
        if cache is not None:
            report = pipeline.rank_cache(
                TrainingCache.load(cache),
                k=k,
                encoder=encoder,
                progress=lambda *now: bar.stage("comparing scans", *now),
            )
        else:
            report = pipeline.rank_folder(data, work, k=k, encoder=encoder, workers=workers, stage=bar.stage)
    if output is not None:
        pipeline.write_list(report, output)
    typer.echo(json.dumps(report.to_json(), indent=1) if as_json else table(report))


def table(report: PrototypeReport) -> str:
    """The report for a terminal. Scans keep their file names: whoever runs the command has the files."""
    width = max([4, *(len(row.id) for row in report.rows)])
    lines = [f"{'rank':>4}  {'scan':{width}}  {'distance':>8}  {'proposed':8}  reason"]
    lines += [
        f"{row.rank:4}  {row.id:{width}}  {row.distance:8.2f}  {'yes' if row.proposed else '-':8}  {row.reason}"
        for row in report.rows
    ]
    lines += [f"   -  {name:{width}}  {'-':>8}  {'-':8}  {reason}" for name, reason in report.refused]
    wrong = [row.id for row in report.rows if row.suspicious]
    lines.append(
        f"\n{len(report.proposed)} of {len(report.rows)} scans proposed; typical distance {report.typical:.2f}; "
        f"compared by {report.encoder}"
    )
    if wrong:
        lines.append(f"look at these before training on them: {', '.join(wrong)}")
    return "\n".join(lines)
