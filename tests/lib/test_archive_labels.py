"""Labels on their way to the archive: what is sent once more, what follows what, and in which colours."""

# The fixtures are those of the datastore's own tests.
# ruff: noqa: F401, F811

import numpy as np
import pydicom
import pytest
import requests

from lib.dicomweb import AnomalyDICOMWebDatastore
from lib.errors import ArchiveUnreachable
from monailabel_app.calibration.bands import COLOURS, LABELS
from monailabel_app.io import images
from monailabel_app.io.dicom_colours import cielab
from tests.lib.test_dicomweb import archive, store, write_label


def segmentations(archive):
    """SOP instances of the segmentations that an archive has been sent, in the order of their coming."""
    return list(dict.fromkeys(str(item.SOPInstanceUID) for item in archive.instances if item.Modality == "SEG"))


def test_a_submission_whose_answer_was_lost_is_the_same_instance_again(store, archive, tmp_path):
    file = tmp_path / "label.nrrd"
    write_label(file, store.get_image_uri(archive.image_id), (3, 2, 1))
    keep = archive.store_instances

    def lost(datasets):
        keep(datasets)
        raise requests.ConnectionError("reset")

    archive.store_instances = lost
    for _ in range(2):
        with pytest.raises(ArchiveUnreachable):
            store.save_label(archive.image_id, str(file), "final", {})
    archive.store_instances = keep
    store.save_label(archive.image_id, str(file), "final", {})
    store.save_label(archive.image_id, str(file), "final", {})
    assert len(segmentations(archive)) == 1
    assert store.final_labels(archive.image_id) == {"final": 6}
    assert "replaced_series" not in store.get_label_info(archive.image_id, "final")
    write_label(file, store.get_image_uri(archive.image_id), (3, 2, 2))
    store.save_label(archive.image_id, str(file), "final", {})
    assert len(segmentations(archive)) == 2
    assert store.final_labels(archive.image_id) == {"final": 12}


@pytest.mark.parametrize("before", [False, True])
def test_a_label_whose_answer_was_lost_and_that_was_changed_is_known_as_replaced(store, archive, tmp_path, before):
    """Also after a restart, and where nothing is marked any more."""
    image, file, keep = store.get_image_uri(archive.image_id), tmp_path / "label.nrrd", archive.store_instances

    def lost(datasets):
        keep(datasets)
        raise requests.ConnectionError("reset")

    def submit(marked, lose=False):
        archive.store_instances = lost if lose else keep
        write_label(file, image, marked)
        if lose:
            with pytest.raises(ArchiveUnreachable):
                store.save_label(archive.image_id, str(file), "final", {})
        else:
            store.save_label(archive.image_id, str(file), "final", {})

    if before:
        submit((3, 2, 4))
    submit((3, 2, 1), lose=True)
    submit((3, 2, 1), lose=True)
    submit((3, 2, 2), lose=True)
    store = AnomalyDICOMWebDatastore(archive, {"Modality": "MR"}, cache_path=str(tmp_path / "cache"))
    submit((3, 2, 3))
    assert len(segmentations(archive)) == 3 + before
    series = list(dict.fromkeys(str(i.SeriesInstanceUID) for i in archive.instances if i.Modality == "SEG"))
    info = store.get_label_info(archive.image_id, "final")
    assert [*info["replaced_series"], info["SeriesInstanceUID"]] == series
    assert store.final_labels(archive.image_id) == {"final": 18}
    assert not store.get_image_info(archive.image_id).get("label_sent")
    submit((3, 2, 1), lose=True)
    submit((0, 0, 0))
    assert store.final_labels(archive.image_id) == {"final": 0}


def test_a_label_that_comes_through_does_not_hide_another_whose_answer_was_lost_meanwhile(store, archive, tmp_path):
    image, keep = store.get_image_uri(archive.image_id), archive.store_instances

    def submit(marked):
        file = tmp_path / f"label{marked}.nrrd"
        write_label(file, image, (3, 2, marked))
        return store.save_label(archive.image_id, str(file), "final", {})

    def slow(datasets):
        archive.store_instances = lost
        with pytest.raises(ArchiveUnreachable):
            submit(2)
        keep(datasets)

    def lost(datasets):
        keep(datasets)
        raise requests.ConnectionError("reset")

    archive.store_instances = slow
    submit(1)
    archive.store_instances = keep
    submit(3)
    series = {str(item.SeriesInstanceUID) for item in archive.instances if item.Modality == "SEG"}
    info = store.get_label_info(archive.image_id, "final")
    assert {*info["replaced_series"], info["SeriesInstanceUID"]} == series
    assert len(series) == 3
    assert store.final_labels(archive.image_id) == {"final": 18}


def test_who_goes_back_to_an_earlier_drawing_has_the_last_word_in_the_archive_too(store, archive, tmp_path):
    image, sent = store.get_image_uri(archive.image_id), []
    for marked in ((3, 2, 1), (3, 2, 2), (3, 2, 1), (3, 2, 1), (0, 0, 0), (3, 2, 1), (3, 2, 2)):
        write_label(tmp_path / "label.nrrd", image, marked)
        store.save_label(archive.image_id, str(tmp_path / "label.nrrd"), "final", {})
        sent.append(len(segmentations(archive)))
    assert sent == [1, 2, 3, 3, 3, 3, 4]
    info = store.get_label_info(archive.image_id, "final")
    series = list(dict.fromkeys(str(i.SeriesInstanceUID) for i in archive.instances if i.Modality == "SEG"))
    assert [*info["replaced_series"], info["SeriesInstanceUID"]] == series
    assert store.final_labels(archive.image_id) == {"final": 12}


@pytest.mark.parametrize("reviewed", [False, True])
def test_bands_of_suspicion_have_the_pages_colours(store, archive, tmp_path, reviewed):
    volume = images.read_volume(store.get_image_uri(archive.image_id))
    label = np.zeros(volume.shape, np.uint8)
    label[3], label[4], label[5] = 1, 2, 3
    images.write_labelmap(tmp_path / "label.nrrd", label, volume)
    named = [{"name": name, "idx": value} for name, value in LABELS.items()]
    result = {"label_names": dict(LABELS)}
    path = store.to_dicom_seg(archive.image_id, str(tmp_path / "label.nrrd"), named, result, reviewed)
    segments = pydicom.dcmread(path).SegmentSequence
    shown = {str(item.SegmentLabel): list(item.RecommendedDisplayCIELabValue) for item in segments}
    assert shown == {name: cielab(colour) for name, colour in COLOURS.items()}
