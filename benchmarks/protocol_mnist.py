"""LeNet-5 on MNIST with every method at 4, 3 and 2 bits, three seeds: docs/results/mnist_lenet5.md.

    python benchmarks/protocol_mnist.py --data-root FOLDER [--rows LSQ-2-0 …] [--work-root FOLDER] [--out FILE.md]

`FOLDER` contains `MNIST`. Nothing is chosen on the test set, which is read once per row, after its last epoch.
Interrupted rows resume; completed ones (in the `.jsonl` file beside the page) are not trained again.
"""

from __future__ import annotations

import statistics

from result_rows import Results, Row, paired, rows_table, run_script, wrapped

METHODS = ("LSQ", "LSQPlus", "DSQ", "PACT", "DoReFa", "APoT", "UQ", "EWGS", "TorchQAT", "N2UQ")
BITS = (4, 3, 2)
SEEDS = (0, 1, 2)
AIM = 0.15
"""Largest gap to float that is aimed at, in points of top-1."""


def quantized(method: str, bits: int, seed: int) -> Row:
    """Return the row of a method: the config of LSQ at 2 bits with other layers."""
    policy, special = "quant_transformer.quan_policy", "quant_transformer.special_layers.convert_type"
    options = {f"{policy}.Conv2d.type": f"{method}Conv", f"{policy}.Linear.type": f"{method}Linear"}
    options |= {f"{special}.0.type": f"{method}Conv", f"{special}.1.type": f"{method}Linear"}
    options |= {f"{policy}.{kind}.{key}": bits for kind in ("Conv2d", "Linear") for key in ("num_bit_w", "num_bit_a")}
    return Row("mnist/lenet5_lsq_2w2f.py", {**options, "seed": seed})


ROWS: dict[str, Row] = {
    "lenet5": Row("mnist/lenet5.py"),
    **{f"float-{seed}": Row("mnist/lenet5_control.py", {"seed": seed}) for seed in SEEDS},
    **{f"{m}-{b}-{seed}": quantized(m, b, seed) for b in reversed(BITS) for m in METHODS for seed in SEEDS},
}


def page(results: Results) -> str:
    """Return the document for the completed rows."""
    parts = [_head(), _table(results), rows_table(ROWS, results)]
    return "\n".join(line for part in parts if part for line in [*part, ""]).rstrip() + "\n"


def _head() -> list[str]:
    return ["# LeNet-5 on MNIST", "", *wrapped(_CONDITIONS)]


_CONDITIONS = """
`python benchmarks/protocol_mnist.py --data-root FOLDER` writes this page; `--rows ROW` trains one row. 55,000
images train, 5,000 training images are held out, and the 10,000 test images are read once for a row, after its
last epoch. `lenet5` is trained from random weights; every other row begins with its weights: the quantized
rows, and the control `float-SEED`, which trains for as many further epochs. All methods have the same recipe,
one scale per channel of a weight, and 8 bits in the first and last layers. Each row's log is in the folder of
this page's name.
"""


def _table(results: Results) -> list[str]:
    done = [seed for seed in SEEDS if f"float-{seed}" in results]
    if not done:
        return []
    lines = [
        "Test top-1, mean over the seeds ± deviation, and the gap to the control ± its paired standard error; a gap of",
        f"more than {AIM} points is bold.",
        "",
        "| method | W4A4 | gap | W3A3 | gap | W2A2 | gap |",
        "|---|---|---|---|---|---|---|",
        f"| float | {_mean([results[f'float-{seed}']['test'] for seed in done])} | | | | | |",
    ]
    return [*lines, *(f"| {method} | {' | '.join(_cells(method, results))} |" for method in METHODS)]


def _cells(method: str, results: Results) -> list[str]:
    cells = []
    for bits in BITS:
        rows = [(results.get(f"{method}-{bits}-{seed}"), results.get(f"float-{seed}")) for seed in SEEDS]
        whole = [(mine, other) for mine, other in rows if mine is not None and other is not None]
        cells += _pair([mine for mine, _ in whole], [other for _, other in whole]) if whole else ["–", "–"]
    return cells


def _pair(ours: list[dict], theirs: list[dict]) -> list[str]:
    gap, error = paired(ours, theirs)
    shown = f"{gap:+.2f} ± {error:.2f}"
    return [_mean([found["test"] for found in ours]), f"**{shown}**" if gap < -AIM else shown]


def _mean(values: list[float]) -> str:
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{spread}"


if __name__ == "__main__":
    run_script(__doc__, ROWS, page, "mnist_lenet5")
