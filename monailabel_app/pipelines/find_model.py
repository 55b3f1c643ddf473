"""Where models lie, and what each of them needs beside it."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Callable
from pathlib import Path

from monailabel_app.errors import CorruptModel, UnknownModel
from monailabel_app.weights.listing import list_models
from monailabel_app.weights.model_folder import VERSIONS
from monailabel_app.weights.versions import locate, split_id

from .sequences import default_model, sequence_of, stand_in

logger = logging.getLogger(__name__)

AUTO, SLICES = "auto", "flair slices"
SHIPPED_MODELS = Path(__file__).resolve().parents[2] / "model_weights"


def companion(folder: Path, name: str) -> Path:
    """The template or brain extraction that belongs to a model: beside it, or among the shipped ones."""
    model = folder.parent.parent if folder.parent.name == VERSIONS else folder
    for parent in (model.parent, model.parent.parent / "model_weights", SHIPPED_MODELS):
        if (parent / name).is_dir():
            return parent / name
    raise CorruptModel(f"expected the folder model_weights/{name}, which every model needs, found none; restore it")


def list_model_folders(root: Path) -> list[Path]:
    """The calibrated anomaly models of an app, by the folder that serves under each name."""
    return [entry.folder for entry in list_models(root).values() if entry.calibrated]


def find_model(name: str, root: Path) -> Path:
    """A model folder by its path, by its name (what serves), or by name and version, such as ``ddpm_t1@0002``.

    Raises UnknownModel that lists what there is.
    """
    if (Path(name) / "config.yaml").is_file():
        return Path(name)
    model, version = split_id(name)
    if version is not None:
        return locate(root, model, version)
    fault = no_such_model(name, root)
    if fault:
        raise UnknownModel(f"{fault}; or give a model folder")
    return list_models(root)[name].folder


def no_such_model(name: str, root: Path) -> str:
    """What to tell whoever asks for a name that no model has, and which one may be meant; empty where one has it."""
    names = [known for known, entry in list_models(root).items() if entry.calibrated]
    if name in names:
        return ""
    near = difflib.get_close_matches(name, names, n=1)
    meant = f" (meant: {near[0]}?)" if near else ""
    there_is = ", ".join(names) or "none yet (train one, or restore model_weights/)"
    return f"expected a model out of {there_is}; got {name!r}{meant}"


def find_model_for(file_name: str, model: str, root: Path, tell: Callable[[str], None] = logger.warning) -> Path:
    """As ``find_model``; ``auto`` is the model offered first for the sequence that the scan's name tells.

    A picture is a slice, for which the models of FLAIR slices are made; a name without a sequence is taken for T1.
    tell: told when that model is missing and another one takes its place. Raises UnknownModel.
    """
    if model != AUTO:
        return find_model(model, root)
    known = {name: entry for name, entry in list_models(root).items() if entry.calibrated}
    picture = file_name.lower().endswith(".png")
    sequence = SLICES if picture else sequence_of(file_name.split(".nii")[0].split(".nrrd")[0], {})
    name = default_model(known, sequence)
    if name is None:
        raise UnknownModel(
            f"expected a scan of a sequence that a model is made for, got {sequence!r} in its name; "
            "name the model: --model NAME (python main.py models list)"
        )
    if told := stand_in(known, sequence):
        tell(told)
    return find_model(name, root)
