"""Lists of healthy scans in the forms that sites have them in, and what is said about a wrong one."""

import pytest

from monailabel_app.errors import InvalidSettings
from monailabel_app.io.healthy_list import bids_person, read_healthy_list, without_extension


def read(tmp_path, text, encoding="utf-8"):
    path = tmp_path / "list.csv"
    path.write_bytes(text.encode(encoding))
    return read_healthy_list(path)


def verdicts(table):
    return {row.name: row.healthy for row in table.rows}


def test_without_a_status_column_every_row_is_healthy(tmp_path):
    table = read(tmp_path, "image\na.nii.gz\nscans/b.nrrd\nC:\\scans\\c.nii\n")
    assert verdicts(table) == {"a": True, "b": True, "c": True}


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_the_delimiter_and_the_encoding_are_found_out(tmp_path, delimiter, encoding):
    text = "id,healthy,note\r\nMüller,yes,x\r\nb,0,y\r\n\r\n".replace(",", delimiter)
    assert verdicts(read(tmp_path, text, encoding)) == {"Müller": True, "b": False}


def test_a_quoted_cell_may_hold_the_delimiter(tmp_path):
    table = read(tmp_path, 'id,note,healthy\na,"knee, left",no\n')
    assert verdicts(table) == {"a": False}


@pytest.mark.parametrize("word", ["healthy", "Control", "HC", "normal", "1", "TRUE", "yes", "healthy_control"])
def test_words_for_healthy(tmp_path, word):
    assert verdicts(read(tmp_path, f"id,diagnosis\na,{word}\n")) == {"a": True}


@pytest.mark.parametrize("word", ["patient", "0", "False", "no", "abnormal"])
def test_words_for_not_healthy(tmp_path, word):
    assert verdicts(read(tmp_path, f"id,group\na,{word}\n")) == {"a": False}


@pytest.mark.parametrize("word", ["", "n/a", "unknown"])
def test_a_status_that_is_not_stated_is_not_guessed(tmp_path, word):
    assert verdicts(read(tmp_path, f"id,group,age\na,{word},3\n")) == {"a": None}


def test_the_healthy_column_is_asked_before_the_diagnosis(tmp_path):
    assert verdicts(read(tmp_path, "id,diagnosis,healthy\na,MS,no\nb,-,yes\n")) == {"a": False, "b": True}


def test_an_unknown_word_is_an_error_with_its_line_and_column_and_without_the_id(tmp_path):
    with pytest.raises(InvalidSettings, match=r"line 3, column 'Diagnosis'.*'ms'") as caught:
        read(tmp_path, "Scan,Diagnosis\nDoe_Jane,control\nRoe_Richard,MS\n")
    assert "Roe" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty file"),
        ("image\n", "at least one row"),
        ("Jane Doe\nJohn Doe\n", "line 1: expected a column named image"),
        ("id,healthy\n,yes\n", "line 2, column 'id'.*empty"),
        ("id,healthy\na,yes\nb,yes,no\n", "line 3: expected 2 columns.*got 3"),
        ("id,healthy\na,yes\na.nii,no\n", "line 3 .* line 2"),
        ("id\n\0\n", "not text"),
    ],
)
def test_what_is_wrong_is_said(tmp_path, text, words):
    with pytest.raises(InvalidSettings, match=words) as caught:
        read(tmp_path, text)
    assert "Doe" not in str(caught.value)


def test_a_missing_file_is_said(tmp_path):
    with pytest.raises(InvalidSettings, match="there is none") as caught:
        read_healthy_list(tmp_path / "Doe.csv")
    assert "Doe" not in str(caught.value)


def test_bids_participants_speak_of_all_their_scans(tmp_path):
    table = read(tmp_path, "participant_id\tgroup\nsub-01\tHC\nsub-1\tpatient\n03\tHC\nsub-09\tHC\n")
    images = ["sub-01_ses-1_T1w", "sub-01_ses-2_T1w", "sub-010_T1w", "sub-1_T1w", "sub-03_T1w", "other"]
    matches = table.match(images)
    assert {image: row.healthy for image, row in matches.rows.items()} == {
        "sub-01_ses-1_T1w": True,
        "sub-01_ses-2_T1w": True,
        "sub-1_T1w": False,
        "sub-03_T1w": True,
    }
    assert matches.unmatched_rows == 1
    assert matches.images_without_row == 2


def test_bids_scans_name_the_file_and_a_column_names_the_patient(tmp_path):
    table = read(tmp_path, "filename\tparticipant_id\nanat/sub-01_T1w.nii.gz\tP7\n")
    matches = table.match(["sub-01_T1w", "sub-01_FLAIR"])
    assert {image: row.patient for image, row in matches.rows.items()} == {"sub-01_T1w": "P7"}


def test_a_row_about_a_scan_wins_over_one_about_its_person(tmp_path):
    table = read(tmp_path, "id,healthy\nsub-01,yes\nsub-01_FLAIR,no\n")
    matches = table.match(["sub-01_T1w", "sub-01_FLAIR"])
    assert {image: row.healthy for image, row in matches.rows.items()} == {"sub-01_T1w": True, "sub-01_FLAIR": False}


def test_an_archives_patient_and_an_id_with_an_extension_match(tmp_path):
    table = read(tmp_path, "patient_id,healthy\nP1,1\nT1,1\n")
    matches = table.match(["1.2.3", "1.2.4", "T1.nii.gz"], people={"1.2.3": "P1", "1.2.4": "P2"})
    assert set(matches.rows) == {"1.2.3", "T1.nii.gz"}


def test_an_id_whose_beginning_says_nothing_is_not_matched_by_person(tmp_path):
    table = read(tmp_path, "participant_id\nsub-01\n")
    assert table.match(["sub-01_replaced_ab"], skip=frozenset({"sub-01_replaced_ab"})).unmatched_rows == 1


@pytest.mark.parametrize(
    ("name", "plain"), [("a.nii.gz", "a"), ("x/a.NRRD", "a"), ("a.b", "a.b"), (".nii", ".nii"), ("1.2.3", "1.2.3")]
)
def test_only_the_extensions_of_images_are_taken_off(name, plain):
    assert without_extension(name) == plain


def test_bids_person():
    assert bids_person("sub-01_ses-1_T1w") == "sub-01"
    assert bids_person("sub-01-x") is None
    assert bids_person("T1_sub-01") is None
