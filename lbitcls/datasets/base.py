"""Base classes of data sets: labels, class names, a pipeline, and samples that depend on (seed, epoch, index).

A custom data set derives from `FileDataset` (paths and labels) or `MemoryDataset` (images and labels), is
registered with `@DATASETS.register_module()` and is built from a config's `data.train`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from lbitcls.datasets.listing import Paths
from lbitcls.datasets.pipelines.compose import Compose
from lbitcls.datasets.pipelines.formatting import Collect, to_float
from lbitcls.datasets.pipelines.pillow import UnreadableImage
from lbitcls.datasets.rng import epoch_key, fold, fold_array
from lbitcls.utils.errors import ConfigError, DataError, suggest
from lbitcls.utils.files import read_lines

Key = int | tuple[int, int]

LEAVE_OUT = "To skip such images, set on_error='skip' in the data set."

logger = logging.getLogger("lbitcls")


class BaseDataset(Dataset):
    """Labeled set of images.

    Args:
        labels: Class of each sample, integers (N,).
        pipeline: Steps, as in a config. If it does not end in a `Collect`, the image and its label are collected.
        class_names: Class names in label order, or None if unknown.
        on_error: Action of a loader on an unreadable image: `'raise'`, or `'skip'` (the batch gets smaller and
            `skipped` records the message).

    Attributes:
        labels: int64 array (N,).
        CLASSES: Tuple of str, or None.
        seed: Augmentation seed for samples accessed by `ds[key]`; a loader has its own.
        skipped: Message for each image that a loader skipped, by index.
        images: uint8 (N, C, H, W) if the images are in memory, else None.
    """

    # Not annotated with a value: a subclass may define its names on the class (`ImageNet.CLASSES`).
    CLASSES: Any = None
    images: Tensor | None = None

    def __init__(
        self,
        labels: Sequence[int] | np.ndarray,
        pipeline: Sequence[Any],
        class_names: Sequence[str] | None = None,
        on_error: str = "raise",
    ) -> None:
        if on_error not in ("raise", "skip"):
            raise ConfigError(
                f"on_error must be 'raise' or 'skip'; got {on_error!r}{suggest(str(on_error), ['raise', 'skip'])}"
            )
        self.labels = np.asarray(labels, dtype=np.int64)
        if not len(self.labels):
            raise DataError(f"{type(self).__name__} has no images.")
        if class_names is not None:
            self.CLASSES = tuple(class_names)
        if not isinstance(pipeline, Sequence) or isinstance(pipeline, str):
            raise ConfigError(f"{type(self).__name__}: pipeline must be a list of steps; got {pipeline!r}.")
        steps = list(pipeline)
        if not any(_is_collect(step) for step in steps):
            steps.append(Collect(keys=["img", "gt_label"]))
        self.pipeline = Compose(steps)
        self.on_error = on_error
        self.seed = 0
        self.skipped: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, key: Key) -> dict[str, Any]:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} is outside a data set of {len(self)} samples")
        return self.sample(self.seed, epoch, index % len(self))

    def describe(self, index: int) -> str:
        """Return the path or name of a sample."""
        raise NotImplementedError

    def info(self, index: int) -> dict[str, Any]:
        """Return the dict that the pipeline starts from."""
        raise NotImplementedError

    def sample(self, seed: int, epoch: int, index: int) -> dict[str, Any]:
        """Return one sample: `img` float32 (C, H, W), `gt_label` int64 (), and anything else the pipeline collects.

        Raises:
            UnreadableImage: The image is missing or corrupt.
        """
        start = self.info(index)
        start["gt_label"] = self.labels[index]
        sample = self.pipeline(start, key=fold(epoch_key(seed, epoch), index))
        sample["img"] = to_float(sample["img"])
        sample["gt_label"] = torch.tensor(self.labels[index])
        return sample

    @property
    def batchwise(self) -> bool:
        """True if `batch` can be used: images in memory, and a batch form of every pipeline step."""
        return self.images is not None and self.pipeline.batchwise

    def batch(self, seed: int, epoch: int, indices: np.ndarray) -> dict[str, Any]:
        """Return the samples `indices`, int64 (N,), at once; equal to the results of `sample` one by one."""
        assert self.images is not None
        keys = fold_array(epoch_key(seed, epoch), indices)
        img = self.pipeline.batch(self.images[torch.from_numpy(indices)], keys)
        return {"img": to_float(img), "gt_label": torch.from_numpy(self.labels[indices])}


def _is_collect(step: Any) -> bool:
    return isinstance(step, Collect) or (isinstance(step, dict) and step.get("type") in ("Collect", Collect))


class FileDataset(BaseDataset):
    """Data set of image files.

    Args:
        paths: Path of each image.
        in_memory: Decode all images when the data set is built and keep them as bytes; they must be of one size.
            They are then augmented batch by batch.

    The other arguments are those of `BaseDataset`.
    """

    def __init__(
        self,
        paths: Sequence[str] | Paths,
        labels: Sequence[int] | np.ndarray,
        pipeline: Sequence[Any],
        class_names: Sequence[str] | None = None,
        on_error: str = "raise",
        in_memory: bool = False,
    ) -> None:
        super().__init__(labels, pipeline, class_names, on_error)
        self._paths = paths if isinstance(paths, Paths) else Paths(paths)
        if in_memory:
            self.images = self._read_all()

    def describe(self, index: int) -> str:
        return self._paths[index]

    def info(self, index: int) -> dict[str, Any]:
        if self.images is not None:
            return {"img": self.images[index], "filename": self.describe(index)}
        return {"img_info": {"filename": self.describe(index)}, "img_prefix": None}

    def _read_all(self) -> Tensor:
        """Read all images, uint8 (N, C, H, W); with `on_error='skip'`, drop unreadable ones from the data set."""
        images, kept = [], []
        for index in range(len(self)):
            try:
                images.append(self.pipeline.load(self.describe(index)))
                kept.append(index)
            except UnreadableImage as error:
                if self.on_error == "raise":
                    raise UnreadableImage(f"{error} {LEAVE_OUT}") from error
                self.skipped[index] = str(error)
        sizes = sorted({tuple(image.shape) for image in images})
        if len(sizes) != 1:
            raise DataError(
                f"{type(self).__name__}(in_memory=True) needs readable images of one size; found "
                f"{', '.join(map(str, sizes[:4])) or 'none'}{', …' if len(sizes) > 4 else ''} (C, H, W)."
            )
        if self.skipped:
            logger.warning("Leaving out %d of %d images that cannot be read.", len(self.skipped), len(self))
        self._paths, self.labels = Paths([self._paths[index] for index in kept]), self.labels[kept]
        return torch.stack(images)


class MemoryDataset(BaseDataset):
    """Data set of images in memory.

    Args:
        images: uint8 (N, C, H, W), RGB or grayscale.
        name: Name of a sample's source in messages (`"MNIST train"`).

    The other arguments are those of `BaseDataset`.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Sequence[int] | np.ndarray,
        pipeline: Sequence[Any],
        class_names: Sequence[str] | None = None,
        on_error: str = "raise",
        name: str = "",
    ) -> None:
        super().__init__(labels, pipeline, class_names, on_error)
        self.images = images
        self.name = name or type(self).__name__

    def describe(self, index: int) -> str:
        return f"{self.name}[{index}]"

    def info(self, index: int) -> dict[str, Any]:
        assert self.images is not None
        return {"img": self.images[index], "filename": self.describe(index)}


def resolve_split(owner: str, split: str | None, train: bool | None, test_mode: bool | None) -> str:
    """Return `'train'` or `'test'` from the three keys that configs use for it; `'train'` if none is given.

    Args:
        owner: Name of the data set, for messages.
        split: `'train'` or `'test'`.
        train: torchvision's key.
        test_mode: mmcls's key.

    Raises:
        ConfigError: Another split, or keys that contradict each other.
    """
    if split not in (None, "train", "test"):
        raise ConfigError(f"{owner}: split must be 'train' or 'test'; got {split!r}.")
    said = {
        f"split={split!r}": split,
        f"train={train}": None if train is None else ("train" if train else "test"),
        f"test_mode={test_mode}": None if test_mode is None else ("test" if test_mode else "train"),
    }
    given = {key: value for key, value in said.items() if value is not None}
    if len(set(given.values())) > 1:
        raise ConfigError(f"{owner}: {' and '.join(given)} contradict each other; give only one of them.")
    return next(iter(given.values()), "train")


def read_class_names(classes: Sequence[str] | str | None) -> tuple[str, ...] | None:
    """Return class names from a config's value: a list, the path of a text file with one name per line, or None."""
    if classes is None:
        return None
    if not isinstance(classes, str):
        return tuple(classes)
    try:
        lines = read_lines(Path(classes).expanduser())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"classes must be a list of names, or a file with one name per line; {error}.") from error
    return tuple(line.strip() for line in lines if line.strip())
