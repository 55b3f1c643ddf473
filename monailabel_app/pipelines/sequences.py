"""Which sequence a scan has, as far as somebody said so, and which model is asked about it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from monailabel_app.weights.listing import ModelEntry

from .shipped_models import DEFAULTS

ANY = "any"
_BIDS_SUFFIX = re.compile(r"_(T1w|T2w|PDw|FLAIR|T1|T2|PD|DWI|SWI|T2starw)$", re.IGNORECASE)
_WORDS = {"t1w": "t1", "t2w": "t2", "pdw": "pd", "t2starw": "t2star"}


def sequence_of(image_id: str, info: Mapping[str, Any]) -> str | None:
    """``t1``, ``flair``, ...: of the image information ``sequence``, else of an id that ends as BIDS has it."""
    said = info.get("sequence")
    if not isinstance(said, str) or not said.strip():
        suffix = _BIDS_SUFFIX.search(image_id)
        said = suffix[1] if suffix else ""
    word = said.strip().casefold()
    return _WORDS.get(word, word) or None


def default_model(models: Mapping[str, ModelEntry], sequence: str | None) -> str | None:
    """The model that is asked about a scan; None where there is none for its sequence.

    A scan of unknown sequence is taken for T1, or where no model is made for that, for what the first model is made.
    """
    wanted = DEFAULTS.get(sequence or "t1")
    if wanted in models:
        return wanted
    for modality in (sequence or "t1", ANY):
        found = next((name for name, entry in models.items() if entry.modality == modality), None)
        if found is not None:
            return found
    return next(iter(models), None) if sequence is None else None
