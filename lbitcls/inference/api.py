"""Inference API: load a checkpoint or an exported model, and classify images.

    model = init_model("config.py", "model.onnx")       # or a checkpoint (.pth)
    result = inference_model(model, "photo.jpg", topk=5)
    show_result_pyplot(model, "photo.jpg", result)

With an exported model PyTorch is not imported.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, cast, overload

import numpy as np

from lbitcls.utils.errors import ConfigError, DataError
from lbitcls.utils.files import is_exported
from lbitcls.utils.hub import is_on_hub
from lbitcls.utils.logging import get_logger

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import nn

    from lbitcls.inference.preparation import Prepare
    from lbitcls.protocols import Classifier
    from lbitcls.settings.sections import ConfigLike
    from lbitcls.utils.config import Config

Picture: TypeAlias = "str | os.PathLike[str] | np.ndarray | Image"
Several: TypeAlias = list[Any] | tuple[Any, ...]
Result: TypeAlias = dict[str, Any]
_IMAGENET = 1000
_MOST_READERS = 8
_LINES = 5
_NO_SCORES = (
    "the model's scores for this image are NaN or infinite: its weights come from a run that diverged, or a layer "
    "overflows. Give another checkpoint."
)


class Predictor(Protocol):
    """Model as inference uses it."""

    prepare: Prepare

    @property
    def num_classes(self) -> int | None: ...

    def scores(self, images: np.ndarray) -> np.ndarray: ...


def init_model(
    config: ConfigLike | None,
    checkpoint: str | Path | None = None,
    device: str | None = "cpu",
    *,
    engine: str | None = None,
    threads: int | None = None,
) -> Classifier:
    """Load a model for `inference_model`.

    Its `cfg` is the config, and its `CLASSES` are the class names from the checkpoint or the exported model. If these
    have none, they are ImageNet's for a model with 1,000 classes, with a warning, or else the numbers of the classes.

    Args:
        config: Config, or its path. None: the one that the exported model or the checkpoint records; it is parsed,
            not executed. A model on the hub, `'hf://owner/name'`, alone stands for its file and the config in it.
        checkpoint: Checkpoint or published weights of the config's model, or a model exported from it, also by its name
            on the hub; None: the initial weights of the config's model.
        device: Device for a checkpoint's model: `'cpu'`, `'cuda'`, `'cuda:1'`; None: the config's, or else the first
            GPU, or the CPU. Without a GPU, `'cuda'` runs on the CPU, with a warning. An exported model runs on the CPU.
        engine: Engine for an exported model; None: the first that judges files of its target.
        threads: Number of threads of the engine; None: its own choice.

    Returns:
        Classifier in eval mode, a `torch.nn.Module`, or an `ExportedModel`.

    Raises:
        ConfigError: The config is missing or wrong, or an argument does not suit the model.
        CheckpointError: The weights are missing, damaged or another model's.

    Example:
        >>> model = init_model("configs/quickstart/digits_lsq_4w4f.py")
        >>> model.CLASSES[:3]
        ('0', '1', '2')
    """
    if is_on_hub(config) and checkpoint is None:
        config, checkpoint = None, str(config)
    if is_on_hub(checkpoint):
        from lbitcls.inference.self_described import local_model

        checkpoint = local_model(str(checkpoint))
    cfg = None if config is None else _config(config)
    if checkpoint is not None and is_exported(checkpoint):
        from lbitcls.inference.onnx_model import open_exported

        if device not in (None, "auto", "cpu"):
            raise ConfigError(f"an exported model runs on the CPU; remove device={device!r}.")
        model: Classifier = open_exported(checkpoint, cfg, engine, threads)
    else:
        model = _load_trained(cfg, checkpoint, device, engine, threads)
    _name_classes(model, model.num_classes)
    return model


@overload
def inference_model(
    model: nn.Module | Classifier, img: Picture, topk: int | None = None, batch_size: int = 32
) -> Result: ...


@overload
def inference_model(
    model: nn.Module | Classifier, img: Several, topk: int | None = None, batch_size: int = 32
) -> list[Result]: ...


def inference_model(
    model: nn.Module | Classifier, img: Picture | Several, topk: int | None = None, batch_size: int = 32
) -> Result | list[Result]:
    """Classify an image, or each image of a list.

    Any model accepts images of any size and color: the test pipeline prepares them, and if it is for images of one
    size, or of fewer channels, they are also cropped to the model's proportions, resized and converted.

    Args:
        model: Model from `init_model`, or a classifier with `cfg`.
        img: Path, NumPy array (uint8, (H, W, 3) in RGB or (H, W)), Pillow image, or a list of them, which is predicted
            in batches.
        topk: Number of classes to list in addition, best first, at least 1 (all classes, if there are fewer).
        batch_size: Maximum number of images predicted at once, at least 1.

    Returns:
        `{'pred_label': 207, 'pred_score': 0.93, 'pred_class': 'golden retriever'}`, the score in 0-1; with `topk` also
        `'topk'`, a list of such dicts. For a list: a list of results.

    Raises:
        DataError: An image is missing, damaged, not an image, or too large; or scores are not finite.
        ConfigError: `topk` or `batch_size` is below 1.

    Example:
        >>> cfg.quant_transformer = None
        >>> model = init_model(cfg)
        >>> result = inference_model(model, np.zeros((480, 640, 3), np.uint8), topk=3)
        >>> sorted(result), len(result["topk"])
        (['pred_class', 'pred_label', 'pred_score', 'topk'], 3)
    """
    several = isinstance(img, (list, tuple))
    pictures: Sequence[Any] = img if isinstance(img, (list, tuple)) else [img]
    results = []
    for position, found in enumerate(predict_pictures(model, pictures, topk, batch_size)):
        if isinstance(found, DataError):
            raise type(found)(f"image {position} of {len(pictures)}: {found}" if several else str(found)) from found
        results.append(found)
    return results if several else results[0]


def predict_pictures(
    model: nn.Module | Classifier, pictures: Sequence[Any], topk: int | None = None, batch_size: int = 32
) -> Iterator[Result | DataError]:
    """Yield the result of `inference_model` for each image in turn, or the error if an image cannot be used.

    The next images are read while a batch is predicted.
    """
    check_numbers(topk, batch_size)
    predictor, named = _predictor(model), cast("Classifier", model)
    for batch in _prepared(predictor.prepare, pictures, batch_size):
        for row in _scores(predictor, batch):
            if isinstance(row, DataError):
                yield row
            else:
                _name_classes(named, len(row))
                yield _result(row, named.CLASSES or (), topk)


def check_numbers(topk: int | None, batch_size: int) -> None:
    """Raise `ConfigError` unless both are integers ≥ 1 (`topk` may be None)."""
    for name, number in (("topk", 1 if topk is None else topk), ("batch_size", batch_size)):
        if not isinstance(number, int) or number < 1:
            raise ConfigError(f"{name} must be an integer ≥ 1; got {number!r}.")


def show_result(
    model: nn.Module | Classifier, img: Picture, result: Result, out_file: str | Path | None = None
) -> np.ndarray:
    """Draw an image with its predicted classes and scores below, those of `topk` if listed.

    Args:
        model: Model as for `inference_model`.
        img: One image, as for `inference_model`.
        result: Result for this image.
        out_file: `.png`, `.jpg`, `.svg` or `.pdf` file to write.

    Returns:
        Labeled image, uint8 (H, W, 3) in RGB.

    Raises:
        DataError: The image cannot be read.
        ConfigError: `out_file` cannot be written, or has another format.
    """
    from lbitcls.analysis.figures import can_draw, check_path, rendered, save
    from lbitcls.analysis.pictures import draw_result

    out = None if out_file is None else check_path(out_file, "out_file")
    listed = (result.get("topk") or [result])[:_LINES]
    names = [
        entry["pred_class"] if can_draw(entry["pred_class"]) else f"class {entry['pred_label']}" for entry in listed
    ]
    figure = draw_result(_pixels(img), [(name, entry["pred_score"]) for name, entry in zip(names, listed, strict=True)])
    if out is not None:
        save(figure, out)
    return rendered(figure)


def show_result_pyplot(model: nn.Module | Classifier, img: Picture, result: Result) -> None:
    """Show the image that `show_result` draws, in a notebook or a matplotlib window."""
    from matplotlib import pyplot

    labeled = show_result(model, img, result)
    height, width = labeled.shape[:2]
    figure = pyplot.figure(figsize=(width / 100, height / 100), dpi=100)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.imshow(labeled)
    axes.axis("off")
    pyplot.show()
    pyplot.close(figure)


def _config(given: ConfigLike) -> Config:
    from lbitcls.settings.sections import as_config

    return as_config(given)


def _load_trained(
    cfg: ConfigLike | None, checkpoint: str | Path | None, device: str | None, engine: str | None, threads: int | None
) -> Classifier:
    if engine is not None or threads is not None:
        raise ConfigError(f"engine and threads need an exported model, which an engine runs; got '{checkpoint}'.")
    from lbitcls.inference.torch_model import load_trained
    from lbitcls.settings.sections import read_settings

    if cfg is None:
        if checkpoint is None:
            raise ConfigError("no model is given: name a config, or a file that records its own (.onnx, .pth).")
        from lbitcls.inference.self_described import recorded_config

        cfg = recorded_config(checkpoint)
    return cast("Classifier", load_trained(read_settings(cfg), checkpoint, device))


def _predictor(model: nn.Module | Classifier) -> Predictor:
    from lbitcls.inference.onnx_model import ExportedModel

    if isinstance(model, ExportedModel):
        return model
    from lbitcls.inference.torch_model import TrainedModel

    return TrainedModel(cast("nn.Module", model))


def _name_classes(model: Classifier, number: int | None) -> None:
    """Set the model's class names, if it has none and the number of classes is known."""
    if getattr(model, "CLASSES", None) is not None or number is None:
        return
    if number != _IMAGENET:
        model.CLASSES = tuple(map(str, range(number)))
        return
    from lbitcls.datasets.names import imagenet_classes

    get_logger().warning("The model does not name its 1,000 classes; using ImageNet's names.")
    model.CLASSES = imagenet_classes()


def _prepared(prepare: Prepare, pictures: Sequence[Any], size: int) -> Iterator[list[np.ndarray | DataError]]:
    """Yield the model's inputs in batches; the next batch is read while the current one is predicted."""

    def read(picture: Any) -> np.ndarray | DataError:
        try:
            image = prepare(picture)
        except DataError as error:
            return error
        if np.isfinite(image).all():
            return image
        return DataError(
            "the test pipeline returns NaN or infinite values for this image; check its steps, such as a division by a "
            "standard deviation of 0."
        )

    if len(pictures) < 2:
        yield [read(picture) for picture in pictures]
        return
    with ThreadPoolExecutor(min(len(pictures), os.cpu_count() or 1, _MOST_READERS)) as pool:
        ahead = [pool.submit(read, picture) for picture in pictures[:size]]
        for start in range(size, len(pictures) + size, size):
            current, ahead = ahead, [pool.submit(read, picture) for picture in pictures[start : start + size]]
            yield [future.result() for future in current]


def _scores(predictor: Predictor, batch: Sequence[np.ndarray | DataError]) -> list[np.ndarray | DataError]:
    """Return scores (K,) for each input, computing inputs of one size together; errors keep their positions."""
    rows: list[np.ndarray | DataError] = list(batch)
    alike = defaultdict(list)
    for position, image in enumerate(batch):
        if not isinstance(image, DataError):
            alike[image.shape].append((position, image))
    for group in alike.values():
        images = np.stack([image for _, image in group]) if len(group) > 1 else group[0][1][None]
        scores = predictor.scores(images)
        for (position, _), row in zip(group, scores, strict=True):
            rows[position] = row if np.isfinite(row).all() else DataError(_NO_SCORES)
    return rows


def _result(scores: np.ndarray, names: Sequence[str], topk: int | None) -> Result:
    labels = np.argsort(-scores, kind="stable")[: topk or 1].tolist()
    entries = [
        {
            "pred_label": label,
            "pred_score": float(scores[label]),
            "pred_class": str(names[label]) if label < len(names) else str(label),
        }
        for label in labels
    ]
    return {**entries[0], "topk": entries} if topk else entries[0]


def _pixels(picture: Any) -> np.ndarray:
    """Return an image for display: uint8 (H, W, 3) in RGB, upright."""
    from lbitcls.datasets.pipelines.pillow import as_array, convert_given, from_array, read_with_pillow

    if isinstance(picture, (str, os.PathLike)):
        return as_array(read_with_pillow(os.fspath(picture), "rgb"))
    return as_array(convert_given(picture if hasattr(picture, "convert") else from_array(picture), "rgb"))
