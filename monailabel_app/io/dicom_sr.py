"""A finding as a DICOM measurement report: TID 1500 (PS3.16) in a Comprehensive 3D SR.

One group of measurements for the scan (score, p-value, number and volume of lesions) and one for each lesion (volume,
peak and mean of the calibrated map), with the place of each lesion: the segment of a DICOM Segmentation where one is
given, else the point of its centre in the frame of reference of the series. The document is marked as preliminary and
unverified, states its intended use, and names deviations from healthy scans only, never a disease. A finding without a
lesion gives a report that says that none was found at this operating point.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import highdicom as hd
import numpy as np
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.sr.codedict import codes
from pydicom.uid import SegmentationStorage, generate_uid

from monailabel_app.errors import InvalidVolume, UnreadableVolume
from monailabel_app.io import dicom_codes
from monailabel_app.io.dicom_lesions import segment_name
from monailabel_app.io.dicom_limits import read_bounded
from monailabel_app.io.dicom_seg import CATEGORY, MANUFACTURER, TYPE, Algorithm, read_series_headers
from monailabel_app.io.dicom_uids import ObjectUids
from monailabel_app.types import Finding, Lesion

SERIES_DESCRIPTION = "Anomaly measurements (research use only)"
INTENDED_USE = (
    "For research use only; not a medical device. The report lists places that deviate from the healthy scans the "
    "model was calibrated on. It names no disease, and a place that is not listed is not thereby healthy."
)
_CONTAINS = hd.sr.RelationshipTypeValues.CONTAINS


def write_dicom_sr(
    path: str | Path,
    finding: Finding,
    series: str | Path,
    algorithm: Algorithm,
    segmentation: str | Path | None = None,
    description: str = SERIES_DESCRIPTION,
) -> str:
    """Write ``finding`` as a measurement report on the series in folder ``series``. Returns its SeriesInstanceUID.

    segmentation: the DICOM Segmentation of the same finding, written by ``write_dicom_seg`` either with one segment per
    lesion (``dicom_lesions.number_lesions``) or with one for all of them. Its segments are referred to, and lesions
    carry their tracking identifiers; sizes are compared, so that no lesion is told with another one's outline.

    Of the patient only what the standard copies from the source series (patient and study modules) is written.
    Raises UnreadableVolume (no image series, no segmentation) and InvalidVolume (the segmentation is of another series
    or another finding).
    """
    images = read_series_headers(series)
    segments = _Segments(segmentation, finding, images) if segmentation is not None else None
    identification = _identification(finding, algorithm)
    uids = ObjectUids("report", images, _told(finding, algorithm, segments, description))
    groups: list[hd.sr.MeasurementsAndQualitativeEvaluations] = [_scan_group(finding, images, identification, uids)]
    groups += [_lesion_group(lesion, finding, images, segments, identification, uids) for lesion in finding.lesions]
    report = hd.sr.MeasurementReport(
        observation_context=_observer(finding, algorithm),
        procedure_reported=codes.LN.BrainMRI,
        imaging_measurements=groups,
    )
    report[0].ContentSequence.append(_remarks(finding))
    document = hd.sr.Comprehensive3DSR(
        evidence=[*images, *([segments.header] if segments else [])],
        content=report[0],
        series_instance_uid=uids.of("series"),
        series_number=302,
        sop_instance_uid=uids.of("instance"),
        instance_number=1,
        manufacturer=MANUFACTURER,
        is_complete=True,
        is_final=False,
        is_verified=False,
        series_description=description[:64],
        manufacturer_model_name=algorithm.name[:64],
        software_versions=[version[:64] for version in (algorithm.version, finding.model_hash[:32]) if version],
        device_serial_number="0",
    )
    dicom_codes.name_local_scheme(document)
    document.save_as(str(path), write_like_original=False)
    return str(document.SeriesInstanceUID)


def _told(finding: Finding, algorithm: Algorithm, segments: _Segments | None, description: str) -> dict[str, object]:
    """All that the report says, which decides whether it is another one."""
    return {
        "algorithm": asdict(algorithm),
        "description": description,
        "model": [finding.model_id, finding.model_hash],
        "settings": dict(finding.settings),
        "threshold": finding.threshold,
        "score": [finding.anomaly_score, finding.p_value],
        "lesions": [asdict(lesion) for lesion in finding.lesions],
        "warnings": _warnings(finding),
        "segmentation": str(segments.header.SOPInstanceUID) if segments else "",
    }


class _Segments:
    """The segments of a DICOM Segmentation, checked against the finding they are to illustrate."""

    def __init__(self, path: str | Path, finding: Finding, images: Sequence[Dataset]):
        try:
            with open(path, "rb") as file:
                self.header = read_bounded(file, Path(path).stat().st_size)
        except (InvalidDicomError, OSError) as error:
            raise UnreadableVolume("expected a DICOM Segmentation, got a file that is none") from error
        if self.header.get("SOPClassUID") != SegmentationStorage:
            raise UnreadableVolume("expected a DICOM Segmentation, got another kind of DICOM object")
        referenced = {str(item.SeriesInstanceUID) for item in self.header.get("ReferencedSeriesSequence", ())}
        if str(images[0].SeriesInstanceUID) not in referenced:
            raise InvalidVolume("expected a segmentation of the reported series, got one of another series")
        self._by_number = {int(segment.SegmentNumber): segment for segment in self.header.SegmentSequence}
        self._together = len(self._by_number) == 1
        self._check(finding)

    def _check(self, finding: Finding) -> None:
        sizes = self._sizes()
        voxel_ml = float(abs(np.linalg.det(np.asarray(finding.affine, dtype=np.float64)[:3, :3]))) / 1000
        expected = {lesion.index: round(lesion.volume_ml / voxel_ml) for lesion in finding.lesions}
        right = sum(sizes.values()) == sum(expected.values()) if self._together else sizes == expected
        if not right:
            raise InvalidVolume(
                f"expected a segmentation of the {len(expected)} lesions of this finding ({sum(expected.values())} "
                f"voxels), got {len(sizes)} segments of {sum(sizes.values())} voxels: write it from the same finding"
            )
        # Only its identity is needed from here on.
        del self.header.PixelData

    def _sizes(self) -> dict[int, int]:
        frames = self.header.pixel_array.reshape(-1, int(self.header.Rows), int(self.header.Columns))
        sizes = dict.fromkeys(self._by_number, 0)
        for frame, groups in zip(frames, self.header.PerFrameFunctionalGroupsSequence, strict=True):
            number = int(groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber)
            sizes[number] += int(np.count_nonzero(frame))
        return sizes

    def reference(self, lesion: Lesion, source: hd.sr.SourceSeriesForSegmentation) -> hd.sr.ReferencedSegment:
        """The reference to the lesion's segment."""
        return hd.sr.ReferencedSegment(
            sop_class_uid=self.header.SOPClassUID,
            sop_instance_uid=self.header.SOPInstanceUID,
            segment_number=1 if self._together else lesion.index,
            source_series=source,
        )

    def tracking_uid(self, lesion: Lesion, lesions: int) -> str | None:
        """The tracking UID that the lesion shares with its segment; None where the segment holds others too."""
        if self._together and lesions > 1:
            return None
        return self._by_number[1 if self._together else lesion.index].get("TrackingUID")


def _observer(finding: Finding, algorithm: Algorithm) -> hd.sr.ObservationContext:
    device = hd.sr.DeviceObserverIdentifyingAttributes(
        # The same model is the same observer in every report.
        uid=generate_uid(entropy_srcs=[algorithm.name, algorithm.version, finding.model_hash]),
        name=algorithm.name,
        manufacturer_name=MANUFACTURER,
        model_name=finding.model_id,
    )
    return hd.sr.ObservationContext(
        observer_device_context=hd.sr.ObserverContext(
            observer_type=codes.DCM.Device, observer_identifying_attributes=device
        )
    )


def _identification(finding: Finding, algorithm: Algorithm) -> hd.sr.AlgorithmIdentification:
    parameters = {"model": finding.model_id, "model_sha256": finding.model_hash, "threshold": finding.threshold}
    parameters |= {name: value for name, value in finding.settings.items() if name not in parameters}
    told = [f"{name} = {_plain(value)}" for name, value in parameters.items() if value not in (None, "")]
    return hd.sr.AlgorithmIdentification(algorithm.name, algorithm.version, told)


def _plain(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, (float, np.floating)) else str(value)


def _scan_group(
    finding: Finding,
    images: Sequence[Dataset],
    identification: hd.sr.AlgorithmIdentification,
    uids: ObjectUids,
) -> hd.sr.MeasurementsAndQualitativeEvaluations:
    total = sum(lesion.volume_ml for lesion in finding.lesions)
    measurements = [
        *_measured(dicom_codes.SCAN_SCORE, finding.anomaly_score, dicom_codes.HEALTHY_SD),
        *_measured(dicom_codes.P_VALUE, finding.p_value, dicom_codes.NO_UNITS),
        *_measured(dicom_codes.NUMBER_OF_LESIONS, len(finding.lesions), dicom_codes.NO_UNITS),
        *_measured(codes.SCT.Volume, total, dicom_codes.MILLILITRE, codes.SCT.Total),
    ]
    return hd.sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=hd.sr.TrackingIdentifier(uid=uids.of("scan"), identifier="scan"),
        finding_sites=[_site("")],
        measurements=measurements,
        algorithm_id=identification,
        source_images=[hd.sr.SourceImageForMeasurementGroup.from_source_image(image) for image in images],
    )


def _lesion_group(
    lesion: Lesion,
    finding: Finding,
    images: Sequence[Dataset],
    segments: _Segments | None,
    identification: hd.sr.AlgorithmIdentification,
    uids: ObjectUids,
) -> hd.sr.VolumetricROIMeasurementsAndQualitativeEvaluations:
    series = hd.sr.SourceSeriesForSegmentation(str(images[0].SeriesInstanceUID))
    centre = np.asarray(lesion.centroid_ras_mm, dtype=np.float64) * (-1, -1, 1)
    uid = segments.tracking_uid(lesion, len(finding.lesions)) if segments else None
    uid = uid or uids.of(f"lesion {lesion.index}")
    where: dict[str, object]
    if segments:
        where = {"referenced_segment": segments.reference(lesion, series)}
    else:
        point = hd.sr.VolumeSurface(
            hd.sr.GraphicTypeValues3D.POINT,
            centre[None],
            frame_of_reference_uid=str(images[0].FrameOfReferenceUID),
            source_series=series,
        )
        where = {"referenced_volume_surface": point}
    group = hd.sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=hd.sr.TrackingIdentifier(uid=uid, identifier=segment_name(lesion.index)),
        finding_category=CATEGORY,
        finding_type=TYPE,
        finding_sites=[_site(lesion.region)],
        measurements=[
            *_measured(codes.SCT.Volume, lesion.volume_ml, dicom_codes.MILLILITRE),
            *_measured(codes.DCM.ZScore, lesion.peak_score, dicom_codes.HEALTHY_SD, codes.SCT.Maximum),
            *_measured(codes.DCM.ZScore, lesion.mean_score, dicom_codes.HEALTHY_SD, codes.SCT.Mean),
        ],
        algorithm_id=identification,
        **where,
    )
    # TID 1411 is extensible, and has no place of its own for words.
    if lesion.region:
        group[0].ContentSequence.append(_text(dicom_codes.REGION, lesion.region))
    if segments:
        # Viewers that cannot follow a reference to a segment show the measurements at this point.
        group[0].ContentSequence.append(
            hd.sr.Scoord3DContentItem(
                name=dicom_codes.CENTRE,
                graphic_type=hd.sr.GraphicTypeValues3D.POINT,
                graphic_data=centre[None],
                frame_of_reference_uid=str(images[0].FrameOfReferenceUID),
                relationship_type=_CONTAINS,
            )
        )
    place = ", ".join(f"{value:.1f}" for value in centre)
    group[0].ContentSequence.append(
        _text(dicom_codes.LOCATION, f"{place} mm to the patient's left, back and head (patient coordinates)")
    )
    return group


def _site(region: str) -> hd.sr.FindingSite:
    site = dicom_codes.site_of(region)
    return hd.sr.FindingSite(anatomic_location=site.structure, laterality=site.side)


def _measured(name, value: float, unit, derivation=None) -> Iterator[hd.sr.Measurement]:
    """The measurement; nothing where there is no number (a p-value without held-out healthy scans)."""
    if np.isfinite(value):
        number = int(value) if isinstance(value, (int, np.integer)) else float(value)
        yield hd.sr.Measurement(name=name, value=number, unit=unit, derivation=derivation)


def _remarks(finding: Finding) -> hd.sr.ContainerContentItem:
    """TID 1500's container of qualitative evaluations: the result in words, the intended use, the warnings."""
    container = hd.sr.ContainerContentItem(
        name=hd.sr.CodedConcept("C0034375", "UMLS", "Qualitative Evaluations"), relationship_type=_CONTAINS
    )
    container.ContentSequence = hd.sr.ContentSequence(
        [
            _text(codes.DCM.Summary, summary_of(finding)),
            _text(dicom_codes.INTENDED_USE, INTENDED_USE),
            *(_text(dicom_codes.WARNING, warning) for warning in _warnings(finding)),
        ]
    )
    return container


def summary_of(finding: Finding) -> str:
    """The result in one sentence, without a word on what it may mean for the patient."""
    point = finding.settings.get("operating_point")
    at = f"at the operating point '{point}'" if point else "at this operating point"
    limit = f"{at} (threshold {finding.threshold:.3g} healthy standard deviations)"
    if not finding.lesions:
        return f"No anomaly was found {limit}."
    total = sum(lesion.volume_ml for lesion in finding.lesions)
    places = "1 place deviates" if len(finding.lesions) == 1 else f"{len(finding.lesions)} places deviate"
    return f"{places} from healthy scans, {total:.2f} ml in all, {limit}."


def _warnings(finding: Finding) -> list[str]:
    told = list(finding.warnings)
    gate = finding.gate.sentence() if finding.gate is not None else ""
    if gate and gate not in told:
        told.insert(0, gate)
    return told


def _text(name, value: str) -> hd.sr.TextContentItem:
    return hd.sr.TextContentItem(name=name, value=value, relationship_type=_CONTAINS)
