"""How much a finding would change: repeated analyses with small changes of preparation, noise and model.

Every lesion, and the scan, gets the deviation of its figures and the share of each source in their variance. The
lesions are those of the finding; in the repeats, what is marked within a few millimetres of one counts as that lesion.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import ndimage

from monailabel_app.calibration.background import matched
from monailabel_app.calibration.calibrated_map import calibrated_map, scan_score, slice_score
from monailabel_app.calibration.tails import rarity, value_of
from monailabel_app.errors import InvalidSettings
from monailabel_app.io.geometry import resample
from monailabel_app.postprocessing.delineate import least_kept
from monailabel_app.preprocessing.normalize import NORMALIZATIONS, normalize_slice
from monailabel_app.types import CONNECTIVITY_26, Lesion, PreparedVolume, Volume
from monailabel_app.uncertainty.jitter import Jitter, random_alignment, random_field, random_outline
from monailabel_app.uncertainty.total_variance import decompose

from .analysis import Analysis
from .members import member_rarities, own_statistics

if TYPE_CHECKING:
    from .predict import AnomalyModel, PredictSettings

PREPARATIONS, SEEDS = 4, 2
_NEAR_MM = 6.0
_GRID_MM = 2.0
# (what prepares the scan anew, seed, name of the repeat) -> analysis; nothing is prepared for one that is at hand
Run = Callable[[Callable[[], PreparedVolume], int, tuple[int, int]], Analysis]


def repeated(
    volume: Volume,
    model: AnomalyModel,
    analysis: Analysis,
    mask: np.ndarray,
    lesions: Sequence[Lesion],
    settings: PredictSettings,
    run: Run,
    *,
    jitter: Jitter = Jitter(),
    images: bool = False,
) -> tuple[tuple[Lesion, ...], dict[str, Any], np.ndarray | None]:
    """The lesions with their uncertainty, that of the scan, and where ``images`` asks for it that of every voxel.

    The last: (X, Y, Z) float32 on the model grid of ``analysis``, the deviation of the calibrated map over the repeats,
    in its own unit. Of an ensemble, over repeats and members: each gives the map that the ensemble would have if all
    its members agreed with that one.

    analysis: the finding's own, which is the first of PREPARATIONS x SEEDS. mask: (x, y, z) of the lesions. run: makes
    the other analyses. An ensemble is read member by member, each on the scale of its healthy tails; of any other model
    the share of the model is 0, since there is one. Raises InvalidSettings for a model with bias field correction,
    whose field a repeat does not have.
    """
    if model.prepare_settings.bias_field:
        raise InvalidSettings(
            f"expected a model without bias field correction for uncertainty=on, got {model.id}; send uncertainty=off"
        )
    zones = _zones(mask, volume.affine, lesions)
    models = max(1, len(model.members))
    shape = (PREPARATIONS, models, SEEDS)
    scan_scores, marked_ml = np.zeros(shape), np.zeros(shape)
    volumes, scores, found = (np.zeros((len(lesions), *shape)) for _ in range(3))
    spread = np.zeros((len(lesions), PREPARATIONS * SEEDS))
    voxels = _VoxelSpread(analysis.prepared) if images else None
    for (p, s), scan in _repeats(volume, model, analysis, settings, run, jitter):
        for m, (values, scale, threshold) in enumerate(_maps(model, scan, settings)):
            on_scale = scale(values)
            scan_scores[p, m, s] = scan_score(on_scale) if model.levels is None else slice_score(on_scale)
            least = least_kept(values, (_GRID_MM,) * 3)
            marked_ml[p, m, s] = float(((values > threshold) & (values >= least)).sum()) * _GRID_MM**3 / 1000
            for i, zone in enumerate(zones):
                near = zone.native(values, scan.prepared)
                marked = (near > threshold) & (near >= zone.native(least, scan.prepared)) & zone.near
                volumes[i, p, m, s] = marked.sum() * volume.voxel_volume_mm3 / 1000
                found[i, p, m, s] = (marked & zone.lesion).any()
                scores[i, p, m, s] = zone.native(on_scale, scan.prepared)[zone.lesion].mean()
        if voxels is not None:
            for values in _on_scale_of(model, scan, settings):
                voxels.add(values, scan.prepared)
        if scan.evidence.variance is not None:
            for i, zone in enumerate(zones):
                spread[i, p * SEEDS + s] = zone.native(scan.evidence.variance, scan.prepared)[zone.lesion].mean()
    varies = analysis.evidence.variance is not None
    told = tuple(
        replace(
            lesion,
            uncertainty={
                **_spread("volume_ml", volumes[i]),
                **_spread("mean_score", scores[i]),
                "found_again": float(found[i].mean()),
                **({"reconstruction_std": float(np.sqrt(max(spread[i].mean(), 0)))} if varies else {}),
            },
        )
        for i, lesion in enumerate(lesions)
    )
    about = {
        "analyses": PREPARATIONS * SEEDS,
        "preparations": PREPARATIONS,
        "seeds": SEEDS,
        "members": [member.id for member in model.members],
        "score_unit": "-log10 of the healthy share" if model.members else "healthy standard deviations",
        **_spread("anomaly_score", scan_scores),
        **_spread("marked_ml", marked_ml),
    }
    return told, about, None if voxels is None else voxels.deviation()


def jittered(
    volume: Volume, prepared: PreparedVolume, model: AnomalyModel, jitter: Jitter, generator: np.random.Generator
) -> PreparedVolume:
    """The scan as another preparation could have left it: moved, shaded, with another outline, normalised anew."""
    mask = prepared.brain_mask
    corners = np.argwhere(mask).mean(axis=0) @ prepared.model_affine[:3, :3].T + prepared.model_affine[:3, 3]
    move = random_alignment(jitter, corners, generator, in_plane=mask.shape[2] == 1)
    field = random_field(jitter, mask.shape, _GRID_MM, generator)
    grid = (mask.shape, prepared.model_affine)
    moved = resample(mask.astype(np.float32), prepared.model_affine, *grid, transform=move) >= 0.5
    outline = random_outline(jitter, moved, generator)
    alignment = move @ prepared.native_to_template
    image = resample(volume.data[0], volume.affine, *grid, transform=alignment) * field
    normalise = NORMALIZATIONS[model.prepare_settings.normalization] if model.levels is None else normalize_slice
    made, _ = normalise(image, outline)
    return replace(prepared, image=made[None], brain_mask=outline, native_to_template=alignment)


def _repeats(
    volume: Volume, model: AnomalyModel, analysis: Analysis, settings: PredictSettings, run: Run, jitter: Jitter
) -> Iterator[tuple[tuple[int, int], Analysis]]:
    for p in range(PREPARATIONS):
        # Prepared once for all seeds, and not at all where every analysis of it is at hand.
        prepared = cache(partial(_prepared, volume, analysis.prepared, model, jitter, settings.seed, p))
        for s in range(SEEDS):
            yield (p, s), analysis if p == s == 0 else run(prepared, settings.seed + s, (p, s))


def _prepared(
    volume: Volume, prepared: PreparedVolume, model: AnomalyModel, jitter: Jitter, seed: int, p: int
) -> PreparedVolume:
    return prepared if p == 0 else jittered(volume, prepared, model, jitter, np.random.default_rng([seed, p]))


def _maps(
    model: AnomalyModel, scan: Analysis, settings: PredictSettings
) -> Iterator[tuple[np.ndarray, Callable[[np.ndarray], np.ndarray], float]]:
    """Calibrated map, common scale and threshold of every member, or of the model itself."""
    parts = [(model, settings.score or model.scores[0], scan.evidence)]
    if model.members:
        parts = list(zip(model.members, model.config.scores, scan.evidence.members, strict=True))
    for part, score, evidence in parts:
        calibration = part.calibration.score(score)
        values = calibrated_map(
            evidence.raw(score),
            scan.prepared.brain_mask,
            calibration.statistics,
            score=score,
            smoothing=settings.smoothing,
            erosion_mm=part.calibration.erosion_mm,
        )
        about = {"smoothing": settings.smoothing, "erosion_mm": part.calibration.erosion_mm}
        values, _ = matched(values, scan.prepared.brain_mask, calibration, score=score, **about)
        table = calibration.tails.get(settings.smoothing, ())
        scale = (lambda v, table=table: rarity(v, table)) if model.members else (lambda v: v)
        yield values, scale, _threshold(model, part, score, settings)


def _threshold(model: AnomalyModel, part: AnomalyModel, score: str, settings: PredictSettings) -> float:
    """The part's own; for a threshold that was given, the value that is as rare among the part's healthy voxels."""
    calibration = part.calibration.score(score)
    if settings.threshold is None or part is model:
        return settings.threshold_in(calibration)
    combined = model.calibration.score(settings.score or model.scores[0])
    rare = rarity(np.array([settings.threshold]), combined.tails.get(settings.smoothing, ()))[0]
    return value_of(float(rare), calibration.tails.get(settings.smoothing, ()))


def _on_scale_of(model: AnomalyModel, scan: Analysis, settings: PredictSettings) -> Iterator[np.ndarray]:
    """The calibrated map (X, Y, Z); of an ensemble one per member, as if the others agreed with it."""
    score = settings.score or model.scores[0]
    calibration, mask = model.calibration.score(score), scan.prepared.brain_mask
    raw = [scan.raw(score)]
    if model.members:
        raw = member_rarities(model, scan.prepared, scan.evidence.members, own_statistics(model))
    erosion_mm = model.calibration.erosion_mm
    for values in raw:
        made = calibrated_map(
            values,
            mask,
            calibration.statistics,
            score=score,
            smoothing=settings.smoothing,
            erosion_mm=erosion_mm,
        )
        yield matched(made, mask, calibration, score=score, smoothing=settings.smoothing, erosion_mm=erosion_mm)[0]


class _VoxelSpread:
    """Mean and mean square of maps that repeats made, each brought onto the grid of the first."""

    def __init__(self, prepared: PreparedVolume) -> None:
        self._prepared = prepared
        shape = prepared.brain_mask.shape
        self._sum, self._squares, self._count = np.zeros(shape), np.zeros(shape), 0

    def add(self, values: np.ndarray, prepared: PreparedVolume) -> None:
        """values: (X, Y, Z) on the grid of ``prepared``."""
        first = self._prepared
        move = first.native_to_template @ np.linalg.inv(prepared.native_to_template)
        if not np.allclose(move, np.eye(4), atol=1e-9):
            grid = (first.brain_mask.shape, first.model_affine)
            values = resample(values, prepared.model_affine, *grid, transform=move)
        values = values.astype(np.float64)
        self._sum += values
        self._squares += values**2
        self._count += 1

    def deviation(self) -> np.ndarray:
        """(X, Y, Z) float32, 0 outside the brain."""
        mean = self._sum / self._count
        variance = np.maximum(self._squares / self._count - mean**2, 0)
        return np.where(self._prepared.brain_mask, np.sqrt(variance), 0).astype(np.float32)


@dataclass(frozen=True)
class _Zone:
    """A box of the scan's own grid around a lesion. lesion: its voxels; near: those nearer to it than to any other."""

    lesion: np.ndarray
    near: np.ndarray
    affine: np.ndarray

    def native(self, values: np.ndarray, prepared: PreparedVolume) -> np.ndarray:
        """A map on the model grid, in the box."""
        back = np.linalg.inv(prepared.native_to_template)
        return resample(values, prepared.model_affine, self.lesion.shape, self.affine, transform=back)


def _zones(mask: np.ndarray, affine: np.ndarray, lesions: Sequence[Lesion]) -> list[_Zone]:
    """The neighbourhood of every lesion, in their order."""
    if not lesions:
        return []
    labels, count = ndimage.label(mask, CONNECTIVITY_26)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    order = np.argsort(-sizes, kind="stable")[: len(lesions)]
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    margin = np.ceil(_NEAR_MM / spacing).astype(int)
    boxes, zones = ndimage.find_objects(labels), []
    for label in order + 1:
        box = tuple(
            slice(max(0, part.start - m), min(size, part.stop + m))
            for part, m, size in zip(boxes[label - 1], margin, mask.shape, strict=True)
        )
        here = labels[box]
        distance, nearest = ndimage.distance_transform_edt(here == 0, sampling=spacing, return_indices=True)
        near = (here[tuple(nearest)] == label) & (distance <= _NEAR_MM)
        corner = affine.copy()
        corner[:3, 3] = affine[:3, :3] @ [part.start for part in box] + affine[:3, 3]
        zones.append(_Zone(here == label, near, corner))
    return zones


def _spread(name: str, samples: np.ndarray) -> dict[str, Any]:
    variance = decompose(samples)
    return {f"{name}_std": variance.std, f"{name}_shares": variance.shares()}
