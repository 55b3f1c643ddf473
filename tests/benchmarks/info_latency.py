"""How long ``/info/`` takes during an analysis: ``python tests/benchmarks/info_latency.py MODEL``.

Starts the server with the stock command and this repository's models, asks ``/info/`` every 50 ms during one
analysis of the sample with the implanted lesion, and prints the times.
"""

import os
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import requests

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from tests.server_fixture import copy_studies, running_server  # noqa: E402


def main(model: str) -> None:
    """Measure and print."""
    threads = {"OMP_NUM_THREADS": str(os.cpu_count())}
    with tempfile.TemporaryDirectory() as folder:
        studies = copy_studies(ROOT / "tests" / "data" / "studies", Path(folder) / "studies")
        with running_server(studies, conf={"models": model}, env=threads) as server:
            for round_name in (
                "first analysis (loads the model)",
                "second analysis (map cached)",
                "other scan",
            ):
                image = "ixi_healthy" if round_name == "other scan" else "ixi_lesion"
                answer, times, took = {}, [], time.perf_counter()

                def analyse(image=image, answer=answer):
                    answer["it"] = server.infer(model, params={"image": image, "output": "json"})

                job = threading.Thread(target=analyse)
                job.start()
                while job.is_alive():
                    start = time.perf_counter()
                    requests.get(f"{server.url}/info/", timeout=120).raise_for_status()
                    times.append(time.perf_counter() - start)
                    time.sleep(0.05)
                took = time.perf_counter() - took
                result = answer["it"].json()
                seconds = {name: round(value, 2) for name, value in result["seconds"].items()}
                print(f"{round_name}: {took:.1f} s, {seconds}")
                print(
                    f"  /info/ {len(times)} times: median {np.median(times) * 1e3:.0f} ms, "
                    f"95 % {np.quantile(times, 0.95) * 1e3:.0f} ms, longest {max(times) * 1e3:.0f} ms"
                )


if __name__ == "__main__":
    main(sys.argv[1])
