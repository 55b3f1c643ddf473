"""Data sets by description: the shipped ones on the real samples, implanted lesions, and what is refused."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from monailabel_app.errors import AnomalyAppError, InvalidSettings
from monailabel_app.io.images import read_volume
from monailabel_app.pipelines.evaluation.datasets import describe, described, load_dataset, overview
from monailabel_app.pipelines.evaluation.description_file import read_description
from monailabel_app.pipelines.ixi import list_ixi
from monailabel_app.pipelines.soop import list_soop

from .dataset_factory import FOLDER, load, names, say, scan, two_patients

ROOT = Path(__file__).resolve().parents[4]
SAMPLES = ROOT / "tests" / "data"
SHARED = ROOT.parent / "shared" / "data"
needs_data = pytest.mark.skipif(not (SHARED / "ixi_t1").is_dir(), reason="the development data are not here")


@pytest.fixture
def folder(tmp_path):
    return two_patients(tmp_path)


# --- layout implanted


def test_cases_can_be_implanted_into_a_users_own_healthy_scans(tmp_path):
    scan(tmp_path / "mine" / "healthy" / "h1.nii.gz")
    scan(tmp_path / "mine" / "healthy" / "h2.nii.gz")
    scan(tmp_path / "shapes" / "s.nii.gz")
    text = "modality: t1\nlayout: implanted\nof: mine\nshapes: shapes\nper_scan: 3\ncontrast: [0.2, 0.3]\nseed: 1\n"
    made = load(say(tmp_path, text))
    assert (made.implants.per_scan, made.implants.contrast, made.implants.seed) == (3, (0.2, 0.3), 1)
    assert made.implants.shapes == tmp_path / "shapes"
    assert (describe(made)["cases"], describe(made)["healthy"]) == (6, 2)
    for wrong, message in (
        ("contrast: [0.3, 0.2]", "contrast: expected two numbers"),
        ("of: set.yaml", "of: expected a set of real healthy scans"),
        ("of: ../mine", "leaves it"),
        ("of: yours", "of: expected a set out of .*, got 'yours'"),
        ("shapes: mine", "shapes: expected lesion shapes"),
    ):
        key = wrong.split(":")[0]
        lines = [wrong if line.startswith(f"{key}:") else line for line in text.splitlines()]
        with pytest.raises(AnomalyAppError, match=message):
            load(say(tmp_path, "\n".join(lines)))


# --- single slices, and the shipped descriptions


def test_the_shipped_slices_are_those_that_the_models_were_made_with(tmp_path):
    (tmp_path / "soop_flair").symlink_to(SAMPLES / "soop")
    made = load_dataset("soop_flair", data_root=tmp_path)
    free, lesion = list_soop(SAMPLES / "soop", "val_free"), list_soop(SAMPLES / "soop", "val_lesion")
    assert [s.id for s in made.healthy] == [item.id for item in free]
    assert [(s.id, s.image.resolve(), s.labels[0].resolve()) for s in made.cases] == [
        (item.id, item.image, item.lesion) for item in lesion
    ]
    assert made.slices
    assert (made.level_mm, made.picture.pixel_mm) == (20.0, 1.0)
    read = read_volume(made.cases[0].image, slices=True, pixel_mm=made.picture.pixel_mm)
    # Left of the picture is the patient's left, other than a picture is taken to lie.
    assert made.picture.left_is_left
    assert read.affine[0, 0] < 0 < lesion[0].volume().affine[0, 0]
    assert np.array_equal(np.sort(read.data, axis=None), np.sort(lesion[0].volume().data, axis=None))


def test_shipped_descriptions_are_complete_and_lie_in_the_package():
    assert {"ixi_t1", "ixi_implanted", "mslub_t1", "mslub_t2", "mslub_flair", "soop_flair", "brats2015_flair", "lgg_t1",
            "lgg_flair"} <= set(described())  # fmt: skip
    for name, path in described().items():
        keys = read_description(path)
        assert path.parent == ROOT / "monailabel_app" / "datasets"
        assert keys.text("title")
        assert keys.text("licence")
        assert keys.text("citation")
        assert name.endswith(keys.text("modality")) or name == "ixi_implanted"


def test_the_overview_says_which_data_are_missing(tmp_path):
    (tmp_path / "soop_flair").symlink_to(SAMPLES / "soop")
    found = {entry["name"]: entry for entry in overview(tmp_path)}
    assert found["soop_flair"]["available"]
    assert (found["soop_flair"]["cases"], found["soop_flair"]["healthy"]) == (3, 3)
    assert not found["ixi_t1"]["available"]
    assert "--data-root" in found["ixi_t1"]["reason"]
    assert "CC BY-SA" in found["ixi_t1"]["licence"]
    json.dumps(list(found.values()))
    assert not any(entry["available"] for entry in overview(None))


@needs_data
def test_every_shipped_description_fits_the_development_data():
    found = {entry["name"]: entry for entry in overview(SHARED)}
    counts = {name: (entry["cases"], entry["healthy"]) for name, entry in found.items()}
    assert counts.items() >= {
        "ixi_t1": (0, 20), "ixi_implanted": (40, 20), "mslub_t1": (1, 0), "mslub_t2": (1, 0), "mslub_flair": (1, 0),
        "soop_flair": (150, 50), "brats2015_flair": (2, 0), "lgg_t1": (20, 0), "lgg_flair": (20, 0),
    }.items()  # fmt: skip
    val = list_ixi(SHARED / "ixi_t1", "val")
    made = load_dataset("ixi_t1", data_root=SHARED)
    assert [(s.id, s.image, s.brain) for s in made.scans] == [(item.id, item.image, item.regions) for item in val]
    assert [s.id for s in load_dataset("ixi_implanted", data_root=SHARED).scans] == [item.id for item in val]
    assert all(s.regions and {"age", "sex"} <= set(s.attributes) for s in made.scans)
    for name in described():
        first = load_dataset(name, data_root=SHARED).scans[-1]
        if first.labels and first.image.suffix == ".gz":
            assert nib.load(first.image).shape == nib.load(first.labels[0]).shape


def test_the_example_beside_the_samples_can_be_read():
    made = load(SAMPLES / "mslub_flair.yaml")
    assert [(s.id, s.image.name, s.labels[0].name) for s in made.scans] == [
        ("mslub", "mslub_flair_2mm.nii.gz", "mslub_lesions_2mm.nii.gz")
    ]
    assert read_volume(made.scans[0].image).shape == read_volume(made.scans[0].labels[0]).shape


# --- what is refused


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected key: value pairs, got nothing"),
        ("- 1\n", "expected key: value pairs, got a list"),
        ("a: 1\nb: [", r"line 2: expected YAML, got an error"),
        ("a: &x [1, 2]\nb: *x\n", r"line 2: expected plain values, got an alias"),
        ("a: 1\nb: 2\na: 3\n", r"line 3: expected each key once, got 'a' twice"),
        ("? [a, b]\n: 1\n", "expected a text as key"),
        ("a: !!python/object/apply:os.system ['true']\n", "could not determine a constructor"),
        ("a: " + "[" * 20 + "]" * 20, "expected at most 8 levels"),
        ("a: [" + "1, " * 30_000 + "]", "expected at most 20000 values"),
        ("# " + "x" * 300_000, "expected a description of at most 256 KiB"),
        ("layout: folders\n", "layout: expected one of folder, csv, bids, datastore, implanted, got 'folders'"),
        (FOLDER + "lable: x\n", r"set\.yaml: lable: expected one of the keys .*label.*, got 'lable'"),
        (FOLDER.replace("flair\n", "FLAIR scans\n", 1), "modality: expected a short word"),
        (FOLDER.replace("modality: flair\n", ""), "modality: expected a text"),
        (FOLDER + "root: ../elsewhere\n", "root: expected a path inside the root"),
        (FOLDER + "root: none\n", "root: expected a folder .*none, found none"),
        (FOLDER + "brain_holds: regions\n", "brain_holds: expected a file of region labels"),
        (FOLDER + "brain: '{patient}/none.nii.gz'\n", r"2 are not there: p1/flair.nii.gz, brain: "),
        (FOLDER + "unlabelled: maybe\n", "unlabelled: expected one of error, skip, healthy, got 'maybe'"),
        (FOLDER + "split: site\n", r"split.column: expected one of .*patient.*, got 'site'"),
        (FOLDER + "attributes: [age]\n", r"attributes: expected columns out of .*, got 'age'"),
        (FOLDER + "healthy: {column: patient, values: [yes]}\n", "healthy.values: expected texts or numbers"),
        (FOLDER + "healthy: {column: patient, valus: [x]}\n", "healthy.valus: expected one of the keys"),
        (FOLDER + "slices: {pixel_mm: 1}\n", "slices.level_mm: expected the height"),
        (FOLDER + "slices: {level_mm: .nan}\n", "slices.level_mm: expected a number"),
        (FOLDER.replace("{patient}/mask", "{person}/mask"), r"label: expected fields out of .*, got \{person\}"),
        (FOLDER.replace("{patient}/mask", "{patient/mask"), r"label: expected fields as \{name\}"),
        (FOLDER.replace("{patient}/flair", "../{patient}/flair"), "image: expected a pattern inside the root"),
        (FOLDER.replace("{patient}/flair", "*a" * 13 + "/flair"), "image: expected at most 12 fields"),
        (FOLDER.replace("{patient}/flair", "a" * 300), "image: expected a text or a list of texts, as names"),
        ("modality: flair\nlayout: bids\nsuffix: '**'\n", r"suffix: expected the BIDS suffix .*, got '\*\*'"),
        (FOLDER.replace("{patient}/flair", "**/flair"), "image: expected a pattern inside the root"),
        (FOLDER.replace("{patient}/flair", "{patient}/t1"), "expected scans, found none"),
    ],
)
def test_a_faulty_description_names_file_key_and_what_was_expected(folder, text, message):
    with pytest.raises(AnomalyAppError, match=message) as caught:
        load(say(folder, text))
    assert str(caught.value).startswith("set.yaml: ")


def test_paths_of_an_own_description_may_be_absolute(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    made = load(say(elsewhere, FOLDER + f"root: {folder}\n"))
    assert list(names(made)) == ["p1", "p2"]
    text = FOLDER.replace("'{patient}/mask", f"'{elsewhere}/{{patient}}")
    scan(elsewhere / "p1.nii.gz")
    scan(elsewhere / "p2.nii.gz")
    assert names(load(say(folder, text))) == {"p1": ["p1.nii.gz"], "p2": ["p2.nii.gz"]}


def test_a_described_set_has_one_modality(folder):
    path = say(folder, FOLDER)
    assert load(path, modality="FLAIR").modality == "flair"
    with pytest.raises(InvalidSettings, match="expected its modality flair, got 't1'"):
        load(path, modality="t1")


def test_no_image_is_opened(folder):
    for path in folder.rglob("*.nii.gz"):
        path.write_bytes(b"no image at all")
    assert len(load(say(folder, FOLDER)).scans) == 2


def test_neither_ids_nor_paths_reach_a_log_or_a_page(folder):
    made = load(say(folder, FOLDER))
    said = repr(made) + json.dumps(describe(made))
    assert "p1" not in said
    assert str(folder) not in said
