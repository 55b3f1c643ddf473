"""What the tests of faults share: an app folder of few models, small disks, and a server that is killed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import nibabel as nib
import numpy as np
import psutil
import pytest
import requests

from tests.server_fixture import ROOT, Server, start, wait_until_up

MODEL = "intensity_t1"
STOPPING = ROOT / "tests" / "real" / "stopping"
NEEDED = ("template", "brain_extraction", "input_gate_t1")


def few_models(folder: Path, *models: str, copies: bool = False) -> Path:
    """An app folder with this repository's code and a few shipped models.

    copies: of all files, so that they can be damaged, and that the command line works on this folder.
    """
    for name in ("main.py", "lib", "monailabel_app"):
        if not copies:
            (folder / name).symlink_to(ROOT / name)
        elif name == "main.py":
            shutil.copy(ROOT / name, folder)
        else:
            ignored = shutil.ignore_patterns("__pycache__", "node_modules")
            shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    weights = folder / "model_weights"
    weights.mkdir()
    for name in (*models, *NEEDED):
        source = ROOT / "model_weights" / name
        if not source.is_dir():
            continue
        if copies and name in models:
            shutil.copytree(source, weights / name)
        else:
            (weights / name).symlink_to(source)
    return folder


@contextmanager
def small_disk(folder: Path, megabytes: float) -> Iterator[Path]:
    """A disk of its own on ``folder``. Skips where this user may not mount one."""
    folder.mkdir(parents=True, exist_ok=True)
    size = f"size={int(megabytes * 1024)}k"
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(folder)], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"needs to mount a small disk, which is refused here: {mounted.stderr.strip()[:200]}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=False)


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """A folder that nobody may write into while this lasts, root included. Skips as ``small_disk``."""
    bound = subprocess.run(["mount", "--bind", str(folder), str(folder)], capture_output=True, text=True)
    if bound.returncode:
        pytest.skip(f"needs a bind mount, which is refused here: {bound.stderr.strip()[:200]}")
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", str(folder)], check=True, capture_output=True)
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=False)


@contextmanager
def filled(folder: Path, leave_kb: int = 0) -> Iterator[None]:
    """Its disk is full but for so many KB while this lasts."""
    filler = folder / ".filler"
    chunk = bytes(4096)
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        free = shutil.disk_usage(folder).free // 4096 - leave_kb // 4
        for _ in range(int(free)):
            file.write(chunk)
        while not leave_kb:
            file.write(chunk)
    try:
        yield
    finally:
        filler.unlink(missing_ok=True)


class Killable:
    """A server that can be killed and started again with the same folders; use as a context manager."""

    def __init__(self, studies: str | Path, app: Path, conf: dict[str, str] | None = None, env=None, **more):
        self.studies, self.app, self.more = studies, app, more
        own_log = {"audit": str(app / "logs" / "audit.jsonl")}
        self.conf = {"models": "all", "auto_update_scoring": "false", **own_log, **(conf or {})}
        self.env = {"HOME": str(app), **(env or {})}
        self.server: Server | None = None
        self._logs: list[Path] = []

    def __enter__(self) -> Killable:
        return self.up()

    def __exit__(self, *_: object) -> None:
        if self.server is not None:
            self.kill()
        for log in self._logs:
            log.unlink(missing_ok=True)

    def up(self) -> Killable:
        """Start it, and wait until it answers."""
        process, log, url = start(self.studies, app=self.app, conf=self.conf, env=self.env, **self.more)
        self._logs.append(log)
        self.server = Server(url, str(self.studies), log, process)
        try:
            wait_until_up(process, log, url, 600)
        except BaseException:
            # Nobody else would end it: what is entered in vain is not left.
            self.kill()
            raise
        return self

    def kill(self) -> None:
        """SIGKILL, as the kernel does where memory is short."""
        self.server.process.kill()
        self.server.process.wait(60)

    @property
    def url(self) -> str:
        """Where it answers now."""
        return self.server.url

    def infer(self, image: str, model: str = MODEL, timeout: float = 300, **params) -> requests.Response:
        """POST /infer for a stored image, answered as JSON."""
        body = {"params": json.dumps(params)}
        where = f"{self.url}/infer/{model}"
        return requests.post(where, params={"image": image, "output": "json"}, data=body, timeout=timeout)

    def upload(self, image: str, file: Path, timeout: float = 120) -> requests.Response:
        """PUT /datastore/image."""
        with open(file, "rb") as content:
            files = {"file": (f"scan{''.join(file.suffixes[-2:])}", content)}
            return requests.put(f"{self.url}/datastore/image", params={"image": image}, files=files, timeout=timeout)

    def submit(self, image: str, file: Path, tag: str = "final", timeout: float = 120) -> requests.Response:
        """PUT /datastore/label."""
        with open(file, "rb") as content:
            files = {"label": ("label.nii.gz", content)}
            query = {"image": image, "tag": tag}
            return requests.put(f"{self.url}/datastore/label", params=query, files=files, timeout=timeout)

    def label(self, image: str, tag: str = "final") -> requests.Response:
        """GET /datastore/label."""
        return requests.get(f"{self.url}/datastore/label", params={"label": image, "tag": tag}, timeout=300)

    def images(self) -> list[str]:
        """The ids that it lists."""
        answer = requests.get(f"{self.url}/datastore/", params={"output": "all"}, timeout=300)
        assert answer.status_code == 200, answer.text
        return list(answer.json()["objects"])

    def detail(self, answer: requests.Response) -> str:
        """The sentence of a refusal."""
        return answer.json()["detail"]


class Stop:
    """Stops a ``Killable`` in a stage of an analysis, to be killed there. ``env``: what the server is started with."""

    def __init__(self, folder: Path):
        self._file = folder / "stop_at"
        self.env = {"PYTHONPATH": str(STOPPING), "STOP_AT": str(self._file)}

    def at(self, stage: str) -> None:
        """Of the next analysis; empty: of none."""
        self._file.write_text(stage)

    def wait(self, server: Killable) -> None:
        """Until it stands there."""
        process = psutil.Process(server.server.process.pid)
        wait_for(lambda: process.status() == psutil.STATUS_STOPPED, "the stage")


def scan(path: Path, value: int = 0, shape=(24, 24, 12)) -> Path:
    """A small image that is no head; ``value`` is in its first voxel."""
    data = np.random.default_rng(value).integers(0, 2000, shape).astype(np.int16)
    data[0, 0, 0] = value
    nib.save(nib.Nifti1Image(data, np.diag([2.0, 2.0, 2.0, 1.0])), path)
    return path


def label(path: Path, value: int, shape=(24, 24, 12)) -> Path:
    """A label for ``scan`` that tells which one it is: ``value`` ones at its beginning."""
    data = np.zeros(shape, np.uint8).reshape(-1)
    data[:value] = 1
    nib.save(nib.Nifti1Image(data.reshape(shape), np.diag([2.0, 2.0, 2.0, 1.0])), path)
    return path


def count(path: Path) -> int:
    """Which label it is. Raises for a file that is not whole."""
    return int(np.asarray(nib.load(path).dataobj).sum())


def leftovers(*folders: Path) -> list[str]:
    """Files half written or forgotten, in folders where there should be none."""
    signs = (".placing-", ".partial", ".writing-", ".staging-", ".removed-")
    found = [path for folder in folders for path in Path(folder).rglob("*") if any(s in path.name for s in signs)]
    return [str(path) for path in found]


def wait_for(condition, what: str, seconds: float = 600) -> None:
    """Polls. Raises TimeoutError."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} did not come within {seconds:.0f} s")
        time.sleep(0.1)


def is_root() -> bool:
    """Whether mode bits mean nothing."""
    return os.geteuid() == 0
