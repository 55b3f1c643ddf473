"""The server as users start it: from any folder, with spaces in paths, with no network, and by ``serve``."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from monailabel_app.pipelines import launcher
from tests.ports import free_port
from tests.server_fixture import copy_studies, make_app

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.slow

# What a program prints when it tried to fetch something without a network.
FETCHING = re.compile(
    r"Name or service not known|Network is unreachable|Temporary failure in name|Max retries|URLError"
)


@pytest.fixture
def port():
    return free_port()


@pytest.fixture
def command(tmp_path):
    """The stock command, in an environment with a space in its path and this Python's packages."""
    venv = tmp_path / "my env"
    (venv / "bin").mkdir(parents=True)
    (venv / "bin" / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (venv / "bin" / "python").chmod(0o755)
    return launcher.install(venv)


def without_network(*words: str) -> list[str]:
    """``words`` in a network namespace with nothing but loopback; skips where namespaces are not allowed."""
    for prefix in (["unshare", "--net"], ["unshare", "--user", "--map-root-user", "--net"]):
        if shutil.which("unshare") and subprocess.run([*prefix, "true"], capture_output=True).returncode == 0:
            return [*prefix, *words]
    pytest.skip("needs unshare and permission to make a network namespace")


def test_the_stock_command_starts_with_spaces_in_every_path_and_the_network_cut(command, tmp_path, studies_dir, port):
    app = tmp_path / "my app"
    app.mkdir()
    make_app(app, {})
    shutil.copytree(ROOT / "model_weights", app / "model_weights", dirs_exist_ok=True)
    studies = copy_studies(studies_dir, tmp_path / "my scans")
    start = [
        str(command),
        "start_server",
        "--app",
        str(app),
        "--studies",
        str(studies),
        "--conf",
        "models",
        "all",
    ]
    trial = without_network(sys.executable, str(ROOT / "tests" / "offline_start.py"), *start)
    done = subprocess.run(
        [*trial, "--host", "127.0.0.1", "--port", str(port)],
        capture_output=True,
        text=True,
        timeout=900,
        check=True,
    )
    report = json.loads(done.stdout)
    assert not report["reached"]
    assert report["answered"], report["log"][-4000:]
    shipped = {folder.parent.name for folder in (ROOT / "model_weights").glob("*/calibration.json")}
    assert shipped <= set(report["answered"]["models"])
    assert report["answered"]["datastore"]["total"] == len(list(studies_dir.glob("*.nii.gz")))
    assert not FETCHING.search(report["log"]), report["log"][-4000:]


def test_serve_prints_where_it_answers_and_stops_when_told(tmp_path, studies_dir, port):
    studies = copy_studies(studies_dir, tmp_path / "my scans")
    words = [sys.executable, str(ROOT / "main.py"), "serve", "--studies", str(studies), "--port", str(port)]
    output = tmp_path / "output"
    with output.open("wb") as out:
        # In a session of its own, so that the signal reaches the command alone, as from a service manager.
        process = subprocess.Popen(words, stdout=out, stderr=out, cwd=tmp_path, start_new_session=True)
    try:
        deadline = time.monotonic() + 600
        while "3D Slicer" not in output.read_text() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.5)
        assert f"answers at http://127.0.0.1:{port}/" in output.read_text()
        process.send_signal(signal.SIGTERM)
        assert process.wait(180) == 0
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", port)) != 0
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
