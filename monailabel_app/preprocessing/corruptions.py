"""Ways in which a scan can be wrong, applied to healthy heads: what the input gate has to notice, or a model to stand.

Every corruption works on the raw head on its own grid, so that brain extraction, alignment and normalisation meet it as
they would in use; a failed brain extraction is given as the brain mask that it would return.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import nibabel as nib
import numpy as np
from scipy import ndimage

from monailabel_app.types import BrainMask, Volume

Corrupted = tuple[Volume, "BrainMask | None"]


@dataclass(frozen=True)
class Head:
    """A healthy head on RAS axes with its brain mask (x, y, z) bool."""

    volume: Volume
    brain: np.ndarray
    generator: np.random.Generator

    @property
    def data(self) -> np.ndarray:
        """(x, y, z) float32."""
        return self.volume.data[0]

    @property
    def typical(self) -> float:
        """The brain's median intensity."""
        return float(np.median(self.data[self.brain]))

    def box(self) -> list[tuple[int, int]]:
        """First and last voxel of the brain along each axis."""
        where = np.argwhere(self.brain)
        return list(zip(where.min(axis=0).tolist(), where.max(axis=0).tolist(), strict=True))

    def made(self, data: np.ndarray, brain: np.ndarray | None = None) -> Corrupted:
        """Another image on the same grid, with a brain mask where the extraction is not to be run."""
        mask = None if brain is None else BrainMask(brain, "given")
        return replace(self.volume, data=np.ascontiguousarray(data, dtype=np.float32)[None]), mask


def head_on_ras_axes(volume: Volume, brain: np.ndarray, seed: int) -> Head:
    """A head and its brain mask (x, y, z) bool with voxel axes nearest to R, A, S (flips and permutation only)."""
    turn = nib.io_orientation(volume.affine)
    data = nib.orientations.apply_orientation(volume.data[0], turn)
    mask = nib.orientations.apply_orientation(np.asarray(brain).astype(np.uint8), turn) > 0
    affine = volume.affine @ nib.orientations.inv_ornt_aff(turn, volume.shape)
    turned = Volume(np.ascontiguousarray(data, dtype=np.float32)[None], affine, volume.name)
    return Head(turned, np.ascontiguousarray(mask), np.random.default_rng(seed))


def healthy(head: Head) -> Corrupted:
    """As it is."""
    return head.made(head.data)


def noise(head: Head, share: float) -> Corrupted:
    """Rician noise of this share of the brain's median."""
    parts = [share * head.typical * head.generator.normal(size=head.data.shape) for _ in range(2)]
    return head.made(np.hypot(head.data + parts[0], parts[1]))


def gamma(head: Head, exponent: float) -> Corrupted:
    """Intensities raised to a power."""
    top = float(np.percentile(head.data[head.brain], 99.5))
    return head.made(top * np.clip(head.data / top, 0, 2) ** exponent)


def flip(head: Head, axis: int) -> Corrupted:
    """The voxels mirrored while the header stays."""
    return head.made(np.flip(head.data, axis))


def axes_swapped(head: Head) -> Corrupted:
    """The y and z axes of the voxels exchanged while the header stays."""
    size = max(head.data.shape[1:])
    pad = [(0, 0), *(((size - n) // 2, size - n - (size - n) // 2) for n in head.data.shape[1:])]
    return head.made(np.pad(head.data, pad).transpose(0, 2, 1))


def slab(head: Head, place: str) -> Corrupted:
    """Without signal: the upper or lower 30 % of the brain and all beyond, or a slab of 15 % through its middle."""
    low, high = head.box()[2]
    size, data = high - low, head.data.copy()
    first, last = {
        "top": (high - round(0.3 * size), data.shape[2]),
        "bottom": (0, low + round(0.3 * size)),
        "middle": (low + round(0.5 * size), low + round(0.65 * size)),
    }[place]
    data[:, :, first:last] = 0
    return head.made(data)


def metal(head: Head) -> Corrupted:
    """A void with a bright rim: dental or clip artefact, a ball of 28 mm radius at the frontal pole's base."""
    (x0, x1), (y0, y1), (z0, z1) = head.box()
    centre = np.array([(x0 + x1) / 2 + 8, y1 - 0.15 * (y1 - y0), z0 + 0.35 * (z1 - z0)])
    grid = np.stack(np.meshgrid(*map(np.arange, head.data.shape), indexing="ij"), -1)
    distance = np.linalg.norm((grid - centre) * np.array(head.volume.spacing_mm), axis=-1)
    data = np.where(distance < 28, 0, head.data)
    return head.made(np.where((distance >= 28) & (distance < 31), 3 * head.typical, data))


def blur(head: Head, sigma_mm: float) -> Corrupted:
    """Smoothed by a Gaussian."""
    return head.made(ndimage.gaussian_filter(head.data, sigma_mm / np.array(head.volume.spacing_mm)))


def ghosts(head: Head) -> Corrupted:
    """Motion: every third line of k-space along y from a head that is 6 mm further along x."""
    shifted = ndimage.shift(head.data, (6 / head.volume.spacing_mm[0], 0, 0), order=1)
    lines, other = np.fft.fft(head.data, axis=1), np.fft.fft(shifted, axis=1)
    lines[:, 1::3] = other[:, 1::3]
    return head.made(np.abs(np.fft.ifft(lines, axis=1)))


def bias_field(head: Head, strength: float) -> Corrupted:
    """Coil shading: brighter by this share at one end and darker at the other, along a random oblique axis."""
    direction = head.generator.normal(size=3)
    direction /= np.linalg.norm(direction)
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in head.data.shape), indexing="ij"), -1)
    along = grid @ direction
    curved = along + 0.3 * (along**2 - float((along**2).mean()))
    span = float(np.abs(curved[head.brain]).max())
    return head.made(head.data * np.exp(np.log1p(strength) * np.clip(curved / span, -2, 2)))


def thick_slices(head: Head, thickness_mm: float) -> Corrupted:
    """Axial slices this thick: averaged over them, on the same grid."""
    count = max(1, round(thickness_mm / head.volume.spacing_mm[2]))
    first = np.arange(0, head.data.shape[2], count)
    sums = np.add.reduceat(head.data, first, axis=2)
    sizes = np.diff([*first, head.data.shape[2]])
    return head.made(np.repeat(sums / sizes, sizes, axis=2))


def motion(head: Head, degrees: float) -> Corrupted:
    """A nod during the scan: the outer half of k-space along y comes from a head turned by this angle and 2 mm off."""
    moved = ndimage.rotate(head.data, degrees, axes=(1, 2), reshape=False, order=1)
    moved = ndimage.shift(moved, (0, 2 / head.volume.spacing_mm[1], 0), order=1)
    lines, other = np.fft.fft(head.data, axis=1), np.fft.fft(moved, axis=1)
    late = np.abs(np.fft.fftfreq(head.data.shape[1])) > 0.125
    lines[:, late] = other[:, late]
    return head.made(np.abs(np.fft.ifft(lines, axis=1)))


def repainted(head: Head, sequence: str) -> Corrupted:
    """Another sequence's contrast painted over a T1 head: grey values mapped from tissue to tissue.

    ``inverted``: dark for bright. ``t2``, ``flair``: with the order of fluid, grey and white matter that these have.
    """
    inside = head.data[head.brain]
    fluid, grey, white, top = np.percentile(inside, (2, 35, 75, 99.5))
    levels = {
        "inverted": (1.0, 1.0, 0.55, 0.25, 0.05),
        "t2": (0.0, 1.0, 0.55, 0.38, 0.3),
        "flair": (0.0, 0.1, 0.7, 0.58, 0.5),
    }[sequence]
    places = np.maximum.accumulate([0.0, fluid, grey, white, top]) + np.arange(5) * 1e-6 * max(top, 1e-6)
    return head.made(top * np.interp(head.data, places, levels))


def head_as_brain(head: Head) -> Corrupted:
    """Brain extraction that returned the whole head."""
    foreground = head.data > 0.25 * head.typical
    largest, count = ndimage.label(ndimage.binary_opening(foreground, iterations=2))
    if count > 1:
        largest = largest == 1 + np.argmax(np.bincount(largest.ravel())[1:])
    return head.made(head.data, ndimage.binary_fill_holes(largest > 0))


def loose_mask(head: Head) -> Corrupted:
    """Brain extraction that kept 10 mm around the brain: skull, eyes, neck."""
    steps = round(10 / min(head.volume.spacing_mm))
    return head.made(head.data, ndimage.binary_dilation(head.brain, iterations=steps))


def cut_mask(head: Head) -> Corrupted:
    """Brain extraction that lost the left temporal and occipital side."""
    (x0, x1), (y0, y1), (z0, z1) = head.box()
    brain = head.brain.copy()
    brain[: x0 + round(0.45 * (x1 - x0)), : y0 + round(0.55 * (y1 - y0)), : z0 + round(0.6 * (z1 - z0))] = False
    return head.made(head.data, brain)


def noise_phantom(head: Head) -> Corrupted:
    """No anatomy: an ellipsoid of the brain's size filled with smooth noise, taken for a brain."""
    texture = ndimage.gaussian_filter(head.generator.normal(size=head.data.shape), 3)
    ball = _ellipsoid(head)
    return head.made(np.where(ball, 500 + 100 * texture / texture.std(), 5), ball)


def body_phantom(head: Head) -> Corrupted:
    """Another body part: bright organs, dark lungs and a spine in an ellipsoid, taken for a brain."""
    ball = _ellipsoid(head)
    (x0, x1), (y0, y1), (z0, z1) = head.box()
    grid = np.stack(np.meshgrid(*map(np.arange, head.data.shape), indexing="ij"), -1).astype(float)
    size = np.array([x1 - x0, y1 - y0, z1 - z0]) / 2
    at = (grid - np.array([x0 + x1, y0 + y1, z0 + z1]) / 2) / size
    data = np.full(head.data.shape, 400.0)
    for side in (-1, 1):
        data[np.linalg.norm((at - [0.45 * side, 0.1, 0.3]) / [0.35, 0.5, 0.6], axis=-1) < 1] = 60
    data[np.linalg.norm((at - [0.3, 0.1, -0.6]) / [0.6, 0.5, 0.35], axis=-1) < 1] = 700
    data[np.linalg.norm((at[..., :2] - [0, -0.75]) / [0.15, 0.15], axis=-1) < 1] = 900
    data += 15 * head.generator.normal(size=data.shape)
    return head.made(np.where(ball, data, 5), ball)


CLEAN = "healthy"
CORRUPTIONS: Mapping[str, Callable[[Head], Corrupted]] = {
    CLEAN: healthy,
    "bias field 40 %": lambda head: bias_field(head, 0.4),
    "bias field 100 %": lambda head: bias_field(head, 1.0),
    "noise 10 %": lambda head: noise(head, 0.10),
    "noise 25 %": lambda head: noise(head, 0.25),
    "gamma 0.5": lambda head: gamma(head, 0.5),
    "gamma 2": lambda head: gamma(head, 2.0),
    "left-right flip": lambda head: flip(head, 0),
    "front-back flip": lambda head: flip(head, 1),
    "upside-down flip": lambda head: flip(head, 2),
    "axes swapped": axes_swapped,
    "missing slab, top": lambda head: slab(head, "top"),
    "missing slab, bottom": lambda head: slab(head, "bottom"),
    "missing slab, middle": lambda head: slab(head, "middle"),
    "metal void": metal,
    "blur 2 mm": lambda head: blur(head, 2.0),
    "blur 4 mm": lambda head: blur(head, 4.0),
    "motion ghosts": ghosts,
    "motion, nod of 3 degrees": lambda head: motion(head, 3.0),
    "motion, nod of 8 degrees": lambda head: motion(head, 8.0),
    "slices of 4 mm": lambda head: thick_slices(head, 4.0),
    "slices of 6 mm": lambda head: thick_slices(head, 6.0),
    "contrast inverted": lambda head: repainted(head, "inverted"),
    "contrast of T2": lambda head: repainted(head, "t2"),
    "contrast of FLAIR": lambda head: repainted(head, "flair"),
    "mask: whole head": head_as_brain,
    "mask: 10 mm too wide": loose_mask,
    "mask: a part lost": cut_mask,
    "noise phantom": noise_phantom,
    "body phantom": body_phantom,
}


def _ellipsoid(head: Head) -> np.ndarray:
    box = np.array(head.box(), dtype=float)
    grid = np.stack(np.meshgrid(*map(np.arange, head.data.shape), indexing="ij"), -1)
    return np.linalg.norm((grid - box.mean(axis=1)) / (np.ptp(box, axis=1) / 2), axis=-1) < 1
