"""The page on a DICOMweb archive: series by what the archive says of them, no uploads, objects sent back."""

import pytest

from tests.dicom_factory import PATIENT_NAME
from tests.real.page_driver import Reader

pytestmark = [pytest.mark.browser, pytest.mark.orthanc]

MODEL = "intensity_t1"
NAMES = ("Segmentation", "Parametric map", "Structured report")


@pytest.fixture(scope="module")
def browser(page_browser):
    return page_browser


def test_a_series_is_read_and_its_objects_are_sent_to_the_archive(
    browser, orthanc, shipped_server, lesion_series, screenshots
):
    series = lesion_series("axial")
    reader = Reader(browser, shipped_server.url)
    page = reader.page
    try:
        reader.open()
        page.get_by_text("come from a DICOM archive").wait_for()
        assert page.locator('input[type="file"]').count() == 0
        row = page.get_by_role("row").filter(has_text=series.series_uid)
        row.get_by_role("link", name=str(PATIENT_NAME).replace("^", " ").strip()).wait_for()
        page.screenshot(path=str(screenshots / "page_worklist_dicom.png"))
        reader.study(series.series_uid, f"?model={MODEL}")
        page.get_by_role("button", name=f"Run {MODEL}").click()
        reader.wait_for_findings()
        reader.wait_for_picture()
        assert reader.lesions()
        page.get_by_role("tab", name="Report, files, details").click()
        page.get_by_role("button", name="Send to the archive").click()
        told = page.get_by_role("status").filter(has_text="Stored in the archive")
        told.wait_for()
        page.screenshot(path=str(screenshots / "page_study_dicom.png"))
        for name in NAMES:
            assert name in told.inner_text()
        kinds = {
            orthanc.session.get(f"{orthanc.url}/series/{one}").json()["MainDicomTags"]["Modality"]
            for one in orthanc.session.get(f"{orthanc.url}/series").json()
        }
        assert {"MR", "SEG", "SR"} <= kinds
    finally:
        reader.close()
    assert reader.errors == []
    assert reader.foreign() == []
