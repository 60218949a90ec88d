"""Weights that torchvision publishes, by name: `torchvision://mobilenet_v2`.

torchvision knows the address of each file and the beginning of its SHA-256; torch keeps what was fetched in its cache
(`torch.hub.get_dir()`: `$TORCH_HOME/hub`, `~/.cache/torch/hub`).
"""

from __future__ import annotations

import hashlib
import re
import socket
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from lbitcls.utils.cache import exclusive, remove_partial
from lbitcls.utils.errors import CheckpointError, ConfigError, suggest
from lbitcls.utils.logging import get_logger, interactive

SCHEME = "torchvision://"
_CHECKSUM = re.compile(r"-([0-9a-f]{8,64})\.\w+$")  # at the end of a file's name
_PATIENCE = 30.0  # seconds without an answer


def is_published(name: object) -> bool:
    """Whether `name` names published weights, and no file."""
    return isinstance(name, str) and name.startswith(SCHEME)


def find_weights(name: str) -> Any:
    """torchvision's entry for `name`: address, preprocessing, classes.

    Args:
        name: `torchvision://` and a model's name, for its best weights (torchvision's `DEFAULT`); or that and the
            weights' name, `torchvision://mobilenet_v2.IMAGENET1K_V1`.

    Raises:
        ConfigError: torchvision has no such model, or no such weights of it.

    Example:
        >>> find_weights("torchvision://mobilenet_v2.IMAGENET1K_V1").transforms().resize_size
        [256]
    """
    from torchvision.models import get_model_weights, list_models

    model, _, version = name.removeprefix(SCHEME).partition(".")
    known = list_models()
    if model not in known:
        raise ConfigError(f"'{name}': torchvision has no model '{model}'{suggest(model, known)}")
    entries = get_model_weights(model)
    versions = [*entries.__members__]
    if version and version != "DEFAULT" and version not in versions:
        raise ConfigError(
            f"'{name}': {model} has no weights '{version}'{suggest(version, versions)} It has: {', '.join(versions)}."
        )
    if not versions:
        raise ConfigError(f"'{name}': torchvision publishes no weights of {model}.")
    return entries[version] if version and version != "DEFAULT" else entries.DEFAULT


def fetch_weights(name: str) -> Path:
    """The file of the published weights `name`, from torch's cache or fetched into it now.

    A file that is there already is used as it is; where its checksum is another than published, a warning says so.

    Raises:
        ConfigError: there are no such weights.
        CheckpointError: the file is not in the cache and cannot be fetched.
    """
    import torch

    url = find_weights(name).url
    path = Path(torch.hub.get_dir(), "checkpoints", Path(urlparse(url).path).name)
    found = _CHECKSUM.search(path.name)
    checksum = found[1] if found else None
    if not path.is_file():
        _fetch(name, url, path, checksum)
    elif checksum and not _sha256(path).startswith(checksum):
        get_logger().warning(
            "%s is not the published file (another checksum); its weights are used all the same.", path
        )
    return path


def _fetch(name: str, url: str, path: Path, checksum: str | None) -> None:
    import torch

    before = socket.getdefaulttimeout()
    try:
        with exclusive(path):
            if path.is_file():  # another process was first
                return
            get_logger().info("Fetching %s from %s", path.name, url)
            remove_partial(path)
            socket.setdefaulttimeout(_PATIENCE)
            torch.hub.download_url_to_file(url, str(path), checksum, progress=interactive())
    except (OSError, RuntimeError) as error:  # no network, no such file there; another checksum
        raise CheckpointError(
            f"{name} cannot be fetched ({type(error).__name__}: {error}). Without a network put the file {path.name}, "
            f"fetched elsewhere from {url}, into {path.parent} (TORCH_HOME names another cache), or give a file of "
            "your own in its place."
        ) from error
    finally:
        socket.setdefaulttimeout(before)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
