"""Where models lie, and what each of them needs beside it."""

from __future__ import annotations

from pathlib import Path

from monailabel_app.errors import CorruptModel, UnknownModel
from monailabel_app.weights.listing import list_models
from monailabel_app.weights.model_folder import VERSIONS
from monailabel_app.weights.versions import locate, split_id

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
    found = {name: entry.folder for name, entry in list_models(root).items() if entry.calibrated}
    if name not in found:
        known = ", ".join(found) or "none yet (train one, or restore model_weights/)"
        raise UnknownModel(f"expected a model out of {known}, or a model folder; got {name!r}")
    return found[name]
