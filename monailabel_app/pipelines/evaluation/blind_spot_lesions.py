"""What a model sees of synthetic anomalies in healthy scans: each is made, analysed and judged against the same scan.

An anomaly counts as found at an operating point where at least 10 % of its voxels are marked that are not marked in
the unaltered scan, by components whose largest rise of the map lies in it or within 4 mm of it (a neighbour's rim does
not count). Beside it stands chance: the share of its voxels that the unaltered scan has marked already, and how often
the rule holds where nothing was put. A place of which the unaltered scan marks more than half is not judged.

Masks are the product's: calibrated map above the threshold, outlined, components below 0.1 ml dropped. Where the
healthy scans are those of the model's calibration, a scan is standardised with the statistics of the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from scipy import ndimage

from monailabel_app.errors import InvalidSettings
from monailabel_app.postprocessing.delineate import delineated
from monailabel_app.preprocessing.iso_intense import deform_ball, shuffle_blocks, shuffle_voxels
from monailabel_app.preprocessing.lesion_implant import implant_lesion, random_blob
from monailabel_app.types import CONNECTIVITY_26, PreparedVolume

from .blind_spot_plan import CONTRAST, NOTHING, Placed, ball_radius_mm

FOUND_SHARE = 0.1
MIN_VOLUME_ML = 0.1
_NEAR_VOXELS = 2
_JUDGED_SHARE = 0.5
_EDGE_MM = 1.0
_SOFT_EDGE, _LEAST_SOFT_EDGE_MM = 0.4, 1.5  # of the radius
_SOFT_VOLUME = 1.42  # a soft lesion ends where half of its contrast is left, inside the shape that was blurred
_HETEROGENEITY = 0.5  # deviation of a heterogeneous lesion's contrast, as a share of it
_STRENGTH = {"swelling": 0.8, "shrinkage": -0.8}
_ROUGHNESS = 0.35


def alter(
    prepared: PreparedVolume, placed: Sequence[Placed], fluid: np.ndarray, *, seed: int
) -> tuple[PreparedVolume, list[np.ndarray]]:
    """The scan with the anomalies of one analysis in it, and the place of each, (X, Y, Z) bool.

    fluid: (X, Y, Z) bool, the template's ventricles, which lesions leave out. Each anomaly is drawn from ``seed`` and
    its own number. Contrast is relative to the prepared intensity, which has its zero at the brain's 1st percentile;
    like preprocessing, nothing exceeds 1.
    """
    spacing = model_spacing(prepared)
    image, brain = prepared.image[0], prepared.brain_mask
    places = []
    for item in placed:
        image, where = _one(image, brain, fluid, item, spacing, np.random.default_rng([seed, item.anomaly.number]))
        places.append(where)
    return replace(prepared, image=np.clip(image, 0.0, 1.0).astype(np.float32)[None]), places


def _one(
    image: np.ndarray,
    brain: np.ndarray,
    fluid: np.ndarray,
    item: Placed,
    spacing: tuple[float, ...],
    generator: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """The work is done in a box around the anomaly: noise and blur over the whole brain would cost more than it all."""
    wanted = item.anomaly
    radius = ball_radius_mm(wanted.volume_ml)
    reach = np.ceil((2.2 * radius + 8) / np.array(spacing)).astype(int)
    box = tuple(slice(max(c - r, 0), c + r + 1) for c, r in zip(item.centre, reach, strict=True))
    at = tuple(c - part.start for c, part in zip(item.centre, box, strict=True))
    part, inside = image[box], brain[box]
    if wanted.kind in _STRENGTH:
        part, where = deform_ball(
            part, inside, at, radius_mm=radius, strength=_STRENGTH[wanted.kind], spacing_mm=spacing
        )
    else:
        tissue = inside & ~fluid[box]
        tissue[at] = True
        soft = wanted.texture == "soft edge"
        where = _blob(tissue, at, radius * (_SOFT_VOLUME ** (1 / 3) if soft else 1.0), spacing, generator)
        if wanted.kind == CONTRAST:
            part, where = implant_lesion(
                part,
                where,
                contrast=wanted.contrast,
                spacing_mm=spacing,
                edge_sigma_mm=max(_SOFT_EDGE * radius, _LEAST_SOFT_EDGE_MM) if soft else _EDGE_MM,
                brain_mask=inside,
                texture=_HETEROGENEITY * abs(wanted.contrast) if wanted.texture == "heterogeneous" else 0.0,
                generator=generator,
            )
        elif wanted.kind == "shuffled voxels":
            part = shuffle_voxels(part, where, generator)
        elif wanted.kind == "shuffled blocks":
            part, where = shuffle_blocks(part, where, generator)
        elif wanted.kind != NOTHING:
            raise InvalidSettings(f"expected a kind of anomaly that can be made, got {wanted.kind!r}")
    made, place = image.copy(), np.zeros(image.shape, bool)
    made[box], place[box] = part, where
    return made, place


def _blob(
    tissue: np.ndarray,
    at: tuple[int, ...],
    radius: float,
    spacing: tuple[float, ...],
    generator: np.random.Generator,
) -> np.ndarray:
    """A lesion of about the ball's size; in a single slice, what the slice shows of the ball."""
    flat = tissue.shape[2] == 1
    ml = (np.pi * radius**2 * spacing[2] if flat else 4 / 3 * np.pi * radius**3) / 1000
    ml = min(ml, 0.9 * float(tissue.sum()) * float(np.prod(spacing)) / 1000)
    return random_blob(
        tissue.shape, generator, volume_ml=ml, spacing_mm=spacing, roughness=_ROUGHNESS, inside=tissue, centre=at
    )


def model_spacing(prepared: PreparedVolume) -> tuple[float, float, float]:
    """Voxel edge lengths of the model grid in mm."""
    return tuple(float(v) for v in np.linalg.norm(prepared.model_affine[:3, :3], axis=0))


def marked(outlined: np.ndarray, threshold: float, voxel_ml: float) -> np.ndarray:
    """The product's mask of a map of ``delineated``, (X, Y, Z): above the threshold, small components dropped."""
    labels, _ = ndimage.label(outlined > threshold, structure=CONNECTIVITY_26)
    keep = np.bincount(labels.ravel()) * voxel_ml >= MIN_VOLUME_ML - 1e-9
    keep[0] = False
    return keep[labels]


def judge(
    clean_map: np.ndarray,
    altered_map: np.ndarray,
    places: Sequence[np.ndarray],
    thresholds: Mapping[str, float],
    spacing_mm: Sequence[float],
) -> list[dict[str, Any]]:
    """Per anomaly: its volume, the rise of the map in it, and at each operating point what was newly marked.

    points[name]: ``found`` (None where it cannot be judged), ``marked`` (share of its free voxels newly marked),
    ``before`` (share of its voxels that the unaltered scan marks).
    """
    rise, voxel_ml = altered_map - clean_map, float(np.prod(spacing_mm)) / 1000
    clean, altered = (delineated(values, spacing_mm) for values in (clean_map, altered_map))
    rows: list[dict[str, Any]] = [
        {"measured_ml": float(place.sum()) * voxel_ml, "rise": float(rise[place].max()), "points": {}}
        for place in places
    ]
    near = [_grown(place) for place in places]
    for name, threshold in thresholds.items():
        before = marked(clean, threshold, voxel_ml)
        new = marked(altered, threshold, voxel_ml) & ~before
        labels, _ = ndimage.label(new, structure=CONNECTIVITY_26)
        numbers, peaks = _peaks(rise, labels)
        for row, place, around in zip(rows, places, near, strict=True):
            own = numbers[around.ravel()[peaks]]
            free = place & ~before
            judged = free.sum() >= _JUDGED_SHARE * place.sum()
            share = float(np.isin(labels[free], own).mean()) if judged and free.any() else None
            row["points"][name] = {
                "found": None if share is None else share >= FOUND_SHARE,
                "marked": share,
                "before": float(before[place].mean()),
            }
    return rows


def _peaks(values: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The labels from 1, and the flat index of the highest value of each."""
    at = np.flatnonzero(labels)
    number, height = labels.ravel()[at], values.ravel()[at]
    order = np.lexsort((-height, number))
    numbers, first = np.unique(number[order], return_index=True)
    return numbers, at[order][first]


def _grown(place: np.ndarray) -> np.ndarray:
    return ndimage.binary_dilation(place, structure=CONNECTIVITY_26, iterations=_NEAR_VOXELS)
