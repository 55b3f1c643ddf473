"""The page's viewer alone in Chromium: the built files, images made for the test, and nothing else of the page."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[3]
# Another build can be tested without touching the one that is served.
DIST = Path(os.environ.get("ANOMALY_PAGE_DIST", ROOT / "lib" / "page" / "dist"))
CHROMIUM = "/usr/bin/chromium"
POLICY = "default-src 'self'; script-src 'self'; style-src 'self'"
FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--ignore-gpu-blocklist",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
]
KINDS = {".js": "text/javascript", ".css": "text/css", ".html": "text/html"}


def viewer_missing() -> str | None:
    """Why the viewer cannot be tested here, or None."""
    try:
        import playwright.sync_api  # noqa: F401
    except ImportError:
        return "needs playwright (requirements-dev.txt)"
    if not Path(CHROMIUM).exists():
        return f"needs {CHROMIUM} (Debian package chromium)"
    return None if list(DIST.glob("assets/viewer-*.js")) else f"needs the built page in {DIST} (make page)"


def site(images: Mapping[str, bytes]) -> dict[str, bytes]:
    """The files of a small site: the viewer's part of the built page, and the images under /images/."""
    script = max(DIST.glob("assets/viewer-*.js"), key=lambda path: path.stat().st_size)
    styles = list(DIST.glob("assets/viewer-*.css"))
    files = {f"/assets/{path.name}": path.read_bytes() for path in DIST.glob("assets/*") if path.suffix in KINDS}
    # From the page's own entry the viewer takes no more than the loader of parts: without the page, load at once.
    for names, entry in re.findall(r'import\{([^}]*)\}from"\./(index-[^"]+)"', script.read_text()):
        taken = [name.split(" as ")[0].strip() for name in names.split(",")]
        files[f"/assets/{entry}"] = "".join(f"export const {name} = (load) => load();" for name in taken).encode()
    links = "".join(f'<link rel="stylesheet" href="/assets/{path.name}">' for path in styles)
    files["/"] = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>viewer</title>{links}'
        '<link rel="stylesheet" href="/test.css"></head><body><div id="host"></div>'
        '<script type="module" src="/test.js"></script></body></html>'
    ).encode()
    files["/test.css"] = b"html, body { margin: 0; height: 100%; } #host { position: absolute; inset: 0; }"
    files["/test.js"] = (
        f'import {{ createViewer }} from "/assets/{script.name}";'
        'window.viewer = createViewer(document.getElementById("host"));'
    ).encode()
    files["/favicon.ico"] = b""
    return files | {f"/images/{name}": content for name, content in images.items()}


class ViewerPage:
    """A window with the viewer in it; `console` holds what the browser complained about."""

    def __init__(self, context, url: str):
        self.page = context.new_page()
        self.console: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.console.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.console.append(f"error: {error}"))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(url)
        self.page.wait_for_function("window.viewer")

    def load(self, **study) -> str:
        """'' or what the viewer says is wrong."""
        said = self.page.evaluate("study => viewer.load(study).then(() => '', error => error.message)", study)
        self.drawn()
        return said

    def call(self, name: str, *given) -> None:
        """Call a method of the viewer and wait until its picture stands."""
        self.page.evaluate("([name, given]) => { viewer[name](...given) }", [name, list(given)])
        self.drawn()

    def drawn(self) -> None:
        self.page.evaluate(
            "() => new Promise((done) => { let n = 4; const next = () => --n ? requestAnimationFrame(next) : done();"
            " requestAnimationFrame(next); })"
        )

    def state(self) -> dict:
        return self.page.evaluate("() => viewer.state()")

    def compare(self, how: str) -> None:
        """Compare and wait for the pseudo-healthy image."""
        self.call("setCompare", how)
        self.page.wait_for_function("() => viewer.state().tiles.healthy.length > 0")
        self.drawn()

    def picture(self) -> np.ndarray:
        """The window as it is seen: (rows, columns, 3) int."""
        from PIL import Image

        return np.asarray(Image.open(BytesIO(self.page.screenshot())).convert("RGB")).astype(int)

    def tile(self, plane: str, side: str = "scan") -> tuple[slice, slice]:
        """Rows and columns of a plane's tile in the picture."""
        tile = next(tile for tile in self.state()["tiles"][side] if tile["plane"] == plane)
        box = self.page.evaluate(f"() => document.querySelector('.av-{side} canvas').getBoundingClientRect().toJSON()")
        top, left = round(box["y"] + tile["top"]), round(box["x"] + tile["left"])
        return slice(top, top + round(tile["height"])), slice(left, left + round(tile["width"]))


@contextmanager
def viewer_browser(images: Mapping[str, bytes]) -> Iterator:
    """A function that opens a window of a size, on a server that this test alone has."""
    from playwright.sync_api import sync_playwright

    files = site(images)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = files.get(self.path.split("?")[0])
            self.send_response(404 if body is None else 200)
            self.send_header("Content-Security-Policy", POLICY)
            self.send_header("Content-Type", KINDS.get(Path(self.path).suffix or ".html", "application/octet-stream"))
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, *given) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS, timeout=300_000)
            try:

                def open_window(size: tuple[int, int] = (1000, 640), *, touch: bool = False) -> ViewerPage:
                    context = browser.new_context(viewport={"width": size[0], "height": size[1]}, has_touch=touch)
                    context.set_default_timeout(120_000)
                    return ViewerPage(context, f"http://127.0.0.1:{server.server_port}/")

                yield open_window
            finally:
                browser.close()
    finally:
        server.shutdown()
