"""Scans are read as the viewers read them, and a label returns in exactly the geometry of its scan."""

import gzip
import itertools

import nibabel as nib
import nrrd
import numpy as np
import pytest
import SimpleITK as sitk

from monailabel_app.errors import InvalidVolume
from monailabel_app.io.geometry import mm_to_voxel, reorient, resample, voxel_to_mm
from monailabel_app.io.images import read_geometry, read_volume, write_labelmap, write_map
from monailabel_app.types import Volume
from tests.monailabel_app.io.heads import (
    LESION_MM,
    blob,
    centre_voxel,
    centred_affine,
    head,
    itk_geometry_of,
    rotation,
)

ALL_CODES = [
    "".join(pair[sign] for pair, sign in zip(axes, signs, strict=True))
    for axes in itertools.permutations(("RL", "AP", "SI"))
    for signs in itertools.product((0, 1), repeat=3)
]
CUBE = np.random.default_rng(0).integers(0, 900, (17, 18, 19)).astype(np.int16)


def oblique():
    return centred_affine(CUBE.shape, (0.9, 1.1, 3.3), rotation(20, 2) @ rotation(-11, 0))


def save_nifti(path, data=CUBE, qform=None, sform=None, codes=(1, 1), kind=nib.Nifti1Image, **fields):
    image = kind(data, None)
    image.header.set_qform(oblique() if qform is None else qform, codes[0], strip_shears=True)
    image.header.set_sform(oblique() if sform is None else sform, codes[1])
    for name, value in fields.items():
        image.header[name] = value
    nib.save(kind(data, None, image.header), path)
    return path


def assert_same_geometry(label, scan):
    """Equal in SimpleITK to the last bit; and for NIfTI also in nibabel, with the same codes."""
    (size, *numbers), (expected_size, *expected) = itk_geometry_of(label), itk_geometry_of(scan)
    assert size == expected_size
    if str(label).endswith(".nrrd"):
        # NRRD holds spacing times direction; dividing them again leaves the last bit open.
        for got, want in zip(numbers, expected, strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-14, atol=1e-14)
    else:
        assert numbers == expected
    if str(label).endswith((".nii", ".nii.gz")) and str(scan).endswith((".nii", ".nii.gz")):
        ours, theirs = nib.load(label), nib.load(scan)
        np.testing.assert_array_equal(ours.affine, theirs.affine)
        for name in ("qform_code", "sform_code", "xyzt_units"):
            assert ours.header[name] == theirs.header[name]
        assert ours.header.get_zooms() == theirs.header.get_zooms()[:3]


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd"])
def test_every_format_gives_the_same_volume(tmp_path, suffix):
    reference = read_volume(save_nifti(tmp_path / "reference.nii"))
    image = sitk.ReadImage(str(tmp_path / "reference.nii"))
    sitk.WriteImage(image, str(tmp_path / f"scan{suffix}"))
    volume = read_volume(tmp_path / f"scan{suffix}")
    assert volume.data.shape == (1, *CUBE.shape)
    assert volume.data.dtype == np.float32
    np.testing.assert_array_equal(volume.data[0], CUBE)
    np.testing.assert_allclose(volume.affine, reference.affine, atol=1e-5)
    np.testing.assert_allclose(volume.affine, oblique(), atol=1e-4)
    np.testing.assert_array_equal(read_geometry(tmp_path / f"scan{suffix}").affine, volume.affine)
    assert volume.warnings == ()


def test_the_scale_slope_is_applied(tmp_path, healthy_scan):
    np.testing.assert_array_equal(
        read_volume(healthy_scan).data[0], nib.load(healthy_scan).get_fdata(dtype=np.float32)
    )
    assert read_volume(healthy_scan).data.max() > 1500  # stored as 8 bit


def test_a_name_is_made_from_the_content_alone(tmp_path):
    first = read_volume(save_nifti(tmp_path / "SMITH^JOHN.nii.gz"))
    assert read_volume(save_nifti(tmp_path / "other.nii")).name == first.name
    assert read_volume(save_nifti(tmp_path / "other.nii", CUBE + 1)).name != first.name
    assert "SMITH" not in repr(first)


def test_suffixes_are_known_in_capitals(tmp_path):
    assert read_volume(save_nifti(tmp_path / "SCAN.NII.GZ")).shape == CUBE.shape


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd"])
@pytest.mark.parametrize("codes", ALL_CODES)
def test_a_label_has_the_scans_geometry_in_every_orientation(tmp_path, codes, suffix):
    data, affine = reorient(CUBE, oblique(), codes)
    scan = save_nifti(tmp_path / "scan.nii.gz", np.ascontiguousarray(data), affine, affine)
    volume = read_volume(scan)
    write_labelmap(tmp_path / f"label{suffix}", volume.data[0] > 450, volume)
    assert_same_geometry(tmp_path / f"label{suffix}", scan)
    label = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / f"label{suffix}")))
    assert label.dtype == np.uint8
    np.testing.assert_array_equal(label.transpose(2, 1, 0), data > 450)


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".nrrd", ".mha"])
@pytest.mark.parametrize("codes", [(1, 0), (0, 1), (1, 1), (1, 4), (2, 2), (0, 2), (0, 0)])
def test_two_forms_that_disagree_come_back_both(tmp_path, codes, suffix):
    other = rotation(5, 1) @ oblique()
    scan = save_nifti(tmp_path / "scan.nii.gz", qform=oblique(), sform=other, codes=codes)
    volume = read_volume(scan)
    write_labelmap(tmp_path / f"label{suffix}", CUBE > 450, volume)
    assert_same_geometry(tmp_path / f"label{suffix}", scan)
    _, spacing, origin, direction = itk_geometry_of(scan)
    lps = np.array(direction).reshape(3, 3) * spacing
    np.testing.assert_allclose(volume.affine[:3, :3], np.diag([-1, -1, 1]) @ lps, atol=1e-9)
    np.testing.assert_allclose(volume.affine[:3, 3], np.array(origin) * (-1, -1, 1), atol=1e-9)


def test_a_header_without_orientation_is_read_with_a_warning(tmp_path):
    volume = read_volume(save_nifti(tmp_path / "scan.nii.gz", codes=(0, 0)))
    assert "no orientation" in volume.warnings[0]


def test_a_sheared_scan_keeps_its_shear(tmp_path):
    sheared = oblique()
    sheared[:3, 1] += 0.3 * sheared[:3, 0]
    scan = save_nifti(tmp_path / "scan.nii.gz", sform=sheared, codes=(0, 1))
    with pytest.raises(RuntimeError):
        sitk.ReadImage(str(scan))
    volume = read_volume(scan)
    np.testing.assert_allclose(volume.affine, sheared, atol=1e-5)
    assert "right angles" in volume.warnings[0]
    write_labelmap(tmp_path / "label.nii.gz", CUBE > 450, volume)
    np.testing.assert_array_equal(nib.load(tmp_path / "label.nii.gz").affine, nib.load(scan).affine)
    write_labelmap(tmp_path / "label.nrrd", CUBE > 450, volume)
    header = nrrd.read_header(str(tmp_path / "label.nrrd"))
    assert header["space"] == "left-posterior-superior"
    lps = np.diag([-1.0, -1.0, 1.0]) @ sheared[:3]
    np.testing.assert_allclose(np.array(header["space directions"]).T, lps[:, :3], atol=1e-5)
    np.testing.assert_allclose(header["space origin"], lps[:, 3], atol=1e-4)


def test_nifti_2_returns_as_nifti_2(tmp_path):
    scan = save_nifti(tmp_path / "scan.nii.gz", kind=nib.Nifti2Image)
    volume = read_volume(scan)
    write_labelmap(tmp_path / "label.nii.gz", CUBE > 450, volume)
    assert isinstance(nib.load(tmp_path / "label.nii.gz"), nib.Nifti2Image)
    np.testing.assert_array_equal(nib.load(tmp_path / "label.nii.gz").affine, nib.load(scan).affine)


def test_big_endian_files_are_read_and_answered(tmp_path):
    header = nib.Nifti1Header(endianness=">")
    header.set_data_dtype(">i2")
    image = nib.Nifti1Image(CUBE.astype(">i2"), oblique(), header)
    nib.save(image, tmp_path / "scan.nii")
    assert nib.load(tmp_path / "scan.nii").header.endianness == ">"
    volume = read_volume(tmp_path / "scan.nii")
    np.testing.assert_array_equal(volume.data[0], CUBE)
    write_labelmap(tmp_path / "label.nii", CUBE > 450, volume)
    assert_same_geometry(tmp_path / "label.nii", tmp_path / "scan.nii")


@pytest.mark.parametrize("shape", [(17, 18, 19, 1), (17, 18, 19, 1, 1)])
def test_one_frame_of_more_dimensions_is_a_volume(tmp_path, shape):
    volume = read_volume(save_nifti(tmp_path / "scan.nii.gz", CUBE.reshape(shape)))
    np.testing.assert_array_equal(volume.data[0], CUBE)
    write_labelmap(tmp_path / "label.nii.gz", CUBE > 1, volume)
    assert nib.load(tmp_path / "label.nii.gz").shape == CUBE.shape


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd"])
def test_nrrd_scans_are_answered_in_their_geometry(tmp_path, suffix):
    directions = (np.diag([-1.0, -1.0, 1.0]) @ oblique()[:3, :3]).T
    nrrd.write(
        str(tmp_path / "scan.nrrd"),
        CUBE,
        {
            "space": "left-posterior-superior",
            "space directions": directions.tolist(),
            "space origin": [1.5, 2.5, 3.5],
        },
    )
    volume = read_volume(tmp_path / "scan.nrrd")
    np.testing.assert_array_equal(volume.data[0], CUBE)
    write_labelmap(tmp_path / f"label{suffix}", CUBE > 450, tmp_path / "scan.nrrd")
    size, *rest = itk_geometry_of(tmp_path / f"label{suffix}")
    expected_size, *expected = itk_geometry_of(tmp_path / "scan.nrrd")
    assert size == expected_size
    # NIfTI stores its geometry in float32; NRRD as text, from which ITK divides the spacing out again.
    for got, want in zip(rest, expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-12 if suffix == ".nrrd" else 1e-5)


def test_a_reference_may_be_the_file_or_a_volume_that_came_from_none(tmp_path):
    scan = save_nifti(tmp_path / "scan.nii.gz")
    write_labelmap(tmp_path / "a.nii.gz", CUBE > 450, scan)
    assert_same_geometry(tmp_path / "a.nii.gz", scan)
    write_labelmap(tmp_path / "b.nii.gz", CUBE > 450, Volume(CUBE[None].astype(np.float32), oblique()))
    np.testing.assert_allclose(nib.load(tmp_path / "b.nii.gz").affine, oblique(), atol=1e-5)
    np.testing.assert_allclose(read_volume(tmp_path / "b.nii.gz").affine, oblique(), atol=1e-5)


def test_a_map_keeps_its_values(tmp_path):
    volume = read_volume(save_nifti(tmp_path / "scan.nii.gz"))
    values = np.random.default_rng(1).normal(size=CUBE.shape).astype(np.float32)
    for suffix in (".nii.gz", ".nrrd"):
        write_map(tmp_path / f"map{suffix}", values, volume)
        image = sitk.ReadImage(str(tmp_path / f"map{suffix}"))
        assert image.GetPixelID() == sitk.sitkFloat32
        np.testing.assert_array_equal(sitk.GetArrayFromImage(image).transpose(2, 1, 0), values)
        assert_same_geometry(tmp_path / f"map{suffix}", tmp_path / "scan.nii.gz")


def test_an_empty_label_is_a_label(tmp_path):
    volume = read_volume(save_nifti(tmp_path / "scan.nii.gz"))
    write_labelmap(tmp_path / "label.nrrd", np.zeros(CUBE.shape, np.uint8), volume)
    image = sitk.ReadImage(str(tmp_path / "label.nrrd"))
    assert image.GetPixelID() == sitk.sitkUInt8
    assert not sitk.GetArrayFromImage(image).any()


def test_nrrd_labels_are_compressed_unless_told_otherwise(tmp_path):
    volume = read_volume(save_nifti(tmp_path / "scan.nii.gz"))
    label = np.zeros(CUBE.shape, np.uint8)
    write_labelmap(tmp_path / "small.nrrd", label, volume)
    write_labelmap(tmp_path / "plain.nrrd", label, volume, compress=False)
    assert nrrd.read_header(str(tmp_path / "small.nrrd"))["encoding"] == "gzip"
    assert nrrd.read_header(str(tmp_path / "plain.nrrd"))["encoding"] == "raw"


@pytest.mark.parametrize(
    ("name", "labels", "message"),
    [
        ("label.nii.gz", np.zeros((3, 3, 3), np.uint8), "shape"),
        ("label.png", np.zeros(CUBE.shape, np.uint8), "ending in"),
        ("label.nii.gz", np.full(CUBE.shape, 300), "0 to 255"),
        ("label.nii.gz", np.full(CUBE.shape, 0.5), "0 to 255"),
        ("label.nii.gz", np.full(CUBE.shape, -1), "0 to 255"),
    ],
)
def test_labels_that_do_not_belong_are_refused_and_nothing_is_written(tmp_path, name, labels, message):
    volume = read_volume(save_nifti(tmp_path / "scan.nii"))
    with pytest.raises(InvalidVolume, match=message):
        write_labelmap(tmp_path / name, labels, volume)
    assert [p.name for p in tmp_path.iterdir()] == ["scan.nii"]


def test_a_map_with_nan_is_refused(tmp_path):
    volume = read_volume(save_nifti(tmp_path / "scan.nii"))
    with pytest.raises(InvalidVolume, match="finite"):
        write_map(tmp_path / "map.nii.gz", np.full(CUBE.shape, np.nan), volume)


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    volume = read_volume(save_nifti(tmp_path / "scan.nii"))
    (tmp_path / "label.nii.gz").write_bytes(b"old")

    def full_disk(image, path):
        path.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr("monailabel_app.io.images.nib.save", full_disk)
    with pytest.raises(OSError, match="no space"):
        write_labelmap(tmp_path / "label.nii.gz", CUBE > 450, volume)
    assert (tmp_path / "label.nii.gz").read_bytes() == b"old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["label.nii.gz", "scan.nii"]


def test_a_gzip_file_of_a_few_bytes_cannot_claim_memory(tmp_path):
    image = nib.Nifti1Image(np.zeros((1, 1, 1), np.float32), np.eye(4))
    image.header.set_data_shape((600, 600, 600))
    with gzip.open(tmp_path / "scan.nii.gz", "wb") as stream:
        stream.write(image.header.binaryblock + b"\0\0\0\0")
    with pytest.raises(Exception, match="promises"):
        read_volume(tmp_path / "scan.nii.gz")


VERSIONS = {
    "RAS": ((60, 72, 60), (2.4, 2.4, 2.4), None, "RAS"),
    "LPS": ((60, 72, 60), (2.4, 2.4, 2.4), None, "LPS"),
    "permuted": ((60, 72, 60), (2.4, 2.4, 2.4), None, "PIR"),
    "flipped": ((60, 72, 60), (2.4, 2.4, 2.4), None, "LAS"),
    "oblique": ((60, 72, 60), (2.4, 2.4, 2.4), rotation(20, 0), "RAS"),
    "oblique_permuted": ((60, 72, 60), (2.4, 2.4, 2.4), rotation(20, 1) @ rotation(10, 2), "SLA"),
    "anisotropic": ((320, 384, 24), (0.4, 0.4, 6.0), None, "LPS"),
    "anisotropic_oblique": ((320, 384, 24), (0.4, 0.4, 6.0), rotation(20, 0), "LPS"),
    "thick_sagittal": ((26, 160, 150), (5.5, 0.95, 0.95), None, "PIR"),
}


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd"])
@pytest.mark.parametrize("version", VERSIONS)
def test_an_implanted_lesion_returns_to_its_voxel_in_the_scans_geometry(tmp_path, version, suffix):
    shape, spacing, turn, codes = VERSIONS[version]
    affine = centred_affine(shape, spacing, turn)
    data, affine = reorient(head(shape, affine), affine, codes)
    scan = save_nifti(tmp_path / "scan.nii.gz", np.ascontiguousarray(data.astype(np.int16)), affine, affine)

    volume = read_volume(scan)
    to_model = rotation(6, 0) @ np.diag([1.06, 0.97, 1.02, 1.0])
    to_model[:3, 3] = (3, -5, 2)
    model_shape, model_affine = (91, 109, 91), centred_affine((91, 109, 91), (2.0, 2.0, 2.0))
    model = resample(volume.data, volume.affine, model_shape, model_affine, transform=to_model)[0]
    # The brain itself is where the transform puts it, not only the blob: compared with the head drawn there.
    there = voxel_to_mm(np.linalg.inv(to_model), voxel_to_mm(model_affine, (45, 54, 45)))
    expected = 600 + there @ np.array([1.5, 1.0, 2.0])
    assert abs(model[45, 54, 45] - expected) < 3

    found = blob(model_shape, model_affine, voxel_to_mm(to_model, LESION_MM), 9.0)
    back = resample(found, model_affine, volume.shape, volume.affine, transform=np.linalg.inv(to_model))
    write_labelmap(tmp_path / f"label{suffix}", back > 0.5, volume)

    assert_same_geometry(tmp_path / f"label{suffix}", scan)
    label = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / f"label{suffix}"))).transpose(2, 1, 0)
    error = np.abs(centre_voxel(label) - mm_to_voxel(affine, LESION_MM))
    assert (error < 1).all()


def test_two_orientations_that_contradict_each_other_are_told(tmp_path):
    mirrored = np.diag([-1.0, 1, 1, 1]) @ oblique()
    turned = oblique() @ rotation(5, 2)
    told = {}
    for name, codes, sform in (("one", (1, 0), mirrored), ("like", (1, 4), turned), ("two", (1, 1), mirrored)):
        scan = save_nifti(tmp_path / f"{name}.nii.gz", sform=sform, codes=codes)
        told[name] = [warning for warning in read_volume(scan).warnings if "two orientations" in warning]
    assert (told["one"], told["like"]) == ([], [])
    assert len(told["two"]) == 1
