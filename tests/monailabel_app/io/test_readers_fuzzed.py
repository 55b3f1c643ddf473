"""Whatever stands in a file, a reader refuses it with a reason or gives a volume that keeps its contract."""

import warnings
from functools import cache

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from monailabel_app.errors import AnomalyAppError
from monailabel_app.io.images import read_volume, write_labelmap, write_map
from tests.bad_dicom import series
from tests.bad_files import gz, mha, nifti1, nrrd, picture
from tests.monailabel_app.io.test_bad_files import assert_is_a_volume

FUZZED = settings(
    max_examples=60, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck), database=None
)
_NUMBERS = st.floats(width=32) | st.sampled_from([0.0, -0.0, np.nan, np.inf, -np.inf, 1e-45, 3e38, 352.0, 1.0])
_WHOLE = st.integers(-(2**15), 2**15 - 1) | st.sampled_from([0, 1, 2, 3, 7, 8, 20, -1, 32767])


@cache
def seed(name):
    place = "space: left-posterior-superior\nspace directions: (2,0,0) (0,2,0) (0,0,2)\nspace origin: (0,0,0)"
    return {
        "scan.nii": nifti1, "scan.nii.gz": lambda: gz(nifti1()), "scan.nrrd": lambda: nrrd(place),
        "packed.nrrd": lambda: nrrd(place, encoding="gzip"), "scan.mha": mha, "slice.png": picture,
    }[name]()  # fmt: skip


def refused_or_read(path):
    """The volume, or the reason. What a parser of others warns about is no fault; what ours does would be."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.filterwarnings("ignore", module=r"pydicom(\.|$)")
            volume = read_volume(path, slices=True)
    except AnomalyAppError as error:
        return str(error)
    assert_is_a_volume(volume)
    return volume


def check(path):
    found = refused_or_read(path)
    assert not isinstance(found, str) or (found.startswith("expected ") and str(path.parent) not in found)


@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz", "scan.nrrd", "packed.nrrd", "scan.mha", "slice.png"])
@FUZZED
@given(data=st.data())
def test_bytes_changed_anywhere(tmp_path_factory, name, data):
    content = bytearray(seed(name))
    # Mostly in the header, where they matter.
    places = st.integers(0, 400) | st.integers(0, len(content) - 1)
    for place, value in data.draw(st.lists(st.tuples(places, st.integers(0, 255)), min_size=1, max_size=6)):
        content[min(place, len(content) - 1)] = value
    content = bytes(content[: data.draw(st.integers(0, len(content)) | st.just(len(content)))])
    path = tmp_path_factory.getbasetemp() / name
    path.write_bytes(content)
    check(path)


@FUZZED
@given(
    fields=st.fixed_dictionaries(
        {},
        optional={
            "dim": st.lists(_WHOLE, min_size=8, max_size=8), "pixdim": st.lists(_NUMBERS, min_size=8, max_size=8),
            "srow_x": st.lists(_NUMBERS, min_size=4, max_size=4), "srow_y": st.lists(_NUMBERS, min_size=4, max_size=4),
            "quatern_b": _NUMBERS, "quatern_c": _NUMBERS, "quatern_d": _NUMBERS, "qoffset_x": _NUMBERS,
            "vox_offset": _NUMBERS, "scl_slope": _NUMBERS, "scl_inter": _NUMBERS, "qform_code": _WHOLE,
            "sform_code": _WHOLE, "datatype": _WHOLE, "bitpix": _WHOLE, "intent_code": _WHOLE,
            "xyzt_units": st.integers(0, 255),
        },
    ),
    second=st.booleans(),
    swapped=st.booleans(),
)  # fmt: skip
def test_any_header_of_nifti(tmp_path_factory, fields, second, swapped):
    kind = nib.Nifti2Image if second else nib.Nifti1Image
    if second:
        # A whole number there.
        fields = {name: value for name, value in fields.items() if name != "vox_offset"}
    path = tmp_path_factory.getbasetemp() / "header.nii"
    with np.errstate(all="ignore"):
        path.write_bytes(nifti1(kind=kind, endian=">" if swapped else "<", **fields))
    check(path)


_WORDS = st.text(st.characters(codec="latin-1", exclude_characters="\r\n"), max_size=30)
_VECTOR = st.lists(st.floats() | st.integers(), max_size=4).map(lambda v: f"({','.join(map(str, v))})")
_VECTORS = _VECTOR | st.just("none")
_FIELDS = st.sampled_from(
    ["space", "kinds", "spacings", "space origin", "space directions", "centers", "axis mins", "byte skip", "line skip",
     "data file", "sizes", "type", "dimension", "encoding", "endian", "measurement frame", "x:=y"]
)  # fmt: skip


@FUZZED
@given(lines=st.lists(st.tuples(_FIELDS, _WORDS | st.lists(_VECTORS, max_size=4).map(" ".join)), max_size=5))
def test_any_fields_of_nrrd(tmp_path_factory, lines):
    path = tmp_path_factory.getbasetemp() / "fields.nrrd"
    path.write_bytes(nrrd("\n".join(f"{name}: {value}" for name, value in lines)))
    check(path)


@FUZZED
@given(data=st.data())
def test_dicom_files_changed_anywhere(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp() / "series"
    folder.mkdir(exist_ok=True)
    for name, content in list(slices().items())[:4]:
        content = bytearray(content)
        for place, value in data.draw(st.lists(st.tuples(st.integers(128, len(content) - 1), st.integers(0, 255)),
                                               max_size=3)):  # fmt: skip
            content[place] = value
        (folder / name).write_bytes(bytes(content[: data.draw(st.just(len(content)) | st.integers(0, len(content)))]))
    check(folder)


@cache
def slices():
    return series()


@settings(FUZZED, max_examples=25)
@given(
    shape=st.tuples(*[st.integers(16, 21)] * 3),
    spacing=st.tuples(*[st.floats(0.1, 8)] * 3),
    seed=st.integers(0, 2**32 - 1),
    suffix=st.sampled_from([".nii", ".nii.gz", ".nrrd", ".mha"]),
)
def test_what_is_written_is_read_again(tmp_path_factory, shape, spacing, seed, suffix):
    rng = np.random.default_rng(seed)
    turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = turn * np.array(spacing), rng.uniform(-100, 100, 3)
    folder = tmp_path_factory.getbasetemp()
    image = nib.Nifti1Image(rng.integers(-900, 900, shape).astype(np.int16), affine)
    nib.save(image, folder / "first.nii.gz")
    volume = read_volume(folder / "first.nii.gz")
    np.testing.assert_array_equal(volume.data[0], image.get_fdata(dtype=np.float32))
    np.testing.assert_allclose(volume.affine, affine, atol=1e-3)
    write_map(folder / f"second{suffix}", volume.data[0], volume)
    again = read_volume(folder / f"second{suffix}")
    np.testing.assert_array_equal(again.data, volume.data)
    np.testing.assert_allclose(again.affine, volume.affine, atol=1e-4)
    write_labelmap(folder / f"label{suffix}", volume.data[0] > 0, volume)
    np.testing.assert_array_equal(read_volume(folder / f"label{suffix}").data[0], volume.data[0] > 0)
