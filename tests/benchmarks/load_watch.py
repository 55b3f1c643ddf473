"""What a server is like from outside while others use it: how soon it answers, and what it holds."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import requests

from tests.benchmarks.load_process import Probe

_SAMPLE_S, _JOBS_S = 2.0, 4.0


class Watch(threading.Thread):
    """Memory, open files, threads and temporary files of the server's process, and the jobs that it lists."""

    def __init__(self, url: str, pid: int, temporary: Path):
        super().__init__(name="watch", daemon=True)
        self._url, self._pid, self._temporary = url, pid, temporary
        self._began, self._ended = time.monotonic(), threading.Event()
        self._began_at = time.time()
        self.samples: list[dict[str, float]] = []
        self.jobs: dict[str, dict[str, Any]] = {}
        self.probe = Probe(f"{url}/info/")

    def run(self) -> None:
        """Until ``end``."""
        self.probe.start()
        asked = 0.0
        while not self._ended.wait(_SAMPLE_S):
            self._take()
            if time.monotonic() - asked > _JOBS_S:
                asked = time.monotonic()
                self._look()
        # What is told of the end is of the end, also where an answer took long.
        self._look()
        self._take()

    def end(self) -> None:
        """No more samples after the one of now."""
        self._ended.set()
        self.join(300)
        self.probe.end()

    def _take(self) -> None:
        with suppress(OSError):
            self.samples.append(self._sample())

    def _look(self) -> None:
        with suppress(requests.RequestException, ValueError, KeyError):
            for job in requests.get(f"{self._url}/anomaly/jobs", timeout=60).json()["jobs"]:
                self.jobs[job["id"]] = job

    def _sample(self) -> dict[str, float]:
        process = Path(f"/proc/{self._pid}")
        status = dict(
            line.split(":", 1) for line in (process / "status").read_text().splitlines() if ":" in line
        )
        files = []
        for path in self._temporary.rglob("*"):
            with suppress(OSError):
                if path.is_file():
                    files.append(path.stat().st_size)
        return {
            "at": round(time.monotonic() - self._began, 1),
            "rss_mb": round(int(status["VmRSS"].split()[0]) / 1024, 1),
            "threads": int(status["Threads"]),
            "files": sum(1 for _ in (process / "fd").iterdir()),
            "temporary": len(files),
            "temporary_mb": round(sum(files) / 2**20, 2),
        }

    def resources(self) -> dict[str, Any]:
        """Of each figure the median of the second and of the last quarter, and the highest."""
        told: dict[str, Any] = {}
        if len(self.samples) < 8:
            return told
        for name in self.samples[0]:
            values = [sample[name] for sample in self.samples]
            quarter = len(values) // 4
            told[name] = {
                "second quarter": float(np.median(values[quarter : 2 * quarter])),
                "last quarter": float(np.median(values[-quarter:])),
                "most": max(values),
                "at the end": values[-1],
            }
        del told["at"]
        return told

    def latency(self) -> dict[str, float]:
        """Of /info/: how often it was asked, and seconds."""
        return percentiles([seconds for _, seconds in self.probe.times()])

    def slowest(self) -> list[dict[str, float]]:
        """The ten slowest answers of /info/: seconds since the start, and how long each took."""
        times = sorted(self.probe.times(), key=lambda pair: -pair[1])[:10]
        return [{"at": round(at - self._began_at, 1), "seconds": round(took, 3)} for at, took in times]

    def order(self, submitted: set[str]) -> dict[str, Any]:
        """Whether requests, and submitted jobs, began in the order in which they came.

        submitted: the images of jobs; a request overtakes them, but for one. Left out are analyses that were at hand,
        which wait for nobody, and those that ended before they began.
        """
        ran = [job for job in self.jobs.values() if job["started"] and "note" not in job["params"]]
        moved: list[int] = []
        for is_job in (False, True):
            of_kind = [job for job in ran if (job["image"] in submitted) == is_job]
            of_kind.sort(key=lambda job: job["created"])
            by_start = sorted(of_kind, key=lambda job: job["started"])
            place = {job["id"]: number for number, job in enumerate(by_start)}
            moved += [abs(place[job["id"]] - number) for number, job in enumerate(of_kind)]
        # Two that came within the same moment may be listed either way.
        late = sum(by > 1 for by in moved)
        return {"analyses": len(ran), "not in their place": late, "furthest": max(moved, default=0)}


def percentiles(seconds: list[float]) -> dict[str, float]:
    """Count, median, 95 %, 99 % and the longest."""
    if not seconds:
        return {"count": 0}
    shares = {"p50": 50, "p95": 95, "p99": 99}
    told = {name: round(float(np.percentile(seconds, share)), 4) for name, share in shares.items()}
    return {"count": len(seconds), **told, "max": round(max(seconds), 4)}
