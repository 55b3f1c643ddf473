"""PNG pictures and other single slices: read only where asked for, with what had to be assumed said."""

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from monailabel_app.errors import InvalidVolume, UnreadableVolume
from monailabel_app.io.geometry import axcodes
from monailabel_app.io.images import read_geometry, read_volume, write_labelmap

ROWS = np.random.default_rng(0).integers(1, 250, (40, 30)).astype(np.uint8)


def picture(path, rows=ROWS, mode=None, **options):
    Image.fromarray(rows, mode).save(path, **options)
    return path


def test_columns_are_x_and_rows_are_y_seen_as_radiologists_see_them(tmp_path):
    volume = read_volume(picture(tmp_path / "a.png"), slices=True)
    assert volume.shape == (30, 40, 1)
    np.testing.assert_array_equal(volume.data[0, ..., 0], ROWS.T)
    assert axcodes(volume.affine) == "LPS"
    assert volume.spacing_mm == pytest.approx((1.0, 1.0, 5.0))
    assert any("no orientation" in warning for warning in volume.warnings)
    assert any("no pixel size" in warning for warning in volume.warnings)


def test_sixteen_bits_are_kept(tmp_path):
    deep = ROWS.astype(np.uint16) * 200
    np.testing.assert_array_equal(read_volume(picture(tmp_path / "a.png", deep), slices=True).data[0, ..., 0], deep.T)


@pytest.mark.parametrize(("options", "size"), [({"dpi": (50.8, 50.8)}, 0.5), ({"dpi": (96, 96)}, 1.0), ({}, 1.0)])
def test_the_file_s_own_pixel_size_is_used_unless_it_is_a_screen_s(tmp_path, options, size):
    volume = read_volume(picture(tmp_path / "a.png", **options), slices=True)
    assert volume.spacing_mm[:2] == pytest.approx((size, size), rel=1e-3)
    assert any("no pixel size" in w for w in volume.warnings) == (size == 1.0)


def test_a_given_pixel_size_comes_first(tmp_path):
    path = picture(tmp_path / "a.png", dpi=(50.8, 50.8))
    assert read_volume(path, slices=True, pixel_mm=0.8).spacing_mm[:2] == pytest.approx((0.8, 0.8))
    with pytest.raises(InvalidVolume, match="pixel size"):
        read_volume(path, slices=True, pixel_mm=0.0)


def test_colour_is_refused_unless_it_is_grey(tmp_path):
    grey = np.stack([ROWS] * 3, -1)
    np.testing.assert_array_equal(read_volume(picture(tmp_path / "a.png", grey), slices=True).data[0, ..., 0], ROWS.T)
    coloured = grey.copy()
    coloured[5, 5] = (255, 0, 0)
    see_through = np.concatenate([grey, np.full((*ROWS.shape, 1), 100, np.uint8)], -1)
    for rows in (coloured, see_through):
        with pytest.raises(InvalidVolume, match="grey"):
            read_volume(picture(tmp_path / "b.png", rows), slices=True)


def test_damaged_and_wrong_files_are_refused_without_their_names(tmp_path):
    whole = picture(tmp_path / "patient.png").read_bytes()
    for content in (whole[: len(whole) // 2], b"no picture at all", whole[:20]):
        (tmp_path / "patient.png").write_bytes(content)
        with pytest.raises(UnreadableVolume, match="PNG") as caught:
            read_volume(tmp_path / "patient.png", slices=True)
        assert "patient" not in str(caught.value)
    Image.fromarray(ROWS).save(tmp_path / "jpeg.png", format="JPEG")
    with pytest.raises(UnreadableVolume):
        read_volume(tmp_path / "jpeg.png", slices=True)


def test_absurd_sizes_are_refused_before_anything_is_unpacked(tmp_path):
    for size in (5000, 20000):
        Image.new("1", (size, size)).save(tmp_path / "bomb.png")
        with pytest.raises(InvalidVolume, match="million pixels"):
            read_volume(tmp_path / "bomb.png", slices=True)
    with pytest.raises(InvalidVolume, match="16 voxels"):
        read_volume(picture(tmp_path / "tiny.png", ROWS[:8, :8]), slices=True)


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha"])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_single_slices_of_volume_formats_are_read_where_asked_for(tmp_path, suffix, axis):
    data = np.moveaxis(ROWS[..., None].astype(np.int16), 2, axis)
    path = tmp_path / f"a{suffix}"
    affine = np.diag([0.9, 1.1, 4.0, 1.0])
    affine[:3, 3] = (3, -5, 12)
    if suffix == ".nii.gz":
        nib.save(nib.Nifti1Image(data, affine), path)
    else:
        image = sitk.GetImageFromArray(data.transpose(2, 1, 0))
        image.SetSpacing((0.9, 1.1, 4.0))
        image.SetOrigin((-3, 5, 12))
        image.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1))
        sitk.WriteImage(image, str(path))
    volume = read_volume(path, slices=True)
    assert volume.shape == data.shape
    np.testing.assert_allclose(volume.affine, affine, atol=1e-6)
    np.testing.assert_array_equal(volume.data[0], data)
    with pytest.raises(InvalidVolume, match="single slice"):
        read_volume(path)
    label = tmp_path / f"label{suffix}"
    write_labelmap(label, (data > 100).astype(np.uint8), volume)
    np.testing.assert_array_equal(read_volume(label, slices=True).data[0] > 0, data > 100)
    np.testing.assert_allclose(read_geometry(label).affine, affine, atol=1e-6)


def test_pictures_are_no_volumes(tmp_path):
    with pytest.raises(UnreadableVolume, match=r"\.png"):
        read_volume(picture(tmp_path / "a.png"))


def test_a_label_is_written_beside_its_picture(tmp_path):
    path = picture(tmp_path / "a.png")
    volume = read_volume(path, slices=True)
    write_labelmap(tmp_path / "l.nii.gz", volume.data[0] > 100, volume)
    np.testing.assert_allclose(nib.load(tmp_path / "l.nii.gz").affine, volume.affine, atol=1e-5)
    assert read_geometry(path).shape == volume.shape
