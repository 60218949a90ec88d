"""`MlflowLoggerHook`: log a run in MLflow."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lbitcls.registry import HOOKS
from lbitcls.tracking.hparams import settings_of
from lbitcls.tracking.loggers.tracker import Tracker, given_dict, given_texts
from lbitcls.utils.errors import ConfigError, reason_of
from lbitcls.utils.extras import import_extra

if TYPE_CHECKING:
    from lbitcls.core.runner import EpochRunner

_STATES = {"finished": "FINISHED", "stopped": "KILLED"}
_DEFAULT = "Default"  # MLflow's name of the experiment that always exists


@HOOKS.register_module()
class MlflowLoggerHook(Tracker):
    """Hook that logs a run in MLflow: metrics, hyperparameters as `params`, and the resolved config as an artifact.

    Args:
        exp_name: Experiment, created if it does not exist; None: `MLFLOW_EXPERIMENT_NAME`, or else MLflow's `Default`.
        tags: Tags of the run, texts by name.
        tracking_uri: Server (`http://…`) or store (`file:///…`); None: `MLFLOW_TRACKING_URI`, or else MLflow's default.
        run_name: Name of the run; None: that of the work directory.

    Raises:
        ConfigError: An option has a wrong type; at the start of the run: MLflow rejects the store or the experiment.
        DependencyError: MLflow is not installed.
    """

    service = "MLflow"

    def __init__(
        self,
        exp_name: str | None = None,
        tags: dict[str, str] | None = None,
        tracking_uri: str | None = None,
        run_name: str | None = None,
    ) -> None:
        super().__init__()
        owner = type(self).__name__
        given_texts(owner, exp_name=exp_name, tracking_uri=tracking_uri, run_name=run_name)
        self.exp_name, self.tracking_uri, self.run_name = exp_name, tracking_uri, run_name
        self.tags = {name: str(value) for name, value in given_dict(owner, "tags", tags).items()}
        self._mlflow = import_extra("mlflow", "mlflow", owner)
        self._client: Any = None
        self._experiment = ""

    def connect(self, runner: EpochRunner) -> None:
        name = self.exp_name or os.environ.get("MLFLOW_EXPERIMENT_NAME") or _DEFAULT
        try:
            self._client = self._mlflow.MlflowClient(tracking_uri=self.tracking_uri)
            found = self._client.get_experiment_by_name(name)
            self._experiment = self._client.create_experiment(name) if found is None else found.experiment_id
        except Exception as error:  # of the store that the user chose: a database's, a server's, a file system's
            where = f"tracking_uri={self.tracking_uri!r}, exp_name={name!r}"
            raise ConfigError(f"MlflowLoggerHook({where}): MLflow cannot use it: {reason_of(error)}") from error

    def begin(self, runner: EpochRunner, known: str | None, values: Mapping[str, Any]) -> str:
        if known is not None:
            self._client.update_run(known, status="RUNNING")
            return known
        name = self.run_name or runner.work_dir.resolve().name
        found = self._client.create_run(self._experiment, run_name=name, tags=self.tags).info.run_id
        param, settings = self._mlflow.entities.Param, settings_of(runner)
        self._client.log_batch(found, params=[param(key, str(value)) for key, value in values.items()])
        if settings is not None:
            self._client.log_text(found, settings.text, "config.py")
        return found

    def send(self, values: Mapping[str, float], step: int) -> None:
        metric, now = self._mlflow.entities.Metric, int(time.time() * 1000)
        self._client.log_batch(self._id, metrics=[metric(name, value, now, step) for name, value in values.items()])

    def end(self, state: str) -> None:
        if state != "running":  # a run that rewinds goes on
            self._client.set_terminated(self._id, _STATES.get(state, "FAILED"))
