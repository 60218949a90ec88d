"""Converts the networks that the APoT authors published (arXiv:1909.13144) to checkpoints, quantizers included.

The files are `CIFAR10/result/res20_*bit.pth.tar` of github.com/yhhhli/APoT_Quantization: ResNet-20 for CIFAR-10 with
convolutions in its shortcuts, in float or with 2 to 8 bits. Their state dicts have the prefix `module.`, and

    X.weight                 weight of a layer, in float
    X.act_alpha              clip α of the inputs of a quantized convolution, ()
    X.weight_quant.wgt_alpha clip α of its normalized weight, ()

Here α is the parameter `clip` of a quantizer. The number of bits is not in the file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lbitcls.models.builder import build_classifier
from lbitcls.models.convert import CIFAR10_CLASSES
from lbitcls.models.state_dict import plain_state_dict
from lbitcls.quant import build_mtransformer, named_quantizers
from lbitcls.quant.quantizer import GRID
from lbitcls.quant.spec import FLOAT_BITS, check_num_bits
from lbitcls.utils import save_checkpoint
from lbitcls.utils.checkpoint import load_weights, read_checkpoint
from lbitcls.utils.checkpoint_content import listed
from lbitcls.utils.errors import CheckpointError, ConfigError
from lbitcls.utils.files import check_writable

_CLIPS = {"act_alpha": "input_quantizer.clip", "weight_quant.wgt_alpha": "weight_quantizer.clip"}
_BITS_IN_NAME = re.compile(r"(?<!\d)(\d+)bit")
_NUM_CLASSES = len(CIFAR10_CLASSES)


def is_apot_resnet20(state: Mapping[str, Any]) -> bool:
    """Return True if the names in `state`, without `module.`, are those of an APoT authors' network or nearly so."""
    return any(name.endswith((".wgt_alpha", ".act_alpha")) for name in state) or (
        "fc.weight" in state and "layer2.0.downsample.0.weight" in state and "layer4.0.conv1.weight" not in state
    )


def convert_apot_resnet20(source: str | Path, target: str | Path, num_bits: int | None = None) -> dict:
    """Write the APoT authors' ResNet-20 in `source` as a checkpoint with this package's quantizers, ready for eval.

    Nothing in the file is executed: it is read as plain data (`weights_only`).

    Args:
        source: Published file; a name such as `res20_4bit.pth.tar` gives the number of bits.
        target: Checkpoint to write.
        num_bits: Bits of weights and inputs, 2 to 8, or 32 for float; None: as in the name of `source`.

    Returns:
        The sections `model` and `quant_transformer` of its config.

    Raises:
        CheckpointError: The file cannot be read as plain data, belongs to another network, or has an unusable clip.
        ConfigError: The number of bits is not known or does not fit the file, or `target` is `source` or cannot be
            written.
    """
    target = check_writable(target, "the checkpoint to write,", source)
    state = plain_state_dict(read_checkpoint(source)["state_dict"])
    config = apot_resnet20_config(_check_bits(state, source, num_bits))
    model = _build(config)
    load_weights(model, _translate(state, model, source), source, strict=True)
    model.CLASSES = CIFAR10_CLASSES
    text = "".join(f"{name} = {section!r}\n" for name, section in config.items())
    save_checkpoint(model, target, meta={"config": text, "epoch": 0, "iter": 0})
    return config


def apot_resnet20_config(num_bits: int) -> dict:
    """Return the sections `model` and `quant_transformer` of the authors' ResNet-20.

    All convolutions but the first have APoT weights and inputs of `num_bits` bits (32: both float). The first and the
    last layer have 8-bit weights, and float inputs, also in the float network.

    Example:
        >>> apot_resnet20_config(4)["quant_transformer"]["quan_policy"]["Conv2d"]["num_bit_w"]
        4
    """
    theirs = {"unbiased": True, "fractional_levels": True, "signed": False}
    inner = {"type": "APoTConv", "num_bit_w": num_bits, "num_bit_a": num_bits, **theirs}
    ends = {"num_bit_w": 8, "quant_activation": False, "step_from_max": True}
    entries = [{"type": "TorchQATConv", **ends}, {"type": "TorchQATLinear", **ends}]
    return {
        "model": {
            "type": "ImageClassifier",
            "backbone": {"type": "ResNetCIFAROptionB", "depth": 20},
            "neck": {"type": "GlobalAveragePooling"},
            "head": {"type": "LinearClsHead", "num_classes": _NUM_CLASSES, "in_channels": 64, "topk": (1,)},
        },
        "quant_transformer": {
            "type": "ModelTransformer",
            "quan_policy": {"Conv2d": inner},
            "special_layers": {"layers_name": ["backbone.conv1", "head.fc"], "convert_type": entries},
        },
    }


def _build(config: dict) -> Any:
    return build_mtransformer(config["quant_transformer"])(build_classifier(config["model"]))


def _check_bits(state: Mapping[str, Any], source: str | Path, num_bits: int | None) -> int:
    """Return the number of bits, given or in the file's name; raise `ConfigError` unless it fits the clips."""
    clips = any(name.endswith(tuple(_CLIPS)) for name in state)
    named = _BITS_IN_NAME.findall(Path(source).name)
    if num_bits is None and named:
        num_bits = int(named[-1])
    if num_bits is None and clips:
        raise ConfigError(
            f"{source} does not record the bits of its quantizers, and its name contains no '4bit' or the like; "
            "add --bits N (2 to 8)."
        )
    num_bits = FLOAT_BITS if num_bits is None else num_bits
    if num_bits != FLOAT_BITS:
        check_num_bits(num_bits, "--bits")
    if clips != (num_bits != FLOAT_BITS):
        held = "clips of quantizers" if clips else "float weights without clips of quantizers"
        fitting = "2 to 8" if clips else str(FLOAT_BITS)
        raise ConfigError(f"{source} contains {held}, so its bits must be {fitting}; got {num_bits}. Set --bits.")
    return num_bits


def _translate(state: Mapping[str, Any], model: nn.Module, source: str | Path) -> dict[str, Tensor]:
    """Return the state dict of `model` with the values of the published `state`."""
    given = {_own_name(name): value for name, value in state.items()}
    own = dict(model.state_dict())
    clips = tuple(_CLIPS.values())
    expected = {n: v.shape for n, v in own.items() if "_quantizer." not in n or n.endswith(clips)}
    _check_names(given, expected, source)
    own |= {name: given[name].detach().reshape(shape) for name, shape in expected.items()}
    for name, quantizer in named_quantizers(model):
        _fill(own, name, quantizer, source)
    return own


def _own_name(name: str) -> str:
    """Return the name here of a published tensor: `layer1.0.conv1.act_alpha`, `fc.bias`, ….

    Example:
        >>> _own_name("layer1.0.conv1.act_alpha"), _own_name("fc.bias")
        ('backbone.layer1.0.conv1.input_quantizer.clip', 'head.fc.bias')
    """
    for theirs, ours in _CLIPS.items():
        if name.endswith(f".{theirs}"):
            name = name.removesuffix(theirs) + ours
    return f"head.{name}" if name.startswith("fc.") else f"backbone.{name}"


def _check_names(given: Mapping[str, Any], expected: Mapping[str, torch.Size], source: str | Path) -> None:
    """Raise `CheckpointError` unless `given` has the expected tensors, each in its shape."""
    lacking, extra = sorted(expected.keys() - given.keys()), sorted(given.keys() - expected.keys())
    other = [n for n, shape in expected.items() if n in given and _shape(given[n]) != tuple(shape)]
    faults = [
        f"{text}: {listed(names)}"
        for text, names in (("lacks", lacking), ("has in addition", extra), ("has in other shapes", other))
        if names
    ]
    if faults:
        raise CheckpointError(
            f"{source} is not a ResNet-20 of the APoT authors: expected three stages of three blocks with convolutions "
            f"in the shortcuts of stages 2 and 3, {_NUM_CLASSES} classes, and act_alpha and weight_quant.wgt_alpha at "
            f"all inner convolutions or none. By the names here, it {'; '.join(faults)}. For another network, choose "
            "another --format."
        )


def _shape(value: Any) -> tuple[int, ...] | None:
    return tuple(value.shape) if isinstance(value, Tensor) else None


def _fill(state: dict[str, Tensor], name: str, quantizer: Any, source: str | Path) -> None:
    """Complete the state of one quantizer: initialized, with its clip, or with its step from the largest weight."""
    state[f"{name}.initialized"] = torch.ones((), dtype=torch.bool)
    clip = state.get(f"{name}.clip")
    if clip is not None:
        if not (clip.isfinite() and clip > 0):
            raise CheckpointError(
                f"{source} contains the clip {clip.item():g} for {name}; expected a number > 0. The training diverged "
                "or the file is damaged: use another."
            )
        return
    quantizer.initialize(state[f"{name.rpartition('.')[0]}.weight"])
    state |= {f"{name}.{key}": value for key, value in quantizer.state_dict().items() if key != GRID}
