"""Drives the OHIF viewer that MONAI Label ships, in headless Chromium, the way a user would.

Clicks and typing go through the page; what the page then holds (label volume, cameras) is read from the
objects OHIF itself puts on ``window``: ``services``, ``cornerstone``, ``cornerstoneTools``.
"""

from __future__ import annotations

import base64
import io
import re
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from selenium import webdriver
from selenium.common.exceptions import (
    ElementClickInterceptedException,
    ElementNotInteractableException,
    JavascriptException,
    NoSuchElementException,
    StaleElementReferenceException,
    TimeoutException,
)
from selenium.webdriver import ActionChains
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select, WebDriverWait

CHROMIUM = "/usr/bin/chromium"
CHROMEDRIVER = "/usr/bin/chromedriver"
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--ignore-gpu-blocklist",
    "--window-size=1600,1000",
    "--force-device-scale-factor=1",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--no-default-browser-check",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
)
# The panel draws itself anew at every answer of the server; what was found a moment ago may be gone or covered, and a
# view that a script asks may be taken away for another one.
REDRAWN = (
    ElementClickInterceptedException,
    ElementNotInteractableException,
    JavascriptException,
    NoSuchElementException,
    StaleElementReferenceException,
)
_STILL_SECONDS, _AGAIN_SECONDS = 1.0, 60.0
PANEL = "1"  # the id that MONAI Label's panel gives its segmentation
_BARS = """
const bars = [...document.querySelectorAll('.w3-light-grey')];
return Object.fromEntries(bars.map(b => [b.closest('tr').cells[0].textContent, b.textContent]));
"""
_MODELS = ".modelSelector select.selectBox"
PLANES = ("mpr-axial", "mpr-sagittal", "mpr-coronal")

_LOADED = """
const engines = window.cornerstone ? window.cornerstone.getRenderingEngines() : [];
return engines.flatMap(e => e.getViewports()).filter(v => {
  const volume = v.getVolumeId && window.cornerstone.cache.getVolume(v.getVolumeId());
  return volume && volume.loadStatus && volume.loadStatus.loaded && v.getActors().length > 0;
}).map(v => v.id);
"""
_LABELMAP = "const map = window.services.segmentationService.getLabelmapVolume(arguments[0]);"
_VALUES = f"{_LABELMAP} const values = map.voxelManager.getCompleteScalarDataArray();"
_HAS_LABELMAP = f"try {{ {_VALUES} return values.length > 0; }} catch (error) {{ return false; }}"
_VOXEL_COUNT = f"{_VALUES} return values.reduce((n, v) => n + (v > 0), 0);"
_READ_LABELMAP = f"""
{_VALUES}
const found = [];
for (let i = 0; i < values.length; i++) if (values[i]) found.push([i, values[i]]);
return {{size: Array.from(map.dimensions), direction: Array.from(map.direction),
         origin: Array.from(map.origin), spacing: Array.from(map.spacing), found}};
"""
_LOOK_AT = """
const [point, width] = arguments;
const seen = {};
for (const engine of window.cornerstone.getRenderingEngines()) for (const view of engine.getViewports()) {
  const camera = view.getCamera(), n = camera.viewPlaneNormal;
  const step = n.reduce((sum, v, i) => sum + v * (point[i] - camera.focalPoint[i]), 0);
  view.setCamera({focalPoint: camera.focalPoint.map((v, i) => v + n[i] * step),
                  position: camera.position.map((v, i) => v + n[i] * step)});
  view.setProperties({voiRange: {lower: width[0], upper: width[1]}});
  view.render();
  const at = view.worldToCanvas(point), above = view.worldToCanvas(point.map((v, i) => v + camera.viewUp[i]));
  seen[view.id] = {x: at[0], y: at[1], pixelsPerMm: Math.hypot(above[0] - at[0], above[1] - at[1])};
}
const done = arguments[arguments.length - 1];
requestAnimationFrame(() => requestAnimationFrame(() => done(seen)));
"""
_SHOW_SEGMENTATION = """
const visible = arguments[0], done = arguments[arguments.length - 1];
for (const engine of window.cornerstone.getRenderingEngines()) for (const view of engine.getViewports()) {
  const type = window.cornerstoneTools.Enums.SegmentationRepresentations.Labelmap;
  window.cornerstoneTools.segmentation.config.visibility.setSegmentationRepresentationVisibility(
    view.id, {segmentationId: '1', type}, visible);
  view.render();
}
requestAnimationFrame(() => requestAnimationFrame(() => done(true)));
"""
_FIRST_SEGMENTATION = """
const [first] = window.services.segmentationService.getSegmentations();
return first && first.segmentationId;
"""
_SEG_THUMBNAIL = "[data-cy=study-browser-thumbnail-no-image]"
_OPEN_IT = "[data-cy=yes-hydrate-btn]"
_MARKERS = """
const out = {};
for (const view of window.cornerstone.getRenderingEngines().flatMap(e => e.getViewports())) {
  const pane = view.element.closest('[data-cy="viewport-pane"]') || view.element.parentElement.parentElement;
  const box = view.canvas.getBoundingClientRect();
  const letters = Array.from(pane.querySelectorAll('.ViewportOrientationMarkers .orientation-marker'));
  const places = letters.map(e => [e.textContent, e.getBoundingClientRect()]);
  out[view.id] = {left: places.find(([, r]) => r.right < box.x + 0.2 * box.width)[0],
                  top: places.find(([, r]) => r.bottom < box.y + 0.2 * box.height)[0]};
}
return out;
"""
_CANVASES = """
const out = {};
for (const view of window.cornerstone.getRenderingEngines().flatMap(e => e.getViewports()))
  out[view.id] = view.canvas.toDataURL('image/png').split(',')[1];
return out;
"""


@dataclass(frozen=True)
class LabelInPage:
    """The label volume the page holds.

    mask: (i, j, k) uint8 in the page's own voxel order. affine_lps: (4, 4) voxel index -> mm to L, P, S.
    """

    mask: np.ndarray
    affine_lps: np.ndarray

    def points_lps(self) -> np.ndarray:
        """(n, 3) positions of the marked voxels in mm."""
        index = np.argwhere(self.mask > 0)
        return index @ self.affine_lps[:3, :3].T + self.affine_lps[:3, 3]


@dataclass(frozen=True)
class PlaneView:
    """Where the looked-at point lies in a view (pixels from its left and top border), and the scale."""

    x: float
    y: float
    pixels_per_mm: float


class OhifDriver:
    """A Chromium window; a context manager. ``seconds`` bounds every wait."""

    def __init__(self, seconds: float = 300.0):
        self.seconds = seconds
        self._profile = tempfile.mkdtemp(prefix="ohif_chromium_")
        options = Options()
        options.binary_location = CHROMIUM
        for flag in (*FLAGS, f"--user-data-dir={self._profile}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        try:
            self.browser = webdriver.Chrome(options=options, service=Service(CHROMEDRIVER))
        except BaseException:
            shutil.rmtree(self._profile, ignore_errors=True)
            raise
        self.browser.set_script_timeout(seconds)
        self.browser.set_page_load_timeout(seconds)

    def close(self) -> None:
        """Ends Chromium and removes its profile."""
        try:
            self.browser.quit()
        finally:
            shutil.rmtree(self._profile, ignore_errors=True)

    def __enter__(self) -> OhifDriver:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def wait(self, condition, what: str):
        """The first true value of ``condition()``. Raises TimeoutError naming ``what``."""
        failed = ""

        def met(_):
            nonlocal failed
            try:
                return condition()
            except REDRAWN as error:
                failed = f"; the last try ended with {type(error).__name__}: {error.msg}"
                return False

        try:
            return WebDriverWait(self.browser, self.seconds, 0.25).until(met)
        except TimeoutException as error:
            text = f"{what} did not appear within {self.seconds:g} s; the page says {self.errors()}{failed}"
            raise TimeoutError(text) from error

    def click(self, by: str, what: str) -> None:
        """Finds and clicks, again when the page was drawn anew in between."""
        self.wait(lambda: self.browser.find_element(by, what).click() or True, f"{what} to click")

    def double_click(self, find, opened, what: str) -> None:
        """Double-clicks what ``find()`` gives once it lies still, and again now and then until ``opened()``.

        The list of series grows and moves as their headers come in, and a click between two drawings is lost.
        """
        place, since, tried = None, 0.0, float("-inf")

        def done():
            nonlocal place, since, tried
            if opened():
                return True
            item, now = find(), time.monotonic()
            if item.rect != place:
                place, since = item.rect, now
            elif now - since > _STILL_SECONDS and now - tried > _AGAIN_SECONDS:
                ActionChains(self.browser).double_click(item).perform()
                tried = time.monotonic()
            return opened()

        self.wait(done, what)

    def errors(self) -> list[str]:
        """What the page complained about since the last call, without the addresses outside this machine."""
        severe = [entry for entry in self.browser.get_log("browser") if entry["level"] == "SEVERE"]
        texts = [entry["message"] for entry in severe]
        return [text for text in texts if not re.match(r"https?://(?!127\.0\.0\.1)", text)]

    def open_study(self, server: str, study_uid: str) -> None:
        """Opens a study in the MONAI Label mode and waits until all three views have the whole volume."""
        self.browser.get(f"{server}/ohif/monai-label?StudyInstanceUIDs={study_uid}")
        self.wait(lambda: self._displayed("#monailabelServerURL"), "the MONAI Label panel")
        self.wait(lambda: set(PLANES) <= set(self.browser.execute_script(_LOADED)), "the volume in all planes")
        self._hide_notice()

    def server_url(self) -> str:
        """The address in the panel's server box."""
        return self.browser.find_element(By.ID, "monailabelServerURL").get_attribute("value")

    def connect(self, server: str | None = None) -> list[str]:
        """Types the address (or keeps the one offered), presses the button; returns the models offered.

        The box is overwritten in one go: OHIF's panel dies of an empty address when the box loses the focus.
        """
        if server is not None:
            box = self.browser.find_element(By.ID, "monailabelServerURL")
            box.send_keys(Keys.CONTROL, "a")
            box.send_keys(server)
        self.click(By.CSS_SELECTOR, ".settingsTable .actionButton")
        self.wait(lambda: self._displayed(_MODELS), "the list of models")
        self.wait(lambda: self.browser.execute_script(_HAS_LABELMAP, PANEL), "the page's label volume")
        return self.wait(lambda: [o.get_attribute("value") for o in Select(self._first(_MODELS)).options], "models")

    def run(self, model: str) -> None:
        """Chooses a model under Auto-Segmentation, presses Run, and waits for its label."""
        self.start(model)
        self.wait(lambda: self.browser.execute_script(_VOXEL_COUNT, PANEL) > 0, f"a label from {model}")

    def start(self, model: str) -> None:
        """Chooses a model under Auto-Segmentation and presses Run."""
        self._pick(lambda: self._first(_MODELS), model)
        self.wait(lambda: self._first(".modelSelector button.actionButton").click() or True, "the button Run")

    def choose_option(self, model: str, key: str, value: str) -> None:
        """Picks a value of a model's drop-down under "Options / Configurations" and confirms."""
        self.click(By.LINK_TEXT, "Options / Configurations")
        self._pick(lambda: self._first("select[name=selectName]"), model)
        self._pick(lambda: self.browser.find_element(By.ID, f"infer{model}{key}"), value)
        self.click(By.XPATH, "//button[contains(., 'Confirm')]")
        self.wait(lambda: not self._displayed("select[name=selectName]"), "the end of the options")

    def choose_training(self, trainer: str, choices: dict[str, str], texts: dict[str, str]) -> None:
        """Sets drop-downs and text fields of a trainer under "Options / Configurations" and confirms."""
        self.click(By.LINK_TEXT, "Options / Configurations")
        self._pick(lambda: self._first("select[name=selectSection]"), "train")
        self._pick(lambda: self._first("select[name=selectName]"), trainer)
        for key, value in choices.items():
            self._pick(lambda key=key: self.browser.find_element(By.ID, f"train{trainer}{key}"), value)
        for key, value in texts.items():
            self.wait(lambda key=key, value=value: self._type(f"train{trainer}{key}", value), f"{value!r} in {key}")
        self.click(By.XPATH, "//button[contains(., 'Confirm')]")
        self.wait(lambda: not self._displayed("select[name=selectName]"), "the end of the options")

    def update_model(self) -> None:
        """Opens Active Learning, presses Update Model, and waits until the button says that a training runs."""
        labels = "//label[contains(@class, 'tab-label')][contains(., 'Active Learning')]"
        self.click(By.XPATH, labels)
        self.click(By.XPATH, "//button[contains(., 'Update Model')]")
        stop = "//button[contains(., 'Stop Training')]"
        self.wait(lambda: self.browser.find_elements(By.XPATH, stop), "Stop Training in place of Update Model")

    def progress(self) -> dict[str, str]:
        """What the panel's three bars say: Annotated, Training and Train Acc."""
        return self.browser.execute_script(_BARS)

    def open_segmentation(self) -> str:
        """Opens the study's first stored DICOM Segmentation, and returns the id the page gives it."""
        self.double_click(
            lambda: self._first(_SEG_THUMBNAIL), lambda: self._displayed(_OPEN_IT), "the question whether to open it"
        )
        # Clicked by script: another view's copy of the question may lie over the button.
        self.wait(lambda: self._script_click(_OPEN_IT), "the button that opens it")
        name = self.wait(lambda: self.browser.execute_script(_FIRST_SEGMENTATION), "the segmentation")
        self.wait(lambda: self.browser.execute_script(_HAS_LABELMAP, name), "the segmentation's volume")
        return name

    def label(self, segmentation: str = PANEL) -> LabelInPage:
        """What is in a segmentation's volume now."""
        state = self.browser.execute_script(_READ_LABELMAP, segmentation)
        size = [int(n) for n in state["size"]]
        mask = np.zeros(int(np.prod(size)), np.uint8)
        for index, value in state["found"]:
            mask[index] = value
        affine = np.eye(4)
        affine[:3, :3] = np.reshape(state["direction"], (3, 3)).T * np.asarray(state["spacing"])
        affine[:3, 3] = state["origin"]
        return LabelInPage(mask.reshape(size, order="F"), affine)

    def look_at(self, point_lps, window: tuple[float, float]) -> dict[str, PlaneView]:
        """Moves all three views to the slices through a point, with the grey window (lowest, highest)."""
        point, window = [float(v) for v in point_lps], [float(v) for v in window]
        seen = self.browser.execute_async_script(_LOOK_AT, point, window)
        return {name: PlaneView(view["x"], view["y"], view["pixelsPerMm"]) for name, view in seen.items()}

    def show_segmentation(self, visible: bool) -> None:
        """Draws the segmentation, or hides it."""
        self.browser.execute_async_script(_SHOW_SEGMENTATION, visible)

    def picture(self) -> np.ndarray:
        """The page as it looks now: (rows, columns, 3) uint8."""
        png = self.browser.get_screenshot_as_png()
        return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))

    def drawn(self) -> dict[str, np.ndarray]:
        """What each view draws (scan and segmentation, without OHIF's texts): (rows, columns, 3) uint8."""
        images = self.browser.execute_script(_CANVASES)
        return {
            name: np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))
            for name, data in images.items()
        }

    def orientation_markers(self) -> dict[str, dict[str, str]]:
        """The patient directions that OHIF writes at the ``left`` and the ``top`` border of each view."""
        return self.browser.execute_script(_MARKERS)

    def _pick(self, find, value: str) -> None:
        """Picks ``value`` in the drop-down that ``find()`` gives, until the page shows it as picked."""

        def picked() -> bool:
            Select(find()).select_by_value(value)
            return find().get_attribute("value") == value

        self.wait(picked, f"the choice {value!r}")

    def _type(self, field: str, value: str) -> bool:
        box = self.browser.find_element(By.ID, field)
        box.send_keys(Keys.CONTROL, "a")
        box.send_keys(value)
        return self.browser.find_element(By.ID, field).get_attribute("value") == value

    def _script_click(self, selector: str) -> bool:
        self.browser.execute_script("arguments[0].click()", self._first(selector))
        return True

    def _first(self, selector: str):
        """The first element of a kind that is on display."""
        found = self._displayed(selector)
        if not found:
            raise NoSuchElementException(selector)
        return found[0]

    def _displayed(self, selector: str) -> list:
        return [e for e in self.browser.find_elements(By.CSS_SELECTOR, selector) if e.is_displayed()]

    def _hide_notice(self) -> None:
        button = "//button[contains(., 'Confirm and Hide')]"

        def hidden() -> bool:
            for found in self.browser.find_elements(By.XPATH, button):
                found.click()
            return not self.browser.find_elements(By.XPATH, button)

        self.wait(hidden, "the end of the notice")


def browser_missing() -> str | None:
    """Why there can be no browser test here, or None."""
    missing = [path for path in (CHROMIUM, CHROMEDRIVER) if not Path(path).exists()]
    return f"needs {' and '.join(missing)} (Debian packages chromium, chromium-driver)" if missing else None
