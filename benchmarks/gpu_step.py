"""Training step of LSQ ResNet-18 under bf16 autocast, channels_last: time and peak memory, as ratios to float.

    python benchmarks/gpu_step.py [--device cuda] [--batch 256] [--size 224] [--bits 4] [--json F] [--small]

Four variants take turns in one process, on one fixed batch: float and LSQ, eager (LSQ with fused kernels) and compiled.
Each time is the median ratio to the adjacent step of the float variant of the same kind. The peak memory is what a step
allocates beyond the state that all variants hold; it is measured on a GPU only.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from lbitcls.models import build_classifier
from lbitcls.quant import build_mtransformer, calibrate, regularization, select_kernels
from lbitcls.quant.kernels.selection import can_compile


class Variant:
    """Float or quantized model with an optimizer, stepped on one fixed batch."""

    def __init__(self, args: argparse.Namespace, images: torch.Tensor, quantized: bool, compiled: bool) -> None:
        self.quantized, self.compiled = quantized, compiled
        self.images, self.device = images, images.device
        self.labels = torch.arange(len(images), device=self.device) % 10
        torch.manual_seed(0)
        self.model = build_model(args.small)
        if quantized:
            bits = dict(num_bit_w=args.bits, num_bit_a=args.bits)
            policy = dict(Conv2d=dict(type="LSQConv", **bits), Linear=dict(type="LSQLinear", **bits))
            build_mtransformer(dict(type="ModelTransformer", quan_policy=policy))(self.model)
        self.model.to(self.device, memory_format=torch.channels_last).train()
        calibrate(self.model, [images[:16]])
        if compiled:
            self.model.compile()
        self.optimizer = torch.optim.SGD(self.model.parameters(), 0.01, 0.9)

    def step(self) -> None:
        """Run one training step."""
        select_kernels("fused" if self.quantized and not self.compiled else "plain", self.device)
        self.optimizer.zero_grad()
        with torch.autocast(self.device.type, torch.bfloat16):
            loss = self.model(self.images, gt_label=self.labels, return_loss=True)["loss"]
        (loss + regularization(self.model)).backward()
        self.optimizer.step()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def seconds(self) -> float:
        """Return the time of one step."""
        start = time.perf_counter()
        self.step()
        return time.perf_counter() - start

    def peak_bytes(self) -> int | None:
        """Return what a step allocates at its peak; None on a CPU."""
        if self.device.type != "cuda":
            return None
        self.optimizer.zero_grad()
        before = torch.cuda.memory_allocated(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        self.step()
        peak = torch.cuda.max_memory_allocated(self.device) - before
        self.optimizer.zero_grad()
        return peak


def build_model(small: bool) -> torch.nn.Module:
    """Return ResNet-18, or a small ResNet-8 with as few kinds of layers."""
    backbone = dict(type="ResNetCIFAROptionA", depth=8) if small else dict(type="ResNet", depth=18)
    head = dict(type="LinearClsHead", num_classes=10, in_channels=64 if small else 512, topk=(1,))
    return build_classifier(
        dict(type="ImageClassifier", backbone=backbone, neck=dict(type="GlobalAveragePooling"), head=head)
    )


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a row for each variant."""
    device = torch.device(args.device)
    images = torch.randn(args.batch, 3, args.size, args.size, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    kinds = [("eager", False), ("compiled", True)]
    built = {
        f"{name} {kind}": Variant(args, images, name == "LSQ", compiled)
        for kind, compiled in kinds
        for name in ("float", "LSQ")
    }
    for variant in built.values():
        for _ in range(3):
            variant.step()
    times: dict[str, list[float]] = {name: [] for name in built}
    for _ in range(args.repeats):
        for name, variant in built.items():
            times[name].append(variant.seconds())
    peaks = {name: variant.peak_bytes() for name, variant in built.items()}
    return [row(name, times, peaks) for name in built]


def row(name: str, times: dict[str, list[float]], peaks: dict[str, int | None]) -> dict[str, Any]:
    """Return a variant's figures."""
    base = f"float {name.split()[1]}"
    peak, base_peak = peaks[name], peaks[base]
    return dict(
        variant=name,
        milliseconds=1000 * statistics.median(times[name]),
        time=statistics.median(a / b for a, b in zip(times[name], times[base], strict=True)),
        mebibytes=None if peak is None else peak / 2**20,
        memory=peak / base_peak if peak and base_peak else None,
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--size", type=int, default=224, help="height and width of the images")
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--small", action="store_true", help="ResNet-8 instead of ResNet-18")
    parser.add_argument("--json", type=Path, help="JSON file to write the rows to")
    args = parser.parse_args()
    if not can_compile(torch.device(args.device).type):
        parser.error("needs Triton on a GPU, or a C++ compiler on a CPU.")
    rows = measure(args)
    print(f"{'variant':15} {'ms':>8} {'time':>6} {'MiB':>8} {'memory':>7}")
    for line in rows:
        mebibytes = "-" if line["mebibytes"] is None else f"{line['mebibytes']:.0f}"
        memory = "-" if line["memory"] is None else f"{line['memory']:.2f}"
        print(f"{line['variant']:15} {line['milliseconds']:8.1f} {line['time']:6.2f} {mebibytes:>8} {memory:>7}")
    if args.json:
        args.json.write_text(json.dumps(dict(torch=torch.__version__, arguments=vars(args), rows=rows), default=str))


if __name__ == "__main__":
    main()
