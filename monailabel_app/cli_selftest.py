"""``main.py selftest``: what a model cannot see, measured on healthy scans with synthetic anomalies in them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from monailabel_app.errors import InvalidSettings
from monailabel_app.pipelines.command_line import as_typed
from monailabel_app.pipelines.option_checks import known_device

ROOT = Path(__file__).resolve().parent.parent


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(selftest)


def selftest(
    model: Annotated[str, typer.Option(help="Name of a shipped or trained model, or its folder.")],
    healthy: Annotated[
        str | None,
        typer.Option(
            help="Healthy scans: a folder, a described set, or a cache of prepared scans (.safetensors; then without "
            "the checks on raw heads). Default: the described set of healthy volumes of the model's sequence."
        ),
    ] = None,
    scans: Annotated[int | None, typer.Option(min=1, help="Healthy scans to alter at most (default: all).")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the results (default: runs/selftest/MODEL).")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer anomalies in 6 scans, 10 corruptions.")] = False,
    replicates: Annotated[int | None, typer.Option(min=1, help="Lesions per size and contrast (default 12).")] = None,
    corrupted: Annotated[int | None, typer.Option(min=0, help="Heads to corrupt (default 3), 0 for none.")] = None,
    checks: Annotated[int | None, typer.Option(min=0, help="Heads altered before preparation (default 3).")] = None,
    wrong: Annotated[list[Path] | None, typer.Option(help="A scan of a wrong sequence, for the input gate.")] = None,
    data_root: Annotated[Path, typer.Option(help="Folder of the described sets.")] = ROOT.parent / "shared" / "data",
    cache: Annotated[Path, typer.Option(help="Where prepared scans are kept.")] = ROOT / "cache" / "selftest",
    workers: Annotated[int, typer.Option(min=0, help="Processes.")] = 2,
    seed: Annotated[int, typer.Option(help="Seed of the plan and the anomalies.")] = 20,
    device: Annotated[str, typer.Option(help="cpu or cuda.", callback=known_device)] = "cpu",
    calibration: Annotated[str, typer.Option(help="The site's own where there is one, or shipped.")] = "site",
) -> None:
    """Map what a model misses by size, contrast, texture and place, and how corrupted scans fare; resumable."""
    from dataclasses import replace

    from monailabel_app.pipelines.evaluation import selftest as pipeline
    from monailabel_app.pipelines.evaluation.healthy_set import default_set
    from monailabel_app.pipelines.predict import find_model
    from monailabel_app.pipelines.progress_bar import bars

    missing = [path.name for path in wrong or () if not path.exists()]
    if missing:
        raise InvalidSettings(f"expected scans that exist with --wrong, found no {', '.join(missing)}")
    folder = find_model(model, ROOT)
    given = {"replicates": replicates, "scans": scans, "corrupted": corrupted, "checks": checks}
    extent = replace(
        pipeline.SHORT if quick else pipeline.FULL,
        wrong=tuple(wrong or ()),
        **{name: value for name, value in given.items() if value is not None},
    )
    out = out or ROOT / "runs" / "selftest" / folder.name
    with bars() as bar:
        record = pipeline.selftest(
            folder,
            healthy or default_set(folder),
            out,
            cache,
            extent=extent,
            data_root=data_root,
            seed=seed,
            workers=workers,
            device=device,
            calibration=calibration,
            command=as_typed(),
            stage=bar.stage,
        )
    for sentence in record["sentences"]:
        typer.echo(sentence)
    typer.echo(f"results: {out / pipeline.JSON} and {pipeline.CSV}")
