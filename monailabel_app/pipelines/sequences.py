"""Which sequence a scan has, as far as somebody said so, and which model is asked about it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from monailabel_app.weights.listing import ModelEntry

from .shipped_models import DEFAULTS

ANY = "any"
# What every detector has to beat: nobody should be given it for a model that is missing without being told.
_BASELINES = frozenset({"intensity", "atlas_zscore"})
_BIDS_SUFFIX = re.compile(r"_(T1w|T2w|PDw|FLAIR|T1|T2|PD|DWI|SWI|T2starw)$", re.IGNORECASE)
_WORDS = {"t1w": "t1", "t2w": "t2", "pdw": "pd", "t2starw": "t2star"}
_AS_WORDS = frozenset({"t1", "t2", "flair", "pd", "dwi", "swi", "t2star"})
# What technicians call a series. The first that fits: a FLAIR is called T2 as well, and a T1 FLAIR is a T1.
_CALLED = (
    ("dwi", r"dwi|adc|diff|dti|trace|ep2d"),
    ("swi", r"swi|swan|venobold"),
    ("t2star", r"t2\s?\*|t2\s?star|gre|hemo"),
    ("t1", r"t1.*flair|flair.*t1"),
    ("flair", r"flair|tirm|dark.?fluid"),
    ("t1", r"t1|mp2?rage|mp-rage|bravo|spgr|tfl3d|vibe"),
    ("t2", r"t2|ciss|fiesta"),
    ("pd", r"pd|proton"),
)
_CALLED_SO = tuple((name, re.compile(rf"(?<![a-z])({words})")) for name, words in _CALLED)


def sequence_of(image_id: str, info: Mapping[str, Any]) -> str | None:
    """``t1``, ``flair``, ...; None where nobody said so.

    Of the image information ``sequence``, else of an id that ends as BIDS has it, else of what an archive calls the
    series (``SeriesDescription``), else of the one sequence that is a word of the id (``mslub_flair_2mm``).
    """
    said = info.get("sequence")
    if not isinstance(said, str) or not said.strip():
        suffix = _BIDS_SUFFIX.search(image_id)
        said = suffix[1] if suffix else _called(info.get("SeriesDescription")) or _word_of(image_id)
    word = said.strip().casefold()
    return _WORDS.get(word, word) or None


def _word_of(image_id: str) -> str:
    words = {_WORDS.get(word, word) for word in re.split(r"[^a-z0-9]+", image_id.casefold())}
    found = words & _AS_WORDS
    return found.pop() if len(found) == 1 else ""


def _called(description: Any) -> str:
    words = description.casefold() if isinstance(description, str) else ""
    return next((name for name, pattern in _CALLED_SO if pattern.search(words)), "")


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


def stand_in(models: Mapping[str, ModelEntry], sequence: str | None) -> str:
    """What to tell where the model that is offered first for a sequence is missing; empty where it is there."""
    wanted = DEFAULTS.get(sequence or "t1")
    if wanted is None or wanted in models:
        return ""
    used = default_model(models, sequence)
    asked = "no model is asked" if used is None else f"{used} is asked"
    if used is not None and models[used].method in _BASELINES:
        asked += ", a baseline that finds less"
    about = sequence or "scans of unknown sequence, taken for t1"
    return (
        f"the model offered first for {about}, {wanted}, is missing or cannot be used; instead {asked} "
        f"(restore model_weights/{wanted}, or name a model)"
    )


def stand_ins(models: Mapping[str, ModelEntry]) -> list[str]:
    """The same for every sequence that has a model of its own."""
    return [told for sequence in DEFAULTS if (told := stand_in(models, sequence))]
