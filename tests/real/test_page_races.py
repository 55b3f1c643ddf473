"""The page when things come in another order than usual: late answers, hands that are faster, a server that is away."""

import json
import re
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import requests

from tests.real.page_driver import READER, Held, Reader, wait_until

pytestmark = pytest.mark.browser

MODEL = "cold_diffusion_t1"
LESION, OTHER = "race_lesion", "race_other"
COMMENT = "Comment on the study"
SET_SLIDER = """value => {
  const slider = document.getElementById('threshold');
  Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, 'value').set.call(slider, value);
  slider.dispatchEvent(new Event('input', { bubbles: true }));
}"""


@pytest.fixture(scope="module")
def api(folder_server, tokens):
    """The server's REST interface; two scans of these tests are there and analysed."""
    session = requests.Session()
    session.headers["Authorization"] = f"Bearer {tokens[1]}"

    def ask(path, method="GET", **more):
        return session.request(method, folder_server.url + path, timeout=60, **more)

    add_scan(folder_server, ask, "ixi_lesion", LESION)
    add_scan(folder_server, ask, "ixi_healthy", OTHER)
    return ask


def add_scan(server, api, copied, image):
    """A scan under another name, not quite the same, analysed: what the stand-in has seen before is at hand at once."""
    scan = nib.load(Path(server.studies) / f"{copied}.nii.gz")
    data = np.asanyarray(scan.dataobj).copy()
    data[0, 0, 0] = len(image)
    nib.save(nib.Nifti1Image(data, scan.affine), Path(server.studies) / f"{image}.nii.gz")
    assert wait_until(lambda: api(f"/anomaly/studies/{image}").ok)
    assert api(f"/infer/{MODEL}?image={image}&output=json", "POST", data={"params": "{}"}).ok


@pytest.fixture
def reader(signed_in, api):
    """Signed in; an error on the page fails the test, but for requests that the test itself broke."""
    signed_in.expected.append("net::ERR_FAILED")
    yield signed_in
    assert signed_in.errors == []


@pytest.fixture
def study(reader):
    """The lesion's study, its findings shown, the picture perhaps not yet."""
    reader.open(f"#/study/{LESION}?model={MODEL}")
    reader.wait_for_findings()
    return reader.page


def pause(page, ms: int) -> None:
    """Until timers of the page that run now and end earlier than this have ended."""
    page.evaluate("ms => new Promise(done => setTimeout(done, ms))", ms)


def moved_to(page, address: str) -> None:
    """As a link does, without a click."""
    page.evaluate("to => { history.replaceState(null, '', to); dispatchEvent(new PopStateEvent('popstate')) }", address)


def kept_comment(api) -> str:
    answer = api(f"/anomaly/reviews/{LESION}")
    return answer.json().get("comment", "") if answer.ok else ""


def test_a_threshold_in_motion_does_not_reach_the_next_view(study):
    study.keyboard.press("+")
    study.keyboard.press("w")
    study.locator("table.studies").wait_for()
    pause(study, 500)
    assert "threshold" not in study.url


def test_a_threshold_that_comes_back_to_where_it_was_is_settled(reader, study):
    points = study.get_by_role("group", name="Operating points").get_by_role("button")
    points.first.click()
    study.wait_for_url(re.compile("operating_point="))
    reader.wait_for_findings()
    points.first.click()
    pause(study, 100)
    assert study.locator(".lesions.stale").count() == 0
    value = float(study.locator("#threshold").input_value())
    study.evaluate(SET_SLIDER, str(value + 0.1))
    study.evaluate(SET_SLIDER, str(value))
    study.locator("#threshold").dispatch_event("pointerup")
    pause(study, 400)
    reader.wait_for_findings()


def test_an_answer_does_not_take_the_slider_out_of_the_hand(study):
    late = Held(study, f"**/anomaly/results/{LESION}?*")
    study.get_by_role("group", name="Operating points").get_by_role("button").first.click()
    late.wait()
    study.evaluate(SET_SLIDER, "0.8")
    with study.expect_response(lambda answer: "operating_point=" in answer.url):
        late.release()
    pause(study, 100)
    assert float(study.locator("#threshold").input_value()) == pytest.approx(0.8, abs=0.02)


def test_what_is_being_typed_outlives_a_redraw_and_is_kept_when_the_view_goes(reader, study, api):
    box = study.get_by_label(COMMENT)
    box.click()
    study.keyboard.type("half a sent")
    moved_to(study, f"#/study/{LESION}?model={MODEL}&layout=axial")
    study.get_by_role("button", name="Axial", pressed=True).wait_for()
    assert box.input_value() == "half a sent"
    study.keyboard.type("ence")
    moved_to(study, "#/")
    study.locator("table.studies").wait_for()
    assert wait_until(lambda: kept_comment(api) == "half a sentence"), kept_comment(api)


def test_two_things_said_before_the_readers_name_is_known_are_both_kept(page_browser, signed_in, folder_server, api):
    cookies = signed_in.context.cookies()
    reader = Reader(page_browser, folder_server.url, name="")
    try:
        reader.context.add_cookies(cookies)
        page = reader.page
        reader.open(f"#/study/{OTHER}?model={MODEL}")
        reader.wait_for_findings()
        page.get_by_label(COMMENT).fill("nameless")
        # Both ask who is reading before anybody can answer.
        page.evaluate("document.activeElement.blur(); document.querySelector('button.accept').click()")
        page.get_by_label("Your name or initials").fill("Dr. New")
        page.get_by_role("button", name="Continue").click()

        def kept():
            found = api(f"/anomaly/reviews/{OTHER}").json()
            return found.get("comment") == "nameless" and [one["decision"] for one in found["lesions"]] == ["accept"]

        assert wait_until(kept), api(f"/anomaly/reviews/{OTHER}").text
    finally:
        reader.close()


def test_decisions_that_could_not_be_sent_are_sent_after_their_study_was_left(study, api):
    study.route("**/anomaly/reviews/*", lambda route: route.abort())
    box = study.get_by_label(COMMENT)
    box.fill("written while the server was away")
    box.blur()
    study.get_by_text("Not saved: the server cannot be reached").wait_for()
    study.keyboard.press("w")
    study.get_by_text("race_lesion: the last decisions are not saved yet").wait_for()
    study.unroute("**/anomaly/reviews/*")
    assert wait_until(lambda: "server was away" in kept_comment(api)), kept_comment(api)
    study.get_by_text("race_lesion: the last decisions are saved now").wait_for()


def test_an_older_list_of_analyses_does_not_hide_the_one_just_started(reader, api, hold_file):
    page = reader.page
    failed = {"id": "old", "kind": "infer", "model": MODEL, "image": LESION, "state": "failed", "error": "old"}
    late = Held(page, "**/anomaly/jobs?*", instead={"jobs": [failed], "waiting": 0})
    reader.open(f"#/study/{LESION}?model={MODEL}&seed=77")
    late.wait()
    hold_file.touch()
    try:
        page.get_by_role("button", name=re.compile("^Run")).first.click()
        job = page.get_by_role("status", name="Analysis")
        job.wait_for()
        late.release()
        pause(page, 100)
        assert job.count() == 1
        # Nor does a refusal to cancel it.
        page.route("**/anomaly/jobs/*", lambda r: r.abort() if r.request.method == "DELETE" else r.fallback())
        job.get_by_role("button", name="Cancel").click()
        page.get_by_text("Not cancelled: the server cannot be reached").wait_for()
        page.unroute("**/anomaly/jobs/*")
        job.get_by_role("button", name="Cancel").click()
        page.get_by_text("cancelled; nothing was stored").wait_for()
    finally:
        hold_file.unlink()


def test_a_list_that_takes_long_is_waited_for(reader):
    """Every look, taken often, used to give up the one before it."""
    reader.page.add_init_script(
        """{
        const [every, ask] = [setInterval, fetch];
        window.setInterval = (f, ms) => every(f, ms / 300);
        window.fetch = async (...given) => {
          const answer = await ask(...given);
          if (String(given[0]).includes('/anomaly/studies?')) await new Promise(done => setTimeout(done, 500));
          return answer;
        };
        }"""
    )
    reader.open()
    reader.page.locator("table.studies").wait_for(timeout=10_000)


def test_a_scan_dropped_before_the_list_is_known_is_analysed_and_its_upload_stays_in_sight(reader, api, folder_server):
    page = reader.page
    list_ = Held(page, "**/anomaly/studies?*")
    sent = Held(page, "**/datastore/image?*", "PUT")
    reader.open()
    page.get_by_label("Analyse them at once").check()
    list_.wait()
    list_.release()
    page.locator("table.studies").wait_for()
    page.evaluate(
        """bytes => {
        const files = new DataTransfer();
        files.items.add(new File([new Uint8Array(bytes)], 'at once.nii.gz'));
        window.dispatchEvent(new DragEvent('drop', { dataTransfer: files, bubbles: true, cancelable: true }));
      }""",
        list((Path(folder_server.studies) / f"{LESION}.nii.gz").read_bytes()),
    )
    sent.wait()
    moved_to(page, f"#/study/{OTHER}")
    page.get_by_role("heading", name=f"{OTHER}").wait_for()
    moved_to(page, "#/")
    page.get_by_role("list", name="Uploads").get_by_text("at once.nii.gz").wait_for()
    sent.release()
    page.get_by_role("button", name="Open at once").wait_for()
    assert wait_until(lambda: MODEL in api("/anomaly/studies/at once").json()["results"])
    assert page.get_by_text("stored but not analysed").count() == 0


def test_the_next_study_is_taken_once_and_not_for_a_reader_who_has_gone(study, api):
    late = Held(study, "**/anomaly/studies?*state=analysed*")
    study.keyboard.press("n")
    study.keyboard.press("n")
    late.wait()
    moved_to(study, "#/?search=ixi")
    study.locator("table.studies").wait_for()
    late.release()
    pause(study, 300)
    assert len(late.kept) == 1
    assert "search=ixi" in study.url
    assert [one["lease"] for one in api("/anomaly/studies").json()["studies"] if one["lease"]] == []


def test_a_namesake_of_another_account_is_somebody_else(reader, api, tokens, folder_server):
    namesake = {"Authorization": f"Bearer {tokens[0].create('namesake', 'reader')[0]}"}
    lease, page = f"{folder_server.url}/anomaly/studies/{LESION}/lease", reader.page
    taken = requests.post(lease, json={"reader": READER}, headers=namesake, timeout=60)
    assert taken.ok
    try:
        assert api(f"/anomaly/studies/{LESION}").json()["lease"]["yours"] is False
        reader.open("#/")
        row = page.locator("table.studies tbody tr").filter(has=page.get_by_role("link", name=LESION, exact=True))
        row.get_by_text(f"read by {READER}").wait_for()
        reader.open(f"#/study/{LESION}?model={MODEL}")
        page.get_by_text(f"read by {READER}").wait_for()
        assert page.get_by_text("in your hands").count() == 0
    finally:
        assert requests.delete(lease, params={"reader": READER}, headers=namesake, timeout=60).ok


def test_a_viewer_that_could_not_be_fetched_can_be_tried_again(reader):
    page = reader.page
    page.route("**/assets/viewer-*.js", lambda route: route.abort())
    reader.open(f"#/study/{LESION}")
    page.get_by_text("The viewer could not be started").wait_for()
    page.unroute("**/assets/viewer-*.js")
    page.locator(".viewer-note.error").get_by_role("button", name="Try again").click()
    reader.wait_for_picture()


def test_the_focus_comes_back_from_a_window(study):
    study.get_by_role("button", name="Model card").focus()
    study.keyboard.press("Enter")
    window = study.get_by_role("dialog", name=re.compile("^Model card"))
    window.get_by_role("heading", name="Method").wait_for()
    study.keyboard.press("Escape")
    study.locator("dialog").wait_for(state="detached")
    assert study.evaluate("document.activeElement.textContent") == "Model card"


COUNT_CONTEXTS = """{
  const get = HTMLCanvasElement.prototype.getContext;
  window.contexts = [];
  HTMLCanvasElement.prototype.getContext = function (kind, ...rest) {
    const made = get.call(this, kind, ...rest);
    if (kind === 'webgl2' && made && !window.contexts.includes(made)) window.contexts.push(made);
    return made;
  };
}"""


def test_thirty_studies_opened_one_after_another_leave_one_graphics_context(reader):
    """Some are left before their picture is there."""
    page = reader.page
    page.add_init_script(COUNT_CONTEXTS)
    reader.open(f"#/study/{LESION}")
    reader.wait_for_picture()
    for turn in range(30):
        moved_to(page, f"#/study/{OTHER if turn % 2 else LESION}?turn={turn}")
        pause(page, 60 * (turn % 3))
    moved_to(page, f"#/study/{OTHER}")
    reader.wait_for_picture()
    alive = "window.contexts.filter(one => !one.isContextLost()).length"
    assert wait_until(lambda: page.evaluate(alive) == 1, 20), page.evaluate(alive)


def test_a_scan_that_was_replaced_by_hand_is_shown_as_one(reader, api, folder_server, healthy_scan, screenshots):
    """Also where its study is open: nothing of the former scan stays on the screen."""
    page = reader.page
    target = Path(folder_server.studies) / "head.nii.gz"
    add_scan(folder_server, api, LESION, "head")
    review = {"model": MODEL, "params": {}, "reader": "anna", "comment": "of the former scan"}
    assert api("/anomaly/reviews/head", "PUT", data=json.dumps(review)).ok
    reader.open(f"#/study/head?model={MODEL}")
    reader.wait_for_findings()
    reader.wait_for_picture()
    assert page.get_by_label(COMMENT).input_value() == "of the former scan"
    shutil.copy(healthy_scan, target)
    assert wait_until(lambda: api("/anomaly/studies/head").json()["replaced_by_hand"])
    moved_to(page, f"#/study/head?model={MODEL}&min_lesion_volume=0 ml")
    page.get_by_text("make sure that it is the patient whom you expect").wait_for()
    page.get_by_text("has changed on the server").wait_for()
    page.get_by_role("heading", name="No result at hand").wait_for()
    reader.wait_for_picture()
    for name, size in (("laptop", (1440, 900)), ("phone", (390, 844))):
        page.set_viewport_size({"width": size[0], "height": size[1]})
        page.get_by_role("button", name="Why?").or_(page.get_by_role("button", name="Less")).wait_for()
        page.screenshot(path=str(screenshots / f"page_replaced_{name}.png"))
        assert reader.overflow() == []
    moved_to(page, "#/?search=head")
    page.locator("table.studies").get_by_text(re.compile("scan replaced by hand")).wait_for()
    for name, size in (("phone", (390, 844)), ("laptop", (1440, 900))):
        page.set_viewport_size({"width": size[0], "height": size[1]})
        page.screenshot(path=str(screenshots / f"page_replaced_list_{name}.png"))
        assert reader.overflow() == []
