"""``main.py train`` and the worker that it starts once per GPU."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from monailabel_app.pipelines.option_checks import known_device

ROOT = Path(__file__).resolve().parent.parent


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command(context_settings={"allow_extra_args": True})(train)
    app.command("train-worker", hidden=True)(train_worker)


def train(
    context: typer.Context,
    method: Annotated[str, typer.Argument(help="Method, such as ddpm.")],
    data: Annotated[
        Path | None, typer.Option(help="Folder of healthy scans: NIfTI, NRRD, folders with a DICOM series.")
    ] = None,
    healthy_list: Annotated[
        Path | None, typer.Option(help="CSV or TSV file that says which of them are healthy, and whose they are.")
    ] = None,
    modality: Annotated[str, typer.Option(help="Sequence of the scans, such as t1 or flair.")] = "t1",
    name: Annotated[str, typer.Option(help="Name of the model (default: method_modality).")] = "",
    start_from: Annotated[
        str, typer.Option(help="'serving model', 'scratch', or NAME[@VERSION] of a model to start from.")
    ] = "serving model",
    preset: Annotated[str, typer.Option(help="Size of a network from scratch: compact, large or tiny.")] = "compact",
    minutes: Annotated[float | None, typer.Option(help="Minutes of training at most (default: 60).")] = None,
    epochs: Annotated[float | None, typer.Option(help="Passes over the scans at most.")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps at most.")] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Samples per step (default: 16 slices, or 4 whole brains).")
    ] = None,
    learning_rate: Annotated[float, typer.Option(help="Peak learning rate.")] = 4e-4,
    validation_share: Annotated[float, typer.Option(help="Share of the patients held out.")] = 0.2,
    seed: Annotated[int, typer.Option(help="Seed of weights, batches and noise.")] = 0,
    privacy: Annotated[str, typer.Option(help="Budget: epsilon=8 delta=1e-5, with or without quotes.")] = "none",
    promote: Annotated[str, typer.Option(help="Does the result serve: 'if better', always or never.")] = "if better",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.", callback=known_device)] = "auto",
    processes: Annotated[int, typer.Option(help="Processes that train together; 0: one per GPU.")] = 1,
    workers: Annotated[int, typer.Option(help="Processes that prepare scans.")] = 2,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the unfinished run of this model.")] = False,
    plan_only: Annotated[
        bool, typer.Option("--plan-only", help="Prepare and split, and print the run folder for torchrun.")
    ] = False,
) -> None:
    """Train a method on healthy scans, calibrate it on scans held out, and publish it as a version of a model.

    The version serves when its held-out figure is not below that of the model it replaces. A killed training goes on
    with --resume.
    """
    from monailabel_app.audit import command_noted, note_command
    from monailabel_app.errors import InvalidSettings
    from monailabel_app.pipelines.progress_bar import bars
    from monailabel_app.pipelines.site_options import SiteOptions, usual_batch
    from monailabel_app.pipelines.site_privacy import membership_line
    from monailabel_app.pipelines.site_scans import scans_of_folder
    from monailabel_app.pipelines.site_training import train_site
    from monailabel_app.training.privacy_settings import PrivacySettings

    if context.args and (privacy == "none" or not all("=" in word for word in context.args)):
        raise InvalidSettings(f"expected options after the method, got {' '.join(context.args)[:80]!r}; see --help")
    if data is None:
        raise InvalidSettings("expected --data with the folder of healthy scans, got none")
    unlimited = minutes is None and (epochs is not None or steps is not None)
    options = SiteOptions(
        method=method,
        modality=modality.lower(),
        model_name=name,
        preset=preset,
        max_epochs=math.inf if epochs is None else epochs,
        minutes=math.inf if unlimited else 60.0 if minutes is None else minutes,
        steps=steps,
        batch_size=usual_batch(method) if batch_size is None else batch_size,
        learning_rate=learning_rate,
        validation_share=validation_share,
        seed=seed,
        start_from=start_from,
        privacy=PrivacySettings.parse(" ".join([privacy, *context.args])),
        promote=promote,
        device=device,
        processes=processes,
        workers=workers,
        resume=resume,
    )
    scans, left_out = scans_of_folder(data, healthy_list)
    note_command(ROOT, "training_started", method=method, model=options.name, scans=len(scans), resumed=resume)
    with bars() as bar, command_noted(ROOT, "training_ended", method=method, model=options.name) as noted:
        result = train_site(
            ROOT,
            scans,
            options,
            left_out=left_out,
            stage=bar.stage,
            progress=bar.training,
            plan_only=plan_only,
            say=partial(typer.echo, err=True),
        )
        noted |= {"version": result.version, "promoted": result.promoted, "plan_only": plan_only}
    if plan_only:
        typer.echo(f"run folder: {result.run_folder}")
        typer.echo(f"train: torchrun ... {ROOT / 'main.py'} train-worker {ROOT} {result.run_folder}")
        typer.echo("then calibrate and publish: the same train command with --resume")
        return
    typer.echo(f"{result.name}@{result.version}: {result.folder}")
    if result.privacy is not None:
        spent = result.privacy
        typer.echo(f"privacy spent: epsilon {spent['epsilon']:.3g} at delta {spent['delta']:g}, mu {spent['mu']:.3g}")
        typer.echo(membership_line(result.run_folder))
    typer.echo(f"{'serves now' if result.promoted else 'kept, does not serve'}: {result.reason}")


def train_worker(
    root: Annotated[Path, typer.Argument(help="The app's folder.")],
    run_folder: Annotated[Path, typer.Argument(help="The run, prepared by train --plan-only.")],
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint.")] = False,
) -> None:
    """One process of a training on several GPUs or machines; started by torchrun."""
    from monailabel_app.pipelines.training_run import work

    work(root, run_folder, resume=resume)
