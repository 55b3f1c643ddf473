"""A calibration on the site's own scans reaches a server that runs, through the command that users type, and leaves."""

import json

import numpy as np
import pytest
from scipy import ndimage
from typer.testing import CliRunner

from lib.catalogue import list_models
from monailabel_app import cli, cli_calibrate
from monailabel_app.calibration.calibrated_map import Calibration
from monailabel_app.preprocessing.template import Template
from monailabel_app.training.cache import to_cache
from monailabel_app.weights import site_calibrations
from tests.real.conftest import START_S
from tests.server_fixture import ROOT, copy_studies, running_server

pytestmark = pytest.mark.slow

MODEL = "atlas_zscore_t1"
WAIT_S = 900
SCANS = 8


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    """An app folder of its own, whose site calibrations stay out of this one."""
    if MODEL not in list_models(ROOT):
        pytest.skip(f"needs {MODEL} in model_weights/")
    folder = tmp_path_factory.mktemp("app")
    for name in ("main.py", "lib", "monailabel_app", "model_weights"):
        (folder / name).symlink_to(ROOT / name)
    return folder


@pytest.fixture(scope="module")
def healthy(tmp_path_factory):
    """Prepared scans of a scanner that shows nothing but blurred noise: its thresholds are not the shipped ones."""
    brain = Template.load(ROOT / "model_weights" / "template").brain_mask
    generator = np.random.default_rng(0)
    noise = (ndimage.gaussian_filter(generator.standard_normal(brain.shape), 2.0) for _ in range(SCANS))
    images = [np.where(brain, np.clip(0.5 + 2.0 * values, 0, 1), 0).astype(np.float32)[None] for values in noise]
    path = tmp_path_factory.mktemp("healthy") / "own_scanner.safetensors"
    to_cache(images, [brain] * SCANS, [f"person {number}" for number in range(SCANS)], "t1").save(path)
    return path


def test_the_next_request_follows_without_a_restart_and_goes_back(app, healthy, studies_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(cli_calibrate, "ROOT", app)

    def command(*words):
        done = CliRunner().invoke(cli.app, ["calibrate", "--model", MODEL, *words])
        assert done.exit_code == 0, done.output

    studies = copy_studies(studies_dir, tmp_path / "studies")
    with running_server(studies, app=app, conf={"models": MODEL}, wait_s=START_S) as server:

        def ask(**options):
            where = {"image": "ixi_lesion", "output": "json"}
            answer = server.infer(MODEL, params=where, data={"params": json.dumps(options)}, timeout=WAIT_S)
            assert answer.status_code == 200, answer.text
            return answer.json()

        def offered():
            return server.get("/info/").json()["models"][MODEL]

        before = ask()
        assert before["calibration"]["id"] == "shipped"
        assert "calibration" not in offered()["config"]

        command("--healthy", str(healthy))
        made = site_calibrations.active(app / "model_weights" / MODEL)
        assert made.folder.is_relative_to(app)
        point = Calibration.load(made.folder).score(before["settings"]["score"]).points["standard"]["balanced"]
        site = ask()
        named = {key: site["calibration"][key] for key in ("kind", "id", "hash", "healthy_scans", "data")}
        assert named == {
            "kind": "site",
            "id": made.id,
            "hash": made.hash,
            "healthy_scans": SCANS,
            "data": "own_scanner",
        }
        assert site["threshold"] == pytest.approx(point.threshold)
        assert site["threshold"] != pytest.approx(before["threshold"], rel=0.01)
        assert "reconstruction" not in site["seconds"]  # the analysis does not depend on it and was kept
        assert made.id in offered()["description"]
        assert offered()["config"]["calibration"] == ["site", "shipped"]
        assert ask(calibration="shipped")["threshold"] == before["threshold"]

        command("--use", "shipped")
        after = ask()
        for key in ("threshold", "calibration", "anomaly_score", "p_value", "lesions", "warnings", "drift"):
            assert after[key] == before[key], key
        assert made.id not in offered()["description"]
        assert server.process.poll() is None
