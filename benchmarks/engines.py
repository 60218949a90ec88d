"""Every target with every backbone family, method and bit width, each file run by its own engine (docs/engines.md).

    python benchmarks/engines.py [--families ResNet-20 …] [--targets web …] [--methods LSQ …] [--bits 8 4 2]

Small networks are trained on the digits that come with the package, first in float (one network a family), then with
their quantizers; each is exported for each target, and the file compared with the trained network on the test digits.
Completed rows are kept in the `.jsonl` file beside the page and not measured again; `--out` names another page.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lbitcls.datasets.digits import Digits
from lbitcls.deploy.export.onnx import export_model
from lbitcls.deploy.targets.base import find_target
from lbitcls.deploy.verification.verify import verify
from lbitcls.quant import build_mtransformer, calibrate, select_kernels
from lbitcls.registry import BACKBONES
from lbitcls.utils.errors import LbitclsError
from lbitcls.utils.logging import get_logger

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Family:
    """A backbone, narrow enough for the digits.

    Attributes:
        backbone: Config of the backbone; its images have three channels.
        channels: Channels of its result.
        size: Height and width of its images in pixels.
        every: One in so many layers has the row's method and bits: with them everywhere, the network learns too slowly.
        digits: Number of training digits: fewer for a network whose steps take seconds.
    """

    backbone: dict[str, Any]
    channels: int
    size: int
    every: int = 1
    digits: int = 1437


FAMILIES = {
    "LeNet-5": Family(dict(type="LeNet5", in_channels=3), 120, 32),
    "ResNet-20": Family(dict(type="ResNetCIFAROptionA", depth=20), 64, 16),
    "ResNet-18": Family(dict(type="ResNet", depth=18, base_channels=16), 128, 32),
    "MobileNetV2": Family(dict(type="MobileNetV2", widen_factor=0.35), 1280, 32, every=24),
    "SqueezeNet 1.1": Family(dict(type="SqueezeNet", version="1_1"), 512, 32, every=24),
    "VGG-11": Family(dict(type="VGG", depth=11, norm_cfg=dict(type="BN")), 512, 32, digits=320),
}
METHODS = ("LSQ", "LSQPlus", "PACT", "DSQ", "UQ", "DoReFa", "TorchQAT")
BITS = (8, 4, 2)
TARGETS = ("cpu", "web", "executorch", "litert", "tensorrt", "qonnx")
PLACES: dict[str, tuple[str, tuple[str, ...] | None]] = {
    **{target: (target, None) for target in TARGETS},
    "opencv": ("cpu", ("opencv",)),
    "tvm": ("cpu", ("tvm",)),
}
"""Where a file runs: its target, and the engines that run it; None: the target's own."""
EPOCHS = {"float": 12, 8: 2, 4: 2, 2: 4}
"""Epochs of training in float, and of each bit width."""


class Network(nn.Module):
    """A family's backbone, average over the positions, linear classifier."""

    def __init__(self, family: Family) -> None:
        super().__init__()
        self.backbone = BACKBONES.build(dict(family.backbone))
        self.fc = nn.Linear(family.channels, 10)

    def forward(self, image: Tensor) -> Tensor:
        """Return logits (N, 10)."""
        return self.fc(self.backbone(image)[-1].mean((2, 3)))


@cache
def digits(split: str, size: int) -> tuple[Tensor, Tensor]:
    """Return the images, float32 (N, 3, size, size), and the labels (N,)."""
    found = [Digits(split=split)[index] for index in range(len(Digits(split=split)))]
    images = torch.stack([torch.as_tensor(one["img"]) for one in found]).float().sub(0.305).div(0.376)
    labels = torch.tensor([int(one["gt_label"]) for one in found])
    return F.interpolate(images, size, mode="bilinear").repeat(1, 3, 1, 1), labels


def train(model: nn.Module, family: Family, epochs: int, rate: float) -> None:
    """Train by Adam with a cosine schedule, batches of 64; on seed 0."""
    images, labels = (each[: family.digits] for each in digits("train", family.size))
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), rate)
    batches = [batch for _ in range(epochs) for batch in torch.randperm(len(images), generator=generator).split(64)]
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(batches))
    model.train()
    for batch in batches:
        loss = F.cross_entropy(model(images[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    model.eval()


@cache
def trained(family: str) -> nn.Module:
    """Return a family's float network, trained."""
    torch.manual_seed(0)
    model = Network(FAMILIES[family])
    train(model, FAMILIES[family], EPOCHS["float"], 2e-3)
    return model


def quantized(family: str, method: str, bits: int) -> nn.Module:
    """Return a family's network with quantized layers, calibrated and trained.

    The first, the last and others (`Family.every`) have LSQ, 8-bit weights and 7-bit inputs: TensorRT's end at 127.
    """
    torch.manual_seed(0)
    model, shape = copy.deepcopy(trained(family)), FAMILIES[family]
    _, *inner, _ = (n for n, module in model.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear)))
    others = dict(num_bit_w=8, num_bit_a=7)
    special = {name: dict(type=f"{method}Conv", num_bit_w=bits, num_bit_a=bits) for name in inner[:: shape.every]}
    policy = dict(Conv2d=dict(type="LSQConv", **others), Linear=dict(type="LSQLinear", **others))
    chosen = dict(layers_name=list(special), convert_type=list(special.values()))
    model = build_mtransformer(dict(type="ModelTransformer", quan_policy=policy, special_layers=chosen))(model)
    calibrate(model, [digits("train", shape.size)[0][:128]])
    train(model, shape, EPOCHS[bits], 1e-3)
    return model


def accuracy(model: nn.Module, size: int) -> float:
    """Return the top-1 on the test digits in percent."""
    images, labels = digits("test", size)
    with torch.no_grad():
        return 100 * float((model(images).argmax(1) == labels).float().mean())


def measure(model: nn.Module, size: int, place: str, images: int = 360) -> dict[str, Any]:
    """Export a network and run the file, on as many of the 360 test digits as `images` says.

    Returns:
        `certificates`, one for each engine, and `reasons` against the file; or `refused`, why it is not exported.
    """
    target, engines = PLACES[place]
    made_for = find_target(target)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"model{made_for.suffix}")
        try:
            export_model(
                model,
                path,
                input_shape=(3, size, size),
                target=target,
                classes=Digits.CLASSES,
                batches=digits("train", size)[0][:128].split(64),
            )
        except LbitclsError as error:
            if path.exists():
                raise  # too late for a refusal
            return {"refused": str(error)}
        found = verify(model, path, digits("test", size)[0][:images].split(120), engines=engines, threads=1)
    return {"certificates": [one.to_json() for one in found.certificates], "reasons": list(found.reasons)}


_HEAD = """# Every engine with every network

Each backbone family, method and bit width, exported for each target and run by the target's own engines: a trained
network beside what its files compute. `make engines` measures the rows that are missing and writes this page.

The networks are small, so that {total} of them can be trained here: LeNet-5; ResNet-20 with option-A shortcuts;
ResNet-18 and MobileNetV2 with 0.25 and 0.35 of the channels; SqueezeNet 1.1; VGG-11. They read the package's 1,437
training digits (VGG-11: 320) as images of 16 or 32 pixels: {float} epochs in float, then with quantizers {epochs}.
That is too short to rank methods by the column `top-1` (of the trained network, in percent). Where it is below 50, the
classes hardly lie apart, and agreement says little. The first and the last layer have LSQ, 8-bit weights and 7-bit
inputs; in MobileNetV2 and SqueezeNet, which learn slowly, all but three layers and one.

A cell is the percentage of the 360 test digits that have the same best class in the file as in the trained network (of
several engines, the lowest), and how many convolutions and linear layers run in integers, where the engine says so
(`cpu`: OpenVINO; ONNX Runtime convolves in float). `✗`: the verification rejects the file. `refused`: nothing is
written; the reasons are below the table. One percent is 3.6 images.

Measured: {measured} of {total} networks; {versions}.

"""


def line(row: dict[str, Any], targets: Sequence[str]) -> str:
    """Return a row of the table."""
    cells = [row["family"], row["method"], f"W{row['bits']}A{row['bits']}", f"{row['top1']:.1f}"]
    return f"| {' | '.join([*cells, *(cell(row['targets'].get(target)) for target in targets)])} |"


def cell(found: dict[str, Any] | None) -> str:
    """Return a target's cell: the lowest agreement of its engines, and the layers in integers."""
    if found is None:
        return "–"
    if "refused" in found:
        return "refused"
    worst = min(found["certificates"], key=lambda one: one["agreement"])
    counts = next((one for one in found["certificates"] if one["integer"] is not None), None)
    integers = "" if counts is None else f", {counts['integer']}/{counts['layers']}"
    return f"{worst['agreement']:.1f}{integers}{' ✗' if found['reasons'] else ''}"


def page(rows: Sequence[dict[str, Any]]) -> str:
    """Return the page: how it was measured, the table, and the reasons for refusals and rejections."""
    total = len(FAMILIES) * len(METHODS) * len(BITS)
    epochs = ", ".join(f"{EPOCHS[bits]} for {bits} bits" for bits in BITS)
    facts = dict(float=EPOCHS["float"], epochs=epochs, measured=len(rows), versions=versions(rows))
    head = _HEAD.format(total=total, **facts)
    names = ["network", "method", "bits", "top-1", *TARGETS]
    table = [f"| {' | '.join(names)} |", f"|{'---|' * len(names)}", *(line(row, TARGETS) for row in rows)]
    listed = [f"- `{target}`, {', '.join(of)}: {reason}" for (target, reason), of in reasons(rows).items()]
    return head + "\n".join([*table, "", "## Refusals and rejections", "", *(listed or ["None."])]) + "\n"


def versions(rows: Sequence[dict[str, Any]]) -> str:
    """Return the engines and their versions, each once."""
    results = [found for row in rows for found in row["targets"].values()]
    seen = {f"{one['engine']} {one['version']}" for found in results for one in found.get("certificates", ())}
    return ", ".join(sorted(seen))


def reasons(rows: Sequence[dict[str, Any]]) -> dict[tuple[str, str], list[str]]:
    """Return the networks by target and by the reason why it refuses them, or why a file is rejected."""
    found: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        for target, result in row["targets"].items():
            given = refusals(result["refused"]) if "refused" in result else result["reasons"]
            for reason in given:
                found.setdefault((target, reason), []).append(f"{row['family']} {row['method']} {row['bits']}")
    return found


def refusals(message: str) -> list[str]:
    """Return the problems in a message of `Target.check_layers` without the names of layers; else the message."""
    _, *problems = message.splitlines()
    return [problem.partition(": ")[2] for problem in problems] or [message]


def measure_row(row: dict[str, Any], targets: Sequence[str]) -> None:
    """Train a row's network, and add its accuracy and its results for `targets`."""
    size = FAMILIES[row["family"]].size
    model = quantized(row["family"], row["method"], row["bits"])
    row["top1"] = accuracy(model, size)
    row["targets"] |= {target: measure(model, size, target) for target in targets}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", choices=list(FAMILIES), default=list(FAMILIES))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--bits", nargs="+", type=int, choices=BITS, default=list(BITS))
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--out", type=Path, default=ROOT / "docs/results/engines.md")
    args = parser.parse_args()
    get_logger().setLevel("ERROR")
    select_kernels("plain")  # compiling takes longer than these trainings
    store = args.out.with_suffix(".jsonl")
    rows = [json.loads(text) for text in store.read_text().splitlines()] if store.is_file() else []
    known = {(row["family"], row["method"], row["bits"]): row for row in rows}
    for key in product(args.families, args.methods, args.bits):
        row = known.get(key) or dict(zip(("family", "method", "bits"), key), targets={})
        missing = [target for target in args.targets if target not in row["targets"]]
        if missing:
            measure_row(row, missing)
            known[key] = row
            print(line(row, args.targets), flush=True)
            ordered = [known[one] for one in product(FAMILIES, METHODS, BITS) if one in known]
            store.write_text("".join(json.dumps(one) + "\n" for one in ordered))
            args.out.write_text(page(ordered))


if __name__ == "__main__":
    main()
