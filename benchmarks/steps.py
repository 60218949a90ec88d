"""Training steps that qat_step.py measures: the models, the variants of a step, its time, saved activations and memory.

A variant's name is `KIND[-bf16|-int8][-autocast][-channels_last][-compiled]`. KIND: `float`, or the kernels of the
quantized model (`plain`, `fused`, `integer`; `own`: none selected). `bf16`, `int8`: gradients of integer kernels.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lbitcls.models import build_classifier
from lbitcls.quant import build_mtransformer, calibrate, regularization, select_kernels

MODELS: dict[str, tuple[dict[str, Any], tuple[int, int, int], int, int]] = {
    "resnet20": (dict(type="ResNetCIFAROptionA", depth=20), (3, 32, 32), 64, 128),
    "resnet18": (dict(type="ResNet", depth=18), (3, 224, 224), 512, 16),
    "mobilenet_v2": (dict(type="MobileNetV2"), (3, 224, 224), 1280, 16),
}
"""Backbone, shape of an image, channels of the features, and default batch size."""
KERNELS, GRADIENTS = ("plain", "fused", "integer"), ("float32", "bf16", "int8")
MODIFIERS = ("autocast", "channels_last", "compiled")


class Kind(NamedTuple):
    """Parts of a variant's name."""

    model: str
    gradients: str = "float32"
    autocast: bool = False
    channels_last: bool = False
    compiled: bool = False


def parse_kind(name: str) -> Kind:
    """Return the parts of a variant's name.

    Raises:
        argparse.ArgumentTypeError: The name has unknown or repeated parts, or gradients without integer kernels.
    """
    first, *rest = name.split("-")
    gradients = rest.pop(0) if rest and rest[0] in GRADIENTS[1:] else "float32"
    known = first in ("float", "own", *KERNELS) and [part for part in MODIFIERS if part in rest] == rest
    if not known or (gradients != "float32" and first != "integer"):
        raise argparse.ArgumentTypeError(
            f"{name} is not a variant: expected KIND[-bf16|-int8][-autocast][-channels_last][-compiled] in this order, "
            "KIND float, plain, fused or integer, bf16 and int8 with integer only."
        )
    return Kind(first, gradients, *(part in rest for part in MODIFIERS))


class Variant:
    """Model with an optimizer, stepped on one fixed batch; a float model if `method` is None."""

    def __init__(self, args: argparse.Namespace, method: str | None, name: str) -> None:
        self.kind = parse_kind(name)
        self.kernels = {"own": None, "float": None if args.own_loop else "plain"}.get(self.kind.model, self.kind.model)
        self.device = torch.device(args.device)
        self.select()  # calibration decides which layers run together
        self.layout = torch.channels_last if self.kind.channels_last else torch.contiguous_format
        self.model, images, labels = build(args, method)
        self.images, self.labels = images.contiguous(memory_format=self.layout), labels
        self.model.to(memory_format=self.layout)
        if self.kind.compiled:
            self.model.compile()
        self.optimizer = torch.optim.SGD(self.model.parameters(), 0.01, 0.9)

    def step(self) -> None:
        """Run one training step; `select` comes first if another variant has run."""
        self.optimizer.zero_grad()
        self._loss().backward()
        self.optimizer.step()

    def saved_bytes(self) -> int:
        """Return the bytes of all distinct memory blocks that autograd keeps between forward and backward pass."""
        self.select()
        held: list[Tensor] = []
        own = {t.untyped_storage().data_ptr() for t in (*self.model.parameters(), *self.model.buffers())}
        with torch.autograd.graph.saved_tensors_hooks(lambda t: held.append(t) or t, lambda t: t):
            self._loss()
        blocks = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in held}
        return sum(size for block, size in blocks.items() if block not in own)

    def select(self) -> None:
        """Select the variant's kernels."""
        if self.kernels is not None:
            gradients = {} if self.kind.gradients == "float32" else {"gradients": self.kind.gradients}
            select_kernels(self.kernels, self.device, **gradients)

    def _loss(self) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.kind.autocast):
            found = self.model(self.images, gt_label=self.labels, return_loss=True)["loss"]
            return found + regularization(self.model)


def build(args: argparse.Namespace, method: str | None) -> tuple[nn.Module, Tensor, Tensor]:
    """Return a model in training mode, quantized and calibrated unless `method` is None, a batch and its labels."""
    backbone, shape, channels, _ = MODELS[args.model]
    torch.manual_seed(0)
    head = dict(
        type="LinearClsHead",
        num_classes=10,
        in_channels=channels,
        loss=dict(type="CrossEntropyLoss", loss_weight=1.0),
        topk=(1,),
    )
    model = build_classifier(
        dict(type="ImageClassifier", backbone=backbone, neck=dict(type="GlobalAveragePooling"), head=head)
    )
    images = torch.randn(args.batch, *shape).to(args.device)
    labels = torch.randint(0, 10, (args.batch,)).to(args.device)
    if method is not None:
        bits = dict(num_bit_w=args.bits, num_bit_a=args.bits)
        policy = dict(Conv2d=dict(type=f"{method}Conv", **bits), Linear=dict(type=f"{method}Linear", **bits))
        build_mtransformer(dict(type="ModelTransformer", quan_policy=policy))(model)
    model.to(args.device).train()
    calibrate(model, [images[:16]])
    return model, images, labels


def seconds(step: Callable[[], object], args: argparse.Namespace) -> float:
    """Return the time of one step; with one CPU thread processor time, which other programs do not affect."""
    clock = time.process_time if args.device == "cpu" and args.threads == 1 else time.perf_counter
    start = clock()
    step()
    if args.device.startswith("cuda"):
        torch.cuda.synchronize()
    return clock() - start


def median_seconds(step: Callable[[], object], args: argparse.Namespace) -> float:
    """Return the median time of a step over the turns, after one that is not counted."""
    step()
    return statistics.median(seconds(step, args) for _ in range(args.repeats))


def peak_bytes(variant: Variant) -> int:
    """Return how far a step raises the memory of this process (resident set size) above what it holds at rest.

    At rest: model, gradients, optimizer and compiler after three steps, with freed memory given back. Linux only.
    """
    for _ in range(3):
        variant.step()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # forgets the highest memory so far
    rest = _status("VmRSS")
    variant.step()
    return _status("VmHWM") - rest


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))
