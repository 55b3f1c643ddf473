"""Which sequence a DICOM header tells, and that nothing is guessed."""

import pydicom
import pytest

from monailabel_app.io.dicom_sequence import sequence_info
from tests.dicom_results import small_series


@pytest.fixture(scope="module")
def slice_(tmp_path_factory):
    return small_series(tmp_path_factory.mktemp("sequence") / "series").files[0]


@pytest.mark.parametrize(
    ("kinds", "echo", "repeat", "invert", "told"),
    [
        (["GR", "IR"], 2.3, 1900, 900, "t1"),  # MPRAGE
        ("SE", 12, 500, None, "t1"),
        ("SE", 100, 4500, None, "t2"),
        (["SE", "IR"], 120, 9000, 2500, "flair"),
        (["SE", "IR"], 12, 2000, 150, None),  # STIR
        ("SE", 20, 3000, None, None),  # proton density
        ("GR", 20, 700, None, None),  # T2*
        ("EP", 90, 5000, None, None),  # diffusion
        ("SE", None, None, None, None),
    ],
)
def test_times_tell_a_sequence_only_where_they_leave_no_doubt(slice_, tmp_path, kinds, echo, repeat, invert, told):
    header = pydicom.dcmread(slice_)
    header.SeriesDescription, header.ScanningSequence = "", kinds
    header.EchoTime, header.RepetitionTime, header.InversionTime = echo, repeat, invert
    header.save_as(tmp_path / "a.dcm")
    assert sequence_info(tmp_path / "a.dcm").get("timed") == told


def test_only_the_description_is_read_and_damage_says_nothing(slice_, tmp_path):
    header = pydicom.dcmread(slice_)
    header.SeriesDescription = "Ax T2 FLAIR"
    header.save_as(tmp_path / "a.dcm")
    assert sequence_info(tmp_path / "a.dcm") == {"SeriesDescription": "Ax T2 FLAIR"}
    content = (tmp_path / "a.dcm").read_bytes()
    (tmp_path / "a.dcm").write_bytes(content[:140] + b"\xff" * 400)
    (tmp_path / "b.txt").write_text("no DICOM")
    assert [sequence_info(tmp_path / name) for name in ("a.dcm", "b.txt", "missing")] == [{}, {}, {}]
