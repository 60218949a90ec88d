"""Check that a checkpoint's quantizers match the config's.

A checkpoint's tensors do not include the number of bits: 4-bit weights load into a 2-bit layer, where they mean
something else. But a checkpoint contains its own config.
"""

from __future__ import annotations

import copy
import logging
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lbitcls.models import build_classifier
from lbitcls.quant.calibration import named_quantizers
from lbitcls.quant.changing_bits import saved_stage, set_bits
from lbitcls.quant.methods import LayerEntry, find_entry
from lbitcls.quant.plan import PlanRow
from lbitcls.quant.quantizer import GRID
from lbitcls.quant.transformer import ModelTransformer, build_mtransformer
from lbitcls.settings.progressive import Pair
from lbitcls.utils.checkpoint import read_checkpoint
from lbitcls.utils.config import Config
from lbitcls.utils.errors import CheckpointError, ConfigError, LbitclsError
from lbitcls.utils.hub import is_on_hub
from lbitcls.utils.published import is_published
from lbitcls.utils.weights_file import is_weights_file

_SHOWN = 4  # layers that a message lists; the rest are counted


def check_quantizers(transformer: ModelTransformer, model: nn.Module, path: str | Path) -> None:
    """Raise `CheckpointError` if a checkpoint's own config quantizes a model differently from the given config.

    Cases that cannot be compared pass: a checkpoint without a config or with quantizers switched off, classes that are
    not imported in this process, another network (loading reports what does not fit).

    Args:
        transformer: Transformer of the given config.
        model: Float model, before the transformer changes it.
        path: Checkpoint file.

    Raises:
        CheckpointError: A layer has another method, other bits, channels or options in the checkpoint, or only one of
            the two folds BatchNorm; or the checkpoint cannot be read.
    """
    content = _quantized(path)
    made_with = _own_transformer(content["meta"].get("config")) if content else None
    if content is None or made_with is None:
        return
    try:
        theirs = _described(made_with, model)
    except ConfigError:
        return
    ours = _described(transformer, model)
    there = {name for name in {**ours, **theirs} if f"{name}.weight" in content["state_dict"]}
    there |= {"fold_bn", "residual_bits"}
    names = [name for name in {**ours, **theirs} if name in there and ours.get(name) != theirs.get(name)]
    if names:
        lines = [f"\n  {name}: {theirs.get(name, 'float')} there, {ours.get(name, 'float')} here" for name in names]
        rest = f"\n  … and {len(lines) - _SHOWN} more" if len(lines) > _SHOWN else ""
        raise CheckpointError(
            f"{path} was made with other quantizers than the config has:{''.join(lines[:_SHOWN])}{rest}\n  give the "
            "config that it was made with; other quantizers need training (load_from may name this checkpoint), or "
            "float weights and lbitcls calibrate."
        )


def take_stage(model: nn.Module, path: str | Path, pairs: Sequence[Pair], logger: logging.Logger) -> None:
    """Give a model's quantizers the bits of the stage of progressive quantization in which a checkpoint was saved.

    Args:
        model: Model with the final bits.
        path: Checkpoint file.
        pairs: Bits of the stages.
        logger: Logger for the stage, unless it is the last.

    Raises:
        CheckpointError: The checkpoint cannot be read.
    """
    content = _content(path)
    stage = None if content is None else saved_stage(model, content["state_dict"], pairs)
    if stage is None or stage == len(pairs) - 1:
        return
    set_bits(model, pairs[stage])
    (weight, inputs), (final_weight, final_inputs) = pairs[stage], pairs[-1]
    logger.info(
        "%s was saved in stage %d of %d of progressive quantization: layers have W%dA%d, not the final W%dA%d.",
        *(path, stage + 1, len(pairs), weight, inputs, final_weight, final_inputs),
    )


def with_grids(content: dict[str, Any], model: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Return a checkpoint's state dict in which each quantizer records the grid that its values belong to.

    A checkpoint of an older version does not record the grids. They are then read from its config, if it has one that
    is for this model.

    Args:
        content: Content of the checkpoint.
        model: Section of the model that the weights are loaded into.
    """
    state = content["state_dict"]
    quantized = any(name.endswith("_quantizer.enabled") for name in state)
    if not quantized or any(name.endswith(f"_quantizer.{GRID}") for name in state):
        return state
    made_with = _own_transformer(content["meta"].get("config"))
    if made_with is None:
        return state
    quiet = logging.getLogger("lbitcls.agreement")
    quiet.setLevel("WARNING")
    try:
        with torch.random.fork_rng():
            built = made_with(build_classifier(copy.deepcopy(model), False), logger=quiet)
    except LbitclsError:
        return state
    for name, quantizer in named_quantizers(built):
        quantizer.negative.fill_(bool(state.get(f"{name}.negative", quantizer.negative)))
        quantizer.refresh()
    grids = {name: text for name, text in built.state_dict().items() if name.endswith(f"_quantizer.{GRID}")}
    return {**state, **{name: text for name, text in grids.items() if f"{name.removesuffix(GRID)}enabled" in state}}


def _content(path: str | Path) -> dict[str, Any] | None:
    """Return the content of a checkpoint; None if `save_checkpoint` did not write it."""
    if is_published(str(path)) and not is_on_hub(str(path)):
        return None
    file = Path(path).expanduser()
    # `read_checkpoint` rejects pipes and devices.
    if file.is_file() and not (is_weights_file(file) or zipfile.is_zipfile(file)):
        return None
    return read_checkpoint(path, mmap=True)


def _quantized(path: str | Path) -> dict[str, Any] | None:
    """Return the content of a checkpoint whose quantizers are on; None if they are off or there are none."""
    content = _content(path)
    if content is None:
        return None
    flags = [bool(value) for name, value in content["state_dict"].items() if name.endswith("_quantizer.enabled")]
    return content if any(flags) else None


def _own_transformer(text: str | None) -> ModelTransformer | None:
    """Return the transformer of a checkpoint's config; None if it has none that can be built."""
    try:
        section = Config.fromstring(text or "").get("quant_transformer")
        made_with = build_mtransformer(section) if isinstance(section, dict) else None
    except ConfigError:
        return None
    return made_with if isinstance(made_with, ModelTransformer) else None


def _described(transformer: ModelTransformer, model: nn.Module) -> dict[str, str]:
    """Return a description of each layer's quantization by layer name, and of what applies to all of them."""
    layers = {row.name: _text(row) for row in transformer.plan(model).quantized}
    whole = {"fold_bn": str(bool(transformer.fold_bn)), "residual_bits": str(transformer.residual_bits)}
    return {**layers, **whole}


def _text(row: PlanRow) -> str:
    entry, options = find_entry(row.cfg)
    if not isinstance(entry, LayerEntry):
        return f"{row.entry}, weight {_bits(row.num_bit_w)}, input {_bits(row.num_bit_a)}"
    settings = entry.settings(options)
    granularity = " per channel" if settings.per_channel and settings.weight_bits else ""
    weight = f"weight {_bits(settings.weight_bits)}{granularity}{_options(settings.weight_options)}"
    return f"{entry.method.name}, {weight}, input {_bits(settings.input_bits)}{_options(settings.input_options)}"


def _bits(number: int | None) -> str:
    return "float" if number is None else f"{number} bits"


def _options(options: dict[str, Any]) -> str:
    """Return a quantizer's own options that the config sets, as text: ` (narrow_range=True)`."""
    given = ", ".join(f"{name}={value!r}" for name, value in sorted(options.items()))
    return f" ({given})" if given else ""
