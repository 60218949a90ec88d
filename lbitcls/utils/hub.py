"""Models on the Hugging Face Hub, by name: `hf://owner/name`, `hf://owner/name@revision/FILE`.

The package huggingface_hub does the transfers: it keeps downloaded files in its cache (`HF_HOME`), which is used
without a network too, and reads the server and the token from its own settings (`HF_ENDPOINT`, `HF_TOKEN`,
`hf auth login`). Only plain data is fetched: weights, exported models, and JSON.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from lbitcls.utils.errors import CheckpointError, ConfigError, LbitclsError, reason_of
from lbitcls.utils.extras import import_extra
from lbitcls.utils.files import EXPORTED
from lbitcls.utils.logging import get_logger, interactive

SCHEME = "hf://"
WEIGHTS = (".safetensors", ".pth", ".pt", ".ckpt")
PLAIN = (*WEIGHTS, *EXPORTED, ".json", ".yaml", ".yml", ".md", ".txt")
"""Suffixes of files that may be fetched: none of them runs when it is read."""
FIRST = ("model.safetensors", "model.onnx")
"""Files that `hf://owner/name` means, in this order."""
_PART = r"[A-Za-z0-9_][\w.-]{0,95}"
_REPO = re.compile(rf"{_PART}/{_PART}")
_NAME = re.compile(rf"{re.escape(SCHEME)}({_PART}/{_PART})(?:@([\w.-]{{1,100}}))?(?:/(.+))?")
_FORM = "owner/name, such as mara/flowers_4bit"


@dataclass(frozen=True)
class HubName:
    """Parsed name of a model on the hub.

    Attributes:
        repo: `owner/name`.
        revision: Branch, tag or commit; None: the newest.
        file: File in it; None: the first of `FIRST` that it has.
    """

    repo: str
    revision: str | None = None
    file: str | None = None


def is_on_hub(name: object) -> bool:
    """Return True if `name` names a model on the hub rather than a file."""
    return isinstance(name, str) and name.startswith(SCHEME)


def parse_name(name: str) -> HubName:
    """Return the parts of `hf://owner/name@revision/FILE`.

    Raises:
        ConfigError: The name has another form, or its file is not plain data.

    Example:
        >>> parse_name("hf://mara/flowers_4bit@v1/model.onnx")
        HubName(repo='mara/flowers_4bit', revision='v1', file='model.onnx')
    """
    found = _NAME.fullmatch(name)
    if found is None:
        raise ConfigError(f"a model on the hub must be {SCHEME}OWNER/NAME[@REVISION][/FILE]; got '{name}'.")
    file = found[3]
    if file is not None and not is_plain(file):
        raise _refused(file, f"'{name}': ")
    return HubName(found[1], found[2], file)


def check_repo(name: str) -> str:
    """Return `name` without `hf://`; raise `ConfigError` unless it has the form `owner/name`."""
    name = name.removeprefix(SCHEME)
    if not _REPO.fullmatch(name):
        raise ConfigError(f"the model's name on the hub must be {_FORM}; got '{name}'.")
    return name


def is_plain(file: str) -> bool:
    """Return True for a relative path whose parts are plain names, and whose suffix is in `PLAIN`."""
    parts = file.split("/")
    return all(re.fullmatch(_PART, part) for part in parts) and PurePosixPath(file).suffix.lower() in PLAIN


def _refused(file: str, place: str = "") -> ConfigError:
    """Return the error for a file that may not be fetched."""
    if PurePosixPath(file).suffix.lower() in PLAIN:
        return ConfigError(f"{place}{file} is not fetched; it must be a relative path of plain names, without '..'.")
    return ConfigError(f"{place}{file} is not fetched; its suffix must be one of {', '.join(PLAIN)}.")


def fetch_model(name: str) -> Path:
    """Return the local file of a model on the hub, downloaded into the hub's cache if necessary.

    Raises:
        ConfigError: The name has another form.
        CheckpointError: There is no such model or file, or it cannot be downloaded.
        DependencyError: huggingface_hub is not installed.
    """
    wanted = parse_name(name)
    if wanted.file is not None:
        return fetch_file(wanted.repo, wanted.file, wanted.revision)
    errors = import_extra("huggingface_hub.errors", "hub", name)
    for file in FIRST:
        try:
            return fetch_file(wanted.repo, file, wanted.revision)
        except CheckpointError as error:
            missing = isinstance(error.__cause__, errors.EntryNotFoundError)
            if not missing or isinstance(error.__cause__, errors.LocalEntryNotFoundError):  # without a network
                raise
    raise CheckpointError(
        f"{name} has neither {' nor '.join(FIRST)}; name one of its files, as in {SCHEME}{wanted.repo}/FILE: "
        f"{', '.join(list_files(wanted.repo, wanted.revision)) or 'it has none that can be fetched'}."
    )


def list_files(repo: str, revision: str | None = None) -> dict[str, int | None]:
    """Return the sizes in bytes of the files of a repository that may be fetched, by name; None: unknown.

    Raises:
        CheckpointError: There is no such repository, or the hub cannot be reached.
    """
    with _told(f"{SCHEME}{repo}"):
        found = open_hub().model_info(repo, revision=revision, files_metadata=True).siblings or []
        return {item.rfilename: item.size for item in found if is_plain(item.rfilename)}


def fetch_file(repo: str, file: str, revision: str | None = None) -> Path:
    """Return the local path of one file of a repository, downloaded into the hub's cache if necessary.

    Raises:
        CheckpointError: There is no such file, or it cannot be downloaded.
    """
    if not is_plain(file):
        raise _refused(file)
    with _told(f"{SCHEME}{repo}/{file}"):
        path = Path(open_hub().hf_hub_download(repo, file, revision=revision))
    get_logger().debug("%s%s/%s is %s", SCHEME, repo, file, path)
    return path


def open_hub() -> Any:
    """Return the hub's client, for the server that `HF_ENDPOINT` names now.

    Raises:
        DependencyError: huggingface_hub is not installed.
    """
    library = import_extra("huggingface_hub", "hub", f"{SCHEME}…")
    if not interactive():
        import_extra("huggingface_hub.utils", "hub", f"{SCHEME}…").disable_progress_bars()
    return library.HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None, library_name="lbitcls")


class _told:
    """Context that turns an error of the hub's client into a `CheckpointError` on one line."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, Exception) and not isinstance(error, LbitclsError):
            raise hub_error(self._name, error) from error


def hub_error(name: str, error: Exception) -> CheckpointError:
    """Return the error for a transfer that failed."""
    why = f"{type(error).__name__}: {reason_of(error).rstrip('.')}"
    return CheckpointError(
        f"{name} cannot be reached ({why}). Check the name; a private model needs a token (HF_TOKEN, or hf auth "
        "login), another server its address (HF_ENDPOINT)."
    )
