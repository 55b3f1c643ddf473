"""The bad files of ``tests.bad_files``, one after the other, against a real server."""

from __future__ import annotations

import hashlib
import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import requests

from tests.bad_files import Case
from tests.server_fixture import Server

# What no reason may show: Python's names of things, and where files lie on the server.
INTERNALS = re.compile(r"<class|object at 0x|Traceback|/tmp/|/work/|/home/|site-packages|Error\(|errno|sitk::|itk::")
MODEL = "intensity_t1"
PATIENCE_S = 60.0
# Kinds of cases whose analyses are jobs (POST /anomaly/jobs) instead of requests that wait.
BY_JOB = ("odd header", "extension")


@dataclass(frozen=True)
class Row:
    """What became of a case. outcome: refused at upload, refused at analysis, result, or what went wrong."""

    case: Case
    outcome: str
    status: int
    seconds: float
    reason: str
    faults: tuple[str, ...]


def send_all(server: Server, cases: Iterable[Case], temporary: Path, until: float = float("inf")) -> Iterator[Row]:
    """Send each case, look whether the server is as it was, and undo what was taken. until: monotonic seconds."""
    before, lying = state_of(server.studies), _all_below(temporary)
    for case in cases:
        if time.monotonic() > until:
            return
        faults: list[str] = []
        started = time.monotonic()
        try:
            outcome, answer = _send(server, case)
        except requests.RequestException as error:
            yield Row(case, "no answer", 0, time.monotonic() - started, type(error).__name__, ("no answer",))
            return
        seconds = time.monotonic() - started
        reason = _reason(answer) if answer.status_code != 200 else ""
        if case.kind in BY_JOB and outcome == "refused at analysis":
            reason = str(answer.json().get("error"))
            faults += [] if "expected" in reason else ["no reason"]
        if answer.status_code >= 500:
            faults.append(f"status {answer.status_code}")
        if answer.status_code != 200:
            if case.words not in reason and "expected" not in reason and "no brain" not in reason.lower():
                faults.append("no reason")
            if INTERNALS.search(reason):
                faults.append("shows internals")
        taken = outcome in ("result", "refused at analysis") if case.way == "store" else outcome == "result"
        if case.outcome == "refused" and outcome == "result":
            faults.append("taken")
        if case.outcome == "taken" and case.way == "store" and not taken:
            faults.append("refused")
        faults += _traces(server.studies, before, temporary, lying)
        if server.process.poll() is not None or server.get("/info/").status_code != 200:
            faults.append("server down")
        yield Row(case, outcome, answer.status_code, seconds, reason, tuple(faults))


def _send(server: Server, case: Case) -> tuple[str, requests.Response]:
    content = case.content()
    infer = {"params": {"output": "json"}, "timeout": 300}
    if case.way == "infer":
        answer = requests.post(f"{server.url}/infer/{MODEL}", files={"file": (case.name, content)}, **infer)
        return ("result" if answer.status_code == 200 else "refused at analysis"), answer
    if case.way == "session":
        archive = {"files": (case.name, content)}
        made = requests.put(f"{server.url}/session/", params={"uncompress": "true"}, files=archive, timeout=300)
        if made.status_code != 200:
            return "refused at upload", made
        session = made.json()["session_id"]
        params = {"session_id": session, "output": "json"}
        answer = requests.post(f"{server.url}/infer/{MODEL}", params=params, timeout=300)
        requests.delete(f"{server.url}/session/{session}", timeout=60)
        return ("result" if answer.status_code == 200 else "refused at analysis"), answer
    answer = requests.put(f"{server.url}/datastore/image", files={"file": (case.name, content)}, timeout=300)
    if answer.status_code != 200:
        return "refused at upload", answer
    image = answer.json()["image"]
    state = ""
    if case.kind in BY_JOB:
        state, answer = _by_job(server, image)
    else:
        answer = requests.post(f"{server.url}/infer/{MODEL}", params={"image": image, "output": "json"}, timeout=300)
    requests.delete(f"{server.url}/datastore/image", params={"id": image}, timeout=60).raise_for_status()
    good = state == "done" if state else answer.status_code == 200
    return ("result" if good else "refused at analysis"), answer


def _by_job(server: Server, image: str) -> tuple[str, requests.Response]:
    """The analysis as a job, and how that ended."""
    job = requests.post(f"{server.url}/anomaly/jobs", json={"image": image, "model": MODEL}, timeout=60)
    job.raise_for_status()
    while True:
        answer = requests.get(f"{server.url}/anomaly/jobs/{job.json()['id']}", timeout=60)
        if answer.json()["state"] not in ("queued", "running"):
            return answer.json()["state"], answer
        time.sleep(0.2)


def _traces(studies: str | Path, before: dict[str, str], temporary: Path, lying: set[str]) -> list[str]:
    """What a case has left of itself; the file of an answer is removed once that was sent, and its client is faster."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        found = ["datastore changed"] if state_of(studies) != before else []
        left = sorted(_all_below(temporary) - lying)
        found += [f"left behind: {left[:3]}"] if left else []
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.05)


def _reason(answer: requests.Response) -> str:
    try:
        return str(answer.json()["detail"])
    except (ValueError, KeyError, TypeError):
        return ""


def _all_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def state_of(studies: str | Path) -> dict[str, str]:
    """A checksum of every file of a studies folder; the table without its own times."""
    found = {}
    for path in sorted(Path(studies).rglob("*")):
        if path.suffix == ".lock":
            continue
        # What a server writes beside its place may be gone by now.
        with suppress(FileNotFoundError, IsADirectoryError):
            found[str(path.relative_to(studies))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def memory_mb(server: Server) -> float:
    """Resident memory of the server process."""
    return psutil.Process(server.process.pid).memory_info().rss / 2**20


def table_of(rows: list[Row]) -> str:
    """Counts of outcomes by kind, as Markdown."""
    outcomes = sorted({row.outcome for row in rows})
    kinds = list(dict.fromkeys(row.case.kind for row in rows))
    counted = Counter((row.case.kind, row.outcome) for row in rows)
    lines = ["| kind | cases | " + " | ".join(outcomes) + " | faults |", "|---|" + "---:|" * (len(outcomes) + 2)]
    for kind in [*kinds, "all"]:
        mine = [row for row in rows if kind in (row.case.kind, "all")]
        counts = [
            sum(n for (k, o), n in counted.items() if o == outcome and kind in (k, "all")) for outcome in outcomes
        ]
        faults = sum(bool(row.faults) for row in mine)
        lines.append(f"| {kind} | {len(mine)} | " + " | ".join(map(str, counts)) + f" | {faults} |")
    return "\n".join(lines) + "\n"
