"""Clients that behave badly: too many at once, too slow, and gone before they have an answer."""

from __future__ import annotations

import socket
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests

from tests.benchmarks.load_scans import Heads

_BOUNDARY = "load-boundary"


class SlowSenders:
    """Connections that send an upload a byte at a time, and never come to its end."""

    def __init__(self, url: str, model: str, count: int):
        self._url, self._model, self._ended = url, model, threading.Event()
        self.sent = 0
        self._threads = [threading.Thread(target=self._drip, daemon=True) for _ in range(count)]

    def __enter__(self) -> SlowSenders:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(10)

    def _drip(self) -> None:
        while not self._ended.is_set():
            with suppress(OSError), _connection(self._url) as connection:
                connection.sendall(_head(self._url, self._model, length=2_000_000) + _part_head())
                while not self._ended.wait(0.5):
                    connection.sendall(b"\0")
                    self.sent += 1


def gone_in_upload(url: str, model: str, content: bytes) -> None:
    """Send half of an upload to /infer, and go."""
    with _connection(url) as connection:
        connection.sendall(_head(url, model, length=len(content) + 1000) + _part_head() + content[: len(content) // 2])
        time.sleep(0.2)


def gone_while_waiting(url: str, model: str, content: bytes, leave: threading.Event) -> None:
    """Send a whole upload to /infer, and go without the answer as soon as ``leave`` is set."""
    body = _part_head() + content + f"\r\n--{_BOUNDARY}--\r\n".encode()
    with _connection(url) as connection:
        connection.sendall(_head(url, model, length=len(body)) + body)
        leave.wait(120)


def leave_in_line(url: str, model: str, heads: Heads, folder: Path, count: int = 3) -> dict[str, Any]:
    """Behind a line of jobs, ``count`` clients wait for an analysis and go. What became of their places?

    Returns how many of their requests were seen waiting, how many of these ended as cancelled before they began, and
    how many ran all the same.
    """
    holding = [_job(url, model, heads, folder, number) for number in range(4)]
    before = {job["id"] for job in _jobs(url)}
    threads, leave = [], threading.Event()
    for number in range(count):
        content = heads.write(folder, number, 90_000 + number)
        threads.append(threading.Thread(target=gone_while_waiting, args=(url, model, content, leave), daemon=True))
    for thread in threads:
        thread.start()
    seen: dict[str, dict] = {}
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for job in _jobs(url):
            if job["id"] not in before and not job["image"] and job["model"] == model:
                seen[job["id"]] = job
        if len(seen) >= count:
            break
        time.sleep(0.2)
    leave.set()
    for thread in threads:
        thread.join(20)
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline:
        now = [requests.get(f"{url}/anomaly/jobs/{name}", timeout=60).json() for name in seen]
        if all(job["state"] not in ("queued", "running") for job in now):
            break
        time.sleep(0.3)
    for job in holding:
        requests.delete(f"{url}/anomaly/jobs/{job}", timeout=60)
    return {
        "gone": count,
        "seen in line": len(seen),
        "place given up": sum(job["state"] == "cancelled" and job["started"] is None for job in now),
        "stopped while running": sum(job["state"] == "cancelled" and job["started"] is not None for job in now),
        "ran for nobody": sum(job["state"] in ("done", "running") for job in now),
    }


def _job(url: str, model: str, heads: Heads, folder: Path, number: int) -> str:
    """A job of a new scan. Returns its id."""
    image = f"hold_{number:02d}"
    content = heads.write(folder, number, 80_000 + number)
    files = {"file": (f"{image}.nii.gz", content)}
    requests.put(f"{url}/datastore/image", params={"image": image}, files=files, timeout=120).raise_for_status()
    answer = requests.post(f"{url}/anomaly/jobs", json={"image": image, "model": model}, timeout=60)
    answer.raise_for_status()
    return answer.json()["id"]


def _jobs(url: str) -> list[dict[str, Any]]:
    return requests.get(f"{url}/anomaly/jobs", timeout=60).json()["jobs"]


def too_many(url: str, model: str, heads: Heads, folder: Path, count: int, patience_s: float = 600) -> dict[str, Any]:
    """``count`` requests at the same moment; each that is turned away comes back when it was told to.

    Returns how often 200 and 503 came, the shortest and longest Retry-After, and what was wrong.
    """
    contents = [heads.write(folder, number, 70_000) for number in range(count)]
    statuses, told, wrong, later = Counter(), [], [], Counter()
    lock, together = threading.Lock(), threading.Barrier(count)

    def send(number: int) -> None:
        together.wait(60)
        deadline, tries = time.monotonic() + patience_s, 0
        while time.monotonic() < deadline:
            files = {"file": ("scan.nii.gz", contents[number])}
            answer = requests.post(
                f"{url}/infer/{model}", params={"output": "image"}, files=files, timeout=patience_s
            )
            tries += 1
            with lock:
                (statuses if tries == 1 else later)[str(answer.status_code)] += 1
            if answer.status_code == 503:
                wait = answer.headers.get("Retry-After", "")
                with lock:
                    told.append(float(wait) if wait.isdigit() else -1.0)
                time.sleep(max(0.5, min(patience_s / 2, told[-1])))
                continue
            fault = heads.wrong_mask(number, answer.content) if answer.status_code == 200 else answer.text[:200]
            if fault:
                with lock:
                    wrong.append(f"client {number}: {fault}")
            return
        with lock:
            wrong.append(f"client {number}: no answer within {patience_s:.0f} s")

    threads = [threading.Thread(target=send, args=(number,), daemon=True) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(patience_s + 60)
    return {
        "clients": count,
        "first answers": dict(statuses),
        "later answers": dict(later),
        "retry_after_s": [min(told), max(told)] if told else [],
        "wrong": wrong,
    }


def _connection(url: str) -> socket.socket:
    address = urlsplit(url)
    return socket.create_connection((address.hostname, address.port), timeout=30)


def _head(url: str, model: str, length: int) -> bytes:
    lines = [
        f"POST /infer/{model}?output=json HTTP/1.1",
        f"Host: {urlsplit(url).netloc}",
        f"Content-Type: multipart/form-data; boundary={_BOUNDARY}",
        f"Content-Length: {length}",
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def _part_head() -> bytes:
    lines = [
        f"--{_BOUNDARY}",
        'Content-Disposition: form-data; name="file"; filename="scan.nii.gz"',
        "Content-Type: application/octet-stream",
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()
