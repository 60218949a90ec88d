"""Time to plan a model's quantization, and to swap its layers.

    python benchmarks/transform.py [--model resnet50] [--rounds 7] [--threads 1] [--json F]

The model is torchvision's; every Conv2d and Linear gets LSQ W4A4 with per-channel weights. The transformer plans again
when it is called, so `called` includes planning and logging the plan's table.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torchvision

from lbitcls.quant import build_mtransformer
from lbitcls.quant.layers import QuantLayer

OPTIONS = dict(num_bit_w=4, num_bit_a=4, per_channel=True)
POLICY = dict(Conv2d=dict(type="LSQConv", **OPTIONS), Linear=dict(type="LSQLinear", **OPTIONS))


def measure(name: str) -> dict[str, float]:
    """Return seconds to build the transformer and plan, and to call it, on a new model; and the quantized layers."""
    model = torchvision.models.get_model(name, weights=None)
    start = time.perf_counter()
    transformer = build_mtransformer(dict(type="ModelTransformer", quan_policy=POLICY))
    transformer.plan(model)
    planned = time.perf_counter()
    transformer(model, logger=logging.getLogger("benchmark"))
    called = time.perf_counter()
    layers = sum(isinstance(module, QuantLayer) for module in model.modules())
    return {"planned": planned - start, "called": called - planned, "layers": layers}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet50", help="name in torchvision.models")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="JSON file to write the result to")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    first, *others = [measure(args.model) for _ in range(args.rounds)]
    median = {key: statistics.median(one[key] for one in [first, *others]) for key in first}
    result = {"model": args.model, **median, "first": first["planned"] + first["called"]}
    print(
        f"{args.model}, {result['layers']:.0f} layers: planned in {result['planned']:.3f} s, called (planned and "
        f"swapped) in {result['called']:.3f} s; the first time, including the import of the methods, both in "
        f"{result['first']:.3f} s"
    )
    if args.json:
        args.json.write_text(json.dumps(result))


if __name__ == "__main__":
    main()
