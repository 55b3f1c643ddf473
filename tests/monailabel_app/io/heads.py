"""A synthetic head on any grid, and helpers that read a file's geometry the way viewers do."""

import numpy as np
import SimpleITK as sitk

from monailabel_app.io.geometry import voxel_to_mm

LESION_MM = np.array([18.0, -12.0, 10.0])


def rotation(degrees, axis):
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    out = np.eye(4)
    a, b = [i for i in range(3) if i != axis]
    out[a, a], out[a, b], out[b, a], out[b, b] = c, -s, s, c
    return out


def centred_affine(shape, spacing, turn=None):
    affine = (np.eye(4) if turn is None else turn) @ np.diag([*spacing, 1.0])
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2) + (1.3, -2.2, 3.1)
    return affine


def head(shape, affine):
    """A scalp shell around a brain whose brightness tells left, front and top from their opposites."""
    points = voxel_to_mm(affine, np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1))
    radius = np.sqrt(((points / (60.0, 75.0, 60.0)) ** 2).sum(-1))
    out = np.where(radius < 0.8, 600 + points @ np.array([1.5, 1.0, 2.0]), 0.0)
    out[(radius > 0.9) & (radius < 1.0)] = 900
    return out.astype(np.float32)


def blob(shape, affine, centre_mm, radius_mm):
    points = voxel_to_mm(affine, np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1))
    return np.exp(-0.5 * np.sum((points - centre_mm) ** 2, -1) / (radius_mm / 2) ** 2).astype(np.float32)


def centre_voxel(mask):
    return np.argwhere(mask).mean(0)


def itk_geometry_of(path):
    """Size, spacing, origin and direction as SimpleITK (3D Slicer) sees them."""
    image = sitk.ReadImage(str(path))
    return image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection()
