"""Who is nobody keeps no request open: a body that never comes is not waited for, and a sign-in only for a while."""

import asyncio

import pytest

from lib.endpoints import login
from tests.lib.access_clients import a_store, an_app, the_server  # noqa: F401

FORM = "application/x-www-form-urlencoded"


def status_of(server, method, path, kind):
    """Status and text of the answer to a stranger who tells of a body and sends none of it."""
    headers = {"host": "10.1.2.3:8000", "content-type": kind, "content-length": "10"}
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http",
        "path": path, "raw_path": path.encode(), "query_string": b"", "root_path": "",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        "client": ("10.9.9.9", 50000), "server": ("10.1.2.3", 8000),
    }  # fmt: skip
    sent = []

    async def never():
        await asyncio.Event().wait()

    async def send(message):
        sent.append(message)

    asyncio.run(asyncio.wait_for(server(scope, never, send), 5))
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:]).decode()


@pytest.mark.parametrize(("method", "path"), [("POST", "/anomaly/jobs"), ("PUT", "/session/"), ("PUT", "/anomaly/x")])
@pytest.mark.parametrize("kind", ["application/json", "text/plain", "multipart/form-data; boundary=x"])
def test_a_stranger_is_refused_before_a_body_comes(served, method, path, kind):
    assert status_of(served.local.app, method, path, kind)[0] == 401


@pytest.mark.parametrize("kind", [FORM, "application/json"])
@pytest.mark.parametrize("path", ["/anomaly/login", "/auth/token"])
def test_a_sign_in_is_waited_for_only_so_long(served, monkeypatch, path, kind):
    assert login._FORM_SECONDS <= 20
    monkeypatch.setattr(login, "_FORM_SECONDS", 0.2)
    status, text = status_of(served.local.app, "POST", path, kind)
    assert status == 400
    assert "did not come whole in time" in text
