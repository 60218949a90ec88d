"""Report in a real browser, headless Chromium: it opens, reacts to clicks, fits a phone, follows the color scheme."""

from __future__ import annotations

import copy
import json
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from lbitcls.analysis.compare import compare_models
from lbitcls.analysis.report import check_target, write_report
from lbitcls.models import build_classifier
from lbitcls.quant import build_mtransformer, calibrate

sys.path.insert(0, str(Path(__file__).resolve().parent))

from networks import float_network, images, quantized

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"),
)
SECONDS_TO_OPEN = 2.0

pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="no browser: install Debian's chromium and chromium-driver"
)


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Reports of a pair of models, before and after training, of a quantized model and of a float model."""
    folder = tmp_path_factory.mktemp("pages")
    model = float_network()
    both = quantized(model, per_channel=True)
    trained = copy.deepcopy(both)
    with torch.no_grad():
        trained.second.weight.mul_(1.1)
        trained.second.input_quantizer.scale.mul_(1e-3)
    found: dict[str, Any] = {"pair": (both, model), "trained": (trained, model)}
    found |= {"quantized": (quantized(model, bSetQ=False), None), "float": (model, None)}
    for name, (one, other) in found.items():
        page, figures = check_target(folder / f"{name}.html", "--save-path")
        write_report(compare_models(one, other, images()), page, figures, {"title": f"{name} <model>"})
    return {name: folder / f"{name}.html" for name in found}


@contextmanager
def started_browser(profile: Path) -> Iterator[Any]:
    from selenium import webdriver
    from selenium.webdriver.chrome.options import Options
    from selenium.webdriver.chrome.service import Service

    options = Options()
    options.binary_location = str(CHROMIUM)
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(str(DRIVER)))
    try:
        yield driver
    finally:
        driver.quit()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with started_browser(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


class Page:
    """Page in the browser: its size, colors and content."""

    def __init__(self, browser: Any) -> None:
        self.browser = browser

    def open(self, path: Path, width: int = 1280, scheme: str = "light") -> None:
        size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600}
        self.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        features = {"prefers-color-scheme": scheme, "prefers-reduced-motion": "reduce"}
        media = {"features": [{"name": name, "value": value} for name, value in features.items()]}
        self.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        self.browser.get_log("browser")
        self.browser.get(path.as_uri())
        self.wait("document.documentElement.dataset.ready === 'yes'")

    def run(self, script: str) -> Any:
        return self.browser.execute_script(f"return {script}")

    def wait(self, condition: str, seconds: float = 30) -> None:
        end = time.monotonic() + seconds
        while not self.run(condition):
            assert time.monotonic() < end, f"still not true: {condition}"
            time.sleep(0.02)

    def see(self, plot: str) -> None:
        """Scroll to a plot of the network, and wait until it is drawn."""
        self.run(f"document.getElementById('{plot}').scrollIntoView({{ block: 'center' }})")
        self.wait(f"document.querySelector('#{plot} .main-svg')")

    def mark(self, name: str) -> float:
        """Return the seconds from the start of the navigation to the page's own mark."""
        return self.run(f"performance.getEntriesByName('{name}')[0].startTime") / 1000

    def click(self, selector: str, number: int = 0) -> None:
        from selenium.webdriver.common.by import By

        self.browser.find_elements(By.CSS_SELECTOR, selector)[number].click()

    def texts(self, selector: str) -> list[str]:
        return self.run(f"[...document.querySelectorAll({json.dumps(selector)})].map((e) => e.textContent)")

    def errors(self) -> list[str]:
        return [entry["message"] for entry in self.browser.get_log("browser")]

    @property
    def paper(self) -> str:
        return self.run("getComputedStyle(document.body).backgroundColor")


@pytest.fixture
def page(browser: Any) -> Page:
    return Page(browser)


KINDS = (("Conv2d", "Conv"), ("Linear", "Linear"))
WIDTHS, SCHEMES = {"desk": 1280, "phone": 390}, ("light", "dark")


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
@pytest.mark.parametrize("name", ["pair", "quantized", "float"])
def test_it_opens_without_errors_and_fits(page: Page, pages: Any, name: str, width: int, scheme: str) -> None:
    page.open(pages[name], width, scheme)
    assert page.texts("h1") == [f"{name} <model>"]
    for name in page.run("[...document.querySelectorAll('main .plot')].map((e) => e.id)"):
        page.see(name)
    assert page.run("document.documentElement.scrollWidth") <= width
    page.click("#layers tbody tr", 1)
    page.wait("document.querySelectorAll('dialog .plot .main-svg').length > 0")
    assert page.run("document.querySelector('dialog').scrollWidth <= document.querySelector('dialog').clientWidth")
    assert page.run("document.querySelector('dialog').getBoundingClientRect().right") <= width
    assert page.errors() == []


def test_it_opens_quickly(page: Page, pages: Any) -> None:
    assert seconds_to_open(page, pages["pair"]) < SECONDS_TO_OPEN


def seconds_to_open(page: Page, path: Path) -> float:
    """Time until the page is painted and usable; the minimum of three, since other programs may slow the machine."""
    seconds = []
    for _ in range(3):
        page.open(path)
        seconds.append(page.mark("ready"))
    return min(seconds)


def test_plots_do_not_hold_the_page_up(page: Page, pages: Any) -> None:
    """plotly.js runs after the page has been painted and the table is usable; the visible plots follow."""
    page.open(pages["pair"])
    page.click("#layers th button", 1)
    assert page.run("document.querySelector('th[aria-sort]').textContent") == "layer"
    page.wait("performance.getEntriesByName('plotly').length")
    painted = page.run("performance.getEntriesByName('first-contentful-paint')[0].startTime") / 1000
    assert painted < page.mark("plotly") and page.mark("ready") < page.mark("plotly")
    page.wait("document.querySelector('#costs .main-svg')")
    assert page.errors() == []


@pytest.mark.slow
def test_it_opens_quickly_in_a_fresh_browser(pages: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Nothing is compiled in advance or cached from an earlier page: the reader's first visit."""
    seconds = []
    for _ in range(3):
        with started_browser(tmp_path_factory.mktemp("profile")) as driver:
            page = Page(driver)
            page.open(pages["pair"])
            seconds.append(page.mark("ready"))
    assert min(seconds) < SECONDS_TO_OPEN


@pytest.mark.slow
def test_a_report_of_resnet50_is_small_and_quick(page: Page, tmp_path: Path) -> None:
    backbone = dict(type="ResNet", depth=50)
    head = dict(type="LinearClsHead", num_classes=1000, in_channels=2048)
    neck = dict(type="GlobalAveragePooling")
    model = build_classifier(dict(type="ImageClassifier", backbone=backbone, neck=neck, head=head)).eval()
    policy = {kind: dict(type=f"LSQ{end}", num_bit_w=4, num_bit_a=4, per_channel=True) for kind, end in KINDS}
    both = build_mtransformer(dict(type="ModelTransformer", quan_policy=policy))(copy.deepcopy(model))
    batches = [torch.rand(2, 3, 64, 64)]
    calibrate(both, batches)
    target, figures = check_target(tmp_path / "resnet50.html", "--save-path")
    write_report(compare_models(both, model, batches), target, figures, {"title": "resnet50"})
    assert target.stat().st_size < 8e6
    assert seconds_to_open(page, target) < SECONDS_TO_OPEN
    assert len(page.texts("td .name")) == 54 and page.errors() == []


def test_a_click_on_a_layer_shows_its_plots(page: Page, pages: Any) -> None:
    page.open(pages["pair"])
    assert not page.run("document.querySelector('dialog').open")
    page.click("#layers tbody tr", 1)
    page.wait("document.querySelectorAll('dialog .plot .main-svg').length > 0")
    assert page.texts("dialog h3") == ["second"]
    data = json.loads(pages["pair"].with_suffix(".json").read_text(encoding="utf-8"))["layers"][1]
    names = page.run("[...document.querySelectorAll('dialog .plot')].map((e) => [e.id, e.data.map((t) => t.name)])")
    assert dict(names) == {
        "weight-values": ["before", "quantized", "float model"],
        "weight-levels": ["before", "float model", "levels"],
        "input-values": ["before", "quantized", "float model"],
        "input-levels": ["before", "float model", "levels"],
    }
    comb = page.run("document.getElementById('weight-levels').data[2].y")
    counts = data["weight"]["grid"]["counts"]
    drawn = [(share, count) for share, count in zip(comb, counts, strict=True) if count]
    assert len(drawn) > 4 and all(share == pytest.approx(100 * count / sum(counts)) for share, count in drawn)
    assert page.run("document.getElementById('weight-levels').data[2].x") == list(range(-4, 4))
    page.click("dialog [data-go='1']")
    assert page.texts("dialog h3") == ["fc"]
    page.click("dialog #log")
    assert page.run("document.getElementById('weight-levels').layout.yaxis.type") != "log"
    page.click("dialog [data-go='0']")
    assert not page.run("document.querySelector('dialog').open")
    assert page.errors() == []


def test_layers_open_from_the_ranking_and_from_a_plot(page: Page, pages: Any) -> None:
    page.open(pages["pair"])
    first = page.texts(".summary ol button span:first-child")[0]
    page.click(".summary ol button")
    page.wait("document.querySelector('dialog').open")
    assert page.texts("dialog h3") == [first]
    page.run("document.querySelector('dialog').close()")
    page.see("costs")
    page.run("document.getElementById('costs').emit('plotly_click', { points: [{ x: 2 }] })")
    assert page.texts("dialog h3") == ["fc"]


def test_the_table_sorts(page: Page, pages: Any) -> None:
    page.open(pages["pair"])
    layers = json.loads(pages["pair"].with_suffix(".json").read_text(encoding="utf-8"))["layers"]
    names = [layer["name"] for layer in layers]
    assert page.texts("td .name") == names
    headers = page.texts("#layers th")
    by_cost = sorted(names, key=lambda name: next(x["scan"]["rank"] for x in layers if x["name"] == name))
    page.click("#layers th button", headers.index("cost"))
    assert page.texts("td .name") == by_cost
    assert page.run("document.querySelector('th[aria-sort]').ariaSort") == "descending"
    page.click("#layers th button", headers.index("cost"))
    assert page.texts("td .name") == by_cost[::-1]
    page.click("#layers th button", headers.index("layer"))
    assert page.texts("td .name") == sorted(names)
    page.click("#layers tbody tr", 0)
    assert page.texts("dialog h3") == [min(names)], "a click opens the layer that stands there"


def test_layers_without_a_value_come_last(page: Page, pages: Any) -> None:
    page.open(pages["quantized"])
    place = page.texts("#layers th").index("cost")
    for _ in range(2):
        page.click("#layers th button", place)
        assert page.texts("td .name")[0] == "fc" and page.texts("td.cost")[1:] == ["–", "–"]


def test_the_measure_of_the_error_can_be_chosen(page: Page, pages: Any) -> None:
    page.open(pages["pair"])
    layers = json.loads(pages["pair"].with_suffix(".json").read_text(encoding="utf-8"))["layers"]
    page.click("[data-metric='sqnr_db']")
    shown = page.run("document.getElementById('costs').data.map((trace) => trace.y)")
    assert shown[0] == pytest.approx([layer["scan"]["alone"]["sqnr_db"] for layer in layers])
    assert shown[1] == pytest.approx([layer["scan"]["up_to"]["sqnr_db"] for layer in layers])
    assert page.texts("[data-metric][aria-pressed='true']") == ["SQNR"]


def test_a_trained_model_is_told_by_what_its_quantizers_do(page: Page, pages: Any) -> None:
    page.open(pages["trained"])
    page.see("costs")
    data = json.loads(pages["trained"].with_suffix(".json").read_text(encoding="utf-8"))
    (bars,) = page.run("document.getElementById('costs').data.map((trace) => trace.y)")
    assert bars == pytest.approx([layer["scan"]["alone"]["kl"] for layer in data["layers"]])
    assert "scale collapsed" in page.texts("#check-up tbody td:nth-child(2)")[0]
    page.click(".summary ol button")
    page.wait("document.querySelector('dialog').open")
    rows = page.texts("dialog .figures tbody th")
    assert "this layer off" in rows and "all on, against the float model" in rows and "up to this layer" not in rows
    assert page.errors() == []


def test_dark_and_light(page: Page, pages: Any) -> None:
    page.open(pages["pair"], scheme="dark")
    page.see("costs")
    dark, line = page.paper, "document.getElementById('costs').layout.yaxis.gridcolor"
    dark_line = page.run(line)
    page.click("#theme")
    light = page.paper
    assert dark != light == "rgb(255, 255, 255)" and page.run(line) != dark_line
    page.click("#theme")
    assert page.paper == dark and page.run(line) == dark_line
    page.open(pages["pair"], scheme="light")
    assert page.paper == light
    page.click("#theme")
    assert page.paper == dark
