"""A real server, started by the stock command, with tokens: MONAI Label's own client signs in, strangers do not."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import requests

from monailabel_app.access.tokens import TokenStore
from monailabel_app.client import AnomalyClient, AnomalyClientError
from tests.lib.conftest import MODEL
from tests.server_fixture import ROOT, copy_studies, make_app, running_server


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    store = TokenStore(tmp_path_factory.mktemp("tokens") / "tokens.json")
    return {role: store.create(f"the-{role}", role)[0] for role in ("reader", "admin", "monitor")} | {"": store.path}


@pytest.fixture(scope="module")
def server(tmp_path_factory, studies_dir, tokens):
    folder = tmp_path_factory.mktemp("access")
    (folder / "app").mkdir()
    app = make_app(folder / "app", {"one": MODEL})
    studies = copy_studies(studies_dir, folder / "studies")
    conf = {"models": "all", "tokens": str(tokens[""])}
    env = {"ANOMALY_INTERNAL_TOKEN": "x" * 40, "MONAI_LABEL_SESSION_PATH": str(folder / "sessions")}
    with running_server(studies, app=app, conf=conf, env=env, fake_pipeline=True, cwd=folder) as running:
        yield running


def test_slicers_client_signs_in_with_a_name_and_a_token(server, tokens, tmp_path):
    """The steps of 3D Slicer's module, with a client for every call: an upload leaves its headers behind in one."""
    from monailabel.client import MONAILabelClient

    stranger = MONAILabelClient(server.url, str(tmp_path))
    assert stranger.auth_enabled()
    assert not stranger.auth_valid_token()
    with pytest.raises(Exception, match="401"):
        stranger.info()
    with pytest.raises(Exception, match="401"):
        stranger.auth_token("the-reader", "wrong")

    def client(role="reader", given={}):  # noqa: B006  kept between the calls
        made = MONAILabelClient(server.url, str(tmp_path))
        if role not in given:
            given[role] = made.auth_token(f"the-{role}", tokens[role])
        made.update_auth(given[role])
        return made

    assert client().auth_valid_token()
    assert "one" in client().info()["models"]
    assert client().next_sample("first", {})["id"]
    _, params = client().infer("one", "ixi_lesion", {})
    assert params["lesion_count"] == 1
    with pytest.raises(Exception, match="403"):
        client().train_start("ddpm", {})
    scan = Path(server.studies) / "ixi_lesion.nii.gz"
    assert client().upload_image(str(scan), "sent")["image"] == "sent"
    session = client().create_session(str(scan))["session_id"]
    assert client().get_session(session)
    client().remove_session(session)
    mask, _ = client().infer("one", "sent", {})
    assert client().save_label("sent", mask, "final")["label"]


def test_one_client_for_everything_works_with_a_token_as_without(server, tokens, tmp_path):
    """MONAI Label's client sends the length and the kind of its last body along with what has none, or another."""
    from monailabel.client import MONAILabelClient

    client = MONAILabelClient(server.url, str(tmp_path))
    client.update_auth(client.auth_token("the-reader", tokens["reader"]))
    scan = str(Path(server.studies) / "ixi_lesion.nii.gz")
    for image in ("first", "second"):
        assert client.upload_image(scan, image)["image"] == image
        session = client.create_session(scan)["session_id"]
        mask, _ = client.infer("one", image, {"a setting": "x"})
        assert client.get_session(session)
        assert client.remove_session(session)
        assert client.create_session(scan)["session_id"] != session
        assert client.save_label(image, mask, {})
        assert client.next_sample("first", {})["id"]
    assert "second" in client.datastore()["objects"]


def test_this_apps_client_takes_a_token(server, tokens, monkeypatch):
    with pytest.raises(AnomalyClientError, match="ANOMALY_TOKEN") as refused:
        AnomalyClient(server.url).info()
    assert refused.value.status == 401
    monkeypatch.setenv("ANOMALY_TOKEN", tokens["reader"])
    assert len(list(AnomalyClient(server.url).studies())) >= 2
    with pytest.raises(AnomalyClientError, match="role admin") as forbidden:
        AnomalyClient(server.url)._ask("GET", "/logs/")
    assert forbidden.value.status == 403


def test_the_server_admits_itself_from_a_process_of_its_own(server, tokens):
    """As MONAI Label's sub-processes do: the address and the token come in the environment."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from lib.access import itself; "
        "print(itself.ask('/batch/infer/one?run_sync=true', {}).status_code)"
    )
    env = {**os.environ, "ANOMALY_INTERNAL_TOKEN": "x" * 40, "ANOMALY_SERVER_ADDRESS": server.url}
    words = [sys.executable, "-c", code, str(ROOT)]
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=600, check=True)
    assert done.stdout.split()[-1] == "200"
    env["ANOMALY_INTERNAL_TOKEN"] = "y" * 40
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=600, check=True)
    assert done.stdout.split()[-1] == "401"


def test_what_the_openapi_lists_is_closed_without_a_token(server):
    assert requests.get(server.url + "/openapi.json", timeout=120).status_code == 401
    for path in ("/info/", "/datastore/", "/logs/", "/anomaly/studies", "/proxy/dicom/qido/studies", "/static/ohif/"):
        assert requests.get(server.url + path, timeout=120).status_code == 401, path
    assert requests.put(server.url + "/datastore/image?image=x", files={"file": b"x"}, timeout=120).status_code == 401
    assert requests.get(server.url + "/anomaly/health", timeout=120).status_code in {200, 503}


def test_every_documented_address_refuses_a_stranger(server, tokens):
    described = requests.get(
        server.url + "/openapi.json", headers={"Authorization": f"Bearer {tokens['reader']}"}, timeout=120
    ).json()
    public = {"/auth/", "/auth/token", "/anomaly/login", "/anomaly/logout", "/anomaly/health"}
    asked = 0
    for path, methods in described["paths"].items():
        for method in methods:
            address = server.url + path.replace("{", "").replace("}", "")
            status = requests.request(method, address, timeout=120).status_code
            assert path in public or status == 401, f"{method} {path}"
            asked += 1
    assert asked > 50


def test_no_token_is_in_the_log(server, tokens):
    log = server.log.read_text(errors="replace")
    for role in ("reader", "admin", "monitor"):
        assert tokens[role] not in log
    assert "x" * 40 not in log
