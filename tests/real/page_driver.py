"""Chromium on the page ``/anomaly/``, with everything noted that a reader would not see: requests and errors."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

CHROMIUM = "/usr/bin/chromium"
FLAGS = [
    "--no-sandbox",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    # WebGL without a graphics card.
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--ignore-gpu-blocklist",
]
PATIENCE_MS = 180_000  # pictures are drawn by the processor, which has other work
READER = "Dr. Test"


def wait_until(said, seconds: float = 60):
    """The first true answer of ``said()``; the last one after ``seconds``."""
    end = time.monotonic() + seconds
    while not (answer := said()) and time.monotonic() < end:
        time.sleep(0.2)
    return answer


def page_browser_missing() -> str | None:
    """Why there can be no test of the page here, or None."""
    try:
        import playwright.sync_api  # noqa: F401
    except ImportError:
        return "needs playwright (requirements-dev.txt)"
    return None if Path(CHROMIUM).exists() else f"needs {CHROMIUM} (Debian package chromium)"


@contextmanager
def chromium() -> Iterator:
    """A running browser of Playwright."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()


class Reader:
    """A window of the browser with the page, and what happened in it."""

    def __init__(
        self, browser, url: str, size: tuple[int, int] = (1440, 900), *, touch: bool = False, name: str = READER
    ):
        self.url = url
        self.context = browser.new_context(
            viewport={"width": size[0], "height": size[1]}, has_touch=touch, accept_downloads=True
        )
        self.context.set_default_timeout(PATIENCE_MS)
        if name:
            self.context.add_init_script(f"try {{ localStorage.setItem('anomaly.reader', '{name}') }} catch {{}}")
        self.requests: list[str] = []
        self.errors: list[str] = []
        # A result that is not there yet is answered with 404.
        self.expected: list[str] = [r"status of 404 .*/anomaly/results/"]
        self.page = self.context.new_page()
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", self._console)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("dialog", self._dialog)

    def _console(self, message) -> None:
        # Chromium writes down every request that was refused or broken, at a time of its own: perhaps after the page
        # has shown it, so a test says beforehand what it expects.
        text = f"{message.text} ({message.location.get('url', '')})"
        if message.type == "error" and not any(re.search(pattern, text) for pattern in self.expected):
            self.errors.append(text)

    def _dialog(self, dialog) -> None:
        self.errors.append(f"a script opened a window: {dialog.message}")
        dialog.dismiss()

    def open(self, path: str = "") -> None:
        """Go to the page, or to a place in it (``#/study/...``)."""
        self.page.goto(f"{self.url}/anomaly/{path}")

    def study(self, image: str, query: str = "") -> None:
        """Open a study and wait until its picture is there."""
        self.open(f"#/study/{image}{query}")
        self.wait_for_picture()

    def wait_for_picture(self) -> None:
        self.page.locator('[data-viewer="ready"]').wait_for()

    def wait_for_findings(self) -> None:
        """Until a result is shown that belongs to the settings of now."""
        self.page.locator(".score-figures").wait_for()
        self.page.locator(".lesions.stale").wait_for(state="detached")

    def settle(self) -> None:
        """Until what is known now is drawn."""
        self.page.evaluate(
            "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done))))"
        )

    def lesions(self) -> list[int]:
        """Numbers of the findings in the table."""
        return [int(row.get_attribute("data-lesion")) for row in self.page.locator("tr[data-lesion]").all()]

    def foreign(self) -> list[str]:
        """Requests that went, or wanted to go, to somebody else."""
        own = (self.url + "/", "data:", f"blob:{self.url}/")
        return [url for url in self.requests if not url.startswith(own)]

    def overflow(self) -> list[str]:
        """What reaches over the right edge of the window without a box that scrolls."""
        return self.page.evaluate(
            """() => {
            const wide = document.documentElement.clientWidth;
            const faults = document.documentElement.scrollWidth > wide ? ['the page itself'] : [];
            for (const e of document.querySelectorAll('body *')) {
              if (e.closest('.skip, .sr-only, .hidden-input, svg, .viewer-host')) continue;
              const box = e.getBoundingClientRect();
              if (!box.width || !box.height || box.right <= wide + 1) continue;
              let scrolls = false;
              for (let p = e.parentElement; p; p = p.parentElement)
                if (['auto', 'scroll', 'hidden'].includes(getComputedStyle(p).overflowX)) scrolls = true;
              if (!scrolls) faults.push(e.tagName + '.' + e.className + ' ' + Math.round(box.right));
            }
            return faults;
          }"""
        )

    def close(self) -> None:
        self.context.close()


class Held:
    """Answers of the server that reach the page when the test says so, and not before.

    pattern: of addresses, as Playwright has it. instead: what the page gets for the server's answer. The request goes
    to the server at once, so the answer tells of that moment.
    """

    def __init__(self, page, pattern: str, method: str = "GET", instead: dict | None = None):
        self.page, self.pattern, self.method, self.instead = page, pattern, method, instead
        self.kept: list = []
        self.open = False
        page.route(pattern, self._take)

    def _take(self, route) -> None:
        if self.open or route.request.method != self.method:
            route.fallback()
            return
        self.kept.append((route, None if self.instead is not None else route.fetch()))

    def wait(self, count: int = 1) -> None:
        """Until so many answers are held."""
        end = time.monotonic() + PATIENCE_MS / 1000
        while len(self.kept) < count and time.monotonic() < end:
            self.page.wait_for_timeout(20)
        assert len(self.kept) >= count, f"{len(self.kept)} of {count} requests of {self.pattern}"

    def release(self) -> None:
        """Let them through; requests that come later are not held."""
        # Without a route that is in force, the browser would ask the server anew for what is held.
        self.open = True
        for route, answer in self.kept:
            # The page may have given it up.
            with suppress(Exception):
                if self.instead is not None:
                    route.fulfill(json=self.instead)
                else:
                    route.fulfill(response=answer)
