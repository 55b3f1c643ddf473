"""Which files are scans of a cohort."""

import pydicom
import pytest

from monailabel_app.errors import InvalidSettings, UnreadableVolume
from monailabel_app.pipelines.cohort.scans import list_cohort
from tests.dicom_results import small_series


def make(root, *names, content=b"x"):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def keys(listing):
    return [scan.key for scan in listing.scans]


def test_scans_lie_in_and_below_the_folder(tmp_path):
    make(tmp_path, "b.nii.gz", "a/c.NRRD", "a/d/e.mha", "notes.txt", "a/picture.png", ".hidden.nii", ".git/f.nii")
    assert keys(list_cohort(tmp_path)) == ["a/c.NRRD", "a/d/e.mha", "b.nii.gz"]


def test_a_dicom_series_is_a_folder(tmp_path):
    make(tmp_path, "p1/s1/1", "p1/s1/2", "p1/s2/IM0", content=b"\0" * 128 + b"DICM")
    make(tmp_path, "p1/readme")
    assert keys(list_cohort(tmp_path)) == ["p1/s1", "p1/s2"]


def test_results_of_a_run_are_no_scans(tmp_path):
    make(tmp_path, "a.nii", "runs/x/cohort.jsonl", "runs/x/masks/00/a.nii.gz")
    assert keys(list_cohort(tmp_path)) == ["a.nii"]


def test_names_choose(tmp_path):
    make(tmp_path, "1_T1w.nii", "1_FLAIR.nii", "slice.png")
    assert keys(list_cohort(tmp_path, "*_FLAIR*")) == ["1_FLAIR.nii"]
    assert keys(list_cohort(tmp_path, "*.png")) == ["slice.png"]


def test_the_sequence_is_told_by_the_name(tmp_path):
    make(tmp_path, "1_T1w.nii.gz", "1_FLAIR.nii", "other.nii")
    assert {scan.key: scan.sequence for scan in list_cohort(tmp_path).scans} == {
        "1_FLAIR.nii": "flair",
        "1_T1w.nii.gz": "t1",
        "other.nii": None,
    }


@pytest.mark.parametrize("description", [True, False])
def test_of_a_bids_data_set_the_anatomical_scans_are_taken(tmp_path, description):
    make(
        tmp_path, "sub-1/anat/sub-1_T1w.nii.gz", "sub-1/func/sub-1_bold.nii.gz", "sub-2/ses-1/anat/sub-2_FLAIR.nii.gz",
        "derivatives/x/sub-1/anat/sub-1_desc-brain_T1w.nii.gz",
    )  # fmt: skip
    if description:
        make(tmp_path, "dataset_description.json")
    listing = list_cohort(tmp_path)
    assert listing.bids
    assert keys(listing) == ["sub-1/anat/sub-1_T1w.nii.gz", "sub-2/ses-1/anat/sub-2_FLAIR.nii.gz"]
    assert sum(listing.aside.values()) == 1


def test_a_list_names_scans_relative_to_itself(tmp_path):
    (tmp_path / "list.csv").write_text("id,path,sequence,model\nP1,scans/a.nii,FLAIR,\n,/data/b_T1w.nii,,ddpm_t1\n")
    first, second = list_cohort(tmp_path / "list.csv").scans
    assert (first.key, first.path, first.sequence, first.model) == ("P1", tmp_path / "scans/a.nii", "flair", "")
    assert (second.key, str(second.path), second.sequence) == ("/data/b_T1w.nii", "/data/b_T1w.nii", "t1")
    assert second.model == "ddpm_t1"


def test_a_list_may_have_paths_only(tmp_path):
    (tmp_path / "list.txt").write_text("# old\na, b.nii\nc.nii\nc.nii\n")
    listing = list_cohort(tmp_path / "list.txt")
    assert keys(listing) == ["a, b.nii", "c.nii"]
    assert sum(listing.aside.values()) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,where\n1,a.nii\n", "heading"),
        ("id,path\n1,a.nii\n1,b.nii\n", "one scan each"),
        ("id,path\n1,\n", "path in every"),
    ],
)
def test_a_list_that_cannot_be_understood_is_refused(tmp_path, text, message):
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(InvalidSettings, match=message):
        list_cohort(tmp_path / "list.csv")


def test_nothing_is_said_to_be_nothing(tmp_path):
    with pytest.raises(UnreadableVolume, match="neither"):
        list_cohort(tmp_path / "gone")
    with pytest.raises(UnreadableVolume, match="found none"):
        list_cohort(tmp_path)


def test_a_dicom_series_has_the_sequence_that_its_headers_say(tmp_path):
    """The name of its folder comes first; where nobody says anything it stays unknown."""
    for number, (name, description) in enumerate(
        [("one", "Sag T1 MPRAGE"), ("two", "Ax FLAIR"), ("sub-3_T2w", "T1"), ("four", "series"), ("five", "DWI b1000")]
    ):
        series = small_series(tmp_path / "data" / name, seed=number)
        for file in series.files:
            header = pydicom.dcmread(file)
            header.SeriesDescription = description
            header.save_as(file)
    found = {scan.key: scan.sequence for scan in list_cohort(tmp_path / "data", "*").scans}
    assert found == {"one": "t1", "two": "flair", "sub-3_T2w": "t2", "four": None, "five": "dwi"}
    (tmp_path / "list.csv").write_text("path,sequence\ndata/one,\ndata/two,t2\ndata/four,\n")
    assert [scan.sequence for scan in list_cohort(tmp_path / "list.csv", "*").scans] == ["t1", "t2", None]
