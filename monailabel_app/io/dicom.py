"""A DICOM series in a folder, as one volume: chosen and checked from the headers, decoded by GDCM.

Only tags that describe the image are read; names, dates and numbers of patients never enter this program.
"""

from __future__ import annotations

import logging
import os
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
import SimpleITK as sitk
from pydicom.errors import InvalidDicomError

from monailabel_app.errors import InvalidVolume, UnreadableVolume
from monailabel_app.io.checks import check_depth, check_shape
from monailabel_app.io.itk import quiet_itk
from monailabel_app.io.native import NativeGeometry, from_itk, itk_affine

logger = logging.getLogger(__name__)

MAX_FILES = 20_000
_TAGS = [
    "SeriesInstanceUID",
    "SOPInstanceUID",
    "Modality",
    "Rows",
    "Columns",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "NumberOfFrames",
    "BitsAllocated",
]
_STEP_TOLERANCE = 0.05  # of the slice distance
_DRIFT_TOLERANCE = 0.25  # of a pixel, over the whole stack


@dataclass(frozen=True)
class _Slice:
    path: str
    series: str
    instance: str
    modality: str
    rows: int
    columns: int
    inverted: bool
    complete: bool
    position: np.ndarray
    orientation: np.ndarray
    pixel_spacing: np.ndarray

    @property
    def normal(self) -> np.ndarray:
        return np.cross(self.orientation[:3], self.orientation[3:])


def dicom_geometry(folder: Path) -> NativeGeometry:
    """The geometry of the series that ``read_dicom`` would read. Same errors, but for damaged pixels."""
    slices, _ = _series(folder)
    geometry, _ = _decode(slices[:2], len(slices))
    return geometry


def read_dicom(folder: Path) -> tuple[np.ndarray, NativeGeometry, tuple[str, ...]]:
    """Voxels (x, y, z) float32 with the rescale slope applied, geometry and warnings.

    Folders below ``folder`` are searched too. Of several series the one with most images is read, with a
    warning.

    Raises UnreadableVolume (no DICOM images, pixel data that cannot be decoded) and InvalidVolume (colour,
    multi-frame, several images per position, mixed geometry, missing slices, tilted gantry).
    """
    slices, warnings = _series(folder)
    geometry, image = _decode(slices, len(slices))
    data = sitk.GetArrayFromImage(image).transpose(2, 1, 0)
    if slices[0].inverted:
        # GDCM has turned them over already, by subtracting from the largest 16-bit number.
        data = data - data.min()
        warnings.append("the scan is stored with inverted grey values (MONOCHROME1); they were turned over")
    return data, geometry, tuple(warnings)


def _series(folder: Path) -> tuple[list[_Slice], list[str]]:
    """The slices of the chosen series in order along their normal, and what had to be assumed."""
    slices, refused = _scan(folder)
    if not slices:
        why = "; ".join(sorted(refused)) or "no DICOM file in it"
        raise UnreadableVolume(
            f"expected a folder with the slices of one DICOM image series, got {why}: send the folder of "
            "the scan"
        )
    by_series: dict[str, dict[str, _Slice]] = defaultdict(dict)
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


def _scan(folder: Path) -> tuple[list[_Slice], set[str]]:
    slices: list[_Slice] = []
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
            found = _read_header(os.path.join(root, name))
            if isinstance(found, _Slice):
                slices.append(found)
            elif found:
                refused.add(found)
    return slices, refused


def _read_header(path: str) -> _Slice | str:
    """The slice in ``path``; or why it is none; or an empty text when it is no DICOM image at all."""
    try:
        with open(path, "rb") as stream:
            tags = pydicom.dcmread(stream, stop_before_pixels=True, specific_tags=_TAGS)
            bytes_left = os.path.getsize(path) - stream.tell()
        if "Rows" not in tags or "SeriesInstanceUID" not in tags:
            return ""
        if int(tags.get("NumberOfFrames") or 1) > 1:
            return "multi-frame DICOM (convert it to single frames or NIfTI first)"
        if int(tags.get("SamplesPerPixel") or 1) != 1:
            return "colour images"
        if not all(tags.get(t) for t in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")):
            return "images without a position, orientation or pixel spacing"
        return _Slice(
            path=path,
            series=str(tags.SeriesInstanceUID),
            instance=str(tags.get("SOPInstanceUID") or path),
            modality=str(tags.get("Modality") or ""),
            rows=int(tags.Rows),
            columns=int(tags.Columns),
            complete=_holds_its_pixels(tags, bytes_left),
            inverted=str(tags.get("PhotometricInterpretation") or "") == "MONOCHROME1",
            position=_numbers(tags.ImagePositionPatient, 3),
            orientation=_numbers(tags.ImageOrientationPatient, 6),
            pixel_spacing=_numbers(tags.PixelSpacing, 2),
        )
    except InvalidDicomError:
        return ""
    except (OSError, EOFError, ValueError, TypeError, AttributeError, NotImplementedError, KeyError):
        return "damaged DICOM files"


def _holds_its_pixels(tags: pydicom.Dataset, bytes_left: int) -> bool:
    """Whether the file is long enough for its pixels; GDCM fills up what is missing without a word."""
    syntax = tags.file_meta.get("TransferSyntaxUID")
    if syntax is None or syntax.is_compressed:
        return True
    return bytes_left >= int(tags.Rows) * int(tags.Columns) * int(tags.get("BitsAllocated") or 16) // 8


def _numbers(values, count: int) -> np.ndarray:
    out = np.array([float(v) for v in values], dtype=np.float64)
    if out.shape != (count,) or not np.isfinite(out).all():
        raise ValueError("a geometry tag with the wrong number of values")
    return out


def _in_order(series: list[_Slice]) -> list[_Slice]:
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


def _check_axes(item: _Slice) -> None:
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


def _check_tilt(series: list[_Slice], along: np.ndarray) -> None:
    positions = np.array([item.position for item in series])
    straight = positions[0] + np.outer(along - along[0], series[0].normal)
    drift = np.linalg.norm(positions - straight, axis=1).max()
    if drift > max(0.1, _DRIFT_TOLERANCE * series[0].pixel_spacing.min()):
        raise InvalidVolume(
            f"expected slices stacked along their normal, got a stack that slants by {drift:.1f} mm (tilted "
            "gantry): "
            "resample it to an upright grid first"
        )


def _decode(slices: list[_Slice], count: int) -> tuple[NativeGeometry, sitk.Image]:
    """Pixels of ``slices`` and the geometry of the whole series of ``count``, of which they are the first."""
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames([item.path for item in slices])
    reader.SetOutputPixelType(sitk.sitkFloat32)
    try:
        with quiet_itk():
            image = reader.Execute()
    except RuntimeError:
        # Not chained: ITK's text names the file.
        raise UnreadableVolume(
            "expected pixel data that GDCM can decode, got a damaged file or an unknown compression: "
            "export the series again, uncompressed"
        ) from None
    geometry = from_itk(image, (slices[0].columns, slices[0].rows, count))
    _check_against_tags(geometry, slices)
    return geometry, image


def _check_against_tags(geometry: NativeGeometry, slices: list[_Slice]) -> None:
    """The decoder's grid has to put the first and last slice where their headers do."""
    first, last = slices[0], slices[-1]
    spacing = (first.pixel_spacing[1], first.pixel_spacing[0], 1.0)
    axes = np.stack([first.orientation[:3], first.orientation[3:], first.normal], axis=1)
    tags = itk_affine(first.position, spacing, axes)
    far = np.array([first.columns - 1, first.rows - 1, 0, 1.0])
    in_file = itk_affine(last.position, spacing, axes) @ far
    in_image = geometry.affine @ (far + np.array([0, 0, len(slices) - 1, 0]))
    wrong = max(np.abs(in_file - in_image).max(), np.abs((tags - geometry.affine)[:3, 3]).max())
    if wrong > 0.5 * min(spacing[:2]):
        raise InvalidVolume(
            f"expected the decoded slices where their headers place them, got them {wrong:.1f} mm away: "
            "convert the series to NIfTI and send that"
        )
