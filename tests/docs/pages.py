"""The pages whose code blocks are run, and what each of them needs: `PAGES` of every file in `prepare/`."""

from __future__ import annotations

import importlib
from pathlib import Path

from blocks import ROOT, Block, Page, find_blocks

REASONS = {
    "data": "reads a data set that has to be fetched",
    "figures": "measures for minutes; the script runs, with less to do, in a test of its own",
    "gpu": "needs a GPU",
    "hours": "trains for hours",
    "install": "installs packages, or runs what installs them",
    "machines": "needs several machines",
    "network": "needs a network",
    "server": "runs until it is stopped",
}
"""Why a block is not run here."""

DOCUMENTS = [
    *("README.md", "CONTRIBUTING.md", "configs/README.md"),
    *sorted(
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "docs").rglob("*.md")
        if "_build" not in path.relative_to(ROOT).parts
    ),
]


def _entries() -> dict[str, Page]:
    found: dict[str, Page] = {}
    for path in sorted((Path(__file__).parent / "prepare").glob("*.py")):
        pages: dict[str, Page] = getattr(importlib.import_module(f"prepare.{path.stem}"), "PAGES", {})
        twice = found.keys() & pages.keys()
        assert not twice, f"{path.name}: another file has an entry for {twice}, too"
        found |= pages
    return found


def blocks_of(document: str) -> list[Block]:
    """The fenced blocks of a page, given by its path in the repository."""
    return find_blocks((ROOT / document).read_text(encoding="utf-8"))


PAGES: dict[str, Page] = _entries()
