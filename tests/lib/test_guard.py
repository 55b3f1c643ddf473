import asyncio

from lib.endpoints.guard import Guard
from lib.errors import ServerBusy, UnknownJob


def answer_to(error):
    """Status and headers that a client gets when an endpoint raises ``error``."""

    async def endpoint(scope, receive, send):
        raise error

    return answer_of(endpoint)


def answer_of(endpoint, path="/anomaly/jobs"):
    sent = []

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "path": path, "query_string": b"", "method": "POST", "headers": []}
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
