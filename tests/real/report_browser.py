"""A bare headless browser for report pages, with everything that it logs and fetches."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service

from tests.real.ohif_driver import CHROMEDRIVER, CHROMIUM, browser_missing

_FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--force-device-scale-factor=1")


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    """One for the tests of a file."""
    reason = browser_missing()
    if reason:
        pytest.skip(reason)
    options = Options()
    options.binary_location = CHROMIUM
    for flag in _FLAGS:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(CHROMEDRIVER))
    yield driver
    driver.quit()
