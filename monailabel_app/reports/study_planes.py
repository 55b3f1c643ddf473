"""Planes of a scan as pictures: greys, map in the fixed colours, outlines and places in millimetres."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from PIL import Image
from skimage.measure import find_contours

from monailabel_app.errors import InvalidVolume
from monailabel_app.io.geometry import reorient, spacing_mm

from .overlay import COLOURS, colour_bands

NAMES = ("sagittal", "coronal", "axial")  # by the axis that is cut
_MARGIN_MM = 9.0
_QUALITY = 84
_WINDOW = (0.5, 99.7)  # percentiles of the brain's grey values
_LONGEST_OUTLINE = 20_000  # points; a mask of confetti would make the page larger than its pictures


@dataclass(frozen=True)
class Plane:
    """One plane as it is looked at, the patient's right and front on the left, head up: (rows, columns) arrays.

    grey, healthy: uint8, of the scan and of the pseudo-healthy image (None where there is none). values: the map.
    mask: bool, what was marked. pixel_mm: down and across. at_mm: where the plane cuts the volume, None for a slice.
    """

    name: str
    grey: np.ndarray
    healthy: np.ndarray | None
    values: np.ndarray
    mask: np.ndarray
    pixel_mm: tuple[float, float]
    at_mm: float | None

    @property
    def size_mm(self) -> tuple[float, float]:
        """Down and across."""
        return self.grey.shape[0] * self.pixel_mm[0], self.grey.shape[1] * self.pixel_mm[1]


class Head:
    """The arrays of a report, turned once so that their axes run right, front, up.

    scan, anomaly_map, brain_mask, mask, reconstruction: (x, y, z) on one grid, the reconstruction in the scan's grey
    values or None. affine: (4, 4) voxel index -> RAS mm. Raises InvalidVolume for arrays of different shapes.
    """

    def __init__(
        self,
        scan: np.ndarray,
        anomaly_map: np.ndarray,
        brain_mask: np.ndarray,
        mask: np.ndarray,
        affine: np.ndarray,
        reconstruction: np.ndarray | None = None,
    ) -> None:
        for name, values in (("map", anomaly_map), ("brain", brain_mask), ("mask", mask), ("image", reconstruction)):
            if values is not None and values.shape != scan.shape:
                raise InvalidVolume(f"expected the {name} on the grid of the scan, {scan.shape}, got {values.shape}")
        self._native = np.asarray(affine, dtype=np.float64)
        volume, self.affine = reorient(scan, affine)
        self.values, self.brain, self.mask = (
            reorient(np.asarray(v), affine)[0] for v in (anomaly_map, np.asarray(brain_mask) > 0, np.asarray(mask) > 0)
        )
        self.spacing = spacing_mm(self.affine)
        inside = volume[self.brain]
        self.window = tuple(float(v) for v in np.percentile(inside if inside.size else volume, _WINDOW))
        self.box = self._box()
        self._grey = self._in_window(volume)
        self._healthy = None
        if reconstruction is not None:
            made, _ = reorient(reconstruction, affine)
            self._healthy = np.where(made != 0, self._in_window(made), 0).astype(np.uint8)  # 0: outside of the brain

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels to the right, to the front and up."""
        return self.values.shape

    @property
    def flat_axis(self) -> int | None:
        """The axis of a single slice that has one voxel only; None for a volume."""
        return next((axis for axis in range(3) if self.shape[axis] == 1), None)

    @property
    def has_healthy(self) -> bool:
        """Whether there is a pseudo-healthy image."""
        return self._healthy is not None

    def main_axis(self) -> int:
        """The axis across the planes that show most detail: of thick slices theirs, else axial planes."""
        if self.flat_axis is not None:
            return self.flat_axis
        thickest = int(np.argmax(self.spacing))
        return thickest if self.spacing[thickest] > 1.5 * min(self.spacing) else 2

    def place(self, voxel: Sequence[int]) -> tuple[int, int, int]:
        """A voxel index of the scan's own order in the order of this object."""
        at = np.linalg.inv(self.affine) @ self._native @ np.array([*voxel, 1.0])
        return tuple(int(v) for v in np.rint(at[:3]))

    def plane(self, axis: int, at: Sequence[int]) -> Plane:
        """The plane across an axis through a voxel."""
        where = tuple(self.box[a] if a != axis else int(at[axis]) for a in range(3))
        healthy = None if self._healthy is None else _upright(self._healthy[where])
        position = None if self.flat_axis is not None else self._mm(axis, at)
        return Plane(
            NAMES[axis],
            _upright(self._grey[where]),
            healthy,
            _upright(self.values[where]),
            _upright(self.mask[where]),
            self._pixel(axis),
            position,
        )

    def projection(self, axis: int) -> Plane:
        """The brain seen through: its mean grey, and of the marked voxels the highest value along the line of sight."""
        box = self.box
        brain, marked = self.brain[box], self.mask[box]
        grey = np.where(brain, self._grey[box], 0).sum(axis=axis, dtype=np.float32)
        grey /= max(float(np.percentile(grey[grey > 0], 99)) if (grey > 0).any() else 1.0, 1.0)
        values = np.where(marked, self.values[box], 0).max(axis=axis)
        return Plane(
            NAMES[axis],
            _upright((np.clip(grey, 0, 1) * 190).astype(np.uint8)),
            None,
            _upright(values),
            _upright(marked.any(axis=axis)),
            self._pixel(axis),
            None,
        )

    def point(self, axis: int, at: Sequence[int]) -> tuple[float, float]:
        """Where a voxel's centre lies in the plane across an axis: mm from its left and its upper border."""
        across, down = (a for a in range(3) if a != axis)
        left = (self.box[across].stop - 1 - at[across] + 0.5) * self.spacing[across]
        return left, (self.box[down].stop - 1 - at[down] + 0.5) * self.spacing[down]

    def levels(self, axis: int, count: int) -> list[int]:
        """Up to ``count`` places along an axis, evenly through the brain, from its lower or left end."""
        used = np.flatnonzero(self.brain.any(axis=tuple(a for a in range(3) if a != axis)))
        if not len(used):
            return []
        first, last = int(used[0]), int(used[-1])
        step = max(1.0, (last - first + 1) / count)
        return sorted({min(last, int(first + step * (i + 0.5))) for i in range(min(count, last - first + 1))})

    def _mm(self, axis: int, at: Sequence[int]) -> float:
        return float(self.affine[axis, :3] @ np.asarray(at, dtype=np.float64) + self.affine[axis, 3])

    def _pixel(self, axis: int) -> tuple[float, float]:
        across, down = (a for a in range(3) if a != axis)
        return self.spacing[down], self.spacing[across]

    def _box(self) -> tuple[slice, ...]:
        """Around the brain, and whatever was marked."""
        seen, box = self.brain | self.mask, []
        for axis in range(3):
            used = np.flatnonzero(seen.any(axis=tuple(a for a in range(3) if a != axis)))
            margin = round(_MARGIN_MM / self.spacing[axis])
            first, last = (int(used[0]), int(used[-1])) if len(used) else (0, self.shape[axis] - 1)
            box.append(slice(max(0, first - margin), min(self.shape[axis], last + 1 + margin)))
        return tuple(box)

    def _in_window(self, values: np.ndarray) -> np.ndarray:
        low, high = self.window
        made = np.zeros(values.shape, np.uint8)
        box = self.box
        scaled = (np.nan_to_num(values[box].astype(np.float32)) - low) / max(high - low, 1e-6)
        made[box] = (np.clip(scaled, 0, 1) * 255).astype(np.uint8)
        return made


@dataclass(frozen=True)
class Printed:
    """A plane in the size it is printed in. scale: printed mm per mm of the head. pixels: down and across."""

    plane: Plane
    scale: float
    dots_per_mm: float = 7.0

    @cached_property
    def pixels(self) -> tuple[int, int]:
        """At least those of the plane itself where it is printed small enough for them."""
        return tuple(max(1, round(extent * self.scale * self.dots_per_mm)) for extent in self.plane.size_mm)

    def grey(self) -> bytes:
        """The scan as JPEG."""
        return self._jpeg(self.plane.grey)

    def healthy(self) -> bytes:
        """The pseudo-healthy image as JPEG. Raises InvalidVolume where there is none."""
        if self.plane.healthy is None:
            raise InvalidVolume("expected a plane with a pseudo-healthy image, got one of a method that makes none")
        return self._jpeg(self.plane.healthy)

    def colours(self, thresholds: tuple[float, ...]) -> bytes | None:
        """The map as PNG, clear where its values are common; None where all of them are. thresholds: of COLOURS."""
        rows, columns = self.pixels
        values = np.asarray(self.plane.values, np.float32)
        if not (values > thresholds[0]).any():
            return None
        size = Image.fromarray(values).resize((columns, rows), Image.Resampling.BILINEAR)
        bands = colour_bands(np.asarray(size), thresholds)
        picture = Image.fromarray(bands, "P")
        picture.putpalette([0, 0, 0, *(part for _, colour in COLOURS for part in colour)])
        stream = io.BytesIO()
        picture.save(stream, "PNG", optimize=True, transparency=0)
        return stream.getvalue()

    def outline(self) -> str:
        """The edge of what was marked, as an SVG path in mm of the head; empty where nothing was."""
        parts, points = [], 0
        for contour in find_contours(np.pad(self.plane.mask, 1).astype(np.float32), 0.5):
            points += len(contour)
            if points > _LONGEST_OUTLINE:
                break
            # A voxel's centre lies half a voxel from its edge; the padding moved everything by one.
            mm = (contour - 0.5) * self.plane.pixel_mm
            parts.append("M" + "L".join(f"{x:.1f} {y:.1f}" for y, x in mm) + "Z")
        return "".join(parts)

    def _jpeg(self, grey: np.ndarray) -> bytes:
        rows, columns = self.pixels
        picture = Image.fromarray(grey).resize((columns, rows), Image.Resampling.BICUBIC)
        stream = io.BytesIO()
        picture.save(stream, "JPEG", quality=_QUALITY, optimize=True)
        return stream.getvalue()


def _upright(values: np.ndarray) -> np.ndarray:
    """A plane of arrays whose axes run right, front, up."""
    return np.ascontiguousarray(values.T[::-1, ::-1])
