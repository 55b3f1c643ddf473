"""What a study report says in sentences, from its record alone: the same words on paper and in the JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .markup import is_number

CUSTOM = "custom"  # name of an operating point that was set by hand
WHOLE = "the whole scan"  # what a calibration's volumes are of; of models of single slices they are of a slice
RESEARCH = (
    "Research use only. Not a medical device: not for diagnosis, screening or treatment. A region that is not marked "
    "is not thereby healthy, and a marked one is not thereby diseased."
)


def summary(record: Mapping[str, Any]) -> list[str]:
    """Score, marked volume and operating point, each with what healthy scans show."""
    return [sentence for sentence in (_score(record), _marked(record), _point(record)) if sentence]


def checks(record: Mapping[str, Any]) -> list[str]:
    """What was checked and found in order, or could not be checked; faults are among the warnings."""
    finding, said = record["finding"], []
    gate, drift = finding.get("gate"), finding.get("drift")
    if gate is None:
        asked = finding["settings"].get("gate") != "off"
        said.append(
            "Input gate: there is none for this kind of scan, so nothing checked whether the model was made for it."
            if asked
            else "Input gate: not asked (gate=off)."
        )
    elif gate["passed"]:
        part = {"plain": ", without the network", "outline": ", outline of the brain only"}.get(gate["judged_by"], "")
        said.append(
            f"Input gate: passed{part} (oddest feature {gate['score']:.1f}, limit {gate['threshold']:.1f} healthy "
            "standard deviations)."
        )
    if drift is None:
        said.append("Drift from the calibration: not known for this calibration.")
    elif not drift["drifted"]:
        said.append(
            f"Drift from the calibration: none seen (distance {drift['distance']:.2f}, the {drift['healthy_scans']} "
            f"healthy scans up to {drift['healthy_largest']:.2f})."
        )
    return said


def nothing_marked(record: Mapping[str, Any]) -> str:
    """For an empty result."""
    highest = record["highest"]
    value = f"its highest value is {highest['value']:.2f}, " if highest else ""
    return (
        f"No region was marked: nothing of at least {record['finding']['settings']['min_volume_ml']:g} ml lies above "
        f"the threshold of the map, {value}the threshold {record['finding']['threshold']:.2f} healthy standard "
        "deviations. This does not show that the brain is healthy."
    )


def share_words(region: Mapping[str, Any]) -> str:
    """How rare a peak is among healthy voxels."""
    share = region.get("peak_healthy_share")
    if not is_number(share):
        return ""
    sign = "< " if region.get("peak_beyond_table") else ""
    return f"{sign}{100 * share:.2g} %"


def place_words(ras_mm: Sequence[float] | None, scan: Mapping[str, Any]) -> str:
    """A place in mm of the scan's own space: ``L 34, A 3, S 43``, without the direction across a single slice.

    Where the space has its origin outside of the brain, letters would tell a side that is not meant: then signed
    numbers, ``x -34, y +3, z +43``. scan: of the record.
    """
    if ras_mm is None:
        return ""
    return ", ".join(
        axis_words(axis, value, letters=scan["origin_in_brain"])
        for axis, value in enumerate(ras_mm)
        if axis != scan["across"]
    )


def axis_words(axis: int, value: float, *, letters: bool) -> str:
    """A place along one axis, as in ``place_words``."""
    if not letters:
        return f"{'xyz'[axis]} {value:+.0f}"
    return f"{('LPI' if value < 0 else 'RAS')[axis]} {abs(value):.0f}"


def ml(value: float) -> str:
    """A volume, with more digits where it is small."""
    return f"{value:.2f}" if value < 1 else f"{value:.1f}"


def _score(record: Mapping[str, Any]) -> str:
    finding, scores = record["finding"], record["healthy"]["scan_scores"]
    text = f"Anomaly score {finding['anomaly_score']:.2f}"
    if not scores:
        return f"{text}; the calibration has no scores of healthy scans to compare it with."
    not_below, total = sum(s >= finding["anomaly_score"] for s in scores), len(scores)
    if not not_below:
        rank = f"higher than all {total} healthy scans of the calibration"
    else:
        rank = f"{not_below} of {total} healthy scans of the calibration score as high or higher"
    least = " the smallest that so many scans can give" if not not_below else ""
    text = f"{text}: {rank} (their median {np.median(scores):.2f}, highest {max(scores):.2f})"
    if finding["p_value"] is None:
        return f"{text}."
    return (
        f"{text}; p = {finding['p_value']:.2g}{',' if least else ''}{least}. p tells how rare such a score is among "
        "healthy scans, not how likely a disease is."
    )


def _marked(record: Mapping[str, Any]) -> str:
    finding, healthy = record["finding"], record["healthy"]
    count, volume = finding["lesion_count"], finding["anomaly_volume_ml"]
    regions = "no region" if not count else "1 region" if count == 1 else f"{count} regions"
    text = f"Marked: {regions}{f', {ml(volume)} ml together' if count else ''}"
    others, of = healthy["marked_ml"], healthy["marked_of"]
    if not others:
        return f"{text}."
    spread = f"median {ml(float(np.median(others)))} ml, most {ml(max(others))} ml"
    if of != WHOLE:
        text += f", which is {ml(healthy['scan_marked_ml'])} ml in {of}" if count else ""
        spread += f" in {of}"
    if not count:
        return f"{text}. In healthy scans this operating point marks: {spread}."
    not_below = sum(value >= healthy["scan_marked_ml"] for value in others)
    if not not_below:
        return f"{text}: more than in each of the {len(others)} healthy scans at this operating point ({spread})."
    return (
        f"{text}. At this operating point {not_below} of {len(others)} healthy scans have as much or more marked "
        f"({spread}): regions like these can be false alarms."
    )


def _point(record: Mapping[str, Any]) -> str:
    point = record["operating_point"]
    text = f"Operating point {point['name']}: threshold {point['threshold']:.2f} healthy standard deviations"
    if point["name"] == CUSTOM:
        text = f"A threshold of one's own, {point['threshold']:.2f} healthy standard deviations"
    if point.get("healthy_rate") is not None:
        limits = point.get("healthy_rate_interval")
        spread = f" (95 % interval {_percent(limits[0])} to {_percent(limits[1])} %)" if limits else ""
        rate = f"{_percent(point['healthy_rate'])} %"
        if point["name"] == CUSTOM:
            least = min(record["healthy"]["tails"]["shares"], default=0.0)
            rate = f"about {rate}" if point["healthy_rate"] >= least else f"less than {_percent(least)} %"
        text += f", which {rate} of the voxels of held-out healthy scans exceed{spread}"
    text += "."
    if point["name"] == CUSTOM:
        text += " How much it marks in a healthy scan was not measured."
    if point.get("bound_ml") is not None:
        of = "" if point["bound_of"] == WHOLE else f" in {point['bound_of']}"
        text += (
            f" A further healthy scan like those of the calibration has at most {ml(point['bound_ml'])} ml marked{of} "
            f"with a probability of {100 * point['bound_level']:.0f} %."
        )
    return text


def _percent(share: float) -> str:
    return f"{100 * share:.2g}"
