"""Analyses on the disk: come back to the bit, whole or not at all, bounded, purged by age, their owner's only."""

import json
import os
import stat
import subprocess
import sys
import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from monailabel_app.pipelines import analysis_store
from monailabel_app.pipelines.analysis import Analysis, Evidence
from monailabel_app.pipelines.analysis_store import AnalysisStore
from monailabel_app.pipelines.cache import MapCache
from monailabel_app.pipelines.members import EnsembleEvidence
from monailabel_app.types import GateReport, PreparedVolume

SHAPE = (7, 6, 5)
KEYS = [f"{number:064x}" for number in range(20)]


def analysis(mark=0, *, ensemble=False, gate=None, side=SHAPE) -> Analysis:
    """With arrays that are shared, equal, of truth values and of numbers that are not finite."""
    generator = np.random.default_rng(mark)
    prepared = PreparedVolume(
        image=generator.random((1, *side), dtype=np.float32),
        brain_mask=generator.random(side) > 0.4,
        model_affine=np.diag([2.0, 2.0, 2.0, 1.0]),
        native_to_template=generator.random((4, 4)) / 3,
        native_affine=np.diag([-0.9375, 1.0, 1.2, 1.0]),
        native_shape=(9, 8, 11),
        native_brain_mask=generator.random((9, 8, 11)) > 0.5,
        steps=({"step": "normalize", "kind": "percentile", "low": 0.1 + 0.2, "high": 1e-17},),
        seconds={"alignment": 0.5},
        warnings=("a slice was missing",),
    )
    values = generator.normal(size=side).astype(np.float32)
    maps = {"evidence": values, "evidence_brighter": values.copy(), "evidence_darker": -values}
    made = Evidence(prepared.image[0], prepared.brain_mask, values * 0.5, maps, values**2, {"likelihood": 1 / 3})
    if ensemble:
        members = (made, replace(made, reconstruction=None, variance=None, maps={"l1": values + 1}))
        made = EnsembleEvidence(made.image, made.brain_mask, None, {"fisher": values}, None, {}, members)
    return Analysis(prepared, made, gate)


def same(one, other):
    if isinstance(one, np.ndarray):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)
    elif hasattr(one, "__dataclass_fields__"):
        assert type(one) is type(other)
        for name in one.__dataclass_fields__:
            same(getattr(one, name), getattr(other, name))
    elif isinstance(one, dict):
        assert list(one) == list(other)
        for name in one:
            same(one[name], other[name])
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other)
        for left, right in zip(one, other, strict=True):
            same(left, right)
    else:
        assert one == other


@pytest.fixture
def store(tmp_path):
    return AnalysisStore(tmp_path / "analyses")


@pytest.mark.parametrize("ensemble", [False, True])
def test_an_analysis_comes_back_to_the_bit(store, ensemble):
    gate = GateReport(1.5, 0.25, float("inf"), False, ("too noisy",), {"noise": 2.0, "noise_z": 7.5}, "plain", 0.1)
    held = analysis(1, ensemble=ensemble, gate=gate)
    store.put(KEYS[0], held)
    same(held, store.get(KEYS[0]))
    assert store.get(KEYS[1]) is None


def test_equal_arrays_are_written_once_and_masks_as_bits(store, tmp_path):
    held = analysis(side=(32, 32, 32))
    store.put(KEYS[0], held)
    (file,) = (tmp_path / "analyses").iterdir()
    different = 5 * 32**3 * 4 + 2 * 32**3 // 8  # image, reconstruction, variance, evidence and its negative
    assert file.stat().st_size < different + 8192


def test_only_the_owner_can_read_it(store, tmp_path):
    (tmp_path / "analyses").mkdir(mode=0o755)
    store.put(KEYS[0], analysis())
    assert stat.S_IMODE((tmp_path / "analyses").stat().st_mode) == 0o700
    (file,) = (tmp_path / "analyses").iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "header", "version"])
def test_a_damaged_entry_is_ignored_and_removed(store, tmp_path, damage, monkeypatch):
    store.put(KEYS[0], analysis())
    (file,) = (tmp_path / "analyses").iterdir()
    content = bytearray(file.read_bytes())
    if damage == "cut":
        content = content[: len(content) // 2]
    elif damage == "flip":
        content[-5] ^= 1
    elif damage == "empty":
        content = b""
    elif damage == "header":
        content[20:40] = b"\xff" * 20
    else:
        monkeypatch.setattr(analysis_store, "code_version", lambda: "999")
    file.write_bytes(content)
    assert store.get(KEYS[0]) is None
    assert not file.exists()
    store.put(KEYS[0], analysis())
    assert store.get(KEYS[0]) is not None


def test_a_record_of_a_stranger_is_no_analysis(store, tmp_path):
    from safetensors.numpy import save_file

    (tmp_path / "analyses").mkdir()
    for number, text in enumerate(("[]", "{}", "not JSON", json.dumps({"format": 1, "version": 2}))):
        save_file(
            {"a0": np.zeros(3, np.float32)},
            str(tmp_path / "analyses" / f"{KEYS[number]}.safetensors"),
            metadata={"analysis": text},
        )
        assert store.get(KEYS[number]) is None


def test_the_folder_stays_below_its_bound_and_the_least_recently_used_leave(tmp_path):
    store = AnalysisStore(tmp_path / "analyses")
    store.put(KEYS[0], analysis())
    size = next((tmp_path / "analyses").iterdir()).stat().st_size
    store = AnalysisStore(tmp_path / "analyses", max_bytes=int(3.5 * size))
    for number in range(3):
        store.put(KEYS[number], analysis(number))
        time.sleep(0.02)
    assert store.get(KEYS[0]) is not None
    time.sleep(0.02)
    store.put(KEYS[3], analysis(3))
    assert [number for number in range(4) if store.get(KEYS[number]) is not None] == [0, 2, 3]
    store.put(KEYS[4], analysis(4, side=(40, 40, 40)))
    assert store.get(KEYS[4]) is None, "larger than the bound"
    assert store.get(KEYS[0]) is not None


def test_what_is_too_old_leaves_whether_it_is_used_or_not(store, tmp_path):
    for number in range(3):
        store.put(KEYS[number], analysis(number))
    old = time.time() - 8 * 86400
    for number in (0, 1):
        os.utime(tmp_path / "analyses" / f"{KEYS[number]}.safetensors", (time.time(), old))
    assert store.get(KEYS[0]) is None
    store.purge()
    assert [path.stem for path in (tmp_path / "analyses").iterdir()] == [KEYS[2]]


def test_using_an_entry_does_not_make_it_younger(store, tmp_path):
    store.put(KEYS[0], analysis())
    (file,) = (tmp_path / "analyses").iterdir()
    made = time.time() - 3 * 86400
    os.utime(file, (made, made))
    store.get(KEYS[0])
    assert file.stat().st_mtime == pytest.approx(made, abs=1)
    assert file.stat().st_atime > made + 86400


@pytest.mark.parametrize("error", [PermissionError(1, "read-only"), FileNotFoundError(2, "purged meanwhile")], ids=repr)
def test_an_entry_whose_use_cannot_be_noted_is_used_all_the_same(store, monkeypatch, error):
    store.put(KEYS[0], analysis())

    def refused(*args, **kwargs):
        raise error

    monkeypatch.setattr(os, "utime", refused)
    assert store.get(KEYS[0]) is not None


def test_in_a_folder_with_other_things_these_are_left_as_they_are(tmp_path):
    shared = tmp_path / "shared"
    shared.mkdir(mode=0o755)
    shared.chmod(0o755)
    (shared / "model.safetensors").write_bytes(b"weights")
    old = time.time() - 30 * 86400
    os.utime(shared / "model.safetensors", (old, old))
    store = AnalysisStore(shared)
    store.put(KEYS[0], analysis())
    assert stat.S_IMODE(shared.stat().st_mode) == 0o755
    assert stat.S_IMODE((shared / f"{KEYS[0]}.safetensors").stat().st_mode) == 0o600
    store.clear()
    assert [path.name for path in shared.iterdir()] == ["model.safetensors"]


def test_what_a_killed_process_left_leaves_and_what_is_being_written_stays(store, tmp_path):
    store.put(KEYS[0], analysis())
    left, now = tmp_path / "analyses" / ".writing-aa", tmp_path / "analyses" / ".writing-bb"
    left.write_bytes(b"x")
    now.write_bytes(b"x")
    os.utime(left, (time.time() - 7200,) * 2)
    store.purge()
    assert not left.exists()
    assert now.exists()


def test_a_folder_that_cannot_be_written_is_said_once_and_costs_nothing(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    store = AnalysisStore(tmp_path / "file" / "analyses")
    for number in range(3):
        store.put(KEYS[number], analysis())
        assert store.get(KEYS[number]) is None
    assert len([record for record in caplog.records if "kept on the disk" in record.message]) == 1


def test_a_name_that_is_no_key_cannot_leave_the_folder(store):
    with pytest.raises(ValueError, match="hexadecimal"):
        store.get("../../etc/passwd")


def test_memory_asks_the_disk_and_another_process_finds_what_was_kept(tmp_path):
    folder = tmp_path / "analyses"
    first = MapCache(store=AnalysisStore(folder))
    first.put(KEYS[0], analysis(5))
    second = MapCache(store=AnalysisStore(folder))
    found = second.get(KEYS[0])
    same(analysis(5), found)
    assert second.get(KEYS[0]) is found, "from memory the second time"
    second.clear()
    assert list(folder.iterdir()) == []
    assert MapCache(store=AnalysisStore(folder)).get(KEYS[0]) is None


def test_threads_and_a_second_process_share_a_folder(tmp_path):
    folder = tmp_path / "analyses"
    code = (
        "import sys; from tests.monailabel_app.pipelines.test_analysis_store import *\n"
        "store = AnalysisStore(sys.argv[1], max_bytes=40_000)\n"
        "for turn in range(40):\n"
        "    store.put(KEYS[turn % 8], analysis(turn % 8)); found = store.get(KEYS[(turn * 3) % 8])\n"
        "    assert found is None or same(found, analysis((turn * 3) % 8)) is None\n"
    )
    other = subprocess.Popen([sys.executable, "-c", code, str(folder)])
    store, faults = AnalysisStore(folder, max_bytes=40_000), []

    def work(start):
        try:
            for turn in range(40):
                store.put(KEYS[(start + turn) % 8], analysis((start + turn) % 8))
                found = store.get(KEYS[turn % 8])
                if found is not None:
                    same(found, analysis(turn % 8))
        except BaseException as error:
            faults.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert other.wait(600) == 0
    assert faults == []
    store.purge()
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 40_000
