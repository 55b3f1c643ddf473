"""The page's files: built from these sources, with nothing from elsewhere, and answered as a browser needs them."""

import gzip
import hashlib
import re
from pathlib import Path

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from lib.endpoints import page

SOURCES = Path(page.__file__).resolve().parent.parent / "page"
# As in scripts/finish.mjs.
PARTS = (
    "index.html",
    "package.json",
    "package-lock.json",
    "tsconfig.json",
    "vite.config.ts",
    "src",
    "scripts",
    "licences",
)
ALLOWED_LICENCES = {"MIT", "BSD-2-Clause", "BSD-3-Clause", "Apache-2.0", "ISC", "0BSD"}


@pytest.fixture(scope="module")
def browser():
    server = FastAPI()
    server.include_router(page.router)
    with TestClient(server, follow_redirects=False) as client:
        yield client


def assets() -> list[str]:
    return sorted(path.name for path in (page.DIST / "assets").iterdir())


def test_the_build_belongs_to_the_sources():
    names = []
    for part in PARTS:
        root = SOURCES / part
        found = [root] if root.is_file() else [path for path in root.rglob("*") if path.is_file()]
        names += [path.relative_to(SOURCES).as_posix() for path in found]
    lines = [f"{name}\0{hashlib.sha256((SOURCES / name).read_bytes()).hexdigest()}\n" for name in sorted(names)]
    made = hashlib.sha256("".join(lines).encode()).hexdigest()
    assert (page.DIST / "SOURCES.sha256").read_text().strip() == made, "lib/page changed: run make page and commit dist"


def test_the_build_names_no_address_that_it_would_fetch_from_elsewhere():
    start = (page.DIST / "index.html").read_text()
    assert re.findall(r'(?:src|href)="([^"]+)"', start)
    assert all(link.startswith("./assets/") for link in re.findall(r'(?:src|href)="([^"]+)"', start))
    assert "<script>" not in start
    assert "<style" not in start
    for style in (page.DIST / "assets").glob("*.css"):
        assert "@import" not in style.read_text()
        assert not re.findall(r"url\(\s*['\"]?(?:https?:)?//", style.read_text())


def test_every_package_in_the_build_has_a_licence_that_allows_it():
    text = (page.DIST / "THIRD-PARTY-LICENSES.txt").read_text()
    packages = re.findall(r"^(@?[a-z][\w./-]*) (\d[\w.]*) \(([\w.-]+)\)$", text, flags=re.MULTILINE)
    assert {"@niivue/niivue", "preact"} <= {name for name, _, _ in packages}
    assert {licence for _, _, licence in packages} <= ALLOWED_LICENCES
    assert "Copyright (c) 2021, Niivue" in text


def test_the_start_page_is_asked_for_anew_and_obeys_only_its_own_files(browser):
    got = browser.get("/anomaly/")
    assert got.status_code == 200
    assert got.headers["content-type"] == "text/html; charset=utf-8"
    assert got.headers["cache-control"] == "no-cache"
    policy = got.headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy
    assert "frame-ancestors 'none'" in policy


def test_without_the_slash_the_browser_is_sent_to_the_folder(browser):
    got = browser.get("/anomaly")
    assert (got.status_code, got.headers["location"]) == (308, "anomaly/")


def test_assets_are_kept_for_ever_with_their_own_media_type(browser):
    kinds = {".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8", ".svg": "image/svg+xml"}
    for name in assets():
        got = browser.get(f"/anomaly/assets/{name}")
        assert got.status_code == 200
        assert got.headers["content-type"] == kinds[Path(name).suffix]
        assert got.headers["x-content-type-options"] == "nosniff"
        assert "immutable" in got.headers["cache-control"]
        assert re.search(r"-[\w-]{8}\.", name), "a name without a hash of the content must not be kept"


def test_wasm_would_be_sent_as_wasm():
    assert page.MEDIA_TYPES[".wasm"] == "application/wasm"


def test_what_the_browser_has_is_not_sent_again(browser):
    first = browser.get("/anomaly/")
    again = browser.get("/anomaly/", headers={"If-None-Match": f'"other", W/{first.headers["etag"]}'})
    assert (again.status_code, again.content) == (304, b"")
    assert browser.get("/anomaly/", headers={"If-None-Match": '"other"'}).status_code == 200


def test_packed_for_those_who_take_it(browser):
    script = next(name for name in assets() if name.endswith(".js"))
    plain = browser.get(f"/anomaly/assets/{script}", headers={"Accept-Encoding": "identity"})
    assert "content-encoding" not in plain.headers
    packed = page.page_file(page.DIST / "assets" / script, (page.DIST / "assets" / script).stat().st_mtime_ns)
    assert gzip.decompress(packed.packed) == plain.content
    got = browser.get(f"/anomaly/assets/{script}", headers={"Accept-Encoding": "gzip"})
    assert got.headers["content-encoding"] == "gzip"
    assert got.content == plain.content


def test_head_says_the_size_and_sends_nothing(browser):
    got = browser.head("/anomaly/", headers={"Accept-Encoding": "identity"})
    assert int(got.headers["content-length"]) == (page.DIST / "index.html").stat().st_size
    assert got.content == b""


@pytest.mark.parametrize(
    "name", ["nothing.js", "..%2findex.html", "%2e%2e%2f%2e%2e%2fpackage.json", "..\\index.html", ".", "a%00b"]
)
def test_no_other_file_can_be_reached(browser, name):
    assert browser.get(f"/anomaly/assets/{name}").status_code == 404
