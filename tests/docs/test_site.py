"""The documentation builds without a warning, by the command of `make docs`; its links lead somewhere, offline."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from blocks import ROOT

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
    recipe = re.search(r"^docs:.*\n\t(.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert recipe
    command = [word for word in shlex.split(recipe[1]) if "=" not in word and word != "$(ARGS)"]
    out = tmp_path_factory.mktemp("site")
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
    return out


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {path: Page(path) for path in site.rglob("*.html")}


def test_every_page_is_there(site: Path, pages: dict[Path, Page]) -> None:
    sources = [
        path.relative_to(ROOT / "docs") for path in (ROOT / "docs").rglob("*.*") if path.suffix in (".md", ".rst")
    ]
    expected = {site / path.with_suffix(".html") for path in sources if path.parts[0] != "_build"}
    assert len(expected) > 20 and expected <= pages.keys()


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
