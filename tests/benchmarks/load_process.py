"""Asks one address again and again from a process of its own, which no other work of a benchmark holds up."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

_PAUSE_S = 0.25
_CODE = """
import json, sys, time, http.client
from urllib.parse import urlsplit
address = urlsplit(sys.argv[1])
while True:
    at, began = time.time(), time.perf_counter()
    try:
        connection = http.client.HTTPConnection(address.hostname, address.port, timeout=120)
        connection.request("GET", address.path)
        answer = connection.getresponse()
        answer.read()
        ok = answer.status == 200
        connection.close()
    except OSError:
        ok = False
    print(json.dumps([at, time.perf_counter() - began, ok]), flush=True)
    time.sleep(float(sys.argv[2]))
"""


class Probe:
    """Seconds that an address took, with the time of each."""

    def __init__(self, url: str):
        self._url = url
        self._process: subprocess.Popen | None = None
        self._log = Path()
        self._lines: list[list] = []

    def start(self) -> None:
        """Begin."""
        handle, name = tempfile.mkstemp(prefix="load_probe_", suffix=".jsonl")
        self._log = Path(name)
        command = [sys.executable, "-I", "-S", "-c", _CODE, self._url, str(_PAUSE_S)]
        with os.fdopen(handle, "wb") as out:
            self._process = subprocess.Popen(command, stdout=out)

    def end(self) -> None:
        """Stop, and read what was measured."""
        if self._process is None:
            return
        time.sleep(0.1)
        self._process.terminate()
        self._process.wait(20)
        for line in self._log.read_text().splitlines():
            try:
                self._lines.append(json.loads(line))
            except ValueError:
                continue  # The last one, cut short.
        self._log.unlink()
        self._process = None

    def times(self) -> list[tuple[float, float]]:
        """Time of day and seconds of every question that was answered."""
        return [(at, seconds) for at, seconds, ok in self._lines if ok]

    @property
    def unanswered(self) -> int:
        """Questions without an answer, or with another than 200."""
        return sum(not ok for _, _, ok in self._lines)
