"""Which kinds of damage to a healthy scan the comparison with the other scans notices.

    python tests/benchmarks/prototype_damage.py --cache cache/ixi_t1_val.safetensors

Every scan of the cache in turn is damaged after its preparation, and the whole pool is ranked. Printed: how many of
them are flagged, and how many undamaged ones beside them. Then several scans damaged in the same way at once.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from scipy import ndimage  # noqa: E402

from monailabel_app.pipelines.prototypes import Encoder  # noqa: E402
from monailabel_app.training.cache import TrainingCache  # noqa: E402
from monailabel_app.training.core_set import rank  # noqa: E402

_GENERATOR = torch.Generator().manual_seed(0)


def _noise(share: float):
    def change(image, mask):
        noise = torch.randn(image.shape, generator=_GENERATOR) * share * 255
        return _eight_bits(torch.where(mask, image + noise, image.float())), mask

    return change


def _without(axis: int):
    def change(image, mask):
        image, mask = image.clone(), mask.clone()
        for volume in (image, mask):
            volume.transpose(0, axis)[volume.shape[axis] // 2 :] = 0
        return image, mask

    return change


def _blurred(image, mask):
    return _eight_bits(torch.from_numpy(ndimage.gaussian_filter(image.numpy().astype(float), 1.5)) * mask), mask


def _bright_sphere(image, mask):
    centre = [int(c) for c in np.argwhere(mask.numpy()).mean(axis=0) + np.array([-12, 0, 10])]
    points = torch.stack(torch.meshgrid(*map(torch.arange, image.shape), indexing="ij"), dim=-1)
    sphere = ((points - torch.tensor(centre)) ** 2).sum(-1) < 8**2
    return _eight_bits(torch.where(sphere & mask, image.float() * 1.6, image.float())), mask


def _eight_bits(image):
    return image.clamp(0, 255).to(torch.uint8)


DAMAGE = {
    "upside down": lambda image, mask: (image.flip(2), mask.flip(2)),
    "back to front": lambda image, mask: (image.flip(1), mask.flip(1)),
    "left and right exchanged": lambda image, mask: (image.flip(0), mask.flip(0)),
    "noise, 5 % of the range": _noise(0.05),
    "noise, 10 % of the range": _noise(0.10),
    "noise, 20 % of the range": _noise(0.20),
    "one side missing": _without(0),
    "top missing": _without(2),
    "inverted": lambda image, mask: (torch.where(mask, 255 - image, image), mask),
    "12 mm too far front": lambda image, mask: (image.roll(6, 1), mask.roll(6, 1)),
    "gain falling to 40 %": lambda image, mask: (
        _eight_bits(image * torch.linspace(0.4, 1, len(image))[:, None, None]),
        mask,
    ),
    "blurred, sigma 3 mm": _blurred,
    "bright sphere of 17 ml": _bright_sphere,
}


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=ROOT / "cache" / "ixi_t1_val.safetensors")
    cache = TrainingCache.load(parser.parse_args().cache)
    torch.set_num_threads(1)
    encoder = Encoder()
    clean = np.stack([encoder.embed(cache, index) for index in range(len(cache))])
    print(f"undamaged: {rank(clean).suspicious.sum()} of {len(cache)} flagged", flush=True)
    together = None
    for name, change in DAMAGE.items():
        damaged = np.stack([_embed(encoder, cache, index, change) for index in range(len(cache))])
        together = damaged if name == "upside down" else together
        flagged = others = 0
        for index in range(len(cache)):
            pool = clean.copy()
            pool[index] = damaged[index]
            found = rank(pool).suspicious
            flagged += found[index]
            others += found.sum() - found[index]
        print(f"{name}: {flagged} of {len(cache)} flagged, {others} others", flush=True)
    for count in (2, 3, 4, 5, 6, 8):
        found = rank(np.concatenate([together[:count], clean[count:]])).suspicious
        print(f"{count} of {len(cache)} upside down: {found[:count].sum()} flagged, {found[count:].sum()} others")


def _embed(encoder: Encoder, cache: TrainingCache, index: int, change) -> np.ndarray:
    image, mask = change(cache.images[index], cache.brain_masks[index])
    return encoder.embed(TrainingCache(image[None], mask[None], ("damaged",), cache.modality), 0)


if __name__ == "__main__":
    main()
