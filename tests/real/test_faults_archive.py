"""An archive that goes away, is slow, talks nonsense or is cut in the middle: a real Orthanc behind a bad line."""

import json
import re
import socket
import subprocess
import threading
import time
import zlib
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import nibabel as nib
import numpy as np
import pytest
import requests

from monailabel_app.io.images import read_volume
from tests.dicom_factory import write_series
from tests.real.faults import Killable, wait_for
from tests.real.orthanc_server import OrthancServer, orthanc_binary
from tests.server_fixture import make_app

pytestmark = pytest.mark.orthanc

MODEL = "threshold"
_CONFIG = "kind: anomaly\nmethod: ddpm\nmodality: t1\n"


class BadLine:
    """A proxy before the archive. ``fault(path)`` names what happens to a request, or is empty."""

    def __init__(self, target):
        self.target, self.fault, self.seen = target, lambda method, path: "", []
        line = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args):
                pass

            def do_GET(self):
                self._pass("GET", None)

            def do_POST(self):
                fault = line.fault("POST", self.path)
                length = int(self.headers.get("Content-Length") or 0)
                if fault == "cut request":
                    self.rfile.read(length // 2)
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return
                self._pass("POST", self.rfile.read(length))

            def _pass(self, method, body):
                fault = line.fault(method, self.path)
                line.seen.append((method, self.path, fault))
                if fault.isdigit():
                    self.send_response(int(fault))
                    self.end_headers()
                    return
                if fault == "garbage":
                    self.send_response(200)
                    self.send_header("Content-Type", "text/html")
                    self.end_headers()
                    self.wfile.write(b"<html>Please log in to the hospital's network</html>")
                    return
                if fault == "hang":
                    # Longer than the server waits for an archive: only the test ends it.
                    line.hung.wait(900)
                    return
                headers = {k: v for k, v in self.headers.items() if k.lower() not in {"host", "connection"}}
                try:
                    answer = requests.request(
                        method, line.target + self.path, data=body, headers=headers, stream=True, timeout=300
                    )
                    content = answer.raw.read(decode_content=False)
                except requests.RequestException:
                    self.connection.close()
                    return
                if fault == "lose answer":
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return
                self.send_response(answer.status_code)
                for name in ("Content-Type", "Content-Encoding"):
                    if name in answer.headers:
                        self.send_header(name, answer.headers[name])
                if fault != "end early":
                    self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                if fault == "cut":
                    content = content[: len(content) // 2]
                elif fault == "end early":
                    # Whole objects, and then nothing: as a proxy that gives up, without any length to compare with.
                    parts = content.split(b"\r\n--")
                    content = b"\r\n--".join(parts[: len(parts) // 2])
                with suppress(OSError):
                    self.wfile.write(content)
                    self.wfile.flush()
                self.close_connection = True

        self.hung = threading.Event()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def close(self):
        self.hung.set()
        self.server.shutdown()
        self.server.server_close()


def of_series(fault):
    """What happens to a series on its way; searches are answered."""
    return lambda method, path: fault if method == "GET" and re.search(r"/series/[^/?]+/?(\?|$)", path) else ""


def of_searches(fault):
    return lambda method, path: fault if "/series?" in path or path.endswith("/series") else ""


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    if orthanc_binary() is None:
        pytest.skip("needs Orthanc (Debian packages orthanc, orthanc-dicomweb)")
    with OrthancServer(tmp_path_factory.mktemp("orthanc")) as orthanc:
        yield orthanc


@pytest.fixture(scope="module")
def line(archive):
    line = BadLine(archive.url)
    yield line
    line.close()


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def server(line, cache, tmp_path_factory):
    app = make_app(tmp_path_factory.mktemp("app"), {MODEL: _CONFIG})
    env = {"MONAI_LABEL_DICOMWEB_CACHE_PATH": str(cache)}
    with Killable(f"{line.url}/dicom-web", app, env=env, fake_pipeline=True) as running:
        yield running


@pytest.fixture
def series(archive, line, healthy_scan, tmp_path, request):
    """A series of its own per test, so that it is fetched for the first time."""
    yield new_series(archive, healthy_scan, tmp_path / "series", request.node.name)
    line.fault = lambda method, path: ""
    line.hung.set()


def new_series(archive, head, folder, name):
    written = write_series(folder, read_volume(head), plane="axial", seed=zlib.crc32(name.encode()) % 10**6)
    archive.upload(written.files)
    return written


def infer(server, uid):
    return server.infer(uid, MODEL)


def left_in(cache, uid):
    """What lies in the cache of a series."""
    return [path.name for path in cache.rglob("*") if uid in path.name]


def test_a_series_that_does_not_come_whole_is_refused_not_kept_and_fetched_again(server, line, cache, series):
    for fault in ("cut", "end early", "garbage", "500", "401", "503"):
        line.fault = of_series(fault)
        answer = infer(server, series.series_uid)
        assert answer.status_code in {502, 504}, f"{fault}: {answer.text}"
        assert "archive" in server.detail(answer)
        assert left_in(cache, series.series_uid) == [], fault
        assert requests.get(f"{server.url}/info/", timeout=60).status_code == 200
    line.fault = lambda method, path: ""
    answer = infer(server, series.series_uid)
    assert answer.status_code == 200, answer.text
    folder = next(path for path in cache.rglob(str(series.series_uid)) if path.is_dir())
    assert len(list(folder.iterdir())) == len(series.files)


def test_an_unknown_series_leaves_no_lock(server, cache):
    answer = infer(server, "1.2.826.77.1")
    assert answer.status_code == 404
    assert left_in(cache, "1.2.826.77.1") == []


def test_an_archive_that_never_answers_holds_up_nobody_else(server, archive, line, healthy_scan, tmp_path, series):
    """The fetch of one series hangs; others are analysed and information is given meanwhile."""
    assert infer(server, series.series_uid).status_code == 200
    fetched = new_series(archive, healthy_scan, tmp_path / "another", "another")
    line.fault = of_series("hang")
    line.hung.clear()
    line.seen.clear()
    refused = []
    stuck = threading.Thread(target=lambda: refused.append(server.infer(fetched.series_uid, MODEL, timeout=900)))
    stuck.start()
    wait_for(lambda: any(fault == "hang" for *_, fault in line.seen), "the fetch that hangs")
    assert requests.get(f"{server.url}/info/", timeout=200).status_code == 200
    assert infer(server, series.series_uid).status_code == 200
    assert infer(server, "1.2.3.4").status_code == 404
    line.fault = lambda method, path: "hang"
    assert requests.get(f"{server.url}/info/", timeout=200).status_code == 200
    assert infer(server, series.series_uid).status_code == 200
    # All of that while the archive had not said a word yet.
    assert stuck.is_alive()
    line.fault = of_series("500")
    line.hung.set()
    stuck.join(300)
    assert [answer.status_code for answer in refused] == [502]


def test_an_archive_that_dies_in_the_middle_of_a_series_is_back_after_its_restart(
    archive, line, server, cache, series
):
    def die(method, path):
        if of_series("x")(method, path):
            archive.process.kill()
            archive.process.wait(30)
        return ""

    line.fault = die
    answer = infer(server, series.series_uid)
    assert answer.status_code in {502, 504}, answer.text
    assert left_in(cache, series.series_uid) == []
    assert requests.get(f"{server.url}/info/", timeout=60).status_code == 200
    restart(archive)
    line.fault = lambda method, path: ""
    answer = infer(server, series.series_uid)
    assert answer.status_code == 200, answer.text


def restart(archive):
    """The same archive with its folder and port."""
    archive.process = subprocess.Popen(
        [orthanc_binary(), str(archive.folder / "orthanc.json")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        stdin=subprocess.DEVNULL,
        cwd=archive.folder,
        start_new_session=True,
    )
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        with suppress(requests.RequestException):
            if archive.session.get(f"{archive.dicomweb_url}/studies", timeout=30).ok:
                return
        time.sleep(0.2)
    raise TimeoutError("the archive did not come back")


def test_a_label_that_is_cut_on_its_way_to_the_archive_is_refused_and_can_be_sent_again(
    archive, line, server, cache, series, tmp_path
):
    result = server.server.infer(MODEL, params={"image": series.series_uid, "output": "image"}, timeout=300)
    assert result.status_code == 200
    file = tmp_path / "label.nii.gz"
    file.write_bytes(result.content)
    before = len(archive.find_series(Modality="SEG"))
    line.fault = lambda method, path: "cut request" if method == "POST" else ""
    answer = server.submit(series.series_uid, file)
    assert answer.status_code in {502, 504}, answer.text
    assert len(archive.find_series(Modality="SEG")) == before
    line.fault = lambda method, path: ""
    assert server.submit(series.series_uid, file).status_code == 200
    assert len(archive.find_series(Modality="SEG")) == before + 1


def test_a_label_whose_answer_was_lost_is_one_instance_when_it_is_submitted_again_and_a_changed_one_another(
    archive, line, server, cache, series, tmp_path
):
    result = server.server.infer(MODEL, params={"image": series.series_uid, "output": "image"}, timeout=300)
    file = tmp_path / "label.nii.gz"
    file.write_bytes(result.content)

    def in_the_archive():
        listed = archive.find_series(Modality="SEG", StudyInstanceUID=series.study_uid)
        return [len(item["Instances"]) for item in listed]

    line.fault = lambda method, path: "lose answer" if method == "POST" else ""
    for _ in range(2):
        answer = server.submit(series.series_uid, file)
        assert answer.status_code in {502, 504}, answer.text
        assert in_the_archive() == [1]
    line.fault = lambda method, path: ""
    for _ in range(2):
        assert server.submit(series.series_uid, file).status_code == 200
        assert in_the_archive() == [1]
    label = nib.load(file)
    voxels = np.asarray(label.dataobj).astype(np.uint8)
    voxels[tuple(np.argwhere(voxels)[0])] = 0
    nib.save(nib.Nifti1Image(voxels, label.affine), file)
    assert server.submit(series.series_uid, file).status_code == 200
    assert in_the_archive() == [1, 1]


def test_an_archive_that_is_away_at_the_start_of_the_server_is_used_when_it_comes(line, server, series):
    line.fault = of_searches("500")
    server.kill()
    server.up()
    info = requests.get(f"{server.url}/info/", timeout=60)
    assert info.status_code == 200
    assert "archive" in json.dumps(info.json()["datastore"])
    line.fault = lambda method, path: ""
    assert infer(server, series.series_uid).status_code == 200
