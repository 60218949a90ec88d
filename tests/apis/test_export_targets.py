"""`lbitcls export --out` for targets that write something else than ONNX files: what it refuses, and never loses."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from lbitcls.commands.main import main


def export(delivered: Any, *arguments: str) -> int:
    return main(["export", str(delivered.config), str(delivered.checkpoint), *arguments])


@pytest.mark.parametrize("name", ["page", "page.rejected"])
def test_a_folder_with_other_content_is_not_replaced(delivered: Any, tmp_path: Path, capsys: Any, name: str) -> None:
    """A work directory contains a `model.onnx` as a page does, and the checkpoints."""
    folder = tmp_path / name
    folder.mkdir()
    (folder / "model.onnx").write_bytes(delivered.exported.read_bytes())
    (folder / "best_top-1.pth").write_bytes(b"weeks of training")
    assert export(delivered, "--target", "web", "--runtime", "cdn", "--out", str(tmp_path / "page")) == 2
    assert "best_top-1.pth, which no export wrote" in capsys.readouterr().err
    assert (folder / "best_top-1.pth").read_bytes() == b"weeks of training"


def test_the_current_folder_is_not_replaced(
    delivered: Any, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for out in (".", "..", str(tmp_path)):
        assert export(delivered, "--target", "web", "--runtime", "cdn", "--out", out) == 2
        assert "is the current folder, or contains it" in capsys.readouterr().err
    assert Path(os.getcwd()).is_dir()


def test_a_page_is_replaced_by_a_page(delivered: Any, tmp_path: Path) -> None:
    page = tmp_path / "page"
    for _ in range(2):
        assert export(delivered, "--target", "web", "--runtime", "cdn", "--out", str(page)) == 0
    assert {entry.name for entry in tmp_path.iterdir()} == {"page", "page.report.json"}
    (page / "CNAME").write_text("example.org")
    assert export(delivered, "--target", "web", "--runtime", "cdn", "--out", str(page)) == 2
    assert (page / "CNAME").is_file()


def test_a_suffix_of_another_target(delivered: Any, tmp_path: Path, capsys: Any) -> None:
    assert export(delivered, "--out", str(tmp_path / "model.tflite")) == 2
    assert "For .tflite, use --target litert" in capsys.readouterr().err
