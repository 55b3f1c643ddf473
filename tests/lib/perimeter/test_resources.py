"""One client cannot hold the server's connections, and a form not its memory."""

import contextlib
import socket
import threading
import time

import pytest
import requests
import uvicorn
from starlette.formparsers import MultiPartParser
from starlette.requests import Request
from uvicorn.protocols.http.h11_impl import H11Protocol

from lib.perimeter import resources


async def app(scope, receive, send):
    """Answers at once without reading the body; ``/slow`` after it was read."""
    if scope["type"] != "http":
        return
    if scope["path"] == "/slow":
        while (await receive()).get("more_body"):
            pass
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


@pytest.fixture
def port(monkeypatch):
    monkeypatch.setattr(resources, "WAIT_SECONDS", 1.0)
    monkeypatch.setattr(resources, "LOOK_SECONDS", 0.2)
    monkeypatch.setattr(H11Protocol, "connection_made", H11Protocol.connection_made)
    monkeypatch.setattr(H11Protocol, resources._MARK, False, raising=False)
    resources.watch(H11Protocol)
    listening = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, http="h11", log_level="warning", timeout_keep_alive=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.02)
    yield listening.getsockname()[1]
    server.should_exit = True
    thread.join(120)


def is_closed(connection, seconds=120):
    """Whether the server ends a connection in that time, whatever it sends before."""
    connection.settimeout(seconds)
    try:
        while connection.recv(4096):
            pass
    except ConnectionError:
        return True
    except TimeoutError:
        return False
    return True


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"GET / HTT",
        # answered, and the body never comes
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\nx",
        # a second head that is not ended
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\nG",
    ],
)
def test_a_connection_that_asks_nothing_is_closed(port, sent):
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(sent)
        assert is_closed(connection)


def test_a_request_that_takes_long_is_not_cut(port):
    def slowly():
        for _ in range(10):
            time.sleep(0.3)
            yield b"x"

    assert requests.post(f"http://127.0.0.1:{port}/slow", data=slowly(), timeout=120).text == "ok"
    with requests.Session() as session, contextlib.suppress(requests.ConnectionError):
        for _ in range(5):
            assert session.get(f"http://127.0.0.1:{port}/", timeout=120).text == "ok"


def test_a_form_takes_little_memory(monkeypatch):
    monkeypatch.setattr(MultiPartParser, "spool_max_size", MultiPartParser.spool_max_size)
    monkeypatch.setitem(Request.form.__kwdefaults__, "max_fields", 1000)
    resources.limit_forms()
    assert Request.form.__kwdefaults__["max_fields"] == resources.MOST_FIELDS
    assert MultiPartParser.spool_max_size == resources.IN_MEMORY


def test_as_many_files_may_be_open_as_the_account_may_have():
    pytest.importorskip("resource")
    given = resources.resource.getrlimit(resources.resource.RLIMIT_NOFILE)
    unlimited = resources.resource.RLIM_INFINITY
    allowed = resources.MOST_OPEN if given[1] == unlimited else min(given[1], resources.MOST_OPEN)
    few = 256 if given[0] == unlimited else min(256, given[0])
    resources.resource.setrlimit(resources.resource.RLIMIT_NOFILE, (few, given[1]))
    try:
        resources.raise_open_files()
        assert resources.resource.getrlimit(resources.resource.RLIMIT_NOFILE)[0] == allowed
    finally:
        resources.resource.setrlimit(resources.resource.RLIMIT_NOFILE, given)
