"""The archive datastore against a client that answers from memory; the real Orthanc is in tests/real."""

import shutil
import threading
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import requests
from retrying import RetryError

from lib import archive_fetch, dicomweb
from lib.dicomweb import AnomalyDICOMWebDatastore
from lib.errors import ArchiveUnreachable, InvalidRequest, NotAllowed, UnknownImage
from lib.healthy import abnormal_scans, healthy_scans, info_counts
from lib.scoring.labelled_set import labelled_sets
from monailabel_app.errors import AnomalyAppError, InvalidVolume
from monailabel_app.io import images
from monailabel_app.io.dicom_seg import read_labelmap
from tests.monailabel_app.io.test_dicom_seg import ORIENTATIONS, write_series


class Archive:
    """What the datastore uses of a DICOMweb client."""

    base_url = "http://archive"

    def __init__(self, folder):
        self.instances = [pydicom.dcmread(path) for path in sorted(folder.iterdir())]
        for number, instance in enumerate(self.instances):
            # Not a constant image, which is refused as a scan.
            instance.PixelData = np.full(instance.Rows * instance.Columns, number, np.uint16).tobytes()
        self.asked = 0
        self.down = False
        self.most, self.pages = 10**6, True

    @property
    def image_id(self):
        return str(self.instances[0].SeriesInstanceUID)

    def search_for_series(self, search_filters, fields=(), limit=None, offset=0):
        self.asked += 1
        if self.down:
            raise requests.ConnectionError("down")
        found = {}
        for instance in self.instances:
            if all(str(instance.get(key, "")) == value for key, value in search_filters.items()):
                header = pydicom.Dataset()
                header.SeriesInstanceUID = instance.SeriesInstanceUID
                header.StudyInstanceUID = instance.StudyInstanceUID
                header.Modality = instance.Modality
                for name in fields:
                    if name in instance:
                        header[name] = instance[name]
                found[str(instance.SeriesInstanceUID)] = header.to_json_dict()
        # Most at once, as archives have it, whatever is asked for; some know no pages.
        pages = slice(offset, offset + min(limit or 10**6, self.most)) if self.pages else slice(None)
        return list(found.values())[pages]

    def retrieve_series(self, study, series):
        return [instance for instance in self.instances if instance.SeriesInstanceUID == series]

    def retrieve_series_metadata(self, study, series):
        self.asked += 1
        headers = [instance for instance in self.instances if instance.SeriesInstanceUID == series]
        return [header.to_json_dict(bulk_data_element_handler=lambda _: "x") for header in headers]

    def store_instances(self, datasets):
        self.instances += datasets


@pytest.fixture
def archive(tmp_path):
    write_series(tmp_path / "series", ORIENTATIONS["sagittal"])
    return Archive(tmp_path / "series")


@pytest.fixture
def store(archive, tmp_path):
    return AnomalyDICOMWebDatastore(archive, {"Modality": "MR"}, cache_path=str(tmp_path / "cache"))


def write_label(path, scan, marked):
    volume = images.read_volume(scan)
    label = np.zeros(volume.shape, np.uint8)
    label[tuple(slice(2, 2 + count) for count in marked)] = 1
    images.write_labelmap(path, label, volume)
    return label


def test_a_series_is_an_image(store, archive):
    assert store.list_images() == [archive.image_id]
    assert nib.load(store.get_image_uri(archive.image_id)).shape == (20, 18, 7)
    assert store.status() == {"total": 1, "completed": 0, "label_tags": {}}


def test_a_submitted_label_becomes_a_segmentation_in_the_archive(store, archive, tmp_path):
    label = write_label(tmp_path / "label.nrrd", store.get_image_uri(archive.image_id), (3, 2, 1))
    info = {"label_info": [{"name": "anomaly", "idx": 1}], "model": "ddpm_t1"}
    store.save_label(archive.image_id, str(tmp_path / "label.nrrd"), "final", info)

    segmentation = archive.instances[-1]
    assert segmentation.Modality == "SEG"
    assert segmentation.pixel_array.sum() == label.sum()
    assert segmentation.SegmentSequence[0].SegmentedPropertyCategoryCodeSequence[0].CodeValue == "49755003"
    assert "ddpm_t1" in segmentation.ManufacturerModelName
    # Counted at once, and handed back without asking the archive again.
    assert store.get_labeled_images() == [archive.image_id]
    assert store.get_unlabeled_images() == []
    saved, _ = read_labelmap(store.get_label_uri(archive.image_id, "final"))
    np.testing.assert_array_equal(saved, label)


def test_other_tags_stay_here(store, archive, tmp_path):
    write_label(tmp_path / "label.nii.gz", store.get_image_uri(archive.image_id), (1, 1, 1))
    before = len(archive.instances)
    store.save_label(archive.image_id, str(tmp_path / "label.nii.gz"), "anomaly_map", {})
    assert len(archive.instances) == before
    assert store.get_labeled_images() == []


def test_the_archive_is_not_asked_at_every_info(store, archive):
    store.status()
    asked = archive.asked
    for _ in range(10):
        store.status()
    assert archive.asked == asked


def test_a_series_stored_later_shows_up(store, archive, monkeypatch):
    store.list_images()
    monkeypatch.setattr(dicomweb, "LISTING_SECONDS", -1.0)
    later = pydicom.dcmread(archive.instances[0].filename)
    later.SeriesInstanceUID = "1.2.3"
    archive.instances.append(later)
    assert store.list_images() == [archive.image_id, "1.2.3"]


def test_an_archive_that_is_down_is_said_and_info_still_answers(store, archive):
    archive.down = True
    assert "did not answer" in store.status()["error"]
    with pytest.raises(ArchiveUnreachable, match="did not answer"):
        store.get_image_uri(archive.image_id)


def test_an_unknown_series_is_said(store):
    with pytest.raises(UnknownImage, match=r"1\.2\.3"):
        store.get_image_uri("1.2.3")
    with pytest.raises(InvalidRequest, match="SeriesInstanceUID"):
        store.get_image_uri("../../etc")


def test_an_archive_that_is_down_is_not_asked_again_at_once_but_later(store, archive, monkeypatch):
    archive.down = True
    store.status()
    asked = archive.asked
    store.status()
    assert archive.asked == asked
    archive.down = False
    monkeypatch.setattr(dicomweb, "LISTING_SECONDS", -1.0)
    assert store.status()["total"] == 1


def test_an_empty_final_label_stays_here_and_says_healthy_also_after_a_restart(store, archive, tmp_path):
    label = write_label(tmp_path / "label.nrrd", store.get_image_uri(archive.image_id), (0, 0, 0))
    before = len(archive.instances)
    store.save_label(archive.image_id, str(tmp_path / "label.nrrd"), "final", {})
    assert len(archive.instances) == before
    for at in (store, AnomalyDICOMWebDatastore(archive, {"Modality": "MR"}, cache_path=str(tmp_path / "cache"))):
        assert at.get_labeled_images() == [archive.image_id]
        assert at.get_unlabeled_images() == []
        assert at.status()["completed"] == 1
        assert at.get_image_info(archive.image_id)["healthy"] is True
        saved, _ = read_labelmap(at.get_label_uri(archive.image_id, "final"))
        np.testing.assert_array_equal(saved, label)
        (scan,) = healthy_scans(at, {}).scans
        assert (scan.id, scan.reason, scan.patient) == (archive.image_id, "reviewed", "P1")
    store.remove_label(archive.image_id, "final")
    assert store.get_labeled_images() == []
    assert "healthy" not in store.get_image_info(archive.image_id)
    with pytest.raises(UnknownImage):
        store.remove_label(archive.image_id, "final")


def test_a_series_can_be_marked_before_it_was_fetched(store, archive, tmp_path):
    store.update_image_info(archive.image_id, {"healthy": "true"})
    again = AnomalyDICOMWebDatastore(archive, {"Modality": "MR"}, cache_path=str(tmp_path / "cache"))
    assert [scan.reason for scan in healthy_scans(again, {}).scans] == ["marked"]
    with pytest.raises(UnknownImage):
        store.update_image_info("1.2.3", {"healthy": True})


def test_no_series_is_fetched_to_tell_which_are_healthy(store, archive, tmp_path):
    for instance in archive.instances:
        instance.IssuerOfPatientID = "CLINIC"
    (tmp_path / "list.tsv").write_text("patient_id\tgroup\nP1\tcontrol\n")
    (scan,) = healthy_scans(store, {"healthy_list": str(tmp_path / "list.tsv")}).scans
    assert not list((tmp_path / "cache").glob("*.nii.gz"))
    assert (scan.reason, scan.patient) == ("listed", "P1")
    (scan,) = healthy_scans(store, {"healthy": "all"}).scans
    assert scan.patient == "P1^^^CLINIC"
    assert scan.path.is_file()


@pytest.mark.parametrize(("marked", "verdict"), [((2, 2, 1), "contaminated"), ((0, 0, 0), "scans")])
def test_a_segmentation_made_elsewhere_is_looked_into_before_its_series_is_trained_on(
    store, archive, tmp_path, monkeypatch, marked, verdict
):
    write_label(tmp_path / "label.nrrd", store.get_image_uri(archive.image_id), marked)
    path = store.to_dicom_seg(archive.image_id, str(tmp_path / "label.nrrd"), None, {}, reviewed=True)
    archive.instances.append(pydicom.dcmread(path))
    monkeypatch.setattr(dicomweb, "LISTING_SECONDS", -1.0)
    quick = healthy_scans(store, {"healthy": "all"}, inspect=False)
    assert [scan.id for scan in quick.contaminated] == [archive.image_id]
    found = getattr(healthy_scans(store, {"healthy": "all"}), verdict)
    assert [scan.id for scan in found] == [archive.image_id]


def test_a_lesion_submitted_here_contaminates(store, archive, tmp_path):
    write_label(tmp_path / "label.nrrd", store.get_image_uri(archive.image_id), (2, 2, 1))
    store.save_label(archive.image_id, str(tmp_path / "label.nrrd"), "final", {})
    selection = healthy_scans(store, {"healthy": "all"})
    assert (selection.scans, [scan.id for scan in selection.contaminated]) == ([], [archive.image_id])
    assert abnormal_scans(store) == {archive.image_id}


def test_an_archive_that_is_down_leaves_info_an_answer_about_healthy_scans(store, archive):
    archive.down = True
    status = info_counts(store, {"healthy": "all"}, store.status(), trains=True)
    assert "did not answer" in status["healthy"]["error"]


def test_processes_share_the_cache_and_fetch_a_series_once_and_whole(archive, tmp_path):
    """Two datastores as of two processes; what a killed download left is not taken for the series."""
    cache = str(tmp_path / "cache")
    first, second = (AnomalyDICOMWebDatastore(archive, {"Modality": "MR"}, cache_path=cache) for _ in range(2))
    left = Path(first._datastore.image_path()) / f"{archive.image_id}.partial"
    left.mkdir()
    archive.instances[0].save_as(left / "one.dcm")
    fetched, retrieve = [], archive.retrieve_series

    def slowly(study, series):
        fetched.append(series)
        time.sleep(0.2)
        return retrieve(study, series)

    archive.retrieve_series = slowly
    paths = []
    threads = [
        threading.Thread(target=lambda store=store: paths.append(store.get_image_uri(archive.image_id)))
        for store in (first, second)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert fetched == [archive.image_id]
    assert len(set(paths)) == 1
    assert nib.load(paths[0]).shape == (20, 18, 7)
    assert not left.exists()

    second.add_to_image_info(archive.image_id, "anomaly", {"one": {"score": 1.0}})
    first.update_image_info(archive.image_id, {"healthy": True})
    info = second.get_image_info(archive.image_id)
    assert (info["anomaly"], info["healthy"]) == ({"one": {"score": 1.0}}, True)


def test_the_archives_scans_are_a_data_set_like_a_folders(store, archive, tmp_path):
    write_label(tmp_path / "label.nii.gz", store.get_image_uri(archive.image_id), (3, 2, 1))
    store.save_label(archive.image_id, str(tmp_path / "label.nii.gz"), "final", {})
    (dataset,) = labelled_sets(store, healthy_scans(store, {}), sequence="t1")
    (scan,) = dataset.cases
    assert scan.id == archive.image_id
    assert nib.load(scan.image).shape == nib.load(scan.labels[0]).shape == (20, 18, 7)


def test_what_lists_show_of_a_series_is_told_without_fetching_it(store, archive, tmp_path):
    for instance in archive.instances:
        instance.SeriesDescription, instance.StudyDate = "T1 axial", "20200101"
    info = store.series_info(archive.image_id)
    assert info["SeriesDescription"] == "T1 axial"
    assert info["StudyInstanceUID"] == str(archive.instances[0].StudyInstanceUID)
    assert (info["PatientID"], info["StudyDate"]) == ("P1", "20200101")
    assert store.series_info("1.2.3") == {}
    assert not list((tmp_path / "cache").rglob("*.dcm"))


def test_a_result_in_the_archive_is_no_label(store, archive, tmp_path, monkeypatch):
    write_label(tmp_path / "label.nrrd", store.get_image_uri(archive.image_id), (2, 2, 1))
    path = store.to_dicom_seg(archive.image_id, str(tmp_path / "label.nrrd"), None, {})
    store.store([path])
    monkeypatch.setattr(dicomweb, "LISTING_SECONDS", -1.0)
    assert archive.instances[-1].Modality == "SEG"
    assert store.get_labeled_images() == store.reviewed_images() == []
    assert store.final_labels(archive.image_id) == {}
    assert abnormal_scans(store) == set()
    assert store.datalist() == []


def test_a_read_only_server_sends_nothing(store, archive, monkeypatch):
    before = len(archive.instances)
    monkeypatch.setattr(dicomweb.platform, "MONAI_LABEL_DATASTORE_READ_ONLY", True)
    with pytest.raises(NotAllowed, match="READ_ONLY"):
        store.store([])
    assert len(archive.instances) == before


@pytest.mark.parametrize(
    ("break_it", "told"),
    [
        (lambda instance: delattr(instance, "ImagePositionPatient"), "position"),
        (lambda instance: delattr(instance, "PixelSpacing"), "pixel spacing"),
        (lambda instance: setattr(instance, "NumberOfFrames", 2), "multi-frame"),
        (lambda instance: setattr(instance, "SamplesPerPixel", 3), "colour"),
    ],
)
def test_a_series_that_is_no_scan_is_named(store, archive, break_it, told):
    for instance in archive.instances:
        break_it(instance)
    with pytest.raises(AnomalyAppError, match=told):
        store.get_image_uri(archive.image_id)


def test_an_incomplete_series_is_named_and_fetched_again_when_it_is_whole(store, archive):
    gone = archive.instances.pop(3)
    with pytest.raises(InvalidVolume, match="slices"):
        store.get_image_uri(archive.image_id)
    archive.instances.append(gone)
    store.get_image_uri(archive.image_id)
    shutil.rmtree(store.series_folder(archive.image_id))
    assert len(list(store.series_folder(archive.image_id).iterdir())) == 7


def test_the_newest_review_counts_also_where_the_former_ones_segmentation_is_in_the_archive(
    store, archive, tmp_path, monkeypatch
):
    monkeypatch.setattr(dicomweb, "LISTING_SECONDS", -1.0)
    for marked in ((3, 2, 1), (2, 2, 1), (0, 0, 0)):
        write_label(tmp_path / "label.nrrd", store.get_image_uri(archive.image_id), marked)
        store.save_label(archive.image_id, str(tmp_path / "label.nrrd"), "final", {})
    assert sum(instance.Modality == "SEG" for instance in archive.instances) == 2
    for at in (store, AnomalyDICOMWebDatastore(archive, {"Modality": "MR"}, cache_path=str(tmp_path / "cache"))):
        assert at.final_labels(archive.image_id) == {"final": 0}
        assert [scan.reason for scan in healthy_scans(at, {}).scans] == ["reviewed"]
        assert abnormal_scans(at) == set()


def test_an_archive_that_stays_busy_is_said(store, archive, monkeypatch):
    def busy(**kwargs):
        raise RetryError("503")

    monkeypatch.setattr(archive, "search_for_series", busy)
    with pytest.raises(ArchiveUnreachable, match="busy"):
        store.list_images()


@pytest.mark.parametrize("odd", [{}, {"0020000E": {"vr": "UI"}}, {"0020000E": {"vr": "UI", "Value": ["../x"]}}, [1]])
def test_a_series_that_the_archive_lists_without_a_uid_does_not_hide_the_others(store, archive, monkeypatch, odd):
    search = archive.search_for_series
    monkeypatch.setattr(archive, "search_for_series", lambda **asked: [odd, *search(**asked)])
    assert store.list_images() == [archive.image_id]
    assert store.get_labeled_images() == []


@pytest.mark.parametrize(("most", "pages"), [(2, True), (5, True), (10**6, False)])
def test_lists_are_read_to_their_end_however_the_archive_divides_them(store, archive, tmp_path, most, pages):
    first = archive.instances[0]
    for number in range(1, 5):
        later = pydicom.dcmread(first.filename)
        later.SeriesInstanceUID = f"1.2.{number}"
        archive.instances.append(later)
    write_label(tmp_path / "label.nrrd", store.get_image_uri(archive.image_id), (2, 2, 1))
    drawn = pydicom.dcmread(store.to_dicom_seg(archive.image_id, str(tmp_path / "label.nrrd"), None, {}, reviewed=True))
    for number in range(5):
        other = pydicom.Dataset()
        other.SOPInstanceUID, other.SeriesInstanceUID = f"1.3.{number}.1", f"1.3.{number}"
        other.StudyInstanceUID, other.Modality = first.StudyInstanceUID, "SEG"
        archive.instances.append(other)
    archive.instances.append(drawn)
    archive.most, archive.pages = most, pages
    assert store.list_images() == [archive.image_id, *(f"1.2.{number}" for number in range(1, 5))]
    assert store.get_labeled_images() == [archive.image_id]


def test_a_list_longer_than_any_archives_is_refused_not_cut(store, archive, monkeypatch):
    later = pydicom.dcmread(archive.instances[0].filename)
    later.SeriesInstanceUID = "1.2.3"
    archive.instances.append(later)
    monkeypatch.setattr(archive_fetch, "MOST_SERIES", 1)
    assert "SEARCH_FILTER" in store.status()["error"]


def test_a_segmentation_that_cannot_be_read_does_not_hide_the_others(store, archive, tmp_path):
    write_label(tmp_path / "label.nrrd", store.get_image_uri(archive.image_id), (2, 2, 1))
    other = pydicom.Dataset()
    other.SOPInstanceUID, other.SeriesInstanceUID, other.Modality = "1.3.1", "1.3", "SEG"
    other.StudyInstanceUID = archive.instances[0].StudyInstanceUID
    archive.instances.append(other)
    path = store.to_dicom_seg(archive.image_id, str(tmp_path / "label.nrrd"), None, {}, reviewed=True)
    archive.instances.append(pydicom.dcmread(path))
    known = archive.retrieve_series_metadata
    damaged = [{"00081115": {"vr": "SQ", "Value": ["no sequence"]}, "0020000E": 5}]
    archive.retrieve_series_metadata = lambda study, uid: damaged if uid == "1.3" else known(study, uid)
    assert store.get_labeled_images() == [archive.image_id]
