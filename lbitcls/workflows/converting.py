"""Converts published weights that need more than renamed keys to checkpoints: `lbitcls convert`."""

from __future__ import annotations

from pathlib import Path

from lbitcls.models.convert import convert_cifar_resnet
from lbitcls.utils.errors import ConfigError, suggest

_CONVERTERS = {"cifar-resnet": convert_cifar_resnet}


def convert_checkpoint(source: str | Path, target: str | Path, kind: str = "cifar-resnet") -> dict:
    """Write the published weights in `source` to the checkpoint `target`; return the config of its model.

    Args:
        source: File to read; only plain data is loaded.
        target: Checkpoint to write.
        kind: Format of the source: 'cifar-resnet', the only one: the option-A CIFAR ResNets, `resnet20-*.th`.
    """
    if kind not in _CONVERTERS:
        raise ConfigError(
            f"there is no conversion of '{kind}'{suggest(kind, _CONVERTERS)} Known: {', '.join(_CONVERTERS)}."
        )
    return _CONVERTERS[kind](source, target)
