"""Which of many healthy scans to train on, and which of them look wrong.

The selection needs no label: each scan becomes one vector by the shipped model's own network, which is not trained
further; the few scans farthest from the others are set aside, and k-centre greedy walks from the densest scan to
whatever is least covered yet (Meissen, Getzner et al., arXiv 2312.03804).
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from monailabel_app.errors import InvalidSettings
from monailabel_app.files import replacing
from monailabel_app.methods.diffusion import DiffusionEngine
from monailabel_app.training.cache import TrainingCache
from monailabel_app.training.core_set import rank
from monailabel_app.training.embeddings import VERSION, BrainEncoder

from .embedding_store import EmbeddingStore
from .predict import SHIPPED_MODELS, AnomalyModel
from .prepare import list_scans
from .prepared_cache import ScanSource, prepare_sources

DEFAULT_K = 25
UNLIKE_OTHERS = "unlike the other healthy scans"
EDGE_OF_POOL = "at the edge of the pool: among the 5 % least like the others"
_DENSEST = "most like the others"
_UNCOVERED = "least like those ranked before"
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Prototype:
    """One scan of the pool. distance: mean distance to its five nearest scans (root mean square of robust z-scores).

    gap: distance to the nearest scan ranked before it. proposed: train on it. outlier: set aside, never proposed.
    suspicious: so far off that somebody should look at it. reason: why it stands where it stands.
    """

    rank: int
    id: str
    proposed: bool
    outlier: bool
    suspicious: bool
    distance: float
    gap: float | None
    reason: str


@dataclass(frozen=True)
class PrototypeReport:
    """rows: best first. refused: (id, reason) of scans that could not be prepared. typical: median distance."""

    rows: tuple[Prototype, ...]
    refused: tuple[tuple[str, str], ...]
    k: int
    typical: float
    encoder: str

    @property
    def proposed(self) -> list[str]:
        """Ids to train on, best first."""
        return [row.id for row in self.rows if row.proposed]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "k": self.k,
            "encoder": self.encoder,
            "typical_distance": round(self.typical, 4),
            "rows": [
                {**vars(row), "distance": round(row.distance, 4), "gap": None if row.gap is None else round(row.gap, 4)}
                for row in self.rows
            ],
            "refused": [{"id": name, "reason": reason} for name, reason in self.refused],
        }


class Encoder:
    """The frozen encoder made from a diffusion model folder, and the name of what it computes."""

    def __init__(self, folder: Path = SHIPPED_MODELS / "ddpm_t1") -> None:
        """Raises CorruptModel; InvalidSettings for a model of another method than ddpm."""
        model = AnomalyModel(folder, calibrated=False)
        if model.meta["method"] != "ddpm":
            raise InvalidSettings(
                f"expected a ddpm model to compare scans with, got {model.id} ({model.meta['method']}); "
                "use ddpm_t1 or another ddpm model"
            )
        heights = np.flatnonzero(model.template.brain_mask.any(axis=(0, 1)))
        diffusion = model.config.diffusion
        timestep = DiffusionEngine(diffusion).timestep(diffusion.train_levels[1])
        self._encoder = BrainEncoder(model.network, timestep, (int(heights[0]), int(heights[-1])))
        self.id, self.modality = model.id, model.modality
        self.key = hashlib.sha256(json.dumps([VERSION, model.hash]).encode()).hexdigest()

    def embed(self, cache: TrainingCache, index: int) -> np.ndarray:
        """(d,) float32 of one scan of a cache."""
        return self._encoder.embed(cache.images[index], cache.brain_masks[index]).numpy()


def rank_cache(
    cache: TrainingCache,
    *,
    k: int = DEFAULT_K,
    encoder: Encoder | None = None,
    store: EmbeddingStore | None = None,
    refused: Sequence[tuple[str, str]] = (),
    progress: Progress | None = None,
) -> PrototypeReport:
    """Rank the scans of a training cache and propose the first ``k`` that are not set aside.

    The result does not depend on the order of the scans. Raises InvalidSettings for k < 1.
    """
    if k < 1:
        raise InvalidSettings(f"expected a number of scans to propose of at least 1, got {k}")
    encoder = encoder or Encoder()
    order = sorted(range(len(cache)), key=lambda index: cache.ids[index])
    embeddings = []
    for done, index in enumerate(order):
        embeddings.append(_embed(cache, index, encoder, store))
        if progress is not None:
            progress(done + 1, len(order))
    ids = [cache.ids[index] for index in order]
    return rank_embeddings(ids, np.stack(embeddings), k=k, encoder=encoder.id, refused=refused)


def rank_folder(
    folder: Path,
    cache_folder: Path,
    *,
    k: int = DEFAULT_K,
    encoder: Encoder | None = None,
    workers: int = 2,
    stage: Callable[[str, int, int], None] | None = None,
) -> PrototypeReport:
    """Rank the NIfTI and NRRD files of a folder; ids are file names. What cannot be prepared is listed as refused.

    Raises TrainingFailed without a usable scan.
    """
    encoder = encoder or Encoder()
    sources = [ScanSource(path, path.name, path.name) for path in list_scans(folder)]
    tell = (lambda name: lambda *now: stage(name, *now)) if stage is not None else (lambda name: None)
    made = prepare_sources(
        sources, encoder.modality, cache_folder, workers=workers, progress=tell("preparing scans")
    )
    store = EmbeddingStore(cache_folder, encoder.key)
    return rank_cache(
        made.cache, k=k, encoder=encoder, store=store, refused=made.refused, progress=tell("comparing scans")
    )


def rank_embeddings(
    ids: Sequence[str],
    embeddings: np.ndarray,
    *,
    k: int,
    encoder: str = "",
    refused: Sequence[tuple[str, str]] = (),
) -> PrototypeReport:
    """The report for embeddings (n, d) of scans given in the order of their ids."""
    ranking = rank(embeddings)
    rows = []
    for position, index in enumerate(ranking.order):
        outlier, wrong = bool(ranking.outlier[index]), bool(ranking.suspicious[index])
        gap = None if np.isnan(ranking.gap[index]) else float(ranking.gap[index])
        reason = UNLIKE_OTHERS if wrong else EDGE_OF_POOL if outlier else _DENSEST if position == 0 else _UNCOVERED
        rows.append(
            Prototype(
                rank=position + 1,
                id=ids[index],
                proposed=not outlier and position < k,
                outlier=outlier,
                suspicious=wrong,
                distance=float(ranking.spread[index]),
                gap=gap,
                reason=reason,
            )
        )
    return PrototypeReport(tuple(rows), tuple(refused), k, float(np.median(ranking.spread)), encoder)


def embed_file(path: Path, encoder: Encoder, cache_folder: Path) -> tuple[np.ndarray, bool]:
    """The embedding of one scan (a file or a DICOM folder), and whether it had been made before.

    Prepares the scan in this process unless that was done before. Raises AnomalyAppError for an unusable scan.
    """
    prepared = prepare_sources([ScanSource(Path(path), "scan", "scan")], encoder.modality, cache_folder, workers=0)
    store = EmbeddingStore(cache_folder, encoder.key)
    known = store.get(prepared.digests[0])
    return (known, True) if known is not None else (_embed(prepared.cache, 0, encoder, store), False)


def write_list(report: PrototypeReport, path: Path) -> None:
    """A CSV for ``--conf healthy_list``: proposed scans are healthy, suspicious ones not, the others undecided.

    Raises InvalidSettings when the file cannot be written.
    """
    try:
        with replacing(path) as partial, partial.open("w", newline="", encoding="utf-8") as handle:
            table = csv.writer(handle)
            table.writerow(["image", "healthy", "rank", "distance", "reason"])
            for row in report.rows:
                healthy = "yes" if row.proposed else "no" if row.suspicious else "n/a"
                table.writerow([row.id, healthy, row.rank, f"{row.distance:.3f}", row.reason])
    except OSError as error:
        raise InvalidSettings(
            f"expected a place where the list can be written, got {type(error).__name__}; choose another file"
        ) from error


def _embed(cache: TrainingCache, index: int, encoder: Encoder, store: EmbeddingStore | None) -> np.ndarray:
    digest = cache.digests[index] if cache.digests else ""
    known = store.get(digest) if store is not None and digest else None
    if known is not None:
        return known
    made = encoder.embed(cache, index)
    if store is not None and digest:
        store.put(digest, made)
    return made
