"""A label volume as a DICOM Segmentation that refers to the DICOM series it was drawn on.

The segments are coded as an abnormality (SNOMED CT 49755003 "Morphologically abnormal structure", type
52988006 "Lesion"), never as an anatomical structure. A label without any voxel becomes a valid segmentation
whose frames are all empty: "looked at, nothing marked" is a result too. Every segment carries a tracking
identifier, by which a report (``dicom_sr``) names the same lesion.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import highdicom as hd
import numpy as np
import SimpleITK as sitk
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import UID, ExplicitVRLittleEndian, SegmentationStorage
from pydicom.valuerep import format_number_as_ds

from monailabel_app.errors import InvalidVolume, UnreadableVolume
from monailabel_app.io.dicom_colours import cielab, colour_of
from monailabel_app.io.dicom_limits import read_header
from monailabel_app.io.dicom_uids import ObjectUids

CATEGORY = Code("49755003", "SCT", "Morphologically Abnormal Structure")
TYPE = Code("52988006", "SCT", "Lesion")
SERIES_DESCRIPTION = "Anomaly segmentation (research use only)"
MANUFACTURER = "monailabel-anomaly"
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_MAY_BE_EMPTY = ("StudyID", "AccessionNumber", "PatientName", "PatientID", "PatientBirthDate", "PatientSex")
_MAY_BE_EMPTY += ("StudyDate", "StudyTime", "ReferringPhysicianName")
_IDENTITY = ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID")
_PLACES = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")
_GROUPS = ("PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence")
_AGE = re.compile(r"\d{3}[DWMY]")


@dataclass(frozen=True)
class Algorithm:
    """Who drew the label: name and version of the model; ``reviewed`` when a person accepted it."""

    name: str
    version: str
    reviewed: bool = False


def write_dicom_seg(
    path: str | Path,
    label: np.ndarray,
    affine: np.ndarray,
    series: str | Path,
    algorithm: Algorithm,
    names: Mapping[int, str] | None = None,
    description: str = SERIES_DESCRIPTION,
    labels: Mapping[int, str] | None = None,
    distinct: str = "",
    colours: Mapping[int, tuple[int, int, int]] | None = None,
) -> str:
    """Write ``label`` ((x, y, z) of whole numbers, 0 = nothing) as a segmentation of the series in folder
    ``series``.

    affine: (4, 4) label voxel -> RAS mm; the grid may be ordered in any way, each slice of the series looks
    its pixels up in it (nearest voxel). names: label value -> the segment's name, by which reports track it.
    labels: label value -> what viewers list the segment as, where that is to say more than its name.
    distinct: what makes this another object than one that tells the same (see ``dicom_uids``). colours: label value ->
    (r, g, b) of 0 to 255 that viewers are to show it in; else that of its number (``dicom_colours``). Returns its
    SeriesInstanceUID. Raises UnreadableVolume when the folder holds no image series that can be drawn on,
    InvalidVolume when the label lies elsewhere.
    """
    images = read_series_headers(series)
    values = sorted(int(value) for value in np.unique(label) if value != 0) or [1]
    frames = slice_volume(label, affine, images)
    if label.any() and not frames.any():
        raise InvalidVolume(
            "expected a label that overlaps its image series, got one that lies elsewhere in space"
        )
    numbered = np.zeros(frames.shape, dtype=np.uint8 if len(values) < 256 else np.uint16)
    for number, value in enumerate(values, start=1):
        numbered[frames == value] = number
    segments = [
        (_name(value, names), (labels or {}).get(value), cielab((colours or {}).get(value) or colour_of(number)))
        for number, value in enumerate(values, start=1)
    ]
    told = {"segments": segments, "algorithm": asdict(algorithm), "description": description, "distinct": distinct}
    uids = ObjectUids("segmentation", images, told, numbered)
    segmentation = hd.seg.Segmentation(
        source_images=images,
        pixel_array=numbered,
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[
            _segment(number, name, shown, colour, algorithm, uids)
            for number, (name, shown, colour) in enumerate(segments, start=1)
        ],
        series_instance_uid=uids.of("series"),
        series_number=300,
        sop_instance_uid=uids.of("instance"),
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=algorithm.name[:64],
        software_versions=algorithm.version[:64],
        device_serial_number="0",
        content_label="ANOMALY",
        content_description=description[:64],
        content_creator_name=None,
        series_description=description[:64],
        transfer_syntax_uid=ExplicitVRLittleEndian,
        # An empty segmentation needs its frames, or it would have none at all.
        omit_empty_frames=bool(frames.any()),
    )
    uids.name_dimensions(segmentation)
    segmentation.save_as(str(path), write_like_original=False)
    return str(segmentation.SeriesInstanceUID)


def read_labelmap(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """A label file (.nii, .nii.gz, .nrrd, .seg.nrrd) as ((x, y, z) uint8 array, (4, 4) affine to RAS mm).

    Unlike a scan, a label may be constant or empty. Segments stored as layers are numbered by their layer.
    Raises UnreadableVolume or InvalidVolume.
    """
    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError as error:
        raise UnreadableVolume(
            "expected a label as NIfTI or NRRD, got a file that cannot be read as either"
        ) from error
    if image.GetDimension() != 3:
        raise InvalidVolume(f"expected a 3-D label, got {image.GetDimension()} dimensions")
    array = sitk.GetArrayViewFromImage(image)
    if image.GetNumberOfComponentsPerPixel() > 1:
        layers = np.arange(1, array.shape[-1] + 1, dtype=np.uint8)
        array = ((array > 0) * layers).max(axis=-1)
    if array.size and (array.min() < 0 or array.max() > 255):
        raise InvalidVolume(f"expected label values from 0 to 255, got {array.min()} to {array.max()}")
    lps = np.eye(4)
    lps[:3, :3] = np.asarray(image.GetDirection()).reshape(3, 3) * np.asarray(image.GetSpacing())
    lps[:3, 3] = image.GetOrigin()
    return np.ascontiguousarray(np.transpose(array, (2, 1, 0))).astype(np.uint8), _LPS_TO_RAS @ lps


def read_series_headers(folder: str | Path) -> list[Dataset]:
    """Headers (no pixels) of the image series in ``folder``, ordered along the slice normal.

    Files that are not images, and slices of another size or direction (localisers), are left out.
    Raises UnreadableVolume when nothing is left, or when the images do not say where their pixels are.
    """
    groups: dict[tuple, list[Dataset]] = {}
    for path in sorted(Path(folder).iterdir()) if Path(folder).is_dir() else []:
        try:
            header = read_header(path)
        except (InvalidDicomError, OSError, UnreadableVolume):
            continue
        if "Rows" in header and "SeriesInstanceUID" in header:
            direction = tuple(np.round(np.asarray(header.get("ImageOrientationPatient") or (), dtype=float), 3))
            groups.setdefault((header.SeriesInstanceUID, header.Rows, header.Columns, direction), []).append(
                header
            )
    if not groups:
        raise UnreadableVolume("expected a folder with a DICOM image series, got no image")
    images = max(groups.values(), key=len)
    for image in images:
        _check_places(image)
        _repair(image)
    if len(images) > 1:
        images.sort(key=lambda image: next(_planes(image))[:3, 2] @ next(_planes(image))[:3, 3])
    measures = pixel_measures(images)
    for image in images if measures is not None else ():
        if not image.get("SliceThickness"):
            image.SliceThickness = measures[0].SliceThickness
    return images


def is_multi_frame(folder: str | Path) -> bool:
    """Whether a folder holds one DICOM image of many frames that each say where they are (enhanced MR)."""
    files = [path for path in Path(folder).iterdir() if path.is_file()]
    if len(files) != 1:
        return False
    try:
        header = read_header(files[0])
    except (InvalidDicomError, OSError, UnreadableVolume):
        return False
    return "PerFrameFunctionalGroupsSequence" in header and header.get("SOPClassUID") != SegmentationStorage


def _check_places(image: Dataset) -> None:
    """Raises UnreadableVolume for an image of which nobody can say where its pixels are in the patient."""
    missing = [name for name in _IDENTITY if not image.get(name)]
    if "PerFrameFunctionalGroupsSequence" in image:
        shared = (image.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
        frames = image.PerFrameFunctionalGroupsSequence
        missing += [name for name in _GROUPS if not all(name in frame or name in shared for frame in frames)]
    else:
        missing += [name for name in _PLACES if not image.get(name)]
    if missing:
        kind = UID(image.get("SOPClassUID") or "1").name
        raise UnreadableVolume(
            "expected images that say where they lie in the patient, got "
            f"{kind if kind.endswith('Storage') else 'images'} without {', '.join(missing)}: DICOM results can only be "
            "written for an original MR series (not for secondary captures)"
        )


def _repair(image: Dataset) -> None:
    """Make a header good enough to be copied from: what it may leave out, and values of a form that DICOM forbids."""
    for name in _MAY_BE_EMPTY:
        if name not in image:
            setattr(image, name, "")
    if not _AGE.fullmatch(str(image.get("PatientAge") or "000Y")):
        del image.PatientAge
    for name in ("SliceThickness", "SpacingBetweenSlices"):
        if image.get(name) is not None:
            setattr(image, name, format_number_as_ds(float(image[name].value)))


def pixel_measures(images: Sequence[Dataset]) -> hd.PixelMeasuresSequence | None:
    """Spacing of the series, the slices' from their positions; None for a multi-frame source, which has its own."""
    if "PerFrameFunctionalGroupsSequence" in images[0]:
        return None
    spacing = [float(value) for value in images[0].PixelSpacing]
    thickness = float(images[0].get("SliceThickness") or 0)
    between = None
    if len(images) > 1:
        first, last = (np.asarray(image.ImagePositionPatient, dtype=np.float64) for image in (images[0], images[-1]))
        # A decimal string has 16 characters at most.
        between = float(format_number_as_ds(float(np.linalg.norm(last - first)) / (len(images) - 1)))
    return hd.PixelMeasuresSequence(spacing, thickness or between or spacing[0], between)


def slice_volume(volume: np.ndarray, affine: np.ndarray, images: Sequence[Dataset]) -> np.ndarray:
    """``volume`` (x, y, z) on the slices of a series: (frames, rows, columns) of its type, in the order of ``images``.

    affine: (4, 4) voxel -> RAS mm. Each pixel takes the nearest voxel, which on the series' own grid is the voxel
    itself; pixels outside the volume are 0. Needs the memory of the result and of one slice.
    """
    rows, columns = int(images[0].Rows), int(images[0].Columns)
    column, row = np.meshgrid(np.arange(columns), np.arange(rows))
    pixels = np.stack([column, row, np.zeros_like(row), np.ones_like(row)]).reshape(4, -1).astype(np.float64)
    to_voxel = np.linalg.inv(np.asarray(affine, dtype=np.float64)) @ _LPS_TO_RAS
    size = np.asarray(volume.shape)[:, None]
    planes = [plane for image in images for plane in _planes(image)]
    frames = np.zeros((len(planes), rows, columns), dtype=volume.dtype)
    for frame, plane in zip(frames, planes, strict=True):
        index = np.rint((to_voxel @ plane @ pixels)[:3]).astype(np.int64)
        inside = ((index >= 0) & (index < size)).all(axis=0)
        frame.reshape(-1)[inside] = volume[tuple(index[:, inside])]
    return frames


def _planes(image: Dataset) -> Iterator[np.ndarray]:
    """(4, 4) matrix (column, row, 0, 1) -> LPS mm of each frame; its third column is the slice normal."""
    if "PerFrameFunctionalGroupsSequence" not in image:
        yield _plane(image.ImagePositionPatient, image.ImageOrientationPatient, image.PixelSpacing)
        return
    shared = image.SharedFunctionalGroupsSequence[0]
    for frame in image.PerFrameFunctionalGroupsSequence:
        position = _functional_group(frame, shared, "PlanePositionSequence").ImagePositionPatient
        orientation = _functional_group(frame, shared, "PlaneOrientationSequence").ImageOrientationPatient
        yield _plane(
            position, orientation, _functional_group(frame, shared, "PixelMeasuresSequence").PixelSpacing
        )


def _functional_group(frame: Dataset, shared: Dataset, name: str) -> Dataset:
    return (frame if name in frame else shared)[name].value[0]


def _plane(position: Sequence[float], orientation: Sequence[float], spacing: Sequence[float]) -> np.ndarray:
    along_row, along_column = np.asarray(orientation, dtype=np.float64).reshape(2, 3)
    plane = np.eye(4)
    # PixelSpacing is (between rows, between columns): PS3.3 10.7.1.3.
    plane[:3, 0] = along_row * float(spacing[1])
    plane[:3, 1] = along_column * float(spacing[0])
    plane[:3, 2] = np.cross(along_row, along_column)
    plane[:3, 3] = np.asarray(position, dtype=np.float64)
    return plane


def _name(value: int, names: Mapping[int, str] | None) -> str:
    return (names or {}).get(value) or ("anomaly" if value == 1 else f"anomaly {value}")


def _segment(
    number: int, name: str, label: str | None, colour: list[int], algorithm: Algorithm, uids: ObjectUids
) -> hd.seg.SegmentDescription:
    description = hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=(label or name)[:64],
        segmented_property_category=CATEGORY,
        segmented_property_type=TYPE,
        algorithm_type=(
            hd.seg.SegmentAlgorithmTypeValues.SEMIAUTOMATIC
            if algorithm.reviewed
            else hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC
        ),
        algorithm_identification=hd.AlgorithmIdentificationSequence(
            name=algorithm.name[:64], version=algorithm.version[:64], family=codes.DCM.ArtificialIntelligence
        ),
        tracking_uid=uids.of(f"segment {number}"),
        tracking_id=name[:64],
    )
    description.RecommendedDisplayCIELabValue = colour
    return description
