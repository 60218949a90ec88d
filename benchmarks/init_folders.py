"""Folders of images for `init_recipe.py`, extracted from CIFAR-10, MNIST, and ants and bees."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

CIFAR10 = ("airplane", "bird", "cat", "deer", "dog")
FOLDERS = {
    "cifar10_500": f"CIFAR-10: {', '.join(CIFAR10)}; 100 images of each for training, 200 for validation",
    "cifar10_2000": "the same classes: 400 images of each for training, the same 200 for validation",
    "mnist_300": "MNIST: 30 images of each digit for training, 100 for validation",
    "hymenoptera": "ants and bees: 244 and 153 images",
}
PARTS = ("train", "val")
NUMBERS = {"cifar10_500": (100, 200), "cifar10_2000": (400, 200), "mnist_300": (30, 100), "hymenoptera": ()}
"""Images per class of `train` and `val`."""


def image_folder(name: str, data_root: Path, work: Path) -> Path:
    """Return the folder of images `name` in `work`, with `train` and `val`; extract it if it does not exist."""
    folder = work / name
    if not (folder / "complete").exists():
        writer = {"cifar10": _cifar10, "mnist": _mnist, "hymenoptera": _hymenoptera}[name.split("_")[0]]
        for file, content in writer(data_root, *NUMBERS[name]):
            path = folder / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        (folder / "complete").touch()
    return folder


def _members(archive: Path) -> Iterator[tuple[PurePosixPath, bytes]]:
    with tarfile.open(archive) as tar:
        for member in tar:
            file = tar.extractfile(member)
            if file is not None:
                yield PurePosixPath(*PurePosixPath(member.name).parts[1:]), file.read()


def _hymenoptera(data_root: Path) -> Iterator[tuple[str, bytes]]:
    for path, content in _members(data_root / "hymenoptera_256.tar.gz"):
        if len(path.parts) == 3:
            yield str(path), content


def _cifar10(data_root: Path, *numbers: int) -> Iterator[tuple[str, bytes]]:
    """Yield the first files of each class, by name: those of the training set, and for `val` those of the test set."""
    found = {path: content for path, content in _members(data_root / "cifar10_jpg.tar.gz") if len(path.parts) == 3}
    for part, number in zip(PARTS, numbers, strict=True):
        for kind in CIFAR10:
            given = "train" if part == "train" else "test"
            paths = sorted(path for path in found if path.parts[:2] == (given, kind))
            yield from ((f"{part}/{kind}/{path.name}", found[path]) for path in paths[:number])


def _mnist(data_root: Path, *numbers: int) -> Iterator[tuple[str, bytes]]:
    import io

    import numpy as np
    from PIL import Image

    from lbitcls.datasets.mnist import read_idx

    for (part, number), given in zip(zip(PARTS, numbers, strict=True), ("train", "t10k"), strict=True):
        images, labels = (
            read_idx(data_root / "MNIST/raw" / f"{given}-{kind}.gz")
            for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")
        )
        for digit in range(10):
            for index in np.flatnonzero(labels == digit)[:number]:
                file = io.BytesIO()
                Image.fromarray(images[index]).save(file, "PNG")
                yield f"{part}/{digit}/{index:05d}.png", file.getvalue()
