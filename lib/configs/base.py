"""How a method's models present themselves; MONAI Label's ``TaskConfig`` without state and ``eval``."""

from __future__ import annotations

from dataclasses import dataclass

from lib.catalogue import ModelEntry

RESEARCH_ONLY = "Research use only; not a medical device."


@dataclass(frozen=True)
class MethodConfig:
    """method: id in the registry. title: in words. scores: those offered when the model does not say."""

    method: str
    title: str
    scores: tuple[str, ...]

    def scores_of(self, entry: ModelEntry) -> tuple[str, ...]:
        """The scores of one model, default first."""
        listed = entry.config.get("scores")
        return tuple(str(score) for score in listed) if listed else self.scores

    def describe(self, entry: ModelEntry) -> str:
        """One line for the viewers: what it finds, on which scans, learnt from what, and for which use."""
        words = str(entry.config.get("description") or self.title).strip().rstrip(".")
        learnt = f" Learnt from healthy scans only ({entry.training_data})." if entry.training_data else ""
        return f"{words}. For {entry.modality.upper()} head scans.{learnt} {RESEARCH_ONLY}"
