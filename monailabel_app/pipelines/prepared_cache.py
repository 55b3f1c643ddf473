"""Healthy scans into model space, once: in parallel, and never again for the same voxels.

A scan is known again by its voxels, wherever it lies and whatever it is called; an unchanged file by its bytes alone,
without decoding it.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch

from monailabel_app.errors import AnomalyAppError, CorruptModel, TrainingFailed
from monailabel_app.io.images import read_volume
from monailabel_app.preprocessing.brain_mask import BrainExtractor
from monailabel_app.preprocessing.pipeline import PrepareSettings, Preprocessor
from monailabel_app.preprocessing.template import Template
from monailabel_app.training.cache import TrainingCache
from monailabel_app.types import BrainMask, Volume
from monailabel_app.weights.model_folder import sha256_of

from .prepared_store import VERSION, PreparedStore, StoredScan, purge
from .workers import WorkerDied, map_in_processes

__all__ = ["PreparedSet", "ScanSource", "prepare_sources", "purge"]

_LOG = logging.getLogger(__name__)
_SHIPPED = Path(__file__).resolve().parents[2] / "model_weights"
_DETACHED = (".nhdr", ".mhd")  # the voxels are in a file of a name that only the header knows


@dataclass(frozen=True)
class ScanSource:
    """A healthy scan to prepare. path: its file, or the folder of its DICOM series. patient: whom it shows."""

    path: Path
    id: str
    patient: str

    def files(self) -> list[Path]:
        """The files whose bytes make the scan; none where they cannot be told."""
        path = Path(self.path)
        if path.name.lower().endswith(_DETACHED):
            return []
        return sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]

    def read(self) -> tuple[Volume, BrainMask | None]:
        """The scan, and its brain mask where one is given. Raises what reading raises."""
        return read_volume(self.path), None


@dataclass(frozen=True)
class PreparedSet:
    """cache: the usable scans, in the order of their sources. refused: (id, reason). warnings: (id, sentence)."""

    cache: TrainingCache
    refused: tuple[tuple[str, str], ...]
    warnings: tuple[tuple[str, str], ...] = ()

    @property
    def digests(self) -> tuple[str, ...]:
        """Per scan of ``cache``, its name in the cache of prepared scans: what ``purge`` takes."""
        return self.cache.digests


@dataclass(frozen=True)
class _Recipe:
    """Everything but the scan that decides what comes out. hash: names it."""

    template_folder: Path
    extractor_folder: Path
    settings: PrepareSettings
    hash: str


@dataclass(frozen=True)
class _Made:
    """A worker's answer. key: of the files' bytes when they had been read. reason: why there is no scan."""

    digest: str = ""
    key: str = ""
    reason: str = ""


def prepare_sources(
    sources: Sequence[ScanSource],
    modality: str,
    cache_folder: Path,
    *,
    workers: int = 2,
    progress: Callable[[int, int], None] | None = None,
    settings: PrepareSettings = PrepareSettings(),
    template_folder: Path = _SHIPPED / "template",
    extractor_folder: Path = _SHIPPED / "brain_extraction",
) -> PreparedSet:
    """Bring scans into model space, or take them from ``cache_folder``/prepared where they have been before.

    workers: processes of one thread each; 0 works in this one. progress(done, total) is called after every scan.
    A scan that cannot be read or prepared, whose process dies, or that holds the same voxels as another one (a split
    could put it on both sides) is refused with its reason, which names no file; the rest goes on. Raises
    TrainingFailed when no scan is usable or the cache cannot be written, CorruptModel without template or extractor.
    """
    recipe = _recipe(Path(template_folder), Path(extractor_folder), settings)
    store = PreparedStore(cache_folder)
    store.remove_abandoned()
    found: dict[int, tuple[str, StoredScan]] = {}
    refused: dict[int, str] = {}
    keys: dict[int, str] = {}

    def take(index: int, digest: str, scan: StoredScan | None, reason: str = "") -> None:
        if scan is not None:
            found[index] = digest, scan
        else:
            refused[index] = reason
            _LOG.warning("scan %d of %d left out: %s", index + 1, len(sources), reason)
        if progress is not None:
            progress(len(found) + len(refused), len(sources))

    for index, source in enumerate(sources):
        try:
            keys[index] = _file_key(source, recipe)
        except OSError as error:
            take(index, "", None, _unreadable(error))
            continue
        digest = store.digest_of(keys[index]) if keys[index] else None
        scan = store.read(digest) if digest else None
        if scan is not None:
            take(index, digest, scan)

    missing = [index for index in keys if index not in found]
    job = partial(_prepare_one, cache_folder=Path(cache_folder), recipe=recipe)
    for position, made in map_in_processes(job, [sources[i] for i in missing], min(workers, len(missing))):
        index = missing[position]
        if isinstance(made, WorkerDied):
            reason = "expected a scan that can be prepared, its process died (for want of memory?); leave it out"
            made = _Made(reason=reason)
        scan = store.read(made.digest) if made.digest else None
        if scan is not None and made.key and made.key == keys[index]:
            store.remember(made.key, made.digest)
        take(index, made.digest, scan, made.reason or "its prepared file was removed meanwhile; prepare it again")

    _refuse_copies(found, refused)
    if not found:
        reason = f", the first: {refused[min(refused)]}" if refused else ""
        raise TrainingFailed(f"expected at least one usable scan, every one of {len(sources)} was refused{reason}")
    kept = sorted(found)
    warnings = [(i, sentence) for i in kept for sentence in found[i][1].warnings]
    for index, sentence in warnings:
        _LOG.warning("scan %d of %d: %s", index + 1, len(sources), sentence)
    cache = _assemble([found.pop(i) for i in kept], [sources[i] for i in kept], modality)
    return PreparedSet(
        cache,
        tuple((sources[i].id, refused[i]) for i in sorted(refused)),
        tuple((sources[i].id, sentence) for i, sentence in warnings),
    )


def _prepare_one(source: ScanSource, *, cache_folder: Path, recipe: _Recipe) -> _Made:
    """Runs in a worker: leaves the scan in the store and returns its digest, or the reason why there is none."""
    store = PreparedStore(cache_folder)
    try:
        volume, brain = source.read()
        key = _file_key(source, recipe)
        digest = _digest(volume, brain, recipe)
        if store.read(digest) is not None:
            return _Made(digest, key)
        template = _template(recipe)
        preprocessor = Preprocessor(template, lambda scan: _extractor(recipe).extract(scan))
        prepared = preprocessor.prepare(volume, recipe.settings, brain=brain)
    except AnomalyAppError as error:
        return _Made(reason=str(error))
    except OSError as error:
        return _Made(reason=_unreadable(error))
    except MemoryError:
        return _Made(reason="expected a scan that fits into memory, it did not; use fewer workers, or leave it out")
    except Exception as error:  # whatever a strange file provokes must not end the others
        return _Made(reason=f"expected a scan that can be prepared, got {type(error).__name__}; leave it out")
    store.write(digest, prepared, warnings=(*volume.warnings, *prepared.warnings))
    return _Made(digest, key)


def _recipe(template_folder: Path, extractor_folder: Path, settings: PrepareSettings) -> _Recipe:
    names = [template_folder / "model.safetensors"]
    names += [extractor_folder / "config.yaml", extractor_folder / "model.safetensors"]
    try:
        parts = [VERSION, asdict(settings), *(sha256_of(name) for name in names)]
    except OSError:
        raise CorruptModel(
            "expected the template and the brain extraction model to prepare scans with, found no "
            f"{template_folder.name}/ or {extractor_folder.name}/ that is complete; restore model_weights/"
        ) from None
    return _Recipe(template_folder, extractor_folder, settings, hashlib.sha256(json.dumps(parts).encode()).hexdigest())


def _file_key(source: ScanSource, recipe: _Recipe) -> str:
    """A hash of the scan's bytes, whatever its files are called; empty where not all of them are known.

    Raises OSError for what cannot be read.
    """
    files = source.files()
    if not files:
        return ""
    suffix = "folder" if Path(source.path).is_dir() else Path(source.path).suffix.lower()
    parts = [recipe.hash, type(source).__name__, suffix, *sorted(sha256_of(file) for file in files)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _digest(volume: Volume, brain: BrainMask | None, recipe: _Recipe) -> str:
    """The name of what ``recipe`` makes of these voxels."""
    digest = hashlib.sha256(recipe.hash.encode())
    digest.update(json.dumps(volume.data.shape).encode())
    digest.update(np.ascontiguousarray(volume.data, dtype=np.float32).view(np.uint8))
    digest.update(np.ascontiguousarray(volume.affine, dtype=np.float64).tobytes())
    if brain is not None:
        digest.update(np.packbits(brain.mask.reshape(-1)).tobytes())
    return digest.hexdigest()


def _refuse_copies(found: dict[int, tuple[str, StoredScan]], refused: dict[int, str]) -> None:
    seen: set[str] = set()
    for index in sorted(found):
        digest = found[index][0]
        if digest in seen:
            del found[index]
            refused[index] = "expected scans that differ, got the voxels of another one again; a copy teaches nothing"
            _LOG.warning("scan %d left out: %s", index + 1, refused[index])
        seen.add(digest)


def _assemble(scans: list[tuple[str, StoredScan]], sources: Sequence[ScanSource], modality: str) -> TrainingCache:
    """One cache of the scans; empties the list, so that no more than one copy of the images is held."""
    shape = scans[0][1].image.shape
    images = torch.empty((len(scans), *shape), dtype=torch.uint8)
    masks = torch.empty((len(scans), *shape), dtype=torch.bool)
    digests = tuple(digest for digest, _ in scans)
    while scans:
        _, scan = scans.pop()
        images[len(scans)] = torch.from_numpy(scan.image)
        masks[len(scans)] = torch.from_numpy(scan.brain_mask)
    ids, patients = tuple(s.id for s in sources), tuple(s.patient for s in sources)
    return TrainingCache(images, masks, ids, modality, patients, digests)


@lru_cache(maxsize=1)
def _template(recipe: _Recipe) -> Template:
    return Template.load(recipe.template_folder)


@lru_cache(maxsize=1)
def _extractor(recipe: _Recipe) -> BrainExtractor:
    return BrainExtractor.load(recipe.extractor_folder)


def _unreadable(error: OSError) -> str:
    # The error's own text names the file.
    return f"expected a readable scan, got {type(error).__name__}; restore its files"
