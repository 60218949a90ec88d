"""How tests run the commands, and what they hand to them."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent


@dataclass(frozen=True)
class Delivered:
    """A quantized model of digits, not trained: its config's file, its checkpoint, and the file exported of it."""

    config: Path
    checkpoint: Path
    exported: Path


def command(*arguments: Any, **environment: str) -> dict[str, Any]:
    """Arguments of `subprocess.run` that call Python with `arguments` in the repository."""
    paths = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
    return dict(
        args=[sys.executable, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": paths, **environment},
        text=True,
    )


def on_terminal(*arguments: Any, columns: int = 200) -> tuple[int, str, str]:
    """Exit code, what is shown, and standard error of Python with `arguments`, its output a terminal so wide."""
    leader, follower = pty.openpty()
    call = command(*arguments, TERM="xterm", COLUMNS=str(columns))
    process = subprocess.Popen(**call, stdout=follower, stderr=subprocess.PIPE)
    os.close(follower)
    shown = b""
    while True:
        try:
            part = os.read(leader, 65536)
        except OSError:  # Linux: nobody writes any more
            break
        if not part:
            break
        shown += part
    errors = process.communicate(timeout=60)[1]
    os.close(leader)
    return process.returncode, shown.decode(), errors
