"""Files of a page: its sources, the model, `model.json`, which tells the script about the model, and the runtime."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from lbitcls.deploy.runtime.metadata import ModelInfo
from lbitcls.deploy.runtime.page.npm import CDN, DIGESTS, SCRIPT, VERSION, WASM, WASM_SIZE, check_runtime, read_runtime
from lbitcls.deploy.runtime.page.page_steps import Step, page_steps
from lbitcls.utils.errors import CheckpointError, ConfigError
from lbitcls.utils.files import MODEL_OF_FOLDER
from lbitcls.utils.jsontext import json_text

RUNTIMES = ("copy", "cdn")
"""Places of the runtime: in the folder, or on a content delivery network."""
SOURCES = "deploy/web"
MODEL, DESCRIPTION, INDEX = MODEL_OF_FOLDER, "model.json", "index.html"
_FOLDER = "runtime"
_POLICY = (
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'{more}; worker-src 'self'; base-uri 'none'; form-action 'none'"
)
_LICENSE = """\
ONNX Runtime Web {version} (npm package onnxruntime-web)

MIT License

Copyright (c) Microsoft Corporation

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the "Software"), to deal in the Software without restriction, including without limitation the
rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit
persons to whom the Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""


def check_runtime_choice(runtime: str) -> None:
    """Check where a page's runtime is to come from.

    Raises:
        ConfigError: It is not one of `RUNTIMES`.
        DependencyError: The npm package to copy is missing.
    """
    if runtime not in RUNTIMES:
        raise ConfigError(f"runtime must be one of {', '.join(map(repr, RUNTIMES))}; got {runtime!r}.")
    if runtime == "copy":
        check_runtime()


def write_page(folder: Path, content: bytes, info: ModelInfo, runtime: str = "copy") -> None:
    """Fill an empty folder with a page that runs a model.

    Args:
        folder: Folder to fill.
        content: Bytes of the model's ONNX file.
        info: Metadata of the model.
        runtime: `'copy'`: copy the runtime into the folder, so that the page needs no network; `'cdn'`: link it.

    Raises:
        ConfigError: The page cannot prepare images for the model, or the model is a backbone.
        DependencyError: The npm package to copy is missing, or is not the pinned one.
    """
    check_runtime_choice(runtime)
    description = describe(info, len(content), runtime)
    if runtime == "copy":
        copied = {**read_runtime(), "LICENSE.txt": _LICENSE.format(version=VERSION).encode()}
        (folder / _FOLDER).mkdir()
        for name, part in copied.items():
            (folder / _FOLDER / name).write_bytes(part)
    for source in (files("lbitcls") / SOURCES).iterdir():
        (folder / source.name).write_bytes(source.read_bytes())
    policy = _POLICY.format(more="" if runtime == "copy" else f" {CDN}")
    index = (folder / INDEX).read_text("utf-8")
    (folder / INDEX).write_text(index.replace("POLICY", policy, 1), "utf-8")
    (folder / ".nojekyll").touch()  # GitHub Pages: publish the files unchanged
    (folder / MODEL).write_bytes(content)
    (folder / DESCRIPTION).write_text(json_text(description, ensure_ascii=False) + "\n", "utf-8")


def describe(info: ModelInfo, size: int, runtime: str) -> dict[str, Any]:
    """Return the content of `model.json`.

    Raises:
        ConfigError: The page cannot prepare images for the model, or the model is a backbone.
    """
    steps, upright = preparation_of(info.part, info.pipeline, info.input_shape)
    start = f"{_FOLDER}/" if runtime == "copy" else CDN
    code: dict[str, Any] = {"version": VERSION, "script": start + SCRIPT, "wasm": start + WASM, "size": WASM_SIZE}
    if runtime == "cdn":
        code["integrity"] = {"script": DIGESTS[SCRIPT], "wasm": DIGESTS[WASM]}
    facts = {
        "quantization": info.quantization,
        "classes": info.num_classes,
        "size": size,
        "version": info.version,
    }
    return {
        "file": MODEL,
        "size": size,
        "input": info.input_shape,
        "upright": upright,
        "steps": steps,
        "classes": info.classes,
        "facts": facts,
        "runtime": code,
    }


def preparation_of(
    part: str, pipeline: Sequence[dict[str, Any]], input_shape: tuple[int, int, int]
) -> tuple[list[Step], bool]:
    """Return the result of `page_steps` for a model.

    Raises:
        ConfigError: The page cannot prepare images for the model, or the model is a backbone.
    """
    if part != "model":
        raise ConfigError("a web page shows classes, and a backbone has none; export with --part model.")
    return page_steps(pipeline, input_shape)


def page_names() -> set[str]:
    """Return the names of the files and folders that a page consists of."""
    return {
        *(source.name for source in (files("lbitcls") / SOURCES).iterdir()),
        MODEL,
        DESCRIPTION,
        _FOLDER,
        ".nojekyll",
    }


def check_page(folder: Path) -> None:
    """Raise `CheckpointError` if a folder is not a whole page that an export wrote."""
    missing = [name for name in (INDEX, DESCRIPTION, MODEL) if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{folder} is not a page that an export wrote: it lacks {', '.join(missing)}. Write one with "
            "lbitcls export CONFIG CHECKPOINT --target web --out FOLDER."
        )
    try:
        known = json.loads((folder / DESCRIPTION).read_text("utf-8"))
        code = [part for part in (known["runtime"]["script"], known["runtime"]["wasm"]) if not part.startswith(CDN)]
        lacking = [part for part in code if not (folder / part).is_file()]
        whole = known["size"] == (folder / MODEL).stat().st_size and not lacking
    except (ValueError, TypeError, KeyError, AttributeError):
        whole = False
    if not whole:
        raise CheckpointError(f"{folder} is a damaged page: copy it again, or export the model again.")
