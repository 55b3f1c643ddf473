"""Trains and measures the brain extraction network.

    python -m monailabel_app.training.brain_training train --data DATA --run runs/brain --steps 6000
    python -m monailabel_app.training.brain_training export --run runs/brain --folder FOLDER
    python -m monailabel_app.training.brain_training evaluate --data DATA --folder FOLDER

``DATA`` holds ``ixi_t1/`` (see the data card of the model). ``train`` can be killed at any time and started
again with the same arguments: it goes on from its last checkpoint.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import logging
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader, Dataset

from monailabel_app.errors import TrainingFailed
from monailabel_app.files import remove_abandoned, replacing
from monailabel_app.preprocessing.brain_unet import (
    DEFAULT_NETWORK,
    SPACING_MM,
    build_brain_unet,
    scale_intensity,
    size_multiple,
)
from monailabel_app.preprocessing.head_synthesis import Head, HeadSynthesis, head_from_arrays, paint
from monailabel_app.training.brain_evaluation import dice, evaluate_brain_extraction

logger = logging.getLogger(__name__)

CHECKPOINT = "checkpoint.safetensors"


@dataclass(frozen=True)
class BrainTrainingSettings:
    """How long and how to train. ``minutes`` is a budget of wall time for this start; 0 means none."""

    steps: int = 3000
    minutes: float = 0.0
    learning_rate: float = 2e-3
    weight_decay: float = 1e-4
    warmup_steps: int = 50
    ema: float = 0.995
    seed: int = 7
    checkpoint_every: int = 250
    threads: int = 1
    workers: int = 1


class _Draws(Dataset):
    """Sample ``i`` is drawn with a generator seeded with (seed, i), whichever process asks for it."""

    def __init__(self, heads: list[Head], synthesis: HeadSynthesis, seed: int) -> None:
        self.heads, self.synthesis, self.seed = heads, synthesis, seed

    def __getitem__(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        g = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        return self.synthesis.draw(self.heads[int(torch.randint(len(self.heads), (), generator=g))], g)


def load_heads(data: Path, split: str) -> dict[str, Head]:
    """The heads of one split of ``data/ixi_t1``, by id, in RAS order. Raises TrainingFailed without any."""
    folder = Path(data) / "ixi_t1"
    table = folder / "participants.csv"
    if not table.is_file():
        raise TrainingFailed(f"expected participants.csv in {folder.name}/ of the data folder: check --data")
    heads = {}
    for row in csv.DictReader(table.open()):
        if row["split"] != split:
            continue
        image = nib.as_closest_canonical(nib.load(folder / "t1" / f"{row['id']}_T1.nii.gz"))
        regions = nib.as_closest_canonical(nib.load(folder / "dlmuse" / f"{row['id']}_DLMUSE.nii.gz"))
        heads[row["id"]] = head_from_arrays(image.get_fdata(dtype=np.float32), np.asarray(regions.dataobj))
    if not heads:
        raise TrainingFailed(f"expected scans of split {split!r} in participants.csv, found none")
    return heads


def cached_heads(data: Path, split: str, run: Path) -> dict[str, Head]:
    """``load_heads``, kept in ``run`` as safetensors, since the compartments take a second per scan."""
    file = Path(run) / f"heads_{split}.safetensors"
    if not file.is_file():
        heads = load_heads(data, split)
        tensors = {f"{key}/{k}": v for key, h in heads.items() for k, v in vars(h).items()}
        with replacing(file) as partial:
            save_file({k: v.contiguous() for k, v in tensors.items()}, partial)
    tensors = load_file(file)
    ids = sorted({name.split("/")[0] for name in tensors})
    return {i: Head(**{k: tensors[f"{i}/{k}"] for k in ("image", "compartments", "tissue")}) for i in ids}


def segmentation_loss(logits: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Cross entropy plus soft Dice of the brain class. logits (n, 2, x, y, z), mask (n, x, y, z) bool."""
    logits = logits.float()
    cross_entropy = torch.nn.functional.cross_entropy(logits, mask.long())
    brain = torch.sigmoid(logits[:, 1] - logits[:, 0]).flatten(1)
    truth = mask.float().flatten(1)
    # The constant keeps the gradient tame where the field of view holds no brain.
    dice = (2 * (brain * truth).sum(1) + 100) / (brain.sum(1) + truth.sum(1) + 100)
    return cross_entropy + 1 - dice.mean()


def train_brain_unet(
    heads: list[Head],
    run: Path,
    settings: BrainTrainingSettings,
    *,
    network: dict | None = None,
    synthesis: HeadSynthesis | None = None,
    validation: dict[str, Head] | None = None,
) -> Path:
    """Trains to ``settings.steps`` (or until the minutes are used) and returns the checkpoint's path.

    The learning rate warms up, then falls as a half cosine of the steps or of the time budget, whichever is
    further. Step ``i`` draws from a generator seeded with (seed, i), so that a resumed run sees what an
    uninterrupted one would. Raises TrainingFailed without heads or on a loss that is not finite.
    """
    if not heads:
        raise TrainingFailed("expected at least one head to train on, got none")
    run = Path(run)
    run.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(settings.threads)
    network = dict(network or DEFAULT_NETWORK)
    synthesis = synthesis or HeadSynthesis()
    torch.manual_seed(settings.seed)  # initial weights only
    model = build_brain_unet(network).train()
    optimizer = torch.optim.AdamW(model.parameters(), settings.learning_rate, weight_decay=settings.weight_decay)
    average = {k: v.detach().clone() for k, v in model.state_dict().items()}
    step = 0
    if (run / CHECKPOINT).is_file():
        kept, state = _read_checkpoint(run)
        if kept["network"] != network:
            raise TrainingFailed(
                f"the checkpoint holds network {kept['network']}, not {network}: use another run folder"
            )
        step, average = kept["step"], state["average"]
        model.load_state_dict(state["model"])
        _restore_optimizer(optimizer, state["optimizer"])

    def save() -> None:
        facts = {"step": step, "network": network, "settings": asdict(settings)}
        moments = {
            f"{index}/{name}": value
            for index, values in optimizer.state_dict()["state"].items()
            for name, value in values.items()
        }
        _write_checkpoint(run, facts, {"model": model.state_dict(), "average": average, "optimizer": moments})

    draws = _Draws(heads, synthesis, settings.seed)
    # Drawing takes about as long as a step, so it has its own process (of one thread).
    samples = iter(DataLoader(draws, None, sampler=range(step, settings.steps), num_workers=settings.workers))
    start, losses = time.monotonic(), []
    while step < settings.steps:
        minutes = (time.monotonic() - start) / 60
        if settings.minutes and minutes >= settings.minutes:
            break
        progress = max(step / settings.steps, minutes / settings.minutes if settings.minutes else 0)
        warm = min(1.0, (step + 1) / settings.warmup_steps)
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))
        image, mask = next(samples)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(image[None])
        loss = segmentation_loss(logits, mask[None])
        if not torch.isfinite(loss):
            raise TrainingFailed(f"the loss became {loss.item()} at step {step}: lower --learning-rate")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        decay = min(settings.ema, (1 + step) / (10 + step))
        for name, value in model.state_dict().items():
            average[name].lerp_(value, 1 - decay)
        losses.append(loss.item())
        if step % 50 == 0:
            logger.info("step %d loss %.4f minutes %.1f", step, float(np.mean(losses)), minutes)
            losses.clear()
        if step % settings.checkpoint_every == 0:
            save()
            if validation:
                logger.info("step %d %s", step, json.dumps(grid_dice(average, network, validation)))
    save()
    return run / CHECKPOINT


def _write_checkpoint(run: Path, facts: dict, parts: dict[str, dict[str, torch.Tensor]]) -> None:
    """One safetensors file, replaced as a whole, so that a kill leaves the previous one."""
    tensors = {f"{part}:{name}": value for part, values in parts.items() for name, value in values.items()}
    remove_abandoned(run)
    with replacing(run / CHECKPOINT) as partial:
        save_file({k: v.detach().contiguous() for k, v in tensors.items()}, partial, {"facts": json.dumps(facts)})


def _read_checkpoint(run: Path) -> tuple[dict, dict[str, dict[str, torch.Tensor]]]:
    with safe_open(Path(run) / CHECKPOINT, "pt") as file:
        facts = json.loads(file.metadata()["facts"])
        parts: dict[str, dict[str, torch.Tensor]] = {"model": {}, "average": {}, "optimizer": {}}
        for key in file.keys():  # noqa: SIM118 - not a dict
            part, name = key.split(":", 1)
            parts[part][name] = file.get_tensor(key)
    return facts, parts


def _restore_optimizer(optimizer: torch.optim.Optimizer, moments: dict[str, torch.Tensor]) -> None:
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in moments.items():
        index, name = key.split("/")
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def checkpoint_step(run: Path) -> int:
    """How many steps the checkpoint in ``run`` has seen; 0 without one."""
    return _read_checkpoint(run)[0]["step"] if (Path(run) / CHECKPOINT).is_file() else 0


@torch.inference_mode()
def grid_dice(weights: dict[str, torch.Tensor], network: dict, heads: dict[str, Head]) -> dict[str, float]:
    """Mean and lowest Dice on the 2 mm grid, on the real T1 and on painted T2 and FLAIR."""
    model = build_brain_unet(network).eval()
    model.load_state_dict(weights)
    g = torch.Generator().manual_seed(1)
    found: dict[str, list[float]] = {"t1": [], "t2": [], "flair": []}
    for head in heads.values():
        for contrast, scores in found.items():
            image = head.image.float()
            if contrast != "t1":
                image = paint(head.compartments, head.tissue, g, contrast)
            scores.append(dice(predict_grid(model, image, size_multiple(network)) > 0.5, head.mask))
    result = {f"{name}_mean": float(np.mean(v)) for name, v in found.items()}
    return {k: round(v, 4) for k, v in {**result, "t1_min": min(found["t1"]), "t2_min": min(found["t2"])}.items()}


def predict_grid(model: torch.nn.Module, image: torch.Tensor, multiple: int) -> torch.Tensor:
    """Brain probability (x, y, z) of an image already on a RAS 2 mm grid."""
    padding = [p for n in reversed(image.shape) for p in (0, -n % multiple)]
    padded = torch.nn.functional.pad(scale_intensity(image), padding)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(padded[None, None])[0].float()
    x, y, z = image.shape
    return torch.sigmoid(logits[1] - logits[0])[:x, :y, :z]


def export_brain_unet(run: Path, folder: Path) -> Path:
    """Writes the averaged weights of ``run`` as float16, config.yaml and sha256sums.txt into ``folder``."""
    if not (Path(run) / CHECKPOINT).is_file():
        raise TrainingFailed(f"expected {CHECKPOINT} in the run folder: train first")
    facts, state = _read_checkpoint(run)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {k: v.to(torch.float16).contiguous() for k, v in state["average"].items()}
    save_file(weights, folder / "model.safetensors")
    (folder / "model.safetensors").chmod(0o644)  # safetensors writes for the owner only
    config = {
        "id": "brain_extraction",
        "kind": "brain_extraction",
        "spacing_mm": SPACING_MM,
        "threshold": 0.5,
        "network": facts["network"],
        "training": {**facts["settings"], "trained_steps": facts["step"]},
        "licence": "CC BY-SA 3.0 (weights trained on IXI)",
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    record_hashes(folder)
    return folder


def record_hashes(folder: Path) -> None:
    """Writes ``sha256sums.txt`` for the configuration and the weights in ``folder``."""
    lines = [
        f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n"
        for name in ("config.yaml", "model.safetensors")
    ]
    (folder / "sha256sums.txt").write_text("".join(lines))


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser("train")
    train.add_argument("--data", type=Path, required=True)
    train.add_argument("--run", type=Path, required=True)
    for name, default in asdict(BrainTrainingSettings()).items():
        train.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    export = commands.add_parser("export")
    export.add_argument("--run", type=Path, required=True)
    export.add_argument("--folder", type=Path, required=True)
    evaluate = commands.add_parser("evaluate")
    evaluate.add_argument("--data", type=Path, required=True)
    evaluate.add_argument("--folder", type=Path, required=True)
    evaluate.add_argument("--card", action="store_true", help="write card.md and worst_case.png into FOLDER")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if options.command == "export":
        export_brain_unet(options.run, options.folder)
        return
    if options.command == "evaluate":
        evaluate_brain_extraction(options.data, options.folder, card=options.card)
        return
    options.run.mkdir(parents=True, exist_ok=True)
    fields = asdict(BrainTrainingSettings())
    settings = BrainTrainingSettings(**{name: getattr(options, name) for name in fields})
    heads = cached_heads(options.data, "train", options.run)
    every = cached_heads(options.data, "val", options.run)
    validation = dict(list(every.items())[::4])  # a glance; ``evaluate`` measures all
    train_brain_unet(list(heads.values()), options.run, settings, validation=validation)


if __name__ == "__main__":
    main()
