"""Links in the documents lead to files, paths and names exist, pictures are small. What code does is in tests/docs."""

from __future__ import annotations

import pydoc
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [
    *sorted(ROOT.glob("*.md")),
    *sorted(path for folder in (".github", "docs", "configs", "lbitcls") for path in (ROOT / folder).rglob("*.md")),
]
FENCE = re.compile(r"^( *)(`{3,}).*?^\1\2\s*$", re.MULTILINE | re.DOTALL)
FOLDERS = {".github", "benchmarks", "configs", "demo", "docs", "lbitcls", "requirements", "tests", "tools"}
PARTS = {path.parent.name for path in (ROOT / "lbitcls").glob("*/__init__.py")}
BUILT = {"docs/_build/html"}
PICTURES = sorted(path for path in (ROOT / "docs").rglob("*.png") if "_build" not in path.parts)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(document: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", document.read_text(encoding="utf-8"))
    broken = [link for link in links if "://" not in link and not (document.parent / link).exists()]
    assert not broken


def words_in_code(text: str) -> Iterator[str]:
    """The words between single backticks, fenced blocks left out."""
    for code in re.findall(r"`([^`\n]+)`", FENCE.sub("", text)):
        yield from (word.strip("'\",();:") for word in code.split())


def missing_paths(text: str) -> list[str]:
    """Paths of the repository, or of a part of the package, that lead to no file: `<name>` and `NAME` stand for any."""
    words = [word for word in words_in_code(text) if re.fullmatch(r"[\w./*<>-]+/[\w./*<>-]*", word)]
    ours = [word for word in words if word.partition("/")[0] in FOLDERS | PARTS and word not in BUILT]
    patterns = {word: re.sub(r"<\w+>|\b[A-Z]{3,}\b(?!\.md)", "*", word.rstrip("/")) for word in ours}
    places = (ROOT, ROOT / "lbitcls")
    return [word for word in ours if not any(any(place.glob(patterns[word])) for place in places)]


def missing_names(text: str) -> list[str]:
    """Modules of the package, and what is in them, that cannot be imported."""
    words = (word.partition("(")[0] for word in words_in_code(text))
    names = [word for word in words if re.fullmatch(r"lbitcls(\.\w+)+", word)]
    return [name for name in names if pydoc.locate(name) is None]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_paths_and_names_exist(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    assert not missing_paths(text) + missing_names(text)


def test_what_is_missing_is_found() -> None:
    text = """`lbitcls/registry.py` `quant/spec.py`, `python tools/train.py CONFIG`, `configs/<METHOD>/<backbone>/`,
    `benchmarks/SCRIPT.py`, `tests/docs/prepare/`, `work_dirs/run`, `lbitcls.quant.calibrate`, `lbitcls.registry`
    ```text
    `docs/none.md`
    ```
    """
    assert not missing_paths(text) + missing_names(text)
    wrong = (
        "`lbitcls/registrie.py` `quant/spek.py`, `python tools/trainer.py CONFIG`, `configs/<METHOD>/none/`, `docs/x/`"
    )
    assert len(missing_paths(wrong)) == 5
    assert missing_names("`lbitcls.quant.calibrated(model)` `lbitcls.registry.NONE`, `lbitcls.none`") == [
        "lbitcls.quant.calibrated",
        "lbitcls.registry.NONE",
        "lbitcls.none",
    ]


@pytest.mark.parametrize("path", PICTURES, ids=lambda path: path.name)
def test_pictures_are_small(path: Path) -> None:
    assert path.stat().st_size < 200_000
    with Image.open(path) as image:
        assert image.size[0] > 600 or path.name in ("prediction.png", "web_phone.png")  # one labeled image, a phone
