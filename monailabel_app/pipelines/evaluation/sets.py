"""The development sets of the comparison: which scans, where their lesions are, and how they are prepared."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from monailabel_app.errors import AnomalyAppError, EvaluationFailed
from monailabel_app.io.geometry import resample
from monailabel_app.io.images import read_volume
from monailabel_app.preprocessing.brain_mask import BrainExtractor
from monailabel_app.preprocessing.normalize import NORMALIZATIONS
from monailabel_app.preprocessing.pipeline import PrepareSettings, Preprocessor
from monailabel_app.preprocessing.slice_alignment import level_of
from monailabel_app.preprocessing.template import Template
from monailabel_app.types import BrainMask, PreparedVolume, Volume
from monailabel_app.weights.version_layout import recorded_hash

from ..analysis import Analysis, Evidence
from ..detection import Case, implanted_cases, stored_case
from ..ixi import list_ixi
from ..levels import Levels, at_levels
from ..predict import SHIPPED_MODELS
from ..soop import LEVEL_MM, lesion_cases, list_soop
from .cases import (
    CaseSet,
    PreparedCase,
    StoredCases,
    alignment_of,
    load_case,
    on_model_grid,
    save_case,
    set_key,
)

Stage = Callable[[str, int, int], None]
SEED = 7  # the implants of `evaluate`
_QUICK_STEP = 5


@dataclass(frozen=True)
class SetInfo:
    """title: for tables. modality: the sequence of the scans. slices: single slices instead of volumes."""

    name: str
    title: str
    modality: str
    slices: bool = False


SETS = {
    info.name: info
    for info in (
        SetInfo("ixi_implanted", "Lesions implanted into healthy T1 heads (ixi_t1 val), 10 to 40 % contrast", "t1"),
        SetInfo("mslub_t1", "Multiple sclerosis, T1, one patient (mslub patient26)", "t1"),
        SetInfo("soop_flair", "Acute stroke, one FLAIR slice each (soop_flair val_lesion)", "flair", slices=True),
        SetInfo("brats2015_flair", "Glioma, FLAIR volumes (brats2015, two patients)", "flair"),
        SetInfo("mslub_flair", "Multiple sclerosis, FLAIR volume, one patient (mslub patient26)", "flair"),
        SetInfo("mslub_t2", "Multiple sclerosis, T2 volume, one patient (mslub patient26)", "t2"),
    )
}


def sets_for(modality: str) -> list[SetInfo]:
    """The sets that a model of this modality is measured on; ``any`` on all."""
    wanted = modality.lower()
    return [info for info in SETS.values() if wanted in ("any", info.modality)]


class SetBuilder:
    """Prepares the sets of a data folder, each once, under ``cache``; what is there already is not made again.

    per_scan: implanted lesions per healthy head. quick: every fifth case only (of the healthy scans all: the
    calibration rests on them).
    """

    def __init__(
        self,
        data: Path,
        cache: Path,
        *,
        per_scan: int = 2,
        quick: bool = False,
        device: str = "cpu",
        template: Path = SHIPPED_MODELS / "template",
        extractor: Path = SHIPPED_MODELS / "brain_extraction",
        stage: Stage | None = None,
    ) -> None:
        self._data, self._cache, self._per_scan, self._quick = data, cache, per_scan, quick
        self._device, self._template_folder, self._extractor_folder = device, template, extractor
        self._tell = stage or (lambda name, done, total: None)

    def build(self, name: str, settings: PrepareSettings = PrepareSettings(), levels: Levels | None = None) -> CaseSet:
        """One set, prepared as a model wants it. Raises EvaluationFailed and TrainingFailed.

        levels: those that a model of single levels analyses of a volume; every case then has them, too.

        Where the same set is there already in another normalisation, its brain masks and alignments, which do not
        depend on it, are taken from there.
        """
        info = SETS[name]
        if name == "ixi_implanted":
            return self._implanted(info, settings)
        return self._soop(info, settings) if info.slices else self._volumes(info, settings, levels)

    @cached_property
    def template(self) -> Template:
        """The template that every model of the app shares."""
        return Template.load(self._template_folder)

    @cached_property
    def _preprocessor(self) -> Preprocessor:
        return Preprocessor(self.template, lambda scan: self._extractor.extract(scan))

    @cached_property
    def _extractor(self) -> BrainExtractor:
        return BrainExtractor.load(self._extractor_folder, device=self._device)

    def _implanted(self, info: SetInfo, settings: PrepareSettings) -> CaseSet:
        scans = list_ixi(self._data / info.name.replace("implanted", "t1"), "val")
        shapes = self._data / "lesion_shapes"
        files = [file for scan in scans for file in (scan.image, scan.regions)] + sorted(shapes.glob("*.nii.gz"))
        folder, key = self._folder(info, files, settings, per_scan=self._per_scan, seed=SEED)

        def healthy(index: int) -> PreparedCase:
            scan = scans[index]
            path = folder / f"healthy_{index:03d}.safetensors"
            prepared, seconds = self._prepare(scan.volume(), settings, path)
            counted = on_model_grid(scan.brain_mask(), prepared)
            return PreparedCase(scan.id, scan.id, prepared, np.zeros_like(counted), counted, index, {}, seconds)

        kept = self._fill(folder, "healthy", range(len(scans)), healthy, info)
        wanted = self._chosen(len(scans) * self._per_scan)
        paths = [folder / f"case_{index:03d}.safetensors" for index in wanted]
        if not all(path.is_file() for path in paths):
            self._implant(info, folder, scans, kept, shapes, settings, dict(zip(wanted, paths, strict=True)))
        return CaseSet(info.name, info.title, info.modality, key, StoredCases(kept), StoredCases(paths))

    def _implant(self, info, folder, scans, kept, shapes, settings, paths: dict[int, Path]) -> None:
        aligned = [_aligned(load_case(path)) for path in kept]
        cases = implanted_cases(
            scans,
            aligned,
            shapes,
            self.template.brain_mask,
            self.template.affine,
            per_scan=self._per_scan,
            seed=SEED,
        )
        for index, case in enumerate(cases):
            if index in paths and not paths[index].is_file():
                patient = scans[case.scan].id
                name = f"{patient}-{index}"
                save_case(paths[index], self._prepared_case(name, patient, case, settings, paths[index]))
                self._tell(f"preparing {info.name}", 1 + list(paths).index(index), len(paths))

    def _volumes(self, info: SetInfo, settings: PrepareSettings, levels: Levels | None) -> CaseSet:
        found = list(_labelled_volumes(self._data, info.name))
        folder, key = self._folder(info, [file for item in found for file in item.files], settings)

        def case(index: int) -> PreparedCase:
            item = found[index]
            loaded, brain = item.load()
            path = folder / f"case_{index:03d}.safetensors"
            return self._prepared_case(item.id, item.id, loaded, settings, path, brain)

        paths = self._fill(folder, "case", range(len(found)), case, info)
        cuts = self._cut(folder, found, settings, levels, info) if levels is not None else ()
        return CaseSet(info.name, info.title, info.modality, key, (), StoredCases(paths, cuts))

    def _cut(
        self, folder: Path, found: list[_Labelled], settings: PrepareSettings, levels: Levels, info: SetInfo
    ) -> list[Path]:
        def cut(index: int) -> PreparedCase:
            loaded, brain = found[index].load()
            started = time.perf_counter()
            whole = self._preprocessor.prepare(loaded.volume, settings, brain=brain)
            made = at_levels(whole, loaded.volume, self.template, levels)
            nothing, seconds = np.zeros_like(made.brain_mask), time.perf_counter() - started
            return PreparedCase(found[index].id, found[index].id, made, nothing, nothing, seconds=seconds)

        return self._fill(folder / f"levels_{levels[0]}_{levels[1]}", "case", range(len(found)), cut, info)

    def _soop(self, info: SetInfo, settings: PrepareSettings) -> CaseSet:
        data, splits = self._data / info.name, ("val_free", "val_lesion")
        files = [file for split in splits for item in list_soop(data, split) for file in (item.image, item.lesion)]
        # Slices have their own normalisation, whatever that of volumes is.
        folder, key = self._folder(info, files, PrepareSettings())
        found = {}
        for split in splits:
            paths = [folder / f"{split}_{index:03d}.safetensors" for index in range(len(list_soop(data, split)))]
            if not all(path.is_file() for path in paths):
                self._keep_slices(info, split, paths)
            found[split] = paths
        cases = [found["val_lesion"][index] for index in self._chosen(len(found["val_lesion"]))]
        level = level_of(LEVEL_MM, self.template)
        return CaseSet(
            info.name, info.title, info.modality, key, StoredCases(found["val_free"]), StoredCases(cases), level
        )

    def _keep_slices(self, info: SetInfo, split: str, paths: list[Path]) -> None:
        self._tell(f"preparing {info.name} {split}", 0, len(paths))
        started = time.perf_counter()
        found = lesion_cases(self._data / info.name, self.template, split)
        each = (time.perf_counter() - started) / max(len(found), 1)
        for index, (path, item) in enumerate(zip(paths, found, strict=True)):
            brain = item.prepared.brain_mask
            scan, details = (
                (index, {}) if split == "val_free" else (None, {"volume_ml": float(item.gt_mask.sum()) / 125})
            )
            save_case(path, PreparedCase(item.id, item.id, item.prepared, item.gt_mask, brain, scan, details, each))
        self._tell(f"preparing {info.name} {split}", len(paths), len(paths))

    def _chosen(self, count: int) -> list[int]:
        return list(range(0, count, _QUICK_STEP if self._quick else 1))

    def _folder(self, info: SetInfo, files: list[Path], settings: PrepareSettings, **more: object) -> tuple[Path, str]:
        missing = [file.name for file in files if not file.is_file()]
        if missing or not files:
            raise EvaluationFailed(
                f"expected the files of {info.name} in the data folder, missing: {', '.join(missing[:3]) or 'all'}"
            )
        source = {
            "set": info.name,
            "bias_field": settings.bias_field,
            "template": recorded_hash(self._template_folder),
            "extractor": recorded_hash(self._extractor_folder),
            **more,
        }
        # The same brains in another normalisation lie beside each other.
        key = set_key(files, source)
        folder = self._cache / f"{info.name}-{key[:12]}" / settings.normalization
        return folder, f"{key}-quick" if self._quick else key

    def _fill(
        self, folder: Path, kind: str, indices: Iterable[int], make: Callable[[int], PreparedCase], info: SetInfo
    ) -> list[Path]:
        indices = list(indices)
        paths = [folder / f"{kind}_{index:03d}.safetensors" for index in indices]
        for done, (index, path) in enumerate(zip(indices, paths, strict=True), start=1):
            if not path.is_file():
                try:
                    save_case(path, make(index))
                except AnomalyAppError as error:
                    raise EvaluationFailed(f"{info.name}: {kind} {index} cannot be prepared: {error}") from error
                self._tell(f"preparing {info.name} {kind}", done, len(paths))
        return paths

    def _prepare(
        self, volume: Volume, settings: PrepareSettings, path: Path, brain: BrainMask | None = None
    ) -> tuple[PreparedVolume, float]:
        started = time.perf_counter()
        twin = _twin(path)
        if twin is not None and not settings.bias_field:
            return _normalized_anew(twin, volume, settings), twin.seconds
        prepared = self._preprocessor.prepare(volume, settings, brain=brain)
        return prepared, time.perf_counter() - started

    def _prepared_case(
        self, name: str, patient: str, case: Case, settings: PrepareSettings, path: Path, brain: BrainMask | None = None
    ) -> PreparedCase:
        prepared, seconds = self._prepare(case.volume, settings, path, brain)
        counted = on_model_grid(case.brain_mask, prepared)
        truth = on_model_grid(case.gt_mask, prepared) & counted
        return PreparedCase(name, patient, prepared, truth, counted, case.scan, case.details, seconds)


def _twin(path: Path) -> PreparedCase | None:
    """The same case as prepared in another normalisation, if it was."""
    others = (path.parent.parent / name / path.name for name in NORMALIZATIONS if name != path.parent.name)
    return next((load_case(other) for other in others if other.is_file()), None)


def _normalized_anew(twin: PreparedCase, volume: Volume, settings: PrepareSettings) -> PreparedVolume:
    """What preprocessing makes of the volume, with the brain mask and the alignment that it made before."""
    made, alignment = twin.prepared, alignment_of(twin.prepared)
    shape, affine = made.brain_mask.shape, made.model_affine
    image = resample(volume.data[0], volume.affine, shape, affine, transform=alignment)
    normalized, _ = NORMALIZATIONS[settings.normalization](image, made.brain_mask)
    return replace(
        made,
        image=normalized[None],
        native_to_template=alignment,
        native_affine=volume.affine,
        native_shape=volume.shape,
    )


@dataclass(frozen=True)
class _Labelled:
    """A scan from files. brain: a mask file, for scans whose background is not zero."""

    id: str
    image: Path
    labels: Path
    brain: Path | None = None

    @property
    def files(self) -> list[Path]:
        return [file for file in (self.image, self.labels, self.brain) if file is not None]

    def load(self) -> tuple[Case, BrainMask | None]:
        case = stored_case(self.image, self.labels)
        if self.brain is None:
            return case, None
        mask = read_volume(self.brain).data[0] > 0.5
        return replace(case, brain_mask=mask), BrainMask(mask, "given")


def _labelled_volumes(data: Path, name: str) -> Iterator[_Labelled]:
    if name.startswith("mslub_"):
        folder = data / "mslub" / "patient26"
        sequence = name.removeprefix("mslub_").upper()
        yield _Labelled("patient26", folder / f"{sequence}.nii.gz", folder / "GOLD_STANDARD.nii.gz")
        return
    for folder in sorted(path for path in (data / "brats2015").glob("*") if path.is_dir()):
        yield _Labelled(
            folder.name,
            folder / "Flair_subtrMeanDivStd.nii.gz",
            folder / "OTMultiClass.nii.gz",
            folder / "brainmask.nii.gz",
        )


def _aligned(case: PreparedCase) -> Analysis:
    """What placing an implant needs of a healthy scan: its alignment."""
    prepared = replace(case.prepared, native_to_template=alignment_of(case.prepared))
    return Analysis(prepared, Evidence(prepared.image[0], prepared.brain_mask))
