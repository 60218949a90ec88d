"""Stress the package: hostile inputs, killed trainings, failing disks, random networks, long runs.

    python benchmarks/stress [--parts inputs kills storage networks flat big] [--scale 1] [--workers N] [--seed N]

It prints a table for each part, and each kind of loss with the case that shows it; with a loss, the exit code is 1. A
case is a function of its number: `--seed` draws others, `--scale` (or `STRESS_SCALE`) draws more, and `--kinds Lists
--cases 17` shows one again. `--write` writes the tables into `docs/reliability.md`.
"""

from __future__ import annotations

import argparse
import os
import re
import time
from pathlib import Path
from types import ModuleType
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: each process has one core

from stress import big, flat, inputs, kills, networks, storage

PARTS: dict[str, ModuleType] = {
    "inputs": inputs,
    "kills": kills,
    "storage": storage,
    "networks": networks,
    "flat": flat,
    "big": big,
}
"""Modules with `run(args)`, which returns results, `HEAD`, of their table, and `line(result)`, a row of it."""
PAGE = Path(__file__).resolve().parents[2] / "docs" / "reliability.md"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("stress", description=__doc__.partition("\n")[0])
    parser.add_argument("--parts", nargs="+", choices=sorted(PARTS), default=sorted(PARTS))
    scale = float(os.environ.get("STRESS_SCALE", "1"))
    parser.add_argument("--scale", type=float, default=scale, help="factor of the numbers of cases")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="number of processes")
    parser.add_argument("--seed", type=int, default=0, help="other cases")
    parser.add_argument(
        "--kinds", nargs="+", default=[], help="only these kinds of inputs, or families of networks, by name"
    )
    parser.add_argument("--cases", nargs="+", type=int, default=[], help="only the cases with these numbers")
    parser.add_argument("--write", action="store_true", help=f"write the table into docs/{PAGE.name}")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the parts; return 1 if there was a loss."""
    args = parse_args(argv)
    os.nice(10)
    losses = []
    for name in args.parts:
        print(PARTS[name].HEAD, flush=True)
        start = time.monotonic()
        results = PARTS[name].run(args)
        if name in ("kills", "storage"):  # the others show each row when it is complete
            print(*map(PARTS[name].line, results), sep="\n", flush=True)
        losses += [text for result in results for text in result.summary()]
        if args.write:
            write(name, results, time.monotonic() - start)
    print("\n".join(["", *losses] if losses else ["", "no losses"]))
    return 1 if losses else 0


def write(part: str, results: list[Any], seconds: float) -> None:
    """Write the table of a part into the page, between its marks."""
    rows = "\n".join(PARTS[part].line(result) for result in results)
    total = (
        f"{sum(result.total for result in results):,} cases in {seconds / 60:.0f} minutes, {time.strftime('%Y-%m-%d')}."
    )
    text, count = re.subn(
        rf"(<!-- {part} -->\n).*?(<!-- end -->)",
        lambda found: f"{found[1]}{total}\n\n{PARTS[part].HEAD}\n{rows}\n{found[2]}",
        PAGE.read_text(encoding="utf-8"),
        flags=re.DOTALL,
    )
    if not count:
        raise SystemExit(f"{PAGE} has no place for the part {part}: <!-- {part} --> … <!-- end -->.")
    PAGE.write_text(text, encoding="utf-8")
