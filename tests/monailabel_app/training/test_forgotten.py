import json

import pytest

from monailabel_app.errors import CorruptModel, TrainingFailed
from monailabel_app.training.forgotten import (
    ForgottenList,
    forgotten_contents,
    forgotten_hashes,
    forgotten_test,
    is_forgotten,
    only_one,
    refuse_forgotten,
    refuse_forgotten_weights,
)
from monailabel_app.training.manifest import Manifest, fingerprint, record_scans
from monailabel_app.training.site_key import FORGOTTEN_FILE, KEY_FILE, keyed_hash, site_key


def add(root, patient_id):
    return ForgottenList(root).add(keyed_hash(site_key(root), "patient", patient_id))


def test_a_patient_on_the_list_is_forgotten_and_others_are_not(tmp_path):
    add(tmp_path, "PATIENT-1")
    assert is_forgotten(tmp_path, "PATIENT-1")
    assert is_forgotten(tmp_path, "PATIENT-1 ")
    assert not is_forgotten(tmp_path, "PATIENT-2")
    test = forgotten_test(tmp_path)
    assert [test(f"PATIENT-{i}") for i in (1, 2)] == [True, False]


def test_without_a_list_nobody_is_forgotten_and_nothing_is_written(tmp_path):
    assert not is_forgotten(tmp_path, "PATIENT-1")
    assert forgotten_hashes(tmp_path) == frozenset()
    assert list(tmp_path.iterdir()) == []


def test_the_record_survives_and_is_opened_again(tmp_path):
    removal = add(tmp_path, "PATIENT-1")
    removal.removed.append("m@0001")
    listed = ForgottenList(tmp_path)
    listed.removals[0].removed.append("m@0001")
    listed.removals[0].state = "complete"
    listed.save()
    again = ForgottenList(tmp_path).add(removal.patient)
    assert again.removed == ["m@0001"]
    assert again.state == "started"
    assert len(ForgottenList(tmp_path).removals) == 1


def test_no_plain_id_is_in_the_file(tmp_path):
    add(tmp_path, "PATIENT-1")
    assert "PATIENT" not in (tmp_path / "model" / FORGOTTEN_FILE).read_text()


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"format": 1, "site": "x", "removals": [{"a": 1}]}'])
def test_a_damaged_list_stops_rather_than_letting_everybody_be_trained_on(tmp_path, text):
    add(tmp_path, "PATIENT-1")
    (tmp_path / "model" / FORGOTTEN_FILE).write_text(text)
    with pytest.raises(CorruptModel, match=r"forgotten\.json"):
        is_forgotten(tmp_path, "PATIENT-1")
    with pytest.raises(CorruptModel, match=r"forgotten\.json"):
        forgotten_hashes(tmp_path)


def test_a_list_of_a_later_format_is_refused(tmp_path):
    add(tmp_path, "PATIENT-1")
    file = tmp_path / "model" / FORGOTTEN_FILE
    file.write_text(json.dumps(json.loads(file.read_text()) | {"format": 2}))
    with pytest.raises(CorruptModel, match="format 1"):
        forgotten_hashes(tmp_path)


def test_a_list_of_another_key_is_refused(tmp_path):
    add(tmp_path, "PATIENT-1")
    (tmp_path / "model" / KEY_FILE).write_text("ab" * 32 + "\n")
    with pytest.raises(CorruptModel, match="another key"):
        is_forgotten(tmp_path, "PATIENT-1")


def test_a_model_of_a_forgotten_patient_is_refused_before_it_is_published(tmp_path):
    key = site_key(tmp_path)
    scans = record_scans(key, [("PATIENT-1", "s1", "00"), ("PATIENT-2", "s2", "01")])
    manifest = Manifest("ddpm", "t1", fingerprint(key), scans[:1], scans[1:])
    refuse_forgotten(tmp_path, manifest)
    add(tmp_path, "PATIENT-2")
    with pytest.raises(TrainingFailed, match="1 of them"):
        refuse_forgotten(tmp_path, manifest)


def test_a_scan_of_a_forgotten_patient_is_known_under_another_id(tmp_path):
    key = site_key(tmp_path)
    scans = record_scans(key, [("PATIENT-1", "s1", "00"), ("PATIENT-2", "s2", "01")])
    add(tmp_path, "PATIENT-9")
    listed = ForgottenList(tmp_path)
    listed.removals[0].contents = [keyed_hash(key, "content", "01")]
    listed.save()
    assert forgotten_contents(tmp_path) == {keyed_hash(key, "content", "01")}
    with pytest.raises(TrainingFailed, match="1 of them"):
        refuse_forgotten(tmp_path, Manifest("ddpm", "t1", fingerprint(key), scans, ()))


def test_weights_of_a_forgotten_patient_are_refused_as_a_start_and_thresholds_are_not(tmp_path):
    key = site_key(tmp_path)
    scans = record_scans(key, [("PATIENT-1", "s1", "00"), ("PATIENT-2", "s2", "01")])
    Manifest("ddpm", "t1", fingerprint(key), scans[:1], scans[1:]).write(tmp_path)
    whose = {keyed_hash(key, "patient", f"PATIENT-{n}"): f"PATIENT-{n}" for n in (1, 2)}
    add(tmp_path, whose[scans[1].patient])
    refuse_forgotten_weights(tmp_path, tmp_path)
    refuse_forgotten_weights(tmp_path, tmp_path / "model")
    add(tmp_path, whose[scans[0].patient])
    with pytest.raises(TrainingFailed, match="start from"):
        refuse_forgotten_weights(tmp_path, tmp_path)


def test_two_removals_at_once_are_kept_apart(tmp_path):
    with only_one(tmp_path), pytest.raises(TrainingFailed, match="no other"), only_one(tmp_path):
        pass
    with only_one(tmp_path):
        pass
