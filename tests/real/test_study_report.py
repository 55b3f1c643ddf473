"""The report of a scan on paper: printed by a real browser, with every picture whole and inside its page."""

import base64
import re

import pytest

from monailabel_app.pipelines.study_report import study_report
from tests.monailabel_app.study_factory import FLAT, study

pytestmark = pytest.mark.browser

MM = 96 / 25.4  # CSS pixels
PAPER = (186, 268)  # mm between the margins of A4
CASES = {
    "volume": {},
    "many": {"corners": [(x, y, z) for x in (4, 16, 28) for y in (4, 16, 28) for z in (4, 16, 28)]},
    "slice": {"corners": ((20, 30, 0),), "shape": (60, 70, 1), "affine": FLAT, "false_volume_of": "a slice of 2 mm"},
    "empty": {"corners": ()},
}
# What stands outside of the page's width, and what is higher than a page and must therefore be cut.
FAULTS = """
const [width, height] = arguments, faults = [];
for (const e of document.querySelectorAll('svg, table, p, li, dd, figure, h1, h2, h3')) {
  const box = e.getBoundingClientRect();
  if (box.width === 0 || e.closest('svg') !== (e.tagName === 'svg' ? e : null)) continue;
  if (box.left < -1 || box.right > width + 1) faults.push(`wide: ${e.tagName}.${e.className.baseVal ?? e.className}`);
  if (e.tagName === 'svg' && box.height > height) faults.push('high: svg');
}
const tiles = [...document.querySelectorAll('figure')].map(f => f.getBoundingClientRect());
tiles.forEach((a, i) => tiles.slice(i + 1).forEach(b => {
  if (a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 1 && b.top < a.bottom - 1)
    faults.push('pictures on each other');
}));
return faults;
"""


@pytest.mark.parametrize("case", CASES)
def test_it_prints_whole_pages(browser, tmp_path, case):
    volume, finding, model = study(tmp_path, **CASES[case])
    report = study_report(volume, finding, model, image_id="scan-1")
    page = tmp_path / "report.html"
    page.write_text(report.html(), encoding="utf-8")
    size = {"width": round(PAPER[0] * MM), "height": round(PAPER[1] * MM), "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    browser.get(page.as_uri())
    assert browser.get_log("browser") == []  # nothing is against the page's own policy
    assert browser.execute_script(FAULTS, size["width"], PAPER[1] * MM) == []

    printed = browser.execute_cdp_cmd("Page.printToPDF", {"preferCSSPageSize": True, "printBackground": True})
    pdf = base64.b64decode(printed["data"])
    pages = len(re.findall(rb"/Type\s*/Page\b", pdf))
    pictures = min(len(finding.lesions), 10)
    assert 2 <= pages <= 6 + (pictures + 1) // 2
    boxes = {tuple(float(v) for v in box.split()) for box in re.findall(rb"/MediaBox\s*\[([^\]]+)\]", pdf)}
    assert all(box[2:] == pytest.approx((595, 842), abs=1) for box in boxes)
    assert len(boxes) == 1


@pytest.mark.parametrize("width", [390, 820, 1440])
def test_it_is_read_on_a_screen_without_scrolling_sideways(browser, tmp_path, width):
    volume, finding, model = study(tmp_path)
    page = tmp_path / "report.html"
    page.write_text(study_report(volume, finding, model, image_id="scan-1").html(), encoding="utf-8")
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "screen"})
    browser.get(page.as_uri())
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
