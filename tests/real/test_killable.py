"""The server that tests kill: what does not come up is not left running beside the tests after it."""

import subprocess
import sys

import pytest

from tests.real import faults


def test_a_server_that_does_not_come_up_is_ended(monkeypatch, tmp_path):
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])

    def never(*_):
        raise RuntimeError("the server did not answer")

    monkeypatch.setattr(faults, "start", lambda *_, **__: (process, tmp_path / "log", "http://127.0.0.1:9"))
    monkeypatch.setattr(faults, "wait_until_up", never)
    with pytest.raises(RuntimeError, match="did not answer"), faults.Killable(tmp_path, tmp_path):
        pass
    try:
        assert process.poll() is not None
    finally:
        process.kill()
