"""Converts published weights that need more than renamed keys to checkpoints: `lbitcls convert`."""

from __future__ import annotations

from pathlib import Path

from lbitcls.models.convert import convert_cifar_resnet
from lbitcls.models.state_dict import plain_state_dict
from lbitcls.utils.checkpoint import read_checkpoint
from lbitcls.utils.errors import ConfigError, suggest
from lbitcls.workflows.converting_apot import convert_apot_resnet20, is_apot_resnet20

FORMATS = ("cifar-resnet", "apot-resnet20")


def convert_checkpoint(
    source: str | Path, target: str | Path, kind: str | None = None, num_bits: int | None = None
) -> dict:
    """Write the published weights in `source` to the checkpoint `target`; return the config of its model.

    Args:
        source: File to read; only plain data is loaded.
        target: Checkpoint to write.
        kind: Format of the source: 'cifar-resnet' (option-A CIFAR ResNets, `resnet20-*.th`) or 'apot-resnet20' (the
            APoT authors' ResNet-20, `res20_*bit.pth.tar`, with their quantizers); None: found by the names in it.
        num_bits: Bits of 'apot-resnet20', 2 to 8, or 32 for float; None: as in the name of `source`.

    Returns:
        The section `model`; of 'apot-resnet20' a dict of the sections `model` and `quant_transformer`.

    Raises:
        CheckpointError: The file cannot be read as plain data, or belongs to another network.
        ConfigError: There is no such format, or the number of bits is not known or does not fit.
    """
    if kind is not None and kind not in FORMATS:
        raise ConfigError(f"there is no conversion of '{kind}'{suggest(kind, FORMATS)} Known: {', '.join(FORMATS)}.")
    kind = kind or _find_format(source)
    if kind == "apot-resnet20":
        return convert_apot_resnet20(source, target, num_bits)
    if num_bits is not None:
        raise ConfigError(f"--bits needs the format apot-resnet20; {source} is converted as {kind}. Remove --bits.")
    return convert_cifar_resnet(source, target)


def _find_format(source: str | Path) -> str:
    """Return the format that the names in `source` point to."""
    state = plain_state_dict(read_checkpoint(source)["state_dict"])
    return "apot-resnet20" if is_apot_resnet20(state) else "cifar-resnet"
