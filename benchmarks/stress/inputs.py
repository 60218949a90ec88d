"""Part `inputs`: files of every kind that the package reads, damaged, odd and hostile, each through its reader."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from stress.archives import Archives
from stress.checkpoints import Checkpoints
from stress.commands import run_commands
from stress.configs import Configs
from stress.exported import Exported
from stress.images import Images
from stress.judge import judge
from stress.lists import Folders, Lists
from stress.verdicts import Kind, Result

HEAD = "| input | cases | read | refused | losses | slowest, s | most MiB | s |\n|---|--:|--:|--:|--:|--:|--:|--:|"
KINDS: tuple[type[Kind], ...] = (Images, Lists, Folders, Archives, Checkpoints, Exported, Configs)


def run(args: argparse.Namespace) -> list[Result]:
    """Run the cases of all kinds, then a few through the commands themselves.

    Args:
        args: Options of the command line: `scale`, `workers`, `seed`, and `kinds`, names of classes in `KINDS` (empty:
            all, and the commands).
    """
    results = []
    with tempfile.TemporaryDirectory(prefix="lbitcls-stress-") as name:
        folder = Path(name)
        for number, made in enumerate(made for made in KINDS if not args.kinds or made.__name__ in args.kinds):
            kind, place = made(), folder / str(number)
            (place / "first").mkdir(parents=True)
            kind.prepare(place / "first")
            start = args.seed * 10**6
            numbers = range(start, start + max(1, round(kind.count * args.scale)))
            results.append(judge(kind, numbers, place / "cases", args.workers))
            print(line(results[-1]), flush=True)
        if not args.kinds:
            results.append(run_commands(folder / "commands", args.scale, args.workers, args.seed))
            print(line(results[-1]), flush=True)
    return results


def line(result: Result) -> str:
    """Return a result as a row of the table."""
    cells = (
        *(result.name, f"{result.total:,}", f"{result.accepted:,}", f"{result.refused:,}", len(result.losses)),
        *(f"{result.slowest:.1f}", f"{result.mib:.0f}", f"{result.seconds:.0f}"),
    )
    return f"| {' | '.join(map(str, cells))} |"
