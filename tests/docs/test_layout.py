"""docs/design.md: its layout of the package is what docs/layout.py writes, and leaves no module out."""

from __future__ import annotations

import doctest
import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("layout_of_the_package", ROOT / "docs" / "layout.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_has_the_layout_as_it_is(script: ModuleType) -> None:
    assert script.updated(PAGE, ROOT / "lbitcls") == PAGE, "run `make layout`"


def test_every_module_is_named_and_says_what_it_is(script: ModuleType) -> None:
    found = re.findall(r"^ *(\w+(?:\.py|/))(?: +(\S.*))?$", script.BLOCK.search(PAGE)[2], re.MULTILINE)
    modules = [path for path in (ROOT / "lbitcls").rglob("*.py") if path.name != "__init__.py"]
    packages = list((ROOT / "lbitcls").rglob("__init__.py"))
    expected = [path.name for path in modules] + [f"{path.parent.name}/" for path in packages]
    assert sorted(name for name, _ in found) == sorted(expected)
    assert not [name for name, about in found if not about]


def test_a_module_that_moves_changes_the_layout(script: ModuleType, tmp_path: Path) -> None:
    package = tmp_path / "lbitcls"
    (package / "inner").mkdir(parents=True)
    (package / "__init__.py").write_text('"""All. And more."""')
    (package / "inner" / "__init__.py").write_text("")
    (package / "inner" / "one.py").write_text('"""One, said at length: ' + "word " * 40 + '."""')
    page = "a\n<!-- layout: made -->\n\n```text\nold\n```\nz\n"
    lines = script.updated(page, package).splitlines()
    assert lines[:4] == ["a", "<!-- layout: made -->", "", "```text"] and lines[-2:] == ["```", "z"]
    assert [line.split(maxsplit=1)[0] for line in lines[4:7]] == ["lbitcls/", "inner/", "one.py"]
    assert lines[4].endswith(" All") and lines[5] == "  inner/" and len(lines) > 9
    assert all(len(line) <= script.WIDTH for line in lines)
    with pytest.raises(SystemExit, match="0 blocks"):
        script.updated("nothing", package)


def test_examples(script: ModuleType) -> None:
    assert doctest.testmod(script).failed == 0
