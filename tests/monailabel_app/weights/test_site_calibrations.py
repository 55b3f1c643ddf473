"""Site calibrations beside a model: appear whole, belong to its weights, never change it, and are followed."""

import json
import shutil

import pytest
import torch
import yaml

from monailabel_app.errors import CorruptModel, PublishFailed, UnknownModel
from monailabel_app.weights import site_calibrations as site
from monailabel_app.weights import versions
from monailabel_app.weights.listing import fingerprint, list_models
from monailabel_app.weights.model_folder import (
    calibration_hash,
    result_hash,
    seal,
    verify,
    weights_hash,
    write_config,
    write_weights,
)


def make(folder, value=1.0):
    """A sealed model folder with a calibration of its own."""
    folder.mkdir(parents=True)
    write_config(folder, {"kind": "anomaly", "method": "ddpm", "modality": "t1"})
    write_weights(folder, {"w": torch.full((2,), value)})
    (folder / "calibration.json").write_text(f'{{"of": {value}}}')
    seal(folder)
    return folder


@pytest.fixture
def root(tmp_path):
    make(tmp_path / "model_weights" / "m")
    return tmp_path


@pytest.fixture
def model(root):
    return root / "model_weights" / "m"


def calibrate(model, text="{}", *, use_it=True):
    staged = site.new_staging(model)
    for name in ("calibration.json", "calibration.safetensors"):
        (staged / name).write_text(text)
    return site.publish(model, staged, {"scans": 7}, use_it=use_it)


def test_it_lies_in_the_writable_folder_and_leaves_the_model_as_it_was(root, model):
    before = {path.name: path.read_bytes() for path in model.iterdir()}
    entry = calibrate(model)
    assert entry.folder.parent == root / "model" / "m" / "site_calibrations"
    assert {path.name: path.read_bytes() for path in model.iterdir()} == before
    assert (entry.used, entry.fits, entry.record["scans"], entry.record["belongs_to"]) == (True, True, 7, "shipped")
    assert entry.record["weights"] == weights_hash(model)
    assert site.active(model).hash == verify(entry.folder, site.FILES)
    assert list(list_models(root)) == ["m"]


def test_one_is_used_at_a_time_and_the_models_own_can_be_used_again(model):
    assert site.used_id(model) is None
    site.use(model, "shipped")
    first, second = calibrate(model, "1"), calibrate(model, "2", use_it=False)
    assert site.used_id(model) == first.id
    site.use(model, second.id)
    assert site.active(model).id == second.id
    assert [entry.id for entry in site.listed(model) if entry.used] == [second.id]
    site.use(model, "shipped")
    assert site.active(model) is None
    changes = [json.loads(line) for line in (first.folder.parent / "history.jsonl").read_text().splitlines()]
    assert [change["action"] for change in changes] == ["calibrate", "use", "calibrate", "use", "use"]


def test_other_weights_are_refused_until_the_own_calibration_is_chosen(model):
    entry = calibrate(model)
    shutil.rmtree(model)
    make(model, value=2.0)
    with pytest.raises(CorruptModel, match=r"the model has changed since.*--use shipped"):
        site.active(model)
    with pytest.raises(CorruptModel, match="Calibrate again"):
        site.use(model, entry.id)
    assert [e.fits for e in site.listed(model)] == [False]
    site.use(model, "shipped")
    assert site.active(model) is None


def test_another_calibration_of_the_same_weights_is_no_other_model(model):
    calibrate(model)
    old = result_hash(model), calibration_hash(model), weights_hash(model)
    (model / "calibration.json").write_text("{}")
    seal(model)
    new = result_hash(model), calibration_hash(model), weights_hash(model)
    assert (new[0] != old[0], new[1] != old[1], new[2] == old[2]) == (True, True, True)
    assert site.active(model) is not None


@pytest.mark.parametrize("file", ["calibration.json", "calibration.safetensors", "record.yaml", "sha256sums.txt"])
def test_a_damaged_one_is_refused_and_never_replaced_silently(model, file):
    entry = calibrate(model)
    (entry.folder / file).write_text("spoilt")
    with pytest.raises(CorruptModel):
        site.active(model)


def test_a_missing_one_is_refused(model):
    entry = calibrate(model)
    shutil.rmtree(entry.folder)
    with pytest.raises(UnknownModel, match="--list"):
        site.active(model)


def test_what_is_used_cannot_be_removed(model):
    entry = calibrate(model)
    with pytest.raises(PublishFailed, match="used with shipped"):
        site.remove(model, entry.id)
    site.use(model, "shipped")
    site.remove(model, entry.id)
    assert site.listed(model) == []
    with pytest.raises(UnknownModel, match="none yet"):
        site.remove(model, entry.id)
    with pytest.raises(UnknownModel):
        site.use(model, "../../m")


def test_each_version_has_its_own_and_a_new_version_none(root, model):
    shipped = calibrate(model, "1")
    first = versions.publish(root, "m", make(root / "new1", 3.0), promote=True).folder
    assert site.used_id(first) is None
    own = calibrate(first, "2")
    second = versions.publish(root, "m", make(root / "new2", 4.0), promote=True).folder
    assert (site.used_id(model), site.used_id(first), site.used_id(second)) == (shipped.id, own.id, None)
    assert own.record["model"] == "m@0001"
    assert {e.id: e.fits for e in site.listed(first)} == {shipped.id: False, own.id: True}
    with pytest.raises(PublishFailed, match=r"used with 0001; .*--model m@0001 --use shipped"):
        site.remove(second, own.id)


def test_a_removed_version_holds_no_site_calibration_back(root, model):
    first = versions.publish(root, "m", make(root / "new1", 3.0), promote=True).folder
    entry = calibrate(first)
    second = versions.publish(root, "m", make(root / "new2", 4.0), promote=True).folder
    marker = entry.folder.parent / "USED-0001"
    assert marker.is_file()
    versions.remove(root, "m", "1")
    assert not marker.exists()
    marker.write_text(f"{entry.id}\n")  # as earlier releases left it
    site.remove(second, entry.id)
    assert site.listed(second) == []
    assert not marker.exists()


def test_one_that_another_process_removes_meanwhile_is_not_used(model, monkeypatch):
    entry = calibrate(model, use_it=False)
    locking = site.lock

    def late(file):
        shutil.rmtree(entry.folder)
        return locking(file)

    monkeypatch.setattr(site, "lock", late)
    with pytest.raises(UnknownModel):
        site.use(model, entry.id)
    assert site.used_id(model) is None


def test_a_flat_folder_keeps_its_site_calibration_when_it_becomes_a_version(root):
    flat = make(root / "model" / "flat", 5.0)
    entry = calibrate(flat)
    assert entry.folder.parent == flat / "site_calibrations"
    verify(flat)
    published = versions.publish(root, "flat", make(root / "new", 6.0), promote=False)
    adopted = versions.locate(root, "flat", "1")
    assert (published.version, site.active(adopted).id) == ("0002", entry.id)
    assert not (adopted / "site_calibrations").exists()


def test_a_server_sees_that_another_is_used(root, model):
    marks = [fingerprint(root)]
    entry = calibrate(model, use_it=False)
    marks.append(fingerprint(root))
    site.use(model, entry.id)
    marks.append(fingerprint(root))
    site.use(model, "shipped")
    marks.append(fingerprint(root))
    assert marks[0][0][2:] == marks[1][0][2:] == marks[3][0][2:]
    assert marks[2] != marks[3]


def test_removing_a_trained_model_keeps_the_site_calibrations_of_the_shipped_one(root, model):
    entry = calibrate(model)
    with pytest.raises(UnknownModel, match="expected a trained model"):
        versions.remove_model(root, "m")
    versions.publish(root, "m", make(root / "new", 3.0), promote=True)
    versions.remove_model(root, "m")
    assert site.active(model).id == entry.id
    assert list_models(root)["m"].version == "shipped"


def test_leftovers_of_a_killed_process_are_nobodys_calibration(model):
    left = site.new_staging(model)
    (left / "calibration.json").write_text("{}")
    assert site.listed(model) == []
    gone = left.parent / ".removed-1"
    gone.mkdir()
    entry = calibrate(model)
    assert not gone.exists()
    assert left.is_dir()  # young: somebody may be writing it
    assert [e.id for e in site.listed(model)] == [entry.id]


def test_a_disk_that_refuses_changes_nothing(model, monkeypatch):
    entry = calibrate(model)
    staged = site.new_staging(model)
    for name in ("calibration.json", "calibration.safetensors"):
        (staged / name).write_text("{}")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(site.os, "rename", full)
    with pytest.raises(PublishFailed, match="No space left"):
        site.publish(model, staged, {}, use_it=True)
    assert site.used_id(model) == entry.id


def test_the_record_is_plain_yaml_and_names_no_patient(model):
    entry = calibrate(model)
    record = yaml.safe_load((entry.folder / "record.yaml").read_text())
    assert set(record) == {"version", "model", "belongs_to", "weights", "made", "scans"}
