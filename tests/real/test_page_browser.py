"""The page in a real browser, on the stock server with a folder of scans: reading from upload to a finished review."""

import re
import shutil

import nibabel as nib
import numpy as np
import pytest

from tests.real.page_driver import Held, Reader, wait_until
from tests.server_fixture import copy_studies, running_server

pytestmark = pytest.mark.browser

MODEL = "cold_diffusion_t1"
SLOW = "ddpm_t1"
START_S = 600
SCREENS = {"laptop": (1440, 900), "tablet": (1024, 768), "phone": (390, 844)}


@pytest.fixture(scope="module")
def browser(page_browser):
    return page_browser


@pytest.fixture(scope="module")
def server(studies_dir, tmp_path_factory):
    studies = copy_studies(studies_dir, tmp_path_factory.mktemp("page") / "studies")
    # Nothing on disk: what an earlier run analysed would be at hand at once.
    conf = {"models": f"{MODEL},{SLOW},intensity_t1", "cache_days": "0"}
    with running_server(studies, conf=conf, wait_s=START_S) as running:
        yield running


@pytest.fixture(scope="module")
def analysed(server):
    """The server, with both sample scans analysed."""
    for image in ("ixi_lesion", "ixi_healthy"):
        assert server.infer(f"{MODEL}?image={image}&output=json", data={"params": "{}"}).status_code == 200
    return server


@pytest.fixture
def reader(browser, server):
    """A reader whose window asked nobody but the server, and showed no error."""
    window = Reader(browser, server.url)
    yield window
    window.close()
    assert window.foreign() == []
    assert window.errors == []


def slide_to(page, value: float) -> None:
    """Move the slider as a hand does: many steps, then let go."""
    page.evaluate(
        """value => {
        const slider = document.getElementById('threshold');
        const set = Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, 'value').set;
        const from = Number(slider.value);
        for (let step = 1; step <= 10; step++) {
          set.call(slider, from + (value - from) * step / 10);
          slider.dispatchEvent(new Event('input', { bubbles: true }));
        }
        slider.dispatchEvent(new Event('change', { bubbles: true }));
      }""",
        value,
    )


def test_from_upload_to_a_finished_review_nothing_is_lost(reader, server, lesion_scan, tmp_path):
    page = reader.page
    scan = tmp_path / "new head.nii.gz"
    shutil.copy(lesion_scan, scan)
    reader.open()
    page.set_input_files('input[name="scans"]', str(scan))
    page.get_by_role("button", name="Open new head").click()
    reader.wait_for_picture()
    page.get_by_role("heading", name="No result at hand").wait_for()

    page.get_by_label("Model", exact=True).select_option(MODEL)
    page.get_by_role("button", name="Run", exact=True).click()
    reader.wait_for_findings()
    reader.wait_for_picture()
    before = reader.lesions()
    assert before

    slide_to(page, 4.0)
    page.wait_for_url(re.compile(r"threshold="))
    reader.wait_for_findings()
    assert wait_until(lambda: len(reader.lesions()) < len(before))
    assert reader.lesions() == [1]
    scans_asked = sum("anomaly_map.nii.gz" in url for url in reader.requests)
    assert scans_asked == 1, "moving the threshold must not fetch the map again"

    page.get_by_role("button", name="Accept finding 1").click()
    page.get_by_text("Draft saved").wait_for()
    page.get_by_role("button", name="Comment on finding 1").click()
    page.get_by_label("Comment on finding 1").last.fill("dark, <b>left</b> frontal")
    page.keyboard.press("Enter")
    page.get_by_text("dark, <b>left</b> frontal").wait_for()
    assert wait_until(lambda: "dark" in str(server.get("/anomaly/reviews/new head").json().get("lesions"))), server.get(
        "/anomaly/reviews/new head"
    ).text

    address = page.url
    page.reload()
    reader.wait_for_picture()
    reader.wait_for_findings()
    assert page.url == address
    assert reader.lesions() == [1]
    assert page.get_by_role("button", name="Accept finding 1").get_attribute("aria-pressed") == "true"
    page.get_by_text("dark, <b>left</b> frontal").wait_for()
    assert float(page.locator("#threshold").input_value()) == pytest.approx(4.0, abs=0.02)

    page.get_by_role("button", name=re.compile("^Finish review")).click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_text("1 accepted, 0 rejected, 0 undecided").wait_for()
    dialog.get_by_role("button", name="Finish review").click()
    page.get_by_text("Review finished by Dr. Test").wait_for()
    label = nib.load(server.studies + "/labels/final/new head.nii.gz")
    assert np.asarray(label.dataobj).any()

    page.get_by_role("link", name="Back to the worklist").click()
    row = page.get_by_role("row").filter(has=page.get_by_role("link", name="new head"))
    row.get_by_text("Reviewed").wait_for()
    page.go_back()
    page.get_by_role("heading", name="new head").wait_for()


def test_a_running_analysis_is_found_again_after_a_reload_and_can_be_cancelled(reader, server):
    page = reader.page
    reader.study("ixi_healthy", f"?model={SLOW}&uncertainty=on")
    page.get_by_role("button", name=f"Run {SLOW}").click()
    job = page.get_by_role("status", name="Analysis")
    job.wait_for()
    page.reload()
    job.wait_for()
    job.get_by_text(SLOW).wait_for()
    job.get_by_role("progressbar").wait_for()
    job.get_by_role("button", name="Cancel").click()
    page.get_by_text("cancelled; nothing was stored").wait_for()
    jobs = server.get("/anomaly/jobs?image=ixi_healthy").json()["jobs"]
    assert [one["state"] for one in jobs if one["model"] == SLOW] == ["cancelled"]
    assert SLOW not in server.get("/anomaly/studies/ixi_healthy").json()["results"]


def test_every_step_of_a_reading_can_be_done_by_keyboard(reader, analysed):
    page = reader.page
    reader.study("ixi_lesion")
    reader.wait_for_findings()
    chosen = page.locator('tr[aria-selected="true"]')
    chosen.wait_for()
    assert chosen.get_attribute("data-lesion") == "1"
    page.keyboard.press("j")
    assert wait_until(lambda: chosen.get_attribute("data-lesion") == "2")
    page.keyboard.press("r")
    page.get_by_text("Draft saved").wait_for()
    pressed = page.get_by_role("button", name="Reject finding 2")
    assert pressed.get_attribute("aria-pressed") == "true"
    page.keyboard.press("u")
    assert wait_until(lambda: pressed.get_attribute("aria-pressed") == "false")
    page.keyboard.press("k")
    page.keyboard.press("a")
    assert wait_until(
        lambda: page.get_by_role("button", name="Accept finding 1").get_attribute("aria-pressed") == "true"
    )

    for key, sign in (("o", "layer=none"), ("o", None), ("s", "compare=swipe"), ("2", "layout=axial"), ("1", None)):
        page.keyboard.press(key)
        if sign:
            assert wait_until(lambda sign=sign: sign in page.url)
    assert wait_until(lambda: "layer" not in page.url and "layout" not in page.url)
    at = page.locator(".threshold-value").inner_text()
    page.keyboard.press("+")
    assert wait_until(lambda: page.locator(".threshold-value").inner_text() != at)
    page.wait_for_url(re.compile("threshold="))
    reader.wait_for_findings()

    picture = page.get_by_role("group", name=re.compile("^Image viewer"))
    assert picture.evaluate("element => element.tabIndex") == 0
    picture.focus()
    was = page.locator(".av-readout").inner_text()
    page.keyboard.press("PageUp")
    assert wait_until(lambda: page.locator(".av-readout").inner_text() != was)

    page.keyboard.press("?")
    page.get_by_role("dialog", name="Keys and gestures").wait_for()
    page.keyboard.press("j")
    page.keyboard.press("Escape")
    page.get_by_role("dialog").wait_for(state="detached")
    assert chosen.get_attribute("data-lesion") == "1"
    page.keyboard.press("w")
    page.locator("table.studies").wait_for()
    page.keyboard.press("/")
    page.keyboard.type("healthy")
    assert wait_until(lambda: page.locator("table.studies tbody tr").count() == 1)
    assert "search=healthy" in page.url


def test_the_first_reader_gets_the_most_anomalous_study_and_the_second_the_other(browser, reader, analysed):
    reader.open()
    reader.page.get_by_role("button", name="Next study").click()
    reader.page.get_by_role("heading", name="ixi_lesion").wait_for()
    reader.page.get_by_text("in your hands").wait_for()
    other = Reader(browser, analysed.url, name="Dr. Other")
    try:
        other.open()
        other.page.get_by_text("read by Dr. Test").wait_for()
        other.page.get_by_role("button", name="Next study").click()
        other.page.get_by_role("heading", name="ixi_healthy").wait_for()
    finally:
        other.close()
    assert other.errors == []


def test_nothing_abnormal_stores_an_empty_label(reader, analysed):
    page = reader.page
    reader.page.request.delete(f"{analysed.url}/anomaly/studies/ixi_healthy/lease?reader=Dr.%20Other")
    reader.study("ixi_healthy", f"?model={MODEL}")
    reader.wait_for_findings()
    page.get_by_role("button", name="Nothing abnormal").click()
    page.get_by_role("button", name="Store: nothing abnormal").click()
    page.get_by_text("Review finished by Dr. Test").wait_for()
    label = nib.load(analysed.studies + "/labels/final/ixi_healthy.nii.gz")
    assert not np.asarray(label.dataobj).any()


def test_a_decision_made_at_another_threshold_stays_in_sight_and_can_be_taken_back(reader, analysed):
    page = reader.page
    reader.expected.append(r"status of 400 .*/anomaly/reviews/ixi_lesion")
    reader.study("ixi_lesion", f"?model={MODEL}&threshold=4")
    reader.wait_for_findings()
    accept = page.get_by_role("button", name="Accept finding 1")
    if accept.get_attribute("aria-pressed") != "true":
        accept.click()
    page.get_by_text("Draft saved").wait_for()
    slide_to(page, 99)
    page.get_by_text("Nothing lies above this threshold").wait_for()
    elsewhere = page.locator(".elsewhere li").filter(has_text="Accepted")
    elsewhere.wait_for()
    page.get_by_role("button", name=re.compile("^Finish review")).click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_text("1 place accepted at other settings").wait_for()
    dialog.get_by_role("button", name="Finish review").click()
    dialog.get_by_text("is not marked at these settings").wait_for()
    page.keyboard.press("Escape")
    elsewhere.get_by_role("button", name=re.compile("^Show L")).click()
    elsewhere.get_by_role("button", name=re.compile("^Take back")).click()
    elsewhere.wait_for(state="detached")
    page.get_by_text("Draft saved").wait_for()
    kept = analysed.get("/anomaly/reviews/ixi_lesion").json()["lesions"]
    assert "accept" not in [one["decision"] for one in kept]


def test_a_finding_chosen_while_the_picture_is_fetched_stays_chosen(reader, analysed):
    page = reader.page
    scan = Held(page, "**/scan.nii.gz*")
    reader.open(f"#/study/ixi_lesion?model={MODEL}")
    reader.wait_for_findings()
    scan.wait()
    page.get_by_role("button", name=re.compile("^Finding 2, ")).click()
    scan.release()
    reader.wait_for_picture()
    reader.settle()
    assert page.locator('tr[aria-selected="true"]').get_attribute("data-lesion") == "2"


def test_a_pressed_decision_looks_pressed_also_under_the_pointer(reader, analysed):
    page = reader.page
    reader.study("ixi_lesion", f"?model={MODEL}")
    reader.wait_for_findings()
    reject = page.get_by_role("button", name="Reject finding 2")
    if reject.get_attribute("aria-pressed") != "true":
        reject.click()
    assert wait_until(lambda: reject.get_attribute("aria-pressed") == "true")
    reject.hover()
    over = reject.evaluate("button => getComputedStyle(button).backgroundColor")
    page.mouse.move(5, 5)
    assert wait_until(lambda: reject.evaluate("button => getComputedStyle(button).backgroundColor") == over)


def test_what_repeated_analyses_say_fits_the_table_and_has_units(reader, server):
    params = {"params": '{"uncertainty": "on"}'}
    assert server.infer("intensity_t1?image=ixi_lesion&output=json", data=params).status_code == 200
    page = reader.page
    reader.study("ixi_lesion", "?model=intensity_t1&uncertainty=on&layer=uncertainty")
    reader.wait_for_findings()
    page.get_by_text(re.compile("found again in \\d+\\s% of repeats")).first.wait_for()
    table = page.locator(".lesions")
    assert table.evaluate("box => box.scrollWidth <= box.clientWidth"), "the comment's button is cut off"
    page.get_by_text("Spread over repeated analyses, in healthy SD").wait_for()
    page.get_by_role("tab", name="Report, files, details").click()
    page.get_by_text("4 preparations, 2 seeds each").wait_for()
    page.get_by_text(re.compile("preparation of the scan \\d+ %")).first.wait_for()


def test_another_models_analysis_does_not_exchange_the_result_that_is_read(reader, analysed):
    page = reader.page
    reader.study("ixi_lesion", f"?model={MODEL}")
    reader.wait_for_findings()
    job = {"image": "ixi_lesion", "model": "intensity_t1", "params": {"seed": "7"}}
    answer = page.request.post(f"{analysed.url}/anomaly/jobs", data=job)
    assert answer.ok
    # Opened while the other analysis goes on, as the page then follows it to its end.
    started = {"jobs": [{**answer.json(), "state": "running"}], "waiting": 0}
    page.route("**/anomaly/jobs?*", lambda route: route.fulfill(json=started))
    page.reload()
    reader.wait_for_findings()
    page.get_by_text("intensity_t1 has analysed this study, too").wait_for()
    assert f"model={MODEL}" in page.url
    assert page.get_by_label("Model", exact=True).input_value() == MODEL


def test_names_are_text_and_refusals_are_told(reader, lesion_scan, tmp_path):
    page = reader.page
    hostile = tmp_path / "<img src=x onerror=alert(1)>.nii.gz"
    shutil.copy(lesion_scan, hostile)
    (tmp_path / "notes.txt").write_text("not a scan")
    reader.open()
    page.set_input_files('input[name="scans"]', [str(hostile), str(tmp_path / "notes.txt")])
    page.get_by_text("not a file that can be read here").wait_for()
    page.get_by_role("button", name="Open <img src=x onerror=alert(1)>").click()
    page.get_by_role("heading", name="<img src=x onerror=alert(1)>").wait_for()
    reader.wait_for_picture()
    page.get_by_role("link", name="Back to the worklist").click()
    page.get_by_role("link", name="<img src=x onerror=alert(1)>").wait_for()
    assert page.locator("img").count() == 0


def test_files_can_be_dropped(reader, lesion_scan):
    reader.open()
    reader.page.get_by_text("Drop scans here").wait_for()
    content = list(lesion_scan.read_bytes())
    reader.page.evaluate(
        """bytes => {
        const files = new DataTransfer();
        files.items.add(new File([new Uint8Array(bytes)], 'dropped.nii.gz'));
        for (const kind of ['dragenter', 'dragover', 'drop'])
          window.dispatchEvent(new DragEvent(kind, { dataTransfer: files, bubbles: true, cancelable: true }));
      }""",
        content,
    )
    reader.page.get_by_role("button", name="Open dropped").wait_for()


def test_the_report_the_files_and_the_card_open(reader, analysed):
    page = reader.page
    reader.study("ixi_lesion", f"?model={MODEL}")
    reader.wait_for_findings()
    page.get_by_role("tab", name="Report, files, details").click()
    for link in page.locator(".downloads a").all():
        answer = page.request.get(link.get_attribute("href"))
        assert answer.ok, link.get_attribute("href")
    page.get_by_role("button", name="Model card").click()
    page.get_by_role("dialog").get_by_role("heading", name="Method").wait_for()


def test_an_address_that_changes_while_the_page_starts_is_followed(reader, analysed):
    """At once after the first drawing, before its first frame: a link followed then must not be lost."""
    reader.page.add_init_script(
        """new MutationObserver((_, self) => {
          if (!document.querySelector('header.top')) return;
          self.disconnect();
          history.replaceState(null, '', '#/study/ixi_lesion');
          dispatchEvent(new PopStateEvent('popstate'));
        }).observe(document, { childList: true, subtree: true });"""
    )
    reader.open()
    reader.wait_for_picture()


def test_a_server_that_is_away_is_said_in_words(reader):
    page = reader.page
    reader.expected.append("net::ERR_FAILED")
    page.route("**/anomaly/studies?**", lambda route: route.abort())
    reader.open()
    page.get_by_text("the server cannot be reached").wait_for()
    page.unroute("**/anomaly/studies?**")
    page.get_by_role("button", name="Try again").click()
    page.locator("table.studies").wait_for()


def test_while_the_server_is_away_the_picture_stays_and_the_draft_is_sent_later(reader, analysed):
    page = reader.page
    reader.expected.append("net::ERR_FAILED")
    reader.study("ixi_lesion", f"?model={MODEL}&threshold=1.5")
    reader.wait_for_findings()
    reader.wait_for_picture()
    page.evaluate("document.querySelector('.av').dataset.mine = 'yes'")
    page.route("**/anomaly/**", lambda route: route.abort())
    slide_to(page, 2.5)
    page.locator(".study > .banner.error").get_by_text("the server cannot be reached").wait_for()
    assert page.locator('.av[data-mine="yes"]').count() == 1, "the viewer was started anew"
    page.get_by_role("button", name="Reject finding 1").click()
    page.get_by_text("Not saved: the server cannot be reached").wait_for()
    page.unroute("**/anomaly/**")
    page.get_by_text("Draft saved").wait_for()
    page.locator(".study > .banner.error").get_by_role("button", name="Try again").click()
    reader.wait_for_findings()
    assert page.locator('.av[data-mine="yes"]').count() == 1


@pytest.mark.parametrize("screen", SCREENS)
def test_nothing_hangs_over_the_edge(browser, analysed, screenshots, screen):
    window = Reader(browser, analysed.url, SCREENS[screen], touch=screen != "laptop")
    try:
        window.open()
        window.page.locator("table.studies").wait_for()
        window.page.screenshot(path=str(screenshots / f"page_worklist_{screen}.png"), full_page=screen == "phone")
        assert window.overflow() == []
        window.study("ixi_lesion", f"?model={MODEL}")
        window.wait_for_findings()
        window.settle()
        window.page.screenshot(path=str(screenshots / f"page_study_{screen}.png"), full_page=screen == "phone")
        assert window.overflow() == []
        assert window.page.get_by_text("For research use only; not a medical device").first.is_visible()
    finally:
        window.close()
    assert window.errors == []
    assert window.foreign() == []
