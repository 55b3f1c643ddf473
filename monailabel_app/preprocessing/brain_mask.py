"""Where the brain is: a mask on the scan's own grid, from any contrast, orientation and voxel size.

One forward pass of a small 3-D network at 2 mm (``brain_unet``), trained on synthetic contrasts. Scans that
arrive already stripped are recognised and keep the mask they were stripped with.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file
from scipy import ndimage

from monailabel_app.errors import BrainNotFound, CorruptModel, InvalidSettings, InvalidVolume
from monailabel_app.io.geometry import check_affine, resample, voxel_to_mm
from monailabel_app.types import BrainMask, Volume

from .brain_unet import build_brain_unet, scale_intensity, size_multiple
from .hd_bet import hd_bet_mask

logger = logging.getLogger(__name__)

BACKENDS = ("network", "hd_bet")
PLAUSIBLE_ML = (600.0, 2300.0)
SMALLEST_PART_ML = 50.0
STRIPPED_COVERAGE = 0.85
# A whole head that small which the field of view does not cut is an infant's, and its brain is half of it.
STRIPPED_COVERAGE_UNCUT = 0.65
_STRIPPED_BACKGROUND = 0.3  # of all voxels, exactly one value
_CUT_FACE_MM2 = 400.0  # more brain than this on the border of the field of view: the brain is cut
_LARGEST_FIELD_MM = 640.0


@dataclass(frozen=True)
class _Grid:
    """A volume on the network's grid. image: (x, y, z) float32; inside: bool, where the scan has voxels."""

    image: np.ndarray
    inside: np.ndarray
    affine: np.ndarray


class BrainExtractor:
    """Finds the brain with one network; safe to call from several threads at once."""

    def __init__(self, network: torch.nn.Module, config: dict[str, Any], device: str = "cpu") -> None:
        self.network = network.eval().to(device)
        self.config = config
        self.device = device
        self.spacing = float(config["spacing_mm"])
        self.multiple = size_multiple(config["network"])

    @classmethod
    def load(cls, folder: str | Path, device: str = "cpu") -> BrainExtractor:
        """The extractor in ``folder`` (config.yaml, model.safetensors, sha256sums.txt).

        Raises CorruptModel if a file is missing, does not match its recorded hash or is not a model.
        """
        folder = Path(folder)
        _check_hashes(folder)
        try:
            config = yaml.safe_load((folder / "config.yaml").read_text())
            network = build_brain_unet(config["network"])
            weights = load_file(folder / "model.safetensors")
            network.load_state_dict({name: value.float() for name, value in weights.items()})
        except (OSError, KeyError, TypeError, RuntimeError, yaml.YAMLError, SafetensorError) as error:
            raise CorruptModel(
                f"expected a brain extraction model in {folder.name}/, got {type(error).__name__}: install it again"
            ) from error
        return cls(network, config, device)

    def extract(self, volume: Volume, *, backend: str = "network", recognise_stripped: bool = True) -> BrainMask:
        """The brain in ``volume`` as one filled component on its own grid.

        backend: ``network``, or ``hd_bet`` if the user has installed HD-BET.
        recognise_stripped: keep the mask of a scan that comes stripped, if the network agrees that it is one.
        Raises InvalidVolume for several channels, a constant image or a field of view no scanner has,
        BrainNotFound for a result no brain has, InvalidSettings for an unknown or missing backend.
        """
        if backend not in BACKENDS:
            raise InvalidSettings(f"expected a brain extraction backend out of {BACKENDS}, got {backend!r}")
        affine = _checked(volume)
        if backend == "hd_bet":
            mask = largest_filled(hd_bet_mask(volume, self.device))
            measured = np.ones(volume.shape, dtype=bool)
            return BrainMask(mask, "hd_bet", _judge(mask, measured, volume.voxel_volume_mm3, volume.spacing_mm))

        grid = self._to_grid(volume.data[0], affine)
        probability = self._probability(grid)
        coarse = largest_filled((probability > 0.5) & grid.inside)

        stripped = _stripped_foreground(volume) if recognise_stripped else None
        if stripped is not None:
            cut_mm2 = _cut_face(stripped, np.ones(volume.shape, dtype=bool), volume.spacing_mm)
            needed = STRIPPED_COVERAGE if cut_mm2 > _CUT_FACE_MM2 else STRIPPED_COVERAGE_UNCUT
            if _coverage(coarse, grid.affine, stripped, affine) >= needed:
                return BrainMask(stripped, "already_stripped")

        warnings = _judge(coarse, grid.inside, self.spacing**3, (self.spacing,) * 3)
        # Only the chosen component, with its holes filled, goes back to the native grid, with its soft edge.
        near = ndimage.binary_dilation(coarse, iterations=2)
        soft = np.where(coarse, np.maximum(probability, 0.5 + 1e-3), np.minimum(probability, 0.5 - 1e-3)) * near
        return BrainMask(_to_native(soft, near, grid.affine, volume.shape, affine), "network", warnings)

    def _to_grid(self, data: np.ndarray, affine: np.ndarray) -> _Grid:
        """``data`` (x, y, z) on an axis-parallel RAS grid that covers it."""
        data, affine = _block_means(data, affine, self.spacing)
        corners = voxel_to_mm(affine, _corners(np.full(3, -0.5), np.array(data.shape) - 0.5))
        low, high = corners.min(0), corners.max(0)
        if (high - low).max() > _LARGEST_FIELD_MM:
            raise InvalidVolume(
                f"expected a head scan of at most {_LARGEST_FIELD_MM:.0f} mm, got {(high - low).max():.0f} mm"
                ": check the voxel size in the header, or crop the scan to the head"
            )
        shape = np.maximum(1, np.ceil((high - low) / self.spacing - 1e-3)).astype(int)
        target = np.diag([self.spacing] * 3 + [1.0])
        target[:3, 3] = (low + high) / 2 - self.spacing * (shape - 1) / 2
        outside = float(data.min()) - 10 * (float(data.max()) - float(data.min()))
        image = resample(data, affine, tuple(shape), target, fill=outside)
        inside = image > (outside + float(data.min())) / 2
        return _Grid(np.where(inside, image, 0.0).astype(np.float32), inside, target)

    @torch.inference_mode()
    def _probability(self, grid: _Grid) -> np.ndarray:
        image = scale_intensity(torch.from_numpy(grid.image), torch.from_numpy(grid.inside))
        padding = [p for n in reversed(image.shape) for p in (0, -n % self.multiple)]
        if max(image.shape) <= self.multiple:
            # The lowest level would have a single voxel, which cannot be normalised.
            padding[1] += self.multiple
        padded = torch.nn.functional.pad(image, padding)[None, None].to(self.device)
        logits = self.network(padded)[0].float().cpu()
        x, y, z = image.shape
        return torch.sigmoid(logits[1] - logits[0])[:x, :y, :z].numpy()


def largest_filled(mask: np.ndarray) -> np.ndarray:
    """The largest 6-connected component of ``mask`` (x, y, z) with its cavities filled; empty stays empty."""
    parts, count = ndimage.label(mask)
    if count == 0:
        return np.zeros(mask.shape, dtype=bool)
    if count > 1:
        sizes = np.bincount(parts.ravel())
        sizes[0] = 0
        mask = parts == sizes.argmax()
    # Everything the outside does not reach; labelling is much faster than scipy's repeated dilation.
    holes, count = ndimage.label(np.pad(~mask.astype(bool), 1, constant_values=True))
    return holes[1:-1, 1:-1, 1:-1] != holes[0, 0, 0] if count > 1 else mask.astype(bool)


def _checked(volume: Volume) -> np.ndarray:
    if volume.data.ndim != 4 or volume.data.shape[0] != 1:
        raise InvalidVolume(
            f"expected one scalar 3-D image (1, x, y, z), got shape {volume.data.shape}: send one sequence at a time"
        )
    low, high = float(volume.data.min()), float(volume.data.max())
    if not np.isfinite([low, high]).all():
        raise InvalidVolume("expected finite voxel values, got NaN or infinity: repair the scan")
    if low == high:
        raise InvalidVolume(f"expected an image with contrast, got {low:g} in every voxel: check the scan")
    return check_affine(volume.affine)


def _block_means(data: np.ndarray, affine: np.ndarray, spacing: float) -> tuple[np.ndarray, np.ndarray]:
    """``data`` averaged over whole blocks not larger than ``spacing``: cheap antialiasing for fine grids."""
    edges = np.linalg.norm(affine[:3, :3], axis=0)
    factors = np.maximum(1, np.floor(spacing / edges + 1e-3)).astype(int)
    factors = np.minimum(factors, data.shape)
    if (factors == 1).all():
        return np.asarray(data, dtype=np.float32), affine
    out = np.asarray(data)
    for axis, factor in enumerate(factors):
        missing = -out.shape[axis] % factor
        if missing:  # the last block is completed with the last plane, so that no slice is lost
            out = np.pad(out, [(0, missing if a == axis else 0) for a in range(3)], mode="edge")
        if factor > 1:
            shape = list(out.shape)
            shape[axis : axis + 1] = [shape[axis] // factor, factor]
            out = out.reshape(shape).mean(axis=axis + 1, dtype=np.float32)
    block = affine.copy()
    block[:3, :3] = affine[:3, :3] * factors
    block[:3, 3] = voxel_to_mm(affine, (factors - 1) / 2)
    return out.astype(np.float32, copy=False), block


def _stripped_foreground(volume: Volume) -> np.ndarray | None:
    """The filled foreground (x, y, z) if the image lies in an exactly constant background, else None."""
    data = volume.data[0]
    background = data[0, 0, 0]
    foreground = data != background
    if 1 - foreground.mean() < _STRIPPED_BACKGROUND:
        return None
    foreground = largest_filled(foreground)
    volume_ml = float(foreground.sum()) * volume.voxel_volume_mm3 / 1000
    return foreground if PLAUSIBLE_ML[0] <= volume_ml <= PLAUSIBLE_ML[1] else None


def _coverage(coarse: np.ndarray, coarse_affine: np.ndarray, foreground: np.ndarray, affine: np.ndarray) -> float:
    """The part of the foreground that the network's mask covers, compared on the network's grid."""
    small, small_affine = _block_means(foreground, affine, float(coarse_affine[0, 0]))
    here = resample(small, small_affine, coarse.shape, coarse_affine) > 0.5
    size = int(here.sum())
    return float((here & coarse).sum()) / size if size else 0.0


def _judge(
    mask: np.ndarray, inside: np.ndarray, voxel_mm3: float, spacing: tuple[float, float, float]
) -> tuple[str, ...]:
    """Warnings about a mask; raises BrainNotFound if no brain, whole or cut, has this size."""
    volume_ml = float(mask.sum()) * voxel_mm3 / 1000
    expected = f"expected a brain of {PLAUSIBLE_ML[0]:.0f} to {PLAUSIBLE_ML[1]:.0f} ml"
    advice = (
        "check that the scan shows a head and that its voxel size is right, "
        "or send it skull-stripped, with 0 outside of the brain"
    )
    if volume_ml > PLAUSIBLE_ML[1] or volume_ml < SMALLEST_PART_ML:
        raise BrainNotFound(f"{expected}, found {volume_ml:.0f} ml: {advice}")
    cut_mm2 = _cut_face(mask, inside, spacing)
    if cut_mm2 > _CUT_FACE_MM2:
        return (
            f"the field of view cuts the brain ({volume_ml:.0f} ml of it are inside, "
            f"{cut_mm2 / 100:.0f} square cm lie on the border): regions outside are not analysed",
        )
    if volume_ml < PLAUSIBLE_ML[0]:
        raise BrainNotFound(f"{expected}, found {volume_ml:.0f} ml: {advice}")
    return ()


def _cut_face(mask: np.ndarray, inside: np.ndarray, spacing: tuple[float, float, float]) -> float:
    """Square mm of the mask's surface that lie on the border of the field of view."""
    total = 0.0
    for axis in range(3):
        face = float(np.prod([s for a, s in enumerate(spacing) if a != axis]))
        width = [(1, 1) if a == axis else (0, 0) for a in range(3)]
        measured = np.pad(inside, width)
        count = measured.shape[axis]
        for shift in (0, 2):
            neighbour = np.take(measured, range(shift, count - 2 + shift), axis=axis)
            total += face * float((mask & ~neighbour).sum())
    return total


def _to_native(
    soft: np.ndarray,
    near: np.ndarray,
    grid_affine: np.ndarray,
    shape: tuple[int, int, int],
    affine: np.ndarray,
) -> np.ndarray:
    """``soft > 0.5`` on the native grid, computed only in the box that can hold it."""
    where = [np.flatnonzero(near.any(axis=tuple(a for a in range(3) if a != axis))) for axis in range(3)]
    corners = _corners(np.array([w[0] - 1.0 for w in where]), np.array([w[-1] + 1.0 for w in where]))
    index = voxel_to_mm(np.linalg.inv(affine), voxel_to_mm(grid_affine, corners))
    low = np.clip(np.floor(index.min(0)), 0, np.array(shape) - 1).astype(int)
    high = np.clip(np.ceil(index.max(0)) + 1, low + 1, shape).astype(int)
    box_affine = affine.copy()
    box_affine[:3, 3] = voxel_to_mm(affine, low)
    values = resample(soft.astype(np.float32), grid_affine, tuple(high - low), box_affine, antialias=False)
    mask = np.zeros(shape, dtype=bool)
    mask[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = largest_filled(values > 0.5)
    return mask


def _corners(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """The eight corners (8, 3) of a box."""
    return np.array([[(low, high)[(i >> a) & 1][a] for a in range(3)] for i in range(8)], dtype=np.float64)


def _check_hashes(folder: Path) -> None:
    record = folder / "sha256sums.txt"
    if not record.is_file():
        raise CorruptModel(f"expected sha256sums.txt in {folder.name}/, found none: install the model again")
    listed = dict(reversed(line.split(maxsplit=1)) for line in record.read_text().splitlines() if line.strip())
    for name in ("config.yaml", "model.safetensors"):
        file = folder / name
        if not file.is_file():
            raise CorruptModel(f"expected {name} in {folder.name}/, found none: install the model again")
        if listed.get(name) != hashlib.sha256(file.read_bytes()).hexdigest():
            raise CorruptModel(f"expected {name} in {folder.name}/ to match its recorded sha256: install it again")
