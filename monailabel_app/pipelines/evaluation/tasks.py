"""Which models are to be measured on which sets: all that is known of a model before any scan is analysed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monailabel_app.preprocessing.pipeline import PrepareSettings
from monailabel_app.weights.model_folder import result_hash

from ..calibration_choice import SITE
from ..levels import Levels
from ..predict import AnomalyModel
from .analyses import Part, parts_of
from .cases import CaseReference, CaseSet, references


@dataclass(frozen=True)
class MeasuredModel:
    """What an evaluation needs to know of a model without holding it.

    model_hash: of the folder and of the calibration in use; calibration: ``site`` or ``shipped``, as in predictions.
    parts: the networks to be run; about: what the record says of it; prepare_settings, levels: how it wants scans.
    """

    folder: Path
    model_hash: str
    parts: tuple[Part, ...]
    about: Mapping[str, Any]
    scores: tuple[str, ...]
    smoothings: tuple[str, ...]
    prepare_settings: PrepareSettings
    levels: Levels | None
    calibration: str = SITE

    @property
    def id(self) -> str:
        """The model's id."""
        return self.about["id"]

    @property
    def modality(self) -> str:
        """The sequence it was made for."""
        return self.about["modality"]

    @classmethod
    def of(
        cls,
        model: AnomalyModel,
        scores: Sequence[str] = (),
        smoothings: Sequence[str] = ("standard",),
        calibration: str = SITE,
    ) -> MeasuredModel:
        """A model read by its first score unless others are given, with the site's calibration where one is in use."""
        chosen = model.with_calibration(calibration)
        scores, healthy, in_use = tuple(scores) or chosen.scores[:1], chosen.calibration.healthy, chosen.calibration_id
        digest = own = result_hash(model.folder)
        of_site = in_use.get("kind") == SITE
        if of_site:
            digest = hashlib.sha256(f"{own}/{in_use['hash']}".encode()).hexdigest()
        about = {
            "id": model.id,
            "hash": model.hash,
            "result_hash": own,
            "method": str(model.meta["method"]),
            "modality": model.modality,
            "default": f"{chosen.scores[0]}/{smoothings[0]}/",
            "calibration": {
                "id": in_use.get("id") if of_site else None,
                "kind": "site" if of_site else "own",
                "scans": healthy.get("scans"),
                "warnings": list(healthy.get("warnings", ())),
            },
        }
        return cls(
            model.folder,
            digest,
            parts_of(model, scores),
            about,
            scores,
            tuple(smoothings),
            model.prepare_settings,
            model.levels,
            calibration,
        )


@dataclass(frozen=True)
class Task:
    """A model on a set."""

    model: MeasuredModel
    cases: CaseSet

    @property
    def title(self) -> str:
        """For progress bars and messages."""
        return f"{self.model.id} on {self.cases.name}"

    @property
    def scans(self) -> tuple[CaseReference, ...]:
        """The healthy scans, then the cases."""
        return (*references(self.cases.healthy), *references(self.cases.cases))
