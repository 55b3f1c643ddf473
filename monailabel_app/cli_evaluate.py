"""``main.py evaluate``: what models find and miss on a data set, beside the baselines, as tables and one page."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from monailabel_app.errors import InvalidSettings, UnknownModel
from monailabel_app.pipelines.command_line import as_typed
from monailabel_app.pipelines.option_checks import known_device

if TYPE_CHECKING:
    from monailabel_app.pipelines.evaluation.dataset_types import Dataset

ROOT = Path(__file__).resolve().parent.parent
DEVELOPMENT = (
    "ixi_implanted",
    "mslub_t1",
    "soop_flair",
    "brats2015_flair",
    "mslub_flair",
    "mslub_t2",
    "lgg_t1",
    "lgg_flair",
)
_SHOWN = 3


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(evaluate)


def evaluate(
    models: Annotated[
        str, typer.Option(help="Names or folders separated by commas; all; or default: those offered first.")
    ] = "default",
    data: Annotated[
        str | None,
        typer.Option(help="Described sets, folders or .yaml files, separated by commas; dev: all development sets."),
    ] = None,
    split: Annotated[str | None, typer.Option(help="Split of the data set (default: as it is described).")] = None,
    modality: Annotated[str | None, typer.Option(help="Sequence of the scans of a folder, such as t1.")] = None,
    data_root: Annotated[Path, typer.Option(help="Where the data of the described sets lie.")] = ROOT.parent
    / "shared"
    / "data",
    out: Annotated[Path, typer.Option(help="Folder for measurements, tables and the page.")] = ROOT
    / "runs"
    / "evaluation",
    cache: Annotated[Path, typer.Option(help="Where prepared scans and analyses are kept; patient data.")] = ROOT
    / "cache"
    / "evaluation",
    workers: Annotated[int | None, typer.Option(help="Processes (default: one per core; one on cuda).")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Every fifth case only.")] = False,
    again: Annotated[bool, typer.Option("--again", help="Measure anew what was measured before.")] = False,
    all_scores: Annotated[bool, typer.Option("--all-scores", help="Not only every model's default score.")] = False,
    all_smoothings: Annotated[bool, typer.Option("--all-smoothings", help="Not only the standard one.")] = False,
    device: Annotated[str, typer.Option(help="cpu or cuda.", callback=known_device)] = "cpu",
    calibration: Annotated[
        str, typer.Option(help="site: the site's own where one is in use, as predictions; shipped: never.")
    ] = "site",
    listing: Annotated[bool, typer.Option("--list", help="List the described data sets and exit.")] = False,
    purge: Annotated[
        bool, typer.Option("--purge", help="Delete prepared scans and analyses from the cache and exit.")
    ] = False,
) -> None:
    """What models find and miss on labelled and healthy scans, always beside two baselines: tables and one HTML page.

    Goes on where it was interrupted. A scan that cannot be used is reported and left out for all models.
    """
    if listing:
        _print_sets(data_root)
        return
    if purge:
        from monailabel_app.pipelines.evaluation.store import purge as purge_cache

        typer.echo(f"freed {purge_cache(cache) / 1e6:.0f} MB in {cache}")
        return
    if not data:
        raise InvalidSettings("expected a data set: --data NAME, FOLDER, FILE.yaml or dev (see --list)")

    from monailabel_app.pipelines.evaluation.run import Options, Request
    from monailabel_app.pipelines.evaluation.run import evaluate as run
    from monailabel_app.pipelines.predict import list_model_folders
    from monailabel_app.pipelines.progress_bar import bars
    from monailabel_app.reports.comparison import comparison_markdown

    known = {_name(folder): folder for folder in list_model_folders(ROOT)}
    sets, tuning, missing = _data_sets(data, data_root, split, modality, _sequence_of(models))
    folders, explicit, strict = _models(models, known, sets)
    request = Request(tuple(folders), known, tuple(sets), tuning, explicit, strict, as_typed())
    used = 0 if device.startswith("cuda") else os.cpu_count() or 1 if workers is None else workers
    options = Options(quick, again, all_scores, all_smoothings, used, device, calibration=calibration)
    with bars() as bar:
        record = run(request, out, cache, options, stage=bar.stage)
    typer.echo(comparison_markdown(record))
    for sentence in (*missing, *(f"{dataset.name}: {note}" for dataset in sets for note in dataset.notes)):
        typer.secho(sentence, err=True, fg="yellow")
    typer.echo(f"{out / 'evaluation.html'}")


def _data_sets(
    text: str, data_root: Path, split: str | None, modality: str | None, likely: str | None = None
) -> tuple[list[Dataset], dict[str, Dataset], list[str]]:
    """The sets, their tuning splits by name, and what is said about development sets that are not there.

    likely: the sequence of a folder that does not tell it.
    """
    from monailabel_app.errors import AnomalyAppError
    from monailabel_app.pipelines.evaluation.datasets import load_dataset

    sets, tuning, missing = [], {}, []
    for name in _names(text):
        for spec in DEVELOPMENT if name == "dev" else (name,):
            try:
                dataset = _load(load_dataset, spec, data_root, split, modality, likely)
            except AnomalyAppError as error:
                if name != "dev":
                    raise
                missing.append(f"{spec} is left out: {error}")
                continue
            _add(sets, dataset)
            if dataset.tune_split is not None and dataset.tune_split != dataset.split:
                tuning[dataset.name] = _load(load_dataset, spec, data_root, dataset.tune_split, modality, likely)
    if not sets:
        raise InvalidSettings(f"expected a data set that is there; {'; '.join(missing) or 'name one (see --list)'}")
    return sets, tuning, missing


def _add(sets: list[Dataset], dataset: Dataset) -> None:
    """Raises InvalidSettings for another set of the same name and split: nothing could tell their rows apart."""
    same = [other for other in sets if (other.name, other.split) == (dataset.name, dataset.split)]
    if any(other.scans != dataset.scans for other in same):
        raise InvalidSettings(
            f"expected sets of different names, got two of the name {dataset.name}; give one another name in its "
            "description"
        )
    if not same:
        sets.append(dataset)


def _load(
    load: Callable[..., Dataset],
    spec: str,
    data_root: Path,
    split: str | None,
    modality: str | None,
    likely: str | None,
) -> Dataset:
    try:
        return load(spec, data_root=data_root, split=split, modality=modality)
    except InvalidSettings:
        if modality is not None or likely is None or not Path(spec).is_dir():
            raise
    return load(spec, data_root=data_root, split=split, modality=likely)


def _sequence_of(models: str) -> str | None:
    """The sequence that the models asked for by name were made for, where it is one."""
    from monailabel_app.pipelines.predict import find_model
    from monailabel_app.weights.listing import read_entry

    if models in ("all", "default"):
        return None
    entries = [read_entry(name, find_model(name, ROOT)) for name in _names(models)]
    found = {str(entry.config.get("modality", "")).lower() for entry in entries if entry is not None} - {"", "any"}
    return found.pop() if len(found) == 1 else None


def _models(text: str, known: dict[str, Path], sets: list[Dataset]) -> tuple[list[Path], tuple[str, ...], bool]:
    """Folders, ids of those whose cases are shown, and whether each was asked for by name."""
    from monailabel_app.pipelines.predict import find_model
    from monailabel_app.pipelines.shipped_models import DEFAULTS
    from monailabel_app.weights.model_folder import model_id

    modalities = {dataset.modality.lower() for dataset in sets}
    kinds = [f"{m} slices" for m in sorted(modalities) if any(d.slices and d.modality.lower() == m for d in sets)]
    volumes = {dataset.modality.lower() for dataset in sets if not dataset.slices}
    defaults = list(dict.fromkeys(DEFAULTS[key] for key in (*kinds, *sorted(volumes)) if DEFAULTS.get(key) in known))
    if text == "all":
        return list(known.values()), tuple(model_id(known[name]) for name in defaults[:_SHOWN]), False
    if text == "default":
        if not defaults:
            raise UnknownModel(
                f"expected a model that is offered first for {', '.join(sorted(modalities))}, there is none; name "
                "models with --models"
            )
        folders = [known[name] for name in defaults]
        return folders, tuple(model_id(folder) for folder in folders[:_SHOWN]), False
    folders = [find_model(name, ROOT) for name in _names(text)]
    return folders, tuple(model_id(folder) for folder in folders[:_SHOWN]), True


def _print_sets(data_root: Path) -> None:
    from monailabel_app.pipelines.evaluation.datasets import overview

    for entry in overview(data_root):
        typer.echo("  ".join(f"{key}: {value}" for key, value in entry.items() if isinstance(value, (str, int))))


def _name(folder: Path) -> str:
    from monailabel_app.weights.model_folder import VERSIONS

    return folder.parent.parent.name if folder.parent.name == VERSIONS else folder.name


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]
