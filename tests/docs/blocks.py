"""The code blocks of a page of the documentation: found, and run in their order, as a reader would.

`python` blocks share one namespace in one fresh process, a `bash` block is a shell of its own, and a fence
`{code-block} LANGUAGE` with `:caption: FILE` is written to that file. What a page needs beside its own words (data,
checkpoints, what its placeholders stand for) is a `Page`, in `prepare/`.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from lbitcls.utils.cache import cache_folder

ROOT = Path(__file__).resolve().parents[2]
SESSION = Path(__file__).with_name("session.py")
RUNNABLE = ("python", "bash")
_FENCE = re.compile(r"^( *)(`{3,}|~{3,})(.*)$")


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        language: what the fence says: `python`, `text`, …; `{include}` and the like for a directive; "" for nothing.
        code: its lines, without the fence's indentation.
        line: the number of its first line in the page, from 1.
        target: the file that it is written to, instead of being run.
    """

    language: str
    code: str
    line: int
    target: str = ""

    @property
    def first(self) -> str:
        """Its first line that is not empty."""
        return next((line.strip() for line in self.code.splitlines() if line.strip()), "")

    @property
    def runs(self) -> bool:
        """Whether it is code of the page's session."""
        return self.language in RUNNABLE and not self.target


@dataclass(frozen=True)
class Page:
    """What a page needs, so that its blocks run.

    Attributes:
        prepare: puts data, pictures and checkpoints into the folder in which the blocks will run.
        words: texts of bash blocks to what they stand for here; replaced as whole words, in this order.
        not_run: the first lines of blocks that are not run, to a key of `pages.REASONS`.
        check: called after the last block, in its process and folder, with the namespace of the Python blocks and all
            that was printed to the standard output.
        slow: the page takes more than about 3 seconds.
        seconds: time limit.
    """

    prepare: Callable[[Path], None] | None = None
    words: Mapping[str, str] = field(default_factory=dict)
    not_run: Mapping[str, str] = field(default_factory=dict)
    check: Callable[[dict[str, Any], str], None] | None = None
    slow: bool = False
    seconds: int = 300


def find_blocks(text: str) -> list[Block]:
    """The fenced blocks of a Markdown text, in their order."""
    blocks, lines = [], enumerate(text.splitlines(), start=1)
    for number, line in lines:
        fence = _FENCE.match(line)
        if fence:
            indent, marks, info = fence.groups()
            inside = [
                line[len(indent) :] if line.startswith(indent) else line.lstrip() for line in _until(lines, marks)
            ]
            blocks.append(_block(info.strip(), inside, number + 1))
    return blocks


def _until(lines: Iterator[tuple[int, str]], marks: str) -> Iterator[str]:
    """The lines up to the fence that closes one of `marks`."""
    for _, line in lines:
        closing = line.strip()
        if closing.startswith(marks) and not closing.strip(marks[0]):
            return
        yield line


def _block(info: str, lines: list[str], number: int) -> Block:
    directive, _, argument = info.partition(" ")
    if directive != "{code-block}":
        return Block(directive, "\n".join(lines), number)
    options: dict[str, str] = {}
    while lines and (option := re.match(r":([\w-]+): *(.*)$|$", lines[0])):
        options[option[1]] = option[2]
        lines, number = lines[1:], number + 1
    return Block(argument.strip(), "\n".join(lines), number, options.get("caption", ""))


def with_words(block: Block, words: Mapping[str, str]) -> Block:
    """A bash block after its placeholders were replaced."""
    if block.language != "bash":
        return block
    code = block.code
    for word, meaning in words.items():
        code = whole(word).sub(lambda _, meaning=meaning: meaning, code)
    return replace(block, code=code)


def whole(word: str) -> re.Pattern[str]:
    """Finds a text that is no part of a longer word or path."""
    return re.compile(rf"(?<![\w./-]){re.escape(word)}(?![\w/-]|\.\w)")


def new_folder(folder: Path) -> Path:
    """Makes the folder in which the blocks run look like a clone; what they write stays in it."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copytree(ROOT / "configs", folder / "configs", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("tools", "benchmarks", "demo"):
        (folder / name).symlink_to(ROOT / name)
    return folder


def outside(name: str) -> bool:
    """Whether a page is for readers who installed the package and have no clone: the tutorial's pages."""
    return name.startswith("docs/tutorial/")


@functools.cache
def installed_package() -> Path:
    """A folder with the package as the wheel installs it: its configs are inside, and nothing else of the clone."""
    folder = Path(tempfile.mkdtemp(prefix="installed-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "lbitcls", folder / "lbitcls", ignore=ignored)
    shutil.copytree(ROOT / "configs", folder / "lbitcls" / "configs", ignore=ignored)
    return folder


def own_cache(folder: Path) -> Path:
    """A cache of its own in `folder`, but for the C++ kernels, whose build would take ten seconds each time.

    Sharing changes nothing: the name of their file is a hash of all that it depends on.
    """
    cache, shared = folder / ".cache", cache_folder("kernels")
    shared.mkdir(parents=True, exist_ok=True)
    (cache / "lbitcls").mkdir(parents=True, exist_ok=True)
    if not (cache / "lbitcls" / "kernels").exists():
        (cache / "lbitcls" / "kernels").symlink_to(shared)
    return cache


def environment(folder: Path, package: Path = ROOT) -> dict[str, str]:
    """A user's environment: this installation's commands, `package`, no data, no window, caches of its own."""
    left_out = {"DISPLAY", "LBITCLS_DATA", "MPLBACKEND", "PYTHONWARNINGS", "VIRTUAL_ENV"}
    env = {key: value for key, value in os.environ.items() if key not in left_out}
    return env | {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), env.get("PATH", "")]),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(package), env.get("PYTHONPATH")])),
        "XDG_CACHE_HOME": str(own_cache(folder)),
        "OMP_NUM_THREADS": "1",
    }


def run_page(name: str, page: Page, blocks: list[Block], folder: Path) -> str:
    """Run the blocks of the page `name` in `folder`; what they printed.

    Raises:
        AssertionError: a block failed; the message has its place in the page and what it wrote.
    """
    if outside(name):
        folder.mkdir(parents=True, exist_ok=True)
    else:
        new_folder(folder)
    if page.prepare is not None:
        page.prepare(folder)
    chosen = [b for b in blocks if b.target or (b.runs and b.first not in page.not_run)]
    task = dict(page=name, path=str(ROOT / name), blocks=[asdict(with_words(b, page.words)) for b in chosen])
    done = subprocess.run(
        [sys.executable, str(SESSION)],
        input=json.dumps(task | {"check": page.check is not None}),
        cwd=folder,
        env=environment(folder, installed_package() if outside(name) else ROOT),
        capture_output=True,
        text=True,
        timeout=page.seconds,
    )
    assert done.returncode == 0, f"{name}\n{done.stdout}\n{done.stderr}"
    return done.stdout
