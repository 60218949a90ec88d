"""Part `storage`: files that a power loss has damaged, and disks that are full, read-only, slow or report errors.

After a failing disk each checkpoint that is there must load, the command must have ended with one line that names a
file, and the run, resumed on a good disk, must end as one that nothing has disturbed.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from lbitcls.utils.checkpoint import read_checkpoint
from lbitcls.utils.errors import CheckpointError
from stress import disk
from stress.damaged_runs import DAMAGES, Damage, copy_of, draw_damages, resume_damaged
from stress.endings import HEAD, Ending, fault_of_end, line, tabulated
from stress.nursery import PATIENCE, begin, own_process, spread, warm
from stress.phases import SAVE, Phases
from stress.trainings import COMMAND, differences, make_folder
from stress.verdicts import Result

__all__ = ["HEAD", "line", "run"]

_FAILURES = {disk.FULL.name: 20, "a slow disk": 2}  # cases at scale 1
_OTHERS = 10  # of the other faults
_INTERRUPTED_IN = 9  # number of the save, from 1, in which the interrupted run is killed


@dataclass(frozen=True)
class Failing:
    """A training on a failing disk.

    Attributes:
        number: Number of the case.
        fault: The failure.
        part: Share of the run's operations before it.
        resumed: True: the disk fails while an interrupted run is resumed.
    """

    number: int
    fault: disk.Fault
    part: float
    resumed: bool


@dataclass(frozen=True)
class Stage:
    """Common starting point of all cases.

    Attributes:
        folder: Folder for the cases.
        works: Work directories of an `interrupted` and of a `finished` run, which nothing has disturbed.
        measured: Results of `lbitcls test`, by checkpoint.
        operations: Number of a run's operations by kinds, and True for one that resumes.
    """

    folder: Path
    works: dict[str, Path]
    measured: dict[str, str]
    operations: dict[tuple[int, bool], int]


def run(args: argparse.Namespace) -> list[Result]:
    """Run all cases; without a C compiler those of failing disks are left out, with a line that says so.

    Args:
        args: Options of the command line: `scale`, `workers`, `seed`.
    """
    return own_process("stress.storage", args, disk.build)


def results_of(folder: Path, scale: float, workers: int, seed: int) -> list[Result]:
    """Run all cases in this process and those that it forks."""
    warm()
    start = time.monotonic()
    stage = _prepare(folder, workers)
    cases: list[Damage | Failing] = [*draw_damages(stage.works, scale, seed)]
    if disk.is_loaded():
        cases += draw_failures(scale, seed)
    else:
        print("There is no C compiler (cc): no case with a failing disk.", file=sys.stderr)
    endings = list(spread(partial(_run, stage), cases, workers))
    rows = [f"{state} run, a file {way}" for state in stage.works for way in DAMAGES]
    rows += [f"a checkpoint {way}, lbitcls test" for way in DAMAGES] + [fault.name for fault in disk.FAULTS]
    return tabulated(endings, rows, time.monotonic() - start)


def draw_failures(scale: float, seed: int) -> list[Failing]:
    """Return the cases of failing disks: each kind at points all over a run, every third one while it resumes."""
    draw, cases = random.Random(f"failures {seed}"), []
    for fault in disk.FAULTS:
        count = max(1, round(scale * _FAILURES.get(fault.name, _OTHERS)))
        for place in range(count):
            part = (place + draw.random()) / count if place else 0.0
            cases.append(Failing(seed * 10**6 + 1000 + len(cases), fault, part, place % 3 == 2))
    draw.shuffle(cases)
    return cases


def _run(stage: Stage, case: Damage | Failing) -> Ending:
    if isinstance(case, Damage):
        return resume_damaged(stage.folder, stage.works["finished"], stage.measured, case)
    return _run_failing(stage, case)


def _prepare(folder: Path, workers: int) -> Stage:
    """Run a training to its end, and another one up to a kill; measure and count what the cases need."""
    whole = make_folder(folder / "whole", "stored")
    child = begin(COMMAND, whole)
    if child.code() != 0:
        raise RuntimeError(f"the training failed: {child.errors}")
    cut = make_folder(folder / "cut", "stored")
    watched = Phases((SAVE, _INTERRUPTED_IN))
    child = begin(COMMAND, cut, watched.watch)
    if not watched.wait(PATIENCE):
        raise RuntimeError(f"the training failed: {child.errors}")
    child.kill()
    child.code()
    works = {"interrupted": cut / "work", "finished": whole / "work"}
    kinds = sorted({(fault.kinds, resumed) for fault in disk.FAULTS for resumed in (False, True)})
    counts = list(spread(partial(_count, folder, works), kinds if disk.is_loaded() else [], workers))
    names = [path.name for path in sorted(works["finished"].glob("*.pth"))]
    return Stage(folder, works, dict(spread(partial(_measure, whole), names, workers)), dict(counts))


def _measure(folder: Path, name: str) -> tuple[str, str]:
    """Return the result of `lbitcls test` on a checkpoint."""
    place = folder / f"test {name}"
    place.mkdir()
    shutil.copy2(folder / "config.py", place)
    (place / "work").mkdir()
    shutil.copy2(folder / "work" / name, place / "work")
    child = begin(("test", "config.py", f"work/{name}", "--out", "out.json"), place)
    if child.code() != 0:
        raise RuntimeError(f"lbitcls test failed: {child.errors}")
    return name, (place / "out.json").read_text()


def _count(folder: Path, works: dict[str, Path], kind: tuple[int, bool]) -> tuple[tuple[int, bool], int]:
    """Return the number of a run's operations of some kinds."""
    kinds, resumed = kind
    place, counter = make_folder(folder / f"count {kinds} {resumed}", "stored"), disk.Counter()
    if resumed:
        copy_of(works["interrupted"], place / "work")
    child = begin(COMMAND, place, disk.failing(place / "work", disk.Fault("none", kinds, 0), 0, counter))
    if child.code() != 0:
        raise RuntimeError(f"the training failed: {child.errors}")
    return kind, counter.value


def _run_failing(stage: Stage, case: Failing) -> Ending:
    start = time.monotonic()
    folder = make_folder(stage.folder / f"failing {case.number}", "stored")
    work, fault = folder / "work", case.fault
    if case.resumed:
        copy_of(stage.works["interrupted"], work)
    after = int(case.part * stage.operations[fault.kinds, case.resumed])
    child = begin(COMMAND, folder, disk.failing(work, fault, after, disk.Counter()))
    code = child.code()
    loss = fault_of_end(code, child.errors, {0, 71}, str(folder))
    if not loss and code and "work" not in child.errors.splitlines()[-1]:
        loss = f"a message that names no file: {child.errors[-300:]}"
    loss = loss or "; ".join(_unreadable(work))
    if not loss:
        child = begin(COMMAND, folder)
        loss = fault_of_end(child.code(), child.errors, {0}, str(folder))
        loss = loss or "; ".join(differences(stage.works["finished"], work))
    if not loss:
        shutil.rmtree(folder)
    said = f"failing {case.number}: {fault.name} after {after} operations{', resuming' * case.resumed}"
    return Ending(fault.name, case.number, said, loss, False, time.monotonic() - start)


def _unreadable(work: Path) -> Sequence[str]:
    """Return the checkpoints that cannot be read."""
    found = []
    for path in sorted(work.glob("*.pth")):
        try:
            read_checkpoint(path)
        except CheckpointError as error:
            found.append(f"a checkpoint is no longer readable: {error}")
    return found


if __name__ == "__main__":
    from stress.nursery import answer

    answer(results_of)
