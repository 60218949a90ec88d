"""Conversion of the published CIFAR ResNets, `resnet20-*.th` of akamaster/pytorch_resnet_cifar10, to checkpoints.

Their files contain the state dict of a `DataParallel` model (`module.conv1.weight`, …, `module.linear.bias`) and
the best accuracy. They were trained on images normalized with ImageNet's mean and standard deviation.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from lbitcls.models.builder import build_classifier
from lbitcls.models.state_dict import plain_state_dict
from lbitcls.utils import save_checkpoint
from lbitcls.utils.checkpoint import load_checkpoint, read_checkpoint
from lbitcls.utils.checkpoint_content import listed
from lbitcls.utils.errors import CheckpointError

CIFAR10_CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)


def convert_cifar_resnet(source: str | Path, target: str | Path) -> dict:
    """Write the option-A CIFAR ResNet in `source` as a checkpoint; its size is inferred from the weights.

    Nothing in the file is executed: it is read as plain data (`weights_only`).

    Args:
        source: Published file `resnet*.th`.
        target: Checkpoint to write.

    Returns:
        The config of the model, as `cfg.model`.

    Raises:
        CheckpointError: The file cannot be read as plain data, or belongs to another network.
    """
    state = plain_state_dict(read_checkpoint(source)["state_dict"])
    config = cifar_resnet_config(state, str(source))
    model: Any = build_classifier(config)
    load_checkpoint(model, source, strict=True)
    if config["head"]["num_classes"] == len(CIFAR10_CLASSES):
        model.CLASSES = CIFAR10_CLASSES
    save_checkpoint(model, target, meta={"config": f"model = {config!r}\n", "epoch": 0, "iter": 0})
    return config


def cifar_resnet_config(state: Mapping[str, Tensor], source: str) -> dict:
    """Return the config of the classifier whose published weights are `state`; messages call the file `source`."""
    blocks = {key.split(".")[1] for key in state if key.startswith("layer1.")}
    dims = [state[name].dim() for name in ("conv1.weight", "linear.weight") if name in state]
    if dims != [4, 2] or not blocks:
        found = sorted({key.split(".")[0] for key in state})
        raise CheckpointError(
            f"{source} is not a CIFAR ResNet with option-A shortcuts: expected conv1 (4 axes), layer1 … layer3 and "
            f"linear (2 axes); got {listed(found)}."
        )
    base_channels, in_channels = state["conv1.weight"].shape[:2]
    num_classes, features = state["linear.weight"].shape
    backbone = {
        "type": "ResNetCIFAROptionA",
        "depth": 6 * len(blocks) + 2,
        "in_channels": in_channels,
        "base_channels": base_channels,
    }
    return {
        "type": "ImageClassifier",
        "backbone": backbone,
        "neck": {"type": "GlobalAveragePooling"},
        "head": {"type": "LinearClsHead", "num_classes": num_classes, "in_channels": features},
    }
