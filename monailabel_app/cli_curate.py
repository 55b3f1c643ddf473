"""``main.py curate``: which images of a folder look wrong, and where."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from monailabel_app.pipelines.option_checks import known_device

if TYPE_CHECKING:
    from monailabel_app.pipelines.curation import CurationReport

ROOT = Path(__file__).resolve().parent.parent
_SHOWN = 20


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(curate)


def curate(
    folder: Annotated[Path, typer.Argument(help="Folder of slices (PNG), scans (NIfTI, NRRD) or DICOM series.")],
    model: Annotated[str, typer.Option(help="Name of a model, or its folder.")] = "ddpm_t1",
    out: Annotated[Path, typer.Option(help="Write the ranking (CSV).")] = Path("curation.csv"),
    sheet: Annotated[
        Path | None, typer.Option(help="Write a contact sheet (PNG; default: beside the CSV, the same name).")
    ] = None,
    healthy: Annotated[
        Path | None, typer.Option(help="Folder of healthy images from the same source, to compare with.")
    ] = None,
    pattern: Annotated[str, typer.Option(help="Only files of this name, such as '*_flair.png'.")] = "*",
    rank_by: Annotated[str, typer.Option(help="score: of the whole image. patch: of its strongest patch.")] = "score",
    patch_score: Annotated[str, typer.Option(help="What a patch is compared by: wasserstein or mse.")] = "wasserstein",
    patch_mm: Annotated[float, typer.Option(help="Side of a patch.")] = 24.0,
    top: Annotated[int, typer.Option(help="Images on the contact sheet.")] = 24,
    score: Annotated[str | None, typer.Option(help="Score (default: the model's first).")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.", callback=known_device)] = "cpu",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Rank the images of a folder by how unlike healthy ones they are: wrong, failed or worth a look."""
    import json

    from monailabel_app.pipelines import curation
    from monailabel_app.pipelines.predict import PredictSettings, find_model, load_model
    from monailabel_app.pipelines.progress_bar import bars

    loaded = load_model(find_model(model, ROOT))
    with bars() as bar:
        report = curation.curate(
            folder,
            loaded,
            healthy=healthy,
            pattern=pattern,
            rank_by=rank_by,
            patch_score=patch_score,
            patch_mm=patch_mm,
            settings=PredictSettings(score=score, device=device),
            sheet_rows=top,
            progress=lambda *now: bar.stage("looking at images", *now),
        )
    curation.write_csv(report, out)
    picture = sheet or out.with_suffix(".png")
    drawn = curation.write_sheet(report, picture)
    if as_json:
        typer.echo(json.dumps(report.to_json(), indent=1))
        return
    typer.echo(table(report))
    typer.echo(f"\nwritten: {out}" + (f" and {picture}" if drawn else ""))


def table(report: CurationReport) -> str:
    """The first images for a terminal, and what could not be analysed."""
    width = max([4, *(len(row.file) for row in report.rows[:_SHOWN]), *(len(name) for name, _ in report.refused)])
    lines = [f"{'rank':>4}  {'file':{width}}  {'score':>7}  {'p':>7}  {'patch':>7}  box (voxels)"]
    for rank, row in enumerate(report.rows[:_SHOWN], 1):
        box = " ".join(f"{low}:{high}" for low, high in zip(row.low, row.high, strict=True))
        lines.append(
            f"{rank:4}  {row.file:{width}}  {row.anomaly_score:7.2f}  {row.p_value:7.3g}  {row.patch_score:7.3f}  {box}"
        )
    lines += [f"   -  {name:{width}}  {reason}" for name, reason in report.refused]
    lines.append(
        f"\n{len(report.rows)} analysed, {len(report.refused)} refused, by {report.model}; p among {report.healthy} "
        "healthy ones. Research use only."
    )
    return "\n".join(lines)
