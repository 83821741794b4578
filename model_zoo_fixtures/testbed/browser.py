"""A real Chromium without a window, driven by selenium; tests are skipped where there is none."""

import shutil
from contextlib import contextmanager

import pytest

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")


@contextmanager
def open_browser(width, height, *, dark=False, phone=False):
    """Open a window of that size."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="pip install selenium")
    if BROWSER is None or DRIVER is None:
        pytest.skip("no Chromium with its driver here: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    flags = ("headless=new", "no-sandbox", "disable-dev-shm-usage", "hide-scrollbars", f"window-size={width},{height}")
    for flag in flags:
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    try:
        if dark:
            feature = {"name": "prefers-color-scheme", "value": "dark"}
            browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        screen = {"width": width, "height": height, "deviceScaleFactor": 2 if phone else 1, "mobile": phone}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        yield browser
    finally:
        browser.quit()
