"""The documentation builds without a warning, by the command of `make docs`; its links lead somewhere, offline."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from blocks import ROOT

from lbitcls.utils.cache import exclusive

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"),
)
needs_browser = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="no browser: install Debian's chromium and chromium-driver"
)
TOO_WIDE = """
const scrolls = (e) => e.localName !== "article"
  && (["auto", "scroll"].includes(getComputedStyle(e).overflowX) || scrolls(e.parentElement));
return [...document.querySelectorAll("article *")]
  .filter((e) => e.getBoundingClientRect().right > innerWidth + 1 && !scrolls(e.parentElement))
  .map((e) => `${e.tagName}: ${e.textContent.slice(0, 60)}`);
"""
"""The elements of a page that a reader of a narrow screen does not see to their end, and cannot scroll to it."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


class Page(HTMLParser):
    """The anchors of a page, and what it refers to."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ids: set[str] = {""}
        self.links: set[str] = set()
        self.assets: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("id", "name") and value:
                self.ids.add(value)
            elif name == "href" and tag == "a":
                self.links.add(value or "")
            elif name in ("src", "href", "srcset", "poster"):
                self.assets.add(value or "")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built documentation; one of several test workers builds it for all."""
    folder = tmp_path_factory.getbasetemp()
    out = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "site"
    with exclusive(out):
        if not (done := out.with_name("site.built")).exists():
            build(out)
            done.touch()
    return out


def build(out: Path) -> None:
    """Build the documentation by the command of `make docs`."""
    recipe = re.search(r"^docs:.*\n\t(.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert recipe
    command = [word for word in shlex.split(recipe[1]) if "=" not in word and word != "$(ARGS)"]
    assert command[0] == "$(BIN)/python" and command[-1] == "docs/_build/html"
    assert {"-W", "-n"} <= set(command)
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, *command[1:-1], str(out)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {path: Page(path) for path in site.rglob("*.html")}


def test_every_page_is_there(site: Path, pages: dict[Path, Page]) -> None:
    sources = [
        path.relative_to(ROOT / "docs")
        for path in (ROOT / "docs").rglob("*.*")
        if path.suffix in (".md", ".rst", ".ipynb")
    ]
    expected = {site / path.with_suffix(".html") for path in sources if path.parts[0] != "_build"}
    assert len(expected) > 20 and expected <= pages.keys()


def test_notebooks_are_shown_with_outputs(site: Path) -> None:
    names = [path.stem for path in (ROOT / "demo").glob("*.ipynb")]
    for path in (site / "notebooks" / f"{name}.html" for name in names):
        text = path.read_text(encoding="utf-8")
        assert len(text) < 600_000 and 'class="notebook-table"><table>' in text
        assert len(re.findall(rf'src="\.\./_images/{path.stem}-\d+-\d+\.png"', text)) >= 3


def test_links_lead_somewhere(site: Path, pages: dict[Path, Page]) -> None:
    broken = []
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if parts.scheme or parts.netloc:
                continue
            anchors = pages[target].ids if target in pages else {""}
            if not target.exists() or unquote(parts.fragment) not in anchors:
                broken.append(f"{path.relative_to(site)}: {link}")
    assert not broken


def test_nothing_is_fetched(site: Path, pages: dict[Path, Page]) -> None:
    foreign = [asset for page in pages.values() for asset in page.assets if re.match(r"(\w+:)?//", asset)]
    assert not foreign
    missing = [
        asset
        for path, page in pages.items()
        for asset in page.assets
        if not asset.startswith("data:") and not (path.parent / unquote(urlsplit(asset).path)).exists()
    ]
    assert not missing
    for style in site.rglob("*.css"):
        assert not re.search(r"(@import|url\()\s*['\"]?(https?:)?//", style.read_text(encoding="utf-8")), style.name


def test_docstrings_are_shown_as_they_are_meant(site: Path) -> None:
    text = (site / "reference" / "quant.html").read_text(encoding="utf-8")
    assert 'id="lbitcls.quant.transformer.ModelTransformer"' in text
    assert 'href="#lbitcls.quant.methods.build_quant_layer"' in text, "what the package offers is linked"
    examples = re.findall(r'<span class="gp">&gt;&gt;&gt; ?</span>', text)
    assert len(examples) > 5
    assert "Args:" not in text and "system-message" not in text


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from selenium import webdriver
    from selenium.webdriver.chrome.options import Options
    from selenium.webdriver.chrome.service import Service

    options = Options()
    options.binary_location = str(CHROMIUM)
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(str(DRIVER)))
    size = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    driver.get("about:blank")
    driver.get_log("performance")  # the browser's own first page
    try:
        yield driver
    finally:
        driver.quit()


@needs_browser
def test_nothing_is_cut_off_on_a_phone_and_nothing_is_fetched(
    site: Path, pages: dict[Path, Page], browser: Any
) -> None:
    assert len(pages) > 40
    for path in sorted(pages):
        name = str(path.relative_to(site))
        browser.get(path.as_uri())
        width = browser.execute_script("return [innerWidth, document.documentElement.scrollWidth]")
        assert width == [390, 390], f"{name} is wider than a phone"
        assert not browser.execute_script(TOO_WIDE), name
        asked = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
        urls = [event["params"]["request"]["url"] for event in asked if event["method"] == "Network.requestWillBeSent"]
        assert len(urls) > 5 and not [url for url in urls if not url.startswith(("file:", "data:"))], name


@needs_browser
def test_code_has_copy_buttons_and_output_has_none(site: Path, browser: Any) -> None:
    browser.get((site / "getting_started.html").as_uri())
    count = "return document.querySelectorAll(arguments[0]).length"
    blocks = browser.execute_script(count, ".highlight pre")
    output = browser.execute_script(count, ".highlight-text pre")
    assert output >= 3 and blocks - output >= 8
    assert browser.execute_script(count, "button.copybtn") == blocks - output
    assert browser.execute_script(count, ".highlight-text button.copybtn") == 0
    (first,) = re.findall(r"lbitcls train \S+", browser.find_element("id", "train").text)[:1]
    assert (ROOT / first.split()[-1]).is_file()


@needs_browser
def test_formulas_are_drawn_in_lines(site: Path, browser: Any) -> None:
    browser.get((site / "methods.html").as_uri())
    rows = "return [...document.querySelectorAll('#lsq math > mtable > mtr')].map((e) => e.getBoundingClientRect().top)"
    tops = browser.execute_script(rows)
    assert len(tops) > 3 and tops == sorted(set(tops)), "one below the other"


@needs_browser
def test_a_search_shows_excerpts(site: Path, browser: Any) -> None:
    browser.get(f"{(site / 'search.html').as_uri()}?q=calibration")
    excerpts, end = [], time.monotonic() + 30
    while len(excerpts) < 4 and time.monotonic() < end:
        excerpts = browser.execute_script("return [...document.querySelectorAll('p.context')].map((e) => e.innerText)")
    assert len(excerpts) >= 4 and all("calibrat" in text.lower() for text in excerpts[:3])
