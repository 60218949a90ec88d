"""An export that a signal ends leaves nothing beside its output, or nothing that the next one does not remove."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import pytest
from calls import Delivered

from lbitcls.commands.main import main
from lbitcls.utils.files import write_whole
from lbitcls.utils.folders import write_folder
from lbitcls.workflows import exporting

TARGETS = {"model.onnx": "cpu", "page": "web"}
SIGNALS = [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -9)]
CASES = [(name, *case) for name in TARGETS for case in SIGNALS if (name, case[0]) != ("model.onnx", signal.SIGKILL)]


def _arguments(delivered: Delivered, out: Path) -> list[str]:
    arguments = ["export", str(delivered.config), str(delivered.checkpoint), "--out", str(out)]
    return [*arguments, "--target", TARGETS[out.name], *(["--runtime", "cdn"] if out.name == "page" else [])]


def _export_for_ever(arguments: list[str], ready: Event) -> None:
    """Export in a process of its own that stops halfway: with a whole draft, and within writing another one."""

    def half(path: Path) -> None:
        (path / "index.html").write_text("half") if path.is_dir() else path.write_text("half")
        ready.set()
        time.sleep(600)

    def export_model(model: Any, path: Path, **options: Any) -> None:
        put = write_whole if path.suffix else write_folder
        put(path, lambda draft: None)
        put(path, half)

    exporting.export_model = export_model  # type: ignore[assignment]
    sys.exit(main(arguments))


@pytest.mark.parametrize(("name", "number", "code"), CASES)
def test_a_signal(name: str, number: int, code: int, delivered: Delivered, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    ready, arguments = context.Event(), _arguments(delivered, tmp_path / name)
    process = context.Process(target=_export_for_ever, args=(arguments, ready))
    process.start()
    assert ready.wait(60) and process.pid is not None
    os.kill(process.pid, number)
    process.join(60)
    assert process.exitcode == code
    assert len(list(tmp_path.iterdir())) == (number == signal.SIGKILL)
    if number == signal.SIGKILL:
        assert main(arguments) == 0
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted((name, f"{Path(name).stem}.report.json"))
