"""Where a training begins: with the weights that serve, with those of another model, or with none."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from monailabel_app.errors import CorruptModel, InvalidSettings
from monailabel_app.preprocessing.pipeline import PrepareSettings
from monailabel_app.registry import load_method
from monailabel_app.training.completion import is_computed
from monailabel_app.training.manifest import MANIFEST
from monailabel_app.weights import versions
from monailabel_app.weights.model_folder import CONFIG

from .site_options import SCRATCH, SERVING, SiteOptions


def start_folder(root: Path, options: SiteOptions) -> Path | None:
    """The folder of the model to start from, None for random weights.

    A private training starts from public weights only, so for it what serves means the shipped model of that name.
    A method that is computed from the scans starts from nothing. Raises InvalidSettings for another method's model and
    for a private training from none, from a model trained at this site or from one that prepares scans in another way,
    UnknownModel for one that is not there.
    """
    private = options.privacy is not None
    if not private and is_computed(load_method(options.method)):
        if options.start_from in (SERVING, SCRATCH):
            return None  # it follows from this site's scans alone
        raise InvalidSettings(
            f"expected no weights to start {options.method} from, which is computed from the scans, got "
            f"{options.start_from}; leave start_from out"
        )
    if options.start_from == SCRATCH:
        folder = None
    elif options.start_from == SERVING and private:
        folder = _shipped(root, options.name)
    elif options.start_from == SERVING:
        folder = versions.current(root, options.name)
    else:
        folder = versions.locate(root, *versions.split_id(options.start_from))
    if folder is None:
        if private:
            raise InvalidSettings(
                "expected public weights to start a private training from, got none: a few hundred private scans are "
                "too few from scratch; choose start_from, for example ddpm_t1@shipped"
            )
        return None
    if private and (folder / MANIFEST).is_file():
        raise InvalidSettings(
            "expected public weights to start a private training from, got a model trained at this site: what it has "
            "learnt from the same patients is outside the budget; choose start_from, for example ddpm_t1@shipped"
        )
    config = _config(folder)
    if private and not prepares_as_here(config):
        raise InvalidSettings(
            "expected a model of whole volumes with the usual normalisation to start a private training from, whose "
            f"thresholds are kept, got {folder.name}, which prepares scans in another way; choose start_from"
        )
    method = config.get("method")
    if method != options.method:
        raise InvalidSettings(
            f"expected weights of {options.method} to start from, got a model of {method}; choose another start_from "
            "or model_name"
        )
    return folder


def prepares_as_here(config: Mapping[str, Any]) -> bool:
    """Whether a model wants its scans as a site's training prepares them: whole volumes, the usual normalisation."""
    usual = (False, PrepareSettings().normalization)
    wanted = (bool(config.get("bias_field", False)), str(config.get("normalization", usual[1])))
    return config.get("levels") is None and wanted == usual


def _shipped(root: Path, name: str) -> Path | None:
    folder = Path(root) / "model_weights" / name
    return folder if (folder / CONFIG).is_file() else None


def _config(folder: Path) -> dict[str, Any]:
    try:
        config = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise CorruptModel(f"expected a readable {folder.name}/{CONFIG}, got {type(error).__name__}") from error
    return config if isinstance(config, dict) else {}
