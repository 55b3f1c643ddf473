"""Whatever is no head scan is refused with what was expected, what came and what to do."""

import gzip

import nibabel as nib
import nrrd
import numpy as np
import pytest
import SimpleITK as sitk

from monailabel_app.errors import AnomalyAppError, InvalidVolume, UnreadableVolume
from monailabel_app.io.images import read_geometry, read_volume
from monailabel_app.io.itk import quiet_itk

RNG = np.random.default_rng(0)
CUBE = RNG.integers(1, 900, (20, 21, 22)).astype(np.int16)
NAME = "SMITH^JOHN"


def nifti(path, data=CUBE, affine=None):
    nib.save(nib.Nifti1Image(data, np.eye(4) if affine is None else affine), path)
    return path


def patched_header(path, **fields):
    """A NIfTI file whose header fields are set without nibabel's own checks."""
    nifti(path)
    content = bytearray(path.read_bytes())
    header = nib.Nifti1Header(bytes(content[:348]), check=False)
    for name, value in fields.items():
        header[name] = value
    content[:348] = header.binaryblock
    path.write_bytes(bytes(content))
    return path


def truncated(path, whole, fraction):
    content = whole.read_bytes()
    path.write_bytes(content[: int(len(content) * fraction)])
    whole.unlink()
    return path


def text_file(folder):
    path = folder / f"{NAME}.nii.gz"
    path.write_text("This is not an image. " * 40)
    return path


def gzipped_text(folder):
    path = folder / f"{NAME}.nii.gz"
    with gzip.open(path, "wt") as stream:
        stream.write("This is not an image either. " * 40)
    return path


def empty_file(folder):
    path = folder / f"{NAME}.nii.gz"
    path.touch()
    return path


def truncated_gzip(folder):
    return truncated(folder / f"{NAME}.nii.gz", nifti(folder / "whole.nii.gz"), 0.6)


def truncated_in_the_header(folder):
    return truncated(folder / f"{NAME}.nii.gz", nifti(folder / "whole.nii.gz"), 0.005)


def truncated_plain(folder):
    return truncated(folder / f"{NAME}.nii", nifti(folder / "whole.nii"), 0.6)


def damaged_gzip(folder):
    path = nifti(folder / f"{NAME}.nii.gz")
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 64] = b"\xaa" * 64
    path.write_bytes(bytes(content))
    return path


def analyze_file(folder):
    path = folder / f"{NAME}.nii"
    path.write_bytes(b"\0" * 2000)
    return path


def nrrd_file(folder):
    path = folder / f"{NAME}.nrrd"
    nrrd.write(str(path), CUBE)
    return path


def truncated_nrrd(folder):
    return truncated(folder / f"{NAME}.nrrd", nrrd_file(folder).rename(folder / "whole.nrrd"), 0.6)


def truncated_raw_nrrd(folder):
    nrrd.write(str(folder / "whole.nrrd"), CUBE, {"encoding": "raw"})
    return truncated(folder / f"{NAME}.nrrd", folder / "whole.nrrd", 0.6)


def text_nrrd(folder):
    path = folder / f"{NAME}.nrrd"
    path.write_text("NRRD? no")
    return path


def truncated_mha(folder):
    sitk.WriteImage(sitk.GetImageFromArray(CUBE), str(folder / "whole.mha"))
    return truncated(folder / f"{NAME}.mha", folder / "whole.mha", 0.6)


def missing(folder):
    return folder / f"{NAME}.nii.gz"


def picture(folder):
    path = folder / f"{NAME}.png"
    path.write_bytes(b"\x89PNG")
    return path


def single_dicom(folder):
    path = folder / f"{NAME}.dcm"
    path.write_bytes(b"\0" * 128 + b"DICM")
    return path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (text_file, "without a valid NIfTI header"),
        (gzipped_text, "without a valid NIfTI header"),
        (empty_file, "empty file"),
        (truncated_gzip, "truncated or damaged"),
        (truncated_in_the_header, "without a valid NIfTI header"),
        (truncated_plain, "truncated"),
        (damaged_gzip, "truncated or damaged"),
        (analyze_file, "without a valid NIfTI header"),
        (truncated_nrrd, "truncated or damaged"),
        (truncated_raw_nrrd, "truncated or damaged"),
        (text_nrrd, "without a valid .nrrd header"),
        (truncated_mha, "truncated or damaged"),
        (missing, "there is nothing"),
        (picture, "got .png"),
        (single_dicom, "folder of the series"),
    ],
)
def test_what_is_no_readable_image_is_refused(tmp_path, make, message, capfd):
    path = make(tmp_path)
    with pytest.raises(UnreadableVolume, match=message) as caught:
        read_volume(path)
    assert str(caught.value).startswith("expected ")
    assert caught.value.status == 400
    output = capfd.readouterr()
    assert NAME not in str(caught.value) + output.out + output.err
    # Nor in the chain of causes, which a server logs.
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def with_nan(fraction):
    data = CUBE.astype(np.float32)
    flat = data.reshape(-1)
    flat[: round(fraction * flat.size)] = np.nan
    return data


COLOUR = np.zeros((20, 20, 20), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (CUBE[:, :, 0], "single slice"),
        (CUBE[:, :, :1], "single slice"),
        (CUBE[:, :1, :], "single slice"),
        (np.stack([CUBE] * 3, -1), "3-D volume, got 4 dimensions"),
        (CUBE[..., None, None].repeat(3, -1), "3-D volume, got 5 dimensions"),
        (CUBE.astype(np.complex64), "one value per voxel"),
        (COLOUR, "one value per voxel"),
        (CUBE[:10, :10], "at least 16 voxels along two axes"),
        (np.zeros_like(CUBE), "every voxel zero"),
        (np.full_like(CUBE, 7), "the same value"),
        (with_nan(0.02), "NaN or infinity in 2.0 %"),
        (np.full(CUBE.shape, np.nan, np.float32), "NaN or infinity in 100.0 %"),
        (CUBE * 1e30, "grey values up to"),
        (CUBE * 1e-30, "grey values up to"),
        (np.full(CUBE.shape, 1e300), "NaN or infinity in 100.0 %"),
    ],
)
def test_images_that_are_no_scan_are_refused(tmp_path, data, message):
    path = nifti(tmp_path / f"{NAME}.nii.gz", data)
    with pytest.raises(InvalidVolume, match=message) as caught:
        read_volume(path)
    assert str(caught.value).startswith("expected ")
    assert NAME not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pixdim": [1, 0, 1, 1, 0, 0, 0, 0]}, "voxel sizes above zero"),
        ({"pixdim": [1, -1, 1, 1, 0, 0, 0, 0]}, "voxel sizes above zero"),
        ({"pixdim": [1, np.nan, 1, 1, 0, 0, 0, 0]}, "voxel sizes above zero"),
        ({"dim": [3, 32767, 32767, 32767, 1, 1, 1, 1]}, "at most 250 million voxels"),
        ({"dim": [3, 600, 600, 600, 1, 1, 1, 1]}, "truncated"),
        ({"dim": [3, -20, 21, 22, 1, 1, 1, 1]}, "expected"),
        ({"dim": [3, 0, 21, 22, 1, 1, 1, 1]}, "above zero"),
        ({"dim": [0, 20, 21, 22, 1, 1, 1, 1]}, "expected"),
        ({"datatype": 0}, "expected"),
        ({"datatype": 1234}, "expected"),
        ({"qform_code": 0, "srow_x": [np.nan, 0, 0, 0]}, "expected"),
        ({"qform_code": 0, "srow_x": [0, 0, 0, 0]}, "expected"),
        ({"qform_code": 0, "srow_y": [1, 0, 0, 0]}, "expected"),
        ({"vox_offset": 1e9}, "truncated"),
    ],
)
def test_damaged_headers_are_refused(tmp_path, fields, message):
    path = patched_header(tmp_path / f"{NAME}.nii", **fields)
    with pytest.raises(AnomalyAppError, match=message) as caught:
        read_volume(path)
    assert NAME not in str(caught.value)


def test_voxel_sizes_in_metres_are_refused(tmp_path):
    path = patched_header(
        tmp_path / "scan.nii", qform_code=1, sform_code=0, pixdim=[1, 0.001, 0.001, 0.001, 0, 0, 0, 0]
    )
    with pytest.raises(InvalidVolume, match="check the unit"):
        read_volume(path)


def test_itk_is_quiet_only_while_it_reads(tmp_path):
    with quiet_itk(), quiet_itk():
        assert not sitk.ProcessObject.GetGlobalWarningDisplay()
    assert sitk.ProcessObject.GetGlobalWarningDisplay()


@pytest.mark.parametrize("slope", [0, np.nan, np.inf])
def test_a_slope_that_is_no_slope_means_unscaled(tmp_path, slope):
    path = patched_header(tmp_path / "scan.nii", scl_slope=slope, scl_inter=5)
    np.testing.assert_array_equal(read_volume(path).data[0], CUBE)


def test_a_few_nan_are_replaced_with_a_warning(tmp_path):
    data = with_nan(0.005)
    volume = read_volume(nifti(tmp_path / "scan.nii.gz", data))
    bad = ~np.isfinite(data)
    assert (volume.data[0][bad] == data[~bad].min()).all()
    np.testing.assert_array_equal(volume.data[0][~bad], data[~bad])
    assert str(int(bad.sum())) in volume.warnings[0]


def test_colour_and_vector_nrrd_are_refused(tmp_path):
    image = sitk.GetImageFromArray(np.zeros((20, 20, 20, 3), np.uint8), isVector=True)
    sitk.WriteImage(image, str(tmp_path / "scan.nrrd"))
    with pytest.raises(InvalidVolume, match="3 components"):
        read_volume(tmp_path / "scan.nrrd")


def test_four_dimensional_nrrd_is_refused(tmp_path):
    sitk.WriteImage(
        sitk.GetImageFromArray(np.zeros((4, 20, 20, 20), np.uint8), isVector=False), str(tmp_path / "a.nrrd")
    )
    with pytest.raises(InvalidVolume, match="got 4 dimensions"):
        read_volume(tmp_path / "a.nrrd")


def test_a_nrrd_of_absurd_size_is_refused_before_it_is_read(tmp_path):
    (tmp_path / "scan.nrrd").write_text(
        "NRRD0004\ntype: short\ndimension: 3\nsizes: 9000 9000 9000\nencoding: raw\nendian: little\n\n12"
    )
    with pytest.raises(InvalidVolume, match="at most"):
        read_geometry(tmp_path / "scan.nrrd")


def test_a_nrrd_that_promises_more_than_it_holds_is_refused(tmp_path):
    (tmp_path / "scan.nrrd").write_text(
        "NRRD0004\ntype: short\ndimension: 3\nsizes: 600 600 600\nencoding: raw\nendian: little\n\n12"
    )
    with pytest.raises(UnreadableVolume, match="truncated"):
        read_volume(tmp_path / "scan.nrrd")
