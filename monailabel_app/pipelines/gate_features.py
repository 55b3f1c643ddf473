"""Plain numbers of a prepared scan that a person can check: what is odd about it when the input gate says so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from scipy import ndimage

from monailabel_app.errors import CorruptModel
from monailabel_app.preprocessing.regions import REGION_NAMES
from monailabel_app.preprocessing.template import Template
from monailabel_app.training.cache import TrainingCache

_POOL = 2  # intensities are compared with healthy ones at 4 mm, where alignment is good enough
_QUANTILES = np.linspace(0.02, 0.98, 33)
_ODD = 3.0  # healthy deviations
_AXES = ("left to right", "back to front", "bottom to top")


@dataclass(frozen=True)
class Feature:
    """name: in figures. odd: which side is suspicious. outline: of the brain mask alone, so it holds for any sequence.

    log_unit: what is skewed among healthy scans is compared as log(1 + value / log_unit). reason: what it means, with
    ``{value}`` and ``{place}``.
    """

    name: str
    odd: Literal["high", "low", "both"]
    reason: str
    outline: bool = False
    log_unit: float = 0.0

    def scaled(self, value: float) -> float:
        """The value on the scale on which healthy scans are compared."""
        return float(np.log1p(max(value, 0.0) / self.log_unit)) if self.log_unit else value


_TABLE = (
    Feature(
        "brain_volume_ml",
        "both",
        "the brain that was found has {value:.0f} ml, far from healthy adults': brain extraction may have failed, or "
        "this is another body part",
        outline=True,
        log_unit=1.0,
    ),
    Feature(
        "outline_misfit",
        "high",
        "the outline of the brain does not fit the template ({value:.0%} off): brain extraction may have failed, or "
        "part of the head is missing",
        outline=True,
    ),
    Feature(
        "coverage",
        "low",
        "brain is missing {place}, where only {value:.0%} of the expected cross-section is there: a missing slab or a "
        "cut-off scan",
        outline=True,
    ),
    Feature(
        "outside_ml",
        "high",
        "{value:.0f} ml of what was taken for brain lie where no healthy brain reaches: brain extraction may have kept "
        "skull, eyes or neck",
        outline=True,
        log_unit=1.0,
    ),
    Feature(
        "template_correlation",
        "low",
        "its grey values follow the mean healthy brain's badly (correlation {value:.2f}): another sequence, another "
        "body part, or a failed alignment",
    ),
    Feature("upside_down", "high", "it fits the mean brain better upside down: the header may be wrong"),
    Feature("front_back", "high", "it fits the mean brain better front to back: the header may be wrong"),
    Feature(
        "left_right",
        "low",
        "its left side looks like a right one: left and right may be exchanged (a brain is nearly symmetric: this is "
        "weak evidence)",
    ),
    Feature(
        "histogram_distance",
        "high",
        "its grey values are distributed unlike those of the training scans: another sequence, contrast agent or "
        "scanner setting",
        log_unit=0.01,
    ),
    Feature("noise", "high", "it is noisier than the training scans"),
    Feature("sharpness", "low", "it is more blurred than the training scans: motion, smoothing or thick slices"),
    Feature(
        "dark_ml",
        "high",
        "a region of {value:.0f} ml {place} is much darker than in any healthy scan: a signal void (metal), a missing "
        "part or a very large lesion",
        log_unit=1.0,
    ),
    Feature(
        "bright_ml",
        "high",
        "a region of {value:.0f} ml {place} is much brighter than in any healthy scan: an artefact, contrast agent or "
        "a very large lesion",
        log_unit=1.0,
    ),
    Feature(
        "odd_share",
        "high",
        "{value:.0%} of the brain has grey values outside the healthy range: the scan as a whole is unusual",
        log_unit=0.002,
    ),
    Feature("network_error", "high", "the model of whole healthy brains cannot reproduce it"),
    Feature("network_perceptual", "high", "the model of whole healthy brains makes something else of it"),
)
FEATURES: Mapping[str, Feature] = MappingProxyType({feature.name: feature for feature in _TABLE})
NETWORK = ("network_error", "network_perceptual")
PLAIN = tuple(name for name in FEATURES if name not in NETWORK)
OUTLINE = tuple(name for name in PLAIN if FEATURES[name].outline)


@dataclass(frozen=True)
class HealthyLook:
    """Of healthy training brains: mean, std (x, y, z) of the intensity at 4 mm; quantiles (33,) of the brain's."""

    mean: np.ndarray
    std: np.ndarray
    quantiles: np.ndarray

    @classmethod
    def fit(cls, cache: TrainingCache) -> HealthyLook:
        """From prepared healthy scans."""
        total, square, quantiles = 0.0, 0.0, []
        for image, mask in zip(cache.images, cache.brain_masks, strict=True):
            values = np.where(mask.numpy(), image.numpy() / np.float32(255), 0)
            coarse = _pooled(values)
            total, square = total + coarse.astype(np.float64), square + coarse.astype(np.float64) ** 2
            quantiles.append(np.quantile(values[mask.numpy()], _QUANTILES))
        mean = total / len(cache)
        std = np.sqrt(np.maximum(square / len(cache) - mean**2, 0) + 0.02**2)
        return cls(mean.astype(np.float32), std.astype(np.float32), np.mean(quantiles, axis=0).astype(np.float32))

    def save(self, file: Path) -> None:
        """Half precision."""
        save_file({name: torch.from_numpy(getattr(self, name)).half() for name in ("mean", "std", "quantiles")}, file)

    @classmethod
    def load(cls, file: Path) -> HealthyLook:
        """Raises CorruptModel."""
        try:
            tensors = load_file(str(file))
            return cls(*(tensors[name].float().numpy() for name in ("mean", "std", "quantiles")))
        except (OSError, KeyError, SafetensorError) as error:
            raise CorruptModel(
                f"expected the healthy figures of the input gate, got {type(error).__name__}; restore its folder"
            ) from error


def measure(
    image: np.ndarray, brain_mask: np.ndarray, volume_ml: float, template: Template, look: HealthyLook
) -> tuple[dict[str, float], dict[str, str]]:
    """Every plain feature of a prepared scan, and where the oddest place of some is, in words.

    image: (X, Y, Z) float in [0, 1], brain_mask: (X, Y, Z) bool, both on the template's grid. volume_ml: of the brain
    on the scan's own grid, before alignment scaled it.
    """
    values: dict[str, float] = {"brain_volume_ml": volume_ml}
    places: dict[str, str] = {}
    expected = template.brain_mask
    both = int((brain_mask & expected).sum())
    values["outline_misfit"] = 1 - 2 * both / max(int(brain_mask.sum() + expected.sum()), 1)
    voxel_ml = float(abs(np.linalg.det(template.affine[:3, :3]))) / 1000
    values["outside_ml"] = float((brain_mask & (template.brain_probability < 0.01)).sum()) * voxel_ml
    values["coverage"], places["coverage"] = _coverage(brain_mask & (image > 0), template)
    values |= _fit(image, brain_mask, template)
    quantiles = np.quantile(image[brain_mask], _QUANTILES)
    values["histogram_distance"] = float(np.abs(quantiles - look.quantiles).mean())
    values["noise"], values["sharpness"] = _fine_structure(image, brain_mask)

    z = (_pooled(image) - look.mean) / look.std
    inside = _pooled((template.brain_probability > 0.98).astype(np.float32)) == 1
    values["odd_share"] = float((np.abs(z[inside]) > _ODD).mean()) if inside.any() else 0.0
    for name, found in (("dark_ml", inside & (z < -_ODD)), ("bright_ml", inside & (z > _ODD))):
        values[name], places[name] = _largest(found, voxel_ml * _POOL**3, template)
    return values, places


def pooled_shape(shape: tuple[int, int, int]) -> tuple[int, ...]:
    """Of the grid that intensities are compared on."""
    return tuple(n // _POOL for n in shape)


def network_figures(figures: Mapping[str, float], kind: str) -> np.ndarray:
    """The distances of one kind (``mse`` or ``perceptual``) of every level in a 3-D latent diffusion's figures."""
    return np.array([value for name, value in figures.items() if name.startswith(f"{kind}@")])


def _pooled(values: np.ndarray) -> np.ndarray:
    x, y, z = (n // _POOL for n in values.shape)
    return values[: x * _POOL, : y * _POOL, : z * _POOL].reshape(x, _POOL, y, _POOL, z, _POOL).mean(axis=(1, 3, 5))


def _coverage(signal: np.ndarray, template: Template) -> tuple[float, str]:
    """Smallest share of the template's cross-section that holds signal, over three axes, and where that is."""
    lowest, place = np.inf, ""
    for axis in range(3):
        others = tuple(a for a in range(3) if a != axis)
        expected = template.brain_mask.sum(axis=others).astype(float)
        there = (signal & template.brain_mask).sum(axis=others).astype(float)
        used = expected > 0.4 * expected.max()
        share = ndimage.uniform_filter1d(there[used] / expected[used], 3, mode="nearest")
        if share.min() < lowest:
            lowest = float(share.min())
            level = np.flatnonzero(used)[int(share.argmin())]
            mm = template.affine[axis, axis] * level + template.affine[axis, 3]
            place = f"at {mm:+.0f} mm from {_AXES[axis]}"
    return lowest, place


def _fit(image: np.ndarray, brain_mask: np.ndarray, template: Template) -> dict[str, float]:
    """Correlation with the mean brain as it lies and flipped, and how alike both asymmetries are."""
    smooth, mean = (ndimage.gaussian_filter(v, 1.0) for v in (image, template.mean))
    expected = template.brain_mask
    as_given = _correlation(smooth, mean, brain_mask & expected)
    made = {"template_correlation": as_given}
    whole = brain_mask | expected
    upright = _correlation(smooth, mean, whole)
    for name, axis in (("front_back", 1), ("upside_down", 2)):
        # Flipped about the brain's own middle, not the grid's.
        turned = _flipped(smooth * brain_mask, brain_mask, expected, axis)
        made[name] = _correlation(turned, mean, whole) - upright
    symmetric = brain_mask & brain_mask[::-1] & expected & expected[::-1]
    differences = [ndimage.gaussian_filter(v - v[::-1], 2.0) for v in (image, template.mean)]
    made["left_right"] = _correlation(*differences, symmetric)
    return made


def _flipped(values: np.ndarray, mask: np.ndarray, target: np.ndarray, axis: int) -> np.ndarray:
    """Mirrored along an axis so that the mirrored mask's middle comes to lie on that of the target."""
    others = tuple(a for a in range(3) if a != axis)

    def middle(m: np.ndarray) -> float:
        used = np.flatnonzero(m.any(axis=others))
        return (used[0] + used[-1]) / 2 if len(used) else m.shape[axis] / 2

    shift = round(middle(target) - (mask.shape[axis] - 1 - middle(mask)))
    return np.roll(np.flip(values, axis), shift, axis)


def _correlation(first: np.ndarray, second: np.ndarray, where: np.ndarray) -> float:
    a, b = first[where], second[where]
    if len(a) < 100 or a.std() < 1e-6 or b.std() < 1e-6:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])


def _fine_structure(image: np.ndarray, brain_mask: np.ndarray) -> tuple[float, float]:
    """Noise: median deviation of a voxel from its six neighbours. Sharpness: fine against coarse differences."""
    inside = ndimage.binary_erosion(brain_mask, iterations=3)
    if inside.sum() < 100:
        inside = brain_mask
    neighbours = ndimage.convolve(image, _STAR / 6, mode="nearest")
    noise = 1.4826 * float(np.median(np.abs((image - neighbours)[inside])))
    fine = np.mean([np.abs(image - np.roll(image, 1, axis))[inside].mean() for axis in range(3)])
    coarse = np.mean([np.abs(image - np.roll(image, 4, axis))[inside].mean() for axis in range(3)])
    return noise, float(fine / max(coarse, 1e-6))


def _largest(found: np.ndarray, voxel_ml: float, template: Template) -> tuple[float, str]:
    """Size of the largest connected region in ml, and in which part of the brain its middle lies."""
    labels, count = ndimage.label(found)
    if not count:
        return 0.0, ""
    sizes = np.bincount(labels.ravel())[1:]
    middle = np.array(ndimage.center_of_mass(labels == 1 + int(sizes.argmax()))) * _POOL + (_POOL - 1) / 2
    mm = template.affine[:3, :3] @ middle + template.affine[:3, 3]
    region = REGION_NAMES.get(int(template.regions[tuple(middle.round().astype(int))]), "")
    at = ", ".join(f"{axis} {round(value):+d}" for axis, value in zip("xyz", mm.tolist(), strict=True))  # no -0
    return float(sizes.max()) * voxel_ml, f"around {at} mm" + (f" ({region})" if region else "")


def _star() -> np.ndarray:
    kernel = ndimage.generate_binary_structure(3, 1).astype(np.float32)
    kernel[1, 1, 1] = 0
    return kernel


_STAR = _star()
