"""Full and read-only disks in words, temporary files of dead processes, locks of series, and lists that come late."""

import errno
import multiprocessing
import tempfile
import threading
import time

import pytest
import requests
from starlette.testclient import TestClient

from lib import archive_lists, disk, workspace
from lib.archive_fetch import ask, remove_abandoned, series_lock
from lib.archive_lists import Lists
from lib.endpoints.guard import describe
from lib.errors import ArchiveSlow, ArchiveUnreachable, NoSpace, NotAllowed
from monailabel_app.errors import InvalidVolume


def raised(error, cause=None):
    try:
        raise error from cause
    except type(error) as caught:
        return caught


def test_a_full_disk_is_507_also_where_a_library_wraps_the_error(monkeypatch):
    full = OSError(errno.ENOSPC, "no space")
    for error in (full, OSError(errno.EDQUOT, "quota"), raised(RuntimeError("could not write"), full)):
        status, text = describe(error)
        assert status == 507
        assert "full" in text
    monkeypatch.setattr(disk, "_free", lambda folder: 4096)
    assert isinstance(disk.disk_trouble(RuntimeError("ITK could not write")), NoSpace)
    monkeypatch.setattr(disk, "_free", lambda folder: 2**40)
    assert disk.disk_trouble(RuntimeError("ITK could not write")) is None
    assert describe(RuntimeError("something else"))[0] == 500


def test_a_folder_that_may_not_be_written_is_403_without_the_files_name(tmp_path):
    for number in (errno.EROFS, errno.EACCES):
        error = OSError(number, "no", str(tmp_path / "Doe_Jane.nii.gz"))
        assert isinstance(disk.disk_trouble(error), NotAllowed)
        assert describe(error)[0] == 403
        assert "Doe" not in describe(error)[1]
    assert describe(InvalidVolume("its own words")) == (400, "its own words")


def test_temporary_files_of_dead_processes_go_and_those_of_living_ones_stay(tmp_path):
    context = multiprocessing.get_context("fork")
    ready, done = context.Event(), context.Event()

    def serve(wait):
        tempfile.tempdir, workspace._held = str(tmp_path), None
        workspace.own_temporary_folder(True)
        tempfile.NamedTemporaryFile(suffix=".nii.gz", delete=False).close()
        ready.set()
        if wait:
            done.wait(300)

    living = context.Process(target=serve, args=(True,))
    living.start()
    assert ready.wait(300)
    ready.clear()
    dead = context.Process(target=serve, args=(False,))
    dead.start()
    dead.join(300)
    assert len(list(tmp_path.glob("anomaly_server_*"))) == 2
    assert workspace.remove_abandoned(tmp_path) == 1
    (kept,) = tmp_path.glob("anomaly_server_*/*.nii.gz")
    done.set()
    living.join(300)
    assert kept.exists()


def test_in_any_other_program_temporary_files_stay_where_they_were():
    before = tempfile.gettempdir()
    assert workspace.own_temporary_folder(False) is False
    assert tempfile.gettempdir() == before


def test_a_series_lock_excludes_threads_and_leaves_nothing(tmp_path):
    inside, most = [], []

    def fetch():
        with series_lock(tmp_path / "1.2.3"):
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.01)
            inside.pop()

    threads = [threading.Thread(target=fetch) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    assert most == [1] * 8
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_fetch_left_goes_and_what_is_being_fetched_stays(tmp_path):
    for uid in ("1.2.3", "1.2.4"):
        (tmp_path / f"{uid}.partial").mkdir()
        (tmp_path / f"{uid}.partial" / "one.dcm").write_text("")
    (tmp_path / "1.2.5.lock").write_text("")
    (tmp_path / "datastore_v2.json.lock").write_text("")
    with series_lock(tmp_path / "1.2.4"):
        assert remove_abandoned(tmp_path) == 2
        assert (tmp_path / "1.2.4.partial").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"1.2.4.partial", "datastore_v2.json.lock"}


def test_a_list_that_takes_long_holds_up_nobody_for_longer_than_said(monkeypatch):
    monkeypatch.setattr(archive_lists, "PATIENCE", 0.2)
    monkeypatch.setattr(archive_lists, "PATIENCE_WITH_LIST", 0.05)
    lists, go, asked = Lists(), threading.Event(), []

    def slowly():
        asked.append(1)
        go.wait(240)
        return ["a", "b"]

    for _ in range(3):
        with pytest.raises(ArchiveSlow):
            lists.get("images", slowly, 30.0)
    assert asked == [1]
    go.set()
    with monkeypatch.context() as patch:
        patch.setattr(archive_lists, "PATIENCE", 120.0)
        assert lists.get("images", slowly, 30.0) == ["a", "b"]
    go.clear()
    # Too old by now: the former one is given while it is asked for anew.
    assert lists.get("images", slowly, 0.0) == ["a", "b"]
    go.set()


def test_what_goes_wrong_with_an_archive_has_a_name_and_a_full_disk_here_keeps_its_own():
    for error, status in (
        (requests.ConnectionError("x"), 502), (requests.ReadTimeout("x"), 504), (ConnectionResetError("x"), 502),
    ):  # fmt: skip

        def fail(error=error):
            raise error

        with pytest.raises(ArchiveUnreachable) as told:
            ask(fail)
        assert told.value.status == status

    def full():
        raise OSError(errno.ENOSPC, "no space")

    with pytest.raises(OSError, match="no space"):
        ask(full)


def test_a_form_that_cannot_be_spooled_says_that_the_disk_is_full(monkeypatch):
    from fastapi import FastAPI, File, UploadFile

    from lib.endpoints.guard import Guard

    app = FastAPI()

    @app.put("/up")
    def up(file: UploadFile = File(...)):
        return file.size

    app.router.middleware_stack = Guard(app.router.middleware_stack)

    def no_room(*args, **kwargs):
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr("starlette.formparsers.SpooledTemporaryFile", no_room)
    answer = TestClient(app).put("/up", files={"file": b"x"})
    assert answer.status_code == 507
    assert "full" in answer.json()["detail"]
