"""scans.csv: one line per model, set and scan, for spreadsheets and for ``fairness``."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from monailabel_app.types import to_json

from .differences import default_protocol
from .measure import Measurement

_OF_POINT = ("threshold", "marked_ml", "false_ml", "dice", "lesions", "detected", "false_positives")
_OF_SCAN = ("scan_score", "p_value", "volume_ml", "native_ml", "native_lesions", "lost_lesions", "analysed_share")
_FIRST = ("model", "set", "split", "id", "patient", "healthy", "score", "calibration")


def scan_table(measurements: Sequence[Measurement]) -> str:
    """Every scan by the default score of every model, with the model's own calibration.

    Columns: what the scan is, scores and volumes, ``<figure>_<operating point>``, then attributes.
    """
    lines, attributes = [], {}
    for measurement in measurements:
        record = measurement.record
        protocol = record["protocols"][default_protocol(record)]
        for kind in ("cases", "healthy"):
            for scan in protocol[kind]:
                lines.append(_line(record, protocol, scan, healthy=kind == "healthy"))
                attributes |= dict.fromkeys(scan["attributes"])
    names = [*dict.fromkeys(name for line in lines for name in line if name not in attributes)]
    stream = io.StringIO()
    # An attribute must not hide a column of the same name.
    writer = csv.DictWriter(stream, [*names, *(name for name in attributes if name not in names)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return stream.getvalue()


def _line(
    record: Mapping[str, Any], protocol: Mapping[str, Any], scan: Mapping[str, Any], *, healthy: bool
) -> dict[str, Any]:
    calibration = protocol["calibration"]
    line: dict[str, Any] = dict(scan["attributes"])
    line |= {
        "model": record["model"]["id"],
        "set": record["set"]["name"],
        "split": record["set"]["split"] or "",
        "id": scan["id"],
        "patient": scan["patient"],
        "healthy": int(healthy),
        "score": protocol["score"],
        "calibration": calibration["kind"] if isinstance(calibration, Mapping) else calibration,
    }
    line |= {name: _cell(scan.get(name)) for name in _OF_SCAN if name in scan}
    for point, entry in scan["points"].items():
        line |= {f"{name}_{point}": _cell(entry[name]) for name in _OF_POINT if name in entry}
    return {name: line[name] for name in (*_FIRST, *(name for name in line if name not in _FIRST))}


def _cell(value: Any) -> Any:
    """Empty where there is none, and no more digits than mean something."""
    value = to_json(value)
    return "" if value is None else round(value, 6) if isinstance(value, float) else value
