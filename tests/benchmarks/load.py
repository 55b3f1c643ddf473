"""A real server under load: ``python tests/benchmarks/load.py --clients 16 --minutes 10``.

Starts the stock server on loopback with the shipped models. Every client has a lesion of its own at a place of its
own and checks that each answer is about it; another process asks ``/info/`` throughout; memory, files and threads are
noted. Meanwhile some clients send slowly or go in the middle of an upload; then some go while they wait in line, and at
last more come at once than the line takes. Everything that was acknowledged is read back at the end. Writes JSON and a
table in Markdown.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import threading
import time
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from monailabel_app.pipelines.predict import load_model  # noqa: E402
from tests.benchmarks.load_clients import Client, Tally, read_back, run_clients  # noqa: E402
from tests.benchmarks.load_scans import Heads  # noqa: E402
from tests.benchmarks.load_trouble import (  # noqa: E402
    SlowSenders,
    gone_in_upload,
    leave_in_line,
    too_many,
)
from tests.benchmarks.load_watch import Watch, percentiles  # noqa: E402
from tests.server_fixture import Server, running_server  # noqa: E402

HEAD = ROOT / "tests" / "data" / "studies" / "ixi_healthy.nii.gz"
PATIENT = Path(__file__).with_name("patient")
_SHARES = ("p50", "p95", "p99", "max")
# Small, so that what is kept is full after a minute and memory that still grows is a leak.
CACHES = {"cache_mb": "128", "scans_mb": "64", "disk_cache_mb": "256"}


def load(
    model: str,
    clients: int,
    minutes: float,
    *,
    burst: int,
    slow: int = 4,
    ways_of_leaving: bool = True,
    patient: bool = False,
) -> dict:
    """Run it all and return what was measured; ``wrong`` lists every answer that was not right.

    patient: the server's line is, so that the order of analyses does not depend on how fast scans are read.
    """
    with tempfile.TemporaryDirectory(prefix="load_") as name:
        folder = Path(name)
        heads = Heads(HEAD, load_model(ROOT / "model_weights" / model), max(clients, burst))
        app, temporary = _app(folder), folder / "tmp"
        (folder / "studies").mkdir()
        temporary.mkdir()
        env = {
            "TMPDIR": str(temporary),
            "MONAI_LABEL_SESSION_PATH": str(folder / "sessions"),
            "OMP_NUM_THREADS": "1",
        }
        if patient:
            env["PYTHONPATH"] = str(PATIENT)
        conf = {"models": "all", **CACHES}
        with running_server(folder / "studies", app=app, conf=conf, env=env, wait_s=600) as server:
            return _measured(server, model, heads, clients, minutes, burst, slow, ways_of_leaving, folder, temporary)


def _measured(
    server: Server,
    model: str,
    heads: Heads,
    clients: int,
    minutes: float,
    burst: int,
    slow: int,
    leaving: bool,
    folder: Path,
    temporary: Path,
) -> dict[str, Any]:
    tally, began = Tally(), time.monotonic()
    until = began + 60 * minutes
    watch = Watch(server.url, server.process.pid, temporary)
    watch.start()
    scans = folder / "scans"
    scans.mkdir()
    with SlowSenders(server.url, model, slow) as senders:
        leaver = threading.Thread(target=_leave_uploads, args=(server.url, model, heads, scans, until), daemon=True)
        leaver.start()

        def make(number: int) -> Client:
            return Client(number, server.url, model, heads, tally, until)

        hanging = run_clients(clients, make, 60 * minutes + 1200)
        leaver.join(60)
        steady = time.monotonic() - began
        print(f"steady: {steady:.0f} s, {sum(tally.analyses.values())} analyses, {len(tally.wrong)} wrong", flush=True)
        left = leave_in_line(server.url, model, heads, scans) if leaving else {}
        print(f"left in line: {left}", flush=True)
        many = too_many(server.url, model, heads, scans, burst)
        print(f"too many at once: {many}", flush=True)
    kept = read_back(server.url, tally)
    _settle(server.url)
    remaining = _remaining(temporary)
    watch.end()
    log = server.log.read_text(errors="replace")
    counts = [tally.analyses[number] for number in range(clients)]
    return {
        "when": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": {"cores": os.cpu_count(), "load": os.getloadavg(), "system": platform.platform()},
        "model": model,
        "clients": clients,
        "minutes": round(steady / 60, 2),
        "caches": CACHES,
        "analyses": sum(counts),
        "analyses per client": {"least": min(counts), "most": max(counts)},
        "ways": dict(tally.ways),
        "statuses": dict(tally.statuses),
        "hanging clients": hanging,
        "info_s": {**watch.latency(), "unanswered": watch.probe.unanswered, "slowest": watch.slowest()},
        "steps_s": {name: percentiles(seconds) for name, seconds in sorted(tally.seconds.items())},
        "resources": watch.resources(),
        "samples": watch.samples,
        "temporary files at the end": [f"{name[:12]}{Path(name).suffix}" for name in remaining],
        "order": watch.order(tally.submitted),
        "slow senders": {"connections": slow, "bytes": senders.sent},
        "left in line": left,
        "too many at once": many,
        "acknowledged": kept,
        "model hashes": sorted(tally.models),
        "errors in the log": sum(line.startswith(("Traceback", "ERROR")) for line in log.splitlines()),
        "wrong": tally.wrong + many["wrong"],
    }


def _leave_uploads(url: str, model: str, heads: Heads, folder: Path, until: float) -> None:
    """Every few seconds, a client goes in the middle of its upload."""
    content = heads.write(folder, 0, 60_000)
    while time.monotonic() < until:
        with suppress(OSError):
            gone_in_upload(url, model, content)
        time.sleep(3)


def _remaining(temporary: Path, seconds: float = 60) -> list[str]:
    """What stays there once everybody has an answer, other than the file by which the server says that it lives."""
    deadline = time.monotonic() + seconds
    while True:
        time.sleep(5)
        found = sorted(path.name for path in temporary.rglob("*") if path.is_file())
        if found in ([], ["alive"]) or time.monotonic() > deadline:
            return found


def _settle(url: str, seconds: float = 300) -> None:
    """Wait until nothing runs or waits any more."""
    import requests

    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        jobs = requests.get(f"{url}/anomaly/jobs", params={"state": "queued,running"}, timeout=60).json()["jobs"]
        if not jobs:
            return
        time.sleep(0.5)


def _app(folder: Path) -> Path:
    """An app folder of its own over this repository's code and models, so that nothing else is written to."""
    app = folder / "app"
    app.mkdir()
    for name in ("main.py", "lib", "monailabel_app", "model_weights"):
        (app / name).symlink_to(ROOT / name)
    return app


def table(told: dict[str, Any]) -> str:
    """The figures as Markdown."""
    info, many, order, kept = told["info_s"], told["too many at once"], told["order"], told["acknowledged"]
    ends = told["analyses per client"]
    rows = [
        ("clients, minutes", f"{told['clients']}, {told['minutes']:g}"),
        ("analyses checked", f"{told['analyses']} (per client {ends['least']} to {ends['most']})"),
        ("wrong, crossed or lost answers", len(told["wrong"])),
        ("acknowledged scans and labels read back", f"{kept['read back']} of {kept['acknowledged']}"),
        ("`/info/` p50 / p95 / p99 / longest", " / ".join(f"{info.get(k, 0):.3f} s" for k in _SHARES)),
        ("`/info/` asked, unanswered", f"{info['count']}, {info['unanswered']}"),
        ("analyses out of their place", f"{order['not in their place']} of {order['analyses']}"),
        (f"{many['clients']} at once: first answers", _counts(many["first answers"])),
        ("answers to those who came back when told to", _counts(many["later answers"])),
        ("Retry-After, least to most", " to ".join(f"{s:.0f} s" for s in many["retry_after_s"]) or "none needed"),
        ("went while they waited: place given up", f"{told['left in line'].get('place given up', '-')} of "
         f"{told['left in line'].get('gone', '-')}"),
    ]  # fmt: skip
    for name, values in told["resources"].items():
        rows.append(
            (f"{name}: second quarter, last quarter, most, end", ", ".join(f"{value:g}" for value in values.values()))
        )
    rows.append(("tracebacks and errors in the server's log", told["errors in the log"]))
    machine = told["machine"]
    about = f"`{told['model']}`, {machine['cores']} cores, load {machine['load'][0]:.1f}, {told['when']}"
    return "\n".join([f"# Under load ({about})", "", "| what | measured |", "|---|---|",
                      *(f"| {name} | {value} |" for name, value in rows), ""])  # fmt: skip


def _counts(statuses: dict[str, int]) -> str:
    return ", ".join(f"{count} x {status}" for status, count in sorted(statuses.items())) or "none"


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--burst", type=int, default=0, help="requests at once at the end; 0: clients + 24")
    parser.add_argument("--model", default="atlas_zscore_t1")
    parser.add_argument("--out", type=Path, default=ROOT / "tests" / "benchmarks" / "results")
    given = parser.parse_args()
    told = load(given.model, given.clients, given.minutes, burst=given.burst or given.clients + 24)
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "load.json").write_text(json.dumps(told, indent=1) + "\n")
    (given.out / "load.md").write_text(table(told))
    print(table(told))
    for text in told["wrong"][:20]:
        print("wrong:", text)
    sys.exit(1 if told["wrong"] or told["hanging clients"] else 0)


if __name__ == "__main__":
    main()
