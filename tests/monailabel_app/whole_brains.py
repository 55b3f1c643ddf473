"""Smooth random brains, small enough for networks that take whole volumes."""

import torch

SIZE = (32, 40, 32)


def brain(seed=0, size=SIZE):
    """An image (X, Y, Z) in [0, 1] and its mask."""
    generator = torch.Generator().manual_seed(seed)
    coarse = 0.4 + 0.2 * torch.rand(1, 1, 4, 5, 4, generator=generator)
    image = torch.nn.functional.interpolate(coarse, size, mode="trilinear")[0, 0]
    mask = torch.zeros(size, dtype=torch.bool)
    mask[4:-4, 4:-4, 4:-4] = True
    return image * mask, mask


def batch(count=4):
    """(count, 1, X, Y, Z)."""
    return torch.stack([brain(seed)[0] for seed in range(count)])[:, None]
