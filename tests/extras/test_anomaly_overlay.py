"""The script for 3D Slicer: what it asks a real server for, and what it puts into a scene that is played."""

import runpy
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from tests.extras.fake_slicer import install
from tests.server_fixture import copy_studies, running_server

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "extras" / "slicer" / "anomaly_overlay.py"
STUDIES = ROOT / "tests" / "data" / "studies"
IMAGE, MODEL = "ixi_lesion", "cold_diffusion_t1"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    studies = copy_studies(STUDIES, tmp_path_factory.mktemp("slicer") / "studies")
    with running_server(studies, conf={"models": MODEL}) as started:
        yield started


@pytest.fixture
def slicer(monkeypatch, server):
    return install(monkeypatch, IMAGE, server.url)


@pytest.fixture
def show(slicer):
    return runpy.run_path(str(SCRIPT))["show"]


def test_a_scan_is_analysed_and_everything_lies_on_its_grid(show, slicer, capsys):
    nodes = show(model=MODEL, run=True)
    assert {"anomaly_map", "reconstruction", "bands", "lesions"} <= nodes.keys()
    scan = sitk.ReadImage(str(STUDIES / f"{IMAGE}.nii.gz"))
    for kind in ("anomaly_map", "reconstruction"):
        image = nodes[kind].image
        assert image.GetSize() == scan.GetSize()
        assert np.allclose(image.GetOrigin(), scan.GetOrigin(), atol=1e-3)
        assert np.allclose(image.GetDirection(), scan.GetDirection(), atol=1e-4)
        assert sitk.GetArrayViewFromImage(image).max() > 0
    display = nodes["anomaly_map"].display
    assert display.thresholded
    assert display.threshold[0] == display.window[0] > 0
    assert slicer.layers["foreground"] is nodes["anomaly_map"]
    assert slicer.layers["background"] is slicer.scene.nodes[0]
    assert [segment.name.partition(" (")[0] for segment in nodes["bands"].segments] == [
        "low suspicion", "medium suspicion", "high suspicion",
    ]  # fmt: skip
    assert len({segment.colour for segment in nodes["bands"].segments}) == 3
    assert nodes["lesions"].points
    assert nodes["lesions"].locked
    # The slices stand at the largest lesion, where the map is above the threshold.
    index = scan.TransformPhysicalPointToContinuousIndex([-slicer.jumps[0][0], -slicer.jumps[0][1], slicer.jumps[0][2]])
    assert all(0 <= value < size for value, size in zip(index, scan.GetSize(), strict=True))
    told = capsys.readouterr().out
    assert "anomaly score" in told
    assert "research use only" in told
    assert slicer.status


def test_other_settings_replace_what_was_shown(show, slicer):
    first = show(model=MODEL, run=True)
    before = len(slicer.scene.nodes)
    second = show(model=MODEL, operating_point="specific")
    assert len(slicer.scene.nodes) == before
    assert not set(map(id, first.values())) & set(map(id, slicer.scene.nodes))
    assert second["anomaly_map"].display.threshold[0] > first["anomaly_map"].display.threshold[0]


def test_what_was_not_analysed_says_what_to_do(show):
    with pytest.raises(RuntimeError, match="404") as caught:
        show(image="ixi_healthy", model=MODEL)
    assert "/anomaly/jobs" in str(caught.value)


def test_a_server_that_is_not_there_is_named(show):
    with pytest.raises(RuntimeError, match=r"no answer from http://127\.0\.0\.1:9"):
        show(server="http://127.0.0.1:9")


def test_a_token_is_sent_and_its_lack_is_told(monkeypatch):
    seen = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            seen.append(self.headers["Authorization"])
            self.send_response(401)
            self.end_headers()
            self.wfile.write(b'{"detail": "who?"}')

        def log_message(self, *_):
            """Keeps the tests' output free of requests."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    install(monkeypatch, "scan", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.delenv("ANOMALY_TOKEN", raising=False)
    show = runpy.run_path(str(SCRIPT))["show"]
    try:
        for options in ({}, {"token": "mine"}):
            with pytest.raises(RuntimeError, match=r"who\?.*token="):
                show(**options)
        monkeypatch.setenv("ANOMALY_TOKEN", "of the environment")
        with pytest.raises(RuntimeError, match="401"):
            show()
    finally:
        server.shutdown()
        server.server_close()
    assert seen == [None, "Bearer mine", "Bearer of the environment"]


def test_what_was_shown_of_a_scan_whose_id_begins_alike_stays(monkeypatch):
    seen = install(monkeypatch, "scan", "http://127.0.0.1:9")
    titles = [f"Anomaly {scan} {kind}" for scan in ("scan", "scan 2") for kind in ("anomaly map", "lesions")]
    for title in titles:
        seen.scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", title)
    runpy.run_path(str(SCRIPT))["_remove"]("Anomaly scan")
    assert [node.name for node in seen.scene.nodes[2:]] == titles[2:]
