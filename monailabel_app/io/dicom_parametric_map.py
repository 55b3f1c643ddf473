"""The calibrated anomaly map as a DICOM Parametric Map on the slices of the series it was computed from.

Pixels are 32-bit floats (PS3.3 C.7.6.24, Floating Point Image Pixel): the value *is* the deviation in healthy standard
deviations, so the real-world value mapping is the identity and a reader that ignores the mapping still shows the right
numbers. Scaled 16-bit pixels would halve the file, but round every value, and the converters of 3D Slicer (dcmqi) read
floats only. Values that are not 0 are restricted to the brain, so that the map shows no face.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import highdicom as hd
import numpy as np
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian
from pydicom.valuerep import format_number_as_ds

from monailabel_app.errors import InvalidSettings, InvalidVolume
from monailabel_app.io.dicom_codes import BRAIN, HEALTHY_SD
from monailabel_app.io.dicom_seg import MANUFACTURER, Algorithm, pixel_measures, read_series_headers, slice_volume
from monailabel_app.io.dicom_uids import ObjectUids

SERIES_DESCRIPTION = "Anomaly map (research use only)"
# Lowest and highest value shown; a window stretched to the scan's own range would paint healthy scans red.
WINDOW = (0.0, 10.0)


def write_parametric_map(
    path: str | Path,
    anomaly_map: np.ndarray,
    affine: np.ndarray,
    series: str | Path,
    algorithm: Algorithm,
    model_hash: str = "",
    description: str = SERIES_DESCRIPTION,
    window: tuple[float, float] = WINDOW,
    distinct: str = "",
) -> str:
    """Write ``anomaly_map`` ((x, y, z), healthy standard deviations) as a Parametric Map of the series in ``series``.

    affine: (4, 4) voxel -> RAS mm; the grid may be ordered in any way, each slice of the series looks its pixels up in
    it (nearest voxel), and every slice becomes a frame. model_hash: SHA-256 of the model; half of it becomes a software
    version of the header, all of it stands in the description of the derivation. window: lowest and highest value that
    viewers show at first; take the same for all scans of a model. distinct: what makes this another object than one
    that tells the same (see ``dicom_uids``).
    Returns its SeriesInstanceUID. Needs about three times the memory of the frames as float32.

    Raises UnreadableVolume when the folder holds no image series, InvalidVolume when the map is not finite or lies
    elsewhere, InvalidSettings for an empty window.
    """
    if not window[0] < window[1]:
        raise InvalidSettings(f"expected a window from a lower to a higher value, got {window[0]:g} to {window[1]:g}")
    if not np.isfinite(anomaly_map).all():
        raise InvalidVolume("expected a finite anomaly map, got NaN or infinity: compute it again")
    images = read_series_headers(series)
    frames = slice_volume(np.asarray(anomaly_map, dtype=np.float32), affine, images)
    if anomaly_map.any() and not frames.any():
        raise InvalidVolume("expected a map that overlaps its image series, got one that lies elsewhere in space")
    told = {"algorithm": asdict(algorithm), "model": model_hash, "description": description, "window": window}
    uids = ObjectUids("parametric map", images, {**told, "distinct": distinct}, frames)
    parametric_map = hd.pm.ParametricMap(
        source_images=images,
        pixel_array=frames,
        series_instance_uid=uids.of("series"),
        series_number=301,
        sop_instance_uid=uids.of("instance"),
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=algorithm.name[:64],
        software_versions=[version[:64] for version in (algorithm.version, model_hash[:32]) if version],
        device_serial_number="0",
        contains_recognizable_visual_features=False,
        real_world_value_mappings=[_mapping(frames)],
        window_center=float(format_number_as_ds((window[0] + window[1]) / 2)),
        window_width=float(format_number_as_ds(window[1] - window[0])),
        transfer_syntax_uid=ExplicitVRLittleEndian,
        content_label="ANOMALY_MAP",
        content_description=description[:64],
        content_qualification=hd.ContentQualificationValues.RESEARCH,
        pixel_measures=pixel_measures(images),
        series_description=description[:64],
    )
    _name_the_anatomy(parametric_map)
    _name_the_sources(parametric_map, images, algorithm, model_hash)
    uids.name_dimensions(parametric_map)
    parametric_map.save_as(str(path), write_like_original=False)
    return str(parametric_map.SeriesInstanceUID)


def _mapping(frames: np.ndarray) -> hd.pm.RealWorldValueMapping:
    return hd.pm.RealWorldValueMapping(
        lut_label="HEALTHY_SD",
        lut_explanation="Deviation from healthy scans in their SD",
        unit=HEALTHY_SD,
        value_range=(float(frames.min()), float(frames.max())),
        slope=1.0,
        intercept=0.0,
        quantity_definition=codes.DCM.ZScore,
    )


def _name_the_anatomy(parametric_map: hd.pm.ParametricMap) -> None:
    """The Frame Anatomy functional group (PS3.3 C.7.6.16.2.8); dcmqi takes it for granted and crashes without."""
    anatomy = Dataset()
    anatomy.FrameLaterality = "U"
    anatomy.AnatomicRegionSequence = [hd.sr.CodedConcept(*BRAIN)]
    parametric_map.SharedFunctionalGroupsSequence[0].FrameAnatomySequence = [anatomy]
    parametric_map.BodyPartExamined = "BRAIN"


def _name_the_sources(
    parametric_map: hd.pm.ParametricMap, images: Sequence[Dataset], algorithm: Algorithm, model_hash: str
) -> None:
    """Give each frame the image it belongs to (PS3.3 C.7.6.16.2.6), which highdicom leaves out of parametric maps."""
    if len(images) != len(parametric_map.PerFrameFunctionalGroupsSequence):
        return
    told = f"Calibrated anomaly map by {algorithm.name} {algorithm.version}. For research use only."
    if model_hash:
        told += f" Model SHA-256: {model_hash}."
    for groups, image in zip(parametric_map.PerFrameFunctionalGroupsSequence, images, strict=True):
        source = Dataset()
        source.ReferencedSOPClassUID, source.ReferencedSOPInstanceUID = image.SOPClassUID, image.SOPInstanceUID
        source.PurposeOfReferenceCodeSequence = [
            hd.sr.CodedConcept("121322", "DCM", "Source image for image processing operation")
        ]
        derivation = Dataset()
        derivation.DerivationDescription = told[:1024]
        derivation.DerivationCodeSequence = [hd.sr.CodedConcept("113071", "DCM", "Z-score")]
        derivation.SourceImageSequence = [source]
        groups.DerivationImageSequence = [derivation]
