"""ONNX Runtime for browsers, from the npm package `onnxruntime-web`: a pinned version, checked by its digest.

Nothing is downloaded here: a missing package is an error that names the command to run.
"""

from __future__ import annotations

import base64
import hashlib
import os
import shlex
import tarfile
from pathlib import Path

from lbitcls.utils.cache import cache_folder
from lbitcls.utils.errors import DependencyError

VERSION = "1.30.0"
PACKAGE = f"onnxruntime-web@{VERSION}"
VARIABLE = "LBITCLS_WEB_RUNTIME"
"""Environment variable that names the folder of the package's archive."""
INTEGRITY = "sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
"""Digest of the archive, as npm's registry publishes it."""
SCRIPT, WASM = "ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"
"""Files of the package that a page needs: WebAssembly on the CPU, with SIMD."""
DIGESTS = {
    SCRIPT: "sha384-PLWz+nHEVHpjwBsO0YVdvQj6n5814Iv8E3b8FG0Rp/uIAtjFMCKOpP66iPzedrIG",
    WASM: "sha384-vjBJ1z7qrhkTyYsNqKeF6c7N+nOJSU94czEo+tvZcu8G75JparGq9kB+kTnEUNVM",
}
"""Digests by which a browser checks files from another server."""
WASM_SIZE = 14_239_897
CDN = f"https://cdn.jsdelivr.net/npm/{PACKAGE}/dist/"


def archive() -> Path:
    """Return the path of the package's archive: in the folder that `LBITCLS_WEB_RUNTIME` names, or in the cache."""
    folder = os.environ.get(VARIABLE)
    return (Path(folder).expanduser() if folder else cache_folder("web")) / f"onnxruntime-web-{VERSION}.tgz"


def install_command() -> str:
    """Return the command that puts the archive where `archive` expects it."""
    folder = shlex.quote(str(archive().parent))
    return f"mkdir -p {folder} && npm pack {PACKAGE} --pack-destination {folder}"


def check_runtime() -> None:
    """Raise `DependencyError` if the archive is missing."""
    if not archive().is_file():
        raise DependencyError(
            f"a web page needs the npm package {PACKAGE}, and {archive()} is missing. Run: {install_command()}"
        )


def read_runtime() -> dict[str, bytes]:
    """Return the files that a page needs, by name.

    Raises:
        DependencyError: The archive is missing, or is not the pinned one.
    """
    check_runtime()
    path = archive()
    digest = base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()
    if f"sha512-{digest}" != INTEGRITY:
        raise DependencyError(f"{path} is not {PACKAGE}, or is damaged. Remove it, then run: {install_command()}")
    with tarfile.open(path) as files:
        found = {name: files.extractfile(f"package/dist/{name}") for name in (SCRIPT, WASM)}
        return {name: file.read() for name, file in found.items() if file is not None}
