"""docs/notebooks: the notebooks of demo/ with outputs that belong to no machine, and how a page shows them."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
import run_notebooks
from blocks import ROOT
from notebook_pages import page_of
from PIL import Image

DEMO = sorted((ROOT / "demo").glob("*.ipynb"))
PAGES = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
IDS = [path.stem for path in PAGES]
ABSOLUTE = re.compile(r"(?<![\w.~:/<)])/[a-z][\w.-]*/\S+")
DATE = re.compile(r"\b20\d\d(-\d\d-\d\d|\d{4}_\d{6})\b")


def outputs_of(path: Path) -> list[Any]:
    cells = nbformat.read(path, as_version=4).cells
    return [output for cell in cells if cell.cell_type == "code" for output in cell.outputs]


def texts_of(path: Path) -> list[str]:
    """The texts of a notebook's outputs, without pictures."""
    kinds = ("text/plain", "text/html", "text/markdown")
    texts = [output.get("text", "") for output in outputs_of(path)]
    texts += [output.data[kind] for output in outputs_of(path) for kind in kinds if kind in output.get("data", {})]
    return [re.sub(r'base64,[^"]*', "", text) for text in texts]


def test_the_executed_notebooks_are_those_of_demo() -> None:
    assert [path.name for path in PAGES] == [path.name for path in DEMO]
    for page, shipped in zip(PAGES, DEMO, strict=True):
        executed, source = (nbformat.read(path, as_version=4) for path in (page, shipped))
        nbformat.validate(executed)
        assert [(cell.cell_type, cell.source) for cell in executed.cells] == [
            (cell.cell_type, cell.source) for cell in source.cells
        ], f"run `python docs/run_notebooks.py {page.stem}` (its --help says what it needs)"


@pytest.mark.parametrize("path", PAGES, ids=IDS)
def test_outputs_name_no_machine_and_no_day(path: Path) -> None:
    texts = texts_of(path)
    assert sum(map(len, texts)) > 2000
    found = [hit[0] for text in texts for pattern in (ABSOLUTE, DATE) for hit in pattern.finditer(text)]
    assert not found and "\x1b" not in "".join(texts)
    assert path.stat().st_size < 1_000_000 and not [o for o in outputs_of(path) if o.output_type == "error"]


@pytest.mark.parametrize("path", PAGES, ids=IDS)
def test_every_training_shows_its_last_state(path: Path) -> None:
    trainings = [page for o in outputs_of(path) if "<table" in (page := o.get("data", {}).get("text/html", ""))]
    code = "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code")
    calls = code.count("train_classifier(") - code.count("return cfg, train_classifier(") + code.count("= tune(")
    assert len(trainings) == calls >= 2
    for page in trainings:
        done, epochs = re.findall(r">(\d+)/(\d+)<", page)[-1]
        assert done == epochs and page.count("<img src=") == 1 and " left<" not in page


@pytest.mark.parametrize("path", PAGES, ids=IDS)
def test_a_page_shows_all_and_stays_small(path: Path, tmp_path: Path) -> None:
    page = page_of(nbformat.read(path, as_version=4), path, tmp_path / "pictures")
    assert len(page) < 600_000 and f"<../../demo/{path.name}>" in page.split("\n\n")[1]
    pictures = re.findall(r"!\[Output of the cell above\]\(([^)]+)\)", page)
    assert len(pictures) == sum("image/png" in output.get("data", {}) for output in outputs_of(path)) >= 3
    assert {(path.parent / name).resolve() for name in pictures} == {*(tmp_path / "pictures").iterdir()}
    for target in re.findall(r"\]\((?!https?:)([^)#\s]+)\)", page):
        assert (path.parent / target).exists(), target


def png(size: tuple[int, int]) -> str:
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def test_how_each_kind_of_output_is_shown(tmp_path: Path) -> None:
    page = tmp_path / "docs" / "notebooks" / "a.ipynb"
    data = [
        {"image/png": png((8, 8)), "text/plain": "<Figure>"},
        {"text/html": "<table>\n\n<tr></tr></table>", "text/plain": "rows"},
        {"text/html": "<pre>styled</pre>", "text/plain": "plain"},
        {"text/markdown": "[b](../docs/b.md)"},
    ]
    outputs = [nbformat.v4.new_output("display_data", one) for one in data]
    outputs.append(nbformat.v4.new_output("stream", text="````\n```\n"))
    cells = [nbformat.v4.new_markdown_cell("# A\nword"), nbformat.v4.new_code_cell("x = 1", outputs=outputs)]
    notebook = nbformat.v4.new_notebook(cells=cells, metadata={"lbitcls": {"settings": ["EPOCHS = 3"]}})
    parts = page_of(notebook, page, tmp_path / "docs" / "pictures").split("\n\n")
    assert parts == [
        "# A",
        "This is {download}`demo/a.ipynb <../../demo/a.ipynb>` with its outputs. These outputs have `EPOCHS = 3`.",
        "word",
        "```python\nx = 1\n```",
        "![Output of the cell above](../pictures/a-1-0.png)",
        '<div class="notebook-table"><table> <tr></tr></table></div>',
        "```text\nplain\n```",
        "[b](../b.md)",
        "`````text\n````\n```\n`````",
    ]


def test_traces_of_a_machine_are_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LBITCLS_DATA", "/a/photos")
    given = {
        "saved /b/c/work_dirs/x/best.pth in /b/c": "saved work_dirs/x/best.pth in .",
        "2026-01-02 03:04:05,678 - Epoch 1": "Epoch 1",
        "│ x/20260102_030405.log │": "│ x/YYYYMMDD_HHMMSS.log │",
        "a\nW0102 03:04:05.006000 78 torch/x.py:9] No CUDA in '/d'\nb": "a\nb",
        "\x1b[1mtop-1\x1b[0m of /a/photos/ants": "top-1 of data/ants",
        f"{np.__file__}:3: UserWarning": "site-packages/numpy/__init__.py:3: UserWarning",
        "1/8 of images/train/bees, 0:00:03": "1/8 of images/train/bees, 0:00:03",
    }
    assert [run_notebooks.anonymous(text, "/b/c") for text in given] == [*given.values()]


def test_pieces_of_a_stream_are_joined() -> None:
    pieces = [("stdout", "a\n"), ("stdout", "b\n"), ("stderr", "c\n"), (None, ""), ("stdout", ""), ("stdout", "d\n")]
    new = nbformat.v4.new_output
    outputs = [new("stream", name=name, text=text) if name else new("display_data", {}) for name, text in pieces]
    assert [output.get("text") for output in run_notebooks.joined(outputs)] == ["a\nb\n", "c\n", None, "d\n"]


def test_pictures_are_made_small() -> None:
    large = png((1200, 300))
    page = run_notebooks.anonymous(f'<img src="data:image/png;base64,{large}"/>', "/b/c")
    (embedded,) = re.findall(r"base64,([^\"]+)\"/>", page)
    assert embedded == run_notebooks.small(large) and len(embedded) < len(large) / 2
    assert Image.open(io.BytesIO(base64.b64decode(embedded))).size == (900, 225)
