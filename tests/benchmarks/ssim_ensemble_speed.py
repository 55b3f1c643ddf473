"""How much faster the SSIM ensemble is than direct 3-D convolutions of five moments, on one random volume.

Run: python tests/benchmarks/ssim_ensemble_speed.py [threads]
"""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
import torch.nn.functional as F

from monailabel_app.scoring.ssim_ensemble import SIGMAS, kernel_radius, ssim_ensemble


def direct(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The same score, width by width, with one full 3-D convolution for each moment."""
    maps = []
    for sigma in SIGMAS:
        radius = kernel_radius(sigma)
        window = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / sigma) ** 2)
        window = window / window.sum()
        kernel = (window[:, None, None] * window[:, None] * window)[None, None]

        def average(volume, radius=radius, kernel=kernel):
            padded = F.pad(volume[None, None], (radius,) * 6, mode="reflect")
            return F.conv3d(padded, kernel)[0, 0]

        mx, my, xx, yy, xy = map(average, (x, y, x * x, y * y, x * y))
        maps.append(
            (2 * mx * my + 1e-4)
            * (2 * (xy - mx * my) + 9e-4)
            / ((mx * mx + my * my + 1e-4) * (xx - mx * mx + yy - my * my + 9e-4))
        )
    stacked = torch.stack(maps)
    return 1 - (torch.softmax(-stacked, 0) * stacked).sum(0)


def best_of(repeats: int, function, *arguments) -> float:
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        function(*arguments)
        seconds.append(time.perf_counter() - started)
    return min(seconds)


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[1]) if len(sys.argv) > 1 else 1)
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand((2, 80, 96, 80), generator=generator)
    mask = torch.ones_like(x, dtype=torch.bool)
    difference = (direct(x, y) - torch.from_numpy(ssim_ensemble(x, y, mask))).abs().max().item()
    fast = best_of(5, ssim_ensemble, x, y, mask)
    slow = best_of(2, direct, x, y)
    print(
        f"direct {slow:.2f} s, separable {fast:.2f} s, ratio {slow / fast:.1f}, "
        f"largest difference {difference:.1e}"
    )
