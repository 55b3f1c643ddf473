"""Clients that behave badly: too many at once, too slow, and gone before they have an answer."""

from __future__ import annotations

import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests

from tests.benchmarks.load_scans import Heads

_BOUNDARY = "load-boundary"
# Requests that stand in line before those that are looked at; with them fewer than a line takes.
_BEFORE = 8


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
        leave.wait(600)


@contextmanager
def line_before(url: str, model: str, heads: Heads, folder: Path) -> Iterator[threading.Event]:
    """So many requests that whoever comes now waits, however fast the machine is; they go when the event is set."""
    leave = threading.Event()
    threads, _ = _in_line(url, model, heads, folder, range(_BEFORE), 80_000, leave)
    try:
        yield leave
    finally:
        leave.set()
        _join(threads)


def leave_in_line(url: str, model: str, heads: Heads, folder: Path, count: int = 3) -> dict[str, Any]:
    """Behind a line of requests, ``count`` clients wait for an analysis and go. What became of their places?

    Returns how many of their requests were seen waiting, how many of these ended as cancelled before they began, and
    how many ran all the same.
    """
    with line_before(url, model, heads, folder):
        leave = threading.Event()
        threads, seen = _in_line(url, model, heads, folder, range(count), 90_000, leave)
        leave.set()
        _join(threads)
        deadline = time.monotonic() + 120
        while True:
            now = [requests.get(f"{url}/anomaly/jobs/{name}", timeout=60).json() for name in seen]
            if all(job["state"] not in ("queued", "running") for job in now) or time.monotonic() > deadline:
                break
            time.sleep(0.3)
    return {
        "gone": count,
        "seen in line": len(seen),
        "place given up": sum(job["state"] == "cancelled" and job["started"] is None for job in now),
        "stopped while running": sum(job["state"] == "cancelled" and job["started"] is not None for job in now),
        "ran for nobody": sum(job["state"] in ("done", "running") for job in now),
    }


def _in_line(
    url: str, model: str, heads: Heads, folder: Path, numbers: range, seed: int, leave: threading.Event
) -> tuple[list[threading.Thread], set[str]]:
    """Clients with scans of their own that stay until ``leave``: their threads, and their jobs once all are seen."""
    contents = [heads.write(folder, number, seed + number) for number in numbers]
    former = {job["id"] for job in _jobs(url)}
    threads = [
        threading.Thread(target=gone_while_waiting, args=(url, model, content, leave), daemon=True)
        for content in contents
    ]
    for thread in threads:
        thread.start()
    seen: set[str] = set()
    deadline = time.monotonic() + 120
    while len(seen) < len(threads) and time.monotonic() < deadline:
        seen |= {
            job["id"] for job in _jobs(url) if job["id"] not in former and not job["image"] and job["model"] == model
        }
        time.sleep(0.05)
    return threads, seen


def _join(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.join(60)


def _jobs(url: str) -> list[dict[str, Any]]:
    return requests.get(f"{url}/anomaly/jobs", timeout=60).json()["jobs"]


def too_many(url: str, model: str, heads: Heads, folder: Path, count: int, patience_s: float = 1800) -> dict[str, Any]:
    """Behind a line, ``count`` requests at the same moment; each that is turned away comes back when it was told to.

    Returns how often 200 and 503 came, the shortest and longest Retry-After, and what was wrong.
    """
    contents = [heads.write(folder, number, 70_000) for number in range(count)]
    statuses, told, wrong, later = Counter(), [], [], Counter()
    turned_away = threading.Event()
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
                turned_away.set()
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
    with line_before(url, model, heads, folder) as leave:
        for thread in threads:
            thread.start()
        # The line is full: those before make room.
        turned_away.wait(120)
        leave.set()
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
