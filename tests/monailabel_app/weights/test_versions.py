"""Versions: published whole or not at all, rolled back, adopted, removed."""

import os
import threading
import time
from pathlib import Path

import pytest
import torch

from monailabel_app.errors import CorruptModel, InvalidSettings, PublishFailed, UnknownModel
from monailabel_app.weights import versions as module
from monailabel_app.weights.model_folder import open_model_folder, seal, write_config, write_weights
from monailabel_app.weights.versions import (
    current,
    history,
    locate,
    new_staging,
    promote,
    publish,
    remove,
    remove_model,
    rollback,
    serving_version,
    split_id,
    versions,
)

NAME = "ddpm_t1"


def write_model(folder, value=0.0):
    folder.mkdir(parents=True, exist_ok=True)
    write_config(folder, {"kind": "anomaly", "method": "ddpm", "modality": "t1", "value": value})
    write_weights(folder, {"w": torch.full((3,), value)})
    seal(folder)
    return folder


def publish_value(root, value, name=NAME, **kwargs):
    kwargs.setdefault("promote", True)
    return publish(root, name, write_model(new_staging(root, name), value), **kwargs)


def served(root, name=NAME):
    """The value of the model that serves, every file of it verified."""
    return open_model_folder(current(root, name)).config["value"]


@pytest.fixture
def shipped(tmp_path):
    write_model(tmp_path / "model_weights" / NAME, -1.0)
    return tmp_path


def test_what_is_published_serves_and_is_numbered_in_order(tmp_path):
    first, second = publish_value(tmp_path, 1.0), publish_value(tmp_path, 2.0)
    assert (first.id, second.id) == ("ddpm_t1@0001", "ddpm_t1@0002")
    assert current(tmp_path, NAME) == second.folder == tmp_path / "model" / NAME / "versions" / "0002"
    assert served(tmp_path) == 2.0
    assert open_model_folder(second.folder).id == second.id
    assert open_model_folder(second.folder).hash == second.hash
    assert [(v.version, v.serving) for v in versions(tmp_path, NAME)] == [("0001", False), ("0002", True)]


def test_a_version_that_is_not_promoted_is_kept_beside_the_serving_one(tmp_path):
    publish_value(tmp_path, 1.0)
    kept = publish_value(tmp_path, 2.0, promote=False)
    assert served(tmp_path) == 1.0
    assert locate(tmp_path, NAME, "2") == kept.folder
    assert promote(tmp_path, NAME, "2") == kept.folder
    assert served(tmp_path) == 2.0


def test_the_first_version_that_is_not_promoted_does_not_serve(tmp_path):
    publish_value(tmp_path, 1.0, promote=False)
    assert current(tmp_path, NAME) is None
    with pytest.raises(UnknownModel, match="models list"):
        locate(tmp_path, NAME)


def test_without_versions_a_flat_folder_serves_else_the_shipped_one(shipped):
    assert serving_version(shipped, NAME) == "shipped"
    assert served(shipped) == -1.0
    write_model(shipped / "model" / NAME, 5.0)
    assert serving_version(shipped, NAME) == ""
    assert served(shipped) == 5.0
    assert current(shipped, "other") is None


def test_rolling_back_goes_through_what_served_and_ends_at_the_shipped_model(shipped):
    for value in (1.0, 2.0, 3.0):
        publish_value(shipped, value, promote=value != 2.0)
    assert rollback(shipped, NAME).name == "0001"
    assert rollback(shipped, NAME) == shipped / "model_weights" / NAME
    with pytest.raises(PublishFailed, match="promote ddpm_t1 VERSION"):
        rollback(shipped, NAME)
    assert served(shipped) == -1.0
    assert promote(shipped, NAME, "3").name == "0003"
    assert rollback(shipped, NAME) == shipped / "model_weights" / NAME


def test_rolling_back_twice_does_not_come_back_to_where_it_started(tmp_path):
    for value in (1.0, 2.0, 3.0):
        publish_value(tmp_path, value)
    assert [rollback(tmp_path, NAME).name for _ in range(2)] == ["0002", "0001"]
    publish_value(tmp_path, 4.0)
    assert rollback(tmp_path, NAME).name == "0001"


def test_there_is_nothing_to_roll_back_to_before_the_first_version(tmp_path):
    publish_value(tmp_path, 1.0)
    with pytest.raises(PublishFailed, match="there was none"):
        rollback(tmp_path, NAME)
    assert served(tmp_path) == 1.0


def test_a_model_that_was_never_trained_here_cannot_be_rolled_back(shipped):
    with pytest.raises(PublishFailed, match="shipped one serves already"):
        rollback(shipped, NAME)
    with pytest.raises(UnknownModel):
        rollback(shipped, "other")


def test_a_removed_version_is_skipped_by_rollback_and_its_number_is_not_used_again(tmp_path):
    for value in (1.0, 2.0, 3.0):
        publish_value(tmp_path, value)
    remove(tmp_path, NAME, "2")
    assert rollback(tmp_path, NAME).name == "0001"
    remove(tmp_path, NAME, "0003")
    assert publish_value(tmp_path, 4.0).version == "0004"


def test_the_serving_version_cannot_be_removed(shipped):
    version = publish_value(shipped, 1.0)
    with pytest.raises(PublishFailed, match="models rollback ddpm_t1"):
        remove(shipped, NAME, version.version)
    with pytest.raises(PublishFailed, match="belongs to the app"):
        remove(shipped, NAME, "shipped")
    assert served(shipped) == 1.0


def test_a_whole_trained_model_is_removed_and_its_shipped_namesake_serves(shipped):
    publish_value(shipped, 1.0)
    remove_model(shipped, NAME)
    assert served(shipped) == -1.0
    assert list((shipped / "model").iterdir()) == []
    with pytest.raises(UnknownModel):
        remove_model(shipped, NAME)


def test_unknown_versions_are_refused_naming_the_known_ones(shipped):
    publish_value(shipped, 1.0)
    for change in (promote, remove):
        with pytest.raises(UnknownModel, match="out of 0001, shipped, got '0009'"):
            change(shipped, NAME, "9")
    with pytest.raises(UnknownModel, match="nothing is published"):
        locate(shipped, "other", "1")


@pytest.mark.parametrize(
    "name", ["", "..", "a/b", "a@2", ".hidden", "template", "input_gate_t1", "versions", "x" * 65, "a\n"]
)
def test_a_name_that_could_leave_its_folder_is_refused(tmp_path, name):
    staged = write_model(tmp_path / "staged")
    with pytest.raises(InvalidSettings, match="model name"):
        publish(tmp_path, name, staged, promote=True)
    with pytest.raises(InvalidSettings):
        rollback(tmp_path, name)
    assert not (tmp_path / "model").exists()


def test_a_damaged_staged_folder_is_refused_and_the_serving_model_untouched(tmp_path):
    publish_value(tmp_path, 1.0)
    staged = write_model(new_staging(tmp_path, NAME), 2.0)
    (staged / "model.safetensors").write_bytes(b"half")
    with pytest.raises(CorruptModel, match=r"model\.safetensors"):
        publish(tmp_path, NAME, staged, promote=True)
    assert served(tmp_path) == 1.0
    assert len(versions(tmp_path, NAME)) == 1


def test_a_damaged_version_is_neither_promoted_nor_rolled_back_to(tmp_path):
    first = publish_value(tmp_path, 1.0)
    publish_value(tmp_path, 2.0)
    (first.folder / "model.safetensors").write_bytes(b"half")
    for change in (lambda: rollback(tmp_path, NAME), lambda: promote(tmp_path, NAME, "1")):
        with pytest.raises(CorruptModel):
            change()
    assert served(tmp_path) == 2.0


@pytest.mark.parametrize("text", ["0007", "../../model_weights", "", "0001\n0002"])
def test_a_pointer_to_nothing_is_an_error_and_never_another_model(shipped, text):
    publish_value(shipped, 1.0)
    (shipped / "model" / NAME / "CURRENT").write_text(text)
    with pytest.raises(CorruptModel, match="models promote ddpm_t1 VERSION"):
        current(shipped, NAME)
    promote(shipped, NAME, "1")
    assert served(shipped) == 1.0


def test_a_flat_folder_is_adopted_as_a_version_before_anything_is_published_beside_it(tmp_path):
    flat = write_model(tmp_path / "model" / NAME, 5.0)
    recorded = open_model_folder(flat).hash
    publish_value(tmp_path, 6.0)
    assert [v.version for v in versions(tmp_path, NAME)] == ["0001", "0002"]
    assert versions(tmp_path, NAME)[0].hash == recorded
    assert not (flat / "config.yaml").exists()
    rollback(tmp_path, NAME)
    assert served(tmp_path) == 5.0


def test_rolling_back_from_a_flat_folder_keeps_it_as_a_version(shipped):
    write_model(shipped / "model" / NAME, 5.0)
    rollback(shipped, NAME)
    assert served(shipped) == -1.0
    promote(shipped, NAME, "1")
    assert served(shipped) == 5.0


def test_a_flat_folder_copied_beside_versions_is_left_alone(tmp_path):
    publish_value(tmp_path, 1.0)
    write_model(tmp_path / "model" / NAME, 5.0)
    publish_value(tmp_path, 2.0)
    assert served(tmp_path) == 2.0
    assert (tmp_path / "model" / NAME / "config.yaml").is_file()


def test_the_history_says_what_happened_and_survives_a_torn_line(tmp_path):
    publish_value(tmp_path, 1.0, reason="first")
    with (tmp_path / "model" / NAME / "history.jsonl").open("a") as handle:
        handle.write('{"time": "20')
    publish_value(tmp_path, 2.0, promote=False)
    promote(tmp_path, NAME, "2", reason="better")
    rollback(tmp_path, NAME)
    remove(tmp_path, NAME, "2")
    entries = history(tmp_path, NAME)
    assert [(e["action"], e["version"], e["serving"]) for e in entries] == [
        ("publish", "0001", "0001"),
        ("publish", "0002", None),
        ("promote", "0002", "0002"),
        ("rollback", "0001", "0001"),
        ("remove", "0002", None),
    ]
    assert entries[0]["reason"] == "first"
    assert entries[0]["hash"] == versions(tmp_path, NAME)[0].hash
    assert entries[0]["time"].endswith("+00:00")


def test_leftovers_go_by_age_and_fresh_ones_stay(tmp_path):
    old, fresh = (write_model(new_staging(tmp_path, NAME)) for _ in range(2))
    day_ago = time.time() - module.LEFTOVER_SECONDS - 60
    for path in (*old.iterdir(), old):
        os.utime(path, (day_ago, day_ago))
    (tmp_path / "model" / NAME / "versions" / ".removed-0009-x").mkdir()
    publish_value(tmp_path, 1.0)
    left = sorted(path.name for path in (tmp_path / "model" / NAME / "versions").iterdir())
    assert left == [fresh.name, "0001"]


def test_an_old_staged_folder_is_published_and_not_cleaned_away(tmp_path):
    staged = write_model(new_staging(tmp_path, NAME), 1.0)
    for path in (*staged.iterdir(), staged):
        os.utime(path, (0, 0))
    publish(tmp_path, NAME, staged, promote=True)
    assert served(tmp_path) == 1.0


def test_a_staged_folder_on_another_disk_is_copied(tmp_path, monkeypatch):
    staged = write_model(tmp_path / "elsewhere", 1.0)
    other_disk = os.stat_result((*os.stat(staged)[:2], -1, *os.stat(staged)[3:]))
    real = Path.stat
    monkeypatch.setattr(Path, "stat", lambda self, **k: other_disk if self == staged else real(self, **k))
    publish(tmp_path, NAME, staged, promote=True)
    assert served(tmp_path) == 1.0
    assert sorted(os.listdir(tmp_path / "model" / NAME / "versions")) == ["0001"]


@pytest.mark.parametrize("call", ["rename", "replace", "fsync"])
def test_a_disk_that_refuses_leaves_the_serving_model(tmp_path, monkeypatch, call):
    publish_value(tmp_path, 1.0)
    staged = write_model(new_staging(tmp_path, NAME), 2.0)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, call, full)
    with pytest.raises(PublishFailed, match=r"No space left.*unchanged"):
        publish(tmp_path, NAME, staged, promote=True)
    monkeypatch.undo()
    assert served(tmp_path) == 1.0
    assert publish_value(tmp_path, 3.0).serving


def test_two_that_publish_at_once_get_two_numbers(tmp_path):
    staged = [write_model(new_staging(tmp_path, NAME), float(value)) for value in range(8)]
    threads = [threading.Thread(target=publish, args=(tmp_path, NAME, s), kwargs={"promote": True}) for s in staged]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [v.version for v in versions(tmp_path, NAME)] == [f"{n:04d}" for n in range(1, 9)]
    assert {open_model_folder(v.folder).config["value"] for v in versions(tmp_path, NAME)} == set(map(float, range(8)))
    assert history(tmp_path, NAME)[-1]["serving"] == serving_version(tmp_path, NAME)


def test_a_number_taken_at_the_last_moment_is_not_overwritten(tmp_path, monkeypatch):
    """What keeps two versions apart where there are no file locks."""
    staged = write_model(new_staging(tmp_path, NAME), 2.0)
    write_model(tmp_path / "model" / NAME / "versions" / "0001", 1.0)
    monkeypatch.setattr(module.os, "listdir", lambda path: [])
    assert publish(tmp_path, NAME, staged, promote=True).version == "0002"
    monkeypatch.undo()
    assert open_model_folder(locate(tmp_path, NAME, "1")).config["value"] == 1.0


def test_an_id_has_a_name_and_perhaps_a_version():
    assert split_id("ddpm_t1@0002") == ("ddpm_t1", "0002")
    assert split_id("ddpm_t1") == ("ddpm_t1", None)
