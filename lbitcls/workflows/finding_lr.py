"""Learning-rate range test of a config: `lbitcls train CONFIG --find-lr`."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from lbitcls.assembly.session import open_session
from lbitcls.core.hooks.calibration_hook import CalibrationHook
from lbitcls.core.hooks.progressive_hook import ProgressiveHook
from lbitcls.core.hooks.unfreeze import UnfreezeHook
from lbitcls.core.lr_finder import LEAST, MOST, STEPS, RangeTest, range_test
from lbitcls.core.runner import EpochRunner
from lbitcls.settings.sections import ConfigLike, read_settings
from lbitcls.utils.dist import find_place
from lbitcls.utils.errors import ConfigError
from lbitcls.utils.files import write_whole
from lbitcls.utils.jsontext import json_text
from lbitcls.utils.lock import RunLock
from lbitcls.workflows.training import open_run

FIGURE, VALUES = "lr_range_test.png", "lr_range_test.json"
"""Files of a range test, in the work directory."""


def find_learning_rate(
    cfg: ConfigLike,
    *,
    epoch: int | None = None,
    least: float = LEAST,
    most: float = MOST,
    steps: int = STEPS,
    resume: bool = False,
    data_root: str | None = None,
    launcher: str = "none",
    verbose: bool = False,
) -> RangeTest:
    """Run a learning-rate range test, and write its curve and its values to the work directory.

    The work directory's run does not change, and can be resumed afterwards. The test calls no hooks except
    `UnfreezeHook` and those of `calibration` and `progressive`.

    Args:
        cfg: Config of the run; `load_from` names weights to start from.
        epoch: Epoch (from 0) whose frozen parts, quantizers and bits apply; None: 0, or that of the resumed run.
        least: Learning rate of the first step.
        most: Learning rate of the last step.
        steps: Number of optimizer steps.
        resume: True: start from the newest checkpoint in the work directory.
        data_root: Folder to search for relative data paths (`--data-root`).
        launcher: Launcher that started this process.
        verbose: True: show every line of the log.

    Returns:
        Rates, losses and the suggestion.

    Raises:
        ConfigError: The config or an argument is wrong, or several processes were started.
    """
    settings = read_settings(cfg)
    settings.require(("model", "data", "optimizer", "total_epochs"), "a range test")
    if epoch is not None and not 0 <= epoch < settings.epochs:
        raise ConfigError(f"--find-lr-epoch must be an integer from 0 to {settings.epochs - 1}; got {epoch}.")
    if find_place(launcher).world_size > 1:
        raise ConfigError("--find-lr runs in one process; start it without a launcher.")
    with RunLock(settings.run_folder) as lock, open_session(settings, launcher, lock=lock, verbose=verbose) as session:
        runner = open_run(settings, lock.folder, session, resume=resume, validate=False, data_root=data_root)[1]
        _enter(runner, epoch)
        found = range_test(runner, least=least, most=most, steps=steps)
        _write(found, lock.folder)
        _say(found, lock.folder)
    return found


def _enter(runner: EpochRunner, epoch: int | None) -> None:
    """Bring the model into its state at the start of an epoch: frozen parts, quantizers and their bits."""
    kinds = (CalibrationHook, ProgressiveHook, UnfreezeHook)
    hooks = [hook for hook in runner.hooks if isinstance(hook, kinds)]
    for hook in hooks:
        hook.before_run(runner)
    runner.wrap_model()
    if epoch is not None:
        runner.epoch, runner.iter, runner.inner_iter = epoch, epoch * len(runner.loader), 0
    for hook in hooks:
        hook.before_epoch(runner)


def _say(found: RangeTest, folder: Path) -> None:
    """Print the suggestion, or the reason why there is none."""
    tried = f"{found.rates[0]:.2g} to {found.rates[-1]:.2g}"
    if found.suggestion is None:
        print(f"No suggestion: the loss did not fall clearly at any learning rate from {tried}.")
    else:
        print(f"Suggested learning rate: optimizer.lr={found.suggestion:.2g} (tried: {tried})")
    print(f"Curve: {folder / FIGURE}, values: {folder / VALUES}")


def _write(found: RangeTest, folder: Path) -> None:
    from lbitcls.analysis.figures import save
    from lbitcls.analysis.lr_curve import draw_range_test

    folder.mkdir(parents=True, exist_ok=True)
    text = json_text(vars(found)) + "\n"
    write_whole(folder / VALUES, partial(Path.write_text, data=text, encoding="utf-8"))
    save(draw_range_test(found.rates, found.losses, found.smooth, found.suggestion), folder / FIGURE)
