"""Survey of a folder of images: its parts and classes, and each image's size, readability and duplicates."""

from __future__ import annotations

import hashlib
import os
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np

from lbitcls.datasets.listing import class_folders, images_of_classes
from lbitcls.datasets.pipelines.decode import read_image
from lbitcls.datasets.pipelines.pillow import UnreadableImage
from lbitcls.utils.errors import DataError, suggest
from lbitcls.utils.files import open_regular
from lbitcls.utils.logging import track

PARTS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
_CHUNK = 64  # images per thread between two checks of the time limit


@dataclass(frozen=True)
class Image:
    """Image in the folder.

    Attributes:
        name: Path relative to the folder, with `/`.
        part: `train`, `val` or `test`.
        kind: Class name.
        size: (width, height) in pixels; None if the image was not read or is unreadable.
        digest: Hash of the file's bytes; empty if it was not read.
        error: Reason why the image is unusable; empty if none was found.
    """

    name: str
    part: str
    kind: str
    size: tuple[int, int] | None = None
    digest: str = ""
    error: str = ""


@dataclass(frozen=True)
class Survey:
    """Content of a folder of images.

    Attributes:
        root: Folder of the parts, or of the class folders if there are no parts.
        parts: Folder of each existing part; empty if there are class folders only.
        classes: Sorted names of the classes that have training images.
        images: All images.
        empty: Class folders without images, relative to `root`.
        checked: Number of images that were read.
    """

    root: Path
    parts: dict[str, Path]
    classes: tuple[str, ...]
    images: tuple[Image, ...]
    empty: tuple[str, ...]
    checked: int

    def counts(self, part: str) -> Counter[str]:
        """Return the number of usable images of each class in a part."""
        return Counter(image.kind for image in self.images if image.part == part and not image.error)

    def unreadable(self) -> list[Image]:
        """Return the unusable images."""
        return [image for image in self.images if image.error]

    def twins(self) -> list[list[Image]]:
        """Return the groups of images with identical bytes."""
        groups = defaultdict(list)
        for image in self.images:
            if image.digest and not image.error:
                groups[image.digest].append(image)
        return [group for group in groups.values() if len(group) > 1]


def survey_folder(folder: str | Path, workers: int | None = None, time_limit: float = 120.0) -> Survey:
    """Survey a folder of images: class folders, or `train` and `val` (and `test`) with class folders in them.

    Args:
        folder: Folder to survey; if its only content is one folder of such folders, that one is surveyed instead.
        workers: Number of threads that read images; None: one per core.
        time_limit: Seconds after which no more images are read; the reading order mixes the classes.

    Raises:
        DataError: The folder is missing or has fewer than two classes with images, or a part has a class that `train`
            lacks.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        near = [p.name for p in root.parent.iterdir() if p.is_dir()] if root.parent.is_dir() else []
        raise DataError(f"there is no folder {root}{suggest(root.name, near)}")
    root = _innermost(root)
    if printable(root) != str(root):
        raise DataError(f"the folder name {printable(root)} is not UTF-8, so a config cannot contain it; rename it.")
    parts = _parts(root)
    found, empty = _listed(root, parts or {"train": root})
    if len({image.kind for image in found if image.part == "train"}) < 2:
        raise DataError(
            f"{root} contains {_described(root)}; expected two or more class folders with images in them, or train/ "
            "and val/ with such folders."
        )
    images, checked = _examined(root, found, workers or os.cpu_count() or 1, time_limit)
    classes = sorted({image.kind for image in images if image.part == "train" and not image.error})
    _check_classes(images, classes)
    return Survey(root, parts, tuple(classes), tuple(images), tuple(empty), checked)


def _innermost(root: Path) -> Path:
    """Return `root`, or the folder of folders that is its only content, as in many archives."""
    while len(names := class_folders(root)) == 1 and len(class_folders(root / names[0])) > 0:
        root = root / names[0]
    return root


def _parts(root: Path) -> dict[str, Path]:
    """Return the folder of each part; empty if no folder is called `train`."""
    by_name = {name.lower(): root / name for name in class_folders(root)}
    found = {part: by_name[name] for part, names in PARTS.items() for name in names[::-1] if name in by_name}
    return found if "train" in found else {}


def _listed(root: Path, parts: dict[str, Path]) -> tuple[list[Image], list[str]]:
    """Return the images of all parts, not yet read, and the class folders without images."""
    images, empty = [], []
    for part, folder in parts.items():
        for kind, paths in images_of_classes(folder, class_folders(folder)).items():
            names = [Path(path).relative_to(root).as_posix() for path in paths]
            here = [Image(name, part, kind, error=_bad_name(name)) for name in names]
            if here and all(image.error for image in here):
                raise DataError(f"the class folder {printable(folder / kind)} cannot be listed: {here[0].error}.")
            images += here
            if not names:
                empty.append((folder / kind).relative_to(root).as_posix())
    return images, empty


def _bad_name(name: str) -> str:
    """Return the reason why a list file cannot contain the name; empty if it can."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return "its name is not UTF-8; rename it"
    return "" if name == name.strip() and len(name.splitlines()) == 1 else "line breaks or outer spaces in its name"


def printable(path: str | Path) -> str:
    """Return a path with escapes instead of bytes that are not UTF-8, which a terminal may refuse."""
    return str(path).encode("utf-8", "backslashreplace").decode()


def _described(root: Path) -> str:
    folders = class_folders(root)
    shown = ", ".join(folders[:3]) + (", …" if len(folders) > 3 else "")
    return f"the folders {shown}" if folders else "no folders"


def _examined(root: Path, images: Sequence[Image], workers: int, time_limit: float) -> tuple[list[Image], int]:
    """Return the images with the facts found by reading them, and the number of images read."""
    end = time.monotonic() + time_limit
    order = iter(np.random.default_rng(0).permutation(len(images)).tolist())
    examined, done = list(images), 0
    with ThreadPoolExecutor(workers) as pool:

        def read() -> Iterable[tuple[int, Image]]:
            while time.monotonic() < end and (chunk := list(islice(order, _CHUNK * workers))):
                yield from zip(chunk, pool.map(lambda index: _read(root, images[index]), chunk), strict=True)

        for index, image in track(read(), len(images), "reading images"):
            examined[index] = image
            done += 1
    return examined, done


def _read(root: Path, image: Image) -> Image:
    if image.error:
        return image
    path = root / image.name
    try:
        digest = hashlib.blake2b(digest_size=16)
        with open_regular(path) as file:
            while block := file.read(2**20):
                digest.update(block)
        _, height, width = read_image(str(path)).shape
    except (UnreadableImage, OSError) as error:
        return replace(image, error=str(error.__cause__ or error))
    return replace(image, size=(width, height), digest=digest.hexdigest())


def _check_classes(images: Sequence[Image], classes: Sequence[str]) -> None:
    if len(classes) < 2:
        raise DataError(f"classes with readable images: {len(classes)}; training needs two.")
    for image in images:
        if image.kind not in classes and image.part != "train" and not image.error:
            raise DataError(
                f"{image.name} belongs to the class '{image.kind}', which has no training images"
                f"{suggest(image.kind, classes)}"
            )


def split_images(images: Sequence[Image], part: float) -> tuple[list[Image], list[Image]]:
    """Split images into training and validation images: the same on every machine, identical images together.

    A class with a single image is used for training only.

    Args:
        images: Usable images.
        part: Validation fraction of each class, above 0 and below 1.
    """
    groups: dict[str, list[Image]] = defaultdict(list)
    for image in sorted(images, key=lambda image: image.name):
        groups[image.digest or image.name].append(image)
    by_class: dict[str, list[list[Image]]] = defaultdict(list)
    for group in groups.values():
        by_class[group[0].kind].append(group)
    train, val = [], []
    for kind in sorted(by_class):
        shuffled = sorted(by_class[kind], key=lambda group: hashlib.blake2b(group[0].name.encode()).digest())
        number = min(max(1, round(part * len(shuffled))), len(shuffled) - 1)
        val += [image for group in shuffled[:number] for image in group]
        train += [image for group in shuffled[number:] for image in group]
    return sorted(train, key=lambda image: image.name), sorted(val, key=lambda image: image.name)
