"""The report page in a real browser, on a laptop's and a tablet's screen, and on paper."""

import base64
import json
import time

import numpy as np
import pytest
from PIL import Image
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from monailabel_app.reports.evaluation_page import evaluation_html
from monailabel_app.reports.overlay import COLOURS, three_planes_png
from tests.monailabel_app.reports.page_record import evaluation_record
from tests.monailabel_app.reports.test_evaluation_page import blind_spots, fairness

pytestmark = pytest.mark.browser

SCREENS = {"laptop": (1366, 768), "tablet": (820, 1180)}
OVERFLOWING = """
const wide = document.documentElement.clientWidth;
return [...document.querySelectorAll('body *')].filter(e => {
  if (e.closest('.scroll') || e.closest('.skip') || e.closest('svg')) return false;
  const box = e.getBoundingClientRect();
  return box.width > 0 && (box.right > wide + 1 || box.left < -1);
}).map(e => e.tagName + '.' + e.className + ' ' + Math.round(e.getBoundingClientRect().right));
"""
# What of each text of a chart lies outside of its drawing, and which names lie on each other.
CHART_FAULTS = """
const faults = [];
for (const svg of document.querySelectorAll('svg.chart')) {
  const frame = svg.getBoundingClientRect();
  const boxes = [...svg.querySelectorAll('text')].map(t => [t.textContent, t.getBoundingClientRect()]);
  for (const [text, b] of boxes)
    if (b.left < frame.left - 1 || b.right > frame.right + 1 || b.top < frame.top - 1 || b.bottom > frame.bottom + 1)
      faults.push('outside: ' + text);
  const names = boxes.filter(([text]) => text.includes('_t1'));
  names.forEach(([text, a], i) => names.slice(i + 1).forEach(([other, b]) => {
    if (a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 3 && b.top < a.bottom - 3)
      faults.push('on each other: ' + text + ', ' + other);
  }));
}
return faults;
"""


def head() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A ball for a head with a cube in it, and a map that rises in the cube: (48, 56, 44) each."""
    shape = (48, 56, 44)
    place = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
    image = np.where((place**2).sum(axis=0) < 0.8, 0.5 + 0.1 * place[1], 0).astype(np.float32)
    truth = np.zeros(shape, bool)
    truth[28:36, 30:38, 22:30] = True
    image[truth] = 0.9
    return image, truth, np.where(truth, 9.0, 0).astype(np.float32)


@pytest.fixture(scope="module")
def record() -> dict:
    """As many models and sets as the largest table of all shipped models."""
    return evaluation_record(models=24, sets=6)


@pytest.fixture(scope="module")
def page(record, tmp_path_factory):
    image, truth, values = head()
    tails = {share: 1.0 + index for index, (share, _) in enumerate(COLOURS)}
    drawn = three_planes_png(image, values, truth, values > 4, np.diag([4.0, 4.0, 4.0, 1.0]), tails)
    names = [example["picture"] for entry in record["sets"] for example in entry["examples"]]
    path = tmp_path_factory.mktemp("page") / "report.html"
    text = evaluation_html(
        record, blind_spots=[blind_spots()], fairness=fairness(), pictures=dict.fromkeys(names, drawn)
    )
    path.write_text(text, encoding="utf-8")
    return path


def open_at(browser, page, screen: str) -> None:
    width, height = SCREENS[screen]
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get("about:blank")
    browser.get_log("browser")
    browser.get_log("performance")
    browser.get(page.as_uri())


def settled(read, seconds: float = 120.0):
    """The first value other than ``read()``'s nothing that is the same a moment later; scrolling takes its time."""
    deadline, seen = time.monotonic() + seconds, None
    while time.monotonic() < deadline:
        before, seen = seen, read()
        if seen and seen == before:
            break
        time.sleep(0.3)
    return seen


def column(table, index: int) -> list[str]:
    rows = table.find_elements(By.CSS_SELECTOR, "tbody tr")
    return [row.find_elements(By.CSS_SELECTOR, "th, td")[index].text for row in rows]


@pytest.mark.parametrize("screen", SCREENS)
def test_it_opens_without_a_fault_and_without_asking_anybody(browser, page, screenshots, screen):
    started = time.monotonic()
    open_at(browser, page, screen)
    seconds = time.monotonic() - started
    browser.save_screenshot(str(screenshots / f"evaluation_{screen}.png"))
    assert browser.get_log("browser") == []
    asked = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = [m["params"]["request"]["url"] for m in asked if m["method"] == "Network.requestWillBeSent"]
    assert {url for url in urls if not url.startswith(("data:", "about:"))} == {page.as_uri()}
    print(f"opened in {seconds:.1f} s")


@pytest.mark.parametrize("screen", SCREENS)
def test_nothing_hangs_over_the_edge_even_unfolded(browser, page, screen):
    open_at(browser, page, screen)
    browser.execute_script("document.querySelectorAll('details').forEach(d => { d.open = true; });")
    assert browser.execute_script("return document.documentElement.scrollWidth") <= SCREENS[screen][0]
    assert browser.execute_script(OVERFLOWING) == []


@pytest.mark.parametrize("screen", SCREENS)
def test_names_in_charts_are_whole_and_apart(browser, page, screen):
    open_at(browser, page, screen)
    assert browser.execute_script(CHART_FAULTS) == []


@pytest.mark.parametrize("screen", SCREENS)
def test_the_contents_lead_to_every_section(browser, page, record, screen):
    open_at(browser, page, screen)
    links = browser.find_elements(By.CSS_SELECTOR, "nav a")
    assert len(links) == len(record["sets"]) + 7
    for link in links:
        place = link.get_attribute("href").partition("#")[2]
        browser.execute_script("arguments[0].click()", link)
        target = browser.find_element(By.ID, place)
        assert target.is_displayed()
        assert target.find_element(By.TAG_NAME, "h2").text


def test_the_first_screen_says_what_it_is_and_who_beats_the_baselines(browser, page):
    open_at(browser, page, "laptop")
    for part in ("h1", ".research", "#glance tbody tr"):
        found = browser.find_element(By.CSS_SELECTOR, part)
        assert found.is_displayed()
        assert found.rect["y"] + found.rect["height"] < SCREENS["laptop"][1]


def test_sorting_by_keyboard_orders_numbers_and_names(browser, page, record):
    open_at(browser, page, "laptop")
    table = browser.find_element(By.CSS_SELECTOR, "#set-set-0 table.main")
    heads = table.find_elements(By.CSS_SELECTOR, "thead th")
    place = next(i for i, h in enumerate(heads) if h.text.startswith("lesion recall"))
    rows = record["sets"][0]["rows"]
    wanted = {row["model"]: row["points"]["balanced"]["figures"]["recall"]["value"] for row in rows}
    button = heads[place].find_element(By.TAG_NAME, "button")
    for order, descending in (("descending", True), ("ascending", False)):
        button.send_keys(Keys.ENTER)
        assert heads[place].get_attribute("aria-sort") == order
        shown = [name.split("\n")[0] for name in column(table, 0)]
        assert [wanted[name] for name in shown] == sorted(wanted.values(), reverse=descending)
    heads[0].find_element(By.TAG_NAME, "button").send_keys(Keys.SPACE)
    assert [name.split("\n")[0] for name in column(table, 0)] == sorted(wanted)
    assert heads[place].get_attribute("aria-sort") is None


def test_figures_that_are_not_there_stay_at_the_end_when_sorted(browser, page):
    open_at(browser, page, "laptop")
    table = browser.find_element(By.CSS_SELECTOR, "#set-set-0 table.main")
    head = table.find_elements(By.CSS_SELECTOR, "thead th")[2]  # minus the best baseline: baselines have none here
    for _ in range(2):
        head.find_element(By.TAG_NAME, "button").click()
        shown = column(table, 2)
        assert shown[-2:] == ["–", "–"]
        assert "–" not in shown[:-2]


def test_one_operating_point_at_a_time(browser, page, record):
    open_at(browser, page, "laptop")
    fold = browser.find_element(By.CSS_SELECTOR, "#set-set-0 .filtered").find_element(By.XPATH, "./ancestor::details")
    fold.find_element(By.TAG_NAME, "summary").send_keys(Keys.ENTER)
    rows = fold.find_elements(By.CSS_SELECTOR, "tbody tr")
    models = len(record["sets"][0]["rows"])
    assert sum(row.is_displayed() for row in rows) == models
    buttons = {button.text: button for button in fold.find_elements(By.CSS_SELECTOR, "button.filter")}
    assert buttons["balanced"].get_attribute("aria-pressed") == "true"
    buttons["bounded"].click()
    assert {row.get_attribute("data-point") for row in rows if row.is_displayed()} == {"bounded"}
    buttons["all points"].click()
    assert sum(row.is_displayed() for row in rows) == 4 * models


def test_wide_tables_scroll_inside_their_own_box_by_keyboard(browser, page):
    open_at(browser, page, "tablet")
    box = browser.find_element(By.CSS_SELECTOR, "#set-set-0 .scroll")
    assert browser.execute_script("return arguments[0].scrollWidth > arguments[0].clientWidth", box)
    name = box.find_element(By.CSS_SELECTOR, "tbody th")
    left = name.rect["x"]
    box.send_keys(Keys.ARROW_RIGHT * 3)
    assert settled(lambda: browser.execute_script("return arguments[0].scrollLeft", box)) > 0
    assert name.rect["x"] == pytest.approx(left, abs=1)  # the model's name stays in sight


def test_the_whole_hash_is_there_to_copy(browser, page, record):
    open_at(browser, page, "laptop")
    code = browser.find_element(By.CSS_SELECTOR, "#identities code.hash")
    copied = browser.execute_script(
        "const s = getSelection(); s.selectAllChildren(arguments[0]); return s.toString();", code
    )
    assert copied == code.get_attribute("title")
    assert len(copied) == 64


def test_pictures_of_cases_are_drawn_in_the_fixed_colours(browser, page, screenshots):
    open_at(browser, page, "laptop")
    image = browser.find_element(By.CSS_SELECTOR, "#set-set-0 .case img")
    browser.execute_script("arguments[0].scrollIntoView()", image)
    assert browser.execute_script("return arguments[0].naturalWidth", image) == 900
    path = screenshots / "evaluation_case.png"
    path.write_bytes(image.screenshot_as_png)
    shown = np.asarray(Image.open(path).convert("RGB")).astype(int)
    for _, colour in COLOURS:  # the colour bar; the lesion itself in the rarest colour
        assert (np.abs(shown - colour).max(axis=-1) < 12).sum() > 20
    assert (np.abs(shown - COLOURS[-1][1]).max(axis=-1) < 12).sum() > 1000


def test_paper_holds_everything_in_its_width(browser, page):
    """A4 between its margins is 703 pixels wide; printing unfolds what is folded on the screen."""
    open_at(browser, page, "laptop")
    size = {"width": 703, "height": 1000, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        browser.execute_script("dispatchEvent(new Event('beforeprint'))")
        assert browser.execute_script("return document.documentElement.scrollWidth") <= 703
        assert browser.execute_script("return document.querySelectorAll('details:not([open])').length") == 0
        rows = browser.find_elements(By.CSS_SELECTOR, "#set-set-0 .filtered tbody tr")
        assert all(row.is_displayed() for row in rows)
        browser.execute_script("dispatchEvent(new Event('afterprint'))")
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    printed = browser.execute_cdp_cmd("Page.printToPDF", {"preferCSSPageSize": True, "printBackground": True})
    assert base64.b64decode(printed["data"]).startswith(b"%PDF")
    # Folded again when the page is told that the printing is over, which may be after the paper has come.
    assert settled(lambda: browser.execute_script("return document.querySelectorAll('details:not([open])').length")) > 0
