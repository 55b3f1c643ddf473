"""``main.py predict``: one scan, or all in a folder, with labels, maps and reports where they are asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from monailabel_app.errors import AnomalyAppError, InvalidSettings
from monailabel_app.pipelines.option_checks import checked_output, known_device

ROOT = Path(__file__).resolve().parent.parent


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(predict)


def predict(
    scan: Annotated[
        Path,
        typer.Argument(help="NIfTI or NRRD file, PNG of one slice, folder with a DICOM series, or folder of scans."),
    ],
    model: Annotated[
        str,
        typer.Option(help="auto (by the sequence in the scan's name, else T1), a model's name, or its folder."),
    ] = "auto",
    mask: Annotated[Path | None, typer.Option(help="Write the label (.nii.gz, .nrrd).")] = None,
    anomaly_map: Annotated[Path | None, typer.Option("--map", help="Write the calibrated map.")] = None,
    report: Annotated[
        Path | None,
        typer.Option(help="Write the report to print (.html) and its facts (.json); of a folder, a folder."),
    ] = None,
    scan_id: Annotated[
        str | None, typer.Option("--id", help="What the report calls the scan (default: the file's name).")
    ] = None,
    operating_point: Annotated[str, typer.Option(help="sensitive, balanced, specific or bounded.")] = "balanced",
    threshold: Annotated[
        float | None, typer.Option(help="In healthy standard deviations, instead of the operating point's.")
    ] = None,
    score: Annotated[str | None, typer.Option(help="Score (default: the model's first).")] = None,
    smoothing: Annotated[str, typer.Option(help="standard, none or strong.")] = "standard",
    min_volume_ml: Annotated[float, typer.Option(help="Smaller lesions are dropped.")] = 0.1,
    device: Annotated[str, typer.Option(help="cpu or cuda.", callback=known_device)] = "cpu",
    seed: Annotated[int, typer.Option(help="Seed of the noise.")] = 0,
    gate: Annotated[str, typer.Option(help="A scan unlike the training scans: warn, refuse or off.")] = "warn",
    pixel_mm: Annotated[float | None, typer.Option(help="Pixel size of a PNG picture that states none.")] = None,
    uncertainty: Annotated[
        bool, typer.Option("--uncertainty", help="Repeat the analysis to say how much each lesion would change.")
    ] = False,
    calibration: Annotated[str, typer.Option(help="site (own healthy scans, where there is one) or shipped.")] = "site",
    pattern: Annotated[str, typer.Option(help="Of a folder, only files of this name, such as '*.png'.")] = "*",
) -> None:
    """Find anomalies; the result as JSON on standard output, of a folder one line per scan."""
    import json
    from functools import cache

    from monailabel_app.audit import note_command
    from monailabel_app.audit.facts import analysis_facts
    from monailabel_app.io.images import WRITABLE_SUFFIXES, write_labelmap, write_map
    from monailabel_app.pipelines import predict as pipeline
    from monailabel_app.pipelines.find_model import find_model_for
    from monailabel_app.pipelines.progress_bar import bars
    from monailabel_app.pipelines.report_files import Reporter, checked_report, scans_of

    settings = pipeline.PredictSettings(
        operating_point,
        score,
        smoothing,
        min_volume_ml,
        seed,
        device,
        uncertainty=uncertainty,
        gate=gate,
        calibration=calibration,
        threshold=threshold,
    )
    scans = scans_of(scan, pattern)

    @cache
    def warn(text: str) -> None:
        typer.secho(f"warning: {text}", err=True, fg="yellow")

    @cache
    def reporter_of(folder: Path) -> Reporter:
        return Reporter(pipeline.load_model(folder), settings, pixel_mm)

    if scans is None:
        target = checked_report(report) if report is not None else None
        checked_output(mask, WRITABLE_SUFFIXES)
        checked_output(anomaly_map, WRITABLE_SUFFIXES)
        reporter = reporter_of(find_model_for(scan.name, model, ROOT, warn))
        with bars() as bar:
            volume, finding = reporter.analyse(scan, target, scan_id, bar.analysis())
        if mask is not None:
            write_labelmap(mask, finding.mask, volume)
        if anomaly_map is not None:
            write_map(anomaly_map, finding.anomaly_map, volume)
        result = finding.to_json()
        note_command(ROOT, "analysis", **analysis_facts(result), request="command")
        typer.echo(json.dumps(result, indent=1))
        return
    if mask is not None or anomaly_map is not None or scan_id is not None:
        raise InvalidSettings(
            "expected --mask, --map and --id with one scan, got a folder of scans; see main.py cohort"
        )
    failed = 0
    with bars() as bar:
        for number, (name, path) in enumerate(scans.items()):
            bar.stage("scans", number, len(scans))
            page = report / f"{name}.html" if report is not None else None
            try:
                reporter = reporter_of(find_model_for(path.name, model, ROOT, warn))
                _, finding = reporter.analyse(path, page, name, bar.analysis(f"scan {number + 1}"))
            except AnomalyAppError as error:
                failed += 1
                typer.secho(f"{name}: {type(error).__name__}: {error}", err=True, fg="red")
                typer.echo(json.dumps({"scan": name, "error": f"{type(error).__name__}: {error}"}))
                continue
            result = finding.to_json()
            note_command(ROOT, "analysis", **analysis_facts(result), request="command")
            typer.echo(json.dumps({"scan": name, **result}))
        bar.stage("scans", len(scans), len(scans))
    if failed:
        typer.secho(f"{failed} of {len(scans)} scans could not be analysed", err=True, fg="yellow")
        raise typer.Exit(1)
