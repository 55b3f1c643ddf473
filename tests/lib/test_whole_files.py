"""Files of a studies folder: whole at their places, put back when a change fails, and never lost to a kill."""

import errno
import json
import multiprocessing
import os
import shutil
import signal
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from lib import whole_files
from lib.datastore import AnomalyLocalDatastore
from lib.whole_files import JOURNAL, PREFIX, Staged, clean, put_back

SHAPE = (16, 16, 4)


def scan(path, value):
    data = np.random.default_rng(value).integers(0, 900, SHAPE).astype(np.int16)
    data[0, 0, 0] = value
    nib.save(nib.Nifti1Image(data, np.eye(4)), path)
    return str(path)


def label(path, ones):
    data = np.zeros(SHAPE, np.uint8)
    data.reshape(-1)[:ones] = 1
    nib.save(nib.Nifti1Image(data, np.eye(4)), path)
    return str(path)


def value_of(path):
    return int(nib.load(path).dataobj[0, 0, 0])


def ones_of(path):
    return int(np.asarray(nib.load(path).dataobj).sum())


def opened(folder):
    return AnomalyLocalDatastore(str(folder), extensions=["*.nii.gz"])


@pytest.fixture
def start(tmp_path):
    """Scan 1 with a label of 11 voxels and a mark, in a folder of its own."""
    folder = tmp_path / "start"
    folder.mkdir()
    scan(folder / "head.nii.gz", 1)
    store = opened(folder)
    store.save_label("head", label(tmp_path / "l.nii.gz", 11), "final", {"reader": "anna"})
    store.update_image_info("head", {"note": "of the first"})
    return folder


def submit(folder, tmp_path):
    opened(folder).save_label("head", label(tmp_path / "l.nii.gz", 12), "final", {"reader": "bert"})


def replace(folder, tmp_path):
    opened(folder).add_image("head", scan(tmp_path / "head.nii.gz", 2), {})


def add(folder, tmp_path):
    opened(folder).add_image("new", scan(tmp_path / "new.nii.gz", 3), {})


def review(folder, tmp_path):
    said = {"review": {"voxels": 12}}
    opened(folder).save_label("head", label(tmp_path / "l.nii.gz", 12), "final", {"reader": "bert"}, said=said)


def check(folder, change, finished):
    """After the next start: everything acknowledged is there, no label lies on another scan, and none is of another
    moment than what the table says of it."""
    store = opened(folder)
    for image in store.list_images():
        for tag in store.get_labels_by_image_id(image):
            assert store.get_label_info(image, tag)["voxels"] == ones_of(store.get_label_uri(image, tag))
    assert not list(folder.rglob(f"{PREFIX}*"))
    images = set(store.list_images())
    first = [image for image in images if value_of(folder / f"{image}.nii.gz") == 1]
    assert first, "the first scan is gone"
    if change in (submit, review):
        told = store.get_image_info("head").get("review", {}).get("voxels", 11 if change is review else None)
        assert told in (None, ones_of(folder / "labels/final/head.nii.gz"))
        assert ones_of(folder / "labels/final/head.nii.gz") in ({12} if finished else {11, 12})
        assert store.get_image_info("head")["note"] == "of the first"
    elif change is add:
        assert not finished or "new" in images
        assert ones_of(folder / "labels/final/head.nii.gz") == 11
    else:
        labelled = [image for image in images if "final" in store.get_labels_by_image_id(image)]
        kept = [p for p in folder.rglob("*final*") if p.is_file()] + list((folder / "labels/final").glob("*.nii.gz"))
        assert any(ones_of(path) == 11 for path in kept), "the label is gone"
        for image in labelled:
            assert value_of(folder / f"{image}.nii.gz") == 1, "the label lies on another scan"
        for image in images - set(first):
            assert "note" not in store.get_image_info(image), "what was said of the first is said of the second"
        if finished:
            assert value_of(folder / "head.nii.gz") == 2
            assert len(labelled) == 1


CALLS = ("rename", "replace", "unlink", "link", "mkdir", "utime", "fsync", "open")


def counted(left, fault):
    """Patches for ``os``: at the n-th call that changes a file, ``fault`` happens instead."""
    calls = {name: getattr(os, name) for name in CALLS}
    state = {"left": left, "hit": False}

    def patch(name):
        def call(*args, **kwargs):
            if state["left"] == 0:
                state["hit"] = True
                state["left"] -= 1
                fault()
            state["left"] -= 1
            return calls[name](*args, **kwargs)

        return call

    return {name: patch(name) for name in CALLS}, state


def _mortal(change, folder, tmp_path, left):
    patches, _ = counted(left, lambda: os.kill(os.getpid(), signal.SIGKILL))
    for name, call in patches.items():
        setattr(os, name, call)
    change(folder, tmp_path)
    os._exit(0)


@pytest.mark.slow
@pytest.mark.parametrize("change", [submit, review, replace, add])
def test_killed_at_any_call_nothing_acknowledged_is_lost(start, tmp_path, change):
    if not hasattr(os, "fork"):
        pytest.skip("needs processes that start as copies")
    context = multiprocessing.get_context("fork")
    for left in range(500):
        folder = Path(shutil.copytree(start, tmp_path / f"killed{left}", copy_function=shutil.copy2))
        child = context.Process(target=_mortal, args=(change, folder, tmp_path, left))
        child.start()
        child.join(300)
        check(folder, change, finished=child.exitcode == 0)
        shutil.rmtree(folder)
        if child.exitcode == 0:
            assert left > 5
            return
        assert child.exitcode == -signal.SIGKILL
    raise AssertionError("it never ends")


@pytest.mark.parametrize("change", [submit, review, replace, add])
def test_a_disk_that_refuses_at_any_call_leaves_all_as_it_was(start, tmp_path, monkeypatch, change):
    def full():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    refused = 0
    for left in range(500):
        folder = Path(shutil.copytree(start, tmp_path / f"full{left}", copy_function=shutil.copy2))
        before = files_of(folder)
        patches, state = counted(left, full)
        with monkeypatch.context() as patch:
            for name, call in patches.items():
                patch.setattr(os, name, call)
            failed = _is_refused(change, folder, tmp_path)
        if failed:
            refused += 1
            assert files_of(folder) == before
        check(folder, change, finished=not failed)
        shutil.rmtree(folder)
        if not state["hit"]:
            assert refused > 2
            return
    raise AssertionError("it never ends")


@pytest.mark.parametrize("change", [submit, review, replace, add])
def test_killed_between_the_files_and_the_table_the_files_are_put_back(start, tmp_path, monkeypatch, change):
    if not hasattr(os, "fork"):
        pytest.skip("needs processes that start as copies")
    before, rename = files_of(start), os.replace

    def killed_at_the_table(source, target):
        if str(target).endswith("datastore_v2.json"):
            os.kill(os.getpid(), signal.SIGKILL)
        rename(source, target)

    def die():
        os.replace = killed_at_the_table
        change(start, tmp_path)

    child = multiprocessing.get_context("fork").Process(target=die)
    child.start()
    child.join(300)
    assert child.exitcode == -signal.SIGKILL
    assert (start / JOURNAL).exists()
    opened(start)
    assert files_of(start) == before
    check(start, change, finished=False)


def test_a_note_of_a_change_that_was_finished_undoes_nothing(start, tmp_path):
    table = start / "datastore_v2.json"
    finished = b'{"table": [1, 2, 3]}\n["labels/final/head.nii.gz", null]\n'
    for content in (finished, b"", b"{\n[", b'["half'):
        (start / JOURNAL).write_bytes(content)
        assert put_back(table) is False
        assert ones_of(start / "labels/final/head.nii.gz") == 11
        assert not (start / JOURNAL).exists()


def _is_refused(change, folder, tmp_path):
    try:
        change(folder, tmp_path)
    except OSError as error:
        return error.errno == errno.ENOSPC
    return False


def files_of(folder):
    """Scans, labels and what the table says of them."""
    files = {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*.nii.gz")}
    objects = json.loads((folder / "datastore_v2.json").read_text())["objects"]
    return files, {image: (entry["image"]["info"], set(entry["labels"])) for image, entry in objects.items()}


def test_what_a_living_process_is_writing_is_not_cleaned_away(tmp_path):
    (tmp_path / "source").write_text("content")
    (tmp_path / f"{PREFIX}1-dead").write_text("half")
    context = multiprocessing.get_context("fork")
    writing, done = context.Event(), context.Event()

    def write():
        with Staged(tmp_path / "source", tmp_path):
            writing.set()
            done.wait(300)

    child = context.Process(target=write)
    child.start()
    assert writing.wait(300)
    assert clean(tmp_path) == 1
    assert len(list(tmp_path.glob(f"{PREFIX}*"))) == 1
    done.set()
    child.join(300)
    assert not list(tmp_path.glob(f"{PREFIX}*"))


def test_a_disk_without_links_keeps_whole_files_too(start, tmp_path, monkeypatch):
    def none(*args, **kwargs):
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(whole_files.os, "link", none)
    replace(start, tmp_path)
    check(start, replace, finished=True)
    submit(start, tmp_path)
    assert ones_of(start / "labels/final/head.nii.gz") == 12
