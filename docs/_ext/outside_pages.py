"""Include files from outside `docs/` as pages, with links that work in the repository and in the built site.

A page of `docs/` that contains `{include} ../FILE` shows that file. Links in both are written for the repository; a
link to a file that a page shows becomes a link to that page.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

INCLUDE = re.compile(r"^```\{include\} (\S+)\n```$", re.MULTILINE)
LINK = re.compile(r"(\]\()([^)#:\s]+)((?:#[^)]*)?\))")


def shown_files(docs: Path) -> dict[Path, Path]:
    """Map each outside file to the page that shows it; `index.md` replaces the README."""
    found = {docs.parent / "README.md": docs / "index.md"}
    found |= {docs.parent / "demo" / page.name: page for page in docs.glob("notebooks/*.ipynb")}
    for page in docs.glob("*.md"):
        for name in INCLUDE.findall(page.read_text(encoding="utf-8")):
            found[(docs / name).resolve()] = page
    return found


def relink(text: str, source: Path, page: Path, shown: dict[Path, Path]) -> str:
    """Return `text` of the file `source` with its relative links adapted to `page`."""

    def target(link: re.Match[str]) -> str:
        file = (source.parent / link[2]).resolve()
        return link[1] + os.path.relpath(shown.get(file, file), page.parent) + link[3]

    return LINK.sub(target, text)


def read(app: Any, docname: str, source: list[str]) -> None:
    """Return the text of a page, with the file that it shows and with links to pages."""
    docs = Path(app.srcdir).resolve()
    page, shown = Path(app.env.doc2path(docname)).resolve(), shown_files(docs)
    if page.suffix != ".md":
        return

    def included(include: re.Match[str]) -> str:
        file = (page.parent / include[1]).resolve()
        app.env.note_dependency(str(file))
        return relink(file.read_text(encoding="utf-8"), file, page, shown)

    source[0] = INCLUDE.sub(included, relink(source[0], page, page, shown))


def setup(app: Any) -> dict[str, bool]:
    """Register with Sphinx."""
    app.connect("source-read", read)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
