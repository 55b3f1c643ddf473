"""Every model on every scan that it has not seen yet, by parallel processes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from monailabel_app.errors import AnomalyAppError
from monailabel_app.weights.model_folder import weights_hash

from ..analysis import Analysis
from ..members import EnsembleEvidence, combine_evidence, own_statistics
from ..memory import peak_memory_mb, reset_peak_memory
from ..predict import AnomalyModel, PredictSettings, analyse, load_model
from ..workers import WorkerDied, map_in_processes
from .cases import CaseReference
from .store import AnalysisStore, Costs


@dataclass(frozen=True)
class Part:
    """A network that a model rests on: itself, or one member of an ensemble.

    hash: of its configuration and weights. scores: those whose raw maps are needed.
    """

    folder: Path
    hash: str
    scores: tuple[str, ...]


@dataclass(frozen=True)
class AnalysisJob:
    """One scan for one network."""

    part: Part
    case: CaseReference
    cache: Path
    device: str = "cpu"


def parts_of(model: AnomalyModel, scores: Sequence[str]) -> tuple[Part, ...]:
    """What has to be analysed before the maps of these scores follow."""
    if not model.members:
        return (Part(model.folder, weights_hash(model.folder), tuple(scores)),)
    pairs = zip(model.members, model.config.scores, strict=True)
    return tuple(Part(member.folder, weights_hash(member.folder), (score,)) for member, score in pairs)


def analyse_missing(jobs: Sequence[AnalysisJob], workers: int) -> Iterator[tuple[int, str]]:
    """Run the analyses that are not in the store: ``(index, reason)`` as each is done, reason empty when it is there.

    Jobs of one network should follow each other: a process keeps the network that it used last.
    """
    merged: dict[tuple[str, str], list[int]] = {}
    for index, job in enumerate(jobs):
        merged.setdefault((job.part.hash, job.case.key), []).append(index)
    wanted, owners = [], []
    for indices in merged.values():
        first = jobs[indices[0]]
        scores = tuple(dict.fromkeys(score for i in indices for score in jobs[i].part.scores))
        if AnalysisStore(first.cache).holds(first.part.hash, first.case.key, scores):
            yield from ((index, "") for index in indices)
        else:
            wanted.append(
                AnalysisJob(Part(first.part.folder, first.part.hash, scores), first.case, first.cache, first.device)
            )
            owners.append(indices)
    for position, reason in map_in_processes(_analyse_one, wanted, min(workers, len(wanted))):
        if isinstance(reason, WorkerDied):
            reason = "expected an analysis that fits into memory, its process died; use fewer workers, or leave it out"
        yield from ((index, reason) for index in owners[position])


def read_analysis(model: AnomalyModel, case: CaseReference, cache: Path, *, own: bool = False) -> Analysis:
    """A case and what the model made of it, from disk.

    own: the maps of an ensemble by its members' own calibrations are asked for, too. Raises AnomalyAppError where the
    analysis is not there any more.
    """
    loaded = case.load()
    prepared = loaded.cut or loaded.prepared
    store = AnalysisStore(cache)
    found = [store.read(part.hash, case.key, prepared) for part in _parts(model)]
    if any(scan is None for scan in found):
        raise AnomalyAppError("expected the analysis of a scan in the cache, it was removed meanwhile; run it again")
    if not model.members:
        return found[0]
    members = tuple(scan.evidence for scan in found)
    maps = combine_evidence(model, prepared, members, own_statistics(model)) if own else {}
    return Analysis(prepared, EnsembleEvidence(prepared.image[0], prepared.brain_mask, None, maps, members=members))


def costs_of(model: AnomalyModel, case: CaseReference, cache: Path) -> Costs:
    """What the analysis took, of all members together."""
    store = AnalysisStore(cache)
    return sum((store.costs(part.hash, case.key) or Costs() for part in _parts(model)), Costs())


@lru_cache(maxsize=1)
def loaded_model(folder: Path, model_hash: str) -> AnomalyModel:
    """The model in a folder; the last one is kept. model_hash: so that a changed folder is another model."""
    return load_model(folder)


@lru_cache(maxsize=1)
def _parts(model: AnomalyModel) -> tuple[Part, ...]:
    return parts_of(model, ())


def _analyse_one(job: AnalysisJob) -> str:
    """Runs in a worker: leaves the analysis in the store and returns why it could not, without any name or path."""
    try:
        model = loaded_model(job.part.folder, job.part.hash)
        case = job.case.load()
        prepared, settings = case.cut or case.prepared, PredictSettings(device=job.device)
        reset_peak_memory(job.device)
        wall, busy = time.perf_counter(), time.process_time()
        scan = analyse(prepared, model, settings)
        costs = Costs(time.perf_counter() - wall, time.process_time() - busy, peak_memory_mb(job.device))
        # Maps that are there anyway are kept for the other scores of a later run.
        store = AnalysisStore(job.cache)
        at_hand = (s for s in model.scores if s in scan.evidence.maps)
        scores = dict.fromkeys((*job.part.scores, *at_hand, *store.scores(job.part.hash, job.case.key)))
        store.write(job.part.hash, job.case.key, scan, tuple(scores), costs)
        return ""
    except AnomalyAppError as error:
        return str(error)
    except MemoryError:
        return "expected a scan that fits into memory, it did not; use fewer workers, or leave it out"
    except Exception as error:  # one scan's fault must not end the others
        return f"expected an analysis, got {type(error).__name__}"
