"""Each layout of a data set on made folders: which scans, labels and healthy ones it finds."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from monailabel_app.errors import AnomalyAppError, EvaluationFailed, InvalidSettings

from .dataset_factory import FOLDER, load, names, say, scan, two_patients


@pytest.fixture
def folder(tmp_path):
    return two_patients(tmp_path)


# --- layout folder


def test_fields_of_the_pattern_name_scan_patient_and_label(folder):
    made = load(say(folder, FOLDER + "title: Mine\nlicence: ours\n"))
    assert [(s.id, s.patient, s.healthy, s.brain) for s in made.scans] == [
        ("p1", "p1", False, "extract"),
        ("p2", "p2", False, "extract"),
    ]
    assert made.scans[0].labels == (folder / "p1" / "mask.nii.gz",)
    assert (made.name, made.title, made.licence, made.split, made.splits) == ("set", "Mine", "ours", None, {})


def test_fields_can_be_split_and_attribute_and_be_repeated(tmp_path):
    for site in ("a", "b"):
        scan(tmp_path / site / "s1" / f"s1_{site}.nii.gz")
        scan(tmp_path / site / "s2" / f"other_{site}.nii.gz")
    made = load(
        say(
            tmp_path,
            "modality: t1\nlayout: folder\nimage: '{site}/{patient}/{patient}_{site}.nii.gz'\nhealthy: true\n"
            "id: '{site}-{patient}'\nsplit: site\nattributes: {centre: site}\n",
        ),
        split="b",
    )
    assert [(s.id, s.patient, dict(s.attributes)) for s in made.scans] == [("b-s1", "s1", {"centre": "b"})]
    assert made.splits == {"a": 1, "b": 1}


def test_an_id_can_be_used_as_the_name_of_a_file(folder):
    assert list(names(load(say(folder, FOLDER + "id: '{path}'\n")))) == ["p1_flair.nii.gz", "p2_flair.nii.gz"]


def test_several_labels_are_joined_and_brain_masks_found(folder):
    scan(folder / "p1" / "extra_1.nii.gz")
    scan(folder / "p1" / "extra_2.nii.gz")
    text = FOLDER.replace("label: '{patient}/mask.nii.gz'", "label: ['{patient}/mask.nii.gz', '{patient}/ex*.nii.gz']")
    made = load(say(folder, text + "brain: '{patient}/mask.nii.gz'\nbrain_holds: regions\n"))
    assert names(made)["p1"] == ["mask.nii.gz", "extra_1.nii.gz", "extra_2.nii.gz"]
    assert names(made)["p2"] == ["mask.nii.gz"]
    assert made.scans[0].brain == folder / "p1" / "mask.nii.gz"
    assert made.scans[0].regions


def test_a_scan_without_label_is_an_error_unless_it_is_excused(folder):
    scan(folder / "p3" / "flair.nii.gz")
    with pytest.raises(EvaluationFailed, match=r"set\.yaml: expected 6 files, 1 are not there: p3/flair.*label: .*p3"):
        load(say(folder, FOLDER))
    left_out = load(say(folder, FOLDER + "unlabelled: skip\n"))
    assert list(names(left_out)) == ["p1", "p2"]
    assert left_out.notes == ("1 scans were left out: no label, and nobody said that they are healthy",)
    assert names(load(say(folder, FOLDER + "unlabelled: healthy\n")))["p3"] is None


def test_images_of_healthy_people_have_a_pattern_of_their_own(folder):
    scan(folder / "controls" / "c1.nii.gz")
    made = load(say(folder, FOLDER + "healthy_images: 'controls/{id}.nii.gz'\n"))
    assert names(made) == {"p1": ["mask.nii.gz"], "p2": ["mask.nii.gz"], "c1": None}
    assert [s.patient for s in made.scans] == ["p1", "p2", "c1"]
    assert (len(made.cases), len(made.healthy)) == (2, 1)


def test_all_fields_make_the_id_and_a_mask_can_lie_beside_its_image(tmp_path):
    for site in ("a", "b"):
        scan(tmp_path / site / "1" / "flair.nii.gz")
        scan(tmp_path / site / "1" / "flair_brain.nii.gz")
    text = "modality: flair\nlayout: folder\nimage: '{site}/{patient}/flair.nii.gz'\nhealthy: true\n"
    made = load(say(tmp_path, text + "patient: '{site}-{patient}'\nbrain: '{folder}/{name}_brain.nii.gz'\n"))
    assert [(s.id, s.patient) for s in made.scans] == [("a_1", "a-1"), ("b_1", "b-1")]
    assert made.scans[0].brain == tmp_path / "a" / "1" / "flair_brain.nii.gz"


# --- layout csv


@pytest.fixture
def study(tmp_path):
    for name in ("a", "b", "c"):
        scan(tmp_path / "img" / f"{name}.nii.gz")
    scan(tmp_path / "img" / "a_wmh.nii.gz")
    scan(tmp_path / "img" / "a_infarct.nii.gz")
    scan(tmp_path / "img" / "b_wmh.nii.gz")
    (tmp_path / "scans.csv").write_text(
        "scan,file,wmh,infarct,group,age,sex,part\n"
        "a,img/a.nii.gz,img/a_wmh.nii.gz,img/a_infarct.nii.gz,patient,61,F,tune\n"
        "b,img/b.nii.gz,img/b_wmh.nii.gz,,patient,n/a,M,test\n"
        "c,img/c.nii.gz,,,Healthy Control,0,,test\n"
    )
    return tmp_path


CSV = (
    "modality: flair\nlayout: csv\ntable: scans.csv\nimage: '{file}'\nlabel: ['{wmh}', '{infarct}']\n"
    "healthy: group\nattributes: [age, sex]\n"
)


def test_columns_give_files_attributes_and_healthy_scans(study):
    made = load(say(study, CSV))
    assert names(made) == {"a": ["a_wmh.nii.gz", "a_infarct.nii.gz"], "b": ["b_wmh.nii.gz"], "c": None}
    assert [dict(s.attributes) for s in made.scans] == [{"age": 61.0, "sex": "F"}, {"sex": "M"}, {"age": 0.0}]


def test_splits_can_be_grouped_have_a_default_and_tune_the_threshold(study):
    path = say(study, CSV + "split: {column: part, groups: {all: [tune, test]}, default: test}\ntune_split: tune\n")
    made = load(path)
    assert (made.split, list(names(made)), made.tune_split) == ("test", ["b", "c"], "tune")
    assert made.splits == {"test": 2, "tune": 1, "all": 3}
    assert list(names(load(path, split="all"))) == ["a", "b", "c"]
    with pytest.raises(InvalidSettings, match=r"set\.yaml: split: expected one of test, tune, all, got 'train'"):
        load(path, split="train")
    with pytest.raises(InvalidSettings, match=r"tune_split: expected a split out of .*, got 'valid'"):
        load(say(study, CSV + "split: part\ntune_split: valid\n"))


def test_a_patient_who_also_tuned_the_threshold_is_noted(study):
    path = say(study, CSV + "patient: '{age}'\nsplit: {column: part, default: test}\ntune_split: tune\n")
    assert load(path).notes == ()
    text = (study / "scans.csv").read_text().replace("patient,n/a", "patient,61")
    (study / "scans.csv").write_text(text)
    told = "1 patients are also in the split tune: halves of the patients tune each other instead"
    assert load(path).notes == (told,)


def test_paths_can_start_from_the_table(study):
    (study / "tables").mkdir()
    text = (study / "scans.csv").read_text().replace("img/", "../img/").replace(",", ";")
    (study / "tables" / "scans.csv").write_text(text)
    with pytest.raises(InvalidSettings, match="leaves it"):
        load(say(study, CSV.replace("table: scans.csv", "table: tables/scans.csv\npaths: table")))
    text = (study / "scans.csv").read_text().replace("img/", "")
    (study / "img" / "scans.csv").write_text(text)
    made = load(say(study, CSV.replace("table: scans.csv", "table: img/scans.csv\npaths: table")))
    assert len(made.scans) == 3


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("d,../../etc/passwd,,,HC,1,F,test", r"scans\.csv line 5: image: expected a path inside the root"),
        ("d,/etc/hostname,,,HC,1,F,test", r"scans\.csv line 5: image: expected a path inside the root"),
        ("d,img/none.nii.gz,,,HC,1,F,test", r"1 are not there: scans\.csv line 5, image: .*none\.nii\.gz"),
        ("d,img/b_wmh.nii.gz,,,sick,1,F,test", r"1 of 4 have neither, the first: scans\.csv line 5"),
        ("a,img/b_wmh.nii.gz,,,HC,1,F,test", r"id: expected a different id for each scan, got 'a' twice"),
        ("d,img/a.nii.gz,,,HC,1,F,test", r"image: expected another image for each scan"),
        (",img/a_wmh.nii.gz,,,HC,1,F,test", r"scans\.csv line 5: id: expected an id of 1 to 160 characters, got 0"),
        ("d,img/a.nii.gz,HC", r"scans\.csv line 5: expected 8 cells as in the first line, got 3"),
    ],
)
def test_a_faulty_row_is_named(study, line, message):
    with (study / "scans.csv").open("a") as handle:
        handle.write(line + "\n")
    with pytest.raises(AnomalyAppError, match=message):
        load(say(study, CSV))


def test_missing_files_can_be_excused(study):
    (study / "img" / "b.nii.gz").unlink()
    made = load(say(study, CSV + "missing: skip\n"))
    assert list(names(made)) == ["a", "c"]
    assert made.notes == ("1 scans were left out: a file of theirs is not there",)


# --- layout bids


@pytest.fixture
def bids(tmp_path):
    root = tmp_path / "bids"
    for name in ("sub-01/anat/sub-01_T1w", "sub-01/anat/sub-01_FLAIR", "sub-02/ses-1/anat/sub-02_ses-1_run-1_FLAIR"):
        scan(root / f"{name}.nii.gz")
    scan(root / "sub-02/ses-1/anat/sub-02_ses-1_run-2_FLAIR.nii.gz")
    scan(root / "sub-03/anat/sub-03_FLAIR.nii")
    lesions = root / "derivatives" / "manual"
    scan(lesions / "sub-01/anat/sub-01_label-lesion_mask.nii.gz")
    scan(lesions / "sub-01/anat/sub-01_space-MNI_label-lesion_mask.nii.gz")
    scan(lesions / "sub-01/anat/sub-01_desc-brain_mask.nii.gz")
    scan(lesions / "sub-02/ses-1/anat/sub-02_ses-1_run-2_space-FLAIR_label-L_desc-T1lesion_mask.nii.gz")
    scan(lesions / "sub-02/ses-2/anat/sub-02_ses-2_label-lesion_mask.nii.gz")
    (root / "dataset_description.json").write_text('{"Name": "Clinic", "BIDSVersion": "1.8.0", "License": "CC0"}')
    (root / "participants.tsv").write_text(
        "participant_id\tage\tsex\tgroup\nsub-01\t50\tF\tstroke\nsub-02\t60\tM\tstroke\nsub-03\tn/a\tM\tcontrol\n"
    )
    return root


def test_a_bids_folder_is_recognised_and_masks_follow_their_entities(bids):
    made = load(bids, modality="flair")
    assert names(made) == {
        "sub-01_FLAIR": ["sub-01_label-lesion_mask.nii.gz"],
        "sub-02_ses-1_run-2_FLAIR": ["sub-02_ses-1_run-2_space-FLAIR_label-L_desc-T1lesion_mask.nii.gz"],
        "sub-03_FLAIR": None,
    }
    assert [(s.patient, dict(s.attributes)) for s in made.scans] == [
        ("sub-01", {"age": 50.0, "sex": "F"}),
        ("sub-02", {"age": 60.0, "sex": "M"}),
        ("sub-03", {"sex": "M"}),
    ]
    assert (made.title, made.licence, made.name) == ("Clinic", "CC0", "bids")
    assert made.notes == ("1 scans were left out: no label, and nobody said that they are healthy",)


def test_a_bids_folder_with_several_sequences_asks_for_one(bids):
    with pytest.raises(InvalidSettings, match=r"bids: expected images of one .* got t1, flair; give the modality"):
        load(bids)
    (bids / "sub-01/anat/sub-01_T1w.nii.gz").unlink()
    assert load(bids).modality == "flair"


def test_a_bids_description_selects_entities_masks_and_brains(bids):
    text = (
        "modality: flair\nlayout: bids\nroot: bids\nsuffix: FLAIR\nentities: {run: [2]}\n"
        "masks: {folder: derivatives/manual, entities: {desc: T1lesion}}\n"
    )
    assert list(names(load(say(bids.parent, text)))) == ["sub-02_ses-1_run-2_FLAIR"]
    with pytest.raises(EvaluationFailed, match=r"masks: expected masks .* found none"):
        load(say(bids.parent, text.replace("T1lesion", "other")))
    scan(bids / "derivatives/bet/sub-02/sub-02_ses-1_run-2_desc-brain_mask.nii.gz")
    made = load(say(bids.parent, text + "brain_masks: {folder: derivatives/bet}\n"))
    assert made.scans[0].brain.name == "sub-02_ses-1_run-2_desc-brain_mask.nii.gz"


def test_masks_of_any_name_can_be_asked_for(bids):
    scan(bids / "derivatives/sub-03/sub-03_msk.nii.gz")
    text = "modality: flair\nlayout: bids\nroot: bids\nmasks: {suffix: msk, entities: {}}\nunlabelled: skip\n"
    assert names(load(say(bids.parent, text))) == {"sub-03_FLAIR": ["sub-03_msk.nii.gz"]}


def test_contrast_enhanced_t1_is_another_sequence(bids):
    scan(bids / "sub-03/anat/sub-03_ce-GD_T1w.nii.gz")
    scan(bids / "derivatives/manual/sub-03_label-lesion_mask.nii.gz")
    assert list(names(load(bids, modality="t1"))) == ["sub-01_T1w"]
    assert list(names(load(bids, modality="t1c"))) == ["sub-03_ce-GD_T1w"]


# --- layout datastore


def studies(root: Path, **objects) -> Path:
    """id -> (information, final labels by tag: voxels, or None where the server never counted them)."""
    table = {"name": "new", "description": "", "images_dir": ".", "labels_dir": "labels", "objects": {}}
    for name, (info, labels) in objects.items():
        scan(root / f"{name}.nii.gz")
        entry = {"image": {"ext": ".nii.gz", "info": info}, "labels": {}}
        for tag, voxels in labels.items():
            status = scan(root / "labels" / tag / f"{name}.nii.gz").stat()
            counted = {"voxels": voxels, "empty": voxels == 0, "counted": [status.st_mtime_ns, status.st_size]}
            entry["labels"][tag] = {"ext": ".nii.gz", "info": counted if voxels is not None else {}}
        table["objects"][name] = entry
    (root / "datastore_v2.json").write_text(json.dumps(table))
    return root


def test_final_labels_are_the_truth_and_empty_ones_mean_healthy(tmp_path):
    made = load(
        studies(
            tmp_path,
            lesion=({"age": 40, "PatientID": "X"}, {"final": 12, "original": 3}),
            uncounted=({}, {"final_anna": None}),
            empty=({"healthy": True, "healthy_reason": "reviewed: nothing abnormal"}, {"final": 0}),
            marked=({"healthy": True}, {}),
            proposal=({}, {"anomaly_cold_diffusion": 9}),
            marked_with_lesion=({"healthy": "yes"}, {"final": 12}),
            not_healthy=({"healthy": False}, {}),
            readers=({}, {"final": 0, "final-ben": 5}),
        ),
        modality="flair",
    )
    assert names(made) == {
        "empty": None,
        "lesion": ["lesion.nii.gz"],
        "marked": None,
        "readers": ["readers.nii.gz"],
        "uncounted": ["uncounted.nii.gz"],
    }
    by_id = {s.id: s for s in made.scans}
    assert by_id["lesion"].labels == (tmp_path / "labels" / "final" / "lesion.nii.gz",)
    assert by_id["readers"].labels == (tmp_path / "labels" / "final-ben" / "readers.nii.gz",)
    assert (by_id["lesion"].patient, dict(by_id["lesion"].attributes)) == ("X", {"age": 40.0})
    assert made.notes == (
        "2 scans were left out: no final label, and nobody said that they are healthy",
        "1 scans were left out: they are called healthy and carry a final label that is not empty, or the other way "
        "round",
        "1 scans have several final labels of which some are empty; the others are joined",
    )


def test_a_label_changed_after_it_was_counted_is_not_taken_as_empty(tmp_path):
    root = studies(tmp_path, a=({}, {"final": 0}))
    nib.save(nib.Nifti1Image(np.eye(9, dtype=np.uint8)[..., None], np.eye(4)), root / "labels/final/a.nii.gz")
    assert names(load(root, modality="t1")) == {"a": ["a.nii.gz"]}


def test_one_reader_can_be_chosen(tmp_path):
    studies(tmp_path / "s", a=({}, {"final": 3, "final_anna": 4}), b=({}, {"final": 3}))
    made = load(say(tmp_path, "modality: t1\nlayout: datastore\nroot: s\ntags: final_anna\n"))
    assert [label.parent.name for s in made.scans for label in s.labels] == ["final_anna"]


@pytest.mark.parametrize("table", ["{", "[]", '{"objects": 3}', "[" * 100_000, '{"objects": {"a": 1}}'])
def test_a_damaged_table_of_studies_is_an_error(tmp_path, table):
    (tmp_path / "datastore_v2.json").write_text(table)
    with pytest.raises(EvaluationFailed):
        load(tmp_path, modality="t1")


@pytest.mark.parametrize("name", ["../../a", "/etc/a", "\\ud800", "a" * 400])
def test_an_id_that_is_no_name_of_a_file_in_the_studies_folder_is_refused(tmp_path, name):
    root = studies(tmp_path / "s", a=({"healthy": True}, {}))
    text = (root / "datastore_v2.json").read_text().replace('"a":', f'"{name}":')
    (root / "datastore_v2.json").write_text(text)
    with pytest.raises(InvalidSettings, match=r"datastore_v2.json: object .*: expected a path"):
        load(root, modality="t1")


# --- folders without a description


def test_plain_folders_are_recognised_by_common_names(tmp_path):
    one, two, three = tmp_path / "one", tmp_path / "two", tmp_path / "three"
    scan(one / "images" / "a.nii.gz")
    scan(one / "masks" / "a.nii.gz")
    scan(one / "healthy" / "h.nii.gz")
    scan(two / "a.nii.gz")
    scan(two / "a_lesion.nii.gz")
    scan(two / "a_brain_mask.nii.gz")
    scan(two / "b.nii.gz")
    scan(three / "p" / "FLAIR.nii.gz")
    scan(three / "p" / "seg.nii.gz")
    assert names(load(one, modality="flair")) == {"a": ["a.nii.gz"], "h": None}
    made = load(two, modality="t1")
    assert names(made) == {"a": ["a_lesion.nii.gz"]}
    assert made.notes == ("1 scans were left out: no label, and nobody said that they are healthy",)
    assert names(load(three, modality="flair")) == {"p": ["seg.nii.gz"]}


def test_a_folder_of_healthy_scans_alone_is_enough(tmp_path):
    scan(tmp_path / "healthy" / "h.nii.gz")
    assert names(load(tmp_path, modality="t1")) == {"h": None}


def test_other_folders_and_names_say_what_is_expected(tmp_path):
    with pytest.raises(EvaluationFailed, match=r"expected images and masks as one of: images/ID\.nii\.gz"):
        load(tmp_path, modality="t1")
    with pytest.raises(InvalidSettings, match="expected the sequence of the folder's scans"):
        load(tmp_path)
    with pytest.raises(InvalidSettings, match=r"expected a data set out of .*did you mean ixi_t1\?"):
        load(Path("ixi_t2"))
