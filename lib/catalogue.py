"""Which models the app can offer: the folders with a ``config.yaml`` of ``kind: anomaly``.

Only the small text file is read, so that listing the models is cheap: MONAI Label builds the app anew in
every sub-process.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from monailabel_app.errors import UnknownModel

logger = logging.getLogger(__name__)

KIND = "anomaly"
SHIPPED = "model_weights"
TRAINED = "model"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class ModelEntry:
    """A model folder as its ``config.yaml`` describes it.

    name: the folder's name, which is the model's name in the viewers. method: id in the registry, such as
    ``ddpm``.
    """

    name: str
    folder: Path
    method: str
    config: Mapping[str, Any]

    @property
    def modality(self) -> str:
        """The sequence the model was trained on, such as ``t1``."""
        return str(self.config.get("modality") or "unknown")

    @property
    def training_data(self) -> str:
        """Name and licence of the healthy scans, in words; empty when the folder does not say."""
        data = self.config.get("training_data") or self.config.get("data") or ""
        if isinstance(data, Mapping):
            data = ", ".join(str(data[key]) for key in ("name", "licence", "license") if data.get(key))
        return str(data)


def list_models(app_dir: str | Path) -> dict[str, ModelEntry]:
    """Every anomaly model under ``app_dir``, by name; a trained one replaces a shipped namesake."""
    entries: dict[str, ModelEntry] = {}
    for parent in (Path(app_dir) / SHIPPED, Path(app_dir) / TRAINED):
        if not parent.is_dir():
            continue
        for folder in sorted(parent.iterdir()):
            entry = read_entry(folder)
            if entry is not None:
                entries[entry.name] = entry
    return entries


def read_entry(folder: Path) -> ModelEntry | None:
    """The model in ``folder``; None when it holds something else or cannot be read (which is logged)."""
    path = folder / "config.yaml"
    if not path.is_file():
        return None
    if not _NAME.fullmatch(folder.name):
        logger.warning("model folder %r is left out: its name needs letters, digits, '.', '_' or '-'", folder.name)
        return None
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        logger.warning("model folder %r is left out: its config.yaml cannot be read (%s)", folder.name, error)
        return None
    if not isinstance(config, Mapping) or config.get("kind") != KIND:
        return None
    return ModelEntry(folder.name, folder, str(config.get("method") or ""), config)


def choose(available: Mapping[str, ModelEntry], wanted: str | None) -> dict[str, ModelEntry]:
    """The models that ``--conf models`` asks for: ``all`` (also when absent) or names separated by commas.

    Raises UnknownModel naming what there is.
    """
    names = [name.strip() for name in (wanted or "all").split(",") if name.strip()]
    if not names or "all" in names:
        return dict(available)
    unknown = [name for name in names if name not in available]
    if unknown:
        there_is = ", ".join(available) or "none yet (train one, or copy a model folder into model_weights/)"
        raise UnknownModel(
            f"--conf models asks for {', '.join(repr(name) for name in unknown)}, which is not here. "
            f"Available: {there_is}. Use these names, or 'all'."
        )
    return {name: available[name] for name in names}
