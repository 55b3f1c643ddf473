"""A real server for tests, started by the command that users type, with its own studies and a free port."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import requests

from tests.ports import free_port

ROOT = Path(__file__).resolve().parent.parent
FAKE_PIPELINE = ROOT / "tests" / "lib" / "fake_pipeline"


@dataclass
class Server:
    """A running server: where it answers, which folder it serves, and its log."""

    url: str
    studies: str
    log: Path
    process: subprocess.Popen = field(repr=False)

    def get(self, path: str, **kwargs) -> requests.Response:
        """GET ``path``."""
        return requests.get(self.url + path, timeout=300, **kwargs)

    def infer(self, model: str, *, timeout: float = 300, **kwargs) -> requests.Response:
        """POST /infer/``model`` with the arguments of ``requests.post``."""
        return requests.post(f"{self.url}/infer/{model}", timeout=timeout, **kwargs)

    def log_tail(self, size: int = 4000) -> str:
        """The end of what the server printed."""
        return self.log.read_text(errors="replace")[-size:]


def make_app(folder: Path, models: dict[str, str]) -> Path:
    """An app folder that links to this repository's code, with ``models`` (name -> config.yaml)."""
    for name in ("main.py", "lib", "monailabel_app"):
        (folder / name).symlink_to(ROOT / name)
    for name, config in models.items():
        model = folder / "model_weights" / name
        model.mkdir(parents=True)
        (model / "config.yaml").write_text(config)
    return folder


@contextmanager
def running_server(
    studies: str | Path,
    *,
    app: Path = ROOT,
    conf: dict[str, str] | None = None,
    env: dict[str, str] | None = None,
    fake_pipeline: bool = False,
    cwd: Path | None = None,
    wait_s: float = 600,
):
    """Start ``monailabel start_server`` on a free port, yield a Server once it answers, stop it at the end.

    Raises RuntimeError with the end of its log when it does not come up.
    """
    process, log, url = start(studies, app=app, conf=conf, env=env, fake_pipeline=fake_pipeline, cwd=cwd)
    try:
        wait_until_up(process, log, url, wait_s)
        yield Server(url, str(studies), log, process)
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            # It cancels its jobs, waits for them and writes its last lines of the log.
            process.wait(60)
        if process.poll() is None:
            process.kill()
            process.wait(60)
        log.unlink(missing_ok=True)


def start(studies, *, app=ROOT, conf=None, env=None, fake_pipeline=False, cwd=None):
    """The bare process, its log and its address; the caller stops it."""
    port = free_port()
    command = [sys.executable, "-m", "monailabel.main", "start_server", "--app", str(app)]
    command += ["--studies", str(studies), "--host", "127.0.0.1", "--port", str(port)]
    conf = dict(conf or {"models": "all"})
    if app == ROOT and not {"disk_cache", "cache_days"} & set(conf):
        # What a test finds must not depend on what another one analysed with this repository's models.
        conf["disk_cache"] = tempfile.mkdtemp(prefix="analyses_")
    if app == ROOT:
        # Nor on whether this checkout's server is in use and has tokens.
        conf.setdefault("tokens", str(Path(tempfile.gettempdir()) / "no such folder" / "tokens.json"))
    for key, value in conf.items():
        command += ["--conf", key, value]
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment = {**inherited, "OMP_NUM_THREADS": "1", **(env or {})}
    if fake_pipeline:
        environment["PYTHONPATH"] = str(FAKE_PIPELINE)
    handle, name = tempfile.mkstemp(prefix="server_", suffix=".log")
    with os.fdopen(handle, "wb") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, env=environment, cwd=cwd or ROOT
        )
    return process, Path(name), f"http://127.0.0.1:{port}"


def copy_studies(source: Path, target: Path) -> Path:
    """A copy of a studies folder that a server may write to, without what one that served it wrote beside the scans."""
    target.mkdir(parents=True)
    for path in sorted(source.iterdir()):
        if path.is_file() and not path.name.startswith((".", "datastore_v2.json")):
            shutil.copy(path, target)
    return target


def wait_until_up(process: subprocess.Popen, log: Path, url: str, wait_s: float) -> None:
    """Returns once it answers. Raises RuntimeError, with the end of its log, where it ends or says nothing."""
    deadline = time.monotonic() + wait_s
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"the server stopped with code {process.returncode}:\n{_end_of(log)}")
        with suppress(requests.RequestException):
            # A server that asks for a token answers, too.
            if requests.get(f"{url}/info/", timeout=60).status_code in {200, 401}:
                return
        time.sleep(0.3)
    raise RuntimeError(f"the server did not answer within {wait_s:.0f} s:\n{_end_of(log)}")


def _end_of(log: Path) -> str:
    return log.read_text(errors="replace")[-4000:]
