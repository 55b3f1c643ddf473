"""The perimeter with a real browser and real TLS: the page of addresses, a foreign page, ``main.py serve`` by https."""

import json
import subprocess
import sys
import threading
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
import requests
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from monailabel_app.io.images import read_volume
from tests.dicom_factory import write_series
from tests.lib.conftest import MODEL
from tests.monailabel_app.pipelines.test_reach import make_certificate
from tests.ports import free_port
from tests.real.ohif_driver import REDRAWN
from tests.real.orthanc_server import stop_process
from tests.server_fixture import ROOT, copy_studies, make_app, running_server

ATTACK = """<!doctype html><title>waiting</title><body><script>
const server = location.hash.slice(1), got = {};
const note = (name, promise) => promise.then(a => got[name] = a.type + a.status, e => got[name] = 'failed');
Promise.all([
  note('read', fetch(server + '/info/')),
  note('json', fetch(server + '/activelearning/first', {method: 'POST', body: '{}',
       headers: {'Content-Type': 'application/json'}})),
  note('put', fetch(server + '/datastore/image/info?image=ixi_lesion', {method: 'PUT', body: 'info={}'})),
  note('simple', fetch(server + '/infer/one?image=ixi_lesion', {method: 'POST', mode: 'no-cors', body: new FormData()}))
]).then(() => new Promise(done => {
  const picture = new Image();
  picture.onload = picture.onerror = event => { got.picture = event.type; done(); };
  picture.src = server + '/static/favicon.ico';
})).then(() => { document.title = JSON.stringify(got); });
</script>"""


@pytest.fixture(scope="module")
def small_server(tmp_path_factory, studies_dir):
    folder = tmp_path_factory.mktemp("perimeter")
    (folder / "app").mkdir()
    app = make_app(folder / "app", {"one": MODEL})
    studies = copy_studies(studies_dir, folder / "studies")
    with running_server(studies, app=app, conf={"models": "all", "audit": "off"}, fake_pipeline=True, wait_s=600) as it:
        yield it


@pytest.fixture
def foreign(tmp_path):
    """A page of another origin (another port) on this machine, the worst neighbour there is."""
    (tmp_path / "attack.html").write_text(ATTACK)
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/attack.html"
        server.shutdown()


def asked(browser):
    """Every address that the browser has asked since the last call."""
    events = (json.loads(entry["message"])["message"] for entry in browser.get_log("performance"))
    return [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]


@pytest.mark.browser
@pytest.mark.parametrize("path", ["/", "/docs"])
def test_the_addresses_are_shown_and_tried_without_the_internet(browser, small_server, path):
    browser.get_log("browser"), asked(browser)
    browser.get(small_server.url + path)
    wait = WebDriverWait(browser, 300, ignored_exceptions=REDRAWN)
    wait.until(lambda b: len(b.find_elements(By.CSS_SELECTOR, ".opblock")) > 20)
    row = "//*[@data-path='/info/']/ancestor::*[contains(concat(' ', @class, ' '), ' opblock ')][1]"
    # The page draws itself anew and slides what unfolds: found, visible and whole at different moments.
    for name in ("opblock-summary-control", "try-out__btn", "execute"):
        button = f"{row}//button[contains(concat(' ', @class, ' '), ' {name} ')]"
        wait.until(lambda b, button=button: b.find_element(By.XPATH, button).click() or True)
    wait.until(lambda b: "Brain anomaly segmentation" in b.find_element(By.XPATH, row).text)
    assert {url.split("/")[2] for url in asked(browser) if url.startswith("http")} == {small_server.url.split("/")[2]}
    violations = [entry["message"] for entry in browser.get_log("browser") if "Content Security" in entry["message"]]
    assert violations == []


@pytest.mark.browser
def test_a_foreign_page_in_a_real_browser_gets_nothing(browser, small_server, foreign):
    before = small_server.get("/datastore/image/info?image=ixi_lesion").json()
    browser.get(f"{foreign}#{small_server.url}")
    WebDriverWait(browser, 300).until(lambda b: b.title.startswith("{"))
    got = json.loads(browser.title)
    assert got == {"read": "failed", "json": "failed", "put": "failed", "simple": "failed", "picture": "error"}
    # Some were not even sent; those that browsers send without asking first were refused here.
    assert "a page of another origin was refused" in small_server.log.read_text()
    assert small_server.get("/datastore/image/info?image=ixi_lesion").json() == before


@pytest.mark.slow
def test_serve_answers_by_https_and_says_so(tmp_path):
    cert, key = make_certificate(tmp_path)
    port = free_port()
    words = [sys.executable, "main.py", "serve", "--port", str(port), "--models", "intensity_t1"]
    words += ["--tls-cert", str(cert), "--tls-key", str(key), "--conf", "audit", "off", "--conf", "cache_days", "0"]
    words += ["--conf", "tokens", str(tmp_path / "tokens.json"), "--conf", "disk_cache", str(tmp_path / "cache")]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(words, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        deadline = time.monotonic() + 600
        while "answers at" not in (tmp_path / "log").read_text() and time.monotonic() < deadline:
            assert process.poll() is None, (tmp_path / "log").read_text()[-3000:]
            time.sleep(0.5)
        answer = requests.get(f"https://127.0.0.1:{port}/info/", verify=str(cert), timeout=60)
        assert answer.status_code == 200
        assert answer.headers["strict-transport-security"].startswith("max-age=")
        assert f"https://127.0.0.1:{port}/" in (tmp_path / "log").read_text()
        with pytest.raises(requests.RequestException):
            requests.get(f"http://127.0.0.1:{port}/info/", timeout=60)
    finally:
        stop_process(process, 60)


@pytest.mark.slow
def test_serve_refuses_to_listen_for_others_without_a_token(tmp_path):
    words = [sys.executable, "main.py", "serve", "--host", "0.0.0.0", "--port", str(free_port())]
    words += ["--conf", "tokens", str(tmp_path / "tokens.json")]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert "tokens create" in done.stderr
    assert "--open" in done.stderr


@pytest.mark.orthanc
def test_the_viewers_way_stores_and_finds_in_an_archive_and_leads_nowhere_else(orthanc, server, healthy_scan, tmp_path):
    series = write_series(tmp_path / "series", read_volume(healthy_scan), plane="axial", seed=921)
    one = series.files[0].read_bytes()
    body = b"--x\r\nContent-Type: application/dicom\r\n\r\n" + one + b"\r\n--x--\r\n"
    kind = 'multipart/related; type="application/dicom"'
    head = {"Content-Type": f"{kind}; boundary=x", "Accept": "application/dicom+json"}
    stored = requests.post(f"{server.url}/proxy/dicom/stow/studies", data=body, headers=head, timeout=120)
    assert stored.status_code == 200, stored.text
    found = server.get(f"/proxy/dicom/qido/studies?StudyInstanceUID={series.study_uid}")
    assert [study["0020000D"]["Value"] for study in found.json()] == [[series.study_uid]]
    accept = {"Accept": f"{kind}; transfer-syntax=*"}
    whole = server.get(f"/proxy/dicom/wado/studies/{series.study_uid}", headers=accept)
    assert one[-10_000:] in whole.content
    assert requests.get(f"{orthanc.url}/system", timeout=60).status_code == 200
    for path in (
        "..%2fsystem",
        "%2e%2e/system",
        "..%5csystem",
        "wado/..%2f..%2fsystem",
        "%252e%252e/system",
        "/system",
    ):
        answer = server.get(f"/proxy/dicom/{path}")
        assert answer.status_code in {400, 404}, path
        assert "DicomAet" not in answer.text
