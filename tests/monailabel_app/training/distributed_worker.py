"""What one process of the distributed tests does; started by torchrun with a folder and the name of a part."""

import json
import os
import signal
import sys
from dataclasses import asdict, replace
from pathlib import Path

import torch

from monailabel_app.errors import TrainingFailed
from monailabel_app.methods import ddpm
from monailabel_app.training.checkpoint import load_state
from monailabel_app.training.distributed import process_group, rank
from monailabel_app.training.healthy_loop import train
from tests.monailabel_app.synthetic import TINY, TINY_TRAINING, random_cache

SETTINGS = replace(TINY_TRAINING, batch_size=8)


class Stopped(Exception):
    """What an interruption raises."""


def main(folder: Path, part: str) -> None:
    """Runs a part with a two-volume cache; what came of it is in ``<part or run>_<rank>.json``."""
    torch.set_num_threads(1)
    cache, held_out = random_cache(2), random_cache(1, seed=50)
    honest = ddpm.training_loss

    def go(name, *, settings=SETTINGS, loss=honest, **options):
        ddpm.training_loss = loss
        told, result = [], {}
        options.setdefault("progress", told.append)
        try:
            state = train("ddpm", TINY["ddpm"], cache, held_out, settings, folder / name, **options)
            result = {"step": state.step, "history": state.history, "lanes": len(state.generator)}
            result["sum"] = float(sum(value.double().abs().sum() for value in state.ema.values()))
        except (TrainingFailed, Stopped) as error:
            result = {"error": type(error).__name__, "message": str(error)}
        result["told"] = [asdict(now) for now in told]
        (folder / f"{name}_{rank()}.json").write_text(json.dumps(result))

    if part == "dies":
        calls = []

        def dies(*arguments):
            calls.append(1)
            if rank() == 1 and len(calls) == 4:
                os.kill(os.getpid(), signal.SIGKILL)
            return honest(*arguments)

        go("dies", loss=dies)
        return

    with process_group("cpu"):
        go("whole", evaluate=lambda network: {"quality": 0.5})

        def stop(now):
            if now.step == 4:
                raise Stopped("at step 4")

        go("parts", progress=stop)
        go("parts", resume=True)

        sizes = []

        def full_on_one(model, config, batch, generator):
            sizes.append(len(batch))
            if rank() == 1 and len(batch) > 2:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory")
            return honest(model, config, batch, generator)

        go("memory", loss=full_on_one)
        (folder / f"sizes_{rank()}.json").write_text(json.dumps(sizes))

        def diverges_on_one(*arguments):
            loss = honest(*arguments)
            return loss * float("nan") if rank() == 1 else loss

        go("nan", loss=diverges_on_one)
        go("time", settings=replace(SETTINGS, steps=10**7, minutes=0.005))
        go("small", settings=replace(SETTINGS, batch_size=1))
        if rank() == 0:
            assert load_state(folder / "nan").step == 0


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
