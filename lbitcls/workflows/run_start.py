"""Start of a run: the checkpoint to resume from, and the run's seed and name."""

from __future__ import annotations

import os
from pathlib import Path

from lbitcls.assembly.session import Session
from lbitcls.core.run_files import checkpoints, claimed_since, name_run, newest_checkpoint, noted_run
from lbitcls.core.runner import EpochRunner
from lbitcls.settings.sections import Settings
from lbitcls.utils.checkpoint import read_checkpoint
from lbitcls.utils.dist import LAUNCHED, broadcast_object, is_main, restarts
from lbitcls.utils.env import draw_seed
from lbitcls.utils.logging import DETAIL
from lbitcls.workflows.run_kernels import Start


def say_where(runner: EpochRunner, path: Path) -> None:
    """Log the position at which the run resumes from `path`."""
    if runner.epoch < runner.max_epochs:
        runner.logger.info("Resuming from %s: epoch %d, iteration %d", path, runner.epoch + 1, runner.inner_iter)
    else:
        runner.logger.info(
            "The run of %s is complete, with %d of %d epochs: nothing is trained. To continue, raise total_epochs.",
            *(path, runner.epoch, runner.max_epochs),
        )


def continues(work_dir: Path, launcher: str, session: Session) -> bool:
    """Return True if these processes were restarted after a failure of a run that has begun in the work directory."""
    number = restarts(launcher)
    if not number:
        return False
    begun = broadcast_object(claimed_since(work_dir, float(os.environ.get(LAUNCHED, 0))))
    session.logger.warning(
        "Restart %d after a failure: %s.", number, "resuming from the last checkpoint" if begun else "nothing to resume"
    )
    return bool(begun)


def find_start(settings: Settings, work_dir: Path, resume: bool, session: Session) -> Start:
    """Return the checkpoint to resume from, and its content.

    With `resume`, it is the newest in the work directory, so that a job that is started again does not go back; before
    the first one exists, and without `resume`, it is `resume_from`.
    """
    given = settings.resume_from
    if given is not None and not (resume and broadcast_object(is_main() and bool(checkpoints(work_dir)))):
        return Path(given), read_checkpoint(given)
    if not resume:
        return None
    found = newest_checkpoint(work_dir, session.logger) if is_main() else None
    path = broadcast_object(found[0] if found else None)
    if path is None:
        session.logger.info("--resume: No checkpoint of the run in %s yet; starting from scratch.", work_dir)
        return None
    return found or (path, read_checkpoint(path))


def choose_seed(given: int | None, start: Start, session: Session) -> int:
    """Return the seed: the config's, that of the resumed run, or a drawn one."""
    saved = start[1]["meta"].get("seed") if start else None
    if given is None:
        given = saved if saved is not None else broadcast_object(draw_seed())
    elif saved is not None and saved != given:
        session.logger.warning("seed=%s, but the run was started with %s: it continues differently.", given, saved)
    session.logger.info("Seed: %d", given, extra=DETAIL)
    return given


def run_name(start: Start, resumed: Path | None) -> str:
    """Return the name of the resumed run, or a new name, by which the run recognizes its own checkpoints.

    A run in the folder `resumed` that has no checkpoint yet keeps its name.
    """
    new = name_run()
    if start is not None:
        return broadcast_object(start[1]["meta"].get("run", new))
    return broadcast_object((noted_run(resumed) if resumed else None) or new)
