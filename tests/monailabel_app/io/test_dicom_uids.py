"""The same content is the same SOP instance, whenever and however often it is written; other content is another."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest

from monailabel_app.io.dicom_lesions import number_lesions
from monailabel_app.io.dicom_parametric_map import write_parametric_map
from monailabel_app.io.dicom_seg import write_dicom_seg
from monailabel_app.io.dicom_sr import write_dicom_sr
from tests.dicom_results import ALGORITHM, MODEL_HASH, small_finding, small_series

_WHEN = {"ContentDate", "ContentTime"}


@pytest.fixture(scope="module")
def series(tmp_path_factory):
    return small_series(tmp_path_factory.mktemp("uids") / "series")


@pytest.fixture
def folder(series) -> Path:
    return Path(series.files[0]).parent


def segmentation(path, folder, finding, algorithm=ALGORITHM, **told):
    label, names = number_lesions(finding)
    write_dicom_seg(path, label, finding.affine, folder, algorithm, told.pop("names", names), **told)


def parametric_map(path, folder, finding, algorithm=ALGORITHM, model_hash=MODEL_HASH, **told):
    write_parametric_map(path, finding.anomaly_map, finding.affine, folder, algorithm, model_hash, **told)


def report(path, folder, finding, algorithm=ALGORITHM, **told):
    write_dicom_sr(path, finding, folder, algorithm, **told)


def report_of_segments(path, folder, finding, algorithm=ALGORITHM, **told):
    segmentation(path.with_suffix(".seg"), folder, finding)
    write_dicom_sr(path, finding, folder, algorithm, path.with_suffix(".seg"), **told)


def written(write, path, *arguments, **told):
    write(path, *arguments, **told)
    return pydicom.dcmread(path)


WRITERS = [segmentation, parametric_map, report, report_of_segments]


@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)
def test_written_again_it_differs_in_nothing_but_the_time(series, folder, tmp_path, write):
    finding = small_finding(series)
    first, again = (written(write, tmp_path / f"{name}.dcm", folder, finding) for name in ("first", "again"))
    for dataset in (first, again):
        for name in _WHEN:
            delattr(dataset, name)
    assert first == again
    assert first.file_meta.MediaStorageSOPInstanceUID == first.SOPInstanceUID == again.SOPInstanceUID
    assert first.SOPInstanceUID.startswith("2.25.")
    assert first.SOPInstanceUID != first.SeriesInstanceUID


def moved(finding):
    shifted = np.roll(finding.mask, 1, axis=1)
    lesions = [replace(item, centroid_voxel=tuple(np.add(item.centroid_voxel, (0, 1, 0)))) for item in finding.lesions]
    return replace(finding, mask=shifted, anomaly_map=np.roll(finding.anomaly_map, 1, axis=1), lesions=tuple(lesions))


OTHERS = [
    *((write, lambda f: (moved(f), {})) for write in WRITERS),
    *((write, lambda f: (f, {"algorithm": replace(ALGORITHM, version="0.1.0+4567cdef")})) for write in WRITERS),
    *((write, lambda f: (f, {"description": "another"})) for write in WRITERS),
    (segmentation, lambda f: (f, {"algorithm": replace(ALGORITHM, reviewed=True)})),
    (segmentation, lambda f: (f, {"names": {1: "one", 2: "other"}})),
    (segmentation, lambda f: (f, {"labels": {1: "shown"}})),
    (segmentation, lambda f: (f, {"distinct": "1.2.3"})),
    (parametric_map, lambda f: (f, {"window": (0.0, 9.0)})),
    (parametric_map, lambda f: (f, {"model_hash": "f" * 64})),
    (parametric_map, lambda f: (f, {"distinct": "1.2.3"})),
    (report, lambda f: (replace(f, threshold=3.25), {})),
    (report, lambda f: (replace(f, p_value=0.5), {})),
    (report, lambda f: (replace(f, model_hash="f" * 64), {})),
    (report, lambda f: (replace(f, warnings=()), {})),
    (report, lambda f: (replace(f, settings={**f.settings, "operating_point": "specific"}), {})),
    (report, lambda f: (replace(f, lesions=f.lesions[:1]), {})),
]


def test_other_content_is_another_instance_of_another_series(series, folder, tmp_path):
    finding = small_finding(series)
    first = {write: written(write, tmp_path / f"{write.__name__}.dcm", folder, finding) for write in WRITERS}
    found = {(str(item.SOPInstanceUID), str(item.SeriesInstanceUID)) for item in first.values()}
    assert len(found) == len(WRITERS)
    for number, (write, change) in enumerate(OTHERS):
        changed, told = change(finding)
        other = written(write, tmp_path / f"{number}.dcm", folder, changed, **told)
        assert other.SOPInstanceUID != first[write].SOPInstanceUID, number
        found.add((str(other.SOPInstanceUID), str(other.SeriesInstanceUID)))
    assert len(found) == len(WRITERS) + len(OTHERS)


def test_the_images_decide_and_the_patient_does_not(series, folder, tmp_path):
    """A name that is corrected in the archive is no new result; and no identifier could be tried out for a name."""
    finding = small_finding(series)
    first = written(segmentation, tmp_path / "first.dcm", folder, finding)
    renamed = tmp_path / "renamed"
    renamed.mkdir()
    for file in folder.iterdir():
        slice_ = pydicom.dcmread(file)
        slice_.PatientName, slice_.PatientID, slice_.PatientBirthDate = "OTHER^NAME", "OTHER", "19010203"
        slice_.save_as(renamed / file.name)
    again = written(segmentation, tmp_path / "again.dcm", renamed, finding)
    assert again.PatientID == "OTHER"
    assert again.SOPInstanceUID == first.SOPInstanceUID
    elsewhere = small_series(tmp_path / "elsewhere", seed=9)
    other = written(segmentation, tmp_path / "other.dcm", tmp_path / "elsewhere", small_finding(elsewhere))
    assert other.SOPInstanceUID != first.SOPInstanceUID
