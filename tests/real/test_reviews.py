"""Worklist, results and reviews of an archive: listed without fetching, decided, stored back as a segmentation."""

from dataclasses import replace

import highdicom as hd
import numpy as np
import pytest
import requests
import SimpleITK as sitk

from monailabel_app.io.images import read_volume
from tests.dicom_factory import write_series
from tests.real.conftest import STAND_IN
from tests.real.phantom import with_hook
from tests.real.test_orthanc import eventually, segmentations_of

pytestmark = pytest.mark.orthanc


@pytest.fixture
def series(orthanc, healthy_scan, tmp_path):
    """A new patient's series in the archive."""
    volume, _ = with_hook(read_volume(healthy_scan))
    # Other voxels than the other tests': an analysis of the same ones would be at hand.
    volume = replace(volume, data=volume.data * np.float32(0.97))
    series = write_series(tmp_path / "series", volume, plane="sagittal", seed=911)
    orthanc.upload(series.files)
    return series


def study_of(server, series):
    found = server.get(f"/anomaly/studies?search={series.series_uid}").json()["studies"]
    return found[0] if found else None


def review(server, series, **changes):
    body = {"model": STAND_IN, "reader": "anna", "final": True, **changes}
    return requests.put(f"{server.url}/anomaly/reviews/{series.series_uid}", json=body, timeout=300)


def test_a_series_from_the_worklist_to_a_segmentation_in_the_archive(server, orthanc, series, tmp_path):
    assert eventually(lambda: study_of(server, series) is not None)
    study = study_of(server, series)
    assert study["state"] == "new"
    assert study["dicom"]["StudyInstanceUID"] == series.study_uid
    # Listed from what the archive says; the series itself is fetched when somebody asks for its voxels.
    fetched = server.get("/datastore/?output=all").json()["objects"]
    assert series.series_uid not in fetched
    assert review(server, series, final=False, comment="before any analysis").status_code == 200

    address = f"/anomaly/results/{series.series_uid}"
    assert server.get(address).status_code == 404
    assert server.infer(STAND_IN, params={"image": series.series_uid, "output": "json"}).status_code == 200
    assert study_of(server, series)["state"] == "analysed"
    found = server.get(address).json()
    assert found["finding"]["lesion_count"] == 1
    reply = server.get(found["files"]["mask"].replace(".nii.gz", ".nrrd"))
    (tmp_path / "mask.nrrd").write_bytes(reply.content)
    assert sitk.ReadImage(str(tmp_path / "mask.nrrd")).GetSize() == series.volume.shape
    assert server.get(found["files"]["scan"]).status_code == 200

    lesion = {"peak_voxel": found["finding"]["lesions"][0]["peak_voxel"], "decision": "accept"}
    done = review(server, series, lesions=[lesion])
    assert done.status_code == 200, done.text
    assert study_of(server, series)["state"] == "reviewed"
    (seg,) = segmentations_of(orthanc, series)
    assert isinstance(seg, hd.seg.Segmentation)
    assert np.count_nonzero(seg.pixel_array) > 0

    # The reader's second thought: nothing abnormal. What the archive has, it keeps, and that is said.
    again = review(server, series, rest="reject")
    assert again.status_code == 200, again.text
    assert any("stays in the archive" in text for text in again.json()["warnings"])
    assert len(segmentations_of(orthanc, series)) == 1
    assert study_of(server, series)["review"]["rejected"] == 1


def test_what_is_no_series_is_refused(server):
    for image in ("scan1", "1.2.x"):
        assert server.get(f"/anomaly/results/{image}").status_code == 400
        assert "SeriesInstanceUID" in server.get(f"/anomaly/results/{image}").json()["detail"]
