"""Pictures of what the quickstart shows: the script that draws them reads a terminal's output as a terminal does."""

from __future__ import annotations

import doctest
import io
import re

import plot_screens
import pytest
from blocks import ROOT
from rich.console import Console
from rich.progress import Progress

SCREENS = ROOT / "docs" / "screens"


def test_examples() -> None:
    assert doctest.testmod(plot_screens).failed == 0


def test_a_progress_bar_that_ended_leaves_nothing() -> None:
    written = io.StringIO()
    console = Console(file=written, force_terminal=True, width=60, _environ={})
    with Progress(console=console, transient=True) as progress:
        for name in ("first", "second"):
            task = progress.add_task(name, total=3)
            for _ in range(3):
                progress.advance(task)
                progress.refresh()
            progress.console.print(f"{name} is over")
    assert written.getvalue().count("first") > 3
    assert [line for line in plot_screens.screen(written.getvalue()) if line] == ["first is over", "second is over"]


@pytest.mark.parametrize("count", [3, 200])
def test_a_drawing_has_the_start_and_the_end_and_loads_nothing(count: int) -> None:
    svg = plot_screens.drawing("a command", [f"\x1b[1mline{i}\x1b[0m" for i in range(count)])
    assert "line0<" in svg and f"line{count - 1}<" in svg
    assert "line100<" not in svg and ("…" in svg) == (count > 100)
    assert svg.count("{") == svg.count("}") and "@font-face" not in svg
    assert not re.search(r"(href|url\()[^ ]*http", svg)


def test_the_pictures_are_small_and_of_no_machine() -> None:
    pictures = sorted(path.name for path in SCREENS.iterdir())
    shown = ["analysis.png", "prediction.png", "results.png", "terminal_train.svg"]
    assert pictures == [*shown, "web_laptop.png", "web_phone.png"]
    assert all((SCREENS / name).stat().st_size < 100_000 for name in pictures)
    text = (SCREENS / "terminal_train.svg").read_text(encoding="utf-8")
    assert not re.search(r"/tmp|/root|/home|@font-face", text)
