"""Known holes of the stock server, tried through HTTP on that server with this app: each is refused, with a reason."""

import io
import json
import socket
import tarfile
import zipfile
from pathlib import Path

import pytest
import requests

from tests.lib.conftest import MODEL
from tests.server_fixture import ROOT, copy_studies, make_app, running_server

FOREIGN = {"Origin": "http://evil.example"}
NAMED = "http://viewer.example:3000"
SHIPPED = ROOT / "model_weights" / "intensity_flair"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("perimeter")


@pytest.fixture(scope="module")
def server(place, studies_dir):
    """A server of its own with a small limit for uploads, a named origin, and folders that can be looked into."""
    (place / "app").mkdir()
    (place / "tmp").mkdir()
    app = make_app(place / "app", {"one": MODEL})
    studies = copy_studies(studies_dir, place / "studies")
    env = {
        "MONAI_LABEL_SESSION_PATH": str(place / "sessions"),
        "TMPDIR": str(place / "tmp"),
    }
    conf = {"models": "all", "max_upload_mb": "4", "audit": "off", "cors_origins": NAMED}
    with running_server(studies, app=app, env=env, conf=conf, fake_pipeline=True, cwd=place) as running:
        yield running


@pytest.fixture
def untouched(server, place):
    """After a refusal nothing of what was sent is on the disk, and the server answers."""

    def look():
        skipped = {"app.log", "server"}
        return {
            path
            for name in ("studies", "sessions", "tmp", "app/model", "app/model_weights")
            for path in (place / name).rglob("*")
            if path.is_file() and path.name not in skipped
        }

    before = look()
    yield
    assert look() == before
    assert server.get("/info/").status_code == 200


def refused(answer, status, words=""):
    assert answer.status_code == status, answer.text[:300]
    assert words in answer.json()["detail"]


def zipped(files):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return packed.getvalue()


def model_archive(**changed):
    """The shipped model as an archive; ``changed``: files to put in instead or besides, None to leave out."""
    files = {path.name: path.read_bytes() for path in SHIPPED.iterdir()} | changed
    return zipped({name: content for name, content in files.items() if content is not None})


def raw(server, head, body=b""):
    """The status line of a request that no library would send."""
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=120) as line:
        line.sendall(head.replace("\n", "\r\n").encode("latin-1") + b"\r\n" + body)
        return line.recv(65536).decode("latin-1")


def test_a_body_with_two_lengths_hides_no_second_request(server, untouched):
    """A proxy that goes by one of them passes on what the server would take for a request of its own."""
    hidden = b"0\r\n\r\nGET /info/ HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    host, port = server.url.removeprefix("http://").split(":")
    head = f"POST /anomaly/login HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(hidden)}\r\n"
    with socket.create_connection((host, int(port)), timeout=120) as line:
        line.sendall(head.encode() + b"Transfer-Encoding: chunked\r\n\r\n" + hidden)
        told = b""
        while piece := line.recv(65536):
            told += piece
    assert told.startswith(b"HTTP/1.1 400")
    assert told.count(b"HTTP/1.1 ") == 1


# Where a request comes from


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/activelearning/random"), ("PUT", "/datastore/image?image=x"), ("DELETE", "/datastore/image?id=x"),
     ("POST", "/infer/one?image=ixi_lesion"), ("POST", "/train/ddpm"), ("PUT", "/session/")],
)  # fmt: skip
def test_a_foreign_page_cannot_use_the_open_server_of_its_reader(server, untouched, method, path):
    for headers in (FOREIGN, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"}):
        refused(requests.request(method, server.url + path, headers=headers, timeout=120), 403, "another origin")


def test_a_foreign_page_may_not_read_and_the_named_one_may(server):
    assert "access-control-allow-origin" not in server.get("/info/", headers=FOREIGN).headers
    answer = server.get("/info/", headers={"Origin": NAMED})
    assert answer.headers["access-control-allow-origin"] == NAMED
    ask = {"Access-Control-Request-Method": "POST"}
    assert requests.options(f"{server.url}/infer/one", headers={**FOREIGN, **ask}, timeout=120).status_code == 400
    assert requests.options(f"{server.url}/infer/one", headers={"Origin": NAMED, **ask}, timeout=120).status_code == 200
    assert requests.post(f"{server.url}/activelearning/first", headers={"Origin": NAMED}, timeout=90).status_code == 200


_ANSWERS = [
    "/info/", "/", "/docs", "/nothing", "/ohif/", "/anomaly/", "/openapi.json", "/datastore/image?image=ixi_lesion",
    "/datastore/image?image=../x", "/static/favicon.ico",
]  # fmt: skip


@pytest.mark.parametrize("path", _ANSWERS)
def test_every_answer_tells_the_browser_what_it_may_not_do(server, path):
    said = server.get(path, headers={"Sec-Fetch-Site": "none"}).headers
    assert said["x-content-type-options"] == "nosniff"
    assert "frame-ancestors" in said["content-security-policy"]
    # OHIF's reader of segmentations needs it; a script from elsewhere is loaded there neither.
    assert ("unsafe-eval" in said["content-security-policy"]) == (path == "/ohif/")
    assert "http:" not in said["content-security-policy"].partition("connect-src")[0]
    for name in ("referrer-policy", "permissions-policy", "cross-origin-opener-policy", "cross-origin-resource-policy"):
        assert name in said
    assert "strict-transport-security" not in said


@pytest.mark.parametrize("path", ["/", "/docs", "/logs/"])
def test_no_page_takes_a_script_from_elsewhere(server, path):
    answer = server.get(path)
    assert answer.status_code == 200
    assert "//cdn" not in answer.text
    assert "googleapis" not in answer.text
    assert '<script src="http' not in answer.text


# Sizes


def test_a_body_that_says_it_is_too_large_is_refused_before_it_is_sent(server, untouched):
    head = "PUT /datastore/image?image=x HTTP/1.1\nHost: 127.0.0.1\nContent-Type: multipart/form-data; boundary=x\n"
    assert raw(server, f"{head}Content-Length: {2**40}\nConnection: close\n").startswith("HTTP/1.1 413")
    assert raw(server, f"{head}Content-Length: -5\n").startswith("HTTP/1.1 400")


def test_a_body_that_comes_in_pieces_is_counted(server, untouched):
    head = {"Content-Type": "multipart/form-data; boundary=x"}
    start = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.nii.gz"\r\n\r\n'
    pieces = [start, *[b"x" * 2**16 for _ in range(100)]]
    refused(
        requests.put(f"{server.url}/datastore/image?image=y", data=iter(pieces), headers=head, timeout=120),
        413,
        "at most 4 MiB",
    )


@pytest.mark.parametrize("path", ["/activelearning/first", "/train/ddpm", "/batch/infer/one", "/anomaly/jobs"])
def test_json_has_a_smaller_limit(server, untouched, path):
    text = json.dumps({"x": "y" * 2**20})
    refused(requests.post(server.url + path, data=text, timeout=120), 413, "at most 1 MiB")


def test_addresses_headers_and_forms_have_limits(server):
    refused(server.get("/info/?" + "a=1&" * 200), 400, "at most 100 parameters")
    refused(server.get("/info/?a=" + "x" * 20000), 414)
    refused(server.get("/" + "x" * 5000), 414)
    refused(server.get("/info/", headers={f"x-{n}": "1" for n in range(150)}), 431)
    fields = {f"f{n}": (None, "1") for n in range(1500)}
    refused(requests.put(f"{server.url}/datastore/image", files=fields, timeout=120), 400, "Too many fields")
    files = [("files", (f"{n}.dcm", b"x")) for n in range(1500)]
    refused(requests.put(f"{server.url}/session/", files=files, timeout=60), 400, "Too many files")


# Names, paths and parameters


@pytest.mark.parametrize("name", ["../../evil.nii.gz", "/etc/evil.nii.gz", "..\\evil.nii.gz", "a\0b.nii.gz", "x" * 400])
def test_the_clients_file_name_never_becomes_a_path(server, place, name, lesion_scan):
    content = Path(lesion_scan).read_bytes()
    requests.put(f"{server.url}/datastore/image", files={"file": (name, content)}, timeout=60)
    requests.put(f"{server.url}/session/", files={"files": (name, content)}, timeout=60)
    assert not list(place.parent.glob("evil*"))
    assert not Path("/etc/evil.nii.gz").exists()
    assert [path for path in place.rglob("*evil*") if path.parent not in {place / "studies"} and "sessions" not in
            path.parts] == []  # fmt: skip


def test_an_ending_that_no_file_may_have_is_no_error_of_the_server(server, untouched, lesion_scan):
    head = {"Content-Type": "multipart/form-data; boundary=x"}
    part = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.b\0c"\r\n\r\nno scan\r\n--x--\r\n'
    assert requests.post(f"{server.url}/infer/one", data=part, headers=head, timeout=60).status_code == 400


def test_a_refused_upload_leaves_no_scan_in_the_temporary_folder(server, untouched):
    refused(requests.put(f"{server.url}/datastore/image?image=x", files={"file": ("x.pdf", b"%PDF")}, timeout=120), 400)
    label = {"label": ("x.nii.gz", b"no label")}
    assert requests.put(f"{server.url}/datastore/label?image=ixi_lesion", files=label, timeout=120).status_code == 400
    assert requests.put(f"{server.url}/datastore/label?image=nobody", files=label, timeout=120).status_code == 404
    scan = {"file": ("x.svs", b"x" * 1000)}
    for path in ("/infer/wsi/one", "/infer/wsi_v2/one"):
        refused(requests.post(f"{server.url}{path}?image=ixi_lesion", files=scan, timeout=120), 400, "whole-slide")


@pytest.mark.parametrize("key", ["anomaly", "review", "lease", "evaluation", "replaced_id", "replaced_by_hand"])
def test_findings_and_reviews_cannot_be_forged_as_information(server, key):
    before = server.get("/datastore/image/info?image=ixi_lesion").json()
    forged = json.dumps({key: {"signed": {"reader": "somebody"}}})
    answer = requests.put(f"{server.url}/datastore/image/info?image=ixi_lesion", data={"info": forged}, timeout=120)
    refused(answer, 400, key)
    scan = {"file": ("x.nii.gz", b"x")}
    refused(requests.put(f"{server.url}/datastore/image?image=y", files=scan, data={"params": forged}, timeout=90), 400)
    assert server.get("/datastore/image/info?image=ixi_lesion").json() == before


@pytest.mark.parametrize("info", ["[1]", "NaN", '{"a": NaN}', "{" * 5000, '"x"', '{"a": "\\ud800"}'])
def test_information_that_no_answer_could_hold_is_refused(server, info):
    for path in ("/datastore/image/info?image=ixi_lesion", "/datastore/label/info?label=ixi_lesion&tag=final"):
        refused(requests.put(server.url + path, data={"info": info}, timeout=120), 400)


def test_information_of_scans_and_labels_is_short(server, untouched, lesion_scan):
    long = json.dumps({"note": "x" * 65536})
    for path in ("/datastore/image/info?image=ixi_lesion", "/datastore/label/info?label=ixi_lesion&tag=final"):
        refused(requests.put(server.url + path, data={"info": long}, timeout=120), 400, "at most 65536 characters")
    label = {"label": ("x.nii.gz", Path(lesion_scan).read_bytes())}
    answer = requests.put(
        f"{server.url}/datastore/label?image=ixi_lesion", files=label, data={"params": long}, timeout=60
    )
    refused(answer, 400, "at most 65536 characters")


@pytest.mark.parametrize("tag", ["../../x", "/tmp/x", "a/b", "", " ", "x" * 70, "a\0b"])
def test_a_tag_in_the_parameters_never_becomes_a_path(server, place, tag):
    if not tag.strip():
        tag = "../x"
    params = {"save_label": True, "label_tag": tag}
    for path in ("/infer/one?image=ixi_lesion",):
        refused(requests.post(server.url + path, data={"params": json.dumps(params)}, timeout=60), 400, "tag")
    refused(requests.post(f"{server.url}/batch/infer/one?run_sync=true", json=params, timeout=60), 400, "tag")


@pytest.mark.parametrize("tag", ["final", "final_anna"])
def test_an_analysis_gives_no_final_label_and_replaces_none(server, tag):
    params = {"save_label": True, "label_tag": tag}
    refused(
        requests.post(f"{server.url}/infer/one?image=ixi_lesion", data={"params": json.dumps(params)}, timeout=60),
        400,
        "submitted by a person",
    )
    refused(requests.post(f"{server.url}/batch/infer/one?run_sync=true", json=params, timeout=60), 400, "by a person")
    job = {"image": "ixi_lesion", "model": "one", "params": params}
    refused(requests.post(f"{server.url}/anomaly/jobs", json=job, timeout=60), 400, "by a person")


def test_paths_in_parameters_are_not_opened(server, lesion_scan):
    elsewhere = str(Path(lesion_scan).resolve())
    for key in ("image", "image_path", "session", "files", "model", "label"):
        answer = requests.post(f"{server.url}/infer/one", data={"params": json.dumps({key: elsewhere})}, timeout=60)
        refused(answer, 400, "expected an image id")
    for key in ("model", "image", "files", "images"):
        answer = requests.post(f"{server.url}/batch/infer/one?run_sync=true", json={key: "../../etc"}, timeout=120)
        assert answer.status_code == 200
        assert set(answer.json()) == set(server.get("/datastore/?output=all").json()["objects"])


@pytest.mark.parametrize("params", [
    {"device": "/dev/sda"}, {"device": "cuda:99"}, {"result_extension": "/../../x"}, {"result_extension": ".sh"},
    {"result_extension": ["x"]}, {"device": {"a": 1}},
])  # fmt: skip
def test_devices_and_endings_are_taken_from_a_list(server, untouched, params):
    answer = requests.post(f"{server.url}/infer/one?image=ixi_lesion", data={"params": json.dumps(params)}, timeout=60)
    assert answer.status_code == 400, answer.text
    assert "expected" in answer.json()["detail"]


@pytest.mark.parametrize("params", [{"name": "../../x"}, {"model_filename": "/tmp/x.pt"}, {"val_ds": "/etc/passwd"},
                                    {"train_ds": "/etc/passwd"}, {"device": "/dev/sda"}])  # fmt: skip
def test_a_training_is_not_started_with_paths(server, untouched, params):
    answer = requests.post(f"{server.url}/train/ddpm", json=params, timeout=60)
    refused(answer, 404, "no trainer")


@pytest.mark.parametrize("path", [
    "/ohif/..%2f..%2f..%2fconfig.py", "/ohif/%2e%2e/%2e%2e/config.py", "/ohif/%00", "/ohif//etc/passwd",
    "/ohif/" + "a" * 3000, "/ohif/assets/..%5c..%5cx.js", "/static/..%2f..%2fapp.py", "/static/api/..%2fx",
    "/static/api/index.html", "/anomaly/assets/..%2f..%2fpage.py", "/ohif/" + "a/" * 1000 + "x.js",
])  # fmt: skip
def test_no_file_outside_of_the_viewers_is_handed_out(server, path):
    assert raw(server, f"GET {path} HTTP/1.1\nHost: 127.0.0.1\nConnection: close\n").split()[1] in {"404", "400", "414"}


def test_logs_are_text_of_limited_length(server):
    answer = server.get("/logs/?lines=3&html=true")
    assert answer.headers["content-type"].startswith("text/plain")
    assert len(answer.text.splitlines()) <= 3
    assert len(server.get("/logs/?lines=0").text.splitlines()) <= 1
    assert len(server.get("/logs/?lines=-5").text.splitlines()) <= 1
    assert server.get("/logs/gpu").status_code in {200, 404, 503}


def test_the_dataset_is_refused_without_labels_and_leaves_nothing(server, untouched):
    for path in ("/datastore/dataset?limit_cases=-1", "/datastore/dataset?limit_cases=0"):
        refused(server.get(path), 400)
    assert server.get("/datastore/dataset").status_code in {200, 404}
    assert requests.head(f"{server.url}/datastore/image?image=ixi_lesion&check_sum=X:1", timeout=120).status_code == 400


# Sessions


def bombs():
    deep = io.BytesIO()
    with tarfile.open(fileobj=deep, mode="w:gz") as archive:
        link = tarfile.TarInfo("x")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    return {
        "a bomb": zipped({"x.dcm": b"\0" * 100 * 2**20}),
        "nested": zipped({"x.zip": zipped({"y.dcm": b"x"})}),
        "leads out": zipped({"../../evil.dcm": b"x"}),
        "a link": deep.getvalue(),
        "too deep": zipped({"a/" * 30 + "x.dcm": b"x"}),
        "empty": zipped({}),
        "many files": zipped({f"{n}": b"" for n in range(20_500)}),
        "no archive": b"PK no zip",
        "a file and a folder": zipped({"a": b"x", "a/b": b"x"}),
        "names that are none": zipped({"é.dcm": b"x"}).replace("é".encode(), b"\xff\xfe"),
    }


@pytest.mark.parametrize("kind", bombs())
def test_a_bad_archive_leaves_nothing_on_the_disk(server, untouched, kind):
    answer = requests.put(
        f"{server.url}/session/?uncompress=true", files={"files": ("scan.zip", bombs()[kind])}, timeout=60
    )
    assert answer.status_code in {400, 413}, answer.text
    assert "expected" in answer.json()["detail"]


def test_an_archive_of_a_scan_is_a_session_and_says_nothing_of_the_servers_folders(server, place, lesion_scan):
    archive = zipped({"scan.nii.gz": Path(lesion_scan).read_bytes()})
    answer = requests.put(f"{server.url}/session/?uncompress=true", files={"files": ("scan.zip", archive)}, timeout=60)
    assert answer.status_code == 200, answer.text
    assert str(place) not in answer.text
    session = answer.json()["session_id"]
    assert str(place) not in server.get(f"/session/{session}").text
    refused(server.get(f"/session/{session}?image=true"), 400, "folder of files")
    assert requests.delete(f"{server.url}/session/{session}", timeout=120).status_code == 200
    refused(server.get(f"/session/{session}"), 404)


# Models


def test_a_model_folder_is_installed_and_serves(server):
    answer = requests.put(f"{server.url}/model/guest_flair", files={"file": ("m.zip", model_archive())}, timeout=120)
    assert answer.status_code == 200, answer.text
    assert answer.json() | {"hash": ""} == {"model": "guest_flair", "version": "0001", "hash": "", "serving": True}
    assert "guest_flair" in server.get("/info/").json()["models"]


@pytest.mark.parametrize(
    ("file", "words"),
    [
        (("model.pt", b"\x80\x04"), "another kind of file"),
        (("model.zip", b"\x80\x04 pickle"), "archive"),
        (("model.zip", lambda: model_archive(**{"model.pt": b"x"})), "model.pt"),
        (("model.zip", lambda: model_archive(**{"model.safetensors": b"\x80\x04."})), "model.safetensors"),
        (("model.zip", lambda: model_archive(**{"calibration.json": None})), "calibration.json missing"),
        (("model.zip", lambda: model_archive(**{"card.md": b"changed"})), "card.md with sha256"),
        (("model.zip", lambda: model_archive(**{"../evil": b"x"})), "leads out"),
        (("model.zip", lambda: model_archive(**{"lib/__init__.py": b"x"})), "__init__.py"),
    ],
)
def test_what_is_no_safe_model_folder_is_refused_and_leaves_nothing(server, untouched, file, words):
    name, content = file
    content = content() if callable(content) else content
    answer = requests.put(f"{server.url}/model/evil", files={"file": (name, content)}, timeout=120)
    refused(answer, 400, words)


def test_names_of_models_are_names(server, untouched):
    for name in ("template", "brain_extraction", "..%2fx", "a b", ".x"):
        answer = requests.put(f"{server.url}/model/{name}", files={"file": ("m.zip", model_archive())}, timeout=120)
        assert answer.status_code in {400, 404, 405}, name
    packed = model_archive()
    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        inside = {f"guest #1/{name}": archive.read(name) for name in archive.namelist()}
    inside["guest #1/card.md"] = b"changed"
    answer = requests.put(f"{server.url}/model/evil", files={"file": ("m.zip", zipped(inside))}, timeout=120)
    refused(answer, 400, "card.md with sha256")
    for path in ("/model/one", "/model/guest_flair"):
        assert requests.delete(server.url + path, timeout=120).status_code == 403


def test_nothing_of_all_this_was_an_error_of_the_server(server):
    log = server.log.read_text()
    assert "Traceback" not in log
    assert "evil" not in log
