"""Fractal simplex noise: smooth blobs at several sizes, in place of white noise, to corrupt an image.

White noise destroys fine detail first and leaves large lesions standing; noise with power at low spatial
frequencies also hides the lesion, so that a model of healthy anatomy must redraw it (Wyatt et al., AnoDDPM,
CVPR Workshops 2022; used in 2-D with 6 octaves, persistence 0.8, first feature size 64 px by Behrendt et al.,
ISBI 2024).

The base function is two-dimensional OpenSimplex noise (K. Spencer, 2014). Written as one sum over the
vertices v of a triangular lattice with edge length sqrt(2):

    noise(p) = 1/47 * sum_v max(0, 2 - |p - v|^2)^4 * g(v) . (p - v)

g(v) is one of eight gradient directions, picked by hashing the vertex through a permutation of 0..255. At
most four terms are non-zero. On a pixel grid only g changes from one sample to the next: the sum over octaves
and vertices is a fixed sparse linear map from gradients to pixels. It is built once per configuration and
applied to a whole batch at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import sqrt
from typing import NamedTuple

import torch
import torch.nn.functional as F

from monailabel_app.errors import InvalidSettings

_STRETCH = (1 / sqrt(3) - 1) / 2  # plane -> lattice coordinates
_SQUISH = (sqrt(3) - 1) / 2  # lattice -> plane coordinates
_NORM = 47.0
_GRADIENTS = ((5, 2), (2, 5), (-5, 2), (-2, 5), (5, -2), (2, -5), (-5, -2), (-2, -5))
# Where pixel (0, 0) of octave k lies in that octave's plane: (k + 1) times this. Any step would do that keeps
# the octaves on different vertices. Were all octaves to start at the vertex (0, 0), as in AnoDDPM's code,
# their sum would be exactly 0 at pixel (0, 0) in every sample and small around it.
_ORIGIN_STEP = (41.37, 23.71)
_GRADIENT_VARIANCE = 14.5  # E[g_x^2] = E[g_y^2] over the eight directions; E[g] = 0, E[g_x g_y] = 0
# Vertices that can lie within the kernel's radius of a point of the rhombus (0,0)-(1,0)-(1,1)-(0,1).
_NEIGHBOURS = ((0, 0), (1, 0), (0, 1), (1, 1), (1, -1), (-1, 1), (2, 0), (0, 2))


def simplex_noise(
    shape: Sequence[int],
    generator: torch.Generator,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    *,
    octaves: int = 6,
    persistence: float = 0.8,
    frequency: float = 64.0,
    shared: bool = False,
    unit_variance: bool = True,
) -> torch.Tensor:
    """Fractal simplex noise of shape (n, c, x, y).

    Octave k has amplitude ``persistence**k`` and feature size ``frequency / 2**k`` pixels; all octaves of one
    field use the same permutation, as in AnoDDPM.

    shared: one field for the whole batch (n and c) instead of an independent one per item and channel.
    Behrendt et al. share one field between all slices of a volume.
    unit_variance: scale so that every pixel has variance 1 over samples. The scale is analytic and depends on
    the configuration and the pixel only, never on the sample: the lattice lies the same way under every
    sample, and simplex noise is weaker near a vertex, so without it some pixels would always receive less
    noise than others. False gives the plain sum over octaves.

    The permutations are drawn where the generator lives, so a CPU generator gives the same field on every
    device. Raises InvalidSettings for a shape that is not 4-D or for parameters out of range.
    """
    if len(shape) != 4 or min(shape) < 1:
        raise InvalidSettings(f"Expected a noise shape (n, c, x, y) of positive sizes, got {tuple(shape)}")
    if octaves < 1 or not 0 < persistence <= 1 or not frequency > 0:
        raise InvalidSettings(
            "Simplex noise needs octaves >= 1, 0 < persistence <= 1 and frequency > 0, "
            f"got octaves={octaves}, persistence={persistence}, frequency={frequency}"
        )
    n, c, size_x, size_y = (int(v) for v in shape)
    fields = 1 if shared else n * c
    keys = torch.rand((fields, 256), generator=generator, device=generator.device)
    permutations = keys.argsort(dim=1).to(device)
    values = fractal_fields(
        permutations, (size_x, size_y), octaves, float(persistence), float(frequency), unit_variance
    )
    values = values.reshape(-1, size_x, size_y).to(dtype)
    if shared:
        return values.expand(n, c, size_x, size_y).clone()
    return values.reshape(n, c, size_x, size_y)


def fractal_fields(
    permutations: torch.Tensor,
    size: tuple[int, int],
    octaves: int = 6,
    persistence: float = 0.8,
    frequency: float = 64.0,
    unit_variance: bool = True,
) -> torch.Tensor:
    """One field per permutation: (fields, 256) int64 -> (fields, x, y) float32, same device."""
    operator = _grid_operator(size, octaves, persistence, frequency, unit_variance, str(permutations.device))
    gradients = _gradients(permutations, operator.vertices)  # (fields, vertices, 2)
    table = gradients.permute(1, 2, 0).reshape(-1, permutations.shape[0]).contiguous()
    pixels = F.embedding_bag(
        operator.columns, table, operator.offsets, mode="sum", per_sample_weights=operator.weights
    )
    return pixels.T.reshape(-1, *size)


def simplex2(x: torch.Tensor, y: torch.Tensor, permutation: torch.Tensor) -> torch.Tensor:
    """OpenSimplex noise at any points of the plane, in [-1, 1].

    x, y: float64 tensors of one shape. permutation: (256,) int64, a permutation of 0..255.
    """
    vertices, dx, dy = _near_vertices(x.reshape(-1), y.reshape(-1))
    gradients = _gradients(permutation[None], vertices.reshape(-1, 2))[0].reshape(*dx.shape, 2)
    gradients = gradients.to(dx.dtype)
    kernel = _kernel(dx, dy)
    return (kernel * (gradients[..., 0] * dx + gradients[..., 1] * dy)).sum(0).reshape(x.shape)


def permutation_from_seed(seed: int) -> torch.Tensor:
    """The permutation the ``opensimplex`` package derives from a seed: (256,) int64.

    A Fisher-Yates shuffle driven by the 64-bit linear congruential generator of Knuth's MMIX.
    """
    state = seed
    source = list(range(256))
    result = [0] * 256
    for step in range(-3, 256):
        state = (state * 6364136223846793005 + 1442695040888963407) & 0xFFFFFFFFFFFFFFFF
        if step < 0:  # the first three values are thrown away
            continue
        last = 255 - step
        signed = state - (1 << 64) if state >> 63 else state
        drawn = (signed + 31) % (last + 1)
        result[last] = source[drawn]
        source[drawn] = source[last]
    return torch.tensor(result, dtype=torch.int64)


class _GridOperator(NamedTuple):
    """A sparse (pixels x 2*vertices) matrix by rows: row p holds columns[offsets[p]:offsets[p + 1]]."""

    vertices: torch.Tensor  # (vertices, 2) int64 lattice indices
    columns: torch.Tensor  # (nnz,) int64, 2 * vertex + gradient component
    weights: torch.Tensor  # (nnz,) float32
    offsets: torch.Tensor  # (pixels,) int64


@lru_cache(maxsize=16)
def _grid_operator(
    size: tuple[int, int],
    octaves: int,
    persistence: float,
    frequency: float,
    unit_variance: bool,
    device: str,
) -> _GridOperator:
    """The map from vertex gradients to the fractal sum at every pixel."""
    pixel_x, pixel_y = torch.meshgrid(
        torch.arange(size[0], dtype=torch.float64), torch.arange(size[1], dtype=torch.float64), indexing="ij"
    )
    pixel_x, pixel_y = pixel_x.reshape(-1), pixel_y.reshape(-1)
    pixels = pixel_x.numel()

    vertices, rows, weights = [], [], []
    for octave in range(octaves):
        feature_size = frequency / 2**octave
        origin_x, origin_y = ((octave + 1) * step for step in _ORIGIN_STEP)
        near, dx, dy = _near_vertices(pixel_x / feature_size + origin_x, pixel_y / feature_size + origin_y)
        kernel = persistence**octave * _kernel(dx, dy)
        inside = kernel > 0
        vertices.append(near[inside] & 255)  # the hash has that period
        rows.append(torch.arange(pixels).expand(len(_NEIGHBOURS), pixels)[inside])
        weights.append(torch.stack([(kernel * dx)[inside], (kernel * dy)[inside]], dim=1))
    # A vertex reached from several octaves carries one gradient: its weights are added up per pixel.
    unique, vertex = torch.unique(torch.cat(vertices), dim=0, return_inverse=True)
    entry, position = torch.unique(torch.cat(rows) * len(unique) + vertex, return_inverse=True)
    weight = torch.zeros((len(entry), 2), dtype=torch.float64).index_add_(0, position, torch.cat(weights))
    row, column = entry // len(unique), entry % len(unique)
    if unit_variance:
        variance = torch.zeros(pixels, dtype=torch.float64)
        variance.index_add_(0, row, _GRADIENT_VARIANCE * weight.square().sum(1))
        weight = weight / variance.sqrt()[row, None]
    counts = 2 * torch.bincount(row, minlength=pixels)
    return _GridOperator(
        vertices=unique.to(device),
        columns=(2 * column[:, None] + torch.arange(2)).reshape(-1).to(device),
        weights=weight.reshape(-1).float().to(device),
        offsets=(counts.cumsum(0) - counts).to(device),
    )


def _near_vertices(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Candidate vertices of points (p,): lattice indices (8, p, 2) int64, plane offsets dx and dy (8, p)."""
    stretch = (x + y) * _STRETCH
    base_x, base_y = torch.floor(x + stretch), torch.floor(y + stretch)
    neighbours = torch.tensor(_NEIGHBOURS, dtype=x.dtype, device=x.device)
    vertex_x, vertex_y = base_x + neighbours[:, :1], base_y + neighbours[:, 1:]
    squish = (vertex_x + vertex_y) * _SQUISH
    return torch.stack([vertex_x, vertex_y], dim=-1).long(), x - vertex_x - squish, y - vertex_y - squish


def _kernel(dx: torch.Tensor, dy: torch.Tensor) -> torch.Tensor:
    """Weight of a vertex at offset (dx, dy); zero from a distance of sqrt(2) on."""
    return (2 - dx.square() - dy.square()).clamp(min=0).pow(4) / _NORM


def _gradients(permutations: torch.Tensor, vertices: torch.Tensor) -> torch.Tensor:
    """Gradient of each vertex (v, 2) under each permutation (f, 256): (f, v, 2) float32."""
    inner = permutations[:, vertices[:, 0] & 255]
    hashed = torch.gather(permutations, 1, (inner + vertices[:, 1]) & 255)
    directions = torch.tensor(_GRADIENTS, dtype=torch.float32, device=permutations.device)
    return directions[(hashed & 0x0E) >> 1]
