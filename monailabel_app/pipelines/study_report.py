"""One scan's result for a radiologist: a page to print and the same facts as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

import numpy as np
from scipy import ndimage

from monailabel_app import __version__
from monailabel_app.calibration.bands import BAND_SHARES, BANDS
from monailabel_app.calibration.tails import TAIL_SHARES, rarity
from monailabel_app.io.geometry import axcodes, voxel_to_mm
from monailabel_app.postprocessing.boxes import bounding_box
from monailabel_app.reports.study_page import study_html
from monailabel_app.reports.study_planes import Head
from monailabel_app.reports.study_words import RESEARCH, summary
from monailabel_app.types import CONNECTIVITY_26, Finding, Lesion, Volume, to_json
from monailabel_app.weights.measured_file import read_measured
from monailabel_app.weights.versions import split_id

from .anomaly_model import AnomalyModel

KIND, SCHEMA_VERSION = "study report", 1
WHOLE, SLICE_MM = "the whole scan", 2.0  # what the healthy volumes of a calibration are of


@dataclass(frozen=True)
class StudyReport:
    """record: every fact, JSON types only (keys: ``study_record``). volume, finding: whose pictures the page shows."""

    record: Mapping[str, Any]
    volume: Volume
    finding: Finding

    def html(self) -> str:
        """One self-contained page, without scripts, to be read and to be printed on A4."""
        found = self.finding
        head = Head(
            self.volume.data[0], found.anomaly_map, found.brain_mask, found.mask, found.affine, found.reconstruction
        )
        return study_html(self.record, head)

    def json(self) -> dict[str, Any]:
        """The same facts as plain JSON types."""
        return dict(self.record)

    def json_text(self) -> str:
        """``json`` as it is written to a file."""
        return json.dumps(self.record, indent=1, ensure_ascii=False) + "\n"


def study_report(
    volume: Volume,
    finding: Finding,
    model: AnomalyModel,
    *,
    image_id: str,
    review: Mapping[str, Any] | None = None,
    made: datetime | None = None,
) -> StudyReport:
    """The report of a finding.

    volume: the analysed scan; finding: what ``predict`` made of it, with ``images`` for the pseudo-healthy pictures.
    model: with the calibration that was used. image_id: the only name of the scan in the report, shown as it is.
    review: ``{reader, comment, final, lesions: [{peak_voxel, decision, comment}], rest}``. made: when, by default now.
    """
    record = study_record(volume, finding, model, image_id=image_id, review=review, made=made)
    return StudyReport(record, volume, finding)


def study_record(
    volume: Volume,
    finding: Finding,
    model: AnomalyModel,
    *,
    image_id: str,
    review: Mapping[str, Any] | None = None,
    made: datetime | None = None,
) -> dict[str, Any]:
    """Every fact of a report; arguments as in ``study_report``. Keys:

    - kind, schema_version, intended_use, made (time, app_version)
    - scan: id, sha256 (of the voxels as float32 in the scan's order, then of the affine as float64), shape, spacing_mm,
      axes, slice (whether it is a single one) and across (its direction: 0 right, 1 front, 2 up),
      origin_in_brain (of the scan's space), brain_ml
    - finding: ``Finding.to_json``, unchanged
    - regions: per lesion index, peak_voxel, peak_ras_mm, peak_healthy_share (share of healthy voxels with a value as
      high; with peak_beyond_table it is less than that), decision and comment of the review
    - highest: value, voxel and ras_mm of the map's highest value in the brain; None where the map is empty
    - healthy: scan_scores, marked_ml (what is marked in each at this operating point) and marked_of, scan_marked_ml
      (the same measure of this scan), tails (shares, values)
    - bands: name and share of healthy voxels above
    - operating_point: name, threshold, and of healthy scans healthy_rate, healthy_rate_interval, bound_ml, bound_level,
      bound_of
    - model: id, hash, version, method, modality, description, and of what was measured verdict, sets, blind_spots
    - warnings: about (scan, input gate, calibration, model) and text
    - review: as given, with the decisions on lesions that are not marked here as ``elsewhere``
    - summary: sentences
    """
    calibration = model.calibration.score(str(finding.settings["score"]))
    smoothing = str(finding.settings["smoothing"])
    table = calibration.tails.get(smoothing, ())
    regions, elsewhere = _regions(finding, table, review)
    record: dict[str, Any] = {
        "kind": KIND,
        "schema_version": SCHEMA_VERSION,
        "intended_use": RESEARCH,
        "made": {
            "time": (made or datetime.now(timezone.utc)).isoformat(timespec="seconds"),
            "app_version": __version__,
        },
        "scan": {
            "id": image_id,
            "sha256": input_hash(volume),
            "shape": volume.shape,
            "spacing_mm": volume.spacing_mm,
            "axes": axcodes(volume.affine),
            "slice": 1 in volume.shape,
            "across": _across(volume),
            "origin_in_brain": _origin_in_brain(finding),
            "brain_ml": float(finding.brain_mask.sum()) * volume.voxel_volume_mm3 / 1000,
        },
        "finding": finding.to_json(),
        "regions": regions,
        "highest": _highest(finding),
        "healthy": {
            "scan_scores": list(calibration.scan_scores.get(smoothing, ())),
            "tails": {"shares": list(TAIL_SHARES) if table else [], "values": list(table)},
            **_marked_in_healthy(finding, calibration.points.get(smoothing, {})),
        },
        "operating_point": _operating_point(finding, calibration.points.get(smoothing, {})),
        "bands": [{"name": name, "share": share} for name, share in zip(BANDS, BAND_SHARES, strict=True)],
        "model": _model(finding, model),
        "review": None if review is None else {**review, "elsewhere": elsewhere},
    }
    record["warnings"] = _warnings(finding, model, record["model"])
    record = to_json(record)
    record["summary"] = summary(record)
    return record


def input_hash(volume: Volume) -> str:
    """sha256 of a scan's voxels (float32, in its own order) and affine (float64), as in its run manifest."""
    return volume.digest.hex()


def _regions(
    finding: Finding, table: Sequence[float], review: Mapping[str, Any] | None
) -> tuple[list[dict[str, Any]], list[Mapping[str, Any]]]:
    """Per lesion what the finding does not say, and the decisions that belong to none of them."""
    rest = (review or {}).get("rest")
    decided, elsewhere = _decided(finding, (review or {}).get("lesions") or ())
    regions = []
    for lesion in finding.lesions:
        peak, own = _peak(lesion), decided.get(lesion.index, {})
        regions.append(
            {
                "index": lesion.index,
                "peak_voxel": peak,
                "peak_ras_mm": voxel_to_mm(finding.affine, peak),
                **_rareness(lesion.peak_score, table),
                "decision": None if review is None else own.get("decision") or rest or "undecided",
                "comment": own.get("comment", ""),
            }
        )
    return regions, elsewhere


def _decided(
    finding: Finding, decisions: Sequence[Mapping[str, Any]]
) -> tuple[dict[int, Mapping[str, Any]], list[Mapping[str, Any]]]:
    """The decision on each lesion by its index, and those on none of them.

    A decision belongs to the lesion with this peak, else to the one that holds its voxel: at a lower threshold the
    lesion that was decided on may be a part of a larger one.
    """
    peaks = {_peak(lesion): lesion.index for lesion in finding.lesions}
    decisions = [d for d in decisions if d.get("peak_voxel") is not None]
    exact = {peaks[tuple(d["peak_voxel"])]: d for d in decisions if tuple(d["peak_voxel"]) in peaks}
    others = [d for d in decisions if tuple(d["peak_voxel"]) not in peaks]
    if not others:
        return exact, []
    labels, _ = ndimage.label(finding.mask, CONNECTIVITY_26)
    holds = {int(labels[peak]): index for peak, index in peaks.items()}
    elsewhere = []
    for decision in others:
        voxel = tuple(decision["peak_voxel"])
        inside = all(0 <= v < n for v, n in zip(voxel, labels.shape, strict=True))
        index = holds.get(int(labels[voxel])) if inside else None
        if index is None or index in exact:
            elsewhere.append(decision)
        else:
            exact[index] = decision
    return exact, elsewhere


def _across(volume: Volume) -> int | None:
    """Of a single slice the direction across it: 0 for right and left, 1 for front and back, 2 for up and down."""
    if 1 not in volume.shape:
        return None
    return next(i for i, pair in enumerate(("RL", "AP", "SI")) if axcodes(volume.affine)[volume.shape.index(1)] in pair)


def _origin_in_brain(finding: Finding) -> bool:
    """Whether 0, 0, 0 lies in the box around the brain, as it does in scanners' and standard spaces."""
    box = bounding_box(finding.brain_mask)
    if box is None:
        return False
    at = np.linalg.inv(finding.affine)[:3, 3]
    return all(
        part.start - 0.5 <= v <= part.stop - 0.5 for v, part in zip(at, box, strict=True) if part.stop - part.start > 1
    )


def _peak(lesion: Lesion) -> tuple[int, int, int]:
    at = lesion.peak_voxel if lesion.peak_voxel is not None else lesion.centroid_voxel
    return tuple(int(v) for v in np.rint(at))


def _rareness(value: float, table: Sequence[float]) -> dict[str, Any]:
    """The share of healthy voxels above a value; beyond the table only that it is less than its last share."""
    if not table:
        return {"peak_healthy_share": None, "peak_beyond_table": False}
    if value > table[-1]:
        return {"peak_healthy_share": TAIL_SHARES[-1], "peak_beyond_table": True}
    share = 10.0 ** -float(rarity(np.array([value], np.float32), table)[0])
    return {"peak_healthy_share": share, "peak_beyond_table": False}


def _highest(finding: Finding) -> dict[str, Any] | None:
    inside = np.where(finding.brain_mask, finding.anomaly_map, 0)
    voxel = np.unravel_index(int(inside.argmax()), inside.shape)
    if not inside[voxel] > 0:
        return None
    return {"value": inside[voxel], "voxel": voxel, "ras_mm": voxel_to_mm(finding.affine, voxel)}


def _marked_in_healthy(finding: Finding, points: Mapping[str, Any]) -> dict[str, Any]:
    """What is marked in each healthy scan, and the same measure of this one.

    Known at the calibrated operating points only, and without the smallest components. Models of single slices count
    in a slice of 2 mm, so that a thicker slice, or several of them, are brought to that.
    """
    point = points.get(str(finding.settings["operating_point"]))
    of = (finding.calibration or {}).get("false_volume_of", WHOLE)
    volume = sum(lesion.volume_ml for lesion in finding.lesions)
    if of != WHOLE:
        volume *= SLICE_MM / _thickness_mm(finding)
    return {"marked_ml": [] if point is None else list(point.false_ml), "marked_of": of, "scan_marked_ml": volume}


def _thickness_mm(finding: Finding) -> float:
    """Of what a model of single slices has looked at."""
    if finding.analysed is not None:
        low, high = finding.analysed["template_mm"]
        return float(high - low)
    across = finding.mask.shape.index(1) if 1 in finding.mask.shape else 2
    return float(np.linalg.norm(finding.affine[:3, across]) * finding.mask.shape[across])


def _operating_point(finding: Finding, points: Mapping[str, Any]) -> dict[str, Any]:
    name, about = str(finding.settings["operating_point"]), finding.calibration or {}
    point = points.get(name)
    return {
        "name": name,
        "threshold": finding.threshold,
        "healthy_rate": about.get("healthy_rate"),
        "healthy_rate_interval": None if point is None else point.interval,
        "bound_ml": about.get("false_volume_ml"),
        "bound_level": about.get("false_volume_level"),
        "bound_of": about.get("false_volume_of", WHOLE),
    }


def _model(finding: Finding, model: AnomalyModel) -> dict[str, Any]:
    measured = read_measured(model.folder) or {}
    _, version = split_id(finding.model_id)
    any_sequence = model.modality == "any"
    sequences = [s for s in measured.get("sequences", ()) if any_sequence or s["modality"] == model.modality]
    verdict = [s["sentence"] for s in sequences]
    if measured.get("baseline"):
        verdict = ["A baseline that other models have to beat."]
    sets = [s for s in measured.get("sets", ()) if any_sequence or s["modality"] == model.modality]
    return {
        "id": finding.model_id,
        "hash": finding.model_hash,
        "version": version or "shipped",
        "method": model.meta["method"],
        "modality": model.modality,
        "description": model.description,
        "verdict": verdict,
        "beats_baselines": all(s["answer"] == "yes" for s in sequences) if sequences else None,
        "sets": [
            {key: entry.get(key) for key in ("title", "modality", "cases", "patients", "figures", "verdict")}
            for entry in sets
        ],
        "blind_spots": list(measured.get("blind_spots", ())),
    }


def _warnings(finding: Finding, model: AnomalyModel, about_model: Mapping[str, Any]) -> list[dict[str, str]]:
    """Everything that the finding warns of, the input gate first, then what is known of the model."""
    gate = finding.gate.sentence() if finding.gate is not None else ""
    drifted = bool((finding.drift or {}).get("drifted"))
    found = []
    for text in finding.warnings:
        of_calibration = (
            text in model.calibration.warnings
            or "bound of the falsely marked" in text
            or (drifted and "healthy-looking bulk" in text)
        )
        about = "input gate" if text == gate else "calibration" if of_calibration else "scan"
        found.append({"about": about, "text": text})
    order = ("input gate", "calibration", "scan")
    found.sort(key=lambda warning: order.index(warning["about"]))
    if about_model["beats_baselines"] is None and about_model["verdict"] == []:
        found.append({"about": "model", "text": "how good this model is on this sequence has not been measured"})
    elif about_model["beats_baselines"] is not True:
        found += [{"about": "model", "text": sentence} for sentence in about_model["verdict"]]
    return found
