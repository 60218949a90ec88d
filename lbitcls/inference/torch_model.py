"""PyTorch classifier with trained weights, and its predictions for images."""

from __future__ import annotations

import copy
from pathlib import Path
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import nn

from lbitcls.assembly.image_sizes import natural_size
from lbitcls.assembly.session import Session, make_model
from lbitcls.inference.preparation import Prepare, Steps, preparation, test_steps
from lbitcls.quant.bypass import noticing_once
from lbitcls.settings.sections import Settings
from lbitcls.utils.checkpoint import load_checkpoint
from lbitcls.utils.custom import import_custom
from lbitcls.utils.device import choose_device, device_or_cpu
from lbitcls.utils.dist import Place
from lbitcls.utils.errors import ConfigError
from lbitcls.utils.logging import get_logger


def load_trained(settings: Settings, checkpoint: str | Path | None, device: str | None) -> nn.Module:
    """Build the settings' classifier in eval mode and load its weights, and its class names if the checkpoint has them.

    Args:
        settings: Settings of a config.
        checkpoint: Checkpoint of this model; None: the initial weights of the config's `model`.
        device: Device name; None: the config's, or else the first GPU, or the CPU. A GPU that this machine lacks is
            replaced by the CPU, with a warning.

    Raises:
        CheckpointError: The checkpoint cannot be read, is another model's, or was made with other quantizers.
        ConfigError: A part of the config is wrong, or the config's device does not exist.
    """
    settings.require(("model",), "inference")
    logger = get_logger()
    wanted = device_or_cpu(logger, device) if device else settings.device
    cpu_only = not device and settings.cpu_only
    place = choose_device(logger, wanted, cpu_only=cpu_only, gpu_ids=settings.gpu_ids)
    session = Session(Place(), place, logger)
    import_custom(vars(settings.custom_imports))
    model = make_model(settings, session, pretrained=checkpoint is None, checkpoint=checkpoint)
    if checkpoint is None:
        logger.warning("No checkpoint: Using the initial weights of the config's model.")
    else:
        model.CLASSES = load_checkpoint(model, checkpoint, strict=True, logger=logger)["meta"].get("CLASSES")
    return model.to(session.device).eval()


class TrainedModel:
    """PyTorch classifier as inference uses it.

    Args:
        model: Classifier with `cfg`, whose test pipeline prepares images; the pipeline is rebuilt when it changes.

    Raises:
        ConfigError: The model has no config, or one without a test pipeline.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self.prepare: Prepare = _prepare(model)

    @property
    def num_classes(self) -> int | None:
        """Number of classes K; None if the classifier does not define it."""
        return getattr(self._model, "num_classes", None)

    @torch.no_grad()
    def scores(self, images: np.ndarray) -> np.ndarray:
        """Return softmax scores in eval mode, float32 (N, K), for images (N, C, H, W) from `prepare`."""
        parameter = next(self._model.parameters(), None)
        device = "cpu" if parameter is None else parameter.device
        was_training = self._model.training
        self._model.eval()
        try:
            with noticing_once(self._model, "inference"):
                return self._model(torch.from_numpy(images).to(device), return_loss=False)
        finally:
            self._model.train(was_training)


_PREPARED: WeakKeyDictionary[nn.Module, tuple[Steps, Prepare]] = WeakKeyDictionary()


def _prepare(model: nn.Module) -> Prepare:
    cfg = getattr(model, "cfg", None)
    steps = test_steps(cfg)
    if steps is None:
        raise ConfigError(
            "inference needs model.cfg, a config with data.test or data.val whose pipeline prepares images; "
            "init_model(config, checkpoint) sets it."
        )
    known, prepare = _PREPARED.get(model, (None, None))
    if prepare is None or known != steps:
        channels = getattr(getattr(model, "backbone", None), "in_channels", None)
        prepare = preparation(steps, (channels, None, None), natural_size(cfg), light=False)
        _PREPARED[model] = copy.deepcopy(steps), prepare
    return prepare
