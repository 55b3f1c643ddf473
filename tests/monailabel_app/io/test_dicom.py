"""DICOM series: what was written is read, and what is no regular stack is refused."""

import shutil

import numpy as np
import pytest
import SimpleITK as sitk
from pydicom.uid import RLELossless

from monailabel_app.errors import InvalidVolume, UnreadableVolume
from monailabel_app.io.geometry import axcodes, mm_to_voxel, voxel_to_mm
from monailabel_app.io.images import read_geometry, read_volume, write_labelmap
from monailabel_app.types import Volume
from tests.dicom_factory import PATIENT_NAME, PLANES, write_series


def phantom(shape=(20, 24, 18), spacing=(1.1, 0.9, 2.5), degrees=0.0):
    rng = np.random.default_rng(0)
    data = rng.integers(0, 900, shape).astype(np.float32)
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    affine = np.array([[c, -s, 0, 0], [s, c, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]) @ np.diag([*spacing, 1.0])
    affine[:3, 3] = (-11.5, 7.25, 3.75)
    return Volume(data[None], affine)


@pytest.mark.parametrize("degrees", [0, 20])
@pytest.mark.parametrize("plane", PLANES)
def test_a_series_is_read_as_it_was_written(tmp_path, plane, degrees):
    written = write_series(tmp_path, phantom(degrees=degrees), plane=plane).volume
    volume = read_volume(tmp_path)
    assert axcodes(volume.affine) == PLANES[plane]
    np.testing.assert_allclose(volume.affine, written.affine, atol=1e-6)
    np.testing.assert_array_equal(volume.data, written.data)
    assert volume.warnings == ()


@pytest.mark.parametrize("plane", PLANES)
def test_a_voxel_lies_where_it_lay_before_the_series_was_made(tmp_path, plane):
    source = phantom(degrees=20)
    data = np.zeros_like(source.data)
    data[0, 3, 17, 5] = 100
    write_series(tmp_path, Volume(data, source.affine), plane=plane)
    volume = read_volume(tmp_path)
    index = np.array(np.unravel_index(volume.data[0].argmax(), volume.shape))
    where = mm_to_voxel(source.affine, voxel_to_mm(volume.affine, index))
    np.testing.assert_allclose(where, (3, 17, 5), atol=1e-5)


def test_the_rescale_slope_and_intercept_are_applied(tmp_path):
    written = write_series(tmp_path, phantom(), slope=0.5, intercept=-100).volume
    assert written.data.max() > 800
    np.testing.assert_allclose(read_volume(tmp_path).data, written.data, atol=1e-3)


@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd"])
def test_a_label_has_the_geometry_simpleitk_gives_the_series(tmp_path, plane, suffix):
    write_series(tmp_path / "series", phantom(degrees=20), plane=plane)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path / "series")))
    series = reader.Execute()
    volume = read_volume(tmp_path / "series")
    write_labelmap(tmp_path / f"label{suffix}", volume.data[0] > 100, volume)
    label = sitk.ReadImage(str(tmp_path / f"label{suffix}"))
    assert label.GetSize() == series.GetSize()
    np.testing.assert_allclose(label.GetSpacing(), series.GetSpacing(), rtol=1e-6)
    np.testing.assert_allclose(label.GetOrigin(), series.GetOrigin(), atol=1e-5)
    np.testing.assert_allclose(label.GetDirection(), series.GetDirection(), atol=1e-6)


def test_the_geometry_alone_equals_that_of_the_volume(tmp_path):
    write_series(tmp_path, phantom(degrees=20), plane="sagittal")
    volume, geometry = read_volume(tmp_path), read_geometry(tmp_path)
    assert geometry.shape == volume.shape
    np.testing.assert_allclose(geometry.affine, volume.affine, atol=1e-9)


def test_the_largest_of_several_series_is_read_with_a_warning(tmp_path):
    written = write_series(tmp_path / "deep" / "b", phantom(), series=2).volume
    write_series(tmp_path / "a", phantom((20, 24, 4)), series=1)
    (tmp_path / "deep" / "notes.txt").write_text("not DICOM")
    volume = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.data, written.data)
    assert len(volume.warnings) == 1
    assert "2 image series" in volume.warnings[0]


def test_copies_of_a_file_are_read_once(tmp_path):
    files = write_series(tmp_path, phantom()).files
    shutil.copy(files[3], tmp_path / "copy.dcm")
    volume = read_volume(tmp_path)
    assert volume.shape[2] == len(files)
    assert "copies" in volume.warnings[0]


def test_a_compressed_series_is_read(tmp_path):
    def compress(_, ds):
        ds.compress(RLELossless, generate_instance_uid=False)

    written = write_series(tmp_path, phantom(), edit=compress).volume
    np.testing.assert_array_equal(read_volume(tmp_path).data, written.data)


def test_inverted_grey_values_are_turned_over(tmp_path):
    def invert(_, ds):
        ds.PhotometricInterpretation = "MONOCHROME1"

    written = write_series(tmp_path, phantom(), edit=invert).volume
    volume = read_volume(tmp_path)
    expected = written.data.max() - written.data
    np.testing.assert_allclose(volume.data, expected, atol=1e-3)
    assert "MONOCHROME1" in volume.warnings[0]


def test_one_slice_of_inverted_grey_values_among_others_is_refused(tmp_path):
    def invert(k, ds):
        ds.PhotometricInterpretation = "MONOCHROME1" if k == 4 else "MONOCHROME2"

    write_series(tmp_path, phantom(), edit=invert)
    with pytest.raises(InvalidVolume, match="MONOCHROME1"):
        read_volume(tmp_path)


def test_uncompressed_pixels_of_no_stated_length_are_refused(tmp_path):
    """As of compressed ones, which come in items: the first item's head would be voxels."""
    mark = b"\xe0\x7f\x10\x00OW\x00\x00"
    for path in write_series(tmp_path, phantom()).files:
        content = path.read_bytes()
        place = content.index(mark) + len(mark)
        path.write_bytes(content[:place] + b"\xff" * 4 + content[place + 4 :])
    with pytest.raises(UnreadableVolume, match="damaged"):
        read_volume(tmp_path)


def test_another_modality_is_read_with_a_warning(tmp_path):
    write_series(tmp_path, phantom(), edit=lambda _, ds: setattr(ds, "Modality", "CT"))
    assert "'CT'" in read_volume(tmp_path).warnings[0]


def missing_slice(k, ds):
    return k != 7


def two_missing_ends_uneven(k, ds):
    if k > 9:
        x, y, z = ds.ImagePositionPatient
        ds.ImagePositionPatient = [x, y, float(z) + 0.8]


def one_larger_slice(k, ds):
    if k == 5:
        ds.Rows, ds.Columns = 48, 10


def turned_slice(k, ds):
    if k == 5:
        ds.ImageOrientationPatient = [1, 0, 0, 0, 0, -1]


def other_pixel_spacing(k, ds):
    if k == 5:
        ds.PixelSpacing = [3, 3]


def slanted(k, ds):
    x, y, z = ds.ImagePositionPatient
    ds.ImagePositionPatient = [x, float(y) + 0.3 * k, z]


def one_position(k, ds):
    if k % 2:
        x, y, z = ds.ImagePositionPatient
        ds.ImagePositionPatient = [x, y, float(z) - 2.5]


def bad_axes(k, ds):
    ds.ImageOrientationPatient = [1, 0, 0, 0.5, 0.8, 0]


def single_slice(k, ds):
    return k == 0


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (missing_slice, "1 missing"),
        (two_missing_ends_uneven, "distances of 2.50 to 3.30 mm"),
        (one_larger_slice, "one size"),
        (turned_slice, "several orientations"),
        (other_pixel_spacing, "one pixel spacing"),
        (slanted, "tilted gantry"),
        (one_position, "18 images at 9 positions"),
        (bad_axes, "unit vectors"),
        (single_slice, "single slice"),
    ],
)
def test_what_is_no_regular_stack_is_refused(tmp_path, edit, message):
    write_series(tmp_path / PATIENT_NAME, phantom(), edit=edit)
    with pytest.raises(InvalidVolume, match=message) as caught:
        read_volume(tmp_path)
    assert "PHANTOM" not in str(caught.value)


def multi_frame(k, ds):
    ds.NumberOfFrames = 4


def colour(k, ds):
    ds.SamplesPerPixel = 3


def no_position(k, ds):
    del ds.ImagePositionPatient


def cut_pixels(k, ds):
    ds.PixelData = ds.PixelData[:100]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (multi_frame, "multi-frame"),
        (colour, "colour"),
        (no_position, "without a position"),
        (cut_pixels, "cut short"),
    ],
)
def test_what_is_no_readable_image_is_refused(tmp_path, edit, message):
    write_series(tmp_path / PATIENT_NAME, phantom(), edit=edit)
    with pytest.raises(UnreadableVolume, match=message) as caught:
        read_volume(tmp_path)
    assert "PHANTOM" not in str(caught.value)


def test_a_folder_without_dicom_is_refused(tmp_path):
    (tmp_path / "readme.txt").write_text("nothing here")
    with pytest.raises(UnreadableVolume, match="no DICOM file"):
        read_volume(tmp_path)


def test_a_strangers_series_is_read(shared_data, tmp_path):
    shutil.unpack_archive(shared_data / "dicom" / "studyforrest_t1.zip", tmp_path)
    volume = read_volume(tmp_path)
    assert volume.shape == (274, 384, 384)
    assert axcodes(volume.affine) == "LPS"
    np.testing.assert_allclose(volume.spacing_mm, (0.7, 0.667, 0.667), atol=1e-3)
