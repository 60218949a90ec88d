"""Every target with every backbone family, method and bit width, each file run by its own engine (docs/engines.md).

    python benchmarks/engines.py [--families ResNet-20 …] [--targets web …] [--methods LSQ …] [--bits 8 4 2]

Each network is trained on the digits that come with the package (32 × 32 pixels, three channels), then with its
quantizers, exported for each target, and compared on 600 images with the trained network. Completed rows are kept in
the `.jsonl` file beside the page and not measured again; `--out` names another page. About a minute per row.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lbitcls.datasets.digits import Digits
from lbitcls.deploy.export.onnx import export_model
from lbitcls.deploy.targets.base import find_target
from lbitcls.deploy.verification.verify import verify
from lbitcls.quant import build_mtransformer, calibrate
from lbitcls.registry import BACKBONES
from lbitcls.utils.errors import LbitclsError
from lbitcls.utils.logging import get_logger

ROOT = Path(__file__).resolve().parents[1]
FAMILIES: dict[str, tuple[dict[str, Any], int]] = {
    "LeNet-5": (dict(type="LeNet5", in_channels=3), 120),
    "ResNet-20": (dict(type="ResNetCIFAROptionA", depth=20), 64),
    "ResNet-18": (dict(type="ResNet", depth=18), 512),
    "MobileNetV2": (dict(type="MobileNetV2"), 1280),
    "SqueezeNet 1.1": (dict(type="SqueezeNet", version="1_1"), 512),
    "VGG-small": (dict(type="VGGSmall"), 512),
}
"""Backbone and its channels."""
METHODS = ("LSQ", "LSQPlus", "PACT", "DSQ", "UQ", "DoReFa", "TorchQAT")
BITS = (8, 4, 2)
TARGETS = ("cpu", "web", "executorch", "litert", "tensorrt", "qonnx")
IMAGES = 600
_SIZE = 32
_EPOCHS = {"float": 12, 8: 1, 4: 3, 2: 5}


class Network(nn.Module):
    """Backbone, average over the positions, linear classifier."""

    def __init__(self, backbone: dict[str, Any], channels: int) -> None:
        super().__init__()
        self.backbone = BACKBONES.build(dict(backbone))
        self.fc = nn.Linear(channels, 10)

    def forward(self, image: Tensor) -> Tensor:
        """Return logits (N, 10)."""
        return self.fc(self.backbone(image)[-1].mean((2, 3)))


@cache
def digits(split: str) -> tuple[Tensor, Tensor]:
    """Return the images, float32 (N, 3, 32, 32), and the labels (N,)."""
    found = [Digits(split=split)[index] for index in range(len(Digits(split=split)))]
    images = torch.stack([torch.as_tensor(one["img"]) for one in found]).float().sub(0.305).div(0.376)
    labels = torch.tensor([int(one["gt_label"]) for one in found])
    return F.interpolate(images, _SIZE, mode="bilinear").repeat(1, 3, 1, 1), labels


def train(model: nn.Module, epochs: int, rate: float) -> None:
    """Train by Adam with a cosine schedule, batches of 64; on seed 0."""
    images, labels = digits("train")
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
    model = Network(*FAMILIES[family])
    train(model, _EPOCHS["float"], 2e-3)
    return model


def quantized(family: str, method: str, bits: int) -> nn.Module:
    """Return a family's network with quantized layers (8 bits in the first and the last), calibrated and trained."""
    torch.manual_seed(0)
    model = copy.deepcopy(trained(family))
    names = [name for name, module in model.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    ends = [entry(method, kind, 8) for kind in ("Conv", "Linear")]
    policy = dict(Conv2d=entry(method, "Conv", bits), Linear=entry(method, "Linear", bits))
    special = dict(layers_name=[names[0], names[-1]], convert_type=ends)
    model = build_mtransformer(dict(type="ModelTransformer", quan_policy=policy, special_layers=special))(model)
    calibrate(model, [digits("train")[0][:128]])
    train(model, _EPOCHS[bits], 5e-4)
    return model


def entry(method: str, kind: str, bits: int) -> dict[str, Any]:
    """Return the policy of a layer kind; weights have a scale for each channel where the method offers that."""
    return dict(type=f"{method}{kind}", num_bit_w=bits, num_bit_a=bits)


def accuracy(model: nn.Module) -> float:
    """Return the top-1 on the test digits in percent."""
    images, labels = digits("test")
    with torch.no_grad():
        return 100 * float((model(images).argmax(1) == labels).float().mean())


def measure(model: nn.Module, target: str) -> dict[str, Any]:
    """Export a network and run the file in the target's engines.

    Returns:
        `certificates`, one for each engine, and `reasons` against the file; or `refused`, why it is not exported.
    """
    made_for = find_target(target)
    images = torch.cat([digits("test")[0], digits("train")[0]])[:IMAGES]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"model{made_for.suffix}")
        try:
            export_model(
                model,
                path,
                input_shape=(3, _SIZE, _SIZE),
                target=target,
                classes=Digits.CLASSES,
                batches=digits("train")[0][:128].split(64),
            )
        except LbitclsError as error:
            return {"refused": str(error)}
        found = verify(model, path, images.split(100), threads=1)
    return {"certificates": [one.to_json() for one in found.certificates], "reasons": list(found.reasons)}


def line(row: dict[str, Any], targets: Sequence[str]) -> str:
    """Return a row of the table: for each target the worst agreement of its engines, and the layers in integers."""
    cells = [row["family"], row["method"], f"W{row['bits']}A{row['bits']}", f"{row['top1']:.1f}"]
    return f"| {' | '.join([*cells, *(cell(row['targets'].get(target)) for target in targets)])} |"


def cell(found: dict[str, Any] | None) -> str:
    """Return a target's cell."""
    if found is None:
        return "–"
    if "refused" in found:
        return "refused"
    worst = min(found["certificates"], key=lambda one: one["agreement"])
    counts = next((one for one in found["certificates"] if one["integer"] is not None), None)
    integers = "" if counts is None else f", {counts['integer']}/{counts['layers']}"
    return f"{worst['agreement']:.2f}{integers}{' ✗' if found['reasons'] else ''}"


def page(rows: Sequence[dict[str, Any]], targets: Sequence[str]) -> str:
    """Return the table, and the reasons for refusals and rejections."""
    head = ["network", "method", "bits", "top-1", *targets]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}", *(line(row, targets) for row in rows)]
    notes = {}
    for row in rows:
        for target, found in row["targets"].items():
            for reason in [found["refused"]] if "refused" in found else found["reasons"]:
                notes.setdefault((target, reason), []).append(f"{row['family']} {row['method']} {row['bits']}")
    listed = [f"- {target}, {', '.join(of)}: {' '.join(reason.split())}" for (target, reason), of in notes.items()]
    return "\n".join([*lines, "", *listed]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", choices=list(FAMILIES), default=list(FAMILIES))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--bits", nargs="+", type=int, choices=BITS, default=list(BITS))
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--out", type=Path, default=ROOT / "docs/results/engines.md")
    args = parser.parse_args()
    get_logger().setLevel("ERROR")
    store = args.out.with_suffix(".jsonl")
    rows = [json.loads(text) for text in store.read_text().splitlines()] if store.is_file() else []
    known = {(row["family"], row["method"], row["bits"]): row for row in rows}
    for family in args.families:
        for method in args.methods:
            for bits in args.bits:
                new = dict(family=family, method=method, bits=bits, targets={})
                row = known.setdefault((family, method, bits), new)
                missing = [target for target in args.targets if target not in row["targets"]]
                if not missing:
                    continue
                model = quantized(family, method, bits)
                row["top1"] = accuracy(model)
                row["targets"] |= {target: measure(model, target) for target in missing}
                print(line(row, args.targets), flush=True)
                store.write_text("".join(json.dumps(one) + "\n" for one in known.values()))
                args.out.write_text(page(list(known.values()), TARGETS))


if __name__ == "__main__":
    main()
