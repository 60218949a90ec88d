"""Validation during a run (`evaluation`, `workflow`), and the best weights so far."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from lbitcls.core.answers import AnswerLog, Answers
from lbitcls.core.evaluation import evaluate
from lbitcls.core.hooks.hook import PRIORITIES, Hook
from lbitcls.core.step import Batch
from lbitcls.protocols import BatchLoader
from lbitcls.settings.parse import parse
from lbitcls.settings.training_sections import EvaluationConfig
from lbitcls.utils.checkpoint import checkpoint_content, read_checkpoint
from lbitcls.utils.dist import broadcast_module, broadcast_object, is_main, world_size
from lbitcls.utils.errors import CheckpointError, ConfigError
from lbitcls.utils.logging import DETAIL
from lbitcls.utils.shards import gathered, has_shards

if TYPE_CHECKING:
    from lbitcls.core.runner import EpochRunner


class EvaluationHook(Hook):
    """Hook that validates every `interval` epochs, after the last epoch, and at the end of a float phase.

    The best weights are saved to `best_<key>.pth`; those of a float phase, before the quantizers are switched on, to
    `best_float_<key>.pth`: the two are not compared with each other. After the run, the best weights of its last phase
    are loaded into the model.

    Args:
        loader: Data loader of the validation set (this rank's part).
        settings: Interval and metrics; None: the defaults.
        also_after: Numbers of epochs after which to validate in any case.
        final_phase: Phase that the run ends with, `'quantized'` or `'float'`.
        train: Data loader of training images (this rank's part), prepared as in validation, on which the model is
            measured at each validation too: records of the mode `train_eval`.

    Example:
        >>> EvaluationHook([], EvaluationConfig(interval=2)).save_best
        'top-1'
    """

    priority = PRIORITIES["BELOW_NORMAL"]

    def __init__(
        self,
        loader: BatchLoader,
        settings: EvaluationConfig | Mapping[str, Any] | None = None,
        *,
        also_after: Iterable[int] = (),
        final_phase: str = "float",
        train: BatchLoader | None = None,
    ) -> None:
        given = EvaluationConfig() if settings is None else settings
        self.settings = given if isinstance(given, EvaluationConfig) else parse(EvaluationConfig, given, "evaluation")
        self.loader = loader
        self.train = train
        self.metrics, self.topk = self.settings.metrics, self.settings.topk
        self.save_best = self.settings.best_key
        self.also_after = frozenset(also_after)
        self.final_phase = final_phase
        self.best: dict[str, dict[str, Any]] = {}
        self._answers: dict[int, Answers | None] = {}  # by epoch: of the last validation and of the best one
        self._weights_of: int | None = None  # epoch of the weights that the model has after the run

    @property
    def answers(self) -> Answers | None:
        """Validation answers of the weights that the model has after a complete run, on rank 0.

        None if this process did not validate these weights, as when the best ones are from before a resume.
        """
        return None if self._weights_of is None else self._answers.get(self._weights_of)

    def before_run(self, runner: EpochRunner) -> None:
        """When resuming, drop best weights whose file is missing, so that no result is reported without them."""
        kept = broadcast_object({phase: best for phase, best in self.best.items() if _is_there(runner, best)})
        for phase in self.best.keys() - kept.keys():
            best = self.best[phase]
            runner.logger.warning(
                "The best %s weights so far (%s %.4f, epoch %d) are no longer in %s: tracking the best from here on.",
                *(phase, best["key"], best["value"], best["epoch"], runner.work_dir / best["file"]),
            )
        self.best = kept

    def after_epoch(self, runner: EpochRunner) -> None:
        if not self.validates(runner.epoch, runner.max_epochs):
            return
        broadcast_module(runner.eval_model, parameters=False)
        if self.train is not None:
            self._measure(runner, "train_eval", self.train, ("accuracy",))
        log = AnswerLog()
        results = self._measure(runner, "val", self.loader, self.metrics, log)
        dropped = [f"top-{k}" for k in self.topk if "accuracy" in self.metrics and f"top-{k}" not in results]
        if dropped:
            runner.logger.debug("Left out %s: the model has fewer classes.", ", ".join(dropped))
        if self.save_best is not None:
            self._keep_best(runner, results)
        best = self.best.get(runner.phase, {}).get("epoch")
        self._answers = {epoch: found for epoch, found in self._answers.items() if epoch == best}
        self._answers[runner.epoch] = log.result()

    def validates(self, epoch: int, max_epochs: int) -> bool:
        """Return True if a run of `max_epochs` epochs validates after `epoch` of them."""
        regular = epoch % self.settings.interval == 0 and epoch >= self.settings.start
        return regular or epoch in self.also_after or epoch == max_epochs

    def _measure(
        self,
        runner: EpochRunner,
        mode: str,
        loader: BatchLoader,
        metrics: Sequence[str],
        log: AnswerLog | None = None,
    ) -> dict[str, Any]:
        """Evaluate on the batches of `loader`, and publish the results as a record of `mode`."""
        batches = self._batches(runner, loader)
        describe = getattr(getattr(loader, "dataset", None), "describe", str)
        results = evaluate(
            runner.eval_model,
            batches,
            runner.step.device,
            metrics=metrics,
            topk=self.topk,
            watch=None if log is None else log.add,
            describe=describe,
        )
        runner.publish({"mode": mode, "epoch": runner.epoch, "iter": len(runner.loader), **results})
        return results

    def _batches(self, runner: EpochRunner, loader: BatchLoader) -> Iterator[Batch]:
        for batch in runner.features.batches(runner, loader, training=False):
            runner.call("during_validation")
            runner.guard.raise_if_signalled()
            yield runner.to_device(batch)

    def _keep_best(self, runner: EpochRunner, results: dict[str, Any]) -> None:
        key = str(self.save_best)
        if key not in results:
            raise ConfigError(f"evaluation.save_best='{key}': the model has too few classes for it.")
        best = self.best.get(runner.phase)
        if best is not None and not _better(key, results[key], best["value"]):
            return
        name = f"best_{key}.pth" if runner.phase == self.final_phase else f"best_{runner.phase}_{key}.pth"
        self.best[runner.phase] = {"key": key, "value": results[key], "epoch": runner.epoch, "file": name}
        if is_main() or has_shards(runner.eval_model):
            meta = {**runner.position(), key: results[key]}
            content = gathered(checkpoint_content(runner.eval_model, meta=meta), keep=is_main())
        if is_main():
            runner.writer.save(content, runner.work_dir / name)

    def after_run(self, runner: EpochRunner) -> None:
        best = self.best.get(runner.phase)
        self._weights_of = runner.epoch if runner.completed else None
        if best is None or not self.settings.reload_best or not runner.completed:
            return
        if self.load_best(runner, runner.eval_model):
            self._weights_of = best["epoch"]

    def load_best(self, runner: EpochRunner, model: nn.Module) -> bool:
        """Load the best weights of the current phase into `model` on all ranks; they may be an average's.

        Returns:
            False if there is no readable file of them: the model keeps its weights, with a warning.
        """
        best = self.best.get(runner.phase)
        if best is None:
            return False
        path, loaded = runner.work_dir / best["file"], True
        said = "Reloaded the best weights: %s %.4f, epoch %d, %s"
        sharded = has_shards(model)
        if is_main():
            runner.writer.wait()
        if sharded:
            broadcast_object(None)  # each process reads its parts, when the file is there
        if is_main() or sharded:
            try:
                model.load_state_dict(read_checkpoint(path)["state_dict"])
            except CheckpointError as error:
                runner.logger.warning("%s", error)
                loaded = False
                said = "Kept the last epoch's weights instead of the best: %s %.4f, epoch %d, %s"
        self._share(model)
        runner.logger.info(said, best["key"], best["value"], best["epoch"], path, extra=DETAIL)
        return broadcast_object(loaded)

    def _share(self, model: nn.Module) -> None:
        """Send the weights that rank 0 read to every rank."""
        if world_size() > 1:
            from lbitcls.quant import refresh

            broadcast_module(model)
            refresh(model)

    def state_dict(self) -> dict[str, Any]:
        return {"best": {phase: dict(best) for phase, best in self.best.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best = {phase: dict(best) for phase, best in state["best"].items()}


def load_best_so_far(runner: EpochRunner) -> None:
    """Load the best weights of the current phase into the model and its average; without validation there are none."""
    validation = runner.find(EvaluationHook)
    if validation is not None and validation.load_best(runner, runner.module) and runner.ema is not None:
        runner.ema.module.load_state_dict(runner.module.state_dict())


def _is_there(runner: EpochRunner, best: dict[str, Any]) -> bool:
    """Return True if the work directory contains the file of the best weights, undamaged, from this run and epoch."""
    try:
        meta = read_checkpoint(runner.work_dir / best["file"])["meta"]
    except CheckpointError:
        return False
    return (meta.get("run"), meta.get("epoch")) == (runner.meta.get("run"), best["epoch"])


def _better(key: str, value: float, best: float) -> bool:
    return value < best if key == "loss" else value > best


def validated_epochs(workflow: Sequence[tuple[str, int]], max_epochs: int) -> set[int]:
    """Return the epochs after which `workflow` validates: none for `[('train', 1)]`, all with `('val', 1)` added."""
    chosen: set[int] = set()
    epoch = 0
    while epoch < max_epochs:
        for mode, times in workflow:
            epoch += times if mode == "train" else 0
            if mode == "val" and epoch:
                chosen.add(epoch)
    return chosen
