"""Models that need no config: exported models and checkpoints record theirs; without PyTorch for exported models."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lbitcls.assembly.image_sizes import natural_size, section_channels
from lbitcls.datasets.listing import class_folders
from lbitcls.inference.preparation import Steps, fitting_steps, test_steps
from lbitcls.settings.sections import ConfigLike, as_config
from lbitcls.utils.config import Config
from lbitcls.utils.errors import CheckpointError, ConfigError, DataError, suggest
from lbitcls.utils.files import EXPORTED, is_exported, suggest_path
from lbitcls.utils.hub import fetch_model, is_on_hub
from lbitcls.utils.library import CONFIG_SUFFIXES
from lbitcls.utils.logging import get_logger

CHECKPOINTS = (".pth", ".pt", ".ckpt", ".safetensors")
_MACHINE = ("device", "gpu_ids", "cpu_only", "num_threads", "dist_params")  # settings of the machine that trained
_SHOWN = 5  # names that a message lists


@dataclass(frozen=True)
class Given:
    """Files of a command line, sorted by kind.

    Attributes:
        config: Config file; None: the model describes itself.
        model: Exported model or checkpoint; None: not given.
        rest: All other arguments.
    """

    config: str | None
    model: str | None
    rest: list[str]


@dataclass(frozen=True)
class Description:
    """Description of a model, as its file records it.

    Attributes:
        path: The file.
        config: Config, without the settings of the machine that wrote it; None: not recorded.
        classes: Class names in label order; None: not recorded.
        num_classes: Number of classes K; None: not recorded.
        steps: Test pipeline; None: not recorded.
        shape: (C, H, W) of the model's input; None for each size that is free or unknown.
    """

    path: Path
    config: Config | None
    classes: tuple[str, ...] | None
    num_classes: int | None
    steps: Steps | None
    shape: tuple[int | None, int | None, int | None]


def sort_arguments(given: Sequence[str], usage: str) -> Given:
    """Sort a command's files: the first is the config or the model, as its suffix says; a page's folder is a model.

    Args:
        given: The arguments, at least one.
        usage: Order of the arguments, for messages.

    Raises:
        ConfigError: The first is neither, or a config stands after the model.
    """
    first, *others = (str(local_model(word)) if is_on_hub(word) else word for word in given)
    suffix = Path(first).suffix.lower()
    if suffix in CONFIG_SUFFIXES:
        return Given(first, others[0] if others else None, others[1:])
    if suffix not in CHECKPOINTS and not is_exported(first):
        near = "." if Path(first).exists() else suggest_path(Path(first))
        raise ConfigError(
            f"the first file must be an exported model ({', '.join(EXPORTED)}, the folder of a page), a checkpoint "
            f"({', '.join(CHECKPOINTS)}) or a config ({', '.join(CONFIG_SUFFIXES)}); got {first}{near} "
            f"The order is: {usage}."
        )
    if others and Path(others[0]).suffix.lower() in CONFIG_SUFFIXES:
        raise ConfigError(f"the config {others[0]} stands after the model {first}. The order is: {usage}.")
    return Given(None, first, others)


def local_model(path: str | Path) -> Path:
    """Return a model's file: of a name on the hub (`hf://owner/name`) the downloaded one.

    Raises:
        CheckpointError: It cannot be downloaded.
    """
    return fetch_model(str(path)) if is_on_hub(path) else Path(path).expanduser()


def recorded_config(path: str | Path) -> Config:
    """Return the config that an exported model or a checkpoint records: plain values, nothing is executed or imported.

    Settings of the machine that wrote it are left out (`device`, …).

    Raises:
        CheckpointError: The file is missing or damaged, or records no config.
        ConfigError: The checkpoint's model has parts in modules (`custom_imports`) that are not imported.
    """
    config = describe(path).config
    if config is None:
        raise CheckpointError(f"{path} does not record the config that it belongs to; give the config before it.")
    return config


def describe(path: str | Path) -> Description:
    """Return what an exported model or a checkpoint, told apart by the suffix, records about the model.

    Raises:
        CheckpointError: The file is missing or damaged, or its config is not plain values.
        ConfigError: As for `recorded_config`.
    """
    path = local_model(path)
    return _exported(path) if is_exported(path) else _checkpoint(path)


def _exported(path: Path) -> Description:
    from lbitcls.deploy.runtime.metadata import read_info

    info = read_info(path)
    if info is None:  # lbitcls did not write it
        return Description(path, None, None, None, None, (None, None, None))
    config = _parsed(info.config, path)
    classes = None if info.classes is None else tuple(info.classes)
    return Description(path, config, classes, info.num_classes, info.pipeline or test_steps(config), info.input_shape)


def _checkpoint(path: Path) -> Description:
    from lbitcls.utils.checkpoint import read_checkpoint

    meta = read_checkpoint(path, mmap=True)["meta"]
    config = _parsed(meta.get("config") or "", path)
    classes = None if meta.get("CLASSES") is None else tuple(meta["CLASSES"])
    number = None if classes is None else len(classes)
    return Description(path, config, classes, number, test_steps(config), (_channels(config), None, None))


def _channels(config: Mapping[str, Any] | None) -> int | None:
    """Return the channels of a config's test images, as its model or its pipeline has them."""
    model, data = (config or {}).get("model") or {}, (config or {}).get("data") or {}
    given = (model.get("backbone") or {}).get("in_channels")
    return given if isinstance(given, int) else section_channels(data.get("test") or data.get("val") or {})


def _parsed(text: str, path: Path) -> Config | None:
    """Parse a recorded config, without its machine's settings and its imports."""
    if not text:
        return None
    try:
        config = Config.fromstring(text)
    except ConfigError as error:
        raise CheckpointError(f"the config in {path} cannot be used: {error}") from error
    for name in _MACHINE:
        config.pop(name, None)
    imports = (config.pop("custom_imports", None) or {}).get("imports") or []
    missing = [name for name in ([imports] if isinstance(imports, str) else imports) if name not in sys.modules]
    if missing and is_exported(path):
        get_logger().warning(
            "Not importing %s, which the config in %s names; give the config to import it.", *(", ".join(missing), path)
        )
    elif missing:
        raise ConfigError(
            f"the config in {path} imports {', '.join(missing)} (custom_imports), and what a file records is never "
            "executed; give the config before it."
        )
    return config


def folder_config(path: str | Path, folder: str | Path, given: ConfigLike | None = None) -> Config:
    """Return a config that tests a model on an image folder with one folder per class.

    Images of any size and color are prepared as for `inference_model`.

    Args:
        path: Exported model or checkpoint.
        folder: Folder with the class folders, named after the model's classes; classes may be missing.
        given: Config of the model; None: the one that the file records.

    Raises:
        CheckpointError: The file is missing or damaged, or does not record how images are prepared.
        DataError: The folder is missing, or its class folders are not the model's classes.
    """
    model = describe(path)
    config = model.config if given is None else as_config(given)
    steps = model.steps if given is None else test_steps(config)
    if steps is None:
        raise CheckpointError(
            f"{path} does not record how images are prepared; give a config with data.test before it."
        )
    names = _class_names(model, Path(folder).expanduser())
    section = {
        "type": "ImageFolder",
        "data_prefix": str(Path(folder).expanduser().resolve()),
        "pipeline": list(fitting_steps(steps, model.shape, natural_size(config))),
        "classes": names,
    }
    sections: dict[str, Any] = {"model": {"type": "ImageClassifier", "head": {"type": "ClsHead"}}}
    sections |= {} if config is None else config.to_dict()
    kept = {name: value for name, value in (sections.get("data") or {}).items() if name.endswith("_per_gpu")}
    return Config({**sections, "data": {**kept, "test": section}})


def _class_names(model: Description, folder: Path) -> list[str]:
    """Return the model's classes, or the folder's if the file names none, after a check that they match."""
    if not folder.is_dir():
        raise DataError(
            f"there is no folder {folder}; expected a folder that has one folder of images per class"
            f"{suggest_path(folder)}"
        )
    present = class_folders(folder)
    if not present:
        raise DataError(f"{folder} has no class folders; expected one folder of images per class.")
    if model.classes is None:
        if model.num_classes not in (None, len(present)):
            raise DataError(
                f"{folder} has {len(present)} class folders, but {model.path} has {model.num_classes} classes."
            )
        return present
    unknown = [name for name in present if name not in model.classes]
    if unknown:
        raise DataError(
            f"{folder} has folders that are not named after classes of {model.path}: {_listed(unknown)}"
            f"{suggest(unknown[0], model.classes)} The classes are {_listed(model.classes)}."
        )
    missing = [name for name in model.classes if name not in present]
    if missing:
        get_logger().warning("%s has no images of %d classes: %s.", folder, len(missing), _listed(missing))
    return list(model.classes)


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:_SHOWN])
    return shown + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
