"""Columns of TensorBoard's table of hyperparameters, read from a config and its model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from lbitcls.core.hooks.work_dir import WorkDirHook
from lbitcls.core.runner import EpochRunner
from lbitcls.settings.sections import Settings
from lbitcls.settings.training_sections import CalibrationConfig
from lbitcls.tracking.model_bits import quantization
from lbitcls.utils.dist import world_size
from lbitcls.utils.errors import ConfigError, suggest

Value = float | str
COLUMNS: dict[str, Value] = {
    **{"backbone": "", "dataset": "", "method": "", "bits": "", "weight_bits": 0.0, "input_bits": 0.0},
    **{"calibration_epoch": 0.0, "epochs": 0.0, "batch_size": 0.0, "optimizer": "", "lr": 0.0, "lr_policy": ""},
    **{"momentum": 0.0, "weight_decay": 0.0, "ema_decay": 0.0, "precision": "", "kernels": "", "seed": 0.0},
}
"""Every column with a value of its type; columns that a config does not set stay empty in its row."""
FIRST = ("method", "bits", "lr", "epochs", "seed")


def hyperparameters(settings: Settings, runner: EpochRunner) -> dict[str, Value]:
    """Return the column values of a run, without the columns that it does not have."""
    optimizer, calibration = settings.optimizer, settings.calibration or CalibrationConfig()
    values = {
        "backbone": _backbone(settings.model.get("backbone") or {}),
        "dataset": (settings.data.train or {}).get("type"),
        **quantization(runner.module),
        "calibration_epoch": calibration.epoch if settings.quant_transformer else None,
        "epochs": runner.max_epochs,
        "batch_size": settings.data.samples_per_gpu * world_size() * runner.step.cumulative_iters,
        "optimizer": optimizer.get("type"),
        "lr": runner.step.optimizer.defaults.get("lr"),
        "lr_policy": settings.lr_config.policy if settings.lr_config else "fixed",
        "momentum": optimizer.get("momentum"),
        "weight_decay": optimizer.get("weight_decay"),
        "ema_decay": None if runner.ema is None else runner.ema.decay,
        "precision": str(runner.step.precision.dtype or "float32").removeprefix("torch."),
        "kernels": runner.meta.get("kernels"),
        "seed": runner.seed,
    }
    return {name: as_value(value, COLUMNS[name]) for name, value in values.items() if value is not None}


def settings_of(runner: EpochRunner) -> Settings | None:
    """Return the settings of a run; None if its runner was built without a work directory's hook."""
    hook = runner.find(WorkDirHook)
    return None if hook is None else hook.settings


def _backbone(section: Mapping[str, Any]) -> str:
    name = section.get("type", "")
    name = name if isinstance(name, str) else name.__name__
    return f"{name} {section['depth']}" if "depth" in section else name


def as_value(value: Any, example: Value = "") -> Value:
    """Convert `value` for the table: to a number if it and the column's `example` are numbers, else to a string."""
    if isinstance(example, str) or isinstance(value, bool):
        return str(value)
    try:
        return float(value)
    except (TypeError, ValueError):
        return str(value)


def config_values(cfg: Mapping[str, Any] | None, keys: Iterable[str]) -> dict[str, Value]:
    """Return the values of dotted `keys` in a config; a number in a key is an index in a list.

    Raises:
        ConfigError: A key is missing, or names a section or a list.
    """
    return {key: _config_value(dict(cfg or {}), key) for key in keys}


def _config_value(cfg: Any, key: str) -> Value:
    found: Any = cfg
    for part in key.split("."):
        if isinstance(found, (list, tuple)) and part.isdecimal() and int(part) < len(found):
            found = found[int(part)]
        elif isinstance(found, Mapping) and part in found:
            found = found[part]
        else:
            known = [str(name) for name in found] if isinstance(found, Mapping) else []
            raise ConfigError(
                f"TensorboardLoggerHook: hparams names '{key}', which the config does not have: '{part}'"
                f"{suggest(part, known)}"
            )
    if isinstance(found, (Mapping, list, tuple)):
        raise ConfigError(
            f"TensorboardLoggerHook: hparams names '{key}', which is a section or a list, not a value; "
            f"name one of its values, as in '{key}.{next(iter(found), 0) if isinstance(found, Mapping) else 0}'."
        )
    return as_value(found, 0.0 if isinstance(found, (int, float)) else "")
