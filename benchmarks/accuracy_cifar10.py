"""Accuracy of every method after fine-tuning ResNet-20 on CIFAR-10, as a table in docs/results/cifar10_short.md.

    python benchmarks/accuracy_cifar10.py --data-root FOLDER [--rows LSQ-4 DSQ-2 …] [--out docs/results/…]
                                          [--work-dir FOLDER]

`LSQ-4-GRADIENTS-SEED` rows compare gradients of integer kernels (float32, bf16, int8) over several seeds.

`FOLDER` contains `cifar10_jpg.tar.gz` (or the folder) and `weights/resnet20-12fca82f.th`. The float row trains first;
the others are initialized from it. Completed rows (with a line in the `.jsonl` file next to the table) are not trained
again, and interrupted ones resume, so the command may be stopped and started at any time, and rows may train side by
side in several processes; the table contains the completed rows.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "configs/cifar10/resnet20.py"
GRADIENTS, SEEDS = ("float32", "bf16", "int8"), (0, 1, 2)
GRADIENT_ROWS = {f"LSQ-4-{gradients}-{seed}": (gradients, seed) for seed in SEEDS for gradients in GRADIENTS}
WHOLE = {
    "train": {"exclude_indices": None},
    "val": {"data_prefix": "cifar10_jpg/test", "indices": None},
}
"""All training images train, and the test set validates: nothing is chosen by these rows."""
AIM = 0.3
"""Largest loss of top-1, in points, that gradients in fewer bits may cost."""
EPOCHS = {
    **{f"{m}-{b}": 4 for m in ("LSQ", "DSQ", "DoReFa", "TorchQAT") for b in (4, 3, 2)},
    "LSQ-2": 6,
    **{f"{m}-{b}": 2 for m in ("LSQPlus", "PACT", "APoT", "UQ", "EWGS") for b in (4, 2)},
    **{f"LSQ-{b}-short": 2 for b in (4, 2)},
    **dict.fromkeys(GRADIENT_ROWS, 2),
}
"""Rows, `method-bits`, to their epochs; `short`: LSQ beside the methods that have two epochs."""


def config_text(row: str, work: Path, threads: int) -> str:
    """Return the config of a row below the folder `work`: the float one, or its quantized form."""
    lines = [f"_base_ = {str(CONFIG)!r}", f"work_dir = {str(work / row)!r}", f"compile = {row not in GRADIENT_ROWS}"]
    lines.append(f"num_threads = {threads}")
    lines += [f"data = {WHOLE!r}", "optimizer = dict(lr=0.02)", "channels_last = False"]
    if row == "float":
        lines += ["amp = None", "total_epochs = 5", f"load_from = {str(work / 'published.pth')!r}", ""]
        return "\n".join(lines)
    return "\n".join(
        [
            *lines,
            f"load_from = {str(work / 'float/latest.pth')!r}",
            f"quant_transformer = {transformer(row)!r}",
            "calibration = dict(epoch=0, num_batches=16)",
            *_arithmetic(row),
            f"total_epochs = {EPOCHS[row]}",
            f"evaluation = dict(interval={EPOCHS[row]})",
            "",
        ]
    )


def transformer(row: str) -> dict[str, Any]:
    """Return the section `quant_transformer` of a quantized row."""
    method, bits = row.split("-")[:2]
    entry = {"num_bit_w": int(bits), "num_bit_a": int(bits), "per_channel": True}
    first = {**entry, "num_bit_w": 8, "num_bit_a": 8}
    policy = {"Conv2d": {"type": f"{method}Conv", **entry}, "Linear": {"type": f"{method}Linear", **entry}}
    special = {
        "layers_name": ["backbone.conv1", "head.fc"],
        "convert_type": [{"type": f"{method}Conv", **first}, {"type": f"{method}Linear", **first}],
    }
    return {"type": "mTransformerV2", "quan_policy": policy, "special_layers": special}


def _arithmetic(row: str) -> list[str]:
    """Return the lines of a quantized row's config that choose the arithmetic of its step."""
    if row not in GRADIENT_ROWS:
        return ["amp = dict(dtype='bfloat16')"]
    gradients, seed = GRADIENT_ROWS[row]
    return ["amp = None", f"kernels = dict(kind='integer', gradients={gradients!r})", f"seed = {seed}"]


def train(row: str, work: Path, data_root: Path, threads: int) -> None:
    """Train or resume a row; its total time is kept in `seconds` next to its summary."""
    folder = work / row
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / f"{row}.row.py"
    config.write_text(config_text(row, work, threads))
    began = time.monotonic()
    command = [sys.executable, str(ROOT / "tools/train.py"), str(config), "--resume", "--data-root", str(data_root)]
    done = subprocess.run(command, check=False)
    clock = folder / "seconds"
    spent = float(clock.read_text()) if clock.exists() else 0.0
    clock.write_text(str(spent + time.monotonic() - began))
    if done.returncode:
        raise SystemExit(f"row {row} ended with exit code {done.returncode}; run the command again to resume it.")


def measured(row: str, work: Path) -> dict[str, Any] | None:
    """Return a run's results: the accuracy after its last epoch; None until it is complete."""
    if not (work / row / "summary.json").exists():
        return None
    records = [json.loads(line) for line in (work / row / "log.jsonl").read_text().splitlines()]
    last = [record for record in records if record["mode"] == "val"][-1]
    seconds = float((work / row / "seconds").read_text())
    return {"row": row, "top-1": last["top-1"], "epochs": last["epoch"], "minutes": round(seconds / 60, 1)}


def recorded(file: Path) -> dict[str, dict[str, Any]]:
    """Return the rows of `file`, one JSON line each, by name."""
    lines = file.read_text().splitlines() if file.exists() else []
    return {entry["row"]: entry for entry in map(json.loads, lines)}


def record(file: Path, row: str, work: Path) -> None:
    """Append a completed row: one short line, so that rows training side by side may share the file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a") as lines:
        lines.write(json.dumps(measured(row, work)) + "\n")


def table(results: dict[str, dict[str, Any]]) -> str:
    """Return the document: one line per completed row, and a summary of the rows that compare gradients."""
    import torch

    base = results["float"]["top-1"]
    lines = [
        "# Every method after a few epochs",
        "",
        "ResNet-20 on CIFAR-10. `python benchmarks/accuracy_cifar10.py --data-root FOLDER` writes this page; `--rows",
        "ROW` trains one row. The images are CIFAR-10 as lossy JPEG files: compare with the float row here, not with a",
        f"paper. Seed 0; torch {torch.__version__}, {os.cpu_count()} cores ({platform.machine()}), shared with other",
        "work, so minutes do not measure a method's speed. Top-1 in percent, after the last epoch. The first and last",
        "layers have 8 bits, weights one scale per channel. The quantized rows are initialized from the float row and",
        "train under bfloat16 autocast (quantizers in float32), which is faster here; every row is validated in",
        "float32. Rows of two epochs show that a method learns; they do not rank the papers. Longer trainings, with a",
        "test set that is read once: [cifar10_resnet20.md](cifar10_resnet20.md).",
        "",
        "| row | method | bits | epochs | minutes | top-1 | gap to float |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in ("float", *EPOCHS):
        if row in results and row not in GRADIENT_ROWS:
            lines.append(f"| {' | '.join(_cells(results[row], base))} |")
    return "\n".join([*lines, *gradient_table(results), ""])


def gradient_table(results: dict[str, dict[str, Any]]) -> list[str]:
    """Return the section on gradients in fewer bits; no lines before its first row is complete."""
    found = {name: _over_seeds(results, name) for name in GRADIENTS}
    if not any(found.values()):
        return []
    lines = [
        "",
        "## Gradients in fewer bits",
        "",
        "The recipe of `LSQ-4-short`, without autocast, with `kernels = dict(kind='integer', gradients=…)`: forward",
        "products run on 8-bit integers, products of the backward pass in float32, in bfloat16, or on 8-bit",
        "integers with stochastic rounding. Rows `LSQ-4-GRADIENTS-SEED`; the seed changes the order of the images,",
        "their augmentation and the rounding. Mean and sample standard deviation of top-1 over the seeds; a loss of",
        f"more than {AIM} points is bold.",
        "",
        "| gradients | seeds | top-1 of each | mean | standard deviation | difference to float32 |",
        "|---|---|---|---|---|---|",
    ]
    lines.extend(_gradient_line(name, found[name], found["float32"]) for name in GRADIENTS if found[name])
    return lines


def _over_seeds(results: dict[str, dict[str, Any]], gradients: str) -> dict[int, float]:
    """Return the top-1 accuracy of the completed rows with such gradients, by seed."""
    rows = {seed: f"LSQ-4-{gradients}-{seed}" for seed in SEEDS}
    return {seed: results[row]["top-1"] for seed, row in rows.items() if row in results}


def _gradient_line(name: str, found: dict[int, float], base: dict[int, float]) -> str:
    """Return a line of the table; the difference is that of the seeds which both have completed."""
    common = sorted(found.keys() & base.keys())
    difference = statistics.mean(found[seed] - base[seed] for seed in common) if common else None
    spread = f"{statistics.stdev(found.values()):.2f}" if len(found) > 1 else "–"
    shown = "–" if difference is None else f"{difference:+.2f}"
    cells = [
        f"`{name}`",
        ", ".join(map(str, found)),
        ", ".join(f"{top1:.2f}" for top1 in found.values()),
        f"{statistics.mean(found.values()):.2f}",
        spread,
        f"**{shown}**" if difference is not None and round(difference, 2) < -AIM else shown,
    ]
    return f"| {' | '.join(cells)} |"


def _cells(found: dict[str, Any], base: float) -> list[str]:
    method, bits = [*found["row"].split("-"), ""][:2]
    cells = [f"`{found['row']}`", method, f"W{bits}A{bits}" if bits else "float", str(found["epochs"])]
    return [*cells, f"{found['minutes']:.1f}", f"{found['top-1']:.2f}", f"{found['top-1'] - base:+.2f}"]


def main() -> None:
    """Train the remaining rows, and write the table after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--rows", nargs="+", choices=sorted(EPOCHS), default=list(EPOCHS))
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each row (default: 1)")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/results/cifar10_short.md")
    parser.add_argument(
        "--work-dir", type=Path, default=ROOT / "work_dirs/accuracy_cifar10", help="folder of the runs' own folders"
    )
    args = parser.parse_args()
    work = args.work_dir.resolve()
    published = work / "published.pth"
    if not published.exists():
        published.parent.mkdir(parents=True, exist_ok=True)
        source = args.data_root / "weights/resnet20-12fca82f.th"
        subprocess.run([sys.executable, str(ROOT / "tools/convert_checkpoint.py"), source, published], check=True)
    results = args.out.with_suffix(".jsonl")
    for row in ("float", *args.rows):
        missing = not (work / "float/latest.pth").exists() if row == "float" else row not in recorded(results)
        if missing:
            train(row, work, args.data_root, args.threads)
            record(results, row, work)
        args.out.write_text(table(recorded(results)))
        print(f"{row}: {recorded(results)[row]}", flush=True)


if __name__ == "__main__":
    main()
