"""Random heads for training: real scans and label maps, in contrasts and fields of view no scanner promised.

After SynthStrip (Hoopes et al., NeuroImage 2022) and SynthSeg (Billot et al., MedIA 2023): a network that
has seen every contrast relies on shape. Half of the samples are drawn from a label map with random
intensities per region, half are the real scan with its grey values remapped, so that real texture is never
forgotten.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage

from .brain_unet import scale_intensity

# Compartments of a label map. Everything from FIRST_INSIDE up belongs to the brain mask.
AIR, RIM, BONE, CAVITY, FIRST_TISSUE = 0, 1, 2, 3, 4
TISSUES = 5
FIRST_INSIDE = SULCI = FIRST_TISSUE + TISSUES
FIRST_REGION = FIRST_INSIDE + 1
_MAX_LABELS = 256

# Tissue of each DLMUSE region: ventricles and CSF, white matter, deep grey matter; all others are cortex.
CSF_LABELS = {1, 4, 11, 46, 49, 50, 51, 52}
WHITE_LABELS = {35, 40, 41, 61, 62, 69, *range(81, 96)}
DEEP_LABELS = {23, 30, 31, 32, 36, 37, 47, 48, 55, 56, 57, 58, 59, 60}
# Typical grey values (1: brightest) of csf, cortex, deep, white, rim, bone, cavity, muscle to fat.
_CONTRASTS = {
    "t1": (0.15, 0.5, 0.55, 0.75, 0.15, 0.08, 0.05, 0.3, 0.45, 0.6, 0.8, 0.95),
    "t2": (0.95, 0.6, 0.5, 0.4, 0.8, 0.1, 0.08, 0.2, 0.35, 0.5, 0.6, 0.7),
    "flair": (0.12, 0.65, 0.6, 0.48, 0.2, 0.08, 0.06, 0.25, 0.35, 0.5, 0.65, 0.8),
    "pd": (0.8, 0.85, 0.75, 0.65, 0.7, 0.15, 0.1, 0.4, 0.5, 0.6, 0.7, 0.8),
}


@dataclass(frozen=True)
class Head:
    """A scan to draw from. image: (x, y, z) uint8; compartments: (x, y, z) uint8; tissue: (256,) long.

    ``tissue[c]`` is 0 csf, 1 cortex, 2 deep grey, 3 white for a brain compartment ``c``, and 3 + c for the
    compartments outside the brain (air is -1). Both grids are RAS, 2 mm.
    """

    image: torch.Tensor
    compartments: torch.Tensor
    tissue: torch.Tensor

    @property
    def mask(self) -> torch.Tensor:
        """(x, y, z) bool brain mask."""
        return self.compartments >= FIRST_INSIDE

    @cached_property
    def centre(self) -> torch.Tensor:
        """Centre of the brain in voxels, (3,)."""
        return self.mask.nonzero().float().mean(0)


def filled_brain(regions: np.ndarray, closing_voxels: int = 2) -> np.ndarray:
    """The brain mask of a region map (x, y, z): ``regions > 0``, closed and filled, largest component."""
    padded = np.pad(regions > 0, closing_voxels + 1)
    ball = ndimage.generate_binary_structure(3, 1)
    closed = ndimage.binary_closing(padded, ball, iterations=closing_voxels)
    closed = ndimage.binary_fill_holes(closed)
    parts, count = ndimage.label(closed)
    if count > 1:
        closed = parts == 1 + np.argmax(np.bincount(parts.ravel())[1:])
    inner = slice(closing_voxels + 1, -closing_voxels - 1)
    return closed[inner, inner, inner]


def _threshold(values: np.ndarray) -> float:
    """Otsu's threshold of uint8 ``values``."""
    counts = np.bincount(values.ravel(), minlength=256).astype(float)
    levels = np.arange(256)
    weight = np.cumsum(counts)
    total, mean = weight[-1], np.cumsum(counts * levels)
    with np.errstate(divide="ignore", invalid="ignore"):
        between = (mean[-1] * weight - total * mean) ** 2 / (weight * (total - weight))
    return float(np.nanargmax(np.where(np.isfinite(between), between, -1)))


def head_from_arrays(image: np.ndarray, regions: np.ndarray) -> Head:
    """A ``Head`` from an image and its DLMUSE regions, both (x, y, z), RAS, 2 mm.

    Outside the brain there are no labels, so compartments come from the intensities: air around the head,
    dark voxels hugging the brain (CSF, dura), dark voxels farther away (bone, cavities), and ``TISSUES``
    quantile classes of the bright rest (muscle, skin, marrow, fat).
    """
    mask = filled_brain(regions)
    low, high = np.percentile(image, (0.5, 99.8))
    grey = (np.clip((image - low) / max(high - low, 1e-6), 0, 1) * 255).astype(np.uint8)
    smooth = ndimage.gaussian_filter(grey.astype(np.float32), 0.7)
    bright = smooth > 0.5 * _threshold(grey)
    # The head: bright voxels, closed in every axial slice so that skull and sinuses belong to it.
    head = ndimage.binary_closing(np.pad(bright | mask, 6), iterations=5)[6:-6, 6:-6, 6:-6]
    head = np.stack([ndimage.binary_fill_holes(head[:, :, k]) for k in range(head.shape[2])], axis=2)
    distance = ndimage.distance_transform_edt(~mask)

    compartments = np.zeros(image.shape, np.uint8)
    dark = head & ~bright & ~mask
    compartments[dark & (distance <= 2)] = RIM
    compartments[dark & (distance > 2) & (distance <= 6)] = BONE
    compartments[dark & (distance > 6)] = CAVITY
    tissue_voxels = bright & ~mask & head
    if tissue_voxels.any():
        edges = np.quantile(smooth[tissue_voxels], np.linspace(0, 1, TISSUES + 1)[1:-1])
        compartments[tissue_voxels] = FIRST_TISSUE + np.digitize(smooth[tissue_voxels], edges)
    compartments[mask] = SULCI

    tissue = torch.full((_MAX_LABELS,), -1, dtype=torch.long)
    tissue[RIM:FIRST_INSIDE] = torch.arange(RIM, FIRST_INSIDE) + 3
    tissue[SULCI] = 0
    for index, region in enumerate(int(r) for r in np.unique(regions) if r > 0):
        compartments[(regions == region) & mask] = FIRST_REGION + index
        kind = 0 if region in CSF_LABELS else 3 if region in WHITE_LABELS else 2 if region in DEEP_LABELS else 1
        tissue[FIRST_REGION + index] = kind
    return Head(torch.from_numpy(grey), torch.from_numpy(compartments), tissue)


class HeadSynthesis:
    """Draws (image, mask) training pairs from heads; every draw comes from the given generator.

    Keyword arguments are probabilities (``slab``: per side). ``shapes`` are the grids to choose from (2 mm).
    """

    def __init__(
        self,
        *,
        shapes: tuple[tuple[int, int, int], ...] = (
            *[(80, 96, 80)] * 3,
            *[(96, 112, 96)] * 2,
            (96, 128, 112),
        ),
        synthetic: float = 0.5,
        stripped: float = 0.13,
        slab: float = 0.17,
        thick: float = 0.35,
        flipped: float = 0.06,
        blobs: float = 0.3,
    ) -> None:
        self.shapes = shapes
        self.synthetic, self.stripped, self.slab = synthetic, stripped, slab
        self.thick, self.flipped, self.blobs = thick, flipped, blobs

    def draw(self, head: Head, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """``(image, mask)``: image (1, x, y, z) float32 in [0, 1], mask (x, y, z) bool, RAS, 2 mm."""
        g = generator
        shape = self.shapes[_index(len(self.shapes), g)]
        grid = self._grid(head, shape, g)
        compartments = _warp(head.compartments, grid, "nearest").to(torch.uint8)
        mask = compartments >= FIRST_INSIDE
        if _chance(self.synthetic, g):
            image = paint(compartments, head.tissue, g)
        else:
            image = _recolour(_warp(head.image, grid, "bilinear") / 255, compartments, g)
        if _chance(self.blobs, g):
            image = _add_blobs(image, mask, g)
        image = image * _smooth_field(shape, 4, _uniform(0, 0.5, g), g).exp()
        if _chance(0.5, g):
            image = _blur(image, _uniform(0.2, 1.0, g))
        if _chance(self.thick, g):
            image = _thick_slices(image, _index(3, g), _uniform(1.0, 3.5, g))
        image = image + _uniform(0, 0.07, g) * image.abs().mean().clamp(min=0.2) * torch.randn(
            shape, generator=g
        )
        if _chance(0.5, g):
            image = image.abs()  # magnitude images have no negative noise

        if _chance(self.stripped, g):
            image, mask = _strip(image, mask, g)
        inside = self._field_of_view(mask, g)
        return scale_intensity(image, inside)[None], mask & inside

    def _grid(self, head: Head, shape: tuple[int, int, int], g: torch.Generator) -> torch.Tensor:
        """Where every target voxel comes from, in grid_sample coordinates, (1, x, y, z, 3)."""
        size = torch.tensor(head.image.shape, dtype=torch.float32)
        centre = head.centre
        reach = 40.0 if _chance(0.1, g) else 16.0
        shift = (torch.rand(3, generator=g) * 2 - 1) * reach
        shift[2] -= 8  # heads extend below the brain, so look there more often
        angle = math.radians(40 if _chance(0.1, g) else 15)
        matrix = _rotation((torch.rand(3, generator=g) * 2 - 1) * angle)
        scale = _uniform(0.85, 1.2, g) * (1 + (torch.rand(3, generator=g) * 2 - 1) * 0.1)
        matrix = matrix @ torch.diag(scale)
        matrix = matrix @ (torch.eye(3) + torch.triu(torch.rand(3, 3, generator=g) * 0.16 - 0.08, 1))
        signs = torch.ones(3)
        signs[0] = -1 if _chance(0.5, g) else 1
        if _chance(self.flipped, g):  # headers with a wrong orientation exist
            signs[1:] = torch.where(torch.rand(2, generator=g) < 0.5, -1.0, 1.0)
        matrix = matrix @ torch.diag(signs)
        # Straight to grid_sample's convention: the last array axis first, and -1 .. 1 from edge to edge.
        matrix = (matrix * (2 / (size - 1))[:, None]).flip(0)
        offset = ((centre + shift) * 2 / (size - 1) - 1).flip(0)
        x, y, z = (torch.arange(n, dtype=torch.float32)[:, None] - (n - 1) / 2 for n in shape)
        plane = (x * matrix[:, 0])[:, None] + (y * matrix[:, 1])[None] + offset
        points = plane[:, :, None] + z * matrix[:, 2]
        coarse = torch.randn((1, 3, 6, 7, 6), generator=g) * _uniform(0, 2.5, g)
        coarse = coarse * (2 / (size - 1)).flip(0)[None, :, None, None, None]
        elastic = F.interpolate(coarse, shape, mode="trilinear", align_corners=True)
        return (points + elastic[0].permute(1, 2, 3, 0))[None]

    def _field_of_view(self, mask: torch.Tensor, g: torch.Generator) -> torch.Tensor:
        """(x, y, z) bool: False where a slab at one or more sides was not scanned."""
        inside = torch.ones(mask.shape, dtype=torch.bool)
        for axis in range(3):
            for side in range(2):
                if not _chance(self.slab * (0.3 if axis == 0 else 1.0), g):
                    continue
                others = [a for a in range(3) if a != axis]
                profile = (
                    mask.amax(dim=others) if mask.any() else torch.ones(mask.shape[axis], dtype=torch.bool)
                )
                where = profile.nonzero().flatten()
                first, last = int(where[0]), int(where[-1]) + 1
                # from outside the brain to a third of it
                depth = int(_uniform(-0.2, 0.33, g) * (last - first))
                index = [slice(None)] * 3
                index[axis] = slice(0, max(0, first + depth)) if side == 0 else slice(last - depth, None)
                inside[tuple(index)] = False
        return inside


def paint(
    compartments: torch.Tensor, tissue: torch.Tensor, g: torch.Generator, contrast: str = ""
) -> torch.Tensor:
    """An image (x, y, z) with random intensities per compartment; ``contrast`` fixes one (``t2`` ...)."""
    names = list(_CONTRASTS)
    kind = torch.rand((), generator=g).item()
    if contrast:
        base = torch.tensor(_CONTRASTS[contrast])
        jitter, local = 0.05, 0.03
    elif kind < 0.45:
        base = torch.tensor(_CONTRASTS[names[_index(len(names), g)]])
        jitter, local = 0.12, 0.03
    else:
        base = torch.rand(12, generator=g)
        jitter, local = 0.0, (0.03 if kind < 0.8 else 0.3)
    base = (base + jitter * torch.randn(12, generator=g)).clamp(0, 1.2)
    means = base[tissue.clamp(min=0)] + local * torch.randn(_MAX_LABELS, generator=g)
    means[AIR] = _uniform(0, 0.04, g) if contrast or _chance(0.9, g) else _uniform(0, 1, g)
    spread = torch.rand(_MAX_LABELS, generator=g) * 0.1
    spread[AIR] *= 0.3
    index = compartments.long()
    image = means[index] + spread[index] * torch.randn(compartments.shape, generator=g)
    return _blur(image.clamp(min=0), _uniform(0.4, 0.8, g))


def _recolour(image: torch.Tensor, compartments: torch.Tensor, g: torch.Generator) -> torch.Tensor:
    """The real scan in another contrast: as it is, gamma, inverted, or through a random curve."""
    kind = torch.rand((), generator=g).item()
    if kind < 0.3:
        return image
    if kind < 0.5:
        return image.clamp(min=1e-4) ** math.exp(_uniform(-0.7, 0.7, g))
    if kind < 0.65:
        return torch.where(compartments > AIR, _uniform(0.9, 1.3, g) - image, image).clamp(min=0)
    first = _random_curve(image, g)
    if _chance(0.5, g):  # brain and surroundings do not share a curve, as between T1 and fat-suppressed T2
        return torch.where(compartments >= FIRST_INSIDE, first, _random_curve(image, g))
    return first


def _random_curve(image: torch.Tensor, g: torch.Generator, knots: int = 7) -> torch.Tensor:
    heights = torch.rand(knots, generator=g)
    heights[0] = _uniform(0, 0.1, g)
    position = image.clamp(0, 1) * (knots - 1)
    index = position.floor().clamp(max=knots - 2).long()
    return torch.lerp(heights[index], heights[index + 1], position - index)


def _add_blobs(image: torch.Tensor, mask: torch.Tensor, g: torch.Generator) -> torch.Tensor:
    """Lesions of any brightness, 6 to 60 mm wide: they are brain, and stay in the mask."""
    inside = mask.nonzero()
    if len(inside) == 0:
        return image
    image = image.clone()
    for _ in range(1 + _index(3, g)):
        centre = inside[_index(len(inside), g)]
        radius = 1.5 + 13.5 * torch.rand(3, generator=g) ** 2
        low = (centre - 1.2 * radius).long().clamp(min=0).tolist()
        high = (centre + 1.2 * radius).long().add(2).tolist()
        box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        x, y, z = (
            ((torch.arange(box[a].start, min(box[a].stop, image.shape[a])) - centre[a]) / radius[a]) ** 2
            for a in range(3)
        )
        distance = x[:, None, None] + y[None, :, None] + z[None, None, :]
        amount = (1.3 - distance).clamp(0, 1) * mask[box] * _uniform(0.4, 1, g)
        image[box] = torch.lerp(image[box], torch.full_like(amount, _uniform(0, 1.2, g)), amount)
    return image


def _strip(image: torch.Tensor, mask: torch.Tensor, g: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Everything outside a (slightly wrong) brain mask removed, as other tools deliver it."""
    margin = _index(6, g) - 2
    keep = mask[None, None].float()
    for _ in range(abs(margin)):
        keep = F.max_pool3d(keep, 3, 1, 1) if margin > 0 else -F.max_pool3d(-keep, 3, 1, 1)
    keep = keep[0, 0] > 0.5
    return torch.where(keep, image, image.new_tensor(0.0)), mask & keep


def _thick_slices(image: torch.Tensor, axis: int, factor: float) -> torch.Tensor:
    """``image`` as if acquired in slices ``factor`` voxels thick along ``axis``."""
    size = list(image.shape)
    size[axis] = max(4, round(size[axis] / factor))
    thick = F.interpolate(image[None, None], size, mode="area")
    return F.interpolate(thick, image.shape, mode="trilinear", align_corners=False)[0, 0]


def _blur(image: torch.Tensor, sigma: float) -> torch.Tensor:
    """Separable Gaussian blur, sigma in voxels."""
    reach = max(1, round(2.5 * sigma))
    offsets = torch.arange(-reach, reach + 1, dtype=torch.float32)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = (kernel / kernel.sum()).tolist()
    for axis in range(3):
        out = kernel[reach] * image
        for step in range(1, reach + 1):
            size = image.shape[axis]
            weight = kernel[reach + step]
            out.narrow(axis, step, size - step).add_(image.narrow(axis, 0, size - step), alpha=weight)
            out.narrow(axis, 0, size - step).add_(image.narrow(axis, step, size - step), alpha=weight)
        image = out
    return image


def _smooth_field(shape: tuple[int, ...], knots: int, strength: float, g: torch.Generator) -> torch.Tensor:
    coarse = torch.randn((1, 1, knots, knots, knots), generator=g) * strength
    return F.interpolate(coarse, tuple(shape), mode="trilinear", align_corners=True)[0, 0]


def _warp(volume: torch.Tensor, grid: torch.Tensor, mode: str) -> torch.Tensor:
    return F.grid_sample(
        volume[None, None].float(), grid, mode=mode, padding_mode="zeros", align_corners=True
    )[0, 0]


def _rotation(angles: torch.Tensor) -> torch.Tensor:
    matrix = torch.eye(3)
    for axis in range(3):
        c, s = math.cos(float(angles[axis])), math.sin(float(angles[axis]))
        i, j = [a for a in range(3) if a != axis]
        turn = torch.eye(3)
        turn[i, i], turn[j, j], turn[i, j], turn[j, i] = c, c, -s, s
        matrix = matrix @ turn
    return matrix


def _uniform(low: float, high: float, g: torch.Generator) -> float:
    return low + (high - low) * torch.rand((), generator=g).item()


def _chance(probability: float, g: torch.Generator) -> bool:
    return torch.rand((), generator=g).item() < probability


def _index(count: int, g: torch.Generator) -> int:
    return int(torch.randint(count, (), generator=g))
