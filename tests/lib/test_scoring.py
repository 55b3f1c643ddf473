"""The scoring of a studies folder without a server: which scans are analysed, and what is kept of each."""

import json
import os

import nibabel as nib
import numpy as np
import pytest

from lib import audit, options
from lib.access.principal import Principal, acting
from lib.datastore import AnomalyLocalDatastore
from lib.errors import ServerBusy
from lib.scoring import AnomalyScores
from lib.scoring.progress import ProgressFile
from lib.scoring.sequences import default_model, sequence_of
from monailabel_app.audit.search import find
from monailabel_app.errors import InvalidSettings, InvalidVolume, UnknownModel
from monailabel_app.weights.listing import ModelEntry
from monailabel_app.weights.model_folder import seal, write_config

SCORES = ("signed", "l1")


def write_scan(path, value):
    nib.save(nib.Nifti1Image(np.full((16, 16, 4), value, np.int16), np.eye(4)), path)


class Task:
    """As ``AnomalyInferTask``: the score is the scan's brightness; a scan of zeros is broken."""

    def __init__(self, folder, name, modality="t1"):
        folder.mkdir(parents=True)
        write_config(folder, {"kind": "anomaly", "method": "ddpm", "modality": modality})
        (folder / "model.safetensors").write_bytes(b"weights")
        seal(folder)
        self.entry = ModelEntry(name, folder, "ddpm", {"modality": modality})
        self.site = "shipped"
        self.asked, self.error = [], None

    def calibration(self):
        return self.site

    def read(self, request):
        return options.read(request, SCORES)

    def __call__(self, request):
        path = request["image"]
        self.asked.append(os.path.basename(path).split(".")[0])
        if self.error is not None:
            raise self.error
        value = float(nib.load(path).get_fdata().max())
        if value == 0:
            raise InvalidVolume("expected a scan with contrast, got a constant image; send another one")
        label = self.entry.folder.parent / "label.nii.gz"
        label.write_bytes(b"")
        return str(label), {
            "anomaly_score": np.float32(value),
            "p_value": float("nan"),
            "lesion_count": 2,
            "anomaly_volume_ml": 1.23456789,
            "gate": {"passed": False, "reasons": ["a", "b", "c", "d"], "figures": {"x": 1.0}},
            "drift": {"distance": 0.1, "p_value": 0.5, "drifted": False, "healthy_scans": 20},
        }


@pytest.fixture
def store(tmp_path):
    (tmp_path / "studies").mkdir()
    for number in range(1, 4):
        write_scan(tmp_path / "studies" / f"scan{number}.nii.gz", number)
    return AnomalyLocalDatastore(str(tmp_path / "studies"), extensions=["*.nii.gz"])


@pytest.fixture
def task(tmp_path):
    return Task(tmp_path / "models" / "ddpm_t1", "ddpm_t1")


@pytest.fixture
def scoring(tmp_path, task):
    return AnomalyScores(tmp_path / "app", lambda: {"ddpm_t1": task})


def scores(store, model="ddpm_t1"):
    return {image: store.get_image_info(image).get("anomaly", {}).get(model) for image in store.list_images()}


def test_a_score_is_kept_small_and_as_plain_json(store, scoring):
    assert scoring({}, store) == {"current": 0, "without_model": 0, "analysed": 3, "failed": 0, "left": 0}
    kept = scores(store)
    assert [kept[f"scan{n}"]["score"] for n in (1, 2, 3)] == [1.0, 2.0, 3.0]
    one = kept["scan1"]
    assert one["p_value"] is None
    assert one["volume_ml"] == 1.2346
    assert one["lesions"] == 2
    assert one["gate"] == {"passed": False, "reasons": ["a", "b", "c"]}
    assert one["drift"] == {"distance": 0.1, "p_value": 0.5, "drifted": False}
    assert one["model"] == "ddpm_t1"
    assert len(one["hash"]) == 64
    assert one["calibration"] == "shipped"
    assert one["settings"]["operating_point"] == "balanced"
    assert one["time"].endswith("+00:00")
    text = json.dumps(one, allow_nan=False)
    assert len(text) < 1000


def test_every_analysis_is_noted_and_what_is_current_is_not(store, scoring, tmp_path):
    write_scan(tmp_path / "studies" / "scan2.nii.gz", 0)
    before = audit.journal()
    audit.configure(tmp_path, {"audit": str(tmp_path / "audit.jsonl")})
    try:
        with acting(Principal("anna", "admin", "token")):
            scoring({}, store)
            scoring({}, store)
        for image, outcome in (("scan1", "ok"), ("scan2", "refused"), ("scan3", "ok")):
            (record,) = find(tmp_path / "audit.jsonl", image=image, event="analysis")
            assert (record["outcome"], record["who"]["name"]) == (outcome, "anna")
            assert record["facts"]["model"] == "ddpm_t1"
            assert record["facts"]["seconds_total"] >= 0
    finally:
        audit._journal = before


def test_only_scans_without_a_current_score_are_analysed(store, scoring, task, tmp_path):
    scoring({}, store)
    write_scan(tmp_path / "studies" / "scan4.nii.gz", 4)
    store.refresh()
    task.asked.clear()
    assert scoring({}, store)["current"] == 3
    assert task.asked == ["scan4"]


@pytest.mark.parametrize("change", ["scan", "weights", "calibration", "settings"])
def test_a_score_is_out_of_date_when_anything_it_rests_on_changes(change, store, scoring, task, tmp_path):
    scoring({}, store)
    task.asked.clear()
    request = {}
    if change == "scan":
        write_scan(tmp_path / "studies" / "scan2.nii.gz", 77)
    elif change == "weights":
        (task.entry.folder / "model.safetensors").write_bytes(b"others")
        seal(task.entry.folder)
    elif change == "calibration":
        task.site = "site-0001"
    else:
        request = {"operating_point": "specific"}
    scoring(request, store)
    assert task.asked == (["scan2"] if change == "scan" else ["scan1", "scan2", "scan3"])
    task.asked.clear()
    assert scoring(request, store)["current"] == 3
    assert task.asked == []


def test_a_calibration_that_is_used_since_the_run_began_is_named_and_the_next_run_scores_again(
    store, scoring, task, monkeypatch
):
    analyse = Task.__call__

    def with_another(self, request):
        label, result = analyse(self, request)
        return label, {**result, "calibration": {"id": "site-0002"}}

    monkeypatch.setattr(Task, "__call__", with_another)
    scoring({}, store)
    assert {kept["calibration"] for kept in scores(store).values()} == {"site-0002"}
    task.site = "site-0002"
    assert scoring({}, store)["analysed"] == 3
    assert scoring({}, store)["current"] == 3


def test_scores_by_the_models_own_calibration_say_so_whatever_the_site_uses(store, scoring, task):
    task.site = "site-0001"
    scoring({"calibration": "shipped"}, store)
    assert {kept["calibration"] for kept in scores(store).values()} == {"shipped"}
    task.site = "site-0002"
    assert scoring({"calibration": "shipped"}, store)["current"] == 3


def test_a_new_card_is_no_reason_to_analyse_again(store, scoring, task):
    scoring({}, store)
    (task.entry.folder / "card.md").write_text("measured anew")
    seal(task.entry.folder)
    assert scoring({}, store)["current"] == 3


def test_a_broken_scan_is_recorded_and_left_alone_until_it_changes(store, scoring, task, tmp_path):
    write_scan(tmp_path / "studies" / "scan1.nii.gz", 0)
    assert scoring({}, store)["failed"] == 1
    kept = scores(store)
    assert "constant image" in kept["scan1"]["error"]
    assert kept["scan1"]["kind"] == "InvalidVolume"
    assert kept["scan3"]["score"] == 3.0
    task.asked.clear()
    assert scoring({}, store)["current"] == 3
    write_scan(tmp_path / "studies" / "scan1.nii.gz", 9)
    assert scoring({}, store) == {"current": 2, "without_model": 0, "analysed": 1, "failed": 0, "left": 0}
    assert "error" not in scores(store)["scan1"]


@pytest.mark.parametrize("error", [ServerBusy("out of memory"), ValueError("a patient's name")])
def test_what_may_pass_is_tried_again(error, store, scoring, task):
    task.error = error
    assert scoring({}, store)["failed"] == 3
    assert "patient" not in json.dumps(scores(store))
    task.error = None
    assert scoring({}, store)["analysed"] == 3


def test_new_scans_come_before_outdated_ones_and_no_more_than_the_limit(store, scoring, task, tmp_path):
    scoring({"limit": "2"}, store)
    task.site = "site-0001"
    task.asked.clear()
    assert scoring({"limit": 2}, store)["left"] == 1
    assert task.asked == ["scan3", "scan1"]


def test_a_scan_that_was_replaced_meanwhile_gets_no_score_of_the_former(store, scoring, task, tmp_path, monkeypatch):
    analyse = Task.__call__

    def replaced(self, request):
        answer = analyse(self, request)
        if request["image"].endswith("scan2.nii.gz"):
            write_scan(request["image"], 50)
        return answer

    monkeypatch.setattr(Task, "__call__", replaced)
    assert scoring({}, store)["failed"] == 1
    assert scores(store)["scan2"] is None


def test_each_scan_is_scored_by_the_model_of_its_sequence(store, tmp_path):
    tasks = {
        "atlas_flair": Task(tmp_path / "models" / "atlas_flair", "atlas_flair", "flair"),
        "atlas_t1": Task(tmp_path / "models" / "atlas_t1", "atlas_t1"),
    }
    store.update_image_info("scan2", {"sequence": "FLAIR"})
    store.update_image_info("scan3", {"sequence": "dwi"})
    assert AnomalyScores(tmp_path / "app", lambda: tasks)({}, store)["without_model"] == 1
    assert tasks["atlas_t1"].asked == ["scan1"]
    assert tasks["atlas_flair"].asked == ["scan2"]
    # Asked for by name, it is that one, beside the other's entry.
    AnomalyScores(tmp_path / "app", lambda: tasks)({"model": "atlas_t1"}, store)
    assert store.get_image_info("scan2")["anomaly"].keys() == {"atlas_flair", "atlas_t1"}


@pytest.mark.parametrize(
    ("image", "info", "sequence"),
    [
        ("a", {}, None),
        ("sub-01_T1w", {}, "t1"),
        ("sub-01_ses-2_FLAIR", {}, "flair"),
        ("sub-01_T1w", {"sequence": "T2w"}, "t2"),
        ("a", {"sequence": 3}, None),
        ("mslub_flair_2mm", {}, "flair"),
        ("head T1 2026", {}, "t1"),
        ("t1_and_t2_heads", {}, None),
        ("st1ll", {}, None),
        ("mslub_flair_2mm", {"SeriesDescription": "t1_mprage"}, "t1"),
        *(
            ("1.2.3", {"SeriesDescription": called}, sequence)
            for called, sequence in {
                "t1_mprage_sag_p2_iso": "t1", "Sag T1 BRAVO": "t1", "3D SPGR": "t1", "MP2RAGE": "t1",
                "AX T1 FLAIR": "t1", "t2_space_dark-fluid_sag": "flair", "Ax T2 FLAIR FS": "flair",
                "T2_TIRM_TRA": "flair",
                "t2_tse_tra": "t2", "AX T2* GRE": "t2star", "ep2d_diff_b1000": "dwi", "ADC": "dwi", "localizer": None,
                "": None, "PD TSE": "pd", "SWI_Images": "swi",
            }.items()
        ),
        ("1.2.3", {"SeriesDescription": "t1_mprage", "sequence": "flair"}, "flair"),
    ],
)  # fmt: skip
def test_the_sequence_is_what_somebody_said(image, info, sequence):
    assert sequence_of(image, info) == sequence


def test_the_default_of_a_sequence_comes_before_the_first_model_for_it(tmp_path):
    def entry(name, modality):
        return ModelEntry(name, tmp_path, "ddpm", {"modality": modality})

    models = {"x_t1": entry("x_t1", "t1"), "cold_diffusion_t1": entry("cold_diffusion_t1", "t1")}
    assert default_model(models, None) == "cold_diffusion_t1"
    assert default_model({"x_t1": models["x_t1"]}, "t1") == "x_t1"
    assert default_model({"y": entry("y", "any")}, "swi") == "y"
    assert default_model({"x_t1": models["x_t1"]}, "swi") is None
    assert default_model({"z": entry("z", "flair")}, None) == "z"


@pytest.mark.parametrize(
    ("request_", "error", "said"),
    [
        ({"model": "tree"}, UnknownModel, "'tree'.*ddpm_t1"),
        ({"modle": "ddpm_t1"}, InvalidSettings, "'modle'"),
        ({"limit": "many"}, InvalidSettings, "limit"),
        ({"limit": -1}, InvalidSettings, "limit"),
        ({"limit": True}, InvalidSettings, "limit"),
        ({"score": "tree"}, InvalidSettings, "score"),
        ({"device": "abacus"}, InvalidSettings, "device"),
    ],
)
def test_a_request_that_could_not_be_done_is_refused(request_, error, said, store, scoring):
    with pytest.raises(error, match=said):
        scoring.check(request_, store)


def test_what_monai_label_adds_to_a_request_is_no_mistake(store, scoring):
    assert scoring.check({"method": "anomaly_scores", "gpus": "all", "limit": 1}, store) == {"limit": 1}


def test_progress_tells_how_far_it_is_and_whether_its_process_is_gone(tmp_path, store, scoring):
    assert scoring.progress.read() == {}
    scoring({}, store)
    told = scoring.progress.read()
    assert (told["status"], told["done"], told["total"], told["failed"]) == ("done", 3, 3, 0)
    assert told["result"]["analysed"] == 3
    assert "pid" not in told

    progress = ProgressFile(tmp_path / "progress.json")
    progress.begin(4)
    progress.step(1)
    assert progress.read()["status"] == "running"
    assert "seconds_left" in progress.read()
    record = json.loads((tmp_path / "progress.json").read_text())
    (tmp_path / "progress.json").write_text(json.dumps({**record, "process_started": 1.0}))
    assert progress.read()["status"] == "stopped"
    (tmp_path / "progress.json").write_text("{")
    assert progress.read() == {}


def test_progress_that_cannot_be_written_stops_nothing(tmp_path, task, store):
    (tmp_path / "app").write_text("a file where the folder should be")
    assert AnomalyScores(tmp_path / "app", lambda: {"ddpm_t1": task})({}, store)["analysed"] == 3
