"""Table of checks on a GPU, each in a process of its own; started by `gpu_check.sh`.

    bash benchmarks/gpu_check.sh [--device cuda] [--data-root FOLDER] [--only NAME …] [--minutes 8] [--wheels FOLDER]

`--device cpu` runs the same checks without a GPU, some with smaller models. The exit code is 1 if a check failed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
CHECKS = {
    "environment": "versions and device",
    "train": "train: float, then quantized",
    "resume": "interrupt and resume",
    "test": "validate the checkpoint on both devices",
    "export": "export and verify",
    "bf16": "autocast, bfloat16",
    "fp16": "autocast, float16",
    "kernels": "fused kernels and plain ones",
    "compile": "compile=True",
    "ddp": "DistributedDataParallel, one rank",
    "torchrun": "tools/dist_train.sh, one rank",
    "images": "MNIST, read by workers",
    "step": "step of LSQ ResNet-18",
}
SKIPPED = 77


@dataclass
class Outcome:
    """Result of a check: `ok`, `FAILED` or `skipped`, in words, and its seconds."""

    verdict: str
    words: str
    seconds: float


def run(name: str, args: argparse.Namespace, limit: float) -> Outcome:
    """Run a check in a process, at most `limit` seconds."""
    start = time.monotonic()
    if name == "images" and args.data_root is None:
        return Outcome("skipped", "needs --data-root with MNIST", 0.0)
    if limit < 1:
        return Outcome("FAILED", "not run: the time is up (--minutes)", 0.0)
    log = args.work / f"{name}.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            command(name, args), stdout=output, stderr=subprocess.STDOUT, cwd=FOLDER.parent, start_new_session=True
        )
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            end(process)
    seconds = time.monotonic() - start
    if code is None:
        return Outcome("FAILED", f"stopped after {seconds:.0f} s", seconds)
    return outcome(code, log, args.work / f"{name}.json", seconds)


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process that still runs, and those that it started; torchrun ends its own when it is asked to."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            os.killpg(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)


def command(name: str, args: argparse.Namespace) -> list[str]:
    """Return the command of a check."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1"] if name == "ddp" else []
    root = [] if args.data_root is None else ["--data-root", str(args.data_root)]
    options = ["--device", args.device, "--work", str(args.work), *root]
    return [sys.executable, *launcher, str(FOLDER / "gpu_parts.py"), name, *options]


def outcome(code: int, log: Path, result: Path, seconds: float) -> Outcome:
    """Return a finished check's outcome, with the last line of its output if it failed."""
    text = log.read_text(errors="replace")
    if result.is_file():
        words = json.loads(result.read_text())["result"]
    else:
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        errors = [line for line in lines if "Error" in line.partition(":")[0]]
        words = (errors or lines or ["no output"])[-1]
    if code == SKIPPED:
        return Outcome("skipped", words, seconds)
    if code:
        print(f"--- {log.stem}: the end of its output\n{text[-3000:]}\n---", file=sys.stderr)
    return Outcome("FAILED" if code else "ok", words, seconds)


def main() -> int:
    """Run the checks, print the table, and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="gpu_check.sh", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N or cpu (default: cuda)")
    parser.add_argument("--data-root", type=Path, help="folder with MNIST, for the check with real images")
    parser.add_argument("--only", nargs="+", choices=list(CHECKS), metavar="NAME", help=", ".join(CHECKS))
    parser.add_argument("--minutes", type=float, default=8.0, help="time for all checks (default: 8)")
    parser.add_argument("--json", type=Path, help="JSON file to write the table to")
    parser.add_argument("--wheels", help="folder of wheels to use for this call (handled by gpu_check.sh)")
    parser.add_argument("--work", type=Path, required=True, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + 60 * args.minutes
    rows: dict[str, Outcome] = {}
    for name in args.only or CHECKS:
        print(f"{CHECKS[name]} …", file=sys.stderr, flush=True)
        rows[name] = run(name, args, deadline - time.monotonic())
        if name == "environment" and rows[name].verdict == "FAILED":
            break  # nothing else can run
    report(rows)
    if args.json:
        table: list[dict[str, Any]] = [dict(check=name, **vars(row)) for name, row in rows.items()]
        args.json.write_text(json.dumps(table, indent=1))
    return int(any(row.verdict == "FAILED" for row in rows.values()))


def report(rows: dict[str, Outcome]) -> None:
    """Print the table."""
    width = max(len(CHECKS[name]) for name in rows)
    print(f"{'check':{width}}  {'':7}  {'seconds':>7}  result")
    for name, row in rows.items():
        print(f"{CHECKS[name]:{width}}  {row.verdict:7}  {row.seconds:7.1f}  {row.words}")
    failed = [name for name, row in rows.items() if row.verdict == "FAILED"]
    print(f"{len(failed)} of {len(rows)} checks failed{': ' + ', '.join(failed) if failed else ''}")


if __name__ == "__main__":
    sys.exit(main())
