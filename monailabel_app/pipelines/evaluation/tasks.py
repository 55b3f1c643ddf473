"""Which models are to be measured on which sets: all that is known of a model before any scan is analysed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monailabel_app.preprocessing.pipeline import PrepareSettings
from monailabel_app.weights.model_folder import result_hash

from ..levels import Levels
from ..predict import AnomalyModel
from .analyses import Part, parts_of
from .cases import CaseReference, CaseSet, references


@dataclass(frozen=True)
class MeasuredModel:
    """What an evaluation needs to know of a model without holding it.

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
        cls, model: AnomalyModel, scores: Sequence[str] = (), smoothings: Sequence[str] = ("standard",)
    ) -> MeasuredModel:
        """A model read by its first score unless others are given."""
        scores, healthy = tuple(scores) or model.scores[:1], model.calibration.healthy
        digest = result_hash(model.folder)
        about = {
            "id": model.id,
            "hash": model.hash,
            "result_hash": digest,
            "method": str(model.meta["method"]),
            "modality": model.modality,
            "default": f"{model.scores[0]}/{smoothings[0]}/",
            "calibration": {
                "id": healthy.get("id"),
                "kind": healthy.get("kind", "own"),
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
