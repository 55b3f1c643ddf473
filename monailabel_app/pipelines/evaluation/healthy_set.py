"""The healthy scans of a self-test: brains prepared once in the model's space, and the raw heads if there are any."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from monailabel_app.errors import EvaluationFailed, InvalidSettings
from monailabel_app.training.cache import TrainingCache, to_cache
from monailabel_app.types import Volume
from monailabel_app.weights.model_folder import open_model_folder

from ..levels import middle_slice
from ..predict import AnomalyModel, prepare
from ..prepare import list_sources
from ..prepared_cache import ScanSource, prepare_sources
from .datasets import described, load_dataset
from .description_file import read_description

Stage = Callable[[str, int, int], None]


@dataclass(frozen=True)
class HealthySet:
    """name: for reports, no path. cache: the prepared brains. heads: the raw scans in the same order, or none."""

    name: str
    cache: TrainingCache
    heads: tuple[ScanSource, ...] = field(default=(), repr=False)
    refused: int = 0

    @property
    def key(self) -> str:
        """Names the content of the prepared brains."""
        digest = hashlib.sha256(np.ascontiguousarray(self.cache.images.numpy()).tobytes())
        digest.update(np.packbits(self.cache.brain_masks.numpy()).tobytes())
        return digest.hexdigest()

    def head(self, index: int) -> Volume:
        """The raw scan of one brain."""
        return self.heads[index].read()[0]


def healthy_set(
    model: AnomalyModel,
    spec: str | Path,
    cache_folder: Path,
    *,
    data_root: Path | None = None,
    scans: int | None = None,
    workers: int = 2,
    stage: Stage | None = None,
) -> HealthySet:
    """Prepare healthy scans of a described set or a folder, or take a cache of prepared ones; ``scans`` at most.

    As many scans as the model was calibrated on are all kept: they may be those, and then each has to be read with the
    statistics of all others.

    spec: a name or .yaml file of a described set, a folder of scans, or a cache (.safetensors) as `main.py calibrate`
    takes them. Raises EvaluationFailed where there is no healthy scan, or the cache is of another grid.
    """
    path = Path(spec)
    if path.suffix == ".safetensors":
        cache = TrainingCache.load(path)
        wanted = model.template.shape if model.levels is None else (*model.template.shape[:2], 1)
        if tuple(cache.images.shape[1:]) != wanted:
            raise EvaluationFailed(
                f"expected brains prepared on the grid {wanted} of {model.id}, got {tuple(cache.images.shape[1:])}; "
                "give the scans themselves"
            )
        return HealthySet(path.stem, cache.select(range(len(cache))[: _kept(model, len(cache), scans)]))
    name, sources = _sources(spec, data_root)
    sources = sources[: _kept(model, len(sources), scans)]
    if not sources:
        raise EvaluationFailed(f"expected healthy scans in {name}, found none; give a set that marks scans as healthy")
    tell = stage or (lambda name, done, total: None)
    if model.levels is None:
        made = prepare_sources(
            sources,
            model.modality,
            cache_folder,
            workers=workers,
            progress=lambda done, total: tell("preparing healthy scans", done, total),
            settings=model.prepare_settings,
        )
        by_id = {source.id: source for source in sources}
        return HealthySet(name, made.cache, tuple(by_id[i] for i in made.cache.ids), len(made.refused))
    prepared = []
    for index, source in enumerate(sources):
        volume, brain = source.read()
        prepared.append(middle_slice(prepare(volume, model, brain=brain)))
        tell("preparing healthy scans", index + 1, len(sources))
    images, masks = [p.image for p in prepared], [p.brain_mask for p in prepared]
    cache = to_cache(images, masks, [s.id for s in sources], model.modality, [s.patient for s in sources])
    return HealthySet(name, cache)


def _kept(model: AnomalyModel, count: int, scans: int | None) -> int | None:
    return None if count == model.calibration.healthy.get("scans") else scans


def _sources(spec: str | Path, data_root: Path | None) -> tuple[str, list[ScanSource]]:
    path = Path(spec)
    if str(spec) in described() or path.suffix.lower() in (".yaml", ".yml"):
        found = load_dataset(spec, data_root=data_root)
        if found.slices:
            raise EvaluationFailed(
                f"expected healthy volumes, got the single slices of {found.name}; give the cache of prepared slices "
                "(.safetensors) that the model was calibrated on, or healthy volumes"
            )
        return found.name, [ScanSource(scan.image, scan.id, scan.patient) for scan in found.healthy]
    return path.name, list_sources(path)


def default_set(folder: Path) -> str:
    """The described set of healthy volumes of the sequence of the model in ``folder``. Raises InvalidSettings."""
    modality = str(open_model_folder(folder).config.get("modality", ""))
    for name, path in described().items():
        about = read_description(path).values
        marked = about.get("healthy") is True and about.get("layout") != "implanted" and "slices" not in about
        if about.get("modality") == modality and marked:
            return name
    raise InvalidSettings(
        f"expected healthy scans for a model of {modality} scans, no described set has any; give them with --healthy"
    )
