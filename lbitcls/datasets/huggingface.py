"""Data sets of Hugging Face's package `datasets`: `dict(type='HuggingFaceDataset', data_prefix='flowers')`."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from lbitcls.datasets.base import BaseDataset
from lbitcls.datasets.pipelines.decode import as_image
from lbitcls.datasets.pipelines.pillow import UnreadableImage
from lbitcls.datasets.root import Roots, find_data, search_roots
from lbitcls.registry import DATASETS
from lbitcls.utils.errors import ConfigError, DataError, reason_of, suggest
from lbitcls.utils.extras import import_extra

_NO_DOWNLOAD = "It is not downloaded: load it with the package datasets, and save it there with save_to_disk."


@DATASETS.register_module()
class HuggingFaceDataset(BaseDataset):
    """Data set on disk with a column of images and a column of labels, read by position, in its own order.

    Only local files are read, and no code of the data set runs.

    Args:
        data_prefix: Folder that `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote, a Parquet file, or a folder
            of Parquet files; searched for below the data roots.
        pipeline: Steps, as in a config.
        split: Split of a `DatasetDict`; of a folder of Parquet files those whose name starts with it.
        image: Name of the column with the images.
        label: Name of the column with the labels, integers.
        on_error: See `BaseDataset`.
        data_root: See `build_dataset`.

    Raises:
        ConfigError: There is no such split or column.
        DataError: The files are missing or damaged, or a label is not a class.
        DependencyError: The package datasets is not installed.
    """

    def __init__(
        self,
        data_prefix: str,
        pipeline: Sequence[Any] = (),
        split: str = "train",
        image: str = "image",
        label: str = "label",
        on_error: str = "raise",
        data_root: Roots = None,
    ) -> None:
        library = import_extra("datasets", "datasets", "HuggingFaceDataset")
        self._path = find_data(data_prefix, search_roots(data_root), "HuggingFaceDataset", _NO_DOWNLOAD)
        data = _open(library, self._path, split)
        for column in (image, label):
            if column not in data.column_names:
                raise ConfigError(
                    f"HuggingFaceDataset: {self._path} has no column '{column}'{suggest(column, data.column_names)} "
                    f"It has: {', '.join(data.column_names)}."
                )
        undecoded = library.Image(decode=False)  # decoding would open what a row without bytes names: any path or URL
        self._data, self._column = data.select_columns([image]).cast_column(image, undecoded), image
        names = getattr(data.features[label], "names", None)
        super().__init__(_labels(data[label], self._path, label), pipeline, names, on_error)

    def describe(self, index: int) -> str:
        return f"{self._path}[{index}]"

    def info(self, index: int) -> dict[str, Any]:
        try:
            content = self._data[index][self._column]["bytes"]
            if content is None:
                raise ValueError("the row names a file instead of containing the image; save_to_disk embeds it")
            image = as_image(Image.open(io.BytesIO(content)))
        except Exception as error:  # Pillow and Arrow raise many kinds for damaged images
            raise UnreadableImage(f"{self.describe(index)}: cannot read this image: {reason_of(error)}") from error
        return {"img": image, "filename": self.describe(index)}


def _open(library: Any, path: Path, split: str) -> Any:
    """Return the data set in a file or folder.

    Raises:
        ConfigError: It has no such split.
        DataError: It cannot be read.
    """
    files = [path] if path.is_file() else sorted(path.glob(f"{split}*.parquet"))
    try:
        if files:
            return library.Dataset.from_parquet([str(file) for file in files])
        found = library.load_from_disk(str(path))
    except Exception as error:  # Arrow raises many kinds for damaged files
        raise DataError(
            f"HuggingFaceDataset: {path} cannot be read, as what save_to_disk wrote or Parquet files "
            f"({type(error).__name__}: {reason_of(error)})."
        ) from error
    if not isinstance(found, dict):
        return found
    if split not in found:
        raise ConfigError(
            f"HuggingFaceDataset: {path} has no split '{split}'{suggest(split, found)} It has: {', '.join(found)}."
        )
    return found[split]


def _labels(values: Any, path: Path, column: str) -> list[int]:
    labels = list(values)
    wrong = next((label for label in labels if type(label) is not int or label < 0), None)
    if wrong is not None:
        raise DataError(f"HuggingFaceDataset: {path}: a label in '{column}' must be an integer ≥ 0; got {wrong!r:.80}.")
    return labels
