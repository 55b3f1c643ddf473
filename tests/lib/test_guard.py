import asyncio

import pytest
from monailabel.config import settings
from starlette.requests import ClientDisconnect

from lib.endpoints.guard import Guard
from lib.errors import ServerBusy, UnknownJob
from lib.perimeter import BodyLimit
from lib.perimeter.address import below_api
from lib.perimeter.body_limit import SMALL
from lib.perimeter.headers import policy_for


def answer_to(error):
    """Status and headers that a client gets when an endpoint raises ``error``."""

    async def endpoint(scope, receive, send):
        raise error

    return answer_of(endpoint)


def answer_of(endpoint, path="/anomaly/jobs", query=b"", root=""):
    sent = []

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "path": path, "root_path": root, "query_string": query, "method": "POST", "headers": []}
    asyncio.run(Guard(endpoint)(scope, None, send))
    return sent[0]["status"], {key.decode(): value.decode() for key, value in sent[0]["headers"]}


def test_a_busy_server_says_when_to_come_back():
    status, headers = answer_to(ServerBusy("200 jobs are waiting already", retry_after=41.6))
    assert status == 503
    assert headers["retry-after"] == "42"


def test_other_errors_do_not():
    status, headers = answer_to(UnknownJob("no job"))
    assert status == 404
    assert "retry-after" not in headers


def test_a_client_that_goes_away_is_no_error_of_the_server(caplog):
    """Anybody may begin to sign in and close the connection, again and again."""
    caplog.set_level("INFO")
    assert answer_to(ClientDisconnect())[0] == 400
    assert [record.levelname for record in caplog.records] == ["INFO"]
    assert "line" not in caplog.text


def test_an_unexpected_error_is_logged_with_its_place_and_without_its_text(caplog):
    status, _ = answer_to(OSError(36, "File name too long", "/scans/DOE^JANE.nii.gz"))
    assert status == 500
    assert "test_guard.py" in caplog.text
    assert "OSError" in caplog.text
    assert "DOE" not in caplog.text


def test_no_answer_about_a_scan_is_kept_by_a_browser_unless_it_says_so_itself():
    def endpoint(*headers):
        async def answering(scope, receive, send):
            await send({"type": "http.response.start", "status": 200, "headers": list(headers)})
            await send({"type": "http.response.body", "body": b""})

        return answering

    for path in ("/datastore/label", "/infer/one", "/anomaly/healthy"):
        assert answer_of(endpoint(), path)[1]["cache-control"] == "no-store"
    assert answer_of(endpoint((b"cache-control", b"no-cache")), "/anomaly/")[1] == {"cache-control": "no-cache"}
    assert "cache-control" not in answer_of(endpoint(), "/ohif/app.js")[1]
    assert answer_to(UnknownJob("no job"))[1]["cache-control"] == "no-store"


@pytest.mark.parametrize(("api", "root"), [("", ""), ("/api", ""), ("/api/v1", "/label"), ("", "/label")])
def test_ids_are_looked_at_wherever_the_api_is_mounted(monkeypatch, api, root):
    monkeypatch.setattr(settings, "MONAI_LABEL_API_STR", api)

    async def reached(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})

    assert answer_of(reached, f"{root}{api}/datastore/image", b"image=..%2F..%2Fx", root)[0] == 400
    assert answer_of(reached, f"{root}{api}/session/..x", root=root)[0] == 400
    status, headers = answer_of(reached, f"{root}{api}/datastore/image", b"image=x", root)
    assert (status, headers["cache-control"]) == (200, "no-store")


def test_a_path_that_only_begins_like_the_api_is_not_in_it(monkeypatch):
    monkeypatch.setattr(settings, "MONAI_LABEL_API_STR", "/api")
    assert below_api({"path": "/apid/x"}) == "/apid/x"
    assert below_api({"path": "/root/api/x", "root_path": "/root"}) == "/x"
    assert BodyLimit(None)._limit({"path": "/api/datastore/image", "method": "PUT"}) > SMALL
    assert "worker-src" in policy_for({"path": "/api/ohif/", "headers": []})
