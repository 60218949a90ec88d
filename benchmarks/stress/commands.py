"""A few cases of each kind through the commands, in processes of their own, as a user runs them."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from stress.checkpoints import Checkpoints
from stress.configs import Configs, text_of_config
from stress.exported import Exported
from stress.guard import digest
from stress.images import Images
from stress.judge import fault_of_message
from stress.lists import Folders
from stress.verdicts import Kind, Loss, Result, timed
from stress.wrong_values import FLOAT

COUNT = 40
"""Commands at scale 1."""
_ROOT = Path(__file__).resolve().parents[2]
_LONGEST = 120  # seconds: a command starts PyTorch, on a machine with other work
Commands = dict[type[Kind], list[Callable[[str], list[str]]]]
COMMANDS: Commands = {
    Images: [
        lambda path: ["infer", "whole.onnx", path],
        lambda path: ["infer", "whole.onnx", path, "--json", "out.json"],
    ],
    Exported: [
        lambda path: ["infer", path, "whole.png"],
        lambda path: ["benchmark", path, "--seconds", "0.1"],
        lambda path: ["test", "config.py", path],
    ],
    Checkpoints: [
        lambda path: ["test", "config.py", path],
        lambda path: ["export", "config.py", path, "--out", "out.onnx"],
        lambda path: ["convert", path, "out.pth"],
        lambda path: ["infer", path, "whole.png"],
    ],
    Configs: [lambda path: ["check", path], lambda path: ["plan", path], lambda path: ["train", path, "--safe"]],
    Folders: [lambda path: ["init", path, "--out", "out.py"], lambda path: ["infer", "whole.onnx", path]],
}


def run_commands(folder: Path, scale: float, workers: int, seed: int) -> Result:
    """Run `COUNT` commands times `scale`.

    Args:
        folder: Folder to work in, which does not exist yet.
        scale: Factor of `COUNT`.
        workers: Number of commands that run at once.
        seed: As in the parts.
    """
    folder.mkdir(parents=True)
    kinds = {made: made() for made in COMMANDS}
    for made, kind in kinds.items():
        (folder / made.__name__).mkdir()
        kind.prepare(folder / made.__name__)
    result = Result("commands")
    numbers = range(seed * 10**6, seed * 10**6 + max(1, round(COUNT * scale)))
    with timed(result), ThreadPoolExecutor(workers) as pool:
        for found in pool.map(lambda number: _run(number, folder / str(number), kinds), numbers):
            result.add(found)
    return result


def _run(number: int, folder: Path, kinds: dict[type[Kind], Kind]) -> Result:
    """Run one command on one case, and judge it by its exit code and what it prints."""
    folder.mkdir()
    made = list(kinds)[number % len(kinds)]
    kind = kinds[made]
    (folder / "case").mkdir()
    said = kind.draw(number, folder / "case")
    (path,) = (folder / "case").iterdir()
    _surround(folder)
    arguments = random.Random(f"command {number}").choice(COMMANDS[made])(str(path.relative_to(folder)))
    before = digest(folder)
    start, result = time.monotonic(), Result("commands")
    what, code = _end(arguments, folder)
    result.slowest = time.monotonic() - start
    if {name: value for name, value in digest(folder).items() if name in before} != before:
        what = what or "a file that was there has changed"
    if what:
        result.losses.append(Loss(number, f"lbitcls {' '.join(arguments)}: {said}"[:500], what))
    elif code == 0:
        result.accepted += 1
    else:
        result.refused += 1
    return result


def _surround(folder: Path) -> None:
    """Write what is whole: a config, an image, an exported model."""
    from lbitcls.deploy.runtime.metadata import sealed, write_info
    from stress.exported import INFO, small_model
    from stress.images import encoded

    model = small_model()
    write_info(model, INFO)
    (folder / "whole.onnx").write_bytes(sealed(model))
    (folder / "whole.png").write_bytes(encoded("PNG", "RGB"))
    (folder / "config.py").write_text(text_of_config(FLOAT), encoding="utf-8")


def _end(arguments: list[str], folder: Path) -> tuple[str, int]:
    """Return what is wrong with a command's end, or an empty string, and its exit code."""
    environment = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache"), "HOME": str(folder / "home")}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "lbitcls.commands.main", *arguments]
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, timeout=_LONGEST, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        return f"hang: more than {_LONGEST} s", -1
    said = done.stderr.decode("utf-8", "replace")
    if done.returncode not in (0, 1, 2):
        return f"exit code {done.returncode}: {said[-300:]!r}", done.returncode
    if done.returncode and not said.strip():
        return "no message", done.returncode
    return fault_of_message(said or "-", str(folder)), done.returncode
