"""Whether a checkpoint was made with the quantizers that a config has.

Bits are not among a checkpoint's tensors: 4-bit weights load into a 2-bit layer, and mean something else there. But a
checkpoint holds its own config.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

from torch import nn

from lbitcls.quant.methods import LayerEntry, find_entry
from lbitcls.quant.plan import PlanRow
from lbitcls.quant.transformer import ModelTransformer, build_mtransformer
from lbitcls.utils.checkpoint import read_checkpoint
from lbitcls.utils.config import Config
from lbitcls.utils.errors import CheckpointError, ConfigError
from lbitcls.utils.published import is_published

_SHOWN = 4  # layers that a message lists before it counts the rest


def check_quantizers(transformer: ModelTransformer, model: nn.Module, path: str | Path) -> None:
    """Compare what a config's transformer does to a model with what the config in a checkpoint does to it.

    What cannot be compared passes: a checkpoint without a config or with quantizers that are off, classes that are not
    imported here, another network (loading says what does not fit).

    Args:
        transformer: of the config that was given.
        model: the float model, before the transformer has changed it.
        path: the checkpoint.

    Raises:
        CheckpointError: a layer has another method, other bits or other channels there, or BatchNorm is folded in one
            of the two alone; or the checkpoint cannot be read.
    """
    made_with = _own_transformer(path)
    if made_with is None:
        return
    try:
        theirs = _described(made_with, model)
    except ConfigError:
        return
    ours = _described(transformer, model)
    names = [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]
    if names:
        lines = [f"\n  {name}: {theirs.get(name, 'float')} there, {ours.get(name, 'float')} here" for name in names]
        rest = f"\n  … and {len(lines) - _SHOWN} more" if len(lines) > _SHOWN else ""
        raise CheckpointError(
            f"{path} was made with other quantizers than the config has:{''.join(lines[:_SHOWN])}{rest}\n  give the "
            "config that it was made with; other quantizers need training (load_from may name this checkpoint), or "
            "float weights and lbitcls calibrate."
        )


def _own_transformer(path: str | Path) -> ModelTransformer | None:
    """The transformer of the config in a checkpoint whose quantizers are on."""
    if is_published(str(path)) or not zipfile.is_zipfile(Path(path).expanduser()):
        return None  # not written by `save_checkpoint`
    content = read_checkpoint(path, mmap=True)
    if not any(bool(value) for name, value in content["state_dict"].items() if name.endswith("_quantizer.enabled")):
        return None
    try:
        section = Config.fromstring(content["meta"].get("config") or "").get("quant_transformer")
        made_with = build_mtransformer(section) if section else None
    except ConfigError:
        return None
    return made_with if isinstance(made_with, ModelTransformer) else None


def _described(transformer: ModelTransformer, model: nn.Module) -> dict[str, str]:
    """How each layer is quantized, by its name, and whether BatchNorm is folded."""
    layers = {row.name: _text(row) for row in transformer.plan(model).quantized}
    return {**layers, "fold_bn": str(bool(transformer.fold_bn))}


def _text(row: PlanRow) -> str:
    entry, options = find_entry(row.cfg)
    if not isinstance(entry, LayerEntry):
        return f"{row.entry}, weight {_bits(row.num_bit_w)}, input {_bits(row.num_bit_a)}"
    settings = entry.settings(options)
    granularity = " per channel" if settings.per_channel and settings.weight_bits else ""
    return f"{entry.method.name}, weight {_bits(settings.weight_bits)}{granularity}, input {_bits(settings.input_bits)}"


def _bits(number: int | None) -> str:
    return "float" if number is None else f"{number} bits"
