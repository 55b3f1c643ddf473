"""Models that have learnt from a scan which is found abnormal later."""

import pytest

from lib.contamination import RECORD, Contamination
from monailabel_app.training.manifest import Manifest, fingerprint, record_scans, site_key


@pytest.fixture
def root(tmp_path):
    """Version 1 was trained on a and calibrated on b, version 2 on others."""
    key = site_key(tmp_path)
    for version, train, held_out in (("0001", "ac", "b"), ("0002", "c", "d")):
        folder = tmp_path / "model" / "site" / "versions" / version
        folder.mkdir(parents=True)
        parts = [record_scans(key, [("patient " + s, s, "x" + s) for s in scans]) for scans in (train, held_out)]
        Manifest("ddpm", "t1", fingerprint(key), *parts).write(folder)
    return tmp_path


def version(root, number):
    return root / "model" / "site" / "versions" / f"000{number}"


def test_a_model_says_how_many_abnormal_scans_it_has_seen(root):
    contamination = Contamination(root)
    assert not contamination.of_folder(version(root, 1))
    seen = contamination.of_folder(version(root, 1), {"a", "b", "z"})
    assert (seen.trained, seen.held_out) == (1, 1)
    assert "1 of the scans it was trained on and 1 of the scans it was calibrated on" in str(seen)
    assert not contamination.of_folder(version(root, 2), {"a", "b"})


def test_the_models_are_named_and_the_scan_is_remembered_without_its_id(root):
    assert list(Contamination(root).note("a", abnormal=True)) == ["site@0001"]
    assert list(Contamination(root).note("c", abnormal=True)) == ["site@0001", "site@0002"]
    assert Contamination(root).of_folder(version(root, 1)).trained == 2
    assert '"a"' not in (root / "model" / RECORD).read_text()


def test_a_model_copied_in_by_hand_is_found_too(root):
    folder = root / "model" / "flat"
    folder.mkdir()
    (version(root, 1) / "training.json").rename(folder / "training.json")
    assert list(Contamination(root).note("a", abnormal=True)) == ["flat"]


def test_a_verdict_taken_back_is_forgotten(root):
    contamination = Contamination(root)
    contamination.note("a", abnormal=True)
    assert contamination.note("a", abnormal=False) == {}
    assert not contamination.of_folder(version(root, 1))


def test_nothing_is_written_where_no_model_has_seen_the_scan(root, tmp_path_factory):
    assert Contamination(root).note("z", abnormal=True) == {}
    assert not (root / "model" / RECORD).exists()
    untrained = tmp_path_factory.mktemp("app")
    assert Contamination(untrained).note("z", abnormal=True) == {}
    assert not Contamination(untrained).of_folder(untrained, {"z"})
    assert list(untrained.iterdir()) == []


def test_a_damaged_manifest_or_record_does_not_stop_the_others(root):
    (version(root, 2) / "training.json").write_text("{")
    (root / "model" / RECORD).write_text("[")
    assert list(Contamination(root).note("c", abnormal=True)) == ["site@0001"]


def test_a_manifest_of_another_site_is_not_searched(root):
    other = version(root, 1) / "training.json"
    other.write_text(other.read_text().replace(fingerprint(site_key(root)), "0" * 16))
    assert Contamination(root).note("a", abnormal=True) == {}
