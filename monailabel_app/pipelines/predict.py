"""One scan in, one finding out: what the viewer, the command line and the evaluation all call."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from monailabel_app.calibration.calibrated_map import SMOOTHING_MM, Calibration, calibrated_map, scan_score, slice_score
from monailabel_app.calibration.false_volume import SMALLEST_LESION_ML
from monailabel_app.calibration.operating_points import POINTS
from monailabel_app.calibration.voxel_statistics import PRIOR_SCANS
from monailabel_app.errors import CorruptModel, InvalidSettings, InvalidVolume, ScanRefused
from monailabel_app.metrics.imagewise import rank_p_value
from monailabel_app.postprocessing.components import LARGEST_VOLUME_LIMIT_ML, find_lesions
from monailabel_app.postprocessing.delineate import delineated
from monailabel_app.preprocessing.brain_mask import BrainExtractor
from monailabel_app.preprocessing.normalize import NORMALIZATIONS
from monailabel_app.preprocessing.pipeline import PrepareSettings, Preprocessor, to_native
from monailabel_app.preprocessing.regions import REGION_NAMES
from monailabel_app.preprocessing.slice_alignment import is_slice, prepare_slice
from monailabel_app.preprocessing.template import Template
from monailabel_app.registry import load_method
from monailabel_app.types import GATE_SETTINGS, BrainMask, Finding, GateReport, PreparedVolume, Volume
from monailabel_app.weights.model_folder import open_model_folder

from .analysis import Analysis, examine
from .cache import MapCache, analysis_key
from .calibration_choice import SITE, CalibrationChoice
from .calibration_notes import drift_of, identity_of, notes_of
from .config_io import config_from_plain
from .find_model import SHIPPED_MODELS, companion, find_model, list_model_folders
from .input_gate import FOLDER as GATE_FOLDER
from .input_gate import InputGate, find_gate
from .levels import analysed_part, at_levels, levels_of_config, middle_level, on_grid_of
from .members import analyse_members, check_members, load_members
from .uncertainty import PREPARATIONS, SEEDS, repeated

__all__ = [
    "SHIPPED_MODELS", "AnomalyModel", "PredictSettings", "analyse", "find_model", "judge", "list_model_folders",
    "load_model", "predict", "prepare",
]  # fmt: skip
_TEMPLATE, _EXTRACTOR = "template", "brain_extraction"
Progress = Callable[[str, float], None]
Recall = Callable[["AnomalyModel", Callable[[], Analysis]], Analysis]


@dataclass(frozen=True)
class PredictSettings:
    """score: None is the model's default. min_volume_ml: smaller components are dropped. device: cpu or cuda[:n].

    gate: what becomes of a scan that is unlike the training scans: ``warn`` analyses it and says so, ``refuse`` raises
    ScanRefused (an empty mask would read as a healthy scan), ``off`` does not ask. uncertainty: repeat the analysis
    with small changes of preparation and noise, at several times the cost, and say how much each lesion would change.
    calibration: ``site``, the one made on the site's own healthy scans where one is in use, or ``shipped``.
    """

    operating_point: str = "balanced"
    score: str | None = None
    smoothing: str = "standard"
    min_volume_ml: float = SMALLEST_LESION_ML
    seed: int = 0
    device: str = "cpu"
    gate: str = "warn"
    uncertainty: bool = False
    calibration: str = SITE


class AnomalyModel:
    """A loaded model folder with its calibration, template and brain extraction.

    calibration: the folder's own; ``with_calibration`` gives the model with the site's.
    """

    def __init__(self, folder: Path, *, calibrated: bool = True) -> None:
        opened = open_model_folder(folder)
        self.id, self.hash, self.meta = opened.id, opened.hash, opened.config
        try:
            self.method: ModuleType = load_method(str(opened.config["method"]))
            self.config = config_from_plain(self.method.Config, dict(opened.config["config"]))
            self.modality = str(opened.config["modality"])
            self.description = str(opened.config["description"])
        except KeyError as error:
            raise CorruptModel(
                f"expected the key {error} in {opened.id}/config.yaml, it is missing; restore the model folder"
            ) from error
        self.network = self.method.build(self.config)
        try:
            self.network.load_state_dict(opened.weights())
        except RuntimeError as error:
            raise CorruptModel(
                f"expected the weights of the network that {opened.id}/config.yaml describes, got those of another "
                "one; restore the model folder"
            ) from error
        self.network.eval()
        self.members: tuple[AnomalyModel, ...] = ()
        if hasattr(self.method, "combine"):
            self.members = load_members(Path(folder), self.config.members, self.config.hashes, AnomalyModel)
        self.calibration = Calibration.load(folder) if calibrated else Calibration({}, 0.0, {})
        self.template = Template.load(companion(folder, _TEMPLATE))
        self.folder = Path(folder)
        self.prepare_settings = PrepareSettings(
            bool(opened.config.get("bias_field", False)), str(opened.config.get("normalization", "percentile"))
        )
        if self.prepare_settings.normalization not in NORMALIZATIONS:
            raise CorruptModel(
                f"expected normalization out of {', '.join(NORMALIZATIONS)} in {opened.id}/config.yaml, got "
                f"{self.prepare_settings.normalization!r}; restore the model folder"
            )
        self.levels = levels_of_config(opened.config, self.template, opened.id)
        check_members(self)
        self.prior_scans = float(opened.config.get("prior_scans", PRIOR_SCANS))
        self.illumination_mm = float(opened.config.get("illumination_mm", 0.0))
        self.labels = {"anomaly": 1}
        self.calibration_id: Mapping[str, Any] = {}
        self._choice: CalibrationChoice | None = None
        if calibrated:
            depth = self.template.shape[2] if self.levels is None else 1
            self._choice = CalibrationChoice(folder, self.scores, (*self.template.shape[:2], depth))
        self._extractors: dict[str, BrainExtractor] = {}

    @property
    def gate(self) -> InputGate | None:
        """The input gate among the shipped models; None, said once in the log, where it is missing."""
        try:
            return find_gate(companion(self.folder, GATE_FOLDER))
        except CorruptModel:
            return find_gate(None)

    @property
    def scores(self) -> tuple[str, ...]:
        """The calibrated scores, default first."""
        return tuple(self.calibration.scores)

    def with_calibration(self, wanted: str) -> AnomalyModel:
        """The same model with the site's calibration (``site``, where one is in use) or its own (``shipped``).

        Members of an ensemble keep their own: an analysis does not depend on the choice. Raises what
        ``CalibrationChoice.get`` raises.
        """
        if self._choice is None:
            return self
        chosen = self._choice.get(wanted)
        made = copy(self)
        made.calibration, made.calibration_id = chosen.calibration or self.calibration, chosen.to_json()
        return made

    def extractor(self, device: str) -> BrainExtractor:
        """The brain extraction network on a device, loaded when first needed."""
        if device not in self._extractors:
            folder = companion(self.folder, _EXTRACTOR)
            self._extractors[device] = BrainExtractor.load(folder, device=device)
        return self._extractors[device]


def load_model(folder: str | Path) -> AnomalyModel:
    """Open, verify and build the model in ``folder``. Raises CorruptModel and UnknownModel."""
    return AnomalyModel(Path(folder))


def predict(
    volume: Volume,
    model: AnomalyModel,
    settings: PredictSettings = PredictSettings(),
    *,
    progress: Progress | None = None,
    cache: MapCache | None = None,
    brain: BrainMask | None = None,
) -> Finding:
    """Find what healthy brains do not explain.

    The analysis is cached by content; score, smoothing, operating point and volume limit are applied to it
    afterwards and never run the network again. Raises InvalidSettings, ScanRefused where the settings ask for it, and
    what preprocessing raises.
    """
    tell = progress or (lambda stage, share: None)
    seconds: dict[str, float] = {}
    score = settings.score or model.scores[0]
    _check(settings)
    model = model.with_calibration(settings.calibration)
    calibration = model.calibration.score(score)
    point = calibration.point(settings.smoothing, settings.operating_point)

    expensive = {"seed": settings.seed, "given_mask": brain is not None}
    key = analysis_key(volume, model.hash, expensive) if cache is not None and brain is None else ""
    held = cache.get(key) if key else None
    fresh = held is None
    if fresh:
        prepared = prepare(volume, model, settings.device, brain=brain, progress=tell)
        seconds |= prepared.seconds
    else:
        prepared = held.prepared
    gate = None if fresh else held.gate
    if settings.gate != "off":
        gate = gate or _judge(prepared, model, settings, seconds, tell)
        if gate is not None and not gate.passed and settings.gate == "refuse":
            raise ScanRefused(f"{gate.sentence()}; check the scan, or send gate=warn to have it analysed all the same")
    if fresh:
        started = time.perf_counter()
        recall = partial(_recall, cache, volume, expensive) if key else None
        held = analyse(prepared, model, settings, progress=tell, recall=recall)
        seconds["reconstruction"] = time.perf_counter() - started
    if fresh or held.gate is not gate:
        held = replace(held, gate=gate)
        if key:
            cache.put(key, held)
    asked = gate if settings.gate != "off" else None

    tell("scoring", 0.0)
    started = time.perf_counter()
    model_map = calibrated_map(
        held.raw(score),
        prepared.brain_mask,
        calibration.statistics,
        score=score,
        smoothing=settings.smoothing,
        erosion_mm=model.calibration.erosion_mm,
    )
    anomaly_score = scan_score(model_map) if model.levels is None else slice_score(model_map)
    erosion = model.calibration.erosion_mm
    drift = drift_of(model_map, prepared.brain_mask, calibration, settings.smoothing, erosion_mm=erosion)
    seconds["scoring"] = time.perf_counter() - started

    tell("post-processing", 0.0)
    started = time.perf_counter()
    anomaly_map = to_native(model_map, prepared)
    regions = on_grid_of(model.template.regions, model.template, prepared)
    regions = to_native(regions, prepared, order=0).astype(np.uint8)
    mask, lesions = find_lesions(
        delineated(anomaly_map, volume.spacing_mm),
        prepared.native_brain_mask,
        prepared.native_affine,
        threshold=point.threshold,
        min_volume_mm3=settings.min_volume_ml * 1000,
        regions=regions,
        region_names=REGION_NAMES,
    )
    seconds["postprocessing"] = time.perf_counter() - started
    uncertainty = None
    if settings.uncertainty:
        started = time.perf_counter()
        run = partial(_repeat, cache if key else None, volume, model, settings, expensive, tell)
        lesions, uncertainty = repeated(volume, model, held, mask, lesions, settings, run)
        seconds["uncertainty"] = time.perf_counter() - started
    tell("done", 1.0)
    return Finding(
        mask=mask,
        anomaly_map=anomaly_map,
        brain_mask=prepared.native_brain_mask,
        affine=prepared.native_affine,
        lesions=lesions,
        anomaly_score=anomaly_score,
        p_value=rank_p_value(anomaly_score, calibration.scan_scores[settings.smoothing]),
        threshold=point.threshold,
        model_id=model.id,
        model_hash=model.hash,
        settings={**asdict(settings), "score": score},
        seconds={name: round(value, 4) for name, value in seconds.items()},
        steps=prepared.steps,
        warnings=(
            *((asked.sentence(),) if asked is not None and not asked.passed else ()),
            *volume.warnings,
            *prepared.warnings,
            *model.calibration.warnings,
            *notes_of(settings, drift),
        ),
        reconstruction=held.reconstruction,
        analysed=analysed_part(prepared),
        gate=asked,
        uncertainty=uncertainty,
        calibration=identity_of(model, calibration, settings),
        drift=None if drift is None else drift.to_json(),
    )


def prepare(
    volume: Volume,
    model: AnomalyModel,
    device: str = "cpu",
    *,
    brain: BrainMask | None = None,
    progress: Progress | None = None,
) -> PreparedVolume:
    """The scan in the model's space, with the app's brain extraction unless a mask is given.

    A model of single levels gets a volume cut to these, or a single skull-stripped slice laid over the middle one.
    Raises InvalidVolume for a single slice and a model of volumes, and what preprocessing raises.
    """
    if is_slice(volume):
        if model.levels is None:
            raise InvalidVolume(
                f"expected a volume for the model {model.id}, got a single slice of shape {volume.shape}; send the "
                "whole series, or use a model of single slices (their names end in _flair)"
            )
        return prepare_slice(volume, model.template, middle_level(model.levels), brain=brain)
    preprocessor = Preprocessor(model.template, lambda scan: model.extractor(device).extract(scan))
    tell = (lambda stage: progress(stage, 0.0)) if progress is not None else None
    prepared = preprocessor.prepare(volume, model.prepare_settings, brain=brain, progress=tell)
    return prepared if model.levels is None else at_levels(prepared, volume, model.template, model.levels)


def analyse(
    prepared: PreparedVolume,
    model: AnomalyModel,
    settings: PredictSettings,
    *,
    progress: Progress | None = None,
    recall: Recall | None = None,
) -> Analysis:
    """Run the model's method on a prepared brain; everything that follows is cheap.

    recall: for an ensemble, gives a member's analysis if it is at hand, and else lets it be made and keeps it.
    """
    if model.members:
        return _analyse_ensemble(prepared, model, settings, progress, recall)
    device = torch.device(settings.device)
    network = model.network.to(device)
    tell = (lambda share: progress("reconstruction", share)) if progress is not None else None
    evidence = examine(
        model.method,
        network,
        model.config,
        prepared.image[0],
        prepared.brain_mask,
        seed=settings.seed,
        device=device,
        illumination_mm=model.illumination_mm,
        scores=model.meta["scores"],
        progress=tell,
    )
    return Analysis(prepared, evidence)


def _analyse_ensemble(
    prepared: PreparedVolume,
    model: AnomalyModel,
    settings: PredictSettings,
    progress: Progress | None,
    recall: Recall | None,
) -> Analysis:
    def analyse_one(index: int, member: AnomalyModel) -> Analysis:
        def tell(stage: str, share: float) -> None:
            progress(stage, (index + share) / len(model.members))

        make = partial(analyse, prepared, member, settings, progress=tell if progress is not None else None)
        return make() if recall is None else recall(member, make)

    return analyse_members(model, prepared, analyse_one)


def _recall(
    cache: MapCache,
    volume: Volume,
    settings: Mapping[str, Any],
    member: AnomalyModel,
    make: Callable[[], Analysis],
) -> Analysis:
    """A member's analysis as a request for the member alone would keep it, so that both share one."""
    key = analysis_key(volume, member.hash, settings)
    held = cache.get(key)
    if held is None:
        held = make()
        cache.put(key, held)
    return held


def judge(prepared: PreparedVolume, model: AnomalyModel, device: str = "cpu") -> GateReport | None:
    """The input gate's report; None without a gate and for what it cannot judge, such as single slices."""
    gate = model.gate
    if gate is None:
        return None
    # The grey values of another normalisation mean nothing to it.
    t1 = model.modality == "t1" and model.prepare_settings.normalization == "percentile"
    return gate.check(prepared, model.template, modality="t1" if t1 else "other", device=device)


def _judge(
    prepared: PreparedVolume, model: AnomalyModel, settings: PredictSettings, seconds: dict[str, float], tell: Progress
) -> GateReport | None:
    tell("input gate", 0.0)
    report = judge(prepared, model, settings.device)
    if report is not None:
        seconds["input_gate"] = report.seconds
    return report


def _repeat(
    cache: MapCache | None,
    volume: Volume,
    model: AnomalyModel,
    settings: PredictSettings,
    expensive: Mapping[str, Any],
    tell: Progress,
    prepared: PreparedVolume,
    seed: int,
    repeat: tuple[int, int],
) -> Analysis:
    """Another analysis of the scan for its uncertainty; kept, since score and threshold do not change it."""
    key = analysis_key(volume, model.hash, {**expensive, "repeat": list(repeat)}) if cache is not None else ""
    held = cache.get(key) if key else None
    if held is None:
        tell("uncertainty", (repeat[0] * SEEDS + repeat[1]) / (PREPARATIONS * SEEDS))
        held = analyse(prepared, model, replace(settings, seed=seed))
        if key:
            cache.put(key, held)
    return held


def _check(settings: PredictSettings) -> None:
    allowed: Mapping[str, Any] = {"operating_point": POINTS, "smoothing": SMOOTHING_MM, "gate": GATE_SETTINGS}
    for name, values in allowed.items():
        if getattr(settings, name) not in values:
            raise InvalidSettings(f"expected {name} out of {', '.join(values)}, got {getattr(settings, name)!r}")
    if not 0 <= settings.min_volume_ml <= LARGEST_VOLUME_LIMIT_ML:
        raise InvalidSettings(
            f"expected min_volume_ml between 0 and {LARGEST_VOLUME_LIMIT_ML:g}, got {settings.min_volume_ml}"
        )
