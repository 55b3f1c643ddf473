"""The shipped model on one head stored in six ways: the label has the scan's geometry and lies on the lesion."""

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from scipy.spatial.transform import Rotation

from monailabel_app.io.geometry import reorient, resample, voxel_to_mm
from monailabel_app.io.images import read_volume, write_labelmap
from monailabel_app.pipelines.predict import SHIPPED_MODELS, PredictSettings, load_model, predict

pytestmark = pytest.mark.slow

STORED = ("RAS", "LPS", "PSR", "IAL", "oblique", "thick")


@pytest.fixture(scope="module")
def model():
    return load_model(SHIPPED_MODELS / "ddpm_t1")


def _store(path, data: np.ndarray, affine: np.ndarray) -> None:
    image = nib.Nifti1Image(data.astype(np.float32), affine)
    image.set_qform(affine, 1)
    image.set_sform(affine, 1)
    nib.save(image, path)


def _stored_as(kind: str, data: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if kind == "oblique":
        turn = np.eye(4)
        turn[:3, :3] = Rotation.from_euler("xyz", (12, -8, 10), degrees=True).as_matrix()
        return data, turn @ affine
    if kind == "thick":
        size = np.array(data.shape) * np.linalg.norm(affine[:3, :3], axis=0)
        ras, ras_affine = reorient(data, affine, "RAS")
        size = np.array(ras.shape) * 2.0
        shape = tuple(int(n) for n in np.floor(size / (0.8, 0.8, 6.0)))
        thick = np.diag([0.8, 0.8, 6.0, 1.0])
        thick[:3, 3] = ras_affine[:3, 3] - 1.0 + np.array([0.4, 0.4, 3.0])
        return resample(ras, ras_affine, shape, thick), thick
    turned, turned_affine = reorient(data, affine, kind)
    return np.ascontiguousarray(turned), turned_affine


@pytest.mark.parametrize("kind", STORED)
def test_the_label_keeps_the_geometry_and_lies_on_the_lesion(kind, model, lesion_scan, lesion_mask, tmp_path):
    original, truth = read_volume(lesion_scan), read_volume(lesion_mask)
    data, affine = _stored_as(kind, original.data[0], original.affine)
    where, where_affine = _stored_as(kind, truth.data[0], truth.affine)
    _store(tmp_path / "scan.nii.gz", data, affine)

    volume = read_volume(tmp_path / "scan.nii.gz")
    # The strictest point: at the others a lesion may merge with a false positive beside it, which moves its centre.
    finding = predict(volume, model, PredictSettings("specific"))
    write_labelmap(tmp_path / "label.nii.gz", finding.mask, volume)

    scan, label = (sitk.ReadImage(str(tmp_path / name)) for name in ("scan.nii.gz", "label.nii.gz"))
    assert label.GetSize() == scan.GetSize()
    assert label.GetSpacing() == scan.GetSpacing()
    assert label.GetOrigin() == scan.GetOrigin()
    assert label.GetDirection() == scan.GetDirection()
    assert finding.mask.any()

    truth_mm = voxel_to_mm(where_affine, np.average(np.argwhere(where >= 0), axis=0, weights=where.ravel().clip(0)))
    found = min(finding.lesions, key=lambda lesion: np.linalg.norm(np.array(lesion.centroid_ras_mm) - truth_mm))
    # One voxel of the model grid, or of the scan where that is coarser.
    voxel = np.maximum(np.array(volume.spacing_mm), 2.0)
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    offset = np.linalg.inv(axes) @ (np.array(found.centroid_ras_mm) - truth_mm)
    assert (np.abs(offset) <= voxel).all(), f"{np.round(offset, 2)} mm off; found {finding.lesions}"
    assert found.region == "left frontal white matter"
