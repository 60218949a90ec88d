"""Part `big`: a list of a million images and a tree of 200,000 are indexed in seconds and in little memory."""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from stress.verdicts import Measured

LINES, CLASSES, EACH = 1_000_000, 1000, 200
"""Lines of the list file; class folders of the tree, and files in each."""
MOST_SECONDS, MOST_MIB = 5.0, 300.0
"""Processor time, and growth of the process's memory, that indexing may take."""
HEAD = "| index of | images | processor time, s | most MiB | losses | s |\n|---|--:|--:|--:|--:|--:|"
_NAMES = [f"n{number:08}" for number in range(CLASSES)]


def write_list(folder: Path, lines: int) -> None:
    """Write a list file of images in class folders, which do not exist."""
    with open(folder / "list.txt", "w", encoding="utf-8") as file:
        for label, name in enumerate(_NAMES):
            file.writelines(f"{name}/{name}_{image:05}.JPEG {label}\n" for image in range(lines // CLASSES))


def write_tree(folder: Path, each: int) -> None:
    """Write class folders of empty files."""
    for name in _NAMES:
        (folder / "tree" / name).mkdir(parents=True)
        for image in range(each):
            open(folder / "tree" / name / f"{name}_{image:05}.JPEG", "wb").close()


def _list_folder(folder: Path) -> Any:
    from lbitcls.datasets.folder import ImageFolder

    return ImageFolder(str(folder), ann_file="list.txt", classes=_NAMES)


def _list_imagenet(folder: Path) -> Any:
    from lbitcls.datasets.imagenet import ImageNetV1

    return ImageNetV1(str(folder), ann_file="list.txt")


def _tree_folder(folder: Path) -> Any:
    from lbitcls.datasets.folder import ImageFolder

    return ImageFolder(str(folder / "tree"))


def _tree_imagenet(folder: Path) -> Any:
    from lbitcls.datasets.imagenet import ImageNet

    return ImageNet(str(folder / "tree"))


BUILDERS: dict[str, tuple[Callable[[Path], Any], bool]] = {
    "list, ImageFolder": (_list_folder, True),
    "list, ImageNetV1": (_list_imagenet, True),
    "tree, ImageFolder": (_tree_folder, False),
    "tree, ImageNet": (_tree_imagenet, False),
}
"""Functions that index the folder, and True if they read its list."""


def run(args: argparse.Namespace) -> list[Measured]:
    """Index both with each data set, each in a process of its own; `args.scale` below 1 makes both smaller."""
    scale = min(1.0, args.scale)
    lines, each = max(1, round(LINES // CLASSES * scale)) * CLASSES, max(1, round(EACH * scale))
    results = []
    with tempfile.TemporaryDirectory(prefix="lbitcls-stress-") as name:
        folder = Path(name)
        write_list(folder, lines)
        write_tree(folder, each)
        for what, (build, is_list) in BUILDERS.items():
            results.append(_indexed(what, build, folder, lines if is_list else CLASSES * each))
            print(line(results[-1]), flush=True)
    return results


def _indexed(what: str, build: Callable[[Path], Any], folder: Path, images: int) -> Measured:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    child = context.Process(target=index, args=(build, folder, theirs))
    start = time.monotonic()
    child.start()
    theirs.close()
    try:
        seconds, mib, found = ours.recv()
    except EOFError:
        return Measured(what, (f"{images:,}", "–", "–"), ["the process ended"])
    finally:
        child.join()
    losses = []
    if found != images:
        losses.append(f"{found} images instead of {images}")
    if seconds > MOST_SECONDS:
        losses.append(f"{seconds:.1f} s of processor time; at most {MOST_SECONDS:g} may be")
    if mib > MOST_MIB:
        losses.append(f"{mib:.0f} MiB; at most {MOST_MIB:g} may be")
    return Measured(what, (f"{images:,}", f"{seconds:.1f}", f"{mib:.0f}"), losses, time.monotonic() - start)


def index(build: Callable[[Path], Any], folder: Path, pipe: Connection) -> None:
    """Build a data set in this process; send its processor time in s, its memory in MiB, and its length."""
    import lbitcls.datasets.folder
    import lbitcls.datasets.imagenet  # noqa: F401  # before the measurement
    from stress.guard import peak, reset_peak

    base, start = reset_peak(), time.process_time()
    dataset = build(folder)
    pipe.send((time.process_time() - start, peak() - base, len(dataset)))


def line(result: Measured) -> str:
    """Return a result as a row of the table."""
    return result.row()
