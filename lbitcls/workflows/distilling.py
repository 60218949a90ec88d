"""Distillation in a run: its teacher and loss, as the config's section `distill` describes them."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from lbitcls.assembly.session import Session
from lbitcls.core.hooks.distiller import Distiller
from lbitcls.core.hooks.work_dir import is_written
from lbitcls.inference.teacher import open_teacher
from lbitcls.protocols import Dataset
from lbitcls.settings.distill import TEMPERATURE, DistillConfig
from lbitcls.settings.sections import Settings
from lbitcls.utils.checkpoint_content import shown_name
from lbitcls.utils.dist import check_equal
from lbitcls.utils.errors import ConfigError
from lbitcls.workflows.run_kernels import Start


def build_distiller(
    settings: Settings, model: nn.Module, dataset: Dataset, session: Session, start: Start
) -> Distiller | None:
    """Open the teacher, log it, and return the hook that gives its outputs to the training step; None without one.

    A run that resumes with another teacher than it was started with gets a warning.

    Args:
        settings: Settings of the run.
        model: Classifier in training, on its device.
        dataset: Training set.
        session: Session of the run.
        start: Checkpoint to resume from, and its content.

    Raises:
        ConfigError: The teacher's file is one that the run replaces.
        LbitclsError: As `open_teacher` does.
    """
    distill = settings.distill
    if distill is None:
        _recognize(None, "", start, session)
        return None
    file = distill.teacher.file
    if is_written(Path(file).expanduser(), settings.run_folder):
        raise ConfigError(
            f"distill.teacher: {file} is in the work directory, where this run writes its own checkpoints. Name "
            "another folder with --work-dir, or move the teacher."
        )
    section = settings.data.dataset("train") or {}
    teacher = open_teacher(distill, model, dataset, section.get("pipeline") or [], session)
    check_equal(f"distill.teacher: the SHA-256 of {file}", teacher.digest)
    _recognize(teacher.digest, file, start, session)
    if settings.channels_last:
        teacher.to(memory_format=torch.channels_last)
    session.logger.info("Teacher: %s; %s", file, _described(distill))
    return Distiller(teacher, model, _changing(distill, model, dataset))


def _recognize(digest: str | None, file: str, start: Start, session: Session) -> None:
    """Log a warning if the run to resume had another teacher; None: none. Older checkpoints do not record it."""
    meta = start[1]["meta"] if start else {}
    saved = meta.get("teacher", digest)
    if saved == digest:
        return
    if saved is None or digest is None:
        session.logger.warning(
            "The run was saved %s a teacher and resumes %s: its results will differ.",
            *(("without", "with") if saved is None else ("with", "without")),
        )
    else:
        session.logger.warning(
            "distill.teacher: %s is another file than the run was started with (SHA-256 %s…, then %s…): it continues "
            "differently.",
            *(file, digest[:12], shown_name(saved[:12])),
        )


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
