"""A classifier of PyTorch with its weights, and what is in pictures according to it."""

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
from lbitcls.utils.device import choose_device
from lbitcls.utils.dist import Place
from lbitcls.utils.errors import ConfigError
from lbitcls.utils.logging import get_logger


def load_trained(settings: Settings, checkpoint: str | Path | None, device: str | None) -> nn.Module:
    """The classifier of the settings in eval mode, with the names of its classes where the checkpoint has them.

    Args:
        settings: of a config.
        checkpoint: of this model; None: the weights that `model` of the config begins with.
        device: a device's name; None: the config's, or else the first GPU, or the CPU.

    Raises:
        CheckpointError: the checkpoint cannot be read, is another model's, or was made with other quantizers.
        ConfigError: a part of the config is wrong, or there is no such device.
    """
    settings.require(("model",), "inference")
    logger = get_logger()
    wanted, cpu_only = device or settings.device, not device and settings.cpu_only
    place = choose_device(logger, wanted, cpu_only=cpu_only, gpu_ids=settings.gpu_ids)
    session = Session(Place(), place, logger)
    import_custom(vars(settings.custom_imports))
    model = make_model(settings, session, pretrained=checkpoint is None, checkpoint=checkpoint)
    if checkpoint is None:
        logger.warning("No checkpoint: the weights are those that the config's model begins with.")
    else:
        model.CLASSES = load_checkpoint(model, checkpoint, strict=True, logger=logger)["meta"].get("CLASSES")
    return model.to(session.device).eval()


class TrainedModel:
    """A classifier, as inference uses it.

    Args:
        model: with `cfg`, whose test pipeline prepares pictures; the pipeline is built anew when it has changed.

    Raises:
        ConfigError: it has no config, or one without a test pipeline.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self.prepare: Prepare = _prepare(model)

    @property
    def num_classes(self) -> int | None:
        """K; None where the classifier does not say it."""
        return getattr(self._model, "num_classes", None)

    @torch.no_grad()
    def scores(self, images: np.ndarray) -> np.ndarray:
        """Softmaxed scores, float32 (N, K), in eval mode, of images (N, C, H, W) as `prepare` gives them."""
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
            "inference needs model.cfg, a config with data.test or data.val whose pipeline prepares pictures; "
            "init_model(config, checkpoint) sets it."
        )
    known, prepare = _PREPARED.get(model, (None, None))
    if prepare is None or known != steps:
        channels = getattr(getattr(model, "backbone", None), "in_channels", None)
        prepare = preparation(steps, (channels, None, None), natural_size(cfg), light=False)
        _PREPARED[model] = copy.deepcopy(steps), prepare
    return prepare
