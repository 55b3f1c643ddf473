"""Chromium, a server that asks for tokens, and an archive: the page and OHIF work behind the login page."""

import pytest
import requests
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from tests.real.conftest import STAND_IN, START_S
from tests.real.page_driver import Held, Reader, wait_until
from tests.server_fixture import make_app, running_server

pytestmark = pytest.mark.browser


def sign_in(page, token, name="ward-3"):
    page.locator("input[name=username]").fill(name)
    page.locator("input[name=password]").fill(token)
    page.locator("button[type=submit]").click()


@pytest.mark.parametrize(
    ("size", "image"), [((1440, 900), "ixi_lesion"), ((390, 844), "ixi_healthy")], ids=["laptop", "phone"]
)
def test_a_reader_signs_in_where_a_link_led_runs_and_signs_out(
    page_browser, folder_server, tokens, screenshots, size, image
):
    reader = Reader(page_browser, folder_server.url, size)
    page = reader.page
    reader.open(f"#/study/{image}")
    assert "/anomaly/login?next=" in page.url
    assert reader.overflow() == []
    page.screenshot(path=screenshots / f"login_{size[0]}.png")
    sign_in(page, "wrong")
    page.get_by_role("alert").wait_for()
    assert page.locator("input[name=username]").input_value() == "ward-3"
    page.screenshot(path=screenshots / f"login_wrong_{size[0]}.png")
    sign_in(page, tokens[1])
    # The link's own part after # is not lost.
    page.wait_for_url(f"**/anomaly/#/study/{image}")
    reader.wait_for_picture()
    page.get_by_role("button", name="Run", exact=True).click()
    reader.wait_for_findings()
    assert reader.lesions()
    assert reader.overflow() == []
    page.screenshot(path=screenshots / f"signed_in_{size[0]}.png")
    page.get_by_role("button", name="Sign out").click()
    page.wait_for_url("**/anomaly/login")
    reader.open()
    assert "/anomaly/login?next=" in page.url
    reader.close()
    assert reader.foreign() == []
    assert [error for error in reader.errors if "401" not in error] == []


def test_what_was_typed_outlives_the_session(page_browser, folder_server, tokens):
    """The session ends while a comment is written: after signing in over the page it is there, and is sent."""
    reader = Reader(page_browser, folder_server.url)
    page = reader.page
    auth = {"Authorization": f"Bearer {tokens[1]}"}
    scan = {"image": "ixi_lesion", "output": "json"}
    assert folder_server.infer("cold_diffusion_t1", params=scan, headers=auth).status_code == 200
    page.goto(f"{folder_server.url}/anomaly/login")
    sign_in(page, tokens[1])
    page.wait_for_url("**/anomaly/")
    reader.study("ixi_lesion", "?model=cold_diffusion_t1")
    reader.wait_for_findings()
    reader.context.clear_cookies()
    page.locator("tr[data-lesion]").first.get_by_role("button", name="Accept").first.click()
    dialog = page.get_by_role("dialog", name="Please sign in again")
    dialog.wait_for()
    dialog.locator("input[type=password]").fill(tokens[1])
    dialog.get_by_role("button", name="Sign in").click()
    dialog.wait_for(state="detached")

    def kept():
        found = requests.get(f"{folder_server.url}/anomaly/reviews/ixi_lesion", headers=auth, timeout=60)
        return [one["decision"] for one in found.json().get("lesions", [])] if found.ok else []

    assert wait_until(kept) == ["accept"]
    reader.close()


def test_a_login_that_was_declined_is_not_asked_for_by_what_the_page_looks_up_itself(signed_in):
    page = signed_in.page
    page.add_init_script("{ const every = setInterval; window.setInterval = (f, ms) => every(f, ms / 100) }")
    signed_in.open()
    page.locator("table.studies").wait_for()
    signed_in.context.clear_cookies()
    page.locator("dialog[open]").wait_for()
    page.locator("dialog[open]").get_by_role("button", name="Close").click()
    page.locator("dialog").wait_for(state="detached")
    for _ in range(2):
        with page.expect_response(lambda answer: "/anomaly/studies?" in answer.url and answer.status == 401):
            pass
    assert page.locator("dialog").count() == 0
    page.get_by_role("button", name="Try again").click()
    page.locator("dialog[open]").wait_for()


def test_an_answer_from_before_the_login_does_not_ask_for_it_again(signed_in, tokens):
    page = signed_in.page
    signed_in.open()
    page.locator("table.studies").wait_for()
    signed_in.context.clear_cookies()
    late = Held(page, "**/anomaly/jobs?*")
    page.evaluate("location.hash = '#/study/ixi_healthy'")
    late.wait()
    assert [answer.status for _, answer in late.kept] == [401]
    dialog = page.locator("dialog[open]")
    dialog.locator("input[name=username]").fill("ward-3")
    dialog.locator("input[type=password]").fill(tokens[1])
    dialog.get_by_role("button", name="Sign in").click()
    page.locator("dialog").wait_for(state="detached")
    with page.expect_response(lambda answer: "/anomaly/jobs?" in answer.url and answer.status == 200):
        late.release()
    page.evaluate("new Promise(done => setTimeout(done, 100))")
    assert page.locator("dialog").count() == 0


@pytest.mark.orthanc
def test_ohif_lists_and_runs_behind_the_login(ohif, orthanc, tokens, hook_series, screenshots, tmp_path):
    series = hook_series("axial")
    app = make_app(tmp_path, {STAND_IN: "kind: anomaly\nmethod: ddpm\nmodality: t1\n"})
    env = {"MONAI_LABEL_DICOMWEB_CACHE_PATH": str(tmp_path / "cache"), "HOME": str(tmp_path)}
    conf = {"models": "all", "tokens": str(tokens[0].path)}
    with running_server(
        orthanc.dicomweb_url, app=app, conf=conf, fake_pipeline=True, env=env, wait_s=START_S
    ) as server:
        assert requests.get(f"{server.url}/proxy/dicom/qido/studies", timeout=60).status_code == 401
        driver = ohif.browser
        driver.get(f"{server.url}/ohif/")
        assert "/anomaly/login?next=" in driver.current_url
        driver.find_element(By.NAME, "username").send_keys("ward-3")
        driver.find_element(By.NAME, "password").send_keys(tokens[1])
        driver.find_element(By.CSS_SELECTOR, "button[type=submit]").click()
        WebDriverWait(driver, 180).until(lambda page: page.find_elements(By.CSS_SELECTOR, "[data-cy^='studyRow']"))
        assert driver.current_url == f"{server.url}/ohif/"
        driver.save_screenshot(str(screenshots / "ohif_list_signed_in.png"))
        ohif.open_study(server.url, series.study_uid)
        assert ohif.connect() == [STAND_IN, f"{STAND_IN}_bands"]
        ohif.run(STAND_IN)
        assert len(ohif.label().points_lps())
        driver.save_screenshot(str(screenshots / "ohif_signed_in.png"))
