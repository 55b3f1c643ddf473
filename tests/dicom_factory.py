"""Makes valid single-frame MR Image Storage series from a volume, in any of the three acquisition planes.

    info = write_series(folder, read_volume(scan), plane="sagittal", seed=7)

The same seed gives the same UIDs; another seed is another patient, study and series.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid
from pydicom.valuerep import DS

from monailabel_app.io.geometry import RAS_LPS, reorient
from monailabel_app.types import Volume

MR_IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1.4"
PATIENT_NAME = "TEST^PHANTOM"

# Where columns, rows and slices of each plane run to; radiological display, slices along row x column.
PLANES = {"axial": "LPS", "sagittal": "PIR", "coronal": "LIP"}
Plane = Literal["axial", "sagittal", "coronal"]


@dataclass(frozen=True)
class Series:
    """What was written: UIDs, files in slice order, and the volume in the series' own voxel order."""

    study_uid: str
    series_uid: str
    files: tuple[Path, ...]
    volume: Volume


def write_series(
    folder: Path,
    volume: Volume,
    *,
    plane: Plane = "axial",
    seed: int = 0,
    series: int = 1,
    slope: float | None = None,
    intercept: float = 0.0,
    edit: Callable[[int, FileDataset], bool | None] | None = None,
) -> Series:
    """``volume`` as one file per slice in ``folder`` (made if absent).

    slope: grey value per stored 16-bit step; None takes 1 where the voxels are whole numbers that fit, else
    max / 4095.
    series: number of the series within the study of ``seed``.
    edit: called with (slice index, dataset) before each file is written, to break something on purpose;
        returning False leaves the slice out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    data, affine = reorient(volume.data[0], volume.affine, PLANES[plane])
    stored, slope = _stored(data, slope, intercept)
    uids = {
        "study": generate_uid(entropy_srcs=["study", str(seed)]),
        "series": generate_uid(entropy_srcs=["series", str(seed), str(series), plane]),
        "frame": generate_uid(entropy_srcs=["frame", str(seed)]),
    }
    files = []
    for k in range(data.shape[2]):
        instance = generate_uid(entropy_srcs=["instance", str(seed), str(series), plane, str(k)])
        dataset = _slice(stored[:, :, k], affine, k, uids, instance, seed, series, slope, intercept)
        if edit is not None and edit(k, dataset) is False:
            continue
        # Named by a UID, so that the order of names is not the order of slices.
        path = folder / f"{instance.rsplit('.', 1)[-1]}.dcm"
        dataset.save_as(path, write_like_original=False)
        files.append(path)
    written = Volume((stored * slope + intercept).astype(np.float32)[None], affine, volume.name)
    return Series(uids["study"], uids["series"], tuple(files), written)


def _stored(data: np.ndarray, slope: float | None, intercept: float) -> tuple[np.ndarray, float]:
    if slope is None:
        whole = bool((data == np.round(data)).all()) and data.min() >= 0 and data.max() <= 4095
        slope = 1.0 if whole else float(data.max() - intercept) / 4095
    slope = float(DS(slope, auto_format=True))
    return np.clip(np.round((data - intercept) / slope), 0, 65535).astype(np.uint16), slope


def _slice(pixels, affine, k, uids, instance, seed, series, slope, intercept) -> FileDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = MR_IMAGE_STORAGE
    meta.MediaStorageSOPInstanceUID = instance
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    ds.is_little_endian, ds.is_implicit_VR = True, False
    _describe(ds, k, uids, instance, seed, series)

    lps = RAS_LPS @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    directions = lps[:3, :3] / spacing
    origin = lps @ np.array([0, 0, k, 1])
    ds.ImagePositionPatient = _ds(origin[:3])
    ds.ImageOrientationPatient = _ds([*directions[:, 0], *directions[:, 1]])
    ds.PixelSpacing = _ds([spacing[1], spacing[0]])  # between rows first
    ds.SliceThickness, ds.SpacingBetweenSlices = _ds([spacing[2], spacing[2]])
    ds.SliceLocation = _ds([origin[:3] @ np.cross(directions[:, 0], directions[:, 1])])[0]

    rows = pixels.T  # (x, y) to (row, column)
    ds.Rows, ds.Columns = rows.shape
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 0
    ds.RescaleSlope, ds.RescaleIntercept, ds.RescaleType = *_ds([slope, intercept]), "US"
    top = max(1.0, float(pixels.max()) * slope + intercept)
    ds.WindowCenter, ds.WindowWidth = _ds([top / 2, top])
    ds.PixelData = np.ascontiguousarray(rows).tobytes()
    return ds


def _describe(ds: FileDataset, k: int, uids: dict[str, str], instance: str, seed: int, series: int) -> None:
    """Patient, study, series and MR modules: what MR Image Storage demands, all of it made up."""
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.ImageType = ["ORIGINAL", "PRIMARY", "M", "NONE"]
    ds.SOPClassUID, ds.SOPInstanceUID = MR_IMAGE_STORAGE, instance
    ds.StudyInstanceUID, ds.SeriesInstanceUID = uids["study"], uids["series"]
    ds.FrameOfReferenceUID, ds.PositionReferenceIndicator = uids["frame"], ""
    ds.StudyDate = ds.SeriesDate = ds.ContentDate = "20200101"
    ds.StudyTime = ds.SeriesTime = ds.ContentTime = "120000"
    ds.AccessionNumber, ds.ReferringPhysicianName = "", ""
    ds.Modality, ds.Manufacturer = "MR", "TEST"
    ds.StudyDescription, ds.SeriesDescription = "PHANTOM", f"T1 PHANTOM {series}"
    ds.PatientName, ds.PatientID = PATIENT_NAME, f"PHANTOM-{seed}"
    ds.PatientBirthDate, ds.PatientSex, ds.PatientPosition = "", "O", "HFS"
    ds.BodyPartExamined, ds.StudyID = "HEAD", "1"
    ds.SeriesNumber, ds.AcquisitionNumber, ds.InstanceNumber = series, 1, k + 1
    ds.ScanningSequence, ds.SequenceVariant, ds.ScanOptions = "GR", "MP", ""
    ds.MRAcquisitionType, ds.EchoTrainLength = "3D", 1
    ds.RepetitionTime, ds.EchoTime, ds.MagneticFieldStrength = "9.6", "4.6", "3"


def _ds(values) -> list[DS]:
    """Decimal strings, which DICOM limits to 16 characters."""
    return [DS(float(v), auto_format=True) for v in values]
