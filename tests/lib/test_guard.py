import asyncio

from lib.endpoints.guard import Guard
from lib.errors import ServerBusy, UnknownJob


def answer_to(error):
    """Status and headers that a client gets when an endpoint raises ``error``."""

    async def endpoint(scope, receive, send):
        raise error

    sent = []

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "path": "/anomaly/jobs", "query_string": b"", "method": "POST", "headers": []}
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
