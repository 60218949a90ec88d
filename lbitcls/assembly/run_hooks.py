"""Build the hooks of a run from its settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from lbitcls.assembly.classes import check_labels, check_names
from lbitcls.assembly.session import Session, data_section, load_data
from lbitcls.core.hooks import Hook
from lbitcls.core.hooks.calibration_hook import CalibrationHook
from lbitcls.core.hooks.checkpoint_hook import CheckpointHook
from lbitcls.core.hooks.evaluation_hook import EvaluationHook, validated_epochs
from lbitcls.core.hooks.heartbeat import HeartbeatHook
from lbitcls.core.hooks.hook import read_priority
from lbitcls.core.hooks.log import JsonLoggerHook, LogHook
from lbitcls.core.hooks.not_finite_hook import NotFiniteHook
from lbitcls.core.hooks.precise_bn import PreciseBNHook
from lbitcls.core.hooks.progressive_hook import ProgressiveHook
from lbitcls.protocols import BatchLoader
from lbitcls.registry import HOOKS
from lbitcls.settings.sections import Settings
from lbitcls.settings.training_sections import CalibrationConfig, EvaluationConfig, LogConfig
from lbitcls.utils.errors import ConfigError


def build_hooks(
    settings: Settings, model: nn.Module, session: Session, validate: bool, data_root: str | None
) -> list[Hook]:
    """Build the hooks that the settings name, and those of every run.

    Args:
        settings: Settings of the run.
        model: Classifier that the validation set must fit.
        session: Session of the command.
        validate: False: no validation.
        data_root: Base folder for relative data paths.
    """
    hooks: list[Hook] = []
    calibration = _calibration(settings)
    if calibration is not None:
        hooks.append(calibration)
    progressive = _progressive(settings, model)
    if progressive is not None:
        hooks.append(progressive)
    evaluation = _evaluation(settings, model, session, hooks, data_root) if validate else None
    if evaluation is not None:
        hooks.append(evaluation)
    if settings.ema is not None and settings.ema.norm_batches:
        hooks.append(PreciseBNHook(settings.ema.norm_batches))
    saving = {name: value for name, value in vars(settings.checkpoint_config).items() if name != "background"}
    hooks.append(CheckpointHook(**saving))
    hooks += [HeartbeatHook(), NotFiniteHook(settings.not_finite)]
    return [*hooks, *_loggers(settings.log_config), *_custom_hooks(settings.custom_hooks)]


def _calibration(settings: Settings) -> CalibrationHook | None:
    if settings.quant_transformer:
        given = dict(vars(settings.calibration or CalibrationConfig()))
        if given.pop("reconstruct") is not None:
            raise ConfigError(
                "calibration.reconstruct learns roundings without training, in lbitcls calibrate; remove it to train."
            )
        return CalibrationHook(**given)
    if settings.calibration is not None:
        raise ConfigError("calibration is for quantizers, but the config has no quant_transformer.")
    return None


def _progressive(settings: Settings, model: nn.Module) -> ProgressiveHook | None:
    if settings.progressive is None:
        return None
    if not settings.quant_transformer:
        raise ConfigError("progressive is for quantizers, but the config has no quant_transformer.")
    from lbitcls.quant.changing_bits import check_stages

    check_stages(model, settings.progressive.pairs)
    hook = ProgressiveHook(settings.progressive, settings.calibration or CalibrationConfig())
    hook.check(settings.epochs)
    return hook


def _evaluation(
    settings: Settings,
    model: nn.Module,
    session: Session,
    hooks: Sequence[Hook],
    data_root: str | None,
) -> EvaluationHook | None:
    epochs = validated_epochs(settings.workflow, settings.epochs)
    if settings.data.val is None:
        if settings.evaluation is not None or epochs:
            raise ConfigError("evaluation (or 'val' in workflow) needs data.val; give it, or --no-validate.")
        session.logger.info("No data.val: training without validation.")
        return None
    dataset, loader = load_data(settings, "val", "validation", session, data_root=data_root)
    check_labels(model, dataset, "val")
    check_names(getattr(model, "CLASSES", None), "data.train", dataset, "val", session.logger)
    for hook in hooks:
        if isinstance(hook, CalibrationHook):
            epochs.add(hook.epoch)
        elif isinstance(hook, ProgressiveHook):
            epochs.update(hook.starts)
    section = settings.evaluation or EvaluationConfig()
    return EvaluationHook(
        loader,
        section,
        also_after=epochs,
        final_phase="quantized" if settings.quant_transformer else "float",
        train=_training_images(settings, section.train, session, data_root),
    )


def _training_images(
    settings: Settings, wanted: bool | int | None, session: Session, data_root: str | None
) -> BatchLoader | None:
    """Return the loader of training images for `evaluation.train`, all or `wanted` of them; None: switched off.

    Images are prepared as in validation, so that the two accuracies differ only by the images.
    """
    if wanted is False or wanted is None:
        return None
    train, val = (data_section(settings.data, split, "validation") for split in ("train", "val"))
    section = {**train, "pipeline": val.get("pipeline", train.get("pipeline"))}
    number = None if wanted is True else wanted
    return load_data(settings, "val", "validation", session, data_root=data_root, section=section, number=number)[1]


def _loggers(section: LogConfig) -> list[Hook]:
    return [LogHook(section.interval), JsonLoggerHook(), *(HOOKS.build(entry) for entry in section.hooks or ())]


def _custom_hooks(entries: tuple[dict[str, Any], ...]) -> list[Hook]:
    hooks = []
    for entry in entries:
        priority = entry.get("priority")
        hook = HOOKS.build({key: value for key, value in entry.items() if key != "priority"})
        if not isinstance(hook, Hook):
            raise ConfigError(f"custom_hooks: {type(hook).__name__} is not a Hook (lbitcls.core.hooks.Hook).")
        hook.priority = hook.priority if priority is None else read_priority(priority)
        hooks.append(hook)
    return hooks
