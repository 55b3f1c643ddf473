"""Which scans of a studies folder are taken as healthy: every source, every contradiction, and what undoes them."""

import nibabel as nib
import numpy as np
import pytest

from lib.datastore import AnomalyLocalDatastore
from lib.errors import InvalidRequest, UnknownImage
from lib.healthy import abnormal_scans, check_conf, contradiction, healthy_scans, info_counts
from monailabel_app.errors import InvalidSettings, InvalidVolume, TrainingFailed, UnreadableVolume

SHAPE = (16, 17, 8)
AFFINE = np.diag([2.0, 3.0, 4.0, 1.0])
ALL = {"healthy": "all"}


def write(path, marked=0, affine=AFFINE, shape=SHAPE, dtype=np.uint8):
    data = np.zeros(shape, dtype)
    data.reshape(-1)[:marked] = 1
    nib.save(nib.Nifti1Image(data, affine), path)
    return str(path)


@pytest.fixture
def store(tmp_path):
    """Three scans: a, b and sub-01_T1w."""
    store = AnomalyLocalDatastore(str(tmp_path / "studies"), extensions=["*.nii.gz", "*.nii", "*.nrrd"])
    for number, name in enumerate(("a", "b", "sub-01_T1w"), 1):
        store.add_image(name, write(tmp_path / f"{number}.nii.gz", marked=number), {})
    return store


@pytest.fixture
def submit(store, tmp_path):
    def submit(image, marked=0, tag="final", **kwargs):
        return store.save_label(image, write(tmp_path / "label.nii.gz", marked, **kwargs), tag, {})

    return submit


def reasons(store, conf=None):
    return {scan.id: scan.reason for scan in healthy_scans(store, conf or {}).scans}


def contaminated(store, conf=None):
    return {scan.id: scan.reason for scan in healthy_scans(store, conf or {}).contaminated}


def listed(tmp_path, text):
    path = tmp_path / "list.csv"
    path.write_text(text)
    return {"healthy_list": str(path)}


def test_nothing_is_healthy_before_somebody_says_so(store):
    assert reasons(store) == {}
    assert healthy_scans(store, {}).left_out == {"nobody said that it is healthy": 3}


def test_the_whole_folder(store):
    assert reasons(store, ALL) == {"a": "all", "b": "all", "sub-01_T1w": "all"}


def test_an_empty_final_label_says_reviewed_and_marks_the_image(store, submit):
    submit("a")
    assert reasons(store) == {"a": "reviewed"}
    info = store.get_image_info("a")
    assert info["healthy"] is True
    assert info["healthy_reason"] == "reviewed: nothing abnormal"
    assert isinstance(info["healthy_ts"], int)
    label = store.get_label_info("a", "final")
    assert (label["voxels"], label["empty"]) == (0, True)


@pytest.mark.parametrize("how", ["submitted anew", "removed"])
def test_a_verdict_taken_back_clears_the_mark(store, submit, how):
    submit("a")
    if how == "removed":
        store.remove_label("a", "final")
    else:
        submit("a", marked=3)
    assert "healthy" not in store.get_image_info("a")
    assert reasons(store) == {}
    assert contaminated(store) == {}


def test_an_empty_label_removed_by_hand_does_not_leave_its_scan_healthy(store, submit, tmp_path):
    submit("a")
    (tmp_path / "studies" / "labels" / "final" / "a.nii.gz").unlink()
    assert reasons(store) == {}


@pytest.mark.parametrize("tag", ["original", "anomaly_map", "finals"])
def test_an_empty_label_that_is_not_final_says_nothing(store, submit, tag):
    submit("a", tag=tag)
    assert reasons(store) == {}


def test_a_readers_own_final_label_counts(store, submit):
    submit("a", tag="final_anna")
    assert reasons(store) == {"a": "reviewed"}
    submit("a", marked=2, tag="final-ben")
    assert reasons(store) == {}
    assert contaminated(store) == {"a": "reviewed"}
    assert "healthy" not in store.get_image_info("a")
    store.remove_label("a", "final-ben")
    assert reasons(store) == {"a": "reviewed"}


@pytest.mark.parametrize("value", [True, "true", 1, "yes"])
def test_an_image_marked_healthy(store, value):
    store.update_image_info("a", {"healthy": value})
    assert store.get_image_info("a")["healthy"] is True
    assert reasons(store) == {"a": "marked"}
    store.update_image_info("a", {"healthy": None})
    assert "healthy" not in store.get_image_info("a")
    assert reasons(store) == {}


def test_a_mark_set_by_hand_outlives_the_labels(store, submit):
    store.update_image_info("a", {"healthy": True})
    submit("a", marked=3)
    assert contaminated(store) == {"a": "marked"}
    assert contradiction(store, {}, "a") == (
        "this scan is marked as healthy and carries a final label that is not empty; it is left out of training"
    )
    store.remove_label("a", "final")
    assert reasons(store) == {"a": "marked"}


def test_a_mark_taken_back_leaves_what_the_label_says(store, submit):
    submit("a")
    store.update_image_info("a", {"healthy": False})
    assert reasons(store) == {}
    store.update_image_info("a", {"healthy": None})
    assert reasons(store) == {"a": "reviewed"}
    assert store.get_image_info("a")["healthy"] is True


def test_marked_as_not_healthy_overrules_everything(store, submit, tmp_path):
    submit("a")
    store.update_image_info("a", {"healthy": False})
    selection = healthy_scans(store, {**ALL, **listed(tmp_path, "id\na\n")})
    assert [scan.id for scan in selection.scans] == ["b", "sub-01_T1w"]
    assert selection.left_out == {"image information says that it is not healthy": 1}


@pytest.mark.parametrize("value", ["maybe", 2, [True], {}])
def test_a_mark_that_is_neither_is_refused(store, value):
    with pytest.raises(InvalidRequest, match="true, false or null"):
        store.update_image_info("a", {"healthy": value})


def test_a_mark_with_the_upload(store, tmp_path):
    scan = write(tmp_path / "c.nii.gz", marked=5)
    store.add_image("c", scan, {"healthy": "true"})
    assert reasons(store) == {"c": "marked"}
    store.add_image("c", scan, {"healthy": "no"})
    assert reasons(store, ALL).keys() == {"a", "b", "sub-01_T1w"}


def test_nobody_can_pose_as_a_reviewer_or_as_a_count(store, submit):
    store.update_image_info("a", {"healthy": True, "healthy_reason": "reviewed: nothing abnormal"})
    assert reasons(store) == {"a": "marked"}
    submit("b", marked=2)
    store.update_label_info("b", "final", {"voxels": 0, "empty": True, "note": "x"})
    assert abnormal_scans(store) == {"b"}
    assert store.get_label_info("b", "final")["note"] == "x"


def test_a_list_and_its_patients(store, tmp_path):
    conf = listed(tmp_path, "image,diagnosis,patient\na,control,P1\nb,patient,P2\nx,control,P3\n")
    selection = healthy_scans(store, conf)
    assert [(scan.id, scan.patient, scan.reason) for scan in selection.scans] == [("a", "P1", "listed")]
    assert selection.left_out == {"the list says that it is not healthy": 1, "nobody said that it is healthy": 1}
    assert (selection.unmatched_rows, selection.images_without_row) == (1, 1)


def test_a_list_read_again_after_a_change(store, tmp_path):
    conf = listed(tmp_path, "image\na\n")
    assert reasons(store, conf) == {"a": "listed"}
    listed(tmp_path, "image\na\nb\n")
    assert reasons(store, conf) == {"a": "listed", "b": "listed"}


def test_a_listed_scan_with_a_lesion_is_reported_and_not_trained_on(store, submit, tmp_path):
    submit("a", marked=1)
    conf = listed(tmp_path, "image\na\nb\n")
    assert reasons(store, conf) == {"b": "listed"}
    assert contaminated(store, conf) == {"a": "listed"}
    assert "a" not in reasons(store, ALL)


def test_patients_come_from_the_information_the_name_or_the_scan(store):
    store.update_image_info("a", {"PatientID": "P7"})
    selection = healthy_scans(store, ALL)
    assert {scan.id: scan.patient for scan in selection.scans} == {"a": "P7", "b": "b", "sub-01_T1w": "sub-01"}


def test_scans_have_their_file_and_keep_their_id_out_of_logs(store):
    (scan, *_), text = healthy_scans(store, ALL).scans, repr(healthy_scans(store, ALL))
    assert scan.path.name == "a.nii.gz"
    assert scan.path.is_file()
    assert "sub-01" not in text


def test_a_label_put_into_the_folder_is_counted_and_a_broken_one_is_not_taken_for_empty(store, tmp_path):
    folder = tmp_path / "studies" / "labels" / "final"
    write(folder / "a.nii.gz")
    write(folder / "b.nii.gz", marked=1)
    (folder / "sub-01_T1w.nii.gz").write_text("no image")
    store.refresh()
    assert reasons(store, ALL) == {"a": "reviewed"}
    assert contaminated(store, ALL) == {"b": "all", "sub-01_T1w": "all"}
    write(folder / "a.nii.gz", marked=2)
    assert reasons(store, ALL) == {}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"shape": (16, 17, 9)}, "16x17x8 voxels.*16x17x9"),
        ({"affine": np.diag([2.0, 3.0, 5.0, 1.0])}, "7 mm elsewhere"),
        ({"dtype": np.float32, "shape": (16, 17, 8, 2)}, "3-D"),
    ],
)
def test_a_final_label_on_another_grid_is_refused_and_nothing_is_stored(store, submit, changes, words):
    with pytest.raises(InvalidVolume, match=words):
        submit("a", **changes)
    assert store.get_labels_by_image_id("a") == {}
    assert reasons(store) == {}


def test_an_unreadable_or_unattached_final_label_is_refused(store, submit, tmp_path):
    (tmp_path / "x.nii.gz").write_text("no image")
    with pytest.raises(UnreadableVolume):
        store.save_label("a", str(tmp_path / "x.nii.gz"), "final", {})
    with pytest.raises(UnknownImage):
        submit("nobody")
    with pytest.raises(UnknownImage):
        store.update_image_info("nobody", {"healthy": True})
    assert store.get_labels_by_image_id("a") == {}


def test_verdicts_are_there_again_after_a_restart(store, submit, tmp_path):
    submit("a")
    submit("b", marked=2)
    store.update_image_info("sub-01_T1w", {"healthy": True})
    again = AnomalyLocalDatastore(str(tmp_path / "studies"), extensions=["*.nii.gz"])
    assert reasons(again) == {"a": "reviewed", "sub-01_T1w": "marked"}
    assert abnormal_scans(again) == {"b"}


def test_another_scan_under_a_used_id_is_not_healthy_and_the_former_one_stays_so(store, submit, tmp_path):
    submit("a")
    store.add_image("a", write(tmp_path / "other.nii.gz", marked=9), {})
    (kept,) = reasons(store)
    assert kept.startswith("a_replaced_")
    assert "healthy" not in store.get_image_info("a")


def test_too_few_patients_is_an_error_that_says_how_to_add_some(store, submit):
    submit("a", marked=1)
    selection = healthy_scans(store, ALL)
    assert selection.too_few
    with pytest.raises(TrainingFailed, match=r"at least 10 patients, got 2 scans of 2; 1 more .*empty final label"):
        selection.check()


def test_a_patient_to_be_forgotten_is_left_out(store):
    selection = healthy_scans(store, {"healthy": "all"})
    kept = selection.without(lambda patient: patient == selection.scans[0].patient)
    assert [scan.id for scan in kept.scans] == [scan.id for scan in selection.scans[1:]]
    assert kept.left_out["to be forgotten"] == 1
    assert selection.without(lambda patient: False) == selection


def test_ten_scans_of_one_patient_are_too_few(store):
    for image in store.list_images():
        store.update_image_info(image, {"patient": "P1"})
    assert healthy_scans(store, ALL).patients == 1


def test_info_makes_slicers_train_button_usable_and_leaves_a_server_without_trainers_alone(store, submit):
    submit("a", marked=1)
    store.update_image_info("b", {"healthy": True})
    stock = store.status()
    assert info_counts(store, {}, stock, trains=False) == {**stock, "healthy": healthy_scans(store, {}).counts()}
    status = info_counts(store, {}, stock, trains=True)
    assert (status["total"], status["completed"], status["labeled"]) == (3, 2, 1)
    assert status["healthy"]["by_reason"] == {"marked": 1}
    assert "'a'" not in str(status)


def test_a_list_broken_after_the_start_is_said_in_info(store, tmp_path):
    conf = listed(tmp_path, "image\na\n")
    check_conf(conf)
    listed(tmp_path, "name\na\n")
    status = info_counts(store, conf, store.status(), trains=True)
    assert "--conf healthy_list: line 1" in status["healthy"]["error"]
    assert status["completed"] == 0


def test_settings_that_cannot_be_understood_stop_the_start(tmp_path):
    with pytest.raises(InvalidRequest, match="--conf healthy all"):
        check_conf({"healthy": "some"})
    with pytest.raises(InvalidSettings, match="--conf healthy_list"):
        check_conf({"healthy_list": str(tmp_path / "nowhere.csv")})
    check_conf({"healthy": "none"})
