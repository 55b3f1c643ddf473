"""Several models as one: how rare each finds a voxel among healthy ones, combined.

Maps of different methods have different scales; the share of healthy voxels that exceed a value is common to all.
Fisher (1932) adds the logarithms of such p-values, Wilson (PNAS 2019) takes their harmonic mean, which few strong votes
decide. Neither result is a p-value here, since the maps of one scan depend on each other: the ensemble is calibrated on
healthy scans like any other model, so that only the order of voxels matters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from monailabel_app.errors import InvalidSettings

ILLUMINATION_MM = 0.0
# The members' maps are smoothed by this much, with their signs, before their rarity is looked up.
MEMBER_SMOOTHING = "standard"


@dataclass(frozen=True)
class Config:
    """members: names of model folders. hashes: ``result_hash`` of each, so that no other model takes its place.

    scores: which calibrated score of each member counts.
    """

    members: tuple[str, ...] = ()
    hashes: tuple[str, ...] = ()
    scores: tuple[str, ...] = ()


PRESETS = {"compact": Config(), "large": Config(), "tiny": Config()}


class Members(nn.Module):
    """count: how many members; an ensemble learns nothing of its own."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.register_buffer("count", torch.tensor([count], dtype=torch.int32))


def build(config: Config) -> nn.Module:
    """A module that holds no weights. Raises InvalidSettings when members, hashes and scores do not belong together."""
    if not len(config.members) == len(config.hashes) == len(config.scores):
        raise InvalidSettings(
            f"expected a hash and a score for each of {len(config.members)} members, got {len(config.hashes)} hashes "
            f"and {len(config.scores)} scores; make the ensemble again"
        )
    return Members(len(config.members))


def combine(rarities: Sequence[np.ndarray]) -> Mapping[str, np.ndarray]:
    """The combined maps by score name, float32: higher is more anomalous, 0 where no member finds anything.

    rarities: -log10 of the healthy share above each voxel, (X, Y, Z) per member, not negative.

    fisher: mean of the logarithms, so every member counts. harmonic: -log10 of the harmonic mean of the shares.
    strongest: the largest.
    """
    if not len(rarities):
        raise InvalidSettings("expected at least one member to combine, got none")
    stack = np.stack(list(rarities)).astype(np.float64)
    largest = stack.max(axis=0)
    # Relative to the largest, or ten to the power of a striking lesion's rarity would overflow.
    harmonic = largest + np.log10((10.0 ** (stack - largest)).mean(axis=0))
    made = {"fisher": stack.mean(axis=0), "harmonic": harmonic, "strongest": largest}
    return {name: np.maximum(values, 0).astype(np.float32) for name, values in made.items()}
