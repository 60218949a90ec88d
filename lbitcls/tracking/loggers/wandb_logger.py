"""`WandbLoggerHook`: log a run in Weights & Biases."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lbitcls.registry import HOOKS
from lbitcls.tracking.hparams import settings_of
from lbitcls.tracking.loggers.tracker import Tracker, given_dict
from lbitcls.utils.errors import ConfigError, reason_of
from lbitcls.utils.extras import import_extra

if TYPE_CHECKING:
    from lbitcls.core.runner import EpochRunner


@HOOKS.register_module()
class WandbLoggerHook(Tracker):
    """Hook that logs a run in Weights & Biases, with the resolved config and the hyperparameters as its `config`.

    Args:
        init_kwargs: Arguments of `wandb.init`: `project`, `entity`, `mode` (`'offline'` writes to the work directory,
            for `wandb sync`), `tags`, …. By default `name` is the work directory's name, `dir` the work directory.

    Raises:
        ConfigError: An option has a wrong type; at the start of the run: this user is not logged in, and `mode` is not
            `'offline'`.
        DependencyError: The package wandb is not installed.
    """

    service = "Wandb"

    def __init__(self, init_kwargs: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.init_kwargs = given_dict("WandbLoggerHook", "init_kwargs", init_kwargs)
        self._wandb = import_extra("wandb", "wandb", "WandbLoggerHook")
        self._run: Any = None

    def connect(self, runner: EpochRunner) -> None:
        if (self.init_kwargs.get("mode") or self._wandb.setup().settings.mode) in ("offline", "disabled"):
            return
        try:
            ready, why = self._wandb.login(), "no API key"
        except Exception as error:  # without a terminal to ask for the key
            ready, why = False, reason_of(error)
        if not ready:
            raise ConfigError(
                f"WandbLoggerHook: not logged in to Weights & Biases ({why}); run wandb login, or set "
                "init_kwargs=dict(mode='offline')."
            )

    def begin(self, runner: EpochRunner, known: str | None, values: Mapping[str, Any]) -> str:
        settings = settings_of(runner)
        found = known or self.init_kwargs.get("id") or secrets.token_hex(8)
        defaults = {
            "dir": str(runner.work_dir),
            "name": runner.work_dir.resolve().name,
            "config": {**values, "config": None if settings is None else settings.text},
            "settings": {"console": "off"},  # the run has a log of its own
            "resume": "allow",
        }
        self._run = self._wandb.init(**{**defaults, **self.init_kwargs, "id": found})
        return found

    def send(self, values: Mapping[str, float], step: int) -> None:
        self._run.log(dict(values), step=step)

    def end(self, state: str) -> None:
        self._run.finish(exit_code=0 if state in ("finished", "running") else 1)
