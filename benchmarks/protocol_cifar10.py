"""ResNet-20 on CIFAR-10 by one protocol: float and 4, 3 and 2 bits, the methods at 2 bits, and what each ingredient gives.

    python benchmarks/protocol_cifar10.py --data-root FOLDER [--rows W2A2-0 float-0 …] [--work-root FOLDER] [--out FILE.md]

`FOLDER` contains `cifar10_jpg.tar.gz` (or the folder) and `weights/resnet20-12fca82f.th`. Each row is one training of
a config of `configs/cifar10/`, and may be trained by hand by the command in its line of the page. Everything is chosen
on 5,000 held-out training images; the test set is read once per final row, after its last epoch. `--work-root` holds
the runs: an interrupted row resumes, a completed one (in the `.jsonl` file beside the page) is not trained again.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
WEIGHTS = "weights/resnet20-12fca82f.th"
METHODS = ("LSQ", "LSQPlus", "DSQ", "PACT", "DoReFa", "APoT", "UQ", "EWGS", "TorchQAT")
BITS = ("W4A4", "W3A3", "W2A2")
GOALS = {"W4A4": 0.5, "W3A3": 0.5, "W2A2": 1.75}
"""Largest gap to the float control that is aimed at, in points of top-1."""
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Row:
    """One training: a config of `configs/cifar10/`, and what its command changes in it."""

    config: str
    options: dict[str, Any] = field(default_factory=dict)
    final: bool = True  # the test set is read

    def options_text(self) -> list[str]:
        return [f"{key}={value}" for key, value in self.options.items()]


ROWS: dict[str, Row] = {
    "float": Row("resnet20.py"),
    **{f"float-{seed}": Row("resnet20_control.py", {"seed": seed}) for seed in SEEDS},
    **{f"{bits}-{seed}": Row(f"resnet20_{bits.lower()}.py", {"seed": seed}) for bits in BITS for seed in SEEDS},
}


def lbitcls(*arguments: str, work: Path) -> None:
    """Run a command of lbitcls in the folder `work`; an error ends the script."""
    command = [sys.executable, "-m", "lbitcls.commands.main", *arguments]
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(command, cwd=work, env={**os.environ, "PYTHONPATH": paths}, check=False)
    if done.returncode:
        raise SystemExit(f"lbitcls {' '.join(arguments[:2])} ended with exit code {done.returncode}; run it again.")


def run_row(name: str, work: Path, data_root: Path) -> dict[str, Any]:
    """Train or resume a row, test it, and return its results."""
    row, folder = ROWS[name], work / "work_dirs" / name
    config = str(ROOT / "configs/cifar10" / row.config)
    began = time.monotonic()
    options = ["--options", *row.options_text()] if row.options else []
    lbitcls("train", config, "--resume", "--work-dir", str(folder), "--data-root", str(data_root), *options, work=work)
    clock = folder / "seconds"
    clock.write_text(str((float(clock.read_text()) if clock.exists() else 0.0) + time.monotonic() - began))
    result = _trained(name, folder)
    return {**result, **_tested(config, folder, data_root, work)} if row.final else result


def _trained(name: str, folder: Path) -> dict[str, Any]:
    import torch

    from lbitcls.deploy.runtime.benchmark import cpu_name

    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    last = [record for record in records if record["mode"] == "val"][-1]
    minutes = float((folder / "seconds").read_text()) / 60
    made = {"torch": torch.__version__, "machine": f"{cpu_name()}, {os.cpu_count()} cores"}
    return {"row": name, "epochs": last["epoch"], "held-out": last["top-1"], "minutes": round(minutes, 1), **made}


def _tested(config: str, folder: Path, data_root: Path, work: Path) -> dict[str, Any]:
    """Return top-1 on the test set after the last epoch, and which images are right, as hexadecimal bits."""
    file = folder / "test.npz"
    lbitcls(
        *("test", config, str(folder / "latest.pth"), "--predictions", str(file), "--data-root", str(data_root)),
        work=work,
    )
    found = np.load(file)
    right = found["labels"] == found["predictions"]
    return {"test": round(100 * float(right.mean()), 2), "right": np.packbits(right).tobytes().hex()}


def keep_log(name: str, work: Path, page: Path) -> None:
    """Keep a row's log, compressed, in the folder named after the page."""
    folder = page.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    log = (work / "work_dirs" / name / "log.jsonl").read_bytes()
    (folder / f"{name}.jsonl.gz").write_bytes(gzip.compress(log, mtime=0))


def recorded(file: Path) -> dict[str, dict[str, Any]]:
    """Return the completed rows in `file`, one JSON line each, by name."""
    lines = file.read_text().splitlines() if file.exists() else []
    return {entry["row"]: entry for entry in map(json.loads, lines)}


# The page


def page(results: dict[str, dict[str, Any]]) -> str:
    """Return the document for the completed rows."""
    parts = [_head(), _bits_table(results), _rows_table(results)]
    return "\n".join(line for part in parts for line in [*part, ""]).rstrip() + "\n"


def _head() -> list[str]:
    return [
        "# ResNet-20 on CIFAR-10 at low bit widths",
        "",
        "`python benchmarks/protocol_cifar10.py --data-root FOLDER` writes this page; `--rows ROW` trains one row. The",
        "images are CIFAR-10 as lossy JPEG files: compare with the float rows here, not with a paper's. Everything is",
        "chosen on 5,000 training images that are held out; 45,000 train, and the 10,000 test images are read once for",
        "a row, after its last epoch. `float` is the published network fine-tuned on these images; quantized rows begin",
        "with its weights, and so does the control `float-SEED`, which trains for as many further epochs as the longest",
        "quantized row, so that no row gains by training longer. The first and last layers have 8 bits. The log of each",
        "row is in the folder of this page's name. (A table of every method after a few epochs:",
        "[cifar10_short.md](cifar10_short.md).)",
    ]


def _bits_table(results: dict[str, dict[str, Any]]) -> list[str]:
    lines = [
        "| bits | seeds | test top-1 | gap to the control | standard error | goal |",
        "|---|---|---|---|---|---|",
    ]
    for bits in ("float", *BITS):
        seeds = [seed for seed in SEEDS if f"{bits}-{seed}" in results and f"float-{seed}" in results]
        if seeds:
            lines.append(_bits_line(bits, seeds, results))
    note = "The standard error is that of the paired difference on the test images; deviation: between seeds."
    return [*lines, "", note] if len(lines) > 2 else []


def _bits_line(bits: str, seeds: list[int], results: dict[str, dict[str, Any]]) -> str:
    top1 = [results[f"{bits}-{seed}"]["test"] for seed in seeds]
    spread = f" ± {statistics.stdev(top1):.2f}" if len(top1) > 1 else ""
    gap, error = paired(*([results[f"{name}-{seed}"] for seed in seeds] for name in (bits, "float")))
    shown = ("–", "–", "–") if bits == "float" else (f"{gap:+.2f}", f"{error:.2f}", f"-{GOALS[bits]:.2f}")
    return f"| {bits} | {', '.join(map(str, seeds))} | {statistics.mean(top1):.2f}{spread} | {' | '.join(shown)} |"


def paired(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> tuple[float, float]:
    """Return the mean difference of top-1 in points, and its standard error over the images."""
    difference = np.mean([_right(mine) - _right(other) for mine, other in zip(ours, theirs, strict=True)], axis=0)
    return 100 * float(difference.mean()), 100 * float(difference.std(ddof=1)) / len(difference) ** 0.5


def _right(result: dict[str, Any]) -> np.ndarray:
    return np.unpackbits(np.frombuffer(bytes.fromhex(result["right"]), np.uint8)).astype(float)


def _rows_table(results: dict[str, dict[str, Any]]) -> list[str]:
    lines = ["## Rows", "", "| row | config, options | epochs | minutes | held-out | test |", "|---|---|---|---|---|---|"]
    for name, row in ROWS.items():
        if name in results:
            found = results[name]
            command = " ".join([f"`{row.config}`", *(f"`{option}`" for option in row.options_text())])
            test = f"{found['test']:.2f}" if row.final else "–"
            cells = [f"`{name}`", command, str(found["epochs"]), f"{found['minutes']:.0f}", f"{found['held-out']:.2f}"]
            lines.append(f"| {' | '.join([*cells, test])} |")
    return [*lines, "", f"Machines: {'; '.join(sorted({_made(found) for found in results.values()}))}. {_TIMES}"]


_TIMES = "The rows trained on one thread beside other work: the minutes do not measure speed."


def _made(found: dict[str, Any]) -> str:
    return f"torch {found['torch']} on {found['machine']}"


def main() -> None:
    """Train the remaining rows, and write the page after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--rows", nargs="*", choices=list(ROWS), default=list(ROWS), metavar="ROW")
    parser.add_argument("--work-root", type=Path, default=ROOT / "work_dirs/protocol_cifar10")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/results/cifar10_resnet20.md")
    args = parser.parse_args()
    work, data_root, file = args.work_root.resolve(), args.data_root.resolve(), args.out.with_suffix(".jsonl")
    work.mkdir(parents=True, exist_ok=True)
    if not (work / "resnet20.pth").exists():
        lbitcls("convert", str(data_root / WEIGHTS), "resnet20.pth", work=work)
    for name in args.rows:
        if name not in recorded(file):
            result = run_row(name, work, data_root)
            keep_log(name, work, args.out)
            with file.open("a") as lines:
                lines.write(json.dumps(result) + "\n")
        args.out.write_text(page(recorded(file)))


if __name__ == "__main__":
    main()
