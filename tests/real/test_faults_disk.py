"""Disks of a few megabytes that fill up, under a real server: a named refusal, nothing lost, and it goes on."""

import json
from contextlib import suppress

import pytest
import requests
import SimpleITK as sitk
import torch
from safetensors import SafetensorError

from monailabel_app.audit.verify import verify
from monailabel_app.errors import AnomalyAppError, TrainingFailed
from monailabel_app.training.checkpoint import TrainingState, load_state, save_state
from monailabel_app.training.forgotten import ForgottenList
from monailabel_app.weights import site_calibrations as site
from monailabel_app.weights import versions
from monailabel_app.weights.model_folder import open_model_folder, seal, write_config, write_weights
from tests.real.faults import MODEL, Killable, count, few_models, filled, label, leftovers, scan, small_disk

pytestmark = pytest.mark.slow


@pytest.fixture
def app(tmp_path):
    (tmp_path / "app").mkdir()
    return few_models(tmp_path / "app", MODEL)


def refused_for_space(server, answer, folder):
    assert answer.status_code == 507, answer.text
    assert folder in server.detail(answer)
    assert "full" in server.detail(answer)


def test_a_full_studies_folder_refuses_by_name_keeps_what_was_there_and_works_again(app, tmp_path, lesion_scan):
    with small_disk(tmp_path / "studies", 12) as studies:
        scan(studies / "small.nii.gz", 1)
        (studies / "head.nii.gz").write_bytes(lesion_scan.read_bytes())
        with Killable(studies, app) as server:
            assert server.submit("small", label(tmp_path / "one.nii.gz", 11)).status_code == 200
            before = (studies / "datastore_v2.json").read_bytes()
            with filled(studies):
                for answer in (
                    server.submit("small", label(tmp_path / "two.nii.gz", 12)),
                    server.submit("small", label(tmp_path / "two.nii.gz", 12), tag="final_anna"),
                    server.upload("new", scan(tmp_path / "new.nii.gz", 2)),
                    server.upload("small", scan(tmp_path / "other.nii.gz", 3)),
                    requests.put(
                        f"{server.url}/datastore/image/info",
                        params={"image": "small"},
                        data={"info": json.dumps({"healthy": True, "note": "x" * 20000})},
                        timeout=60,
                    ),
                ):
                    refused_for_space(server, answer, "the studies folder")
                # An analysis does not need the folder: its map and record are not kept, which the result says.
                result = server.infer("head")
                assert result.status_code == 200, result.text
                assert any("could not be kept" in warning for warning in result.json()["warnings"])
                assert server.label("small").status_code == 200
                assert requests.get(f"{server.url}/info/", timeout=60).status_code == 200
            assert (studies / "datastore_v2.json").read_bytes() == before
            assert count(studies / "labels" / "final" / "small.nii.gz") == 11
            assert not leftovers(studies)
            assert set(server.images()) == {"small", "head"}

            assert server.submit("small", label(tmp_path / "two.nii.gz", 12)).status_code == 200
            assert server.upload("new", scan(tmp_path / "new.nii.gz", 2)).status_code == 200
            assert count(studies / "labels" / "final" / "small.nii.gz") == 12
            result = server.infer("head")
            assert not any("kept" in warning for warning in result.json()["warnings"])
            assert (studies / "labels" / "anomaly_map" / "head.nii.gz").is_file()


def test_a_disk_that_fills_up_in_the_middle_of_a_file_leaves_the_former_file(app, tmp_path):
    """Room for the first part of what is sent only."""
    with small_disk(tmp_path / "studies", 4) as studies:
        large = (96, 96, 96)
        scan(studies / "a.nii.gz", 1, large)
        with Killable(studies, app) as server:
            assert server.submit("a", label(tmp_path / "one.nii.gz", 11, large)).status_code == 200
            with filled(studies, leave_kb=200):
                refused_for_space(server, server.upload("b", scan(tmp_path / "b.nii.gz", 2, large)), "studies folder")
                refused_for_space(server, server.upload("a", scan(tmp_path / "c.nii.gz", 3, large)), "studies folder")
                assert server.submit("a", label(tmp_path / "two.nii.gz", 12, large)).status_code == 200
                assert not leftovers(studies)
            assert set(server.images()) == {"a"}
            assert count(studies / "labels" / "final" / "a.nii.gz") == 12


def test_a_full_temporary_folder_refuses_uploads_and_results_by_name_and_works_again(app, tmp_path, lesion_scan):
    (tmp_path / "studies").mkdir()
    (tmp_path / "studies" / "head.nii.gz").write_bytes(lesion_scan.read_bytes())
    with (
        small_disk(tmp_path / "small_tmp", 8) as temporary,
        Killable(tmp_path / "studies", app, env={"TMPDIR": str(temporary)}) as server,
    ):
        with filled(temporary):
            # Beyond a megabyte a form lies on the disk while it is read.
            refused_for_space(
                server, server.upload("new", scan(tmp_path / "new.nii.gz", 2, (96, 96, 96))), "temporary files"
            )
            refused_for_space(server, server.upload("new", scan(tmp_path / "new.nii.gz", 2)), "temporary files")
            refused_for_space(server, server.submit("head", label(tmp_path / "l.nii.gz", 1)), "temporary files")
            for extension in (".nrrd", ".nii.gz"):
                refused_for_space(server, server.infer("head", result_extension=extension), "temporary files")
            assert requests.get(f"{server.url}/info/", timeout=60).status_code == 200
        assert set(server.images()) == {"head"}
        assert server.infer("head").status_code == 200
        assert server.upload("new", scan(tmp_path / "new.nii.gz", 2, (96, 96, 96))).status_code == 200


def test_full_folders_of_the_app_cost_no_analysis_and_no_start(app, tmp_path, lesion_scan):
    """The caches, the logs and the folder of trained models, each full: the server starts, analyses and says so."""
    (tmp_path / "studies").mkdir()
    (tmp_path / "studies" / "head.nii.gz").write_bytes(lesion_scan.read_bytes())
    with small_disk(app / "cache", 1), small_disk(app / "model", 1), small_disk(app / "logs", 1):
        full = filled(app / "cache"), filled(app / "model"), filled(app / "logs")
        with full[0], full[1], full[2], Killable(tmp_path / "studies", app) as server:
            assert server.infer("head").status_code == 200
            assert requests.get(f"{server.url}/info/", timeout=60).status_code == 200
            assert server.submit("head", head_label(lesion_scan, tmp_path)).status_code == 200
        assert not leftovers(app / "cache", app / "model")
        if (app / "logs" / "audit.jsonl").exists():
            assert verify(app / "logs" / "audit.jsonl").whole


def head_label(head, tmp_path):
    image = sitk.ReadImage(str(head))
    empty = sitk.Image(image.GetSize(), sitk.sitkUInt8)
    empty.CopyInformation(image)
    sitk.WriteImage(empty, str(tmp_path / "empty.nii.gz"))
    return tmp_path / "empty.nii.gz"


def test_a_full_disk_leaves_the_model_that_serves_its_calibration_and_the_last_checkpoint(tmp_path):
    """Publishing, calibrating, forgetting and training on a disk that fills up at each of its last kilobytes."""
    root = tmp_path / "disk"
    with small_disk(root, 4):
        write_model(root / "model_weights" / "m", 0.0, 100_000)
        write_model(versions.new_staging(root, "n"), 1.0, 100_000, publish_as=(root, "n"))
        calibrate(root, "old")
        ForgottenList(root).add("first")
        save_state(root / "runs", state(3))
        for leave in (0, 4, 8, 16, 64, 200):
            with filled(root, leave_kb=leave):
                with suppress(OSError, SafetensorError, AnomalyAppError):
                    write_model(versions.new_staging(root, "n"), 2.0, 100_000, publish_as=(root, "n"))
                with suppress(OSError, AnomalyAppError):
                    calibrate(root, "new" * 20000)
                with suppress(OSError, AnomalyAppError):
                    ForgottenList(root).add(f"second{leave}" * 2000)
                with suppress(TrainingFailed):
                    save_state(root / "runs", state(4))
                assert open_model_folder(versions.current(root, "n")).config["value"] == 1.0
                assert (site.active(root / "model_weights" / "m").folder / "calibration.json").read_text() == "old"
                assert "first" in ForgottenList(root)
                assert load_state(root / "runs").step in {3, 4}
        save_state(root / "runs", state(5))
        assert load_state(root / "runs").step == 5
        assert calibrate(root, "again").used


def write_model(folder, value, size, publish_as=None):
    folder.mkdir(parents=True, exist_ok=True)
    write_config(folder, {"kind": "anomaly", "method": "ddpm", "modality": "t1", "value": value})
    write_weights(folder, {"w": torch.full((size,), value)})
    seal(folder)
    if publish_as:
        versions.publish(*publish_as, folder, promote=True)


def calibrate(root, text):
    model = root / "model_weights" / "m"
    staged = site.new_staging(model)
    for name in ("calibration.json", "calibration.safetensors"):
        (staged / name).write_text(text)
    return site.publish(model, staged, {"scans": 7}, use_it=True)


def state(step):
    weights = {"w": torch.zeros(30_000)}
    groups = [{"lr": 0.1, "params": [0]}]
    return TrainingState(
        weights, weights, {"state": {}, "param_groups": groups}, torch.zeros(8, dtype=torch.uint8), step, 0.0, [], {}
    )
