"""Published weights by name: torchvision's, `torchvision://mobilenet_v2`, and models on a hub, `hf://owner/name`.

torchvision defines each file's URL and the start of its SHA-256; torch keeps downloaded files in its cache
(`torch.hub.get_dir()`: `$TORCH_HOME/hub`, `~/.cache/torch/hub`).
"""

from __future__ import annotations

import re
import socket
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from lbitcls.utils.cache import exclusive, remove_partial
from lbitcls.utils.errors import CheckpointError, ConfigError, suggest
from lbitcls.utils.files import sha256_of
from lbitcls.utils.hub import fetch_model, is_on_hub
from lbitcls.utils.logging import get_logger, interactive

SCHEME = "torchvision://"
_CHECKSUM = re.compile(r"-([0-9a-f]{8,64})\.\w+$")  # at the end of a file name
_PATIENCE = 30.0  # timeout in seconds


def is_published(name: object) -> bool:
    """Return True if `name` names published weights rather than a file."""
    return isinstance(name, str) and (name.startswith(SCHEME) or is_on_hub(name))


def find_weights(name: str) -> Any:
    """Return torchvision's entry for `name`: URL, preprocessing, classes.

    Args:
        name: `torchvision://` and a model's name, for its best weights (torchvision's `DEFAULT`); or with a name of
            weights, `torchvision://mobilenet_v2.IMAGENET1K_V1`.

    Raises:
        ConfigError: torchvision has no such model, or no such weights for it.

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
        raise ConfigError(f"'{name}': torchvision publishes no weights for {model}.")
    return entries[version] if version and version != "DEFAULT" else entries.DEFAULT


def fetch_weights(name: str) -> Path:
    """Return the file of the published weights `name`, downloaded into the cache of torch or of the hub if necessary.

    An existing file is used unchanged; if its checksum differs from the published one, a warning is logged.

    Raises:
        ConfigError: There are no such weights.
        CheckpointError: The file is not in the cache and cannot be downloaded.
    """
    if is_on_hub(name):
        return fetch_model(name)
    import torch

    url = find_weights(name).url
    path = Path(torch.hub.get_dir(), "checkpoints", Path(urlparse(url).path).name)
    found = _CHECKSUM.search(path.name)
    checksum = found[1] if found else None
    if not path.is_file():
        _fetch(name, url, path, checksum)
    elif checksum and not sha256_of(path).startswith(checksum):
        get_logger().warning(
            "Using the weights in %s although it is not the published file (its checksum differs).", path
        )
    return path


def _fetch(name: str, url: str, path: Path, checksum: str | None) -> None:
    import torch

    before = socket.getdefaulttimeout()
    try:
        with exclusive(path):
            if path.is_file():  # another process downloaded it first
                return
            get_logger().info("Downloading %s from %s", path.name, url)
            remove_partial(path)
            socket.setdefaulttimeout(_PATIENCE)
            torch.hub.download_url_to_file(url, str(path), checksum, progress=interactive())
    except (OSError, RuntimeError) as error:  # no network, no such file; a wrong checksum
        raise CheckpointError(
            f"{name} cannot be downloaded ({type(error).__name__}: {error}). Without a network, put a copy of "
            f"{path.name} from {url} into {path.parent} (TORCH_HOME selects another cache), or give a file of your own "
            "instead."
        ) from error
    finally:
        socket.setdefaulttimeout(before)
