"""Every result says what it rests on, and is made again from that to the voxel."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from monailabel_app.errors import InvalidSettings
from monailabel_app.io.images import read_volume
from monailabel_app.pipelines import manifest as module
from monailabel_app.pipelines import predict as pipeline
from monailabel_app.pipelines.analysis_store import AnalysisStore
from monailabel_app.pipelines.cache import MapCache
from monailabel_app.pipelines.manifest import differences, environment, manifest_of, source_commit
from monailabel_app.pipelines.predict import PredictSettings, load_model, predict
from monailabel_app.pipelines.reproduce import NotReproducible, read_manifest, reproduce
from monailabel_app.registry import TRAINABLE
from monailabel_app.types import digest_of, manifest_id
from monailabel_app.weights.model_folder import seal
from tests.monailabel_app.synthetic import person, scan

ROOT = Path(__file__).resolve().parents[3]
CHEAP = ("ddpm", "atlas_zscore")


@pytest.fixture
def patient(monkeypatch):
    """A scan with a lesion whose brain mask every model is given."""
    volume, brain, _ = scan(person(300), lesion_mm=(-10.0, 14.0, 6.0), contrast=0.6, lesion_radius_mm=7)

    class Given:
        def extract(self, _):
            return brain

    monkeypatch.setattr(pipeline.AnomalyModel, "extractor", lambda self, device: Given())
    return volume


@pytest.fixture
def model(make_model):
    return load_model(make_model("ddpm").folder)


def kept(finding, tmp_path):
    """The manifest as it comes back from a file."""
    file = tmp_path / "manifest.json"
    file.write_text(json.dumps(manifest_of(finding)))
    return read_manifest(file)


def test_a_manifest_names_everything_and_no_patient(patient, model):
    finding = predict(replace(patient, name="Smith_John"), model, PredictSettings(seed=3, threshold=2.5))
    told = finding.to_json()["manifest"]
    assert told == json.loads(json.dumps(told, allow_nan=False))
    assert told["model"]["result_hash"] == model.decides
    assert told["model"]["method"] == "ddpm"
    assert told["calibration"]["id"] == "shipped"
    assert told["settings"]["seed"] == 3
    assert told["settings"]["threshold"] == 2.5
    assert told["input"] == {"sha256": patient.digest.hex(), "shape": list(patient.shape)}
    assert told["output"]["mask"] == digest_of(finding.mask)
    assert told["output"]["anomaly_map"] == digest_of(finding.anomaly_map)
    assert told["environment"]["libraries"]["torch"] == torch.__version__.split("+")[0] or torch.__version__
    assert told["environment"]["threads"] == torch.get_num_threads()
    assert told["environment"]["dtype"] in {"float32", "bfloat16"}
    assert [step["step"] for step in told["preprocessing"]] == [step["step"] for step in finding.steps]
    assert told["id"] == manifest_id(told)
    assert "Smith" not in json.dumps(told)
    assert str(model.folder.parent) not in json.dumps(told)


def test_the_same_run_has_the_same_id_and_another_one_another(patient, model):
    first, again = (predict(patient, model).manifest for _ in range(2))
    assert first == again
    other = [PredictSettings(seed=1), PredictSettings(operating_point="specific"), PredictSettings(min_volume_ml=0.2)]
    cache = MapCache()
    made = [predict(patient, model, settings, cache=cache).manifest for settings in other]
    assert len({told["id"] for told in (first, *made)}) == 4


def test_what_was_at_hand_names_the_environment_it_was_made_in(patient, model, monkeypatch, tmp_path):
    def cache():
        return MapCache(store=AnalysisStore(tmp_path / "analyses"))

    here = environment()
    monkeypatch.setattr(pipeline, "environment", lambda device: {**here, "threads": 99})
    predict(patient, model, cache=cache())
    monkeypatch.undo()
    told = predict(patient, model, cache=cache(), run=False).manifest
    assert told["environment"] == here
    assert told["made_with"] == [{**here, "threads": 99}]


@pytest.mark.parametrize("method", CHEAP)
def test_a_result_is_made_again_to_the_voxel(method, make_model, patient, tmp_path):
    assert method in TRAINABLE
    model = load_model(make_model(method).folder)
    finding = predict(patient, model, PredictSettings(seed=5))
    made = reproduce(kept(finding, tmp_path), patient, model, mask=finding.mask, anomaly_map=finding.anomaly_map)
    assert made.identical, made.lines()
    assert made.mask["differing_voxels"] == 0
    assert made.anomaly_map["differing_voxels"] == 0
    assert made.environment == made.preprocessing == made.inputs == []


@pytest.mark.slow
@pytest.mark.parametrize("method", sorted(set(TRAINABLE) - set(CHEAP)))
def test_a_result_of_every_method_is_made_again_to_the_voxel(method, make_model, patient, tmp_path):
    model = load_model(make_model(method).folder)
    finding = predict(patient, model, PredictSettings(seed=5))
    assert reproduce(kept(finding, tmp_path), patient, load_model(model.folder)).identical


def test_an_uncertainty_run_is_made_again_to_the_last_figure(patient, model, tmp_path):
    finding = predict(patient, model, PredictSettings(uncertainty=True))
    made = reproduce(kept(finding, tmp_path), patient, model)
    assert made.identical
    assert set(made.outputs) == {"mask", "anomaly_map", "brain_mask", "figures"}
    assert made.finding.uncertainty == finding.uncertainty


def test_another_scan_or_model_is_refused_by_name(patient, model, make_model, tmp_path):
    manifest = kept(predict(patient, model), tmp_path)
    other = replace(patient, data=patient.data + 1)
    with pytest.raises(NotReproducible, match=r"input\.sha256"):
        reproduce(manifest, other, model)
    with pytest.raises(NotReproducible, match=r"model\.result_hash"):
        reproduce(manifest, patient, load_model(make_model("cold_diffusion").folder), anyway=False)
    made = reproduce(manifest, other, model, anyway=True)
    assert not made.identical
    assert any("input.sha256" in line for line in made.lines())


def test_a_card_that_was_written_anew_does_not_stand_in_the_way(patient, make_model, tmp_path):
    folder = tmp_path / "ddpm"
    shutil.copytree(make_model("ddpm").folder, folder)
    for name in ("template", "brain_extraction", "input_gate_t1"):
        if (make_model("ddpm").folder.parent / name).is_dir():
            shutil.copytree(make_model("ddpm").folder.parent / name, tmp_path / name)
    manifest = kept(predict(patient, load_model(folder)), tmp_path)
    (folder / "card.md").write_text("another card")
    seal(folder)
    made = reproduce(manifest, patient, load_model(folder))
    assert made.outputs["mask"] == "identical"
    assert any(line.startswith("model.hash:") for line in made.inputs)


def test_where_a_result_differs_and_how_much_is_said(patient, model, tmp_path):
    finding = predict(patient, model)
    manifest = kept(finding, tmp_path)
    before = finding.anomaly_map.copy()
    place = tuple(np.argwhere(finding.brain_mask)[0])
    before[place] += 0.25
    mask = finding.mask.copy()
    mask[place] = 1
    made = reproduce(manifest, patient, model, mask=mask, anomaly_map=before)
    assert made.anomaly_map["differing_voxels"] == 1
    assert made.anomaly_map["largest"] == pytest.approx(0.25, rel=1e-5)
    assert made.anomaly_map["largest_at"] == list(place)
    assert made.mask["differing_voxels"] == 1


def test_another_number_of_threads_is_named_and_the_map_stays_close(patient, model, tmp_path):
    finding = predict(patient, model)
    threads = torch.get_num_threads()
    made = reproduce(kept(finding, tmp_path), patient, model, anomaly_map=finding.anomaly_map, threads=threads + 1)
    assert made.environment == [f"threads: {threads} then, {threads + 1} now"]
    assert made.anomaly_map["largest"] < 1e-3
    assert torch.get_num_threads() == threads


def test_a_manifest_is_found_in_a_result_and_a_changed_one_refused(patient, model, tmp_path):
    finding, file = predict(patient, model), tmp_path / "result.json"
    file.write_text(json.dumps({"finding": finding.to_json()}))
    told = read_manifest(file)
    assert told == finding.manifest
    told["settings"]["seed"] = 7
    file.write_text(json.dumps(told))
    with pytest.raises(NotReproducible, match="changed"):
        read_manifest(file)
    file.write_text("{}")
    with pytest.raises(NotReproducible, match="without one"):
        read_manifest(file)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_device_that_is_not_there_is_said(patient, model, tmp_path):
    finding = predict(patient, model)
    with pytest.raises(InvalidSettings, match="--device cpu"):
        reproduce(kept(finding, tmp_path), patient, model, device="cuda:0")


def test_the_commit_is_that_of_the_checkout_or_as_told(monkeypatch):
    if (ROOT / ".git").exists():
        git = subprocess.run(["git", "-C", ROOT, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
        source_commit.cache_clear()
        assert source_commit() == git.stdout.strip()
    monkeypatch.setenv(module.COMMIT_VARIABLE, "abc123")
    source_commit.cache_clear()
    assert source_commit() == "abc123"
    source_commit.cache_clear()


def test_differences_name_the_place():
    assert differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}, "d": 4}) == [
        "a.c: 2 then, 3 now",
        "d: nothing then, 4 now",
    ]


@pytest.mark.slow
def test_a_result_of_a_shipped_model_is_made_again_by_another_process(tmp_path):
    studies = ROOT / "tests" / "data" / "studies"
    environ = {"ANOMALY_AUDIT": str(tmp_path / "audit.jsonl"), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}

    def run(*command):
        return subprocess.run(
            [sys.executable, "main.py", *map(str, command)], cwd=ROOT, env=environ, capture_output=True, text=True
        )

    scanned, files = studies / "ixi_lesion.nii.gz", (tmp_path / "mask.nii.gz", tmp_path / "map.nii.gz")
    about = ("--model", "cold_diffusion_t1", "--mask", files[0], "--map", files[1], "--uncertainty")
    first = run("predict", scanned, *about)
    assert first.returncode == 0, first.stderr
    (tmp_path / "result.json").write_text(first.stdout)
    again = ("reproduce", tmp_path / "result.json", "--mask", files[0], "--map", files[1], "--json")
    made = run(*again, "--image", scanned)
    assert made.returncode == 0, made.stderr + made.stdout
    told = json.loads(made.stdout)
    assert told["identical"]
    assert told["anomaly_map"]["differing_voxels"] == 0
    assert read_volume(files[1]).data.any()
    other = run(*again, "--image", studies / "ixi_healthy.nii.gz")
    assert other.returncode == 2
    assert "input.sha256" in other.stderr
    threads = run(*again, "--image", scanned, "--threads", 2)
    told = json.loads(threads.stdout)
    assert told["environment"] == ["threads: 1 then, 2 now"]
    assert told["anomaly_map"].get("largest", 0.0) < 1e-2
    assert run("audit", "verify").returncode == 0
