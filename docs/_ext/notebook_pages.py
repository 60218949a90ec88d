"""Show executed notebooks as pages: cells become MyST, outputs become text, HTML tables and image files.

`docs/run_notebooks.py` writes the notebooks; a build does not execute them. Links in their text are written for
`demo/`, where the notebooks without outputs are.
"""

from __future__ import annotations

import base64
import json
import os
import re
from pathlib import Path
from typing import Any

from outside_pages import relink, shown_files

RUN = re.compile(r"`{3,}")


def fenced(text: str, language: str) -> str:
    """Return a code block, its fence longer than any inside."""
    fence = "`" * max([3, *(len(run) + 1 for run in RUN.findall(text))])
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def joined(text: str | list[str]) -> str:
    """Return a text that a notebook stores as one string or as lines."""
    return text if isinstance(text, str) else "".join(text)


def shown(output: dict[str, Any], picture: Path, page: Path) -> str:
    """Return an output as MyST; an image is written to the file `picture`."""
    kinds = ("image/png", "text/html", "text/markdown", "text/plain")
    data = {kind: joined(value) for kind, value in output.get("data", {}).items() if kind in kinds}
    if "image/png" in data:
        picture.parent.mkdir(parents=True, exist_ok=True)
        picture.write_bytes(base64.b64decode(data["image/png"]))
        return f"![Output of the cell above]({os.path.relpath(picture, page.parent)})"
    if "<table" in data.get("text/html", ""):
        return f'<div class="notebook-table">{" ".join(data["text/html"].split())}</div>'
    if "text/markdown" in data:
        return data["text/markdown"]
    return fenced(joined(output.get("text", "")) or data.get("text/plain", ""), "text")


def origin(notebook: dict[str, Any], name: str) -> str:
    """Return the line that says where a page comes from, and which settings its outputs have."""
    settings = notebook["metadata"].get("lbitcls", {}).get("settings", [])
    changed = f" These outputs have {', '.join(f'`{line}`' for line in settings)}." if settings else ""
    return f"This is {{download}}`demo/{name} <../../demo/{name}>` with its outputs.{changed}"


def page_of(notebook: dict[str, Any], page: Path, pictures: Path) -> str:
    """Return a notebook as MyST for the page at `page`, with its images in the folder `pictures`."""
    docs = page.parents[1]
    source, files = docs.parent / "demo" / page.name, shown_files(docs)
    parts: list[str] = []
    for number, cell in enumerate(notebook["cells"]):
        text = joined(cell["source"])
        parts.append(fenced(text, "python") if cell["cell_type"] == "code" else relink(text, source, page, files))
        for index, output in enumerate(cell.get("outputs", ())):
            parts.append(shown(output, pictures / f"{page.stem}-{number}-{index}.png", page))
            if "text/markdown" in output.get("data", {}):
                parts[-1] = relink(parts[-1], source, page, files)
    title, _, rest = parts[0].partition("\n")
    return "\n\n".join([title, origin(notebook, page.name), rest, *parts[1:]])


def read(app: Any, docname: str, source: list[str]) -> None:
    """Replace a notebook's JSON by its page."""
    page = Path(app.env.doc2path(docname)).resolve()
    if page.suffix == ".ipynb":
        source[0] = page_of(json.loads(source[0]), page, Path(app.doctreedir).resolve() / "notebooks")


def setup(app: Any) -> dict[str, bool]:
    """Register with Sphinx."""
    app.add_source_suffix(".ipynb", "markdown")
    app.connect("source-read", read)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
