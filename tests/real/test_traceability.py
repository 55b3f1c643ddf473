"""A real server with a shipped model: who did what is in its log, and its result is made again from its manifest."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import requests

from monailabel_app.audit.search import find
from monailabel_app.audit.verify import records, verify
from tests.server_fixture import copy_studies, running_server

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
MODEL = "cold_diffusion_t1"


def command(log, *words):
    environ = {"ANOMALY_AUDIT": str(log), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
    return subprocess.run(
        [sys.executable, "main.py", *map(str, words)], cwd=ROOT, env=environ, capture_output=True, text=True
    )


def test_a_result_of_the_server_is_traced_and_made_again_to_the_voxel(tmp_path, studies_dir, lesion_mask):
    studies, log = copy_studies(studies_dir, tmp_path / "studies"), tmp_path / "audit.jsonl"
    conf = {"models": MODEL, "audit": str(log), "disk_cache": str(tmp_path / "analyses")}
    scanned = studies / "ixi_lesion.nii.gz"
    with running_server(studies, conf=conf) as server:
        answer = server.infer(MODEL, params={"image": "ixi_lesion", "output": "json"}).json()
        result = answer.get("params", answer)
        told = result["manifest"]
        kept = server.get(f"/anomaly/results/ixi_lesion/manifest.json?model={MODEL}").json()
        for kind in ("mask", "anomaly_map"):
            image = server.get(f"/anomaly/results/ixi_lesion/{kind}.nii.gz?model={MODEL}")
            (tmp_path / f"{kind}.nii.gz").write_bytes(image.content)
        saved = requests.put(
            f"{server.url}/datastore/label",
            params={"image": "ixi_lesion", "tag": "final"},
            files={"label": ("label.nii.gz", lesion_mask.read_bytes())},
            timeout=60,
        )
        assert saved.status_code == 200, saved.text
        server.infer(MODEL, params={"image": "no_such_scan", "output": "json"})
    assert kept["id"] == told["id"]
    assert kept["seconds"]

    # What another process makes of the manifest and the scan.
    (tmp_path / "manifest.json").write_text(json.dumps(kept))
    arrays = ("--mask", tmp_path / "mask.nii.gz", "--map", tmp_path / "anomaly_map.nii.gz")
    made = command(log, "reproduce", tmp_path / "manifest.json", "--image", scanned, *arrays, "--json")
    assert made.returncode == 0, made.stderr + made.stdout
    again = json.loads(made.stdout)
    assert again["identical"]
    assert again["mask"]["differing_voxels"] == again["anomaly_map"]["differing_voxels"] == 0
    assert again["environment"] == again["preprocessing"] == again["inputs"] == []

    # After a restart the analysis is at hand, and its manifest says the same.
    with running_server(studies, conf=conf) as server:
        later = server.get(f"/anomaly/results/ixi_lesion/manifest.json?model={MODEL}").json()
    for part in ("model", "calibration", "settings", "input", "preprocessing", "output"):
        assert later[part] == told[part], part

    found = list(records(log))
    events = [record["event"] for record in found]
    assert events.count("server_started") == events.count("server_stopped") == 2
    analysis = next(record for record in found if record["event"] == "analysis")
    assert analysis["facts"]["manifest"] == told["id"]
    assert analysis["facts"]["input"] == told["input"]["sha256"]
    assert analysis["who"]["how"] == "local"
    assert any(record["event"] == "analysis" and record["outcome"] == "refused" for record in found)
    assert {record["event"] for record in find(log, image="ixi_lesion")} == {"analysis", "label_saved"}
    assert next(record for record in found if record["event"] == "reproduced")["who"]["how"] == "command"
    text = log.read_text()
    assert "ixi_lesion" not in text
    assert str(studies) not in text
    report = verify(log)
    assert report.whole, report.faults
    checked = command(log, "audit", "verify", "--head", report.head.hash)
    assert checked.returncode == 0, checked.stdout
    log.write_text(text.replace('"reader"', '"admin"', 1).replace('"local"', '"token"', 1))
    broken = command(log, "audit", "verify")
    assert broken.returncode == 1
    assert "changed" in broken.stdout
