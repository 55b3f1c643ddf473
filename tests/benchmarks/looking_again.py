"""A finding whose analysis is at hand: ``python tests/benchmarks/looking_again.py [MODEL] [SIZE ...]``.

Enlarges the sample with the implanted lesion to heads of hospital sizes (256x256x180 and 256x256x256 at 1 mm, or
SIZE such as 192x192x160), analyses each once as a server would, and prints the seconds of every way to look at it
again: a moved threshold, another smoothing, after the scan has left memory, after a restart (from the disk), with
images, as a file, and while another analysis has the device. The median of some repeats, of the wall and of this
process alone (processor time, which other work on the machine changes less); nothing is asserted.
"""

from __future__ import annotations

import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from lib.catalogue import list_models  # noqa: E402
from lib.configs import METHODS  # noqa: E402
from lib.infers import AnomalyInferTask, BandsInferTask  # noqa: E402
from lib.runner import ModelRunner  # noqa: E402
from monailabel_app.io.geometry import resample  # noqa: E402
from monailabel_app.io.images import read_volume, write_map  # noqa: E402
from monailabel_app.pipelines.analysis_store import AnalysisStore  # noqa: E402
from monailabel_app.pipelines.cache import MapCache  # noqa: E402
from monailabel_app.pipelines.read_volumes import ReadVolumes  # noqa: E402
from monailabel_app.types import Volume  # noqa: E402

SIZES = ("256x256x180", "256x256x256")
REPEATS = 5


def enlarged(shape: tuple[int, int, int]) -> Volume:
    """The sample head on 1 mm voxels in the middle of a grid of that size."""
    sample = read_volume(ROOT / "tests/data/studies/ixi_lesion.nii.gz")
    middle = sample.affine @ [*((np.array(sample.shape) - 1) / 2), 1]
    affine = np.diag([1.0, 1.0, 1.0, 1.0])
    affine[:3, 3] = middle[:3] - (np.array(shape) - 1) / 2
    head = resample(sample.data[0], sample.affine, shape, affine)
    noise = np.random.default_rng(0).normal(0, 2, shape).astype(np.float32)
    return Volume((np.maximum(head + noise, 0).round())[None], affine)


def seconds_of(look: Callable[[], object]) -> tuple[float, float]:
    """The median wall and processor time of some repeats."""
    taken = []
    for _ in range(REPEATS):
        began = time.perf_counter(), time.process_time()
        look()
        taken.append((time.perf_counter() - began[0], time.process_time() - began[1]))
    wall, processor = np.median(taken, axis=0)
    return float(wall), float(processor)


def main(model: str, sizes: list[str]) -> None:
    """Measure and print."""
    entry = list_models(ROOT)[model]
    print(f"{model}, {os.cpu_count()} cores, OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', 'unset')}")
    for size in sizes:
        shape = tuple(int(n) for n in size.split("x"))
        with tempfile.TemporaryDirectory() as folder:
            path = str(Path(folder) / "head.nii.gz")
            volume = enlarged(shape)
            write_map(path, volume.data[0], volume)
            store = AnalysisStore(Path(folder) / "analyses")
            runner, cache, volumes = ModelRunner(), MapCache(store=store), ReadVolumes()
            make = (entry, METHODS[entry.method], runner)
            task = AnomalyInferTask(*make, cache, volumes)
            began = time.perf_counter()
            task.look(path, task.read({}))
            print(f"\n{size}: first analysis, the model loaded {time.perf_counter() - began:.2f} s")

            def look(task: AnomalyInferTask = task, path: str = path, images: bool = False, **given: object) -> object:
                return task.look(path, task.read(given), run=False, images=images)

            def as_file(task: AnomalyInferTask = task, path: str = path) -> None:
                Path(task({"image": path, "result_extension": ".nrrd"})[0]).unlink()

            def restarted(path: str = path, make: tuple = make, store: AnalysisStore = store) -> object:
                fresh = AnomalyInferTask(*make, MapCache(store=store), ReadVolumes())
                return fresh.look(path, fresh.read({}), run=False)

            def unread(path: str = path, make: tuple = make, cache: MapCache = cache) -> object:
                return (other := AnomalyInferTask(*make, cache, ReadVolumes())).look(path, other.read({}), run=False)

            show("moved threshold", lambda: look(threshold=float(np.random.default_rng().uniform(2, 6))))
            show("other operating point", lambda: look(operating_point="specific"))
            show("other smoothing", lambda: look(smoothing="strong"))
            show("with reconstruction", lambda: look(images=True))
            bands = BandsInferTask(*make, cache, volumes)
            show("bands, their label map too", lambda bands=bands: bands.label(look(bands)))
            show("written as nrrd", as_file)
            show("scan read anew", unread)
            show("analysis and scan read anew", restarted)
            device_held, over = threading.Event(), threading.Event()

            def hold(runner: ModelRunner = runner, held: threading.Event = device_held, over: threading.Event = over):
                with runner.device("cpu"):
                    held.set()
                    over.wait()

            other = threading.Thread(target=hold)
            other.start()
            device_held.wait()
            show("while another job has the device", look)
            over.set()
            other.join()


def show(name: str, look: Callable[[], object]) -> None:
    """One line."""
    wall, processor = seconds_of(look)
    print(f"  {name:34s} {wall:.2f} s wall, {processor:.2f} s processor", flush=True)


if __name__ == "__main__":
    asked = sys.argv[1:]
    main(asked[0] if asked else "cold_diffusion_t1", asked[1:] or list(SIZES))
