"""Shows an exported model as a page in the user's browser, served on this machine alone."""

from __future__ import annotations

import tempfile
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lbitcls.deploy.runtime.metadata import existing_model, read_info
from lbitcls.deploy.runtime.page.page_files import check_page, write_page
from lbitcls.deploy.runtime.page.server import address, open_server
from lbitcls.utils.errors import CheckpointError, ConfigError
from lbitcls.utils.temporary import new_temporary_folder, remove_leftovers

PAGE_TARGETS = ("cpu", "tensorrt", "web")
"""Targets whose ONNX files run in a page."""
_HIGHEST_PORT = 2**16 - 1


def demonstrate(exported: str | Path, port: int = 0, browser: bool = True) -> None:
    """Serve the page of an exported model until the process is interrupted (Ctrl+C).

    Args:
        exported: Folder that an export for the target `web` wrote, or an ONNX file, which becomes a page in a
            temporary folder.
        port: Port on the loopback address; 0: a free one.
        browser: Open the page in the user's browser.

    Raises:
        CheckpointError: There is no such model, or the folder is no page.
        ConfigError: The port is out of range, or a page cannot prepare images for the model.
        DependencyError: The npm package of the runtime is missing.
        ResourceError: The port is in use.
    """
    if not 0 <= port <= _HIGHEST_PORT:
        raise ConfigError(f"--port must be an integer from 0 to {_HIGHEST_PORT}; got {port}.")
    with page_of(exported) as folder, open_server(folder, port) as server:
        url = address(server)
        print(f"Serving {exported} at {url} (Ctrl+C ends it)", flush=True)
        if browser and not webbrowser.open(url):
            print("No browser could be opened; open the address yourself.", flush=True)
        with suppress(KeyboardInterrupt):
            server.serve_forever()


@contextmanager
def page_of(exported: str | Path) -> Iterator[Path]:
    """Yield the folder of an exported model's page: itself, or a temporary one for an ONNX file."""
    path = existing_model(exported)
    if path.is_dir():
        check_page(path)
        read_info(path)
        yield path
        return
    info = read_info(path) if path.suffix.lower() == ".onnx" else None
    if info is not None and info.target not in PAGE_TARGETS:
        raise ConfigError(
            f"{path} was exported for {info.target}, whose operations browsers lack: export the checkpoint with "
            "--target web."
        )
    if info is None:
        raise CheckpointError(
            f"{path} cannot become a page: it is not an ONNX file that lbitcls wrote. Export the checkpoint: "
            "lbitcls export CONFIG CHECKPOINT --target web --out FOLDER."
        )
    common = Path(tempfile.gettempdir())
    remove_leftovers(common)
    with new_temporary_folder(common) as folder:
        write_page(folder, path.read_bytes(), info)
        yield folder
