"""Clients of one small server, from wherever they are to come."""

import pytest
from fastapi.testclient import TestClient

from monailabel_app.access.tokens import TokenStore
from tests.lib.results_app import client_of, small_app

HTML = {"Accept": "text/html,application/xhtml+xml"}


@pytest.fixture(name="app")
def an_app(tmp_path):
    return small_app(tmp_path)


@pytest.fixture(name="store")
def a_store(app):
    return TokenStore(f"{app.app_dir}/model/tokens.json")


@pytest.fixture(name="served")
def the_server(app, monkeypatch):
    """Clients of one server: ``served(host=..., address=...)`` asks for a host from an address."""
    local = client_of(app, monkeypatch)

    def client(host="10.1.2.3:8000", address="10.9.9.9", scheme="http", **options):
        return TestClient(
            local.app, base_url=f"{scheme}://{host}", client=(address, 50000), raise_server_exceptions=False,
            follow_redirects=False, **options,
        )  # fmt: skip

    client.local = local
    return client


def bearer(token):
    """The header of a token."""
    return {"Authorization": f"Bearer {token}"}


def signed_in(client, name, token, **form):
    """Sign a browser in; the answer, which leads on."""
    answer = client.post("/anomaly/login", data={"username": name, "password": token, **form}, headers=HTML)
    assert answer.status_code == 303, answer.text
    return answer
