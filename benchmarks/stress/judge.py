"""Runs cases in forked processes and judges each: read, refused in the package's own words, or a loss.

A loss is an error of another kind, a message that is empty, endless or contains control characters, more time or more
memory than the kind's bound, an input that changed, a process that was started or ended, and anything read or written
outside the case's folder.
"""

from __future__ import annotations

import json
import logging
import mmap
import os
import platform
import re
import select
import shutil
import signal
import struct
import tempfile
import time
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path

from lbitcls.utils.errors import LbitclsError
from stress.guard import Guard, digest, limit_memory, peak, reset_peak
from stress.verdicts import LONGEST, Kind, Loss, NotJudged, Result, timed

_PATIENCE = 20  # seconds beyond a case's time, before a process that does not even answer to a signal is ended
_BLOCK = 40  # cases after which a process reports
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


class Hang(BaseException):
    """A case took longer than its kind may."""


def judge(kind: Kind, numbers: Sequence[int], folder: Path, workers: int) -> Result:
    """Run the cases `numbers` of a kind in `workers` processes.

    Args:
        kind: Kind of input, prepared.
        numbers: Numbers of the cases.
        folder: Empty folder to work in.
        workers: Number of processes.
    """
    result = Result(kind.name)
    secrets = folder / "secrets"
    secrets.mkdir(parents=True)
    (secrets / "precious").write_text("precious")
    before = digest(secrets)
    with timed(result):
        waiting = [list(numbers[number::workers]) for number in range(workers)]
        crews = [_Crew(kind, mine, folder / f"crew{number}", secrets) for number, mine in enumerate(waiting)]
        while crews:
            _wait([crew.pipe for crew in crews])
            crews = [crew for crew in crews if crew.attend(result)]
    if digest(secrets) != before:
        result.losses.append(Loss(-1, "after all cases", "a file of others has changed"))
    return result


def _wait(pipes: Sequence[int]) -> None:
    select.select(pipes, [], [], 1.0)


class _Crew:
    """A process that runs cases, and another one in its place if it ends before they do."""

    def __init__(self, kind: Kind, numbers: list[int], folder: Path, secrets: Path) -> None:
        self.kind, self.numbers, self.folder, self.secrets = kind, numbers, folder, secrets
        self.board = mmap.mmap(-1, 24)  # the case that runs: its position, when it began
        self._start()

    def _start(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        self.board[:16] = struct.pack("qd", 0, time.monotonic())
        self.pipe, write = os.pipe()
        self.text = b""
        self.process = os.fork()
        if self.process == 0:
            os.close(self.pipe)
            _work(self.kind, self.numbers, self.folder, self.secrets, write, self.board)
        os.close(write)

    def attend(self, result: Result) -> bool:
        """Take what the process reports; return False when all of its cases are done."""
        place, began = struct.unpack("qd", self.board[:16])
        if time.monotonic() - began > self.kind.seconds + _PATIENCE:
            os.kill(self.process, signal.SIGKILL)
        ready, _, _ = select.select([self.pipe], [], [], 0)
        if not ready:
            return True
        if block := os.read(self.pipe, 2**20):
            self.text += block
            return True
        return self._ended(result, place)

    def _ended(self, result: Result, place: int) -> bool:
        os.close(self.pipe)
        _, status = os.waitpid(self.process, 0)
        *lines, _ = self.text.decode().split("\n")
        reported = 0
        for line in lines:
            found = json.loads(line)
            reported = found.pop("done")
            losses = [Loss(*loss) for loss in found.pop("losses")]
            result.add(Result(self.kind.name, losses=losses, **found))
        if status == 0 and reported == len(self.numbers):
            return False
        # What ran since the last report runs again, up to the case that ended the process.
        number = self.numbers[place]
        how = f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else f"exit {os.WEXITSTATUS(status)}"
        said = _words(self.kind, number, self.folder)
        result.losses.append(Loss(number, said, f"the process ended by {how}"))
        self.numbers = self.numbers[reported:place] + self.numbers[place + 1 :]
        if self.numbers:
            self._start()
        return bool(self.numbers)


def _words(kind: Kind, number: int, folder: Path) -> str:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return kind.draw(number, folder)


def _work(kind: Kind, numbers: list[int], folder: Path, secrets: Path, pipe: int, board: mmap.mmap) -> None:
    """Run cases in this process, report to `pipe`, and end it."""
    code = 1
    try:
        _settle(folder)
        guard = Guard(folder, secrets)
        result = Result(kind.name)
        for place, number in enumerate(numbers):
            board[:16] = struct.pack("qd", place, time.monotonic())
            _case(kind, number, folder / "case", guard, result)
            if place + 1 == len(numbers) or (place + 1) % _BLOCK == 0:
                _report(result, place + 1, pipe)
                result = Result(kind.name)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _settle(folder: Path) -> None:
    """Let nothing that cases do leave this process: output, caches, memory."""
    sink = os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, 1)
    if not os.environ.get("STRESS_SHOW"):
        os.dup2(sink, 2)
    for name in ("HOME", "XDG_CACHE_HOME", "TMPDIR", "TORCHINDUCTOR_CACHE_DIR"):
        (folder / "home").mkdir(exist_ok=True)
        os.environ[name] = str(folder / "home")
    tempfile.tempdir = None  # known before the fork
    platform.processor()  # asks `uname`, once in a process
    os.chdir(folder)
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    limit_memory()
    signal.signal(signal.SIGALRM, _late)


def _late(signum: int, frame: object) -> None:
    raise Hang


def _report(result: Result, done: int, pipe: int) -> None:
    record = dict(vars(result), done=done, losses=[vars(loss) for loss in result.losses])
    record = {name: value for name, value in record.items() if name not in ("name", "seconds")}
    record["losses"] = [[loss.number, loss.said, loss.what] for loss in result.losses]
    content = (json.dumps(record) + "\n").encode()
    while content:
        content = content[os.write(pipe, content) :]


def _case(kind: Kind, number: int, folder: Path, guard: Guard, result: Result) -> None:
    folder.mkdir()
    said = kind.draw(number, folder)
    inputs = digest(folder)
    base, start = reset_peak(), time.perf_counter()
    signal.alarm(kind.seconds)
    guard.on = True
    try:
        what, outcome = verdict(kind, number, folder)
    except Hang:
        what, outcome = f"hang: more than {kind.seconds} s", ""
    finally:
        guard.on = False
        signal.alarm(0)
    mib, seconds = peak() - base, time.perf_counter() - start
    problems = [what] if what else []
    problems += guard.taken()
    if mib > kind.most_mib:
        problems.append(f"memory: more than {kind.most_mib} MiB")
    if {name: sum_ for name, sum_ in digest(folder).items() if name in inputs} != inputs:
        problems.append("an input changed")
    result.mib, result.slowest = max(result.mib, mib), max(result.slowest, seconds)
    if problems:
        result.losses.append(Loss(number, said[:500], "; ".join(problems)))
    else:
        setattr(result, outcome, getattr(result, outcome) + 1)
    os.chdir(folder.parent)
    shutil.rmtree(folder)


def verdict(kind: Kind, number: int, folder: Path) -> tuple[str, str]:
    """Return what is wrong with how a case ended, or an empty string, and the field of `Result` that counts it."""
    try:
        kind.read(number, folder)
    except LbitclsError as error:
        return fault_of_message(str(error), str(folder)), "refused"
    except NotJudged:
        return "", "unjudged"
    except Hang:
        raise
    except BaseException as error:
        return f"{type(error).__name__}: {str(error)[:200]}\n{_origin(error)}", ""
    return "", "accepted"


def fault_of_message(text: str, folder: str) -> str:
    """Return why a message is not one for a user, or an empty string."""
    if not text.strip():
        return "an empty message"
    if len(text) - text.count(folder) * len(folder) > LONGEST:
        return f"a message of {len(text)} characters: {text[:100]!r}"
    if "Traceback (most recent call last)" in text:
        return f"a traceback in a message: {text[:200]!r}"
    if found := _CONTROL.search(text):
        return f"a control character in a message: {text[max(0, found.start() - 60) : found.end() + 20]!r}"
    return ""


def _origin(error: BaseException) -> str:
    """Return where an error arose: the last places in the package, and the very last."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "lbitcls" in frame.filename][-2:]
    return " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed([*ours, *frames[-1:]]))
