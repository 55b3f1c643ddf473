"""Clients that work as readers do: upload, have analysed, look, move the threshold, submit labels; and check it all."""

from __future__ import annotations

import json
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests
from monailabel.client import MONAILabelClient
from requests_toolbelt.multipart import decoder

from tests.benchmarks.load_scans import Heads, sha256

WAYS = ("image", "all", "json", "session", "job", "upload", "client")
_LONGEST_PAUSE = 20.0  # s, of what Retry-After says: a benchmark has an end


@dataclass
class Tally:
    """What all clients saw. wrong: every answer that was not right, in words."""

    wrong: list[str] = field(default_factory=list)
    statuses: Counter = field(default_factory=Counter)
    analyses: Counter = field(default_factory=Counter)
    ways: Counter = field(default_factory=Counter)
    retry_after: list[float] = field(default_factory=list)
    seconds: dict[str, list[float]] = field(default_factory=dict)
    images: dict[str, str] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    submitted: set[str] = field(default_factory=set)
    models: set[str] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, what: str, seconds: float) -> None:
        """That a step was done, and how long it took."""
        with self.lock:
            self.seconds.setdefault(what, []).append(seconds)

    def blame(self, text: str) -> None:
        """That an answer was wrong."""
        with self.lock:
            self.wrong.append(text)


class Stopped(Exception):
    """The time is over."""


class Client(threading.Thread):
    """One reader with scans of its own. until: ``time.monotonic()`` after which no round is begun."""

    def __init__(self, number: int, url: str, model: str, heads: Heads, tally: Tally, until: float):
        super().__init__(name=f"client {number}", daemon=True)
        self._number, self._url, self._model = number, url, model
        self._heads, self._tally, self._until = heads, tally, until

    def run(self) -> None:
        """Round after round."""
        with tempfile.TemporaryDirectory(prefix="load_client_") as folder:
            self._folder = Path(folder)
            number = 0
            while time.monotonic() < self._until:
                try:
                    self.round(number)
                except Stopped:
                    return
                except Exception as error:
                    self._blame(f"round {number} ended with {type(error).__name__}: {str(error)[:200]}")
                    time.sleep(0.5)
                number += 1

    def round(self, number: int) -> None:
        """Upload a new scan, have it analysed in one of WAYS, and use the result."""
        image = f"c{self._number:02d}_{number:03d}"
        way = WAYS[(number + self._number) % len(WAYS)]
        content = self._heads.write(self._folder, self._number, number)
        if way not in ("session", "upload"):
            self._upload(image, content)
        began = time.monotonic()
        getattr(self, f"_by_{way}")(image, content)
        self._tally.note("analysis", time.monotonic() - began)
        with self._tally.lock:
            self._tally.analyses[self._number] += 1
            self._tally.ways[way] += 1
        if way not in ("session", "upload"):
            self._look_again(image)
            self._submit(image, number)
        self._ask("GET", "/info/")

    def _by_image(self, image: str, content: bytes) -> None:
        answer = self._infer({"image": image, "output": "image"})
        self._check(self._heads.wrong_mask(self._number, answer.content), "output=image")

    def _by_all(self, image: str, content: bytes) -> None:
        answer = self._infer({"image": image, "output": "all"})
        self._check_all(answer)

    def _by_json(self, image: str, content: bytes) -> None:
        self._check_result(self._infer({"image": image, "output": "json"}).json(), "output=json")

    def _by_session(self, image: str, content: bytes) -> None:
        made = self._ask("PUT", "/session/", files={"files": (f"{image}.nii.gz", content)}).json()
        try:
            self._check_all(self._infer({"session_id": made["session_id"], "output": "all"}))
        finally:
            self._ask("DELETE", f"/session/{made['session_id']}")

    def _by_upload(self, image: str, content: bytes) -> None:
        self._check_all(self._infer({"output": "all"}, files={"file": ("scan.nii.gz", content)}))

    def _by_client(self, image: str, content: bytes) -> None:
        """MONAI Label's own client, as 3D Slicer uses it."""
        client = MONAILabelClient(self._url, str(self._folder))
        while True:
            try:
                file, result = client.infer(self._model, image, {})
                break
            except Exception as error:
                if getattr(error, "status_code", None) != 503:
                    raise
                self._pause(10.0)
        self._check(self._heads.wrong_mask(self._number, Path(file).read_bytes()), "monailabel's client")
        self._check_result(result, "monailabel's client")
        Path(file).unlink()

    def _by_job(self, image: str, content: bytes) -> None:
        self._tally.submitted.add(image)
        job = self._ask("POST", "/anomaly/jobs", json={"image": image, "model": self._model}).json()
        while job["state"] in ("queued", "running"):
            self._pause(1.0)
            job = self._ask("GET", f"/anomaly/jobs/{job['id']}").json()
        if job["state"] != "done" or job["image"] != image:
            self._blame(f"the job of {image} ended as {job['state']} of {job['image']}: {job['error']}")
            return
        result = self._ask("GET", job["result"]).json()
        self._check_result(result["finding"], "results")
        self._check("" if result.get("image") == image else f"a result of {result.get('image')}", "results")
        mask = self._ask("GET", f"/anomaly/results/{image}/mask.nii.gz", params={"model": self._model})
        self._check(self._heads.wrong_mask(self._number, mask.content), "results/mask")

    def _look_again(self, image: str) -> None:
        """The kept map, and the result with a higher threshold: both without an analysis."""
        kept = self._ask("GET", "/datastore/label", params={"label": image, "tag": "anomaly_map"})
        self._check(self._heads.wrong_map(self._number, kept.content), "the kept map")
        usual = self._ask("GET", f"/anomaly/results/{image}", params={"model": self._model}).json()["finding"]
        higher = float(usual["threshold"]) * 1.2
        query = {"model": self._model, "threshold": f"{higher:.4f}"}
        moved = self._ask("GET", f"/anomaly/results/{image}", params=query).json()["finding"]
        fewer = moved["anomaly_volume_ml"] <= usual["anomaly_volume_ml"] + 1e-6
        self._check("" if fewer else "a higher threshold marks more", "threshold")
        again = self._infer({"image": image, "output": "json"}, {"threshold": round(higher, 4), "note": "at hand"})
        self._check_result(again.json(), "threshold")

    def _upload(self, image: str, content: bytes) -> None:
        files = {"file": (f"{image}.nii.gz", content)}
        self._ask("PUT", "/datastore/image", params={"image": image}, files=files)
        with self._tally.lock:
            self._tally.images[image] = sha256(content)

    def _submit(self, image: str, number: int) -> None:
        content = self._heads.label(self._number, number)
        files = {"label": ("label.nii.gz", content)}
        self._ask("PUT", "/datastore/label", params={"image": image, "tag": "final"}, files=files)
        with self._tally.lock:
            self._tally.labels[image] = sha256(content)

    def _infer(self, query: dict[str, str], params: dict[str, Any] | None = None, **kwargs: Any) -> requests.Response:
        data = {"params": json.dumps(params)} if params else None
        return self._ask("POST", f"/infer/{self._model}", params=query, data=data, **kwargs)

    def _ask(self, method: str, path: str, **kwargs: Any) -> requests.Response:
        """Ask until the server is not busy, as often as it says to come back. Raises what is not a success."""
        while True:
            began = time.monotonic()
            # Each on a connection of its own: after some seconds the server closes one that nobody uses, and who asks
            # on it at that moment gets no answer.
            answer = requests.request(method, self._url + path, timeout=600, **kwargs)
            with self._tally.lock:
                self._tally.statuses[str(answer.status_code)] += 1
            if answer.status_code != 503:
                answer.raise_for_status()
                self._tally.note(f"{method} {path.split('/')[1]}", time.monotonic() - began)
                return answer
            self._pause(self._told(answer))

    def _told(self, answer: requests.Response) -> float:
        """What Retry-After says."""
        told = answer.headers.get("Retry-After", "")
        if not told.isdigit() or not 1 <= int(told) <= 300:
            self._blame(f"a 503 with Retry-After {told!r}")
            return 1.0
        with self._tally.lock:
            self._tally.retry_after.append(float(told))
        return min(_LONGEST_PAUSE, float(told))

    def _pause(self, seconds: float) -> None:
        """Raises Stopped when the time is over long since: what was begun is given time to end."""
        if time.monotonic() > self._until + 900:
            raise Stopped
        time.sleep(seconds)

    def _check_all(self, answer: requests.Response) -> None:
        parts = {}
        for part in decoder.MultipartDecoder.from_response(answer).parts:
            parts[b"params" if b'name="params"' in part.headers[b"Content-Disposition"] else b"file"] = part.content
        self._check(self._heads.wrong_mask(self._number, parts[b"file"]), "output=all")
        self._check_result(json.loads(parts[b"params"]), "output=all")

    def _check_result(self, result: dict[str, Any], where: str) -> None:
        self._check(self._heads.wrong_lesions(self._number, result["lesions"]), where)
        with self._tally.lock:
            self._tally.models.add(str(result["model"]["hash"]))

    def _check(self, fault: str, where: str) -> None:
        if fault:
            self._blame(f"{where}: {fault}")

    def _blame(self, text: str) -> None:
        self._tally.blame(f"client {self._number}: {text}")


def read_back(url: str, tally: Tally) -> dict[str, int]:
    """Whether everything that was acknowledged is there, to the byte. Returns how much was and was not."""
    found, lost = 0, 0
    wanted: list[tuple[str, dict[str, str], str]] = []
    wanted += [("/datastore/image", {"image": image}, digest) for image, digest in tally.images.items()]
    wanted += [("/datastore/label", {"label": image, "tag": "final"}, digest) for image, digest in tally.labels.items()]
    for path, query, digest in wanted:
        answer = requests.get(url + path, params=query, timeout=120)
        if answer.status_code == 200 and sha256(answer.content) == digest:
            found += 1
        else:
            lost += 1
            tally.blame(f"{path} {query} was acknowledged and is {answer.status_code} now, or another")
    listed = requests.get(f"{url}/datastore/", params={"output": "all"}, timeout=120).json()["objects"]
    for image in tally.images:
        entry = listed.get(image)
        if entry is None or (image in tally.labels and "final" not in entry["labels"]):
            lost += 1
            tally.blame(f"{image} or its label is not listed")
    return {"acknowledged": len(wanted), "read back": found, "lost": lost}


def run_clients(count: int, make: Callable[[int], Client], wait_s: float) -> int:
    """Start so many and wait for all of them. Returns how many did not come to an end."""
    clients = [make(number) for number in range(count)]
    for client in clients:
        client.start()
    deadline = time.monotonic() + wait_s
    for client in clients:
        with suppress(RuntimeError):
            client.join(max(0.0, deadline - time.monotonic()))
    return sum(client.is_alive() for client in clients)
