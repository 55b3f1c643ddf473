"""One scan in, one finding out: what the viewer, the command line and the evaluation all call."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from monailabel_app.calibration.background import matched
from monailabel_app.calibration.calibrated_map import calibrated_map, scan_score, slice_score
from monailabel_app.errors import InvalidVolume, NotAnalysed, ScanRefused
from monailabel_app.metrics.imagewise import rank_p_value
from monailabel_app.postprocessing.components import find_lesions
from monailabel_app.postprocessing.delineate import delineated
from monailabel_app.preprocessing.pipeline import Preprocessor, to_native
from monailabel_app.preprocessing.regions import REGION_NAMES
from monailabel_app.preprocessing.slice_alignment import is_slice, prepare_slice
from monailabel_app.types import BrainMask, Finding, GateReport, PreparedVolume, Volume

from . import out_of_memory
from .analysis import Analysis, Evidence, examine
from .anomaly_model import AnomalyModel, load_model
from .cache import MapCache, analysis_key
from .calibration_notes import drift_json, drift_of, identity_of, notes_of
from .find_model import SHIPPED_MODELS, find_model, list_model_folders
from .levels import analysed_part, at_levels, middle_level, on_grid_of
from .manifest import environment, provenance
from .members import analyse_members
from .native_images import native_reconstruction
from .predict_settings import PredictSettings, check_settings
from .uncertainty import PREPARATIONS, SEEDS, repeated

__all__ = [
    "SHIPPED_MODELS", "AnomalyModel", "PredictSettings", "analyse", "find_model", "judge", "list_model_folders",
    "load_model", "predict", "prepare",
]  # fmt: skip
_NOT_ANALYSED = (
    "expected a scan that was analysed with this model and seed, found no such analysis at hand; run the analysis first"
)
Progress = Callable[[str, float], None]
Recall = Callable[["AnomalyModel", Callable[[], Analysis]], Analysis]


def predict(
    volume: Volume,
    model: AnomalyModel,
    settings: PredictSettings = PredictSettings(),
    *,
    progress: Progress | None = None,
    cache: MapCache | None = None,
    brain: BrainMask | None = None,
    images: bool = False,
    run: bool = True,
) -> Finding:
    """Find what healthy brains do not explain.

    The analysis is cached by content; score, smoothing, operating point, threshold and volume limit are applied to it
    afterwards and never run the network again. progress: told the stage and its share done; what it raises ends the
    work, and what was finished before stays usable. images: fill in the finding's reconstruction and uncertainty map.
    run: False never runs a network. Raises InvalidSettings, ScanRefused where the settings ask for it, NotAnalysed
    where a network would have to run and must not, and what preprocessing raises.
    """
    tell = progress or (lambda stage, share: None)
    seconds: dict[str, float] = {}
    score = settings.score or model.scores[0]
    check_settings(settings)
    model = model.with_calibration(settings.calibration)
    calibration = model.calibration.score(score)
    threshold = settings.threshold_in(calibration)

    expensive = {"seed": settings.seed, "given_mask": brain is not None, "prepared_by": model.prepared_by}
    key = analysis_key(volume, model.decides, expensive) if cache is not None and brain is None else ""
    held = cache.get(key) if key else None
    fresh = held is None
    unjudged = settings.gate != "off" and not (held is not None and held.judged)
    if not run and (fresh or unjudged):
        raise NotAnalysed(_NOT_ANALYSED)
    if fresh:
        prepared = prepare(volume, model, settings.device, brain=brain, progress=tell)
        seconds |= prepared.seconds
    else:
        prepared = held.prepared
    gate = None if fresh else held.gate
    if unjudged:
        gate = _judge(prepared, model, settings, seconds, tell)
    if settings.gate == "refuse" and gate is not None and not gate.passed:
        raise ScanRefused(f"{gate.sentence()}; check the scan, or send gate=warn to have it analysed all the same")
    if fresh:
        started = time.perf_counter()
        recall = partial(_recall, cache, volume, expensive) if key else None
        held = analyse(prepared, model, settings, progress=tell, recall=recall)
        seconds["reconstruction"] = time.perf_counter() - started
    if fresh or unjudged:
        held = replace(held, gate=gate, judged=held.judged or unjudged)
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
    about = {"smoothing": settings.smoothing, "erosion_mm": model.calibration.erosion_mm}
    drift = drift_of(model_map, prepared.brain_mask, calibration, **about)
    model_map, background = matched(model_map, prepared.brain_mask, calibration, score=score, **about)
    anomaly_score = scan_score(model_map) if model.levels is None else slice_score(model_map)
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
        threshold=threshold,
        min_volume_mm3=settings.min_volume_ml * 1000,
        regions=regions,
        region_names=REGION_NAMES,
    )
    seconds["postprocessing"] = time.perf_counter() - started
    uncertainty = deviation = None
    made = list(held.made)
    if settings.uncertainty:
        started = time.perf_counter()
        again = partial(_repeat, cache if key else None, volume, model, settings, expensive, tell, run, made)
        lesions, uncertainty, deviation = repeated(volume, model, held, mask, lesions, settings, again, images=images)
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
        threshold=threshold,
        model_id=model.id,
        model_hash=model.hash,
        settings=settings.to_json(score),
        seconds={name: round(value, 4) for name, value in seconds.items()},
        steps=prepared.steps,
        warnings=(
            *((asked.sentence(),) if asked is not None and not asked.passed else ()),
            *volume.warnings,
            *prepared.warnings,
            *model.calibration.warnings,
            *notes_of(settings, drift, background),
            *out_of_memory.notes(made),
        ),
        reconstruction=native_reconstruction(held) if images else None,
        reconstructs=held.reconstruction is not None,
        uncertainty_map=to_native(deviation, prepared) if deviation is not None else None,
        analysed=analysed_part(prepared),
        gate=asked,
        uncertainty=uncertainty,
        calibration=identity_of(model, calibration, settings),
        drift=drift_json(drift, background),
        provenance=provenance(volume, model, settings, score, prepared.steps, made, brain),
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
    lesser = []

    def extract(scan: Volume) -> BrainMask:
        def work(way: out_of_memory.Way) -> BrainMask:
            return model.extractor(way.device).extract(scan)

        mask, way = out_of_memory.ROOM.run("brain extraction", device, work, in_pieces=False)
        lesser.append(out_of_memory.in_words(way, device, "the brain extraction"))
        return mask

    preprocessor = Preprocessor(model.template, extract)
    tell = (lambda stage: progress(stage, 0.0)) if progress is not None else None
    prepared = preprocessor.prepare(volume, model.prepare_settings, brain=brain, progress=tell)
    if any(lesser):
        prepared = replace(prepared, warnings=(*prepared.warnings, *filter(None, lesser)))
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
    tell = (lambda share: progress("reconstruction", share)) if progress is not None else None

    def work(way: out_of_memory.Way) -> Evidence:
        return examine(
            model.method,
            # One that stopped half-way to a full device is put together again here.
            model.network.to(way.device),
            model.config,
            prepared.image[0],
            prepared.brain_mask,
            seed=settings.seed,
            device=way.device,
            illumination_mm=model.illumination_mm,
            scores=model.meta["scores"],
            batch_size=way.slices if way.slices < out_of_memory.SLICES_AT_ONCE else None,
            progress=tell,
        )

    evidence, way = out_of_memory.ROOM.run(model.decides, settings.device, work)
    made = environment(way.device) | out_of_memory.about(way, settings.device)
    return Analysis(prepared, evidence, made=(made,))


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
    key = analysis_key(volume, member.decides, settings)
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

    def work(way: out_of_memory.Way) -> GateReport | None:
        return gate.check(prepared, model.template, modality="t1" if t1 else "other", device=way.device)

    return out_of_memory.ROOM.run("input gate", device, work, in_pieces=False)[0]


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
    run: bool,
    made: list[Mapping[str, Any]],
    prepare_anew: Callable[[], PreparedVolume],
    seed: int,
    repeat: tuple[int, int],
) -> Analysis:
    """Another analysis of the scan for its uncertainty; kept, since score and threshold do not change it."""
    key = analysis_key(volume, model.decides, {**expensive, "repeat": list(repeat)}) if cache is not None else ""
    held = cache.get(key) if key else None
    if held is None:
        if not run:
            raise NotAnalysed(_NOT_ANALYSED)
        done, count = repeat[0] * SEEDS + repeat[1], PREPARATIONS * SEEDS

        def part(stage: str, share: float) -> None:
            tell("uncertainty", (done + share) / count)

        part("", 0.0)
        held = analyse(prepare_anew(), model, replace(settings, seed=seed), progress=part)
        if key:
            cache.put(key, held)
    made += held.made
    return held
