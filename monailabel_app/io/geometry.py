"""Voxel grids in space: orientation, exact reordering, and resampling in one interpolation.

Every affine is (4, 4), voxel index -> RAS mm; an index (i, j, k) is the *centre* of a voxel, so that a grid
of n voxels of edge s covers n * s mm. Nothing here knows about files.
"""

from __future__ import annotations

from collections.abc import Sequence

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from nibabel import orientations
from scipy import ndimage

from monailabel_app.errors import InvalidVolume

RAS_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])

_AXIS_OF = {"R": 0, "L": 0, "A": 1, "P": 1, "S": 2, "I": 2}
_INTERPOLATORS = {0: sitk.sitkNearestNeighbor, 1: sitk.sitkLinear, 3: sitk.sitkBSpline}
_DOWNSAMPLING_THAT_ALIASES = 1.5
_GAUSSIAN_RADIUS_SIGMAS = 3.0


def check_affine(affine: np.ndarray, what: str = "the affine") -> np.ndarray:
    """``affine`` as (4, 4) float64. Raises InvalidVolume when it is not finite or not invertible."""
    matrix = np.asarray(affine, dtype=np.float64)
    if matrix.shape != (4, 4):
        raise InvalidVolume(f"expected {what} as a 4x4 matrix, got shape {matrix.shape}: check the header")
    if not np.isfinite(matrix).all():
        raise InvalidVolume(f"expected {what} to be finite, got NaN or infinity: repair the image header")
    spacing = np.linalg.norm(matrix[:3, :3], axis=0)
    if (spacing < 1e-6).any():
        raise InvalidVolume(
            f"expected {what} with three voxel sizes above zero, got {_mm(spacing)}: repair the image header"
        )
    # Divided by the voxel sizes, the determinant is the volume the directions span: 0 if two coincide.
    if abs(np.linalg.det(matrix[:3, :3] / spacing)) < 1e-3:
        raise InvalidVolume(
            f"expected {what} with three independent axes, got a singular matrix: repair the image header"
        )
    if not np.allclose(matrix[3], (0, 0, 0, 1)):
        raise InvalidVolume(f"expected {what} with the last row 0 0 0 1, got {matrix[3].tolist()}")
    return matrix


def spacing_mm(affine: np.ndarray) -> tuple[float, float, float]:
    """Voxel edge lengths in mm, in voxel-axis order."""
    return tuple(float(v) for v in np.linalg.norm(np.asarray(affine)[:3, :3], axis=0))


def axcodes(affine: np.ndarray) -> str:
    """The nearest anatomical direction of each voxel axis, such as ``RAS`` or ``PIR``."""
    return "".join(nib.aff2axcodes(affine))


def voxel_to_mm(affine: np.ndarray, index: Sequence[float] | np.ndarray) -> np.ndarray:
    """RAS mm of voxel indices; ``index`` is (..., 3)."""
    index = np.asarray(index, dtype=np.float64)
    return index @ np.asarray(affine)[:3, :3].T + np.asarray(affine)[:3, 3]


def mm_to_voxel(affine: np.ndarray, point: Sequence[float] | np.ndarray) -> np.ndarray:
    """Continuous voxel index of RAS mm points; ``point`` is (..., 3)."""
    return voxel_to_mm(np.linalg.inv(check_affine(affine)), point)


def reorient(data: np.ndarray, affine: np.ndarray, codes: str = "RAS") -> tuple[np.ndarray, np.ndarray]:
    """Voxels of ``data`` flipped and permuted, never interpolated, until the axes run along ``codes``.

    data: (x, y, z) or (c, x, y, z). Returns the reordered view and its affine. The way back is
    ``reorient(out, out_affine, axcodes(affine))``, which returns the very same array and affine.
    """
    affine = check_affine(affine)
    if sorted(_AXIS_OF.get(code, -1) for code in codes) != [0, 1, 2]:
        raise InvalidVolume(f"expected three of R/L, A/P, S/I such as 'RAS', got {codes!r}")
    change = orientations.ornt_transform(
        orientations.io_orientation(affine), orientations.axcodes2ornt(codes)
    )
    lead = data.ndim - 3
    source_axis_of = np.argsort(change[:, 0]).astype(int)
    out = data.transpose(*range(lead), *(lead + axis for axis in source_axis_of))
    flips = change[source_axis_of, 1]
    out = out[(slice(None),) * lead + tuple(slice(None, None, -1 if f < 0 else None) for f in flips)]
    return out, affine @ orientations.inv_ornt_aff(change, data.shape[lead:])


def grid_around(
    shape: Sequence[int], affine: np.ndarray, spacing: float | Sequence[float]
) -> tuple[tuple[int, int, int], np.ndarray]:
    """Shape and affine of the grid of voxel edges ``spacing`` (mm) over the same box, same axes, centre."""
    affine = check_affine(affine)
    old = np.array(spacing_mm(affine))
    new = np.broadcast_to(np.asarray(spacing, dtype=np.float64), (3,))
    size = np.array(shape, dtype=np.float64)
    new_shape = np.maximum(1, np.ceil(size * old / new - 1e-6)).astype(int)
    out = affine.copy()
    out[:3, :3] = affine[:3, :3] / old * new
    centre = voxel_to_mm(affine, (size - 1) / 2)
    out[:3, 3] = centre - out[:3, :3] @ ((new_shape - 1) / 2)
    return tuple(int(n) for n in new_shape), out


def resample(
    data: np.ndarray,
    affine: np.ndarray,
    target_shape: Sequence[int],
    target_affine: np.ndarray,
    *,
    transform: np.ndarray | None = None,
    order: int = 1,
    antialias: bool = True,
    fill: float = 0.0,
    region: tuple[slice, slice] | None = None,
) -> np.ndarray:
    """``data`` on another grid, with every step between the two composed into a single interpolation.

    data: (x, y, z) or (c, x, y, z), on ``affine``.
    transform: (4, 4) mm -> mm, from the space of ``affine`` to that of ``target_affine`` (None: identity).
        The way back is the same call with the grids swapped and ``np.linalg.inv(transform)``.
    order: 0 nearest (keeps the dtype, for labels and masks), 1 linear, 3 cubic B-spline (both float32).
    antialias: before an interpolation of order > 0 that steps over more than 1.5 source voxels along a source
        axis, the source is smoothed along that axis by the Gaussian that brings its point spread to the
        step, FWHM in voxels sqrt(step^2 - 1) (Cardoso et al., "Scale factor point spread function matching").
        Axes that are already coarse stay sharp: 0.4x0.4x6 mm to 2 mm is smoothed in plane only.
    fill: the value where a target voxel centre lies outside the source's voxels (not only their centres).
    region: only these target voxels along the first two axes (slices with start and stop, no step), to the bit as in
        the whole. Not along the third, where ITK interpolates positions between the ends of a line.

    Works in memory of the source and the target, once each. Raises InvalidVolume for bad affines or shapes.
    """
    if data.ndim not in (3, 4):
        raise InvalidVolume(f"expected an array (x, y, z) or (c, x, y, z), got {data.ndim} dimensions")
    if order not in _INTERPOLATORS:
        raise InvalidVolume(f"expected interpolation order 0, 1 or 3, got {order}")
    shape = tuple(int(n) for n in target_shape)
    if len(shape) != 3 or min(shape) < 1:
        raise InvalidVolume(f"expected a target shape of three sizes above zero, got {tuple(target_shape)}")
    to_source = _target_index_to_source_index(affine, target_affine, transform)
    start = (0, 0)
    if region is not None:
        start = (region[0].start, region[1].start)
        shape = (region[0].stop - start[0], region[1].stop - start[1], shape[2])
    if data.ndim == 4:
        out = np.empty((data.shape[0], *shape), dtype=data.dtype if order == 0 else np.float32)
        for channel, target in zip(data, out, strict=True):
            target[...] = _resample_one(channel, shape, to_source, order, antialias, fill, start)
        return out
    return _resample_one(data, shape, to_source, order, antialias, fill, start)


def _target_index_to_source_index(
    affine: np.ndarray, target_affine: np.ndarray, transform: np.ndarray | None
) -> np.ndarray:
    source = check_affine(affine, "the source affine")
    target = check_affine(target_affine, "the target affine")
    if transform is not None:
        source = check_affine(transform, "the transform") @ source
    matrix = np.linalg.solve(source, target)
    # Rounding noise must not push a voxel centre that coincides with the border out of the image.
    rounded = np.round(matrix)
    return np.where(np.abs(matrix - rounded) < 1e-9, rounded, matrix)


def _resample_one(
    data: np.ndarray,
    shape: tuple[int, int, int],
    to_source: np.ndarray,
    order: int,
    antialias: bool,
    fill: float,
    start: tuple[int, int],
) -> np.ndarray:
    is_mask = data.dtype.kind == "b"
    if order > 0:
        data = np.asarray(data, dtype=np.float32)
        if antialias:
            data = _matched_to_step(data, to_source)
    elif is_mask:
        data = data.astype(np.uint8)
    # Handed over as it lies in memory, a C-ordered (x, y, z) array is an ITK image whose axes run z, y, x.
    image = sitk.GetImageFromArray(data)
    step = to_source[:3, :3][::-1, ::-1]
    shift = to_source[:3, 3][::-1]
    move = sitk.AffineTransform(3)
    move.SetMatrix(step.ravel().tolist())
    move.SetTranslation(shift.tolist())
    out = sitk.Resample(
        image,
        [int(n) for n in reversed(shape)],
        move,
        _INTERPOLATORS[order],
        [0.0, float(start[1]), float(start[0])],
        [1.0, 1.0, 1.0],
        np.eye(3).ravel().tolist(),
        float(fill),
        image.GetPixelID(),
    )
    array = sitk.GetArrayFromImage(out)
    return array.astype(bool) if is_mask else array


def _matched_to_step(data: np.ndarray, to_source: np.ndarray) -> np.ndarray:
    # How many source voxels, along each source axis, one target voxel steps over.
    steps = np.linalg.norm(to_source[:3, :3], axis=1)
    for axis, step in enumerate(steps):
        if step > _DOWNSAMPLING_THAT_ALIASES and data.shape[axis] > 1:
            sigma = float(np.sqrt(step**2 - 1) / (2 * np.sqrt(2 * np.log(2))))
            data = ndimage.gaussian_filter1d(
                data, sigma, axis=axis, mode="nearest", truncate=_GAUSSIAN_RADIUS_SIGMAS
            )
    return data


def _mm(values: np.ndarray) -> str:
    return " x ".join(f"{v:.4g}" for v in values) + " mm"
