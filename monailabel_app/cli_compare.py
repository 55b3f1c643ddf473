"""``main.py compare``: every model on the development sets, beside the baselines, as one table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from monailabel_app.errors import InvalidSettings

ROOT = Path(__file__).resolve().parent.parent


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(compare)


def compare(
    data: Annotated[Path, typer.Option(help="The data folder (ixi_t1, mslub, soop_flair, ...).")] = ROOT.parent
    / "shared"
    / "data",
    models: Annotated[str, typer.Option(help="Names or folders separated by commas, or all.")] = "all",
    sets: Annotated[str, typer.Option(help="Names of sets separated by commas, or all that apply.")] = "all",
    out: Annotated[Path, typer.Option(help="Folder for measurements and table.")] = ROOT / "runs" / "comparison",
    cache: Annotated[Path, typer.Option(help="Where prepared scans are kept.")] = ROOT / "cache" / "compare",
    quick: Annotated[bool, typer.Option("--quick", help="Every fifth case only.")] = False,
    per_scan: Annotated[int, typer.Option(help="Implanted lesions per healthy head.")] = 2,
    all_scores: Annotated[bool, typer.Option("--all-scores", help="Not only every model's default score.")] = False,
    all_smoothings: Annotated[bool, typer.Option("--all-smoothings", help="Not only the standard one.")] = False,
    again: Annotated[bool, typer.Option("--again", help="Measure anew what was measured before.")] = False,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
) -> None:
    """Compare models on implanted and real lesions and on healthy scans; goes on where it was interrupted."""
    from monailabel_app.pipelines.evaluation import run as pipeline
    from monailabel_app.pipelines.evaluation.sets import SETS
    from monailabel_app.pipelines.predict import find_model, list_model_folders
    from monailabel_app.pipelines.progress_bar import bars
    from monailabel_app.reports.comparison import comparison_markdown

    wanted = [] if sets == "all" else _names(sets)
    unknown = [name for name in wanted if name not in SETS]
    if unknown:
        raise InvalidSettings(f"expected sets out of {', '.join(SETS)}, got {', '.join(unknown)}")
    folders = list_model_folders(ROOT) if models == "all" else [find_model(name, ROOT) for name in _names(models)]
    with bars() as bar:
        record = pipeline.compare(
            folders,
            data,
            out,
            cache,
            sets=wanted,
            quick=quick,
            per_scan=per_scan,
            again=again,
            all_scores=all_scores,
            all_smoothings=all_smoothings,
            device=device,
            stage=bar.stage,
        )
    typer.echo(comparison_markdown(record))
    if not any(entry["rows"] for entry in record["sets"]):
        raise typer.Exit(2)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]
