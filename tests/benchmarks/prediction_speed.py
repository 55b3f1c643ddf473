"""Seconds per stage and peak memory of one prediction.

    python tests/benchmarks/prediction_speed.py SCAN [SCAN ...] [--device cpu] [--threads 2]

Each scan is analysed in a process of its own, so that the peak memory is that of one analysis. The first run of a
process pays for loading the model, which is reported apart; the second shows what a running server needs, the third
what moving the threshold costs with the cache.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def measure(scan: Path, model: str, device: str, threads: int) -> dict[str, object]:
    """One scan, in this process."""
    sys.path.insert(0, str(ROOT))
    import torch

    from monailabel_app.io.images import read_volume
    from monailabel_app.pipelines import predict as pipeline
    from monailabel_app.pipelines.cache import MapCache

    torch.set_num_threads(threads)
    started = time.perf_counter()
    volume = read_volume(scan)
    read = time.perf_counter() - started
    started = time.perf_counter()
    loaded = pipeline.load_model(pipeline.find_model(model, ROOT))
    load = time.perf_counter() - started
    settings = pipeline.PredictSettings(device=device)
    pipeline.predict(volume, loaded, settings)
    started = time.perf_counter()
    cache = MapCache()
    finding = pipeline.predict(volume, loaded, settings, cache=cache)
    total = time.perf_counter() - started
    started = time.perf_counter()
    pipeline.predict(volume, loaded, pipeline.PredictSettings("sensitive", device=device), cache=cache)
    again = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    result = {
        "shape": volume.shape,
        "spacing_mm": [round(v, 3) for v in volume.spacing_mm],
        "read": read,
        "load_model": load,
        "stages": dict(finding.seconds),
        "total": total,
        "other_operating_point": again,
        "peak_memory_gb": peak,
    }
    if device.startswith("cuda"):
        result["peak_gpu_gb"] = torch.cuda.max_memory_allocated() / 2**30
    return result


def main() -> None:
    """Run the measurements and print them as JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("scans", nargs="+", type=Path)
    parser.add_argument("--model", default="ddpm_t1")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(options.scans[0], options.model, options.device, options.threads)))
        return
    for scan in options.scans:
        command = [sys.executable, __file__, str(scan), "--child", "--model", options.model]
        command += ["--device", options.device, "--threads", str(options.threads)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        print(done.stdout.strip().splitlines()[-1])


if __name__ == "__main__":
    main()
