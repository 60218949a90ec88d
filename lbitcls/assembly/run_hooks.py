"""The hooks of a run, from the sections of its config."""

from __future__ import annotations

from typing import Any

from torch import nn

from lbitcls.assembly.classes import check_labels, check_names
from lbitcls.assembly.session import Session, load_data
from lbitcls.core.hooks import Hook
from lbitcls.core.hooks.calibration_hook import CalibrationHook
from lbitcls.core.hooks.checkpoint_hook import CheckpointHook
from lbitcls.core.hooks.evaluation_hook import EvaluationHook, validated_epochs
from lbitcls.core.hooks.hook import read_priority
from lbitcls.core.hooks.log import JsonLoggerHook, LogHook
from lbitcls.core.hooks.progress import ProgressHook
from lbitcls.protocols import BatchLoader
from lbitcls.registry import HOOKS
from lbitcls.utils.arguments import construct
from lbitcls.utils.config import Config
from lbitcls.utils.errors import ConfigError, reject_unknown_keys, require_dict, require_list


def build_hooks(cfg: Config, model: nn.Module, session: Session, validate: bool, data_root: str | None) -> list[Hook]:
    """The hooks that `cfg` asks for, and those that every run has.

    Reads: `calibration`, `evaluation`, `workflow`, `checkpoint_config`, `log_config`, `custom_hooks`.

    Args:
        cfg: the config.
        model: the classifier, which the validation set must fit.
        session: of the command.
        validate: False: no validation.
        data_root: where relative data paths may start.
    """
    hooks: list[Hook] = []
    calibration = _calibration(cfg)
    if calibration is not None:
        hooks.append(calibration)
    evaluation = _evaluation(cfg, model, session, calibration, data_root) if validate else None
    if evaluation is not None:
        hooks.append(evaluation)
    return [*hooks, _checkpoints(cfg), *_loggers(cfg), ProgressHook(), *_custom_hooks(cfg)]


def _checkpoints(cfg: Config) -> CheckpointHook:
    """What saves: after every epoch where the config has no section, at the end alone where the section is None."""
    section = cfg.get("checkpoint_config", {})
    given = dict(interval=-1) if section is None else dict(section or {})
    return construct(CheckpointHook, given, "checkpoint_config")


def _calibration(cfg: Config) -> CalibrationHook | None:
    section = cfg.get("calibration")
    if not cfg.get("quant_transformer"):
        if section:
            raise ConfigError("calibration is for quantizers, but the config has no quant_transformer.")
        return None
    return construct(CalibrationHook, dict(section or {}), "calibration")


def _evaluation(
    cfg: Config, model: nn.Module, session: Session, calibration: CalibrationHook | None, data_root: str | None
) -> EvaluationHook | None:
    section = cfg.get("evaluation")
    epochs = validated_epochs(cfg.get("workflow") or [("train", 1)], cfg.total_epochs)
    if cfg.data.get("val") is None:
        if section or epochs:
            raise ConfigError("evaluation (or 'val' in workflow) needs data.val; give it, or --no-validate.")
        session.logger.info("No data.val: training without validation.")
        return None
    dataset, loader = load_data(cfg, "val", "validation", session, data_root=data_root)
    check_labels(model, dataset, "val")
    check_names(getattr(model, "CLASSES", None), "data.train", dataset, "val", session.logger)
    if calibration is not None:
        epochs.add(calibration.epoch)
    given = dict(section or {})
    arguments = {
        **given,
        "train": _training_images(cfg, given.get("train"), session, data_root),
        "loader": loader,
        "also_after": epochs,
        "final_phase": "float" if calibration is None else "quantized",
    }
    own = [key for key in ("loader", "also_after", "final_phase") if key in given]
    reject_unknown_keys("evaluation", own, ())
    return construct(EvaluationHook, arguments, "evaluation")


def _training_images(cfg: Config, wanted: Any, session: Session, data_root: str | None) -> BatchLoader | None:
    """Batches of the training set, or of so many of its images, for `evaluation.train`; None: not wanted.

    They are prepared as validation images are, so that the two accuracies differ by the images alone.
    """
    if wanted is False or wanted is None:
        return None
    if wanted is not True and (not isinstance(wanted, int) or wanted < 1):
        raise ConfigError(f"evaluation.train is True, False, or a number of images from 1; got {wanted!r}.")
    section = {**cfg.data.train, "pipeline": cfg.data.val.get("pipeline", cfg.data.train.get("pipeline"))}
    number = None if wanted is True else wanted
    return load_data(cfg, "val", "validation", session, data_root=data_root, section=section, number=number)[1]


def _loggers(cfg: Config) -> list[Hook]:
    section = dict(cfg.get("log_config") or {})
    reject_unknown_keys("log_config", section, ("interval", "hooks", "pictures"))
    if not isinstance(section.get("pictures", True), bool):
        raise ConfigError(f"log_config.pictures is True or False; got {section['pictures']!r}.")
    given = require_list("log_config.hooks", section.get("hooks", [dict(type="TextLoggerHook")]))
    return [LogHook(section.get("interval")), JsonLoggerHook(), *(HOOKS.build(entry) for entry in given)]


def _custom_hooks(cfg: Config) -> list[Hook]:
    hooks = []
    for entry in require_list("custom_hooks", cfg.get("custom_hooks")):
        given = require_dict("an entry of custom_hooks", entry)
        priority: Any = given.pop("priority", None)
        hook = HOOKS.build(given)
        if not isinstance(hook, Hook):
            raise ConfigError(f"custom_hooks: {type(hook).__name__} is no Hook (lbitcls.core.hooks.Hook).")
        hook.priority = hook.priority if priority is None else read_priority(priority)
        hooks.append(hook)
    return hooks
