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

from monailabel_app import (
    cli_audit,
    cli_calibrate,
    cli_cohort,
    cli_curate,
    cli_encoder,
    cli_evaluate,
    cli_fairness,
    cli_forget,
    cli_models,
    cli_predict,
    cli_prototypes,
    cli_purge,
    cli_report,
    cli_selftest,
    cli_tokens,
    cli_train,
)
from monailabel_app.errors import AnomalyAppError
from monailabel_app.pipelines.option_checks import of_the_disk

ROOT = Path(__file__).resolve().parent.parent

app = typer.Typer(
    name="main.py",
    help="Brain anomaly segmentation for MONAI Label, learnt from healthy scans. Research use only.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


class _Commands(typer.core.TyperGroup):
    """Shows a named error, or what a disk refuses, as one line instead of a traceback."""

    def invoke(self, ctx):
        try:
            return super().invoke(ctx)
        except AnomalyAppError as error:
            typer.secho(f"{type(error).__name__}: {error}", err=True, fg="red")
            raise typer.Exit(2) from error
        except OSError as error:
            if isinstance(error, BrokenPipeError):  # Whoever read the output has gone: nothing to be told.
                raise
            logging.getLogger(__name__).info("refused by the system", exc_info=error)
            typer.secho(f"{type(error).__name__}: {of_the_disk(error)}", err=True, fg="red")
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
    tls_cert: Annotated[Path | None, typer.Option(help="Certificate (PEM, with its chain): answer by https.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="The certificate's key (PEM, without a password).")] = None,
    ask_nobody: Annotated[bool, typer.Option("--open", help="Ask nobody for a token, whoever reaches it.")] = False,
) -> None:
    """Start the stock MONAI Label server with this app; unknown options are passed on to it.

    Beyond this machine (--host 0.0.0.0) it starts only when there is a token, or with --open.
    """
    from monailabel_app.pipelines import serve as server

    secure = {"tls_cert": tls_cert, "tls_key": tls_key, "ask_nobody": ask_nobody}
    sys.exit(server.run(ROOT, studies, host=host, port=port, models=models, extra=context.args, **secure))


@app.command()
def prepare(
    data: Annotated[Path, typer.Option(help="Folder of healthy scans (NIfTI, NRRD), or the IXI folder.")],
    modality: Annotated[str, typer.Option(help="Sequence of the scans, such as t1 or flair.")] = "t1",
    cache: Annotated[Path, typer.Option(help="Where the training cache is kept.")] = ROOT / "cache",
    workers: Annotated[int, typer.Option(help="Processes.")] = 2,
) -> None:
    """Bring healthy scans into template space once and keep them as a compact training cache."""
    from monailabel_app.pipelines.build_model import prepare_set
    from monailabel_app.pipelines.progress_bar import bars

    with bars() as bar:
        healthy = prepare_set(data, modality, cache, workers=workers, stage=bar.stage)
    typer.echo(f"training cache: {healthy.train_cache}")


cli_predict.register(app)
cli_audit.register(app)
cli_calibrate.register(app)
cli_train.register(app)
cli_evaluate.register(app)
cli_fairness.register(app)
cli_selftest.register(app)
cli_report.register(app)
cli_prototypes.register(app)
cli_purge.register(app)
cli_curate.register(app)
cli_cohort.register(app)
cli_encoder.register(app)

cli_models.register(app)
cli_forget.register(cli_models.models_app)
cli_tokens.register(app)
weights_app = typer.Typer(help="The shipped weights.", no_args_is_help=True)
app.add_typer(weights_app, name="weights")


@weights_app.command()
def rebuild(
    data: Annotated[Path, typer.Option(help="The data folder (ixi_t1, mslub).")],
    minutes: Annotated[float, typer.Option(help="Minutes of training per network at most.")] = 75,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    only: Annotated[str | None, typer.Option(help="One target, such as template or ddpm_t1 (default: all).")] = None,
    preset: Annotated[str | None, typer.Option(help="Instead of each model's own, such as large on a GPU.")] = None,
) -> None:
    """Build everything in model_weights/ anew from the data folder."""
    from monailabel_app.pipelines.progress_bar import bars
    from monailabel_app.pipelines.rebuild import rebuild_weights

    with bars() as bar:
        for line in rebuild_weights(ROOT, data, minutes=minutes, device=device, only=only, bar=bar, preset=preset):
            typer.echo(line)


@weights_app.command()
def cards(
    evaluation: Annotated[Path, typer.Option(help="evaluation.json of `evaluate`.")] = ROOT
    / "tests/benchmarks/results/evaluation.json",
    selftest: Annotated[list[Path] | None, typer.Option(help="blind_spots.json of `selftest`, for each model.")] = None,
    fairness: Annotated[Path | None, typer.Option(help="fairness.json of `fairness`.")] = None,
) -> None:
    """Write card.md and measured.json of every shipped model from what was measured."""
    from monailabel_app.pipelines.cards import write_cards

    for line in write_cards(ROOT, evaluation, selftests=selftest or (), fairness=fairness):
        typer.echo(line)
