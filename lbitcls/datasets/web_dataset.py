"""Images in tar files, "shards", in the format of WebDataset: `dict(type='WebDataset', data_prefix='train-*.tar')`.

A sample is the files of one name before the first dot: `0001.jpg`, and its label in `0001.cls` or `0001.json`. The
shards are indexed once, when the data set is built; then each image is read by its position. So the order is the
loader's, seeded and shuffled over all shards, and a run resumes as with any other data set; a stream's could not.
"""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lbitcls.datasets.base import BaseDataset, read_class_names
from lbitcls.datasets.pipelines.decode import as_image
from lbitcls.datasets.pipelines.pillow import UnreadableImage
from lbitcls.datasets.root import Roots, find_data, search_roots
from lbitcls.registry import DATASETS
from lbitcls.utils.errors import ConfigError, DataError, require_list, shown
from lbitcls.utils.files import open_regular

IMAGES = ("jpg", "jpeg", "png", "webp", "bmp", "ppm", "tif", "tiff", "gif")
LABELS = ("cls", "json")
_RANGE = re.compile(r"\{(\d{1,18})\.\.(\d{1,18})\}")
_MOST_SHARDS = 100_000
_LONGEST = 2**20  # bytes of a label's file
_DIGITS = 18  # of a label


@DATASETS.register_module()
class WebDataset(BaseDataset):
    """Data set of images in uncompressed tar files.

    Args:
        data_prefix: Shards: a file, a pattern (`train-*.tar`), or a range (`train-{0000..0011}.tar`), or a list of
            these; searched for below the data roots.
        pipeline: Steps, as in a config.
        classes: Class names, or a file with one name per line; None: unknown.
        label_key: Key of the label in `.json` files, an integer.
        on_error: See `BaseDataset`.
        data_root: See `build_dataset`.

    Raises:
        DataError: A shard is missing, compressed or damaged, a sample has no label, or a label is not a class.
    """

    def __init__(
        self,
        data_prefix: str | list[str],
        pipeline: Sequence[Any] = (),
        classes: list[str] | str | None = None,
        label_key: str = "label",
        on_error: str = "raise",
        data_root: Roots = None,
    ) -> None:
        names = read_class_names(classes)
        self._shards = _find_shards(data_prefix, search_roots(data_root))
        places: list[tuple[int, int, int]] = []
        labels: list[int] = []
        self._names: list[str] = []
        for number, shard in enumerate(self._shards):
            for name, place, label in _samples(shard, label_key):
                if names is not None and label >= len(names):
                    raise DataError(
                        f"{shard}: {name} has the label {label}; it must be below {len(names)}, the classes."
                    )
                places.append((number, *place))
                labels.append(label)
                self._names.append(name)
        super().__init__(labels, pipeline, names, on_error)
        self._places = np.asarray(places, dtype=np.int64)

    def describe(self, index: int) -> str:
        return f"{self._shards[int(self._places[index, 0])]}/{self._names[index]}"

    def info(self, index: int) -> dict[str, Any]:
        shard, start, size = (int(value) for value in self._places[index])
        try:
            with open_regular(self._shards[shard]) as file:
                file.seek(start)
                data = file.read(size)
            image = as_image(Image.open(io.BytesIO(data)))
        except Exception as error:  # Pillow raises many kinds for damaged images
            why = str(error) or type(error).__name__
            raise UnreadableImage(f"{self.describe(index)}: cannot read this image: {why}.") from error
        return {"img": image, "filename": self.describe(index)}


def _find_shards(given: str | list[str], roots: Sequence[Path]) -> list[Path]:
    """Return the shards in order: as listed, those of a pattern by name."""
    patterns = [given] if isinstance(given, str) else require_list("WebDataset: data_prefix", given)
    found = [shard for pattern in patterns for text in _expanded(pattern) for shard in _matching(text, roots)]
    return list(dict.fromkeys(found))


def _expanded(pattern: Any) -> Iterator[str]:
    """Yield the names of a pattern with ranges: `a-{08..10}.tar` is `a-08.tar`, `a-09.tar`, `a-10.tar`."""
    if not isinstance(pattern, str) or not pattern:
        raise ConfigError(f"WebDataset: data_prefix must be a text, or a list of texts; got {shown(pattern)}.")
    ranges = [(first, int(first), int(last)) for first, last in _RANGE.findall(pattern)]
    total = 1
    for _, low, high in ranges:
        total *= max(0, high - low + 1)
    if not 0 < total <= _MOST_SHARDS:
        raise ConfigError(
            f"WebDataset: data_prefix must name 1 to {_MOST_SHARDS:,} shards; '{pattern}' names {total:,}."
        )
    texts = _RANGE.split(pattern)[::3]
    for numbers in product(*(range(low, high + 1) for _, low, high in ranges)):
        filled = [str(number).zfill(len(first)) for number, (first, _, _) in zip(numbers, ranges, strict=True)]
        yield "".join(text + number for text, number in zip(texts, [*filled, ""], strict=True))


def _matching(name: str, roots: Sequence[Path]) -> list[Path]:
    """Return the shard `name`, or those that match it as a pattern, from the first root that has any."""
    if not any(mark in name for mark in "*?["):
        return [find_data(name, roots, "WebDataset")]
    path = Path(name).expanduser()
    places = [(Path(path.anchor), path.relative_to(path.anchor))] if path.is_absolute() else [(r, path) for r in roots]
    if any("**" in part and part != "**" for part in path.parts):
        raise ConfigError(
            f"WebDataset: data_prefix must have '**' as a whole part of the path, or not at all; got '{name}'."
        )
    for root, pattern in places:
        if found := sorted(one for one in root.glob(str(pattern)) if one.is_file()):
            return found
    raise DataError(f"WebDataset: no file matches '{name}' in {', '.join(str(root.absolute()) for root, _ in places)}.")


def _samples(shard: Path, label_key: str) -> Iterator[tuple[str, tuple[int, int], int]]:
    """Yield name, (start, size) in bytes, and label of each image of a shard, in its order.

    Raises:
        DataError: The file is not an uncompressed tar file, or a sample lacks its label.
    """
    images: dict[str, tuple[str, tuple[int, int]]] = {}
    labels: dict[str, int] = {}
    try:
        with open_regular(shard) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                stem, _, suffix = member.name.rpartition("/")[2].partition(".")
                key = f"{member.name.rpartition('/')[0]}/{stem}"
                if not member.isreg() or member.sparse is not None or suffix.lower() not in (*IMAGES, *LABELS):
                    continue
                if suffix.lower() in IMAGES:
                    images[key] = member.name, (member.offset_data, member.size)
                elif member.size <= _LONGEST and (data := tar.extractfile(member)) is not None:
                    labels[key] = _label(data.read(), suffix.lower(), label_key, f"{shard}: {member.name}")
    except (OSError, tarfile.TarError, ValueError) as error:
        raise DataError(
            f"{shard} cannot be read as a shard, an uncompressed tar file of images and labels "
            f"({type(error).__name__}: {error})."
        ) from error
    for key, (name, place) in images.items():
        if key not in labels:
            raise DataError(f"{shard}: {name} has no label; expected a file of its name with .cls, or .json.")
        yield name, place, labels[key]


def _label(data: bytes, suffix: str, key: str, name: str) -> int:
    """Return the label in a file of a shard; `name` is that of the file, for messages.

    Raises:
        DataError: It contains none.
    """
    try:
        text = data.decode("utf-8")
        value = json.loads(text)[key] if suffix == "json" else text.strip()
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        expected = f"JSON with an integer under '{key}'" if suffix == "json" else "an integer"
        raise DataError(f"{name} contains no label; expected {expected} ({type(error).__name__}: {error}).") from error
    if type(value) is int and 0 <= value < 10**_DIGITS:
        return value
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= _DIGITS:
        return int(value)
    raise DataError(f"{name}: a label must be an integer ≥ 0; got {shown(value)}.")
