"""ResNet-20 on CIFAR-10 by one protocol, float and in 4, 3 and 2 bits: docs/results/cifar10_resnet20.md.

    python benchmarks/protocol_cifar10.py --data-root FOLDER [--rows W2A2-0 …] [--work-root FOLDER] [--out FILE.md]

`FOLDER` contains `cifar10_jpg.tar.gz` (or the folder) and `weights/resnet20-12fca82f.th`. Each row is one training of
a config of `configs/cifar10/`, and may be trained by hand by the command in its line of the page. Everything is chosen
on 5,000 held-out training images; the test set is read once per final row, after its last epoch. `--work-root` holds
the runs: an interrupted row resumes, a completed one (in the `.jsonl` file beside the page) is not trained again.
"""

from __future__ import annotations

import statistics
from pathlib import Path

from result_rows import Results, Row, lbitcls, paired, rows_table, run_script, wrapped

WEIGHTS = "weights/resnet20-12fca82f.th"
BITS = ("W4A4", "W3A3", "W2A2")
GOALS = {"W4A4": 0.5, "W3A3": 0.5, "W2A2": 1.75}
"""Largest gap to float that is aimed at, in points of top-1."""
SEEDS = (0, 1, 2)
INGREDIENTS = {
    "plain": "none: LSQ as in its paper",
    "first_values": "first steps with the least squared error",
    "distilled": "the float model's predictions instead of labels",
    "progressive": "an epoch each at 4 and 3 bits, ranges kept",
    "progressive_new": "the same, ranges by the least squared error at each change",
    "small_decay": "weight decay 3e-5 instead of 1e-4",
    "slow_scales": "a tenth of the learning rate for scales",
    "weight_norm": "normalized weights",
    "freezing": "oscillating weights are frozen",
    "dampening": "oscillations are dampened",
    "averaged": "moving average of the weights, BatchNorm re-estimated",
    "one_cycle": "one-cycle learning rate, up to 0.04",
    "adam": "Adam, learning rate 0.001, without weight decay",
    "all": "the recipe of `W2A2-0`: LSQ's default first steps and their factor, distilled",
    "no_distillation": "the same with labels",
}
"""Rows of the ablation, each a config of `configs/cifar10/ablation`, and what each has."""

BY_LAYER = {
    "uniform_3": "3 bits in every layer",
    "by_layer_3": "2 to 5 bits, found by `lbitcls search --budget size=3bit`",
}
"""Rows of equal size, each a config of `configs/cifar10/bits`, and what each has."""

METHODS = ("LSQ", "LSQPlus", "DSQ", "PACT", "DoReFa", "APoT", "UQ", "EWGS", "TorchQAT", "N2UQ")
PUBLISHED = {"DoReFa": 88.2, "PACT": 89.7, "APoT": 91.0}
"""Top-1 of ResNet-20 with W2A2 on the original images, trained for hundreds of epochs: APoT's paper, table 2."""


def method_row(method: str) -> Row:
    """Return the row of a method at 2 bits: the config of LSQ with other layers."""
    policy, special = "quant_transformer.quan_policy", "quant_transformer.special_layers.convert_type"
    options = {f"{policy}.Conv2d.type": f"{method}Conv"}
    options |= {f"{special}.0.type": f"{method}Conv", f"{special}.1.type": f"{method}Linear"}
    return Row("cifar10/methods_w2a2.py", options)


ROWS: dict[str, Row] = {
    "resnet20": Row("cifar10/resnet20.py", {"load_from": "resnet20.pth"}),
    **{f"float-{seed}": Row("cifar10/resnet20_control.py", {"seed": seed}) for seed in SEEDS},
    **{f"{bits}-{seed}": Row(f"cifar10/resnet20_{bits.lower()}.py", {"seed": seed}) for seed in SEEDS for bits in BITS},
    **{method: method_row(method) for method in METHODS},
    **{name: Row(f"cifar10/ablation/{name}.py", final=False) for name in INGREDIENTS},
    **{f"{name}-{seed}": Row(f"cifar10/bits/{name}.py", {"seed": seed}) for seed in SEEDS for name in BY_LAYER},
}


def page(results: Results) -> str:
    """Return the document for the completed rows."""
    tables = [_bits_table(results), _methods(results), _ingredients(results), _by_layer(results)]
    parts = [_head(), *tables, rows_table(ROWS, results)]
    return "\n".join(line for part in parts if part for line in [*part, ""]).rstrip() + "\n"


def _head() -> list[str]:
    return ["# ResNet-20 on CIFAR-10 at low bit widths", "", *wrapped(_CONDITIONS)]


_CONDITIONS = """
`python benchmarks/protocol_cifar10.py --data-root FOLDER` writes this page; `--rows ROW` trains one row. The
images are CIFAR-10 as lossy JPEG files: compare with the float rows here, not with a paper's. Everything is
chosen on 5,000 training images that are held out; 45,000 train, and the 10,000 test images are read once for a
row, after its last epoch. (The published network has trained on the held-out images too, which shows in their
accuracy; they still rank recipes of one length.) `resnet20` is the published network, fine-tuned on these
images. Every quantized row begins with it; so does the control `float-SEED`, which trains for 54 further
epochs, more than any quantized row, so that none gains by training longer. The first and last layers have 8
bits. Each row's log is in the folder of this page's name. (Every method after a few epochs:
[cifar10_short.md](cifar10_short.md).)
"""


def _bits_table(results: Results) -> list[str]:
    lines = [
        "| bits | seeds | test top-1 | gap to the control | gap to `resnet20` | standard error | goal |",
        "|---|---|---|---|---|---|---|",
    ]
    for bits in ("float", *BITS):
        seeds = [seed for seed in SEEDS if f"{bits}-{seed}" in results and f"float-{seed}" in results]
        if seeds and "resnet20" in results:
            lines.append(_bits_line(bits, seeds, results))
    return [*lines, "", *wrapped(_GAPS)] if len(lines) > 2 else []


_GAPS = """
The standard error is that of the paired difference to the control on the test images; ± is the deviation between
seeds. The test set was read for an earlier recipe too: each bit width from the one above it, learning rates of 0.02 to
0.04, and first steps of least squared error whose gradients had the paper's factor (W4A4 88.12, W3A3 87.65, W2A2
85.24). Its training accuracy at 2 bits stood still, and some steps had crossed zero (methods.md, LSQ).
"""


def _bits_line(bits: str, seeds: list[int], results: Results) -> str:
    rows = [results[f"{bits}-{seed}"] for seed in seeds]
    top1 = [row["test"] for row in rows]
    spread = f" ± {statistics.stdev(top1):.2f}" if len(top1) > 1 else ""
    gap, error = paired(rows, [results[f"float-{seed}"] for seed in seeds])
    begun, _ = paired(rows, [results["resnet20"]] * len(rows))
    cells = ["–", f"{begun:+.2f}", "–", "–"]
    if bits != "float":
        cells = [f"{gap:+.2f}", f"{begun:+.2f}", f"{error:.2f}", f"-{GOALS[bits]:.2f}"]
    return f"| {bits} | {', '.join(map(str, seeds))} | {statistics.mean(top1):.2f}{spread} | {' | '.join(cells)} |"


def _methods(results: Results) -> list[str]:
    """Return the section on the methods; no lines before the first row is complete."""
    done = {method: results[method] for method in METHODS if method in results}
    lines = ["## Methods at 2 bits", "", *wrapped(_ALL_METHODS), ""]
    lines += ["| method | held-out | test top-1 | published |", "|---|---|---|---|"]
    for method, found in sorted(done.items(), key=lambda item: -item[1]["test"]):
        published = f"{PUBLISHED[method]:.1f}" if method in PUBLISHED else ""
        lines.append(f"| {method} | {found['held-out']:.2f} | {found['test']:.2f} | {published} |")
    return lines if done else []


_ALL_METHODS = """
One recipe for all: W2A2 in ten epochs from `resnet20`, labels only, seed 0, each method with its default options and
first values; weights have one scale per channel. The standard error of a test value is about 0.33, that of a
difference about 0.3. Published: top-1 of ResNet-20 on the original images after hundreds of epochs, first and last
layers in float or 8 bits, from table 2 of APoT's paper (arXiv:1909.13144).
"""


def _ingredients(results: Results) -> list[str]:
    """Return the section on what each ingredient gives; no lines before its first row is complete."""
    done = {name: results[name]["held-out"] for name in INGREDIENTS if name in results}
    if "plain" not in done:
        return []
    lines = ["## Ingredients at 2 bits", "", *wrapped(_ABLATION), ""]
    lines += ["| row | ingredient | held-out top-1 | difference |", "|---|---|---|---|"]
    for name, top1 in done.items():
        lines.append(f"| `{name}` | {INGREDIENTS[name]} | {top1:.2f} | {top1 - done['plain']:+.2f} |")
    return lines


_ABLATION = """
W2A2 in five epochs from `resnet20`, seed 0, on the 5,000 held-out images (standard error of a value about 0.5):
configs/cifar10/ablation. Each alone with LSQ as in its paper, and last those that the recipe combines, with one left
out: `no_distillation` here, `distilled` for LSQ's default.
"""


def _by_layer(results: Results) -> list[str]:
    """Return the section on bits by layer; no lines before all its rows are complete."""
    rows = {name: [results.get(f"{name}-{seed}") for seed in SEEDS] for name in BY_LAYER}
    found = {name: [row["test"] for row in of_name if row is not None] for name, of_name in rows.items()}
    if any(len(top1) < len(SEEDS) for top1 in found.values()):
        return []
    lines = ["## Bits by layer", "", *wrapped(_EQUAL_SIZE), "", "| row | bits | test top-1 |", "|---|---|---|"]
    for name, top1 in found.items():
        lines.append(f"| `{name}` | {BY_LAYER[name]} | {statistics.mean(top1):.2f} ± {statistics.stdev(top1):.2f} |")
    return lines


_EQUAL_SIZE = """
Two networks of the same size, each trained for two epochs by the recipe of `W3A3-0`: mean of three seeds, ± their
deviation. The bits of the second were found without training, on 128 training images.
"""


def convert(work: Path, data_root: Path) -> None:
    """Make a checkpoint of the published float network."""
    if not (work / "resnet20.pth").exists():
        lbitcls("convert", str(data_root / WEIGHTS), "resnet20.pth", work=work)


if __name__ == "__main__":
    run_script(__doc__, ROWS, page, "cifar10_resnet20", convert)
