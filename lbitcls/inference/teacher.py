"""Teacher of a distillation, from its file: a checkpoint, or an exported model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lbitcls.assembly.classes import check_names
from lbitcls.assembly.session import Session
from lbitcls.core.distillation import Teacher
from lbitcls.datasets.pipelines.color import Normalize
from lbitcls.datasets.pipelines.pretrained import written_out
from lbitcls.inference.onnx_model import ExportedModel, open_exported
from lbitcls.inference.preparation import Steps, test_steps
from lbitcls.inference.self_described import describe
from lbitcls.inference.torch_model import load_trained
from lbitcls.protocols import Dataset
from lbitcls.settings.distill import DistillConfig, TeacherConfig
from lbitcls.settings.sections import read_settings
from lbitcls.utils.errors import CheckpointError, ConfigError, LbitclsError
from lbitcls.utils.files import sha256_of
from lbitcls.utils.hub import is_on_hub
from lbitcls.utils.published import fetch_weights, is_published

_TOLERANCE = 1e-2  # of a normalized value: configs give means and deviations in about three digits


class ExportedTeacher(nn.Module):
    """Exported model as a classifier of PyTorch's images, run by its engine on the CPU.

    Args:
        exported: Exported model, of which the logits are used.
    """

    def __init__(self, exported: ExportedModel) -> None:
        super().__init__()
        self.exported = exported
        self.num_classes, self.CLASSES = exported.num_classes, exported.CLASSES

    def predict(self, img: Tensor) -> Tensor:
        """Return logits float32 (N, K) on the device of the images (N, C, H, W)."""
        return torch.from_numpy(self.exported.logits(img.float().contiguous().cpu().numpy())).to(img.device)


def open_teacher(
    settings: DistillConfig, student: nn.Module, dataset: Dataset, steps: Steps, session: Session
) -> Teacher:
    """Open the teacher that the settings name, on the session's device. The random generators do not change.

    Args:
        settings: Section `distill`.
        student: Classifier that will learn from the teacher.
        dataset: Training set, whose classes are compared with the teacher's.
        steps: Pipeline of the training set, as in a config.
        session: Session of the run.

    Raises:
        CheckpointError: The file cannot be read, does not fit its config, or records none.
        ConfigError: The teacher has another number of classes or another `Normalize`, or lacks a module.
        DataError: The teacher numbers the classes differently.
    """
    file = settings.teacher.file
    try:
        with torch.random.fork_rng():
            model, its_steps = _open(settings.teacher, session)
    except LbitclsError as error:
        raise type(error)(f"{TeacherConfig.PLACE}: {error}") from error
    own, its = (getattr(one, "num_classes", None) for one in (student, model))
    if None not in (own, its) and own != its:
        raise ConfigError(
            f"distill.teacher: {file} has {its} classes, but the model has {own}; both need the same classes."
        )
    check_names(model.CLASSES, f"the teacher {file}", dataset, "train", session.logger)
    _check_normalization(file, its_steps, steps, session)
    digest = sha256_of(fetch_weights(file) if is_published(file) else Path(file).expanduser())
    return Teacher(model, settings.pairs, not isinstance(model, ExportedTeacher), digest)


def _open(teacher: TeacherConfig, session: Session) -> tuple[Any, Steps | None]:
    """Return the teacher's classifier and its test pipeline, None if unknown."""
    if not teacher.checkpoint:
        exported = open_exported(teacher.file, threads=torch.get_num_threads())
        return ExportedTeacher(exported), describe(teacher.file).steps
    records = is_on_hub(teacher.checkpoint) or not is_published(teacher.checkpoint)
    config = teacher.config or (describe(teacher.checkpoint).config if records else None)
    if config is None:
        raise CheckpointError(
            f"{teacher.checkpoint} does not record its config; give it as {TeacherConfig.PLACE}.config."
        )
    settings = read_settings(config)
    return load_trained(settings, teacher.checkpoint, str(session.device)), test_steps(settings.source)


def _check_normalization(file: str, theirs: Steps | None, ours: Steps, session: Session) -> None:
    """Raise `ConfigError` if two pipelines normalize differently; warn if only one of them has a `Normalize`."""
    their, own = _normalize(theirs or ()), _normalize(ours)
    if their is None or own is None:
        if their is not own:
            session.logger.warning(
                "distill: Images for the model and for the teacher %s may be normalized differently: only one of the "
                "pipelines, data.train and the teacher's data.test, has a Normalize to compare.",
                file,
            )
        return
    if len(their.mean) == len(own.mean):
        probe = torch.arange(2 * len(own.mean)).mul(40).to(torch.uint8).reshape(-1, 1, 2)
        if torch.allclose(own.change(probe), their.change(probe), rtol=0, atol=_TOLERANCE):
            return
    raise ConfigError(
        f"data.train has {own!r}, but the teacher {file} was trained with {their!r}. Both see the same images: give "
        "the teacher's Normalize to all pipelines of data."
    )


def _normalize(steps: Steps) -> Normalize | None:
    found = [step for step in written_out(steps) if isinstance(step, dict) and step.get("type") == "Normalize"]
    return Normalize(**{key: value for key, value in found[0].items() if key != "type"}) if found else None
