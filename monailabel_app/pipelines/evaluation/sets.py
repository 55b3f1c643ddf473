"""Data sets brought onto the model grid: each scan once, by parallel processes, kept on disk by its content."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from monailabel_app.errors import EvaluationFailed
from monailabel_app.preprocessing.pipeline import PrepareSettings
from monailabel_app.preprocessing.slice_alignment import level_of
from monailabel_app.preprocessing.template import Template
from monailabel_app.weights.version_layout import recorded_hash

from ..implants import list_shapes, plan_implants
from ..levels import Levels
from ..predict import SHIPPED_MODELS
from ..workers import WorkerDied, map_in_processes
from .cases import CaseSet, StoredCase, StoredCases, content_key, hash_files, set_key
from .dataset_types import EXTRACT, Dataset, DatasetScan
from .preparation import Implant, PrepareJob, Recipe, prepare_case

_LOG = logging.getLogger(__name__)
Stage = Callable[[str, int, int], None]
_QUICK_STEP = 5
FOLDER = "prepared"


@dataclass(frozen=True)
class _Planned:
    """A case to be: where it comes from and where it goes. key: of what a model sees; content: of its truth, too."""

    job: PrepareJob
    id: str
    patient: str
    key: str
    content: str
    attributes: Mapping[str, str | float] = field(default_factory=dict)
    source: str = ""

    def stored(self) -> StoredCase:
        # What a model sees differs by normalisation and levels.
        view = [self.key, self.job.path.stem, str(self.job.levels) if self.job.cut else ""]
        digest = hashlib.sha256("/".join(view).encode()).hexdigest()
        return StoredCase(
            self.id, self.patient, digest, self.job.path, self.job.cut, self.attributes, self.source, self.content
        )


class SetBuilder:
    """Prepares data sets under ``cache``; what is there already, by the content of its files, is not made again.

    quick: every fifth case only (of the healthy scans all: the calibration rests on them). workers: processes; 0 works
    in this one.
    """

    def __init__(
        self,
        cache: Path,
        *,
        workers: int = 0,
        quick: bool = False,
        device: str = "cpu",
        template: Path = SHIPPED_MODELS / "template",
        extractor: Path = SHIPPED_MODELS / "brain_extraction",
        stage: Stage | None = None,
    ) -> None:
        self._folder, self._workers, self._quick, self._device = Path(cache) / FOLDER, workers, quick, device
        self._template_folder, self._extractor_folder = template, extractor
        self._tell = stage or (lambda name, done, total: None)
        self._hashes: dict[Path, str] = {}

    @cached_property
    def template(self) -> Template:
        """The template that every model of the app shares."""
        return Template.load(self._template_folder)

    def build(
        self, dataset: Dataset, settings: PrepareSettings = PrepareSettings(), levels: Levels | None = None
    ) -> CaseSet:
        """One set, prepared as a model wants it; scans that cannot be prepared are in its ``skipped``.

        levels: those that a model of single levels analyses of a volume; every case then has them, too. Where a scan is
        there already in another normalisation, its brain mask and alignment, which do not depend on it, are taken from
        there. Raises EvaluationFailed for a set without a usable scan.
        """
        # Slices have their own normalisation and lie at one level, whatever a model wants of volumes.
        recipe = Recipe(
            self._template_folder,
            self._extractor_folder,
            PrepareSettings() if dataset.slices else settings,
            self._device,
            dataset.slices,
            level_of(dataset.level_mm, self.template) if dataset.slices else None,
            dataset.picture,
        )
        levels = None if dataset.slices else levels
        skipped: list[dict[str, str]] = []
        healthy = self._plan(dataset.healthy, recipe, levels, skipped)
        cases = self._plan(dataset.cases, recipe, levels, skipped)[:: _QUICK_STEP if self._quick else 1]
        made = self._fill(dataset, [*healthy, *cases], skipped)
        if dataset.implants is not None:
            cases = self._implants(dataset, healthy, recipe, levels, made)
            made |= self._fill(dataset, cases, skipped)
        usable = [[item.stored() for item in group if item.job.path in made] for group in (healthy, cases)]
        if not usable[0] and not usable[1]:
            reason = f", the first: {skipped[0]['reason']}" if skipped else ""
            raise EvaluationFailed(
                f"expected a usable scan in {dataset.name}, got none of {len(dataset.scans)}{reason}"
            )
        return CaseSet(
            name=dataset.name,
            title=dataset.title,
            modality=dataset.modality,
            key=set_key(*usable, quick=self._quick),
            healthy=StoredCases(usable[0]),
            cases=StoredCases(usable[1]),
            level=recipe.level,
            split=dataset.split,
            licence=dataset.licence,
            skipped=tuple(skipped),
        )

    def _plan(
        self, scans: Sequence[DatasetScan], recipe: Recipe, levels: Levels | None, skipped: list[dict[str, str]]
    ) -> list[_Planned]:
        planned = []
        for scan in scans:
            try:
                key = content_key(self._files(scan), self._source(recipe, brain=_brain_word(scan)))
            except OSError as error:
                reason = f"expected a readable scan, got {type(error).__name__}; restore its files"
                self._skip(skipped, scan.id, reason)
                continue
            content = _content(scan, key, lesioned=bool(scan.labels))
            job = self._job(scan, recipe, content, levels)
            planned.append(_Planned(job, scan.id, scan.patient, key, content, scan.attributes))
        return planned

    def _implants(
        self, dataset: Dataset, healthy: Sequence[_Planned], recipe: Recipe, levels: Levels | None, made: set[Path]
    ) -> list[_Planned]:
        rule = dataset.implants
        shapes = tuple(list_shapes(rule.shapes))
        digest = hashlib.sha256("\n".join(self._hash(shape) for shape in shapes).encode()).hexdigest()
        plans = plan_implants(
            len(dataset.healthy), len(shapes), rule.per_scan, seed=rule.seed, contrast=tuple(rule.contrast)
        )
        by_id = {item.id: item for item in healthy if item.job.path in made}
        planned = []
        # Counted over all plans, so that a scan that one kind of model cannot use does not change the others' cases.
        for number, plan in list(enumerate(plans))[:: _QUICK_STEP if self._quick else 1]:
            source = by_id.get(dataset.healthy[plan.scan].id)
            if source is None:
                continue
            key = content_key([("scan", source.key)], {"shapes": digest, "plan": vars(plan)})
            content = _content(source.job.scan, key, lesioned=True)
            job = self._job(source.job.scan, recipe, content, levels)
            job = replace(job, implant=Implant(plan, shapes, source.job.path))
            name = f"{source.id}-{number}"
            planned.append(_Planned(job, name, source.patient, key, content, source.attributes, source.id))
        return planned

    def _job(self, scan: DatasetScan, recipe: Recipe, key: str, levels: Levels | None) -> PrepareJob:
        name = "slice" if recipe.slices else recipe.settings.normalization
        folder = self._folder / key[:2] / key
        cut = folder / f"levels_{levels[0]}_{levels[1]}_{name}.safetensors" if levels is not None else None
        return PrepareJob(scan, recipe, folder / f"{name}.safetensors", None, levels, cut)

    def _fill(self, dataset: Dataset, planned: Sequence[_Planned], skipped: list[dict[str, str]]) -> set[Path]:
        """Prepare what is missing; the paths of all that is there afterwards."""
        missing = [item for item in planned if not _is_there(item.job)]
        done = len(planned) - len(missing)
        made = {item.job.path for item in planned if _is_there(item.job)}
        jobs = [item.job for item in missing]
        for index, reason in map_in_processes(prepare_case, jobs, min(self._workers, len(jobs))):
            if isinstance(reason, WorkerDied):
                reason = "expected a scan that can be prepared, its process died (for want of memory?); leave it out"
            if reason:
                self._skip(skipped, missing[index].id, reason)
            else:
                made.add(jobs[index].path)
            done += 1
            self._tell(f"preparing {dataset.name}", done, len(planned))
        return made

    @staticmethod
    def _skip(skipped: list[dict[str, str]], name: str, reason: str) -> None:
        _LOG.warning("a scan is left out: %s", reason)
        skipped.append({"id": name, "stage": "prepare", "reason": reason})

    def _files(self, scan: DatasetScan) -> list[tuple[str, str]]:
        files = [("image", scan.image), *(("label", path) for path in scan.labels)]
        if isinstance(scan.brain, Path):
            files.append(("brain", scan.brain))
        return [(role, self._hash(path)) for role, path in files]

    def _hash(self, path: Path) -> str:
        if path not in self._hashes:
            self._hashes[path] = hash_files(path)
        return self._hashes[path]

    def _source(self, recipe: Recipe, **more: object) -> dict[str, object]:
        return {
            "bias_field": recipe.settings.bias_field,
            "template": recorded_hash(self._template_folder),
            "extractor": recorded_hash(self._extractor_folder),
            "level": recipe.level,
            "picture": vars(recipe.picture) if recipe.picture is not None else None,
            **more,
        }


def _content(scan: DatasetScan, key: str, *, lesioned: bool) -> str:
    """The key of a case with its truth: of scans whose brain is extracted, lesions are kept whole since this rule."""
    whole = lesioned and scan.brain == EXTRACT
    return content_key([("case", key)], {"lesions": "whole"}) if whole else key


def _is_there(job: PrepareJob) -> bool:
    return job.path.is_file() and (job.cut is None or job.cut.is_file())


def _brain_word(scan: DatasetScan) -> str:
    return ("regions" if scan.regions else "mask") if isinstance(scan.brain, Path) else scan.brain
