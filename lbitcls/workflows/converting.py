"""Published weights that need more than a change of names, as checkpoints."""

from __future__ import annotations

from pathlib import Path

from lbitcls.models.convert import convert_cifar_resnet
from lbitcls.utils.errors import ConfigError, suggest

_CONVERTERS = {"cifar-resnet": convert_cifar_resnet}


def convert_checkpoint(source: str | Path, target: str | Path, kind: str = "cifar-resnet") -> dict:
    """Write the published weights in `source` as the checkpoint `target`; returns the config of its model.

    Args:
        source: file to read, as plain data only.
        target: checkpoint to write.
        kind: 'cifar-resnet', the only one: the option-A CIFAR ResNets, `resnet20-*.th`.
    """
    if kind not in _CONVERTERS:
        raise ConfigError(
            f"there is no conversion of '{kind}'{suggest(kind, _CONVERTERS)} Known: {', '.join(_CONVERTERS)}."
        )
    return _CONVERTERS[kind](source, target)
