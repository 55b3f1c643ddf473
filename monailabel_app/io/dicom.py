"""A DICOM series in a folder, as one volume: chosen and checked from the headers."""

from __future__ import annotations

import os
from collections import defaultdict
from pathlib import Path

import numpy as np

from monailabel_app.errors import InvalidVolume, UnreadableVolume
from monailabel_app.io.checks import check_depth, check_shape
from monailabel_app.io.decompress import decode_slices
from monailabel_app.io.dicom_slices import Slice, read_slice
from monailabel_app.io.memory import check_memory
from monailabel_app.io.native import NativeGeometry, itk_affine

MAX_FILES = 20_000
_MAX_RATIO = 2000  # voxels in a byte: of lossless compression, on slices of nothing but air
_STEP_TOLERANCE = 0.05  # of the slice distance
_DRIFT_TOLERANCE = 0.25  # of a pixel, over the whole stack


def dicom_geometry(folder: Path) -> NativeGeometry:
    """The geometry of the series that ``read_dicom`` would read. Same errors, but for damaged pixels."""
    return _geometry(_series(folder)[0])


def read_dicom(folder: Path) -> tuple[np.ndarray, NativeGeometry, tuple[str, ...]]:
    """Voxels (x, y, z) float32 with the rescale slope applied, geometry and warnings.

    Folders below ``folder`` are searched too. Of several series the one with most images is read, with a
    warning.

    Raises UnreadableVolume (no DICOM images, pixel data that cannot be decoded) and InvalidVolume (colour,
    multi-frame, several images per position, mixed geometry, missing slices, tilted gantry).
    """
    slices, warnings = _series(folder)
    first = slices[0]
    check_memory(len(slices) * first.columns * first.rows)
    if any(item.dtype is None for item in slices):
        if sum(item.size for item in slices) * _MAX_RATIO < len(slices) * first.columns * first.rows:
            raise UnreadableVolume(
                "expected compressed pixels that the files can hold, got a header that promises more: export the "
                "series again"
            )
        data = decode_slices([item.path for item in slices], first.columns, first.rows)
    else:
        data = np.empty((first.columns, first.rows, len(slices)), dtype=np.float32, order="F")
        for k, item in enumerate(slices):
            data[:, :, k] = _pixels(item)
    if first.inverted:
        # Compressed ones GDCM has turned over already, by subtracting from the largest 16-bit number.
        data = data - data.min() if first.dtype is None else data.max() - data
        warnings.append("the scan is stored with inverted grey values (MONOCHROME1); they were turned over")
    return data, _geometry(slices), tuple(warnings)


def _pixels(item: Slice) -> np.ndarray:
    try:
        with np.errstate(over="ignore", invalid="ignore"):
            return item.pixels()
    except (OSError, ValueError):
        raise UnreadableVolume(
            "expected pixels in every slice of the series, got a file that ends too early: export the series again"
        ) from None


def _geometry(slices: list[Slice]) -> NativeGeometry:
    """As ITK takes it from a series: the distance of slices is the mean one."""
    first, last = slices[0], slices[-1]
    step = np.linalg.norm(last.position - first.position) / (len(slices) - 1)
    row, column = (axis / np.linalg.norm(axis) for axis in np.split(first.orientation, 2))
    direction = np.stack([row, column, first.normal], axis=1)
    spacing = tuple(float(v) for v in (first.pixel_spacing[1], first.pixel_spacing[0], step))
    return NativeGeometry(
        shape=(first.columns, first.rows, len(slices)),
        affine=itk_affine(first.position, spacing, direction),
        origin=tuple(float(v) for v in first.position),
        spacing=spacing,
        direction=tuple(float(v) for v in direction.ravel()),
    )


def _series(folder: Path) -> tuple[list[Slice], list[str]]:
    """The slices of the chosen series in order along their normal, and what had to be assumed."""
    slices, refused = _scan(folder)
    if not slices:
        why = "; ".join(sorted(refused)) or "no DICOM file in it"
        raise UnreadableVolume(
            f"expected a folder with the slices of one DICOM image series, got {why}: send the folder of "
            "the scan"
        )
    by_series: dict[str, dict[str, Slice]] = defaultdict(dict)
    copies = 0
    for item in slices:
        copies += item.instance in by_series[item.series]
        by_series[item.series][item.instance] = item
    warnings = []
    chosen = max(by_series, key=lambda uid: (len(by_series[uid]), uid))
    series = list(by_series[chosen].values())
    if len(by_series) > 1:
        warnings.append(
            f"the folder holds {len(by_series)} image series; the largest, of {len(series)} images, was read"
        )
    if copies:
        warnings.append(f"{copies} files were copies of others and were left out")
    if series[0].modality != "MR":
        warnings.append(f"the scan states modality {series[0].modality[:16]!r}, where MR is expected")
    return _in_order(series), warnings


def _scan(folder: Path) -> tuple[list[Slice], set[str]]:
    slices: list[Slice] = []
    refused: set[str] = set()
    seen = 0
    for root, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            seen += 1
            if seen > MAX_FILES:
                raise InvalidVolume(
                    f"expected the folder of one scan, got more than {MAX_FILES} files: send the series' "
                    "own folder"
                )
            found = read_slice(os.path.join(root, name))
            if isinstance(found, Slice):
                slices.append(found)
            elif found:
                refused.add(found)
    return slices, refused


def _in_order(series: list[Slice]) -> list[Slice]:
    """The slices along their common normal. Raises InvalidVolume for what is not one regular stack."""
    first = series[0]
    cut = sum(not item.complete for item in series)
    if cut:
        raise UnreadableVolume(
            f"expected complete pixel data in every slice, got {cut} of {len(series)} files cut short: "
            "copy or export the series again"
        )
    _check_axes(first)
    for item in series:
        if (item.rows, item.columns) != (first.rows, first.columns):
            raise InvalidVolume(
                f"expected slices of one size, got {first.columns}x{first.rows} and "
                f"{item.columns}x{item.rows}: "
                "send one series without its localisers"
            )
        if not np.allclose(item.orientation, first.orientation, atol=1e-3):
            raise InvalidVolume(
                "expected parallel slices, got several orientations in one series (a localiser?): "
                "send a series of one orientation"
            )
        if item.inverted != first.inverted:
            raise InvalidVolume(
                "expected slices of one kind of grey values, got some where white is nothing (MONOCHROME1) and others "
                "where it is most: export the series again"
            )
        if not np.allclose(item.pixel_spacing, first.pixel_spacing, rtol=1e-3):
            raise InvalidVolume("expected slices of one pixel spacing, got several: send one series")
    check_depth(check_shape((first.columns, first.rows, len(series))))
    along = np.array([item.position @ first.normal for item in series])
    order = np.argsort(along, kind="stable")
    along = along[order]
    series = [series[i] for i in order]
    steps = np.diff(along)
    if (steps < 1e-3).any():
        places = 1 + int((steps >= 1e-3).sum())
        raise InvalidVolume(
            f"expected one image per slice position, got {len(series)} images at {places} positions "
            "(several echoes, "
            "time points or phase images in one series?): send one 3-D volume"
        )
    _check_steps(steps)
    _check_tilt(series, along)
    return series


def _check_axes(item: Slice) -> None:
    row, column = item.orientation[:3], item.orientation[3:]
    if abs(row @ column) > 1e-3 or abs(row @ row - 1) > 1e-2 or abs(column @ column - 1) > 1e-2:
        raise InvalidVolume(
            "expected an image orientation of two unit vectors at right angles, got others: the header is "
            "damaged"
        )
    if (item.pixel_spacing <= 0).any():
        raise InvalidVolume("expected a pixel spacing above zero, got zero or less: the header is damaged")


def _check_steps(steps: np.ndarray) -> None:
    step = float(np.median(steps))
    off = np.abs(steps - step) > max(_STEP_TOLERANCE * step, 0.01)
    if not off.any():
        return
    missing = np.round(steps[off] / step) - 1
    whole = np.allclose(steps[off] / step, missing + 1, atol=2 * _STEP_TOLERANCE) and (missing >= 1).all()
    what = (
        f"{int(missing.sum())} missing"
        if whole
        else f"distances of {steps.min():.2f} to {steps.max():.2f} mm"
    )
    raise InvalidVolume(
        f"expected slices {step:.2f} mm apart, got {what} (first after slice {int(np.argmax(off)) + 1} of "
        f"{len(steps) + 1}): export the complete series again"
    )


def _check_tilt(series: list[Slice], along: np.ndarray) -> None:
    positions = np.array([item.position for item in series])
    straight = positions[0] + np.outer(along - along[0], series[0].normal)
    drift = np.linalg.norm(positions - straight, axis=1).max()
    if drift > max(0.1, _DRIFT_TOLERANCE * series[0].pixel_spacing.min()):
        raise InvalidVolume(
            f"expected slices stacked along their normal, got a stack that slants by {drift:.1f} mm (tilted "
            "gantry): "
            "resample it to an upright grid first"
        )
