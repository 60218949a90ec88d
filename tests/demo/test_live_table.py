"""A run in a notebook: a table and curves that grow in one output."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nbformat
import pytest

from lbitcls.tracking.notebook import in_notebook

ROOT = Path(__file__).resolve().parent.parent.parent
EXECUTE = """
import sys, nbformat, nbclient
notebook = nbformat.read(sys.argv[1], as_version=4)
nbformat.write(nbclient.NotebookClient(notebook, timeout=300).execute(), sys.argv[1])
"""
CELL = """
import sys
from lbitcls.apis import train_classifier
from lbitcls.utils.config import Config
cfg = Config.fromfile({config!r})
cfg.merge_from_dict(dict(total_epochs=3, calibration=dict(epoch=1), work_dir={work!r}, export=None, log_config=None))
summary = train_classifier(cfg)
"""


@pytest.mark.slow
def test_a_table_and_curves_grow_in_a_notebook(tmp_path: Path) -> None:
    source = CELL.format(config=str(ROOT / "configs/quickstart/digits_lsq_4w4f.py"), work=str(tmp_path / "work"))
    path = tmp_path / "run.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)]), path)
    done = subprocess.run(
        [sys.executable, "-c", EXECUTE, str(path)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (cell,) = nbformat.read(path, as_version=4).cells
    data = [output["data"] for output in cell.outputs if output.output_type == "display_data"]
    shown = [found for found in data if "val top-1" in found["text/plain"]]  # the other is the table of the result
    assert len(shown) == 1, "one output, which was updated"
    page, text = shown[0]["text/html"], shown[0]["text/plain"]
    rows = re.findall(r"<tr>.*?</tr>", page)
    assert len(rows) == 4 and ">val top-1<" in rows[0] and ">3/3<" in rows[3].replace("<b>", "").replace("</b>", "")
    assert page.count("<img src=") == 1 and "best" in page and "left" not in page
    assert text.splitlines()[0].split()[:2] == ["epoch", "loss"] and text.splitlines()[3].split()[0] == "3/3"
    streams = "".join(output["text"] for output in cell.outputs if output.output_type == "stream")
    assert "Quantization is on from epoch 2" in streams and "  epoch    loss" not in streams
    assert "Epoch [1]" not in streams and "\x1b[" not in streams


class ZMQInteractiveShell:
    """Stands for the shell of a notebook's kernel."""


class Shell(ZMQInteractiveShell):
    """As Colab's, which derives from it."""


class TerminalInteractiveShell:
    """Stands for IPython at a terminal."""


@pytest.mark.parametrize(
    ("shell", "found"),
    [(ZMQInteractiveShell(), True), (Shell(), True), (TerminalInteractiveShell(), False), (None, False)],
)
def test_where_a_notebook_is(monkeypatch: pytest.MonkeyPatch, shell: Any, found: bool) -> None:
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))  # type: ignore[arg-type]
    assert in_notebook() is found


def test_nobody_imports_ipython_to_find_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    assert not in_notebook() and "IPython" not in sys.modules
