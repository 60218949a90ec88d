"""A run's model on the devices of all processes: whole in each (DDP), or distributed (`parallel`)."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lbitcls.assembly.session import Session
from lbitcls.core.ema import ModelEMA
from lbitcls.settings.sections import Settings
from lbitcls.utils.dist import broadcast_module, gloo_group


def is_distributed(settings: Settings, session: Session) -> bool:
    """Return True if each process has only a part of the model; a single process always has all of it."""
    return settings.parallel.kind == "fsdp" and session.place.world_size > 1


def place_model(model: nn.Module, settings: Settings, session: Session) -> nn.Module:
    """Return the model, equal on all processes, on the device; one that `shard` distributes stays on the CPU."""
    if is_distributed(settings, session):
        broadcast_module(model, group=gloo_group())
        return model
    memory_format = torch.channels_last if settings.channels_last else torch.contiguous_format
    model = model.to(session.device).to(memory_format=memory_format)
    broadcast_module(model)
    return model


def shard(model: nn.Module, ema: ModelEMA | None, settings: Settings, session: Session) -> list[nn.Parameter]:
    """Distribute the parameters of the model and its average, if the settings ask for it.

    Returns:
        Parameters of the model that every process has whole although others are distributed.

    Raises:
        ConfigError: `parallel.wrap` does not fit the model, also where one process has all of it.
    """
    if settings.parallel.kind != "fsdp":
        return []
    from lbitcls.core.sharding import find_modules, shard_model

    wrap = settings.parallel.wrap
    if not is_distributed(settings, session):
        find_modules(model, wrap or ())
        return []
    if ema is not None:
        shard_model(ema.module, wrap, session.device)
    return shard_model(model, wrap, session.device)


def prepare_training(trained: nn.Module, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Prepare a distributed model and its optimizer for training and resuming.

    Args:
        trained: Model as the training step calls it: the classifier, or the student of a teacher.
        model: Classifier.
        optimizer: Its optimizer.
    """
    from lbitcls.core.sharding import shard_optimizer, share_observed_ranges

    shard_optimizer(optimizer)
    share_observed_ranges(trained, model)


def wrap_model(trained: nn.Module, settings: Settings, session: Session) -> nn.Module:
    """Return the module that the training step calls: `trained`, in DDP if several processes have it whole."""
    if session.place.world_size == 1 or is_distributed(settings, session):
        return trained
    ids = [session.device.index] if session.device.type == "cuda" else None
    return DistributedDataParallel(trained, device_ids=ids, find_unused_parameters=settings.find_unused_parameters)
