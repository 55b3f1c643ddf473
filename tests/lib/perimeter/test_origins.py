"""Which pages may use the server."""

import pytest
from monailabel.config import settings
from pydantic import AnyHttpUrl
from starlette.datastructures import Headers

from lib.errors import InvalidRequest
from lib.perimeter.origins import is_allowed, is_own, named_origins, normalised, twins
from lib.perimeter.same_origin import permitted


@pytest.mark.parametrize(
    ("origin", "found"),
    [
        ("http://h:3000", ("http", "h", 3000)),
        ("http://H:3000/", ("http", "h", 3000)),
        ("https://h", ("https", "h", 443)),
        ("http://[::1]:80", ("http", "::1", 80)),
        ("null", None),
        ("", None),
        ("http://h/path", None),
        ("ftp://h", None),
        ("http://user@h", None),
        ("http://h:99999", None),
        ("http://", None),
        ("http://h:3000.evil.example", None),
    ],
)
def test_an_origin_is_scheme_host_and_port(origin, found):
    assert normalised(origin) == found


def test_a_named_origin_is_matched_although_the_settings_add_a_slash(monkeypatch):
    monkeypatch.setattr(settings, "MONAI_LABEL_CORS_ORIGINS", [AnyHttpUrl("http://h:3000")])
    assert str(settings.MONAI_LABEL_CORS_ORIGINS[0]).endswith("/")
    assert named_origins() == {("http", "h", 3000)}
    assert is_allowed("http://h:3000", "server:8000")
    for other in ("http://h:3001", "https://h:3000", "http://h", "http://h.evil.example:3000", "null"):
        assert not is_allowed(other, "server:8000")


def test_the_servers_own_pages_are_those_of_the_host_it_was_asked_for():
    assert is_own("http://a:8000", "a:8000")
    # A proxy that ends TLS asks by http for the same host.
    assert is_own("https://a", "a")
    assert not is_own("http://a:8001", "a:8000")
    assert not is_own("http://b:8000", "a:8000")
    assert not is_own("null", "a:8000")
    assert not is_own("http://a:8000", "")


def test_both_names_of_this_machine_are_one_server_at_one_port():
    assert is_own("http://localhost:8000", "127.0.0.1:8000")
    assert not is_own("http://localhost:9000", "127.0.0.1:8000")
    assert not is_own("http://localhost:8000", "a:8000")
    assert twins("127.0.0.1:8000", "http") == ("http://localhost:8000",)
    assert twins("a:8000", "http") == ()


def test_origins_named_at_the_start_are_matched_and_a_star_is_refused(monkeypatch):
    monkeypatch.setattr(settings, "MONAI_LABEL_APP_CONF", {"cors_origins": "http://a:3000, https://b"})
    assert named_origins() == {("http", "a", 3000), ("https", "b", 443)}
    for star in ("*", "a:3000", "http://a:3000/viewer"):
        monkeypatch.setattr(settings, "MONAI_LABEL_APP_CONF", {"cors_origins": star})
        with pytest.raises(InvalidRequest, match="cors_origins"):
            named_origins()


_CROSS = {"host": "a:8000", "sec-fetch-site": "cross-site"}


@pytest.mark.parametrize(
    ("method", "headers", "passes"),
    [
        ("POST", {"host": "a:8000"}, True),
        ("POST", {"host": "a:8000", "origin": "http://a:8000"}, True),
        ("POST", {"host": "a:8000", "origin": "http://evil.example"}, False),
        ("PUT", {"host": "a:8000", "origin": "null"}, False),
        ("DELETE", _CROSS, False),
        ("POST", {"host": "a:8000", "sec-fetch-site": "same-site"}, False),
        ("POST", {"host": "proxied", "sec-fetch-site": "same-origin", "origin": "https://public.example"}, True),
        ("GET", {"host": "a:8000", "origin": "http://evil.example"}, True),
        ("GET", {**_CROSS, "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}, True),
        ("GET", {**_CROSS, "sec-fetch-mode": "navigate", "sec-fetch-dest": "iframe"}, False),
        ("GET", {**_CROSS, "sec-fetch-mode": "no-cors", "sec-fetch-dest": "image"}, False),
        ("GET", {"host": "a:8000", "sec-fetch-site": "none"}, True),
    ],
)
def test_requests_of_foreign_pages_are_told_from_those_of_programs(method, headers, passes):
    assert permitted(method, Headers(headers)) is passes
