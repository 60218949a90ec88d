"""Draw what a page of the digits model shows, on a laptop and on a phone, in headless Chromium.

lbitcls export configs/quickstart/digits_lsq_4w4f.py work_dirs/digits_lsq_4w4f/best_top-1.pth --target web --out page
python docs/plot_web.py page [--out docs/screens]
"""

from __future__ import annotations

import argparse
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

from PIL import Image
from plot_screens import smaller

from lbitcls.datasets.digits import Digits
from lbitcls.deploy.runtime.engines.onnxruntime_web import open_browser
from lbitcls.deploy.runtime.page.server import serving

LAPTOP, PHONE = (1440, 900), (390, 844)
IMAGES = 12
TWO = ((-0.2, -0.22), (-0.05, -0.36), (0.15, -0.33), (0.2, -0.15), (-0.12, 0.2), (-0.25, 0.36), (0.26, 0.36))
"""Stroke of a 2, in parts of the area's side from its center."""


def show(browser: Any, url: str, size: tuple[int, int], dark: bool) -> None:
    """Open the page on a screen of a size, and wait for its model."""
    width, height = size
    screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": size == PHONE}
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    browser.execute_cdp_cmd("Emulation.setScrollbarsHidden", {"hidden": True})
    browser.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": size == PHONE})
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    browser.get(url)
    wait(browser, "!document.getElementById('choose').disabled")


def wait(browser: Any, condition: str) -> None:
    """Wait until a condition of the page is true, and then for its transitions."""
    from selenium.webdriver.support.wait import WebDriverWait

    WebDriverWait(browser, 60).until(lambda b: b.execute_script(f"return {condition}"))
    browser.execute_async_script("setTimeout(arguments[0], 1200)")


def draw(browser: Any) -> None:
    """Draw a 2 on the page."""
    from selenium.webdriver.common.action_chains import ActionChains

    browser.find_element("id", "draw").click()
    pad = browser.find_element("id", "pad")
    places = [(round(x * pad.rect["width"]), round(y * pad.rect["height"])) for x, y in TWO]
    actions = ActionChains(browser, duration=60).move_to_element_with_offset(pad, *places[0]).click_and_hold()
    for (x, y), (to_x, to_y) in pairwise(places):
        actions.move_by_offset(to_x - x, to_y - y)
    actions.release().perform()
    wait(browser, "document.querySelectorAll('#bars li').length > 0")


def main() -> None:
    """Draw the pictures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("page", type=Path, metavar="PAGE")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "screens", metavar="DIR")
    args = parser.parse_args()
    browser = open_browser()
    with tempfile.TemporaryDirectory() as name, serving(args.page) as url:
        folder = Path(name)
        digits = [folder / f"digit_{i}.png" for i in range(IMAGES)]
        for path, image in zip(digits, Digits(split="test").images.numpy()):
            Image.fromarray(image[0]).save(path)
        show(browser, url, LAPTOP, dark=False)
        browser.find_element("id", "files").send_keys("\n".join(map(str, digits)))
        wait(
            browser,
            f"[...document.querySelectorAll('#grid .percent')].filter((e) => e.textContent).length === {IMAGES}",
        )
        browser.save_screenshot(str(folder / "laptop.png"))
        show(browser, url, PHONE, dark=True)
        draw(browser)
        browser.save_screenshot(str(folder / "phone.png"))
        smaller(folder / "laptop.png", args.out / "web_laptop.png", 1000)
        smaller(folder / "phone.png", args.out / "web_phone.png", 390)
    browser.quit()


if __name__ == "__main__":
    main()
