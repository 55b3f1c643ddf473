"""Labels on their way to the archive: what is sent once more, what follows what, and in which colours."""

# The fixtures are those of the datastore's own tests.
# ruff: noqa: F401, F811

import numpy as np
import pydicom
import pytest
import requests

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
