"""Epoch runner: keeps the position, trains on each batch, and leaves the rest to hooks.

Position: `epoch` (completed), `iter` (batches trained on in the run), `inner_iter` (in this epoch). A checkpoint counts
the epoch's samples as well, so that other batch sizes and numbers of processes can continue. Random numbers of an
iteration are drawn after seeding from (seed, iter, rank), the learning rate is a function of (iter, epoch), and the
loader returns the batches of (epoch, inner_iter): so a run resumed from a saved position, even mid-epoch, continues
exactly as it would have without the interruption.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from lbitcls.core.checkpoint_writer import CheckpointWriter
from lbitcls.core.ema import ModelEMA
from lbitcls.core.features import FeatureCache
from lbitcls.core.guard import Guard, Interrupted, Rewind, check_weights, not_finite_error
from lbitcls.core.optim import StateError
from lbitcls.core.optimizer_pair import QUANTIZERS, optimizer_name
from lbitcls.core.position import position_meta, take_position
from lbitcls.core.run_files import INTERRUPTED, LATEST
from lbitcls.core.schedule import Schedule
from lbitcls.core.step import Batch, OptimizerStep
from lbitcls.protocols import BatchLoader, RunHook
from lbitcls.utils.checkpoint import checkpoint_content, compare, other_grids, write_checkpoint
from lbitcls.utils.checkpoint_content import checked_tensors, listed, shown_name
from lbitcls.utils.dist import is_main, rank, world_size
from lbitcls.utils.env import mix_seed
from lbitcls.utils.errors import CheckpointError, ResourceError
from lbitcls.utils.failures import explain
from lbitcls.utils.files import link_whole
from lbitcls.utils.logging import get_logger
from lbitcls.utils.sharded_checkpoint import SUFFIX, write_sharded
from lbitcls.utils.shards import gathered, has_shards

_Hook = TypeVar("_Hook")
_POSITION = ("epoch", "iter", "inner_iter", "epoch_len")


class EpochRunner:
    """Runner that trains a model for `max_epochs` epochs.

    Args:
        model: Classifier, on its device; the attribute `module` is the classifier, `model` its wrapper in training
            (DDP).
        step: Training step from a batch to the optimizer.
        loader: Data loader of the training batches.
        schedule: Learning rate as a function of the position.
        quantizer_schedule: That of the quantizers' parameters, if `paramwise_cfg` sets one.
        max_epochs: Number of epochs after which the run ends.
        work_dir: Folder for checkpoints.
        hooks: Hooks, called in order of priority (lower first; equal ones in the order given).
        seed: Seed of all random numbers in training.
        ema: Averaged model; if given, it is validated and saved.
        writer: Writer of the checkpoints; None: in the background.
        wrap: Function that wraps the model in DDP (again after a calibration).
        memory_format: Memory format of the images.
        features: Cache of a frozen backbone's features.
        meta: Additional metadata for checkpoints (`config`, …).
        logger: Logger; None: the package's logger.

    Raises (from `run`):
        TrainingError: A loss or a weight is not finite.
        ResourceError: A resource failed (a full disk, memory, a killed process); earlier checkpoints are good.
        Interrupted: A signal arrived, or the time limit is near; the position is saved.
    """

    def __init__(
        self,
        model: nn.Module,
        step: OptimizerStep,
        loader: BatchLoader,
        schedule: Schedule,
        *,
        max_epochs: int,
        work_dir: Path,
        quantizer_schedule: Schedule | None = None,
        hooks: Sequence[RunHook] = (),
        seed: int = 0,
        ema: ModelEMA | None = None,
        writer: CheckpointWriter | None = None,
        wrap: Callable[[nn.Module], nn.Module] = lambda module: module,
        memory_format: torch.memory_format = torch.contiguous_format,
        features: FeatureCache | None = None,
        meta: Mapping[str, Any] | None = None,
        logger: logging.Logger | None = None,
    ) -> None:
        self.module = model
        self.model = model
        self.step = step
        self.loader = loader
        self.schedule = schedule
        self.quantizer_schedule = quantizer_schedule
        self.max_epochs = max_epochs
        self.work_dir = Path(work_dir)
        self.hooks = sorted(hooks, key=lambda hook: hook.priority)
        self.seed = seed
        self.ema = ema
        self.writer = writer or CheckpointWriter()
        self.memory_format = memory_format
        self.features = features or FeatureCache()
        self.meta = dict(meta or {})
        self.logger = logger or get_logger()
        self.epoch = self.iter = self.inner_iter = 0
        self.images = 0  # trained on in the run, on all ranks
        self.batch_count = 0  # images of this rank's batch that count
        self.phase = "float"
        self.state = "running"  # then "finished", "stopped" or "failed"
        self.outputs: dict[str, torch.Tensor] = {}
        self.data_time = 0.0
        self.guard = Guard()
        self.post_mortem: Callable[[], str] = str  # sentences on a loss that is not finite; all ranks call it
        self.saved = False  # a checkpoint exists, from this process or from the run it resumes
        self._wrap = wrap

    # The run, top to bottom.

    def run(self) -> None:
        """Train from the current position to the end."""
        try:
            self._run()
        except (OSError, RuntimeError, MemoryError) as error:
            told = explain(error)
            if told is None:
                raise
            raise ResourceError(f"{told} {self._way_on()}") from error

    def _run(self) -> None:
        with self.guard, self.writer:
            try:
                self.call("before_run")
                self.wrap_model()
                while self.epoch < self.max_epochs:
                    self.train_epoch()
                self.writer.wait()
                self.state = "finished"
            except Interrupted as stop:
                raise self._save_interrupted(stop) from None
            except BaseException as error:
                self.state = "running" if isinstance(error, Rewind) else "failed"
                raise
            finally:
                self.call("after_run")

    def train_epoch(self) -> None:
        """Train from `inner_iter` to the end of the epoch."""
        self.call("before_epoch")
        self.model.train()
        for batch in self._batches():
            self.call("before_iter")
            self.train_iter(batch)
            if self.outputs:
                self.guard.watch(self.iter - 1, self.outputs["loss"])
            stop = self._agreed_stop()
            self.writer.check()
            self.call("after_iter")
            self._stop_if(stop)
        self._stop_if(self._agreed_stop(now=True))
        self._finish_epoch()

    def train_iter(self, batch: Batch) -> None:
        """Train on one batch; `outputs` keeps the model's outputs."""
        for group in self.step.optimizer.param_groups:
            schedule = self.quantizer_schedule if group.get("schedule") == QUANTIZERS else None
            group["lr"] = (schedule or self.schedule)(group["initial_lr"], self.iter, self.epoch)
        self.seed_iteration()
        own, everywhere = share = self.loader.share(self.epoch, self.inner_iter)
        self.outputs = self.step(self.model, self.to_device(batch), self.inner_iter, len(self.loader), share)
        if self.at_step and not self.step.refused:
            self.call("after_step")
            if self.ema is not None:
                self.ema.update(self.module, self.epoch, ends_epoch=self.inner_iter + 1 == len(self.loader))
        self.iter += 1
        self.inner_iter += 1
        self.images += len(batch["gt_label"]) * world_size() if self.step.uneven else everywhere
        self.batch_count = len(batch["gt_label"]) if own else 0

    def call(self, event: str) -> None:
        """Call the method `event` of every hook."""
        for hook in self.hooks:
            getattr(hook, event)(self)

    def find(self, kind: type[_Hook]) -> _Hook | None:
        """Return the first hook of type `kind`, or None."""
        return next((hook for hook in self.hooks if isinstance(hook, kind)), None)

    def keyed_hooks(self) -> dict[str, RunHook]:
        """Return the hooks by the key of their state in a checkpoint: their name, numbered if an earlier one has it."""
        keyed: dict[str, RunHook] = {}
        for hook in self.hooks:
            key, number = hook.name, 1
            while key in keyed:
                number += 1
                key = f"{hook.name}-{number}"
            keyed[key] = hook
        return keyed

    def publish(self, record: dict[str, Any]) -> None:
        """Pass a record of results to every hook (loggers write it)."""
        for hook in self.hooks:
            hook.on_record(self, record)

    # Parts of the run.

    @property
    def completed(self) -> bool:
        """True if the last epoch is over."""
        return self.state == "finished"

    @property
    def at_step(self) -> bool:
        """True if the current batch is the last of its group (see `OptimizerStep`)."""
        return self.step.ends_group(self.inner_iter, len(self.loader))

    @property
    def between_steps(self) -> bool:
        """True if no gradient is waiting for the rest of its group, so that the position can be saved."""
        return self.inner_iter == 0 or self.step.ends_group(self.inner_iter - 1, len(self.loader))

    @property
    def eval_model(self) -> nn.Module:
        """Model that is validated and saved: the averaged one if there is one."""
        return self.module if self.ema is None else self.ema.module

    def wrap_model(self) -> None:
        """Wrap the model in DDP, replacing an earlier wrapper."""
        self.model = self.module
        self.model = self._wrap(self.module)

    def seed_iteration(self) -> None:
        """Seed torch's generators for the current iteration on this rank."""
        torch.manual_seed(mix_seed(self.seed, self.iter, rank()))

    def to_device(self, batch: Batch) -> Batch:
        """Return the batch on the model's device, images (or `features`) in the memory format of the run."""
        device = self.step.device
        names = [name for name in ("img", "features", "gt_label") if name in batch]
        moved: Batch = {name: batch[name].to(device, non_blocking=True) for name in names}
        if "img" in moved and self.memory_format is not torch.contiguous_format:
            moved["img"] = moved["img"].contiguous(memory_format=self.memory_format)
        if "index" in batch:
            moved["index"] = batch["index"]  # for look-ups, on the CPU
        return moved

    def _batches(self) -> Iterator[Batch]:
        batches = iter(self.features.batches(self, self.loader, training=True, start=self.inner_iter))
        while True:
            start = time.perf_counter()
            batch = next(batches, None)
            if batch is None:
                return
            self.data_time = time.perf_counter() - start
            yield batch

    def _agreed_stop(self, now: bool = False) -> int:
        """Return the number of the signal that stops all ranks, or 0; raise if a loss was not finite."""
        bad, number = self.guard.agree(now)
        if bad:
            raise not_finite_error(bad, len(self.loader), self.post_mortem())
        return number

    def _stop_if(self, number: int) -> None:
        if number and self.between_steps:
            raise Interrupted(number)

    def _finish_epoch(self) -> None:
        self.epoch, self.inner_iter = self.epoch + 1, 0
        try:
            self.call("after_epoch")
        except Interrupted:  # during validation: resume after the epoch's last batch
            self.epoch, self.inner_iter = self.epoch - 1, len(self.loader)
            raise

    # Saving and resuming.

    def save(self, path: Path, then: Callable[[], None] = lambda: None) -> Path:
        """Save the position, also as `latest.pth`, and return the path. All ranks must call this, between two steps.

        Rank 0 writes the file, maybe later (`writer.wait()`), and calls `then`. Of a distributed model, all ranks write
        a folder at once; it is a file only at the end of the run.
        """
        self._agreed_stop(now=True)
        check_weights(self.module.parameters(), self.iter)
        if (sharded := has_shards(self.module)) or is_main():
            content = checkpoint_content(self.eval_model, self.step.optimizer, self.position(), **self._states())
        if sharded and self.epoch < self.max_epochs:
            path = path.with_suffix(SUFFIX)
            write_sharded(content, path, write_checkpoint)
            if is_main():
                self._finish_save(path, then)
        elif is_main():
            self.writer.save(gathered(content), path, lambda: self._finish_save(path, then))
        elif sharded:
            gathered(content, keep=False)
        self.saved |= not is_main()
        return path

    def _finish_save(self, path: Path, then: Callable[[], None]) -> None:
        if path.suffix == SUFFIX:
            (self.work_dir / LATEST).unlink(missing_ok=True)  # of an earlier end of the run
        else:
            link_whole(path, self.work_dir / LATEST)
        self.saved = True
        then()

    def position(self) -> dict[str, Any]:
        """Return the metadata of a checkpoint: the position and everything it depends on."""
        return {
            **self.meta,
            **position_meta(self),
            "seed": self.seed,
            "phase": self.phase,
            "optimizer": optimizer_name(self.step.optimizer),
        }

    def _states(self) -> dict[str, Any]:
        hooks = {key: state for key, hook in self.keyed_hooks().items() if (state := hook.state_dict())}
        states: dict[str, Any] = {"scaler": self.step.scaler.state_dict(), "hooks": hooks}
        if self.ema is not None:
            states |= {"ema": self.ema.state_dict(), "train_state_dict": self.module.state_dict()}
        return states

    def restore(self, checkpoint: Mapping[str, Any], path: Path) -> None:
        """Restore the position that `save` wrote to `path`.

        Raises:
            CheckpointError: The checkpoint belongs to another model, or contains weights only.
        """
        missing = [name for name in _POSITION if checkpoint["meta"].get(name) is None]
        if missing or not isinstance(checkpoint.get("optimizer"), Mapping):
            raise CheckpointError(
                f"{path} contains weights only, not a run to resume; use --load-from to initialize from it."
            )
        averaged = "train_state_dict" in checkpoint
        weights = checked_tensors(checkpoint, path, "train_state_dict" if averaged else "state_dict")
        fit = compare(self.module.state_dict(), weights, other_grids(self.module, weights))
        if not fit.complete:
            raise CheckpointError(
                f"{path} is a run of another model; to initialize from its weights use --load-from:"
                f"{fit.cause()}{fit.text()}"
            )
        self.module.load_state_dict(weights, strict=False)  # BatchNorm's counters may be missing
        try:
            self._restore_states(checkpoint, averaged)
        except Exception as error:  # each part defines its own state and its own errors
            why = str(error) if isinstance(error, StateError) else f"{type(error).__name__}: {shown_name(str(error))}"
            raise CheckpointError(
                f"{path} is a run with another optimizer or other hooks than the config's, or is damaged ({why}). "
                "Resume with the config that started it; to initialize a new run from its weights use --load-from."
            ) from error
        self.phase = checkpoint["meta"].get("phase", self.phase)
        take_position(self, checkpoint["meta"])
        self.saved = True

    def _restore_states(self, checkpoint: Mapping[str, Any], averaged: bool) -> None:
        name, own = checkpoint["meta"].get("optimizer"), optimizer_name(self.step.optimizer)
        if name not in (None, own):
            raise StateError(f"it was trained with {shown_name(name)}; the config sets {own}")
        self.step.load_state_dict(dict(checkpoint))
        if averaged != (self.ema is not None):
            self.logger.warning(
                "The run was saved %s ema and resumes %s: its results will differ.",
                *(("with", "without") if averaged else ("without", "with")),
            )
        if self.ema is not None:
            self.ema.module.load_state_dict(checkpoint["state_dict"], strict=False)
            self.ema.load_state_dict(checkpoint.get("ema", {"steps": 0}))
        states = checkpoint.get("hooks", {})
        if not isinstance(states, Mapping):
            raise StateError(f"'hooks' must be a dict; got a {type(states).__name__}")
        hooks = self.keyed_hooks()
        for key, state in states.items():
            if key in hooks:
                hooks[key].load_state_dict(state)
        if lost := [key for key in states if key not in hooks]:
            self.logger.warning("The run was saved with %s and resumes without: its results will differ.", listed(lost))

    def _way_on(self) -> str:
        if self.saved:
            return "To resume from the last saved checkpoint, use --resume (and the same --work-dir)."
        return "No checkpoint of the run was saved."

    def _save_interrupted(self, stop: Interrupted) -> Interrupted:
        path = self.work_dir / INTERRUPTED
        self.state = "failed"
        path = self.save(path)
        self.writer.wait()
        self.state = "stopped"
        return Interrupted(
            stop.number,
            f"stopped by {stop.cause} in epoch {self.epoch + 1} after {self.inner_iter} of {len(self.loader)} "
            f"iterations; saved {path}. To resume, use --resume (and the same --work-dir).",
        )
