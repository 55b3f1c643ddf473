"""The operating points of a calibration as a table, for cards."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_POINTS = ("sensitive", "balanced", "specific", "bounded")


def operating_point_table(calibration: Mapping[str, Any], smoothing: str = "standard") -> str:
    """A Markdown table of the thresholds of every score at one smoothing. calibration: the content of its JSON."""
    shown = [
        (score, name, entry["points"][smoothing][name])
        for score, entry in calibration["scores"].items()
        for name in _POINTS
        if name in entry["points"][smoothing]  # calibrations of earlier versions bound no volume
    ]
    head = ["score", "operating point", "threshold (healthy SD)", "measured rate [95 %]", "worst healthy scan"]
    bounded = any(point.get("bound_ml") is not None for _, _, point in shown)
    if bounded:
        head.append("a healthy scan is marked by at most")
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for score, name, point in shown:
        low, high = point["interval"]
        cells = [
            score,
            f"{name} ({_aim(point)})",
            f"{point['threshold']:.2f}",
            f"{100 * point['measured_fpr']:.2f} % [{100 * low:.2f}, {100 * high:.2f}]",
            f"{100 * point['worst_fpr']:.2f} %",
        ]
        if bounded:
            bound, level = point.get("bound_ml"), point.get("bound_level")
            cells.append("-" if bound is None or level is None else f"{bound:.1f} ml in {100 * level:.1f} % of scans")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _aim(point: Mapping[str, Any]) -> str:
    if point["target_fpr"] is not None:
        return f"{100 * point['target_fpr']:g} %"
    return f"at most {point['target_ml']:g} ml"
