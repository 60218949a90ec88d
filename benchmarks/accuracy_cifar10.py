"""Every method fine-tunes the published ResNet-20 on CIFAR-10; the table is docs/results/cifar10_resnet20.md.

    python benchmarks/accuracy_cifar10.py --data-root FOLDER [--rows LSQ-4 DSQ-2 …] [--out docs/results/…]

`FOLDER` holds `cifar10_jpg.tar.gz` (or the folder) and `weights/resnet20-12fca82f.th`. The float row trains first;
the others start from it. A row that is done is not trained again, and one that was interrupted goes on, so the
command may be stopped and started at any time; the table holds the rows that are done.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "configs/cifar10/resnet20.py"
WORK = ROOT / "work_dirs/accuracy_cifar10"
EPOCHS = {
    **{f"{m}-{b}": e for m in ("LSQ", "DSQ", "DoReFa", "TorchQAT") for b, e in ((4, 4), (3, 5), (2, 6))},
    **{f"{m}-{b}": 2 for m in ("LSQPlus", "PACT", "APoT", "UQ", "EWGS") for b in (4, 2)},
    **{f"LSQ-{b}-short": 2 for b in (4, 2)},
}
"""Rows, `method-bits`, to their epochs; `short`: LSQ beside the methods that have two epochs."""


def config_text(row: str) -> str:
    """The config of a row: the float one, or its quantized form."""
    lines = [f"_base_ = {str(CONFIG)!r}", f"work_dir = {str(WORK / row)!r}", "compile = True"]
    if row == "float":
        return "\n".join([*lines, f"load_from = {str(WORK / 'published.pth')!r}"]) + "\n"
    method, bits = row.split("-")[:2]
    entry = {"num_bit_w": int(bits), "num_bit_a": int(bits), "per_channel": True}
    first = {**entry, "num_bit_w": 8, "num_bit_a": 8}
    policy = {"Conv2d": {"type": f"{method}Conv", **entry}, "Linear": {"type": f"{method}Linear", **entry}}
    special = {
        "layers_name": ["backbone.conv1", "head.fc"],
        "convert_type": [{"type": f"{method}Conv", **first}, {"type": f"{method}Linear", **first}],
    }
    transformer = {"type": "mTransformerV2", "quan_policy": policy, "special_layers": special}
    return "\n".join(
        [
            *lines,
            f"load_from = {str(WORK / 'float/latest.pth')!r}",
            f"quant_transformer = {transformer!r}",
            "calibration = dict(epoch=0, num_batches=16)",
            f"total_epochs = {EPOCHS[row]}",
            "",
        ]
    )


def train(row: str, data_root: Path) -> None:
    """Train a row, or go on with it; time spent is added up in `seconds` beside its summary."""
    folder = WORK / row
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / f"{row}.row.py"
    config.write_text(config_text(row))
    began = time.monotonic()
    command = [sys.executable, str(ROOT / "tools/train.py"), str(config), "--resume", "--data-root", str(data_root)]
    done = subprocess.run(command, check=False)
    clock = folder / "seconds"
    spent = float(clock.read_text()) if clock.exists() else 0.0
    clock.write_text(str(spent + time.monotonic() - began))
    if done.returncode:
        raise SystemExit(f"row {row} ended with exit code {done.returncode}; start the command again to go on.")


def result(row: str) -> dict[str, Any] | None:
    """What a finished row reached: the accuracy after its last epoch; None while it is not done."""
    summary = WORK / row / "summary.json"
    if not summary.exists():
        return None
    records = [json.loads(line) for line in (WORK / row / "log.jsonl").read_text().splitlines()]
    last = [record for record in records if record["mode"] == "val"][-1]
    seconds = float((WORK / row / "seconds").read_text())
    return {"row": row, "top-1": last["top-1"], "epochs": last["epoch"], "minutes": seconds / 60}


def table(rows: list[str]) -> str:
    """The document: a line for each finished row."""
    import torch

    results = {row: found for row in ("float", *rows) if (found := result(row)) is not None}
    base = results["float"]["top-1"]
    lines = [
        "# ResNet-20 on CIFAR-10, every method",
        "",
        "Made by `python benchmarks/accuracy_cifar10.py --data-root FOLDER`; a single row by `--rows ROW`. The images",
        "are CIFAR-10 as JPEG files (lossy), so figures compare with the float row here, not with a paper's. Seed 0;",
        f"torch {torch.__version__}, {os.cpu_count()} cores ({platform.machine()}). Top-1 (percent) of the last epoch.",
        "First and last layer have 8 bits, weights a scale for each channel. Short rows show that a method learns;",
        "they are no ranking of the papers.",
        "",
        "| row | method | bits | epochs | minutes | top-1 | gap to float |",
        "|---|---|---|---|---|---|---|",
    ]
    for row, found in results.items():
        method, bits = [*row.split("-"), ""][:2]
        cells = [f"`{row}`", method, f"W{bits}A{bits}" if bits else "float", found["epochs"]]
        cells += [f"{found['minutes']:.1f}", f"{found['top-1']:.2f}", f"{found['top-1'] - base:+.2f}"]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join([*lines, ""])


def main() -> None:
    """Train the rows that are not done, and write the table after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--rows", nargs="+", choices=sorted(EPOCHS), default=list(EPOCHS))
    parser.add_argument("--out", type=Path, default=ROOT / "docs/results/cifar10_resnet20.md")
    args = parser.parse_args()
    published = WORK / "published.pth"
    if not published.exists():
        published.parent.mkdir(parents=True, exist_ok=True)
        source = args.data_root / "weights/resnet20-12fca82f.th"
        subprocess.run([sys.executable, str(ROOT / "tools/convert_checkpoint.py"), source, published], check=True)
    for row in ("float", *args.rows):
        if result(row) is None:
            train(row, args.data_root)
            args.out.parent.mkdir(parents=True, exist_ok=True)
            args.out.write_text(table(list(EPOCHS)))
            print(f"{row}: {result(row)}", flush=True)


if __name__ == "__main__":
    main()
