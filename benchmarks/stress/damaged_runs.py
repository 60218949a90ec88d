"""Power loss: each file of a work directory cut off, emptied, filled with other bytes or gone, and the run resumed.

It must continue to the result that it would have had, or say by a message that names the file what is lost, or refuse
in one line and leave all other files as they are.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from stress.endings import Ending, fault_of_end
from stress.guard import digest
from stress.nursery import begin
from stress.trainings import COMMAND, differences

_OWN = (".log", ".lock", ".run.json", ".tmp")  # ends of names of files that each start writes anew, or removes


def _cut(path: Path, draw: random.Random) -> None:
    os.truncate(path, draw.randint(0, max(path.stat().st_size - 1, 0)))


def _empty(path: Path, draw: random.Random) -> None:
    os.truncate(path, 0)


def _fill(path: Path, draw: random.Random) -> None:
    """Write zeros or other bytes over a part, as blocks that the disk never wrote."""
    size = path.stat().st_size
    start = draw.randrange(max(size, 1))
    count = draw.randint(1, max(size - start, 1))
    with path.open("r+b") as file:
        file.seek(start)
        file.write(draw.choice((bytes(count), draw.randbytes(count))))


def _delete(path: Path, draw: random.Random) -> None:
    path.unlink()


DAMAGES: dict[str, Callable[[Path, random.Random], None]] = {
    "cut off": _cut,
    "emptied": _empty,
    "other bytes": _fill,
    "gone": _delete,
}


@dataclass(frozen=True)
class Damage:
    """A file of a work directory, and what happens to it.

    Attributes:
        number: Number of the case.
        state: `interrupted` or `finished`: the state of the run.
        work: Its work directory.
        file: The file, relative to it.
        way: Key of `DAMAGES`.
        alone: False: other names of the same file (hard links) show the damage too.
        verb: `resume` or `test`.
    """

    number: int
    state: str
    work: Path
    file: str
    way: str
    alone: bool
    verb: str = "resume"


def draw_damages(works: dict[str, Path], scale: float, seed: int) -> list[Damage]:
    """Return the cases: at scale 1 each file in each way; more repeat them with other bytes, fewer leave some out."""
    kinds = [kind for state, work in works.items() for kind in _kinds(state, work)]
    random.Random(f"damages {seed}").shuffle(kinds)
    count = max(1, round(scale * len(kinds)))
    return [Damage(seed * 10**6 + place, *kinds[place % len(kinds)]) for place in range(count)]


def _kinds(state: str, work: Path) -> Iterator[tuple[str, Path, str, str, bool, str]]:
    seen: set[int] = set()
    for path in sorted(path for path in work.rglob("*") if path.is_file() and path.name != ".run.lock"):
        alone = path.stat().st_ino in seen
        seen.add(path.stat().st_ino)
        for way in DAMAGES:
            yield state, work, str(path.relative_to(work)), way, alone, "resume"
            if path.suffix == ".pth" and state == "finished":
                yield state, work, str(path.relative_to(work)), way, True, "test"


def copy_of(work: Path, target: Path) -> None:
    """Copy a work directory with its times, and with names of one file as names of one file."""
    known: dict[int, Path] = {}
    for path in sorted(work.rglob("*")):
        place = target / path.relative_to(work)
        if path.is_dir():
            place.mkdir(parents=True)
        elif (inode := path.stat().st_ino) in known:
            os.link(known[inode], place)
        else:
            place.parent.mkdir(parents=True, exist_ok=True)
            known[inode] = Path(shutil.copy2(path, place))


def resume_damaged(above: Path, reference: Path, measured: dict[str, str], case: Damage) -> Ending:
    """Damage a copy of a work directory and run the command.

    Args:
        above: Folder for the copy.
        reference: Work directory of the run that nothing has ended.
        measured: Results of `lbitcls test` on its checkpoints, by name.
        case: The damage.
    """
    folder, start = above / f"damage {case.number}", time.monotonic()
    folder.mkdir()
    shutil.copy2(case.work.parent / "config.py", folder)
    copy_of(case.work, folder / "work")
    path, draw = folder / "work" / case.file, random.Random(f"damage {case.number}")
    if case.alone and path.stat().st_nlink > 1:
        shutil.copy2(path, folder / "copy")
        (folder / "copy").replace(path)
    DAMAGES[case.way](path, draw)
    if case.verb == "test":
        loss, told = _test(folder, case, measured[case.file])
    else:
        loss, told = _resume(folder, reference, case)
    if not loss:
        shutil.rmtree(folder)
    row = f"a checkpoint {case.way}, lbitcls test" if case.verb == "test" else f"{case.state} run, a file {case.way}"
    said = f"damage {case.number}: {case.state}, {case.file} {case.way}{' alone' * case.alone}, {case.verb}"
    return Ending(row, case.number, said, loss, told, time.monotonic() - start)


def _resume(folder: Path, reference: Path, case: Damage) -> tuple[str, bool]:
    """Return what is wrong, or an empty string, and True if a message tells of another result."""
    work = folder / "work"
    before = _lasting(work)
    child = begin(COMMAND, folder)
    code = child.code()
    if fault := fault_of_end(code, child.errors, {0, 1, 2}, str(folder)):
        return fault, False
    after = _lasting(work)
    said = [text for text in child.output.splitlines() if "WARNING" in text] + child.errors.splitlines()
    told = any(sign in text for sign in (Path(case.file).name, "cannot resume from any") for text in said)
    if code:
        changed = sorted(name for name in before if before[name] != after.get(name) and name != case.file)
        if changed:
            return f"it refuses, but {', '.join(changed)} has changed", told
        return ("" if told else f"a refusal that does not name the file: {child.errors[-300:]}"), told
    untouched = before.get(case.file) == after.get(case.file)  # not read, and not lost either
    found = [text for text in differences(reference, work) if not (untouched and case.file in text)]
    found = [text for text in found if not re.fullmatch(r"additional: (epoch|iter)_\d+\.pth", text)]  # an older one
    if found and not told:
        return f"without a message: {'; '.join(found)[:600]}", False
    return "", bool(found)


def _lasting(work: Path) -> dict[str, str]:
    return {name: sum_ for name, sum_ in digest(work).items() if not name.endswith(_OWN)}


def _test(folder: Path, case: Damage, measured: str) -> tuple[str, bool]:
    child = begin(("test", "config.py", f"work/{case.file}", "--out", "out.json"), folder)
    code = child.code()
    fault = fault_of_end(code, child.errors, {0, 1}, str(folder))
    if not fault and code and Path(case.file).name not in child.errors:
        fault = f"a refusal that does not name the file: {child.errors[-300:]}"
    if not fault and not code and (folder / "out.json").read_text() != measured:
        fault = "other results, without a message"
    return fault, bool(code)
