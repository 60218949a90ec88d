"""A shipped ONNX file in the place of a config's classifier: for its accuracy, on the same images by the same loss."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lbitcls.deploy.runtime.engine import Engine, load
from lbitcls.inference.onnx_model import check_part, logits_of
from lbitcls.inference.preparation import same_steps
from lbitcls.registry import HEADS
from lbitcls.settings.sections import Settings
from lbitcls.utils.errors import DataError


class ShippedClassifier(nn.Module):
    """What validation asks of a classifier, answered by an engine; it has no weights of its own.

    Args:
        engine: of a file that gives logits.
        head: config of the head, whose loss is taken.

    Attributes:
        num_classes: K, as the file says it, else the head.
    """

    def __init__(self, engine: Engine, head: dict[str, Any]) -> None:
        super().__init__()
        check_part(engine)
        self.engine = engine
        self.head = HEADS.build(dict(head))
        known = engine.info.num_classes if engine.info is not None else None
        self.num_classes = known if known is not None else self.head.num_classes

    def predict(self, img: torch.Tensor) -> torch.Tensor:
        """Logits (N, K), on the device of the images."""
        return torch.from_numpy(logits_of(self.engine, img.float().cpu().numpy())).to(img.device)

    def loss(self, logits: torch.Tensor, gt_label: torch.Tensor) -> dict[str, torch.Tensor]:
        """As the classifier's."""
        if logits.shape[1] <= int(gt_label.max()):
            raise DataError(
                f"{self.engine.path} has {logits.shape[1]} classes, but the data set a label {int(gt_label.max())}."
            )
        return self.head.loss(logits, gt_label)


def open_shipped(
    settings: Settings, path: str | Path, split: str, logger: logging.Logger, engine: str | None, threads: int | None
) -> ShippedClassifier:
    """The file `path` in the place of the classifier of the settings, to be tested on `data.<split>`.

    Raises:
        CheckpointError: the file cannot be run, or is no classifier.
        ConfigError: there is no such engine.
    """
    opened = load(path, engine or "openvino", threads)
    logger.info("%s runs in %s, %s, %s threads.", path, opened.name, opened.precision, threads or "its own choice of")
    if opened.info is None:
        logger.info("%s was not written by lbitcls: its classes and its preprocessing are not known.", path)
    elif opened.info.pipeline and not _same(opened.info.pipeline, (settings.data.dataset(split) or {}).get("pipeline")):
        logger.warning("%s was exported with another test pipeline than data.%s has.", path, split)
    return ShippedClassifier(opened, settings.model.get("head") or {})


def _same(left: Any, right: Any) -> bool:
    from lbitcls.datasets.pipelines.pretrained import written_out

    return same_steps(written_out(left or []), written_out(right or []))
