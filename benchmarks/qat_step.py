"""Training step of quantized models against the float model: time and saved activations, as ratios measured in one run.

    python benchmarks/qat_step.py [--model resnet20] [--methods LSQ] [--bits 4] [--threads 1] [--device cpu] [--json F]
                                  [--own-loop]

`--own-loop` measures a user's own loop that selects no kernels, against the float step only.

Variants are built in one process and take turns, so that a busy machine slows all of them alike; each number is the
median ratio of a variant's step to the adjacent float step (for `compiled` ones, to the compiled float step). `+ pass`
rows are a limit: the float step plus one pass over memory (two arrays read, one written) for each quantized input.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lbitcls.models import build_classifier
from lbitcls.quant import build_mtransformer, calibrate, regularization, select_kernels
from lbitcls.quant.kernels.selection import can_compile
from lbitcls.quant.layers import QuantLayer

MODELS: dict[str, tuple[dict[str, Any], tuple[int, int, int], int]] = {
    "resnet20": (dict(type="ResNetCIFAROptionA", depth=20), (3, 32, 32), 64),
    "resnet18": (dict(type="ResNet", depth=18), (3, 224, 224), 512),
}


class Variant:
    """Model with an optimizer, stepped on one fixed batch with the kernels to measure (None: unselected)."""

    def __init__(self, args: argparse.Namespace, method: str | None, kernels: str | None, compiled: bool) -> None:
        self.kernels, self.compiled = kernels, compiled
        backbone, shape, channels = MODELS[args.model]
        torch.manual_seed(0)
        head = dict(
            type="LinearClsHead",
            num_classes=10,
            in_channels=channels,
            loss=dict(type="CrossEntropyLoss", loss_weight=1.0),
            topk=(1,),
        )
        self.model = build_classifier(
            dict(type="ImageClassifier", backbone=backbone, neck=dict(type="GlobalAveragePooling"), head=head)
        )
        self.images = torch.randn(args.batch, *shape).to(args.device)
        self.labels = torch.randint(0, 10, (args.batch,)).to(args.device)
        if method is not None:
            bits = dict(num_bit_w=args.bits, num_bit_a=args.bits)
            policy = dict(Conv2d=dict(type=f"{method}Conv", **bits), Linear=dict(type=f"{method}Linear", **bits))
            build_mtransformer(dict(type="ModelTransformer", quan_policy=policy))(self.model)
        self.model.to(args.device).train()
        calibrate(self.model, [self.images[:16]])
        if compiled:
            self.model.compile()
        self.optimizer = torch.optim.SGD(self.model.parameters(), 0.01, 0.9)

    def step(self) -> None:
        """Run one training step."""
        self._select()
        self.optimizer.zero_grad()
        self._loss().backward()
        self.optimizer.step()

    def saved_bytes(self) -> int:
        """Return the bytes of all distinct memory blocks that autograd keeps between forward and backward pass."""
        self._select()
        held: list[torch.Tensor] = []
        baseline = {p.untyped_storage().data_ptr() for p in self.model.parameters()}
        with torch.autograd.graph.saved_tensors_hooks(lambda t: held.append(t) or t, lambda t: t):
            self._loss()
        blocks = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in held}
        return sum(size for block, size in blocks.items() if block not in baseline)

    def _select(self) -> None:
        if self.kernels is not None:
            select_kernels(self.kernels, self.images.device)

    def _loss(self) -> torch.Tensor:
        return self.model(self.images, gt_label=self.labels, return_loss=True)["loss"] + regularization(self.model)


def pass_seconds(variant: Variant, args: argparse.Namespace) -> float:
    """Return the time to read two arrays and write one, each as large as each quantized layer's input.

    A backward pass of quantizers that is not fused with other operations (reads the gradient and x, writes a gradient)
    takes at least as long, whatever it computes.
    """
    sizes: list[int] = []
    layers = [m for m in variant.model.modules() if isinstance(m, QuantLayer)]
    hooks = [m.register_forward_pre_hook(lambda m, inputs: sizes.append(inputs[0].numel())) for m in layers]
    variant.step()
    for hook in hooks:
        hook.remove()
    a, b, c = (x.split(sizes) for x in torch.ones(3, sum(sizes), device=args.device))

    def step() -> None:
        for x, y, out in zip(a, b, c, strict=True):
            torch.add(x, y, out=out)

    return statistics.median(seconds(step, args) for _ in range(args.repeats))


def variants(args: argparse.Namespace) -> dict[str, Variant]:
    """Return the float step, and every method with each kind of kernels; with a compiler also compiled ones."""
    if args.own_loop:
        own = {f"{method} own loop": Variant(args, method, None, False) for method in args.methods}
        return {"float": Variant(args, None, None, False), **own}
    compiles = can_compile(torch.device(args.device).type)
    torch._dynamo.config.recompile_limit = 8 + len(args.methods)  # the models share their code
    built = {"float": Variant(args, None, "plain", False)}
    if compiles:
        built["float compiled"] = Variant(args, None, "plain", True)
    for method in args.methods:
        built[f"{method} plain"] = Variant(args, method, "plain", False)
        if compiles:
            built[f"{method} fused"] = Variant(args, method, "fused", False)
            built[f"{method} compiled"] = Variant(args, method, "plain", True)
    return built


def seconds(step: Callable[[], None], args: argparse.Namespace) -> float:
    """Return the time of one step; with one CPU thread processor time, which other programs do not affect."""
    clock = time.process_time if args.device == "cpu" and args.threads == 1 else time.perf_counter
    start = clock()
    step()
    if args.device.startswith("cuda"):
        torch.cuda.synchronize()
    return clock() - start


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a row for each variant: time and memory as ratios to the float step."""
    built = variants(args)
    for variant in built.values():
        variant.step()
        variant.step()
    times: dict[str, list[float]] = {name: [] for name in built}
    for _ in range(args.repeats):
        for name, variant in built.items():
            times[name].append(seconds(variant.step, args))
    float_bytes = built["float"].saved_bytes()
    floor = pass_seconds(built[f"{args.methods[0]} {'own loop' if args.own_loop else 'plain'}"], args)
    rows = []
    for name, variant in built.items():
        base = times["float compiled" if variant.compiled else "float"]
        ratio = statistics.median(a / b for a, b in zip(times[name], base, strict=True))
        # A compiled graph saves through autograd too, but may keep views that the hooks count differently.
        memory = None if variant.compiled else variant.saved_bytes() / float_bytes
        rows.append(
            dict(
                variant=name,
                milliseconds=1000 * statistics.median(times[name]),
                time=ratio,
                saved_activations=memory,
            )
        )
    for base in ("float", "float compiled"):
        if base in times:
            ratio = 1 + floor / statistics.median(times[base])
            rows.append(dict(variant=f"{base} + pass", milliseconds=1000 * floor, time=ratio, saved_activations=None))
    return rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=sorted(MODELS), default="resnet20")
    parser.add_argument("--methods", nargs="+", default=["LSQ"])
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--own-loop", action="store_true", help="measure your own loop, without select_kernels")
    parser.add_argument("--json", type=Path, help="JSON file to write the rows to")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = measure(args)
    print(
        f"{args.model}, W{args.bits}A{args.bits}, batch {args.batch}, {args.threads} thread(s), {platform.processor()}"
    )
    print(f"{'variant':20} {'ms':>8} {'time':>6} {'saved activations':>18}")
    for row in rows:
        memory = "" if row["saved_activations"] is None else f"{row['saved_activations']:.2f}"
        print(f"{row['variant']:20} {row['milliseconds']:8.1f} {row['time']:6.2f} {memory:>18}")
    if args.json:
        args.json.write_text(json.dumps(dict(torch=torch.__version__, arguments=vars(args), rows=rows), default=str))


if __name__ == "__main__":
    main()
