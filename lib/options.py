"""What a viewer's user can choose, and how each choice is read from a request.

Slicer and OHIF show a list of strings as a drop-down and send one string back; someone calling the address
directly often sends the whole list from ``/info/`` back. Both are understood, anything else is refused by
name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from monailabel_app.calibration.calibrated_map import SMOOTHING_MM
from monailabel_app.calibration.operating_points import POINTS
from monailabel_app.errors import InvalidSettings
from monailabel_app.pipelines.calibration_choice import CALIBRATIONS
from monailabel_app.pipelines.predict_settings import HIGHEST_THRESHOLD
from monailabel_app.postprocessing.components import LARGEST_VOLUME_LIMIT_ML
from monailabel_app.types import GATE_SETTINGS

# The default is offered first.
OPERATING_POINTS = ("balanced", *(name for name in POINTS if name != "balanced"))
SMOOTHING = tuple(SMOOTHING_MM)
UNCERTAINTY = ("off", "on")
MIN_LESION_VOLUMES = ("0.1 ml", "0 ml", "0.03 ml", "0.5 ml", "1 ml")


def pick(name: str, value: Any, allowed: Sequence[str]) -> str:
    """The one of ``allowed`` that ``value`` means; the first when it is absent or the list as offered.

    Raises InvalidSettings naming the allowed values.
    """
    if isinstance(value, (list, tuple)):
        value = value[0] if len(value) == 1 else None if list(value) == list(allowed) else value
    if value is None or value == "":
        return allowed[0]
    if isinstance(value, str):
        for choice in allowed:
            if choice.casefold() == value.strip().casefold():
                return choice
    raise InvalidSettings(f"expected {name} to be one of {', '.join(allowed)}; got {_short(value)}")


def pick_volume_ml(name: str, value: Any, allowed: Sequence[str] = MIN_LESION_VOLUMES) -> float:
    """A volume in ml from ``"0.1 ml"``, ``"0.1"`` or a number. Raises InvalidSettings."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        value = str(value)
    number = (
        re.fullmatch(r"\s*([0-9]*\.?[0-9]+(?:[eE][-+]?[0-9]+)?)\s*(?:ml)?\s*", value)
        if isinstance(value, str)
        else None
    )
    millilitres = float(number[1]) if number else float(pick(name, value, allowed).split()[0])
    if not math.isfinite(millilitres) or millilitres > LARGEST_VOLUME_LIMIT_ML:
        raise InvalidSettings(f"expected {name} between 0 and {LARGEST_VOLUME_LIMIT_ML:g} ml, got {_short(value)}")
    return millilitres


def pick_threshold(name: str, value: Any) -> float | None:
    """Healthy standard deviations from a number or text; None when it is absent. Raises InvalidSettings."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    try:
        number = math.nan if isinstance(value, (bool, list, tuple, dict)) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not 0 <= number <= HIGHEST_THRESHOLD:
        raise InvalidSettings(
            f"expected {name} as a number of healthy standard deviations from 0 to {HIGHEST_THRESHOLD:g}, got "
            f"{_short(value)}"
        )
    return number


def pick_seed(name: str, value: Any, default: int = 0) -> int:
    """A whole number from 0 to 2^31 - 1. Raises InvalidSettings."""
    if value is None or value == "":
        return default
    try:
        seed = int(str(value))
    except ValueError:
        seed = -1
    if not 0 <= seed < 2**31:
        raise InvalidSettings(f"expected {name} to be a whole number from 0 to 2147483647, got {_short(value)}")
    return seed


def for_viewers(scores: Sequence[str]) -> dict[str, list[str]]:
    """The drop-downs of one model, default first. Strings only: Slicer shows nothing else in a list."""
    return {
        "operating_point": list(OPERATING_POINTS),
        "score": list(scores),
        "smoothing": list(SMOOTHING),
        "min_lesion_volume": list(MIN_LESION_VOLUMES),
        "uncertainty": list(UNCERTAINTY),
        "input_gate": list(GATE_SETTINGS),
    }


def read(request: Mapping[str, Any], scores: Sequence[str]) -> dict[str, Any]:
    """The prediction settings in a request, named as in ``PredictSettings``. Raises InvalidSettings.

    ``threshold`` is among them only where one is given: it replaces the operating point's.
    """
    threshold = pick_threshold("threshold", request.get("threshold"))
    return {
        "operating_point": pick("operating_point", request.get("operating_point"), OPERATING_POINTS),
        "score": pick("score", request.get("score"), scores),
        "smoothing": pick("smoothing", request.get("smoothing"), SMOOTHING),
        "min_volume_ml": pick_volume_ml("min_lesion_volume", request.get("min_lesion_volume")),
        "seed": pick_seed("seed", request.get("seed")),
        "uncertainty": pick("uncertainty", request.get("uncertainty"), UNCERTAINTY) == "on",
        "gate": pick("input_gate", request.get("input_gate"), GATE_SETTINGS),
        "calibration": pick("calibration", request.get("calibration"), CALIBRATIONS),
        **({"threshold": threshold} if threshold is not None else {}),
    }


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
