"""MobileNetV2 on ants and bees at W4A4, with and without each ingredient: docs/results/transfer_ingredients.md.

    python benchmarks/transfer_ingredients.py --data-root FOLDER [--rows distilled-0 …] [--work-root FOLDER]

`FOLDER` contains `hymenoptera_256.tar.gz` (or the folder) and `weights`. Interrupted rows resume; completed ones (in
the `.jsonl` file beside the page) are not trained again.
"""

from __future__ import annotations

import statistics

from result_rows import Results, Row, rows_table, run_script, wrapped

SEEDS = (0, 1, 2)
INGREDIENTS = {
    "plain": "none",
    "distilled": "the float model's predictions instead of labels",
    "progressive": "three epochs each at 8 and 6 bits",
    "small_decay": "weight decay 0.001 instead of 0.01",
    "slow_scales": "a tenth of the learning rate for scales",
    "weight_norm": "normalized weights",
    "freezing": "oscillating weights are frozen",
    "dampening": "oscillations are dampened",
    "averaged": "moving average of the weights, BatchNorm re-estimated",
    "one_cycle": "one-cycle learning rate, up to 0.0008",
}


def quantized(ingredient: str, seed: int) -> Row:
    """Return the row of an ingredient, which begins with the fine-tuned float model of its seed."""
    start = f"work_dirs/float-{seed}/latest.pth"
    options: dict[str, object] = {"seed": seed, "load_from": start}
    if ingredient == "distilled":
        options["distill.teacher.checkpoint"] = start
    config = "mobilenet_v2_lsq_4w4f" if ingredient == "plain" else f"ingredients/{ingredient}"
    return Row(f"transfer/{config}.py", options, final=False)


ROWS: dict[str, Row] = {
    **{f"float-{seed}": Row("transfer/mobilenet_v2_finetune.py", {"seed": seed}, final=False) for seed in SEEDS},
    **{f"{name}-{seed}": quantized(name, seed) for seed in SEEDS for name in INGREDIENTS},
}


def page(results: Results) -> str:
    """Return the document for the completed rows."""
    parts = [["# Ingredients on ants and bees", "", *wrapped(_CONDITIONS)], _table(results), rows_table(ROWS, results)]
    return "\n".join(line for part in parts for line in [*part, ""]).rstrip() + "\n"


_CONDITIONS = """
`python benchmarks/transfer_ingredients.py --data-root FOLDER` writes this page; `--rows ROW` trains one row.
MobileNetV2 at W4A4 from the fine-tuned float model of the same seed: `configs/transfer/mobilenet_v2_lsq_4w4f.py`, and
the configs of `configs/transfer/ingredients`, each with one ingredient more. Top-1 in percent after the last epoch on
the 153 images of `val`, where one image is 0.65 and the standard error of a value 2: differences below that mean
nothing. No setting was chosen on these images.
"""


def _table(results: Results) -> list[str]:
    lines = ["| row | ingredient | seeds | top-1 | mean | difference |", "|---|---|---|---|---|---|"]
    for name, text in {"float": "the float model", **INGREDIENTS}.items():
        seeds = [seed for seed in SEEDS if f"{name}-{seed}" in results]
        if seeds:
            lines.append(f"| `{name}` | {text} | {_cells(name, seeds, results)} |")
    return lines


def _cells(name: str, seeds: list[int], results: Results) -> str:
    """Return the seeds' values, their mean, and the mean difference to `plain` over the seeds that both have."""
    top1 = {seed: results[f"{name}-{seed}"]["held-out"] for seed in seeds}
    both = [top1[seed] - results[f"plain-{seed}"]["held-out"] for seed in seeds if f"plain-{seed}" in results]
    difference = f"{statistics.mean(both):+.1f}" if both and name != "plain" else "–"
    values = ", ".join(f"{value:.1f}" for value in top1.values())
    return f"{', '.join(map(str, seeds))} | {values} | {statistics.mean(top1.values()):.1f} | {difference}"


if __name__ == "__main__":
    run_script(__doc__, ROWS, page, "transfer_ingredients")
