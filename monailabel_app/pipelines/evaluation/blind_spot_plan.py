"""Which synthetic anomalies a self-test puts where: a balanced, seeded design, and its placement in healthy brains.

Design: every volume x contrast cell has the same number of lesions, spread evenly over textures and regions; kinds
that leave the grey values alone, and places where nothing is put (for chance), likewise. Placement: several per
analysis, far enough apart (and from each other's mirror image, as some models compare the halves of the brain) not to
disturb each other. The same seed, scans and model grid give the same plan.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from monailabel_app.preprocessing.regions import REGION_NAMES

VOLUMES_ML = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
CONTRASTS = (-0.5, -0.25, -0.12, -0.06, 0.06, 0.12, 0.25, 0.5)
TEXTURES = ("homogeneous", "heterogeneous", "soft edge")
CONTRAST, NOTHING = "contrast", "nothing"
ISO_KINDS = ("swelling", "shrinkage", "shuffled voxels", "shuffled blocks")
ISO_VOLUMES_ML = (1.0, 3.0, 10.0, 30.0)
GAP_MM, MIRROR_GAP_MM = 25.0, 5.0
MOST_PER_SCAN = 8
_CANDIDATES = 400
_LOOKED_AT = 40  # candidates of which the one with most brain around it is taken
_TRIES = 4  # of the next anomalies of a size in one analysis
_FEWEST_ML = 15.0  # of a region that counts as one
_DEEP = ("accumbens", "amygdala", "caudate", "hippocampus", "pallidum", "putamen", "thalamus", "diencephalon")
_POSTERIOR = ("cerebell", "brain stem")
_FLUID = ("ventricle", "cerebrospinal")


@dataclass(frozen=True)
class Anomaly:
    """One wanted anomaly. contrast: signed share of the local intensity, 0 for kinds without. texture: "" likewise."""

    number: int
    kind: str
    volume_ml: float
    contrast: float
    texture: str
    region: str


@dataclass(frozen=True)
class Placed:
    """Where an anomaly is put. centre: voxel on the model grid. structure: the template's name of that place."""

    anomaly: Anomaly
    scan: int
    run: int
    centre: tuple[int, int, int]
    structure: str

    def to_json(self) -> dict[str, Any]:
        """Flat, plain JSON types."""
        about = {key: value for key, value in asdict(self).items() if key != "anomaly"}
        return {**asdict(self.anomaly), **about, "centre": list(self.centre)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Placed:
        """The inverse of ``to_json``."""
        anomaly = Anomaly(**{name: value[name] for name in Anomaly.__dataclass_fields__})
        return cls(anomaly, value["scan"], value["run"], tuple(value["centre"]), value["structure"])


def region_groups(regions: np.ndarray, brain_mask: np.ndarray, voxel_ml: float) -> dict[str, np.ndarray]:
    """Cortex, white matter, deep structures and posterior fossa, each (X, Y, Z) bool, of those the grid has.

    regions: (X, Y, Z) labels of the template on that grid. Brain without a label is "unnamed brain", where there is
    much of it; fluid belongs to none.
    """

    def of(*words: str) -> np.ndarray:
        labels = [label for label, name in REGION_NAMES.items() if any(word in name for word in words)]
        return np.isin(regions, labels)

    posterior, deep, fluid = of(*_POSTERIOR), of(*_DEEP, "basal forebrain"), of(*_FLUID)
    white = of("white matter", "corpus callosum", "capsule", "fornix") & ~posterior
    named = np.isin(regions, list(REGION_NAMES))
    groups = {
        "cortex": named & ~posterior & ~deep & ~fluid & ~white,
        "white matter": white,
        "deep": deep,
        "posterior fossa": posterior,
        "unnamed brain": ~named,
    }
    fewest = min(_FEWEST_ML, 0.1 * voxel_ml * float(brain_mask.sum()))
    groups = {name: group & brain_mask for name, group in groups.items()}
    rest = groups.pop("unnamed brain")
    found = {name: group for name, group in groups.items() if group.sum() * voxel_ml >= fewest}
    return {**found, "unnamed brain": rest} if rest.sum() > 0.3 * brain_mask.sum() else found


def fluid_mask(regions: np.ndarray) -> np.ndarray:
    """The template's ventricles and other named fluid: (X, Y, Z) bool. Lesions lie in tissue."""
    return np.isin(regions, [label for label, name in REGION_NAMES.items() if any(word in name for word in _FLUID)])


def design(regions: Sequence[str], *, replicates: int, seed: int) -> list[Anomaly]:
    """``replicates`` lesions per volume and contrast, a sixth (at least one) of it per kind, volume and region else.

    In random order. regions: names of ``region_groups``.
    """
    pairs = [(t, (t + d) % len(regions)) for d in range(len(regions)) for t in range(len(TEXTURES))]
    wanted: list[tuple[str, float, float, str, str]] = []
    cells = [(volume, contrast) for volume in VOLUMES_ML for contrast in CONTRASTS]
    for cell, (volume, contrast) in enumerate(cells):
        for number in range(replicates):
            texture, region = pairs[number % len(pairs)]
            region = (region + cell + number // len(pairs)) % len(regions)
            wanted.append((CONTRAST, volume, contrast, TEXTURES[texture], regions[region]))
    for _ in range(max(1, replicates // 6)):
        for kind, volumes in (*((kind, ISO_VOLUMES_ML) for kind in ISO_KINDS), (NOTHING, VOLUMES_ML)):
            wanted += [(kind, volume, 0.0, "", region) for volume in volumes for region in regions]
    order = np.random.default_rng(seed).permutation(len(wanted))
    return [Anomaly(number, *wanted[index]) for number, index in enumerate(order)]


def ball_radius_mm(volume_ml: float) -> float:
    """Radius of a ball of this volume."""
    return float((3000 * volume_ml / (4 * np.pi)) ** (1 / 3))


def place(
    wanted: Sequence[Anomaly],
    brains: Sequence[np.ndarray],
    groups: Mapping[str, np.ndarray],
    regions: np.ndarray,
    affine: np.ndarray,
    *,
    seed: int,
) -> tuple[list[Placed], list[Anomaly]]:
    """Spread the anomalies over analyses of the scans in turn; returns them, and those that found no place.

    brains: (X, Y, Z) bool per scan. Each analysis takes from every size, the size with most left to place first.
    """
    queues = {volume: deque(a for a in wanted if a.volume_ml == volume) for volume in sorted(_volumes(wanted))}
    placed: list[Placed] = []
    homeless: list[Anomaly] = []
    failures: dict[int, int] = {}
    run = 0
    while any(queues.values()):
        scan = run % len(brains)
        room = _Room(brains[scan], groups, affine, np.random.default_rng([seed, run]))
        before = len(placed)
        taken = True
        while taken and len(room) < MOST_PER_SCAN:
            taken = False
            for volume in sorted(queues, key=lambda v: -len(queues[v])):
                if len(room) >= MOST_PER_SCAN:
                    break
                for _ in range(min(_TRIES, len(queues[volume]))):
                    anomaly = queues[volume].popleft()
                    centre = room.find(anomaly)
                    if centre is not None:
                        name = REGION_NAMES.get(int(regions[centre]), "")
                        placed.append(Placed(anomaly, scan, run, centre, name))
                        taken = True
                        break
                    queues[volume].append(anomaly)
        if len(placed) == before:  # what finds no place in empty brains of every scan has none
            for queue in queues.values():
                for _ in range(len(queue)):
                    anomaly = queue.popleft()
                    failures[anomaly.number] = failures.get(anomaly.number, 0) + 1
                    (homeless if failures[anomaly.number] >= len(brains) else queue).append(anomaly)
        run += 1
    return placed, homeless


def _volumes(wanted: Sequence[Anomaly]) -> set[float]:
    return {anomaly.volume_ml for anomaly in wanted}


class _Room:
    """What has been placed in one analysis."""

    def __init__(
        self, brain: np.ndarray, groups: Mapping[str, np.ndarray], affine: np.ndarray, generator: np.random.Generator
    ) -> None:
        self._brain, self._affine, self._generator = brain, affine, generator
        self._groups = {name: np.argwhere(group & brain) for name, group in groups.items()}
        self._held: list[tuple[np.ndarray, float]] = []

    def __len__(self) -> int:
        return len(self._held)

    def find(self, anomaly: Anomaly) -> tuple[int, int, int] | None:
        """A voxel of the anomaly's region, far from all others; None where there is none."""
        voxels = self._groups[anomaly.region]
        if not len(voxels):
            return None
        chosen = voxels[self._generator.integers(len(voxels), size=_CANDIDATES)]
        mm = chosen @ self._affine[:3, :3].T + self._affine[:3, 3]
        radius = ball_radius_mm(anomaly.volume_ml)
        free = np.ones(len(mm), bool)
        for other, other_radius in self._held:
            reach = radius + other_radius
            free &= np.linalg.norm(mm - other, axis=1) >= reach + GAP_MM
            free &= np.linalg.norm(mm - other * [-1, 1, 1], axis=1) >= reach + MIRROR_GAP_MM
        kept = chosen[free][:_LOOKED_AT]
        if not len(kept):
            return None
        least = 0.5 if anomaly.kind in (CONTRAST, NOTHING) else 0.8
        shares = np.array([self._inside(voxel, radius) for voxel in kept])
        good = np.flatnonzero(shares >= least)
        if not len(good):
            return None
        index = int(good[0])
        centre = tuple(int(v) for v in kept[index])
        self._held.append((self._affine[:3, :3] @ kept[index] + self._affine[:3, 3], radius))
        return centre

    def _inside(self, voxel: np.ndarray, radius_mm: float) -> float:
        """The share of a ball's cube around a voxel, on the grid's axes, that is brain."""
        steps = np.linalg.norm(self._affine[:3, :3], axis=0)
        # A cube of 0.8 of the radius has about the ball's volume.
        half = np.maximum(np.round(0.8 * radius_mm / steps), 0).astype(int)
        half = np.minimum(half, (np.array(self._brain.shape) - 1) // 2)
        low, high = voxel - half, voxel + half + 1
        box = self._brain[tuple(slice(max(a, 0), b) for a, b in zip(low, high, strict=True))]
        return float(box.sum() / np.prod(high - low))
