"""OHIF's basic viewer, in which stored results are opened by double-clicking their series."""

from __future__ import annotations

from selenium.common.exceptions import NoSuchElementException
from selenium.webdriver.common.by import By

from tests.real.ohif_driver import OhifDriver

_THUMBNAILS = "[data-cy^=study-browser-thumbnail]"
_YES = "[data-cy=yes-hydrate-btn]"
_SHOWS_SOMETHING = """
return window.cornerstone.getRenderingEngines().flatMap(e => e.getViewports()).some(v => v.getActors().length > 0);
"""
_SHOWN = """
const views = [...window.services.viewportGridService.getState().viewports.values()];
return views.map(view => view.displaySetInstanceUIDs || []);
"""
_SEGMENTS = """
return window.services.segmentationService.getSegmentations().flatMap(
  s => Object.values(s.segments).map(segment => segment.label));
"""
_NUMBERED = """
const [panel] = window.services.segmentationService.getSegmentations();
return Object.entries(panel.segments).map(([number, segment]) => [number, segment.label]);
"""
_COLOURS = """
const service = window.services.segmentationService;
const views = window.cornerstone.getRenderingEngines().flatMap(e => e.getViewports()).map(view => view.id);
const colour = (id, number) => {
  for (const view of views) {
    try { return Array.from(service.getSegmentColor(view, id, number)); } catch (error) { /* not in this view */ }
  }
  return null;
};
return service.getSegmentations().flatMap(
  s => Object.values(s.segments).map(segment => [segment.label, colour(s.segmentationId, segment.segmentIndex)]));
"""
_GO_TO = """
const point = arguments[0], done = arguments[arguments.length - 1], fetched = [];
const across = (a, b) => [0, 1, 2].map(i => a[(i + 1) % 3] * b[(i + 2) % 3] - a[(i + 2) % 3] * b[(i + 1) % 3]);
const along = (a, b) => a.reduce((sum, v, i) => sum + v * b[i], 0);
for (const view of window.cornerstone.getRenderingEngines().flatMap(e => e.getViewports())) {
  if (view.type === 'stack') {
    const far = view.getImageIds().map(id => {
      const plane = window.cornerstone.metaData.get('imagePlaneModule', id);
      const offset = point.map((v, i) => v - plane.imagePositionPatient[i]);
      return Math.abs(along(across(plane.rowCosines, plane.columnCosines), offset));
    });
    fetched.push(view.setImageIdIndex(far.indexOf(Math.min(...far))));
  } else {
    const camera = view.getCamera(), n = camera.viewPlaneNormal;
    const step = along(n, point.map((v, i) => v - camera.focalPoint[i]));
    view.setCamera({focalPoint: camera.focalPoint.map((v, i) => v + n[i] * step),
                    position: camera.position.map((v, i) => v + n[i] * step)});
  }
  view.render();
}
// Drawn is at the next picture; what lies over a slice follows it at the one after.
Promise.allSettled(fetched).then(
  () => requestAnimationFrame(() => requestAnimationFrame(() => requestAnimationFrame(() => done(true)))));
"""
_WHERE = """
const [view] = window.cornerstone.getRenderingEngines().flatMap(e => e.getViewports());
return view.worldToCanvas(arguments[0]);
"""
_WRITTEN = "return [...document.querySelectorAll('svg text, svg tspan')].map(e => e.textContent);"


def open_viewer(ohif: OhifDriver, server: str, study_uid: str) -> None:
    """Opens a study in the basic viewer and waits for its picture."""
    ohif.browser.get(f"{server}/ohif/viewer?StudyInstanceUIDs={study_uid}")
    ohif.wait(lambda: ohif._displayed(_THUMBNAILS), "the list of series")
    ohif.wait(lambda: ohif.browser.execute_script(_SHOWS_SOMETHING), "a picture of the scan")
    ohif._hide_notice()


def series_kinds(ohif: OhifDriver) -> list[str]:
    """What the list calls its series: MR, SEG, PMAP, SR."""
    return [item.text.split("\n")[0] for item in ohif._displayed(_THUMBNAILS)]


def open_series(ohif: OhifDriver, kind: str) -> None:
    """Double-clicks the first series of a kind; a segmentation is also confirmed."""

    def item():
        found = [item for item in ohif._displayed(_THUMBNAILS) if item.text.startswith(kind)]
        if not found:
            raise NoSuchElementException(f"the series {kind} in the list")
        return found[0]

    before = ohif.browser.execute_script(_SHOWN)
    if kind == "SEG":
        ohif.double_click(item, lambda: ohif._displayed(_YES), "the question whether to open it")
        ohif.wait(lambda: ohif._script_click(_YES), "the button that opens it")
        ohif.wait(lambda: segments(ohif), "its segments")
    else:
        ohif.double_click(item, lambda: ohif.browser.execute_script(_SHOWN) != before, f"the series {kind} in a view")


def colours(ohif: OhifDriver) -> dict[str, list[int]]:
    """(r, g, b, a) that each segment is drawn in, by its label."""
    return {label: colour for label, colour in ohif.browser.execute_script(_COLOURS) if colour}


def segments(ohif: OhifDriver) -> list[str]:
    """Names of the segments that the page holds."""
    return ohif.browser.execute_script(_SEGMENTS)


def numbered_segments(ohif: OhifDriver) -> dict[int, str]:
    """Names of the segments in MONAI Label's panel, by their value in its label volume."""
    return {int(number): name for number, name in ohif.browser.execute_script(_NUMBERED)}


def open_panel(ohif: OhifDriver, rows: int) -> str:
    """Opens the panel at the right, and returns what it says in its ``rows``."""
    ohif.click(By.CSS_SELECTOR, "[data-cy=side-panel-header-right]")
    ohif.click(By.CSS_SELECTOR, "[data-cy=panelSegmentation-btn]")

    def said() -> str:
        found = ohif._displayed("[data-cy=data-row]")
        return "\n".join(row.text for row in found) if len(found) >= rows else ""

    return ohif.wait(said, f"{rows} rows in the panel")


def go_to(ohif: OhifDriver, point_lps) -> tuple[int, int]:
    """Shows the slice through a point; returns the point's (column, row) in the picture."""
    point = [float(v) for v in point_lps]
    ohif.browser.execute_async_script(_GO_TO, point)
    x, y = ohif.browser.execute_script(_WHERE, point)
    return round(x), round(y)


def written(ohif: OhifDriver) -> str:
    """What is written on the picture beside marks."""
    return "\n".join(ohif.browser.execute_script(_WRITTEN))
