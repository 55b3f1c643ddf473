"""The shipped nginx configuration in front of a real server: TLS, tokens, a large upload, the page."""

import os
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import requests

from monailabel_app.access.tokens import TokenStore, default_file
from tests.ports import free_port
from tests.real.faults import MODEL, few_models, wait_for
from tests.server_fixture import ROOT, start

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin") is None, reason="needs nginx"),
    pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl"),
]
SHIPPED = ROOT / "extras/deploy/nginx"
MEGABYTES = 100


def configure(folder: Path, port: int, behind: int) -> Path:
    """The shipped files with their places and ports changed, and what nginx needs around them."""
    for name in ("anomaly.conf", "anomaly_proxy.conf", "upstream_local.conf"):
        text = (SHIPPED / name).read_text().replace("/etc/nginx/", f"{folder}/")
        text = text.replace("listen 8443 ssl", f"listen 127.0.0.1:{port} ssl").replace(
            "127.0.0.1:8000", f"127.0.0.1:{behind}"
        )
        (folder / name.replace("upstream_local", "anomaly_upstream")).write_text(text)
    key = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    key += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", folder / "anomaly.key", "-out", folder / "anomaly.crt"]
    subprocess.run(key, check=True, capture_output=True)
    places = "".join(
        f"{kind}_temp_path {folder}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    main = folder / "nginx.conf"
    main.write_text(
        f"daemon off;\npid {folder}/nginx.pid;\nworker_processes 1;\nevents {{}}\n"
        f"http {{\n{places}include {folder}/anomaly.conf;\n}}\n"
    )
    return main


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    app = folder / "app"
    app.mkdir()
    few_models(app, MODEL)
    studies = folder / "studies"
    studies.mkdir()
    shutil.copy(ROOT / "tests/data/studies/ixi_lesion.nii.gz", studies / "head.nii.gz")
    store = TokenStore(default_file(app))
    reader, _ = store.create("dr-reader", "reader")
    admin, _ = store.create("chief", "admin")
    server, log, url = start(studies, app=app, conf={"models": "all", "auth": "token"}, env={"HOME": str(folder)})
    port = free_port()
    nginx = ["nginx", "-p", str(folder), "-c", str(configure(folder, port, int(url.rpartition(":")[2])))]
    path = {**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin"}
    tested = subprocess.run([*nginx, "-t"], env=path, capture_output=True, text=True)
    assert tested.returncode == 0, tested.stderr
    front = subprocess.Popen(nginx, env=path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    session = requests.Session()
    session.trust_env = False  # REQUESTS_CA_BUNDLE would win
    session.verify = str(folder / "anomaly.crt")
    address = f"https://127.0.0.1:{port}"

    def up():
        assert server.poll() is None, log.read_text(errors="replace")[-3000:]
        with suppress(requests.RequestException):
            assert front.poll() is None
            return session.get(f"{address}/anomaly/health", timeout=60).status_code == 200
        return False

    try:
        wait_for(up, "the server behind nginx")
        bearer = {role: {"Authorization": f"Bearer {token}"} for role, token in (("reader", reader), ("admin", admin))}
        yield SimpleNamespace(
            url=address, port=port, session=session, folder=folder, bearer=bearer, reader=reader, studies=studies
        )
    finally:
        for process in (front, server):
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(20)
            process.kill()
        log.unlink(missing_ok=True)


def test_nobody_passes_for_local_behind_the_proxy(site):
    for headers in ({}, {"Host": "127.0.0.1:8000"}, {"X-Forwarded-For": "127.0.0.1"}, {"Forwarded": "for=127.0.0.1"}):
        answer = site.session.get(f"{site.url}/info/", headers=headers, timeout=120)
        assert answer.status_code == 401, headers
    wrong = site.session.get(f"{site.url}/info/", headers={"Authorization": "Bearer anomaly_wrong"}, timeout=120)
    assert wrong.status_code == 401
    assert site.session.get(f"{site.url}/info/", headers=site.bearer["reader"], timeout=60).status_code == 200


def test_a_reader_may_read_and_not_remove(site):
    refused = site.session.delete(f"{site.url}/datastore/image?id=head", headers=site.bearer["reader"], timeout=120)
    assert refused.status_code == 403
    assert (site.studies / "head.nii.gz").is_file()


def test_only_tls_of_today_is_spoken(site):
    def spoken(version):
        command = ["openssl", "s_client", "-connect", f"127.0.0.1:{site.port}", version]
        return subprocess.run(command, input=b"", capture_output=True, timeout=120).returncode == 0

    assert spoken("-tls1_3")
    assert not spoken("-tls1_1")


def test_the_page_opens_after_signing_in_and_its_cookie_is_for_tls_only(site):
    browser = requests.Session()
    browser.trust_env, browser.verify = False, site.session.verify
    first = browser.get(f"{site.url}/anomaly/", headers={"Accept": "text/html"}, timeout=120)
    assert "/anomaly/login" in first.url
    form = {"username": "dr-reader", "password": site.reader, "next": "/anomaly/"}
    origin = {"Accept": "text/html", "Origin": site.url, "Sec-Fetch-Site": "same-origin"}
    page = browser.post(f"{site.url}/anomaly/login", data=form, headers=origin, timeout=120)
    assert page.status_code == 200
    assert page.url == f"{site.url}/anomaly/"
    cookie = next(iter(browser.cookies))
    assert cookie.secure
    assert cookie.has_nonstandard_attr("HttpOnly")
    assert page.headers["Strict-Transport-Security"]
    assert page.headers["X-Content-Type-Options"] == "nosniff"
    assert browser.get(f"{site.url}/anomaly/studies", timeout=60).status_code == 200
    elsewhere = {"Origin": "https://elsewhere.example", "Sec-Fetch-Site": "cross-site"}
    assert browser.post(f"{site.url}/anomaly/jobs", headers=elsewhere, json={}, timeout=120).status_code == 403


def test_a_scan_of_100_mb_arrives_whole_and_nginx_keeps_no_copy(site, tmp_path):
    import nibabel as nib

    shape = (400, 400, MEGABYTES * 2**20 // (400 * 400 * 2) + 1)
    voxels = np.random.default_rng(1).integers(0, 4000, shape, dtype=np.int16)
    path = tmp_path / "large.nii"
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), path)
    assert path.stat().st_size > MEGABYTES * 2**20
    with path.open("rb") as content:
        answer = site.session.put(
            f"{site.url}/datastore/image?image=large",
            files={"file": ("large.nii", content)},
            headers=site.bearer["reader"],
            timeout=900,
        )
    assert answer.status_code == 200, answer.text
    stored = next(site.studies.glob("large.nii*"))
    assert np.array_equal(np.asarray(nib.load(stored).dataobj), voxels)
    for kind in ("client_body", "proxy"):
        assert not [file for file in (site.folder / kind).rglob("*") if file.is_file()]


def test_an_analysis_answers_through_the_proxy(site):
    answer = site.session.post(
        f"{site.url}/infer/{MODEL}?image=head&output=json", headers=site.bearer["reader"], timeout=600
    )
    assert answer.status_code == 200, answer.text
    assert answer.json()["lesion_count"] >= 1


def test_figures_stay_inside(site):
    assert site.session.get(f"{site.url}/anomaly/metrics", headers=site.bearer["admin"], timeout=120).status_code == 404
