"""Converts published weights to checkpoints, and checkpoints to weights without pickle: `lbitcls convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lbitcls.models.convert import convert_cifar_resnet
from lbitcls.models.state_dict import plain_state_dict
from lbitcls.utils.checkpoint import read_checkpoint, write_checkpoint
from lbitcls.utils.config import Config
from lbitcls.utils.errors import ConfigError, suggest
from lbitcls.utils.files import check_writable
from lbitcls.utils.weights_file import is_weights_file, require_safetensors
from lbitcls.workflows.converting_apot import convert_apot_resnet20, is_apot_resnet20

FORMATS = ("cifar-resnet", "apot-resnet20", "weights")


def convert_checkpoint(
    source: str | Path, target: str | Path, kind: str | None = None, num_bits: int | None = None
) -> dict:
    """Write the weights in `source` to the checkpoint `target`; return the config of its model.

    Args:
        source: File to read; only plain data is loaded.
        target: Checkpoint to write; `.safetensors` for one without pickle.
        kind: Format of the source: 'cifar-resnet' (option-A CIFAR ResNets, `resnet20-*.th`) or 'apot-resnet20' (the
            APoT authors' ResNet-20, `res20_*bit.pth.tar`, with their quantizers) or 'weights' (a checkpoint of this
            package: its weights and what describes them, unchanged); None: found by what is in it.
        num_bits: Bits of 'apot-resnet20', 2 to 8, or 32 for float; None: as in the name of `source`.

    Returns:
        The section `model`; of 'apot-resnet20' a dict of the sections `model` and `quant_transformer`. Of 'weights' the
        one that the source records; empty if it records none.

    Raises:
        CheckpointError: The file cannot be read as plain data, or belongs to another network.
        ConfigError: There is no such format, or the number of bits is not known or does not fit.
    """
    if kind is not None and kind not in FORMATS:
        raise ConfigError(f"there is no conversion of '{kind}'{suggest(kind, FORMATS)} Known: {', '.join(FORMATS)}.")
    check_writable(target, "TARGET", source)
    if is_weights_file(target):
        require_safetensors()
    kind = kind or _find_format(source)
    if kind == "apot-resnet20":
        return convert_apot_resnet20(source, target, num_bits)
    if num_bits is not None:
        raise ConfigError(f"--bits needs the format apot-resnet20; {source} is converted as {kind}. Remove --bits.")
    return convert_weights(source, target) if kind == "weights" else convert_cifar_resnet(source, target)


def convert_weights(source: str | Path, target: str | Path) -> dict[str, Any]:
    """Write the weights and the metadata of a checkpoint to `target`, without what only resumes a run.

    Returns:
        The section `model` that the checkpoint records; empty if it records none.
    """
    content = read_checkpoint(source)
    write_checkpoint({"meta": content["meta"], "state_dict": content["state_dict"]}, target)
    text = content["meta"].get("config")
    return (Config.fromstring(text).to_dict().get("model") or {}) if text else {}


def _find_format(source: str | Path) -> str:
    """Return the format that the metadata and the names in `source` point to."""
    content = read_checkpoint(source, mmap=True)
    if "lbitcls_version" in content["meta"]:
        return "weights"
    state = plain_state_dict(content["state_dict"])
    return "apot-resnet20" if is_apot_resnet20(state) else "cifar-resnet"
