"""Loading time of a page of `lbitcls compare` in a freshly started headless Chromium.

    python benchmarks/analysis_page.py model_analysis.html [--starts 5]

Seconds from the request to the page's text and table (`ready`), and to its first plot (`first plot`). Every start uses
a new browser and profile, so nothing is compiled or cached from an earlier one. Needs Chromium, its chromedriver and
selenium (requirements/tests.txt).
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.support.ui import WebDriverWait

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
)
READY = "return performance.getEntriesByName('ready').length && performance.getEntriesByName('ready')[0].startTime"
FIRST_PLOT = "return document.querySelector('#costs .main-svg') && performance.now()"


def open_once(page: Path) -> dict[str, float]:
    """Return the seconds to `ready` and to `first plot` in a new browser."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = webdriver.ChromeOptions()
        for flag in (*FLAGS, f"--user-data-dir={profile}", "--window-size=1280,800"):
            options.add_argument(flag)
        driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
        try:
            driver.get(page.resolve().as_uri())
            wait = WebDriverWait(driver, 60, poll_frequency=0.02)
            found = {
                name: wait.until(lambda browser, script=script: browser.execute_script(script))
                for name, script in (("ready", READY), ("first plot", FIRST_PLOT))
            }
        finally:
            driver.quit()
    return {name: milliseconds / 1000 for name, milliseconds in found.items()}


def main() -> None:
    """Open the page several times, and print the minimum, median and maximum."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path)
    parser.add_argument("--starts", type=int, default=5)
    args = parser.parse_args()
    if not args.page.is_file():
        raise SystemExit(f"there is no page {args.page}; lbitcls compare writes one.")
    if shutil.which("chromedriver") is None:  # without one selenium would fetch it
        raise SystemExit("chromedriver is not installed; on Debian: apt-get install chromium chromium-driver")
    starts = [open_once(args.page) for _ in range(args.starts)]
    for name in starts[0]:
        seconds = [start[name] for start in starts]
        print(
            f"{name:10} min {min(seconds):.2f} s, median {statistics.median(seconds):.2f} s, max {max(seconds):.2f} s"
        )


if __name__ == "__main__":
    main()
