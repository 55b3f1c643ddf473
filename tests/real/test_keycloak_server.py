"""The stock server with MONAI Label's login switched on, and a Keycloak realm made here: people use accounts."""

import pytest
import requests
from cryptography.hazmat.primitives.asymmetric import rsa

from monailabel_app.access.tokens import TokenStore
from tests.lib.conftest import MODEL
from tests.lib.realm import Realm
from tests.server_fixture import copy_studies, make_app, running_server

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def realm():
    made = Realm(rsa.generate_private_key(public_exponent=65537, key_size=2048))
    yield made
    made.close()


@pytest.fixture(scope="module")
def server(realm, studies_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("keycloak")
    (folder / "app").mkdir()
    app = make_app(folder / "app", {"one": MODEL})
    studies = copy_studies(studies_dir, folder / "studies")
    env = {"MONAI_LABEL_AUTH_ENABLE": "true", "MONAI_LABEL_AUTH_REALM_URI": realm.url}
    # The realm is a thread of these tests: where the machine stands still for a moment, it is slow and not away.
    env["MONAI_LABEL_AUTH_TIMEOUT"] = "120"
    with running_server(studies, app=app, env=env, fake_pipeline=True, wait_s=600) as running:
        yield running


def test_slicers_client_signs_in_with_an_account(server, tmp_path):
    from monailabel.client import MONAILabelClient

    client = MONAILabelClient(server.url, str(tmp_path))
    assert client.auth_enabled()
    assert not client.auth_valid_token()
    with pytest.raises(Exception, match="401"):
        client.auth_token("anna", "wrong")
    client.update_auth(client.auth_token("anna", "right"))
    assert client.auth_valid_token()
    assert "one" in client.info()["models"]
    _, params = client.infer("one", "ixi_lesion", {})
    assert params["lesion_count"] == 1


def test_roles_of_the_realm_are_kept_by_monai_labels_endpoints_and_ours(server, realm):
    def status(method, path, *roles):
        token = realm.token(realm_access={"roles": list(roles)})
        answer = requests.request(method, server.url + path, headers={"Authorization": f"Bearer {token}"}, timeout=60)
        return answer.status_code

    user, annotator, admin = "monailabel-user", "monailabel-annotator", "monailabel-admin"
    assert status("GET", "/datastore/", user) == 200
    assert status("GET", "/datastore/", "offline") == 403
    # An endpoint of MONAI Label's own that asks for an annotator, and one of ours.
    assert status("PUT", "/datastore/label/info?label=x&tag=final", user) == 403
    assert status("PUT", "/datastore/label/info?label=x&tag=final", user, annotator) not in {401, 403}
    assert status("DELETE", "/anomaly/reviews/ixi_lesion", user) == 403
    assert status("GET", "/logs/?lines=1", user, annotator) == 403
    assert status("GET", "/logs/?lines=1", admin) == 200
    assert status("GET", "/info/", admin) == 200


def test_a_session_needs_no_header(server):
    browser = requests.Session()
    form = {"username": "anna", "password": "right"}
    assert browser.post(f"{server.url}/anomaly/login", data=form, timeout=60).json()["role"] == "reader"
    for path in ("/info/", "/datastore/", "/openapi.json", "/anomaly/studies", "/anomaly/page.json"):
        assert browser.get(server.url + path, timeout=60).status_code == 200, path
    assert browser.post(f"{server.url}/anomaly/logout", timeout=60).status_code == 204
    assert browser.get(f"{server.url}/info/", timeout=60).status_code == 401


def test_static_tokens_count_beside_accounts(server):
    app = server.studies.replace("/studies", "/app")
    secret, _ = TokenStore(f"{app}/model/tokens.json").create("ward", "reader")
    headers = {"Authorization": f"Bearer {secret}"}
    assert requests.get(f"{server.url}/info/", headers=headers, timeout=60).status_code == 200
    assert requests.delete(f"{server.url}/train/", headers=headers, timeout=60).status_code == 403
