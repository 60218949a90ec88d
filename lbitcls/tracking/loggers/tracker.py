"""Base class of hooks that send a run's records to a tracking service.

Every number of a record is sent under its name in `log.jsonl` behind the record's mode, as in TensorBoard:
`train/loss`, `val/top-1`, `train/epoch`. The step is the run's iteration. The work directory keeps the id that the
service gave to the run, so that a resumed run continues there. Such a hook does not change a run: one with it is
bit-identical to one without.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lbitcls.core.hooks.log import TRACKED, Writer, logged
from lbitcls.tracking.hparams import hyperparameters, settings_of
from lbitcls.utils.dist import is_main
from lbitcls.utils.errors import ConfigError, require_dict
from lbitcls.utils.files import read_lines, write_whole
from lbitcls.utils.jsontext import json_text

if TYPE_CHECKING:
    from lbitcls.core.runner import EpochRunner


class Tracker(Writer):
    """Hook that sends records to a service, on rank 0 only. A subclass defines the methods that raise here.

    The service's run begins with the first record, so that a command that fails earlier leaves nothing there. A service
    that fails later does not end training: a warning tells the reason, and nothing more is sent.

    Attributes:
        service: Name of the service, for messages; in lower case the key of its id in `trackers.json`.
    """

    service = ""

    def __init__(self) -> None:
        self._id: str | None = None
        self._failed = False

    def connect(self, runner: EpochRunner) -> None:
        """Check, before training, that the service can be used; raise `ConfigError` if not."""

    def begin(self, runner: EpochRunner, known: str | None, values: Mapping[str, Any]) -> str:
        """Begin the run, or continue the one with the id `known`; return its id.

        Args:
            runner: Runner at the first record.
            known: Id in the work directory; None: a new run.
            values: Hyperparameters by name, as in TensorBoard's table.
        """
        raise NotImplementedError

    def send(self, values: Mapping[str, float], step: int) -> None:
        """Send values by name, at an iteration."""
        raise NotImplementedError

    def end(self, state: str) -> None:
        """End the service's run; `state` is the runner's: `'finished'`, `'stopped'`, `'failed'`."""
        raise NotImplementedError

    # Events that the runner calls.

    def before_run(self, runner: EpochRunner) -> None:
        if any(type(hook) is type(self) for hook in runner.hooks if hook is not self):
            raise ConfigError(f"log_config.hooks has two {type(self).__name__}; a run has one. Remove one of them.")
        if is_main():
            self.connect(runner)

    def write(self, runner: EpochRunner, record: dict[str, Any]) -> None:
        if self._failed:
            return
        try:
            if self._id is None:
                self._id = self._begin(runner)
            self.send(numbers(record["mode"], logged(record, runner.images)), runner.iter)
        except Exception as error:  # whatever it is, it must not end the run
            self._give_up(runner, error)

    def after_run(self, runner: EpochRunner) -> None:
        if self._id is None:
            return
        try:
            self.end(runner.state)
        except Exception as error:
            self._give_up(runner, error)

    # Internals.

    def _begin(self, runner: EpochRunner) -> str:
        path, key = runner.work_dir / TRACKED, self.service.lower()
        ids, settings = read_ids(path), settings_of(runner)
        values = {} if settings is None else hyperparameters(settings, runner)
        found = self.begin(runner, ids.get(key), values)
        if found != ids.get(key):
            text = json_text({**ids, key: found}, indent=2) + "\n"
            write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
        return found

    def _give_up(self, runner: EpochRunner, error: Exception) -> None:
        self._failed = True
        runner.logger.warning(
            "%s: No longer sending records, which log.jsonl contains: %s: %s", self.service, type(error).__name__, error
        )


def numbers(mode: str, row: Mapping[str, Any]) -> dict[str, float]:
    """Return the finite numbers of a line of `log.jsonl`, named `MODE/NAME`.

    Example:
        >>> numbers("val", {"mode": "val", "epoch": 1, "top-1": 97.5, "loss": None})
        {'val/epoch': 1, 'val/top-1': 97.5}
    """
    return {
        f"{mode}/{name}": value
        for name, value in row.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    }


def read_ids(path: Path) -> dict[str, str]:
    """Return the ids in `trackers.json`, by service; none if the file is missing or damaged."""
    try:
        content = json.loads("\n".join(read_lines(path)))
    except (OSError, ValueError, RecursionError):
        return {}
    found = content if isinstance(content, dict) else {}
    return {key: value for key, value in found.items() if isinstance(value, str)}


def given_texts(owner: str, **options: Any) -> None:
    """Raise `ConfigError` for an option of the hook `owner` that is neither a text nor None."""
    for name, value in options.items():
        if value is not None and not (isinstance(value, str) and value):
            raise ConfigError(f"{owner}: {name} must be a text or None; got {value!r}.")


def given_dict(owner: str, name: str, value: Any) -> dict[str, Any]:
    """Return a copy of an option, empty for None; raise `ConfigError` unless it is a dict with names as keys."""
    found = require_dict(f"{owner}: {name}", value)
    for key in found:
        if not isinstance(key, str):
            raise ConfigError(f"{owner}: the keys of {name} must be names; got {key!r}.")
    return found
