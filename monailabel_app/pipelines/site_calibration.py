"""Calibrate a model on a site's own healthy scans, and say how these differ from those it was calibrated on.

The result lies beside the model (``weights.site_calibrations``), which stays as it is.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from monailabel_app import __version__
from monailabel_app.calibration.calibrated_map import Calibration, calibrated_map, scan_score
from monailabel_app.calibration.drift import score_drift
from monailabel_app.calibration.false_volume import false_volume_ml
from monailabel_app.errors import InvalidVolume, TrainingFailed
from monailabel_app.io.images import read_volume
from monailabel_app.postprocessing.delineate import delineated
from monailabel_app.training.cache import TrainingCache
from monailabel_app.types import BrainMask, Volume, to_json
from monailabel_app.weights import site_calibrations
from monailabel_app.weights.model_folder import calibration_hash, weights_hash
from monailabel_app.weights.site_calibrations import SiteCalibration

from .analysis import Analysis
from .calibrate import MIN_HEALTHY_SCANS, analyse_cache, analyse_healthy, calibration_of
from .evaluation.datasets import described, load_dataset
from .healthy_reference import without_own_person
from .predict import AnomalyModel, judge
from .prepare import list_sources

Progress = Callable[[int, int], None]
_SMOOTHING = "standard"


@dataclass(frozen=True)
class HealthyScan:
    """read: the scan; brain: its mask, None for the app's own extraction. patient: whom it shows."""

    patient: str
    read: Callable[[], Volume]
    brain: Callable[[], BrainMask] | None = None


@dataclass(frozen=True)
class SiteReport:
    """made: where it lies and its record. own, site: the model's own calibration and the new one.

    volumes[operating point]: median and largest volume in ml that is marked in the site's healthy scans, with the
    model's own threshold (``own``) and the site's (``site``), at the default score and smoothing.
    """

    made: SiteCalibration
    own: Calibration
    site: Calibration
    score: str
    volumes: Mapping[str, Mapping[str, tuple[float, float]]]

    @property
    def drift(self) -> Mapping[str, Any]:
        """The Kolmogorov-Smirnov test of the site's scan scores against those of the model's own calibration."""
        return self.made.record["drift"]

    def lines(self) -> Iterator[str]:
        """What the command line prints."""
        record = self.made.record
        left_out = f", {record['left_out']} left out" if record["left_out"] else ""
        of = f"{record['scans']} healthy scans of {record['patients']} patients"
        yield f"site calibration {self.made.id}: {of}{left_out}"
        if record["gate_failed"]:
            yield (
                f"warning: the input gate does not pass {record['gate_failed']} of these scans; are they healthy, and "
                f"of the model's sequence ({record['modality']})?"
            )
        for warning in self.site.warnings:
            yield f"warning: {warning}"
        of = self.site.healthy["false_volume"]["of"]
        yield f"score {self.score}; ml marked in these healthy scans, median and largest ({of}):"
        yield f"{'point':<11}{'threshold':>20}{'own calibration':>20}{'site calibration':>20}{'bound':>18}"
        old, new = (c.score(self.score).points[_SMOOTHING] for c in (self.own, self.site))
        for name, point in new.items():
            before = f"{old[name].threshold:.2f}" if name in old else "-"
            volumes = self.volumes[name]
            pairs = [f"{volumes[k][0]:.1f} / {volumes[k][1]:.1f}" if k in volumes else "-" for k in ("own", "site")]
            bound = f"{point.bound_ml:.1f} ml in {100 * point.bound_level:.0f} %"
            yield f"{name:<11}{f'{before} -> {point.threshold:.2f}':>20}{pairs[0]:>20}{pairs[1]:>20}{bound:>18}"
        yield self.drift["sentence"]


def calibrate_site(
    folder: Path,
    healthy: str | Path,
    *,
    data_root: Path | None = None,
    split: str | None = None,
    device: str = "cpu",
    use: bool = True,
    progress: Progress | None = None,
) -> SiteReport:
    """Calibrate the model in ``folder`` on healthy scans of the site and keep the result beside it.

    healthy: a folder of scans, a described set (its name or .yaml file), or a cache of prepared scans (.safetensors).
    use: let it be used from the next request on. The scans must not have trained the model. An ensemble's members keep
    their own calibrations. Raises TrainingFailed for too few scans and PublishFailed when the disk refuses.
    """
    weights = weights_hash(folder)  # before they are read: what replaces them meanwhile is not what was calibrated
    model = AnomalyModel(folder)
    scans, patients, offered, failed = _analyses(model, healthy, data_root, split, device, progress)
    if len(set(patients)) < MIN_HEALTHY_SCANS:
        raise TrainingFailed(
            f"expected at least {MIN_HEALTHY_SCANS} healthy scans of as many patients that can be analysed, got "
            f"{len(scans)} of {len(set(patients))} out of {offered}; add scans, or see with --verbose why they were "
            "left out"
        )
    names = list(model.scores)
    site = calibration_of(
        without_own_person(model, scans, patients) if model.members else scans,
        names,
        erosion_mm=float(model.meta["erosion_mm"]),
        healthy={"data": Path(healthy).stem if Path(healthy).suffix else Path(healthy).name, "site": True},
        patients=patients,
        prior_scans=model.prior_scans,
    )
    maps = [_own_map(model, scan, names[0]) for scan in scans]
    scores = [scan_score(made) for made in maps]
    outlined = [delineated(made, scan.prepared.spacing_mm) for made, scan in zip(maps, scans, strict=True)]
    own = model.calibration.score(names[0])
    record = {
        "weights": weights,
        "modality": model.modality,
        "data": site.healthy["data"],
        "scans": len(scans),
        "patients": site.healthy["patients"],
        "left_out": offered - len(scans),
        "gate_failed": failed,
        "score": names[0],
        "drift": score_drift(scores, own.scan_scores[_SMOOTHING]),
        "compared_with": calibration_hash(folder),
        "app_version": __version__,
    }
    staged = site_calibrations.new_staging(folder)
    try:
        site.save(staged)
        made = site_calibrations.publish(folder, staged, to_json(record), use_it=use)
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)
        raise
    return SiteReport(made, model.calibration, site, names[0], _volumes(model.calibration, site, names[0], outlined))


def _volumes(
    own: Calibration, site: Calibration, score: str, maps: Sequence[np.ndarray]
) -> dict[str, dict[str, tuple[float, float]]]:
    """maps: as they are thresholded, with the model's own statistics.

    The site's figures are of maps standardised without the scan's own patient, as its calibration keeps them.
    """
    found: dict[str, dict[str, tuple[float, float]]] = {}
    for name, point in site.score(score).points[_SMOOTHING].items():
        found[name] = {"site": _spread(point.false_ml)}
        before = own.score(score).points[_SMOOTHING].get(name)
        if before is not None:
            found[name]["own"] = _spread([false_volume_ml(made, before.threshold) for made in maps])
    return found


def _spread(volumes: Sequence[float]) -> tuple[float, float]:
    return float(np.median(volumes)), float(max(volumes))


def _own_map(model: AnomalyModel, scan: Analysis, score: str) -> np.ndarray:
    """As every scan is read with the model's own calibration, which has not seen these."""
    return calibrated_map(
        scan.raw(score),
        scan.prepared.brain_mask,
        model.calibration.score(score).statistics,
        score=score,
        smoothing=_SMOOTHING,
        erosion_mm=model.calibration.erosion_mm,
    )


def _analyses(
    model: AnomalyModel,
    healthy: str | Path,
    data_root: Path | None,
    split: str | None,
    device: str,
    progress: Progress | None,
) -> tuple[list[Analysis], list[str], int, int]:
    """Analyses, whom each shows, how many scans there were, and how many the input gate does not pass."""
    if str(healthy).endswith(".safetensors"):
        cache = TrainingCache.load(Path(healthy))
        return analyse_cache(cache, model, device=device, progress=progress), list(cache.patients), len(cache), 0
    offered = healthy_scans(healthy, data_root=data_root, split=split)
    scans, patients, failed = [], [], 0
    for index, scan in enumerate(offered):
        brains = [scan.brain] if scan.brain is not None else None
        for made in analyse_healthy([scan.read], model, brains=brains, device=device):
            report = judge(made.prepared, model, device)
            failed += report is not None and not report.passed
            scans.append(made)
            patients.append(scan.patient)
        if progress is not None:
            progress(index + 1, len(offered))
    return scans, patients, len(offered), failed


def healthy_scans(spec: str | Path, *, data_root: Path | None = None, split: str | None = None) -> list[HealthyScan]:
    """The healthy scans of a folder or of a described set (its name, or a .yaml file). No image is read.

    Raises TrainingFailed where there are none, and what reading the description raises.
    """
    if str(spec) not in described() and Path(spec).suffix.lower() not in (".yaml", ".yml"):
        return [HealthyScan(source.patient, partial(_volume, source.path)) for source in list_sources(Path(spec))]
    found = load_dataset(spec, data_root=data_root, split=split)
    if found.slices:
        raise TrainingFailed(
            f"expected healthy volumes, got the single slices of {found.name}; give a cache of prepared slices "
            "(.safetensors), or a folder of slices"
        )
    if not found.healthy:
        raise TrainingFailed(
            f"expected scans that are marked as healthy in {found.name}, found none; say `healthy: true` for them"
        )
    return [
        HealthyScan(
            scan.patient,
            partial(_volume, scan.image),
            partial(_mask, scan.image, scan.brain) if isinstance(scan.brain, Path) and not scan.regions else None,
        )
        for scan in found.healthy
    ]


def _volume(path: Path) -> Volume:
    return read_volume(path, slices=True)


def _mask(image: Path, path: Path) -> BrainMask:
    volume, mask = read_volume(image), read_volume(path)
    if mask.shape != volume.shape or not np.allclose(mask.affine, volume.affine, atol=1e-3):
        raise InvalidVolume(f"expected a brain mask on the grid of its scan {volume.shape}, got {mask.shape}")
    return BrainMask(mask.data[0] > 0.5, "given")
