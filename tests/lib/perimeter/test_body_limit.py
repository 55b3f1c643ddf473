"""What is too large for the disk is refused before it is taken."""

import asyncio
from types import SimpleNamespace

import pytest

from lib.perimeter import BodyLimit, body_limit

MIB = 2**20


def asked(method, path, length=None, pieces=()):
    """Status of the answer, and how many bytes the server behind it was given."""
    waiting = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]
    waiting.append({"type": "http.request", "body": b"", "more_body": False})
    sent, read = [], []

    async def receive():
        return waiting.pop(0)

    async def send(message):
        sent.append(message)

    async def server(scope, receive, send):
        while True:
            message = await receive()
            read.append(len(message["body"]))
            if not message["more_body"]:
                break
        await send({"type": "http.response.start", "status": 200, "headers": []})

    headers = [] if length is None else [(b"content-length", str(length).encode())]
    scope = {"type": "http", "method": method, "path": path, "headers": headers, "query_string": b""}
    try:
        asyncio.run(BodyLimit(server)(scope, receive, send))
    except body_limit.HTTPException as error:
        return error.status_code, sum(read)
    return sent[0]["status"], sum(read)


@pytest.fixture
def free(monkeypatch):
    """Room on every disk, in MiB; folders that were looked at."""
    looked = SimpleNamespace(mib=0, at=[])

    def usage(folder):
        looked.at.append(folder)
        return SimpleNamespace(free=looked.mib * MIB)

    monkeypatch.setattr(body_limit.shutil, "disk_usage", usage)
    return looked


@pytest.mark.parametrize(("mib", "status"), [(300, 507), (363, 507), (364, 200)])
def test_an_upload_needs_three_times_its_size_and_a_reserve(free, mib, status, tmp_path, monkeypatch):
    monkeypatch.setattr(body_limit.settings, "MONAI_LABEL_STUDIES", str(tmp_path))
    free.mib = mib
    assert asked("PUT", "/datastore/image", 100 * MIB) == (status, 0)
    assert tmp_path in free.at or status == 507


def test_an_upload_that_does_not_say_its_length_is_stopped_when_the_disk_becomes_full(free):
    free.mib = 200
    status, read = asked("PUT", "/datastore/image", pieces=[b"x" * MIB] * 100)
    assert status == 507
    assert read < 70 * MIB
    free.mib = 1000
    assert asked("PUT", "/datastore/image", pieces=[b"x" * MIB] * 100) == (200, 100 * MIB)


def test_small_requests_are_taken_while_the_disk_is_nearly_full(free):
    free.mib = 1
    assert asked("PUT", "/datastore/image", 8 * MIB)[0] == 200
    assert asked("PUT", "/datastore/image/info", MIB)[0] == 200
    assert free.at == []


@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE"])
def test_a_length_that_a_client_repeats_without_a_body_is_no_body(method):
    assert asked(method, "/datastore/label", 500 * MIB) == (200, 0)
    assert asked(method, "/datastore/label", 500 * MIB, [b"x" * MIB, b"x"])[0] == 413
    assert asked("POST", "/anomaly/jobs", 500 * MIB) == (413, 0)


@pytest.mark.parametrize("path", ["/anomaly/reviews/x", "/anomaly/jobs", "/anomaly/dicom/1.2"])
def test_json_is_bounded_here_and_nowhere_else(path):
    assert asked("PUT", path, pieces=[b"x" * (MIB // 2)] * 2) == (200, MIB)
    assert asked("PUT", path, pieces=[b"x" * (MIB // 2)] * 3) == (413, MIB)
