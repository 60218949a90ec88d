"""Distillation in a run: its teacher and loss, as the config's section `distill` describes them."""

from __future__ import annotations

import torch
from torch import nn

from lbitcls.assembly.session import Session
from lbitcls.core.hooks.distiller import Distiller
from lbitcls.inference.teacher import open_teacher
from lbitcls.protocols import Dataset
from lbitcls.settings.distill import TEMPERATURE, DistillConfig
from lbitcls.settings.sections import Settings


def build_distiller(
    settings: Settings, distill: DistillConfig, model: nn.Module, dataset: Dataset, session: Session
) -> Distiller:
    """Open the teacher, log it, and return the hook that gives its outputs to the training step.

    Args:
        settings: Settings of the run.
        distill: Section `distill` of them.
        model: Classifier in training, on its device.
        dataset: Training set.
        session: Session of the run.

    Raises:
        LbitclsError: As `open_teacher` does.
    """
    section = settings.data.dataset("train") or {}
    teacher = open_teacher(distill, model, dataset, section.get("pipeline") or [], session)
    if settings.channels_last:
        teacher.to(memory_format=torch.channels_last)
    session.logger.info("Teacher: %s; %s", distill.teacher.file, _described(distill))
    return Distiller(teacher, model, _changing(distill, model, dataset))


def _described(distill: DistillConfig) -> str:
    temperature = f" at temperature {distill.temperature or TEMPERATURE:g}" if distill.loss == "kl" else ""
    labels = f"{distill.label_weight:g} · labels" if distill.label_weight else "without labels"
    return f"loss {distill.weight:g} · {distill.loss}{temperature}, {labels}"


def _changing(distill: DistillConfig, model: nn.Module, dataset: Dataset) -> str:
    """Return the reason why the teacher's outputs cannot be kept from one epoch to the next, or ""."""
    if distill.modules is not None:
        return "features are too large to keep"
    if getattr(model, "augments", None) is not None:
        return "the model mixes its training images"
    steps = ", ".join(repr(step) for step in dataset.pipeline.random_steps)
    return f"data.train has random steps, {steps}" if steps else ""
