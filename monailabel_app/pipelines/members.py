"""An ensemble's members: found by name and hash, analysed like any model, and combined on a common scale."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from monailabel_app.calibration.background import matched
from monailabel_app.calibration.calibrated_map import calibrated_map
from monailabel_app.calibration.tails import rarity
from monailabel_app.calibration.voxel_statistics import VoxelStatistics
from monailabel_app.errors import CorruptModel
from monailabel_app.methods.ensemble import MEMBER_SMOOTHING, combine
from monailabel_app.types import PreparedVolume
from monailabel_app.uncertainty.total_variance import pooled_variance
from monailabel_app.weights.model_folder import CONFIG, SUMS, VERSIONS, result_hash

from .analysis import Analysis, Evidence

if TYPE_CHECKING:
    from .predict import AnomalyModel

Without = int | Collection[int] | None


@dataclass(frozen=True)
class EnsembleEvidence(Evidence):
    """members: the evidence of each, in the ensemble's order."""

    members: tuple[Evidence, ...] = field(default=())

    @property
    def nbytes(self) -> int:
        """Memory held beside the prepared volume's, in bytes."""
        return super().nbytes + sum(member.nbytes for member in self.members)


def load_members(
    folder: Path, names: Sequence[str], hashes: Sequence[str], load: Callable[[Path], AnomalyModel]
) -> tuple[AnomalyModel, ...]:
    """The models that an ensemble in ``folder`` names, each with exactly the hash it was made with.

    They are looked for beside the ensemble, then among the app's own, shipped and published models of that name.
    Raises CorruptModel when one is missing, changed, or an ensemble itself.
    """
    members = []
    for name, wanted in zip(names, hashes, strict=True):
        found = {path: result_hash(path) for path in _candidates(folder, name)}
        chosen = next((path for path, value in found.items() if value == wanted), None)
        if chosen is None:
            there_is = ", ".join(f"{value[:12]}" for value in found.values()) or "no such model"
            raise CorruptModel(
                f"expected the member {name} of the ensemble {folder.name} with hash {wanted[:12]}, got {there_is}; "
                "restore that version, or make the ensemble again: python main.py models ensemble"
            )
        member = load(chosen)
        if member.members:
            raise CorruptModel(f"expected a model with a method of its own as member of {folder.name}, got {name}")
        members.append(member)
    return tuple(members)


def check_members(model: AnomalyModel) -> None:
    """Raises CorruptModel unless every member wants its scans prepared as the ensemble does, on one template."""
    for member in model.members:
        same = (member.prepare_settings, member.levels) == (model.prepare_settings, model.levels)
        if not same or not np.array_equal(member.template.affine, model.template.affine):
            raise CorruptModel(
                f"expected members of {model.id} that prepare a scan in one way, got {member.id}, which does it in "
                "another; make an ensemble of models of one sequence and one kind (volumes, or single slices)"
            )


def analyse_members(
    model: AnomalyModel, prepared: PreparedVolume, analyse_one: Callable[[int, AnomalyModel], Analysis]
) -> Analysis:
    """What the members make of a prepared brain, and what follows from it with their own calibrations."""
    analyses = [analyse_one(index, member) for index, member in enumerate(model.members)]
    members = tuple(analysis.evidence for analysis in analyses)
    maps = combine_evidence(model, prepared, members, own_statistics(model))
    mean, variance = _mixed_reconstruction(members)
    evidence = EnsembleEvidence(prepared.image[0], prepared.brain_mask, mean, maps, variance=variance, members=members)
    return Analysis(prepared, evidence, made=tuple(made for analysis in analyses for made in analysis.made))


def own_statistics(model: AnomalyModel) -> list[VoxelStatistics]:
    """The healthy statistics of each member's score, as its folder has them."""
    pairs = zip(model.members, model.config.scores, strict=True)
    return [member.calibration.score(score).statistics for member, score in pairs]


def combine_evidence(
    model: AnomalyModel,
    prepared: PreparedVolume,
    members: Sequence[Evidence],
    statistics: Sequence[VoxelStatistics],
) -> dict[str, np.ndarray]:
    """The ensemble's raw maps from its members' evidence and healthy statistics, (X, Y, Z) by score name."""
    return dict(combine(member_rarities(model, prepared, members, statistics)))


def member_rarities(
    model: AnomalyModel,
    prepared: PreparedVolume,
    members: Sequence[Evidence],
    statistics: Sequence[VoxelStatistics],
) -> list[np.ndarray]:
    """How rare each member finds every voxel, (X, Y, Z): the scale on which they are combined."""
    rarities = []
    for member, score, evidence, healthy in zip(model.members, model.config.scores, members, statistics, strict=True):
        known = member.calibration.score(score)
        about = {"score": score, "smoothing": MEMBER_SMOOTHING, "erosion_mm": member.calibration.erosion_mm}
        values = calibrated_map(evidence.raw(score), prepared.brain_mask, healthy, **about)
        values, _ = matched(values, prepared.brain_mask, known, **about)
        rarities.append(rarity(values, known.tails[MEMBER_SMOOTHING]))
    return rarities


def _mixed_reconstruction(members: Sequence[Evidence]) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Mean and variance over the members that reconstruct, their own variances over draws and levels included."""
    made = [member for member in members if member.reconstruction is not None]
    if not made:
        return None, None
    means = np.stack([member.reconstruction for member in made])
    within = np.stack([np.zeros_like(m.reconstruction) if m.variance is None else m.variance for m in made])
    variance = pooled_variance(means, within).astype(np.float32) if within.any() or len(made) > 1 else None
    return means.mean(axis=0).astype(np.float32), variance


def _candidates(folder: Path, name: str) -> Iterator[Path]:
    """Every folder that can be meant by a member's name, the likeliest first."""
    model = folder.parent.parent if folder.parent.name == VERSIONS else folder
    name, _, version = name.partition("@")
    shipped = Path(__file__).resolve().parents[2] / "model_weights"
    root = model.parent.parent
    parents = dict.fromkeys((model.parent, root / "model", root / "model_weights", shipped))
    for parent in parents:
        base = parent / name
        published = sorted(path for path in (base / VERSIONS).glob("*") if path.is_dir())
        wanted = [base / VERSIONS / version] if version else []
        for path in dict.fromkeys([*wanted, base, *reversed(published)]):
            if (path / CONFIG).is_file() and (path / SUMS).is_file():
                yield path
