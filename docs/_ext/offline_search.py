"""Excerpts among the results of a search, also for a site that is opened as files.

Sphinx's search page fetches each page that it found, to show the words around the match; browsers refuse that for
`file:`. There, `offline_search.js` answers from `search_pages.js`, the text of all pages, written here.
"""

from __future__ import annotations

import html
import json
from pathlib import Path
from typing import Any

from docutils import nodes


def text_of(doctree: nodes.document) -> str:
    """Return the text of a page without its comments."""
    for comment in list(doctree.findall(nodes.comment)):
        comment.parent.remove(comment)
    return doctree.astext()


def add_script(app: Any, pagename: str, *page: Any) -> None:
    """Load the script on the search page alone."""
    if pagename == "search":
        app.add_js_file("offline_search.js")


def write(app: Any, error: Exception | None) -> None:
    """Write the text of every page to where the script finds it."""
    if error or app.builder.format != "html":
        return
    pages = {
        f"{name}.html": f'<div role="main">{html.escape(text_of(app.env.get_doctree(name)), quote=False)}</div>'
        for name in sorted(app.env.found_docs)
    }
    target = Path(app.outdir) / "_static" / "search_pages.js"
    target.write_text(f"searchPages({json.dumps(pages, ensure_ascii=False)})\n", encoding="utf-8")


def setup(app: Any) -> dict[str, bool]:
    """Register with Sphinx."""
    app.connect("html-page-context", add_script)
    app.connect("build-finished", write)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
