"""A real Orthanc with its DICOMweb plugin, in a temporary folder, on free loopback ports."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path

import requests

from tests.ports import free_port

PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")


def orthanc_binary() -> str | None:
    """The Orthanc program, or None where Debian's ``orthanc`` and ``orthanc-dicomweb`` are not installed."""
    found = shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin:/usr/bin")
    return found if found and PLUGIN.exists() else None


def stop_process(process: subprocess.Popen, seconds: float = 20.0) -> None:
    """Ends a process started in its own session together with its children: first politely, then by force."""
    for sig in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            try:
                os.killpg(process.pid, sig)
            except ProcessLookupError:
                return
            try:
                process.wait(seconds)
            except subprocess.TimeoutExpired:
                continue


class OrthancServer:
    """Starts Orthanc on construction; use as a context manager, or call :meth:`stop`.

    folder: an empty folder for its configuration, index, files and log.
    Raises RuntimeError (with the end of the log) if it does not answer in time.
    """

    def __init__(self, folder: Path, start_seconds: float = 300.0):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.dicomweb_url = f"{self.url}/dicom-web"
        self.session = requests.Session()
        self.session.trust_env = False
        config = {
            "Name": "TEST",
            "StorageDirectory": str(self.folder / "storage"),
            "IndexDirectory": str(self.folder / "storage"),
            "Plugins": [str(PLUGIN)],
            "HttpPort": self.port,
            "DicomServerEnabled": False,
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": False,
            "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
        }
        path = self.folder / "orthanc.json"
        path.write_text(json.dumps(config, indent=1))
        self.log_path = self.folder / "orthanc.log"
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                [orthanc_binary(), str(path)],
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                cwd=self.folder,
                start_new_session=True,
            )
        deadline = time.monotonic() + start_seconds
        while True:
            try:
                if self.session.get(f"{self.dicomweb_url}/studies", timeout=30).ok:
                    return
            except requests.RequestException:
                pass
            if self.process.poll() is not None or time.monotonic() > deadline:
                tail = self.log_path.read_text(errors="replace")[-2000:]
                self.stop()
                raise RuntimeError(f"Orthanc did not answer within {start_seconds:g} s:\n{tail}")
            time.sleep(0.2)

    def upload(self, files: Iterable[Path]) -> int:
        """Stores DICOM files, and returns how many. Raises requests.HTTPError for one Orthanc refuses."""
        count = 0
        for file in files:
            reply = self.session.post(f"{self.url}/instances", data=Path(file).read_bytes(), timeout=120)
            reply.raise_for_status()
            count += 1
        return count

    def find_series(self, **query: str) -> list[dict]:
        """Orthanc's own description of every series that matches, for example ``Modality="SEG"``."""
        body = {"Level": "Series", "Query": query, "Expand": True}
        reply = self.session.post(f"{self.url}/tools/find", json=body, timeout=60)
        reply.raise_for_status()
        return reply.json()

    def series_files(self, series_uid: str) -> list[bytes]:
        """The stored DICOM files of one SeriesInstanceUID, as bytes."""
        files = []
        for series in self.find_series(SeriesInstanceUID=series_uid):
            for instance in series["Instances"]:
                reply = self.session.get(f"{self.url}/instances/{instance}/file", timeout=60)
                reply.raise_for_status()
                files.append(reply.content)
        return files

    def stop(self) -> None:
        """Ends Orthanc."""
        self.session.close()
        stop_process(self.process)

    def __enter__(self) -> OrthancServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
