"""All bad files through the HTTP interface of one real server; writes results/bad_files.md.

python tests/benchmarks/bad_files.py [--minutes 20] [--kind gzip] [--out tests/benchmarks/results/bad_files.md]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.bad_files import CASES  # noqa: E402
from tests.bad_files_http import MODEL, Row, memory_mb, send_all, table_of  # noqa: E402
from tests.server_fixture import copy_studies, running_server  # noqa: E402


def main() -> int:
    """0 when no case found a fault."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--kind")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    # Those that cost an analysis come last, where --minutes ends the run early.
    order = ("refused", "either", "taken")
    cases = sorted((case for case in CASES if given.kind in (None, case.kind)), key=lambda c: order.index(c.outcome))
    with tempfile.TemporaryDirectory(prefix="bad_files_") as name:
        folder = Path(name)
        studies = copy_studies(ROOT / "tests/data/studies", folder / "studies")
        (folder / "temporary").mkdir()
        env = {"MONAI_LABEL_SESSION_PATH": str(folder / "sessions"), "TMPDIR": str(folder / "temporary")}
        with running_server(studies, conf={"models": MODEL}, env=env) as server:
            first = server.infer(MODEL, params={"image": "ixi_healthy", "output": "json"})
            first.raise_for_status()
            before, rows, highest = memory_mb(server), [], 0.0
            started = time.monotonic()
            for row in send_all(server, cases, folder / "temporary", started + 60 * given.minutes):
                rows.append(row)
                print(f"\r{len(rows)}", end="", file=sys.stderr, flush=True)
                highest = max(highest, memory_mb(server))
                if row.faults:
                    print(row.case.title, "|", row.outcome, row.status, *row.faults, "|", row.reason[:300], flush=True)
            last = server.infer(MODEL, params={"image": "ixi_healthy", "output": "json"})
            same = last.json()["anomaly_score"] == first.json()["anomaly_score"]
            after = memory_mb(server)
            errors = server.log.read_text(errors="replace").count("Traceback")
    text = _report(rows, len(cases), time.monotonic() - started, before, after, highest, same, errors)
    print(text)
    if given.out:
        given.out.write_text(text)
    return int(any(row.faults for row in rows))


def _report(rows: list[Row], planned, seconds, before, after, highest, same, errors) -> str:
    slowest = sorted(rows, key=lambda row: -row.seconds)[:8]
    return "\n".join(
        [
            "# Bad and odd files through the HTTP interface",
            "",
            f"`python tests/benchmarks/bad_files.py --out tests/benchmarks/results/bad_files.md`, {date.today()}: "
            f"{len(rows)} of {planned} cases of tests/bad_files.py in {seconds / 60:.1f} minutes (two shared cores, "
            f"busy with other work), one server, model {MODEL}.",
            "",
            "A file is uploaded to the datastore (PUT /datastore/image) and analysed when it was taken, sent with the "
            "analysis (.mha, .mhd, .png, .hdr, .img), or unpacked in a session (DICOM). After each case the server had "
            "to answer /info/, the studies folder to be what it was to the byte, and the folder of temporary files to "
            "be empty; a fault is anything else, a status of 500 and above, or a reason that does not say what was "
            "expected or shows internals.",
            "",
            table_of(rows),
            f"Memory of the server process: {before:.0f} MB before, {highest:.0f} MB at most after a case, "
            f"{after:.0f} MB at the end. "
            f"The healthy sample scan has the same score after all of it: {'yes' if same else 'NO'}. "
            f"Tracebacks in the log: {errors}.",
            "",
            "Slowest (upload, analysis and removal together):",
            "",
            "| case | seconds | outcome |",
            "|---|---:|---|",
            *(f"| {row.case.title} | {row.seconds:.1f} | {row.outcome} |" for row in slowest),
            "",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
