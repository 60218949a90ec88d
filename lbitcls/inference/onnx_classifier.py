"""Exported model in place of a config's classifier, to measure its accuracy on the same images with the same loss."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lbitcls.deploy.runtime.engine import Engine
from lbitcls.inference.onnx_model import check_part, logits_of, open_engine
from lbitcls.inference.preparation import READING, same_steps
from lbitcls.registry import HEADS
from lbitcls.settings.sections import Settings
from lbitcls.utils.errors import DataError


class OnnxClassifier(nn.Module):
    """Classifier that validates an exported model in its engine; it has no weights of its own.

    Args:
        engine: Engine that runs an exported model with logits as output.
        head: Config of the head whose loss is computed.

    Attributes:
        num_classes: Number of classes K, from the exported model if recorded, else from the head.
    """

    def __init__(self, engine: Engine, head: dict[str, Any]) -> None:
        super().__init__()
        check_part(engine)
        self.engine = engine
        self.head = HEADS.build(dict(head))
        known = engine.info.num_classes if engine.info is not None else None
        self.num_classes = known if known is not None else self.head.num_classes

    def predict(self, img: torch.Tensor) -> torch.Tensor:
        """Return logits (N, K), on the device of the images."""
        return torch.from_numpy(logits_of(self.engine, img.float().cpu().numpy())).to(img.device)

    def loss(self, logits: torch.Tensor, gt_label: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the losses by name, computed by the head."""
        if logits.shape[1] <= int(gt_label.max()):
            raise DataError(
                f"{self.engine.path} has {logits.shape[1]} classes, but the data set has label {int(gt_label.max())}."
            )
        return self.head.loss(logits, gt_label)


def open_classifier(
    settings: Settings, path: str | Path, split: str, logger: logging.Logger, engine: str | None, threads: int | None
) -> OnnxClassifier:
    """Open the exported model `path` in place of the settings' classifier, for testing on `data.<split>`.

    Raises:
        CheckpointError: The engine cannot run the file, or the file is not a classifier.
        ConfigError: The engine is unknown.
    """
    opened = open_engine(path, engine, threads)
    logger.info("Running %s in %s, %s, threads: %s.", path, opened.name, opened.precision, threads or "its own choice")
    if opened.info is None:
        logger.info("%s was not written by lbitcls: its classes and preprocessing are unknown.", path)
    elif opened.info.pipeline and not _same(opened.info.pipeline, (settings.data.dataset(split) or {}).get("pipeline")):
        logger.warning("%s was exported with a test pipeline other than that of data.%s.", path, split)
    return OnnxClassifier(opened, settings.model.get("head") or {})


def _same(left: Any, right: Any) -> bool:
    """Return True if two pipelines are equal except for steps that read an image and fit it to the model's input."""
    from lbitcls.datasets.pipelines.pretrained import written_out

    both = (written_out(steps or []) for steps in (left, right))
    return same_steps(*([step for step in steps if not _reads(step)] for steps in both))


def _reads(step: Any) -> bool:
    return isinstance(step, dict) and step.get("type") in READING
