"""Part `kills`: trainings that are ended at random instants, and resumed until they finish.

Each must end as one that nothing has ended: the same bits in weights, optimizer, quantizers and the log's values, a
whole `log.jsonl`, and no temporary file. SIGKILL comes at instants drawn from the phases of an unended training: the
process reports that a phase begins, and after a part of that phase's time its parent kills it. In the table, a kill
counts for the phase that it has hit.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from stress import phases
from stress.endings import HEAD, Ending, fault_of_end, line, tabulated
from stress.nursery import PATIENCE, Child, begin, own_process, spread, warm
from stress.phases import Phases
from stress.trainings import COMMAND, TRAININGS, begin_both, differences, finish, make_folder, make_teacher
from stress.verdicts import Result

__all__ = ["HEAD", "line", "run"]

TWO = "two processes"
_ROOT = Path(__file__).resolve().parents[2]
_KILLS = {  # SIGKILLs at scale 1: by training, the phase to hit and how often
    "float": {phases.EARLY: 5, phases.TRAINING: 4, phases.SAVE: 6, phases.VALIDATION: 4},
    "quantized": {phases.RANGES: 7, phases.SAVE: 5, phases.BOARD: 6, phases.LOG: 3, phases.TRAINING: 4},
    "distilled": {phases.TEACHER: 5, phases.TRAINING: 2},
    "exported": {phases.EXPORT: 4},
    TWO: {phases.TRAINING: 5},
}
_USUAL = "nothing: a command that is started as usual"
_WORKER = "SIGKILL of a process that reads data"
_FILE_SIZE = "SIGXFSZ, a limit on file sizes"
_SIGNALS: dict[str, tuple[tuple[signal.Signals, ...], set[int]]] = {  # and the exit codes; 0: it had finished
    "SIGTERM": ((signal.SIGTERM,), {0, 143, -15}),
    "SIGINT, twice": ((signal.SIGINT, signal.SIGINT), {0, 130}),
    "SIGHUP": ((signal.SIGHUP,), {0, 129, -1}),
    "SIGUSR1": ((signal.SIGUSR1,), {0, 138, -10}),
    _WORKER: ((signal.SIGKILL,), {0, 71}),
    _FILE_SIZE: ((), {0, 71}),
}
_SENT = 5  # cases of each of these at scale 1
_AGAIN = 0.3  # share of the cases whose resumed run is killed as well


@dataclass(frozen=True)
class Case:
    """A training, what ends it, and the phase that is to be hit (of a signal: any)."""

    number: int
    training: str
    way: str
    phase: str = ""


@dataclass(frozen=True)
class Reference:
    """A training that nothing has ended.

    Attributes:
        work: Its work directory.
        seconds: Time of the command.
        early: Time until training begins.
        spans: Number of entries and mean seconds of each phase.
    """

    work: Path
    seconds: float
    early: float
    spans: dict[str, tuple[int, float]]


def run(args: argparse.Namespace) -> list[Result]:
    """Run all cases.

    Args:
        args: Options of the command line: `scale`, `workers`, `seed`.
    """
    return own_process("stress.kills", args)


def results_of(folder: Path, scale: float, workers: int, seed: int) -> list[Result]:
    """Run all cases in this process and those that it forks."""
    warm()
    make_teacher(folder / "teacher.pth")
    start = time.monotonic()
    cases = draw_cases(scale, seed)
    cases.insert(0, Case(-1, "quantized", _USUAL))
    names = sorted({case.training for case in cases})
    references = dict(spread(partial(refer, folder), names, workers))
    endings = list(spread(partial(_run, folder, references), cases, workers))
    rows = [_USUAL, *(f"SIGKILL in {phase}" for phase in phases.PHASES)]
    return tabulated(endings, [*rows, f"SIGKILL of one of {TWO}", *_SIGNALS], time.monotonic() - start)


def draw_cases(scale: float, seed: int) -> list[Case]:
    """Return the cases; below scale 1 the first ones of a row in which those of each kind are far apart."""
    kinds = [(count, name, "SIGKILL", phase) for name, wanted in _KILLS.items() for phase, count in wanted.items()]
    kinds += [(_SENT, "", way, "") for way in _SIGNALS]
    counts = [round(count * max(scale, 1.0)) for count, *_ in kinds]
    plan = sorted(((place + 0.5) / count, *kind) for count, (_, *kind) in zip(counts, kinds) for place in range(count))
    plan = plan[: max(1, round(len(plan) * scale))] if scale < 1 else plan
    draw, cases = random.Random(f"kills {seed}"), []
    alone = [name for name in _KILLS if name != TWO]
    readers = [name for name in alone if TRAININGS[name]["data"]["workers_per_gpu"]]
    for number, (_, name, way, phase) in enumerate(plan, seed * 10**6):
        cases.append(Case(number, name or draw.choice(readers if way == _WORKER else alone), way, phase))
    return cases


def refer(above: Path, training: str) -> tuple[str, Reference]:
    """Run a training that nothing ends, and measure its phases; return its name and the result.

    Raises:
        RuntimeError: It fails.
    """
    watched, folder = Phases(), make_folder(above / f"whole {training}", training)
    start = time.monotonic()
    if training == TWO:
        code, errors = finish(folder, training)
        spans, early = {}, 0.0
    else:
        child = begin(COMMAND, folder, watched.watch)
        code, errors = child.code(), child.errors
        spans = {phase: (watched.entries(phase), watched.seconds(phase)) for phase in phases.INNER}
        early = watched.began(phases.TRAINING) - start
    if code != 0:
        raise RuntimeError(f"the training {training} ended with {code}: {errors}")
    return training, Reference(folder / "work", time.monotonic() - start, early, spans)


def started_as_usual(folder: Path, reference: Reference) -> Ending:
    """Run a training as a user starts it, and compare it with the forked one."""
    make_folder(folder, "quantized")
    paths = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")]))
    command, start = [sys.executable, "-m", "lbitcls.commands.main", *COMMAND], time.monotonic()
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, check=False
    )
    loss = fault_of_end(done.returncode, done.stderr, {0}, str(folder))
    loss = loss or "; ".join(differences(reference.work, folder / "work"))
    return Ending(_USUAL, -1, "quantized", loss, False, time.monotonic() - start)


def _run(above: Path, references: dict[str, Reference], case: Case) -> Ending:
    if case.way == _USUAL:
        return started_as_usual(above / "usual", references[case.training])
    return _end_and_resume(above, references, case)


def _end_and_resume(above: Path, references: dict[str, Reference], case: Case) -> Ending:
    """End a training, perhaps again when it resumes, and let it finish."""
    folder = make_folder(above / f"case {case.number}", case.training)
    draw, reference = random.Random(f"kill {case.number}"), references[case.training]
    start = time.monotonic()
    if case.training == TWO:
        row, loss = f"SIGKILL of one of {TWO}", _kill_one_of_two(folder, draw, reference)
    elif case.way == "SIGKILL":
        row, loss = _kill(folder, draw, reference, case.phase)
    else:
        row, loss = case.way, _send(folder, draw, reference, case.way)
    again = not loss and case.training != TWO and draw.random() < _AGAIN
    if again:
        _kill_at(begin(COMMAND, folder), draw.random() * reference.seconds)
    if not loss:
        code, errors = finish(folder, case.training)
        loss = fault_of_end(code, errors, {0}, str(folder)) or "; ".join(differences(reference.work, folder / "work"))
    if not loss:
        shutil.rmtree(folder)
    said = f"case {case.number}: {case.training}, {case.way} {case.phase}{', and again' if again else ''}"
    return Ending(row, case.number, said, loss, False, time.monotonic() - start)


def _kill(folder: Path, draw: random.Random, reference: Reference, phase: str) -> tuple[str, str]:
    """Kill a training in a phase; return the row of the phase that was hit, and what is wrong."""
    wanted, span = None, reference.early
    if phase != phases.EARLY:
        count, span = reference.spans[phase]
        wanted = (phase, draw.randint(1, count))
    watched = Phases(wanted)
    child = begin(COMMAND, folder, watched.watch)
    if wanted is not None and not watched.wait(PATIENCE):
        return phase, f"{wanted} did not begin"
    code = _kill_at(child, draw.random() * span)
    watched.close()
    return f"SIGKILL in {watched.now}", "" if code in (
        0,
        -signal.SIGKILL,
    ) else f"exit code {code}: {child.errors[-300:]}"


def _kill_at(child: Child, seconds: float) -> int | None:
    child.ended(seconds)
    child.kill()
    return child.code()


def _kill_one_of_two(folder: Path, draw: random.Random, reference: Reference) -> str:
    """Kill one of two processes; the other must end by itself, with a line."""
    both = begin_both(folder)
    time.sleep(draw.random() * reference.seconds)
    killed, other = draw.sample(both, 2)
    killed.kill()
    killed.code()
    code = other.code()
    errors = "stderr.txt" if other is both[0] else "stderr_1.txt"
    return fault_of_end(code, (folder / errors).read_text("utf-8", "replace"), {0, 1, 71}, str(folder))


def _send(folder: Path, draw: random.Random, reference: Reference, way: str) -> str:
    """End a training by signals or a limit; return what is wrong with its end."""
    numbers, codes = _SIGNALS[way]
    prepare: Callable[[], object] = lambda: None  # noqa: E731
    if way == _FILE_SIZE:
        most = max(path.stat().st_size for path in reference.work.glob("*.pth"))
        prepare = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (draw.randint(1, most), resource.RLIM_INFINITY))
    child = begin(COMMAND, folder, prepare)
    if numbers:
        child.ended(reference.seconds * draw.uniform(0.05, 1.0))
    for number in numbers:
        if way == _WORKER:
            _kill_reader(child)
        else:
            child.kill(number)
        child.ended(draw.random() * 0.05)
    return fault_of_end(child.code(), child.errors, codes, str(folder))


def _kill_reader(child: Child) -> None:
    """Kill the first process that a training has started, if it has one now."""
    children = [path.read_text().split() for path in Path(f"/proc/{child.pid}/task").glob("*/children")]
    for pid in itertools.islice(itertools.chain(*children), 1):
        os.kill(int(pid), signal.SIGKILL)


if __name__ == "__main__":
    from stress.nursery import answer

    answer(results_of)
