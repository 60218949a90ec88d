"""Trains the classifier of a config, or resumes a run: `lbitcls train`."""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lbitcls.assembly.run_hooks import build_hooks
from lbitcls.assembly.session import Session, check_data, data_section, load_data, make_model, open_session
from lbitcls.core.checkpoint_writer import CheckpointWriter
from lbitcls.core.distillation import Student
from lbitcls.core.ema import build_average
from lbitcls.core.features import FeatureCache, build_feature_cache
from lbitcls.core.guard import Rewind
from lbitcls.core.hooks import Hook
from lbitcls.core.hooks.distiller import Distiller
from lbitcls.core.hooks.evaluation_hook import EvaluationHook
from lbitcls.core.hooks.not_finite_hook import NotFiniteHook
from lbitcls.core.hooks.time_limit import TimeLimitHook
from lbitcls.core.hooks.unfreeze import UnfreezeHook, unfreeze_rates
from lbitcls.core.hooks.work_dir import WorkDirHook
from lbitcls.core.optim import build_optimizer, quantizer_policy
from lbitcls.core.runner import EpochRunner
from lbitcls.core.schedule import build_schedule
from lbitcls.core.step import OptimizerStep, Precision, read_precision
from lbitcls.core.synced_norm import synchronize_norms
from lbitcls.protocols import Dataset
from lbitcls.settings.sections import ConfigLike, Settings, read_settings
from lbitcls.tracking.notebook import NotebookHook, in_notebook
from lbitcls.tracking.run_description import describe_run, show_plan_line
from lbitcls.tracking.run_pictures import draw_run
from lbitcls.tracking.run_summary import finish, say_backbone, show_summary, write_summary
from lbitcls.tracking.tensorboard import boards_of
from lbitcls.tracking.terminal import TerminalHook
from lbitcls.utils.checkpoint import load_weights, read_checkpoint
from lbitcls.utils.dist import check_equal, is_main
from lbitcls.utils.env import environment, host, seed_everything, use_deterministic_kernels
from lbitcls.utils.errors import DependencyError, TrainingError
from lbitcls.utils.lock import RunLock
from lbitcls.utils.logging import DETAIL
from lbitcls.utils.memory import keep_freed_memory
from lbitcls.utils.temporary import remove_leftovers
from lbitcls.workflows.distilling import build_distiller
from lbitcls.workflows.distribution import is_distributed, place_model, prepare_training, shard, wrap_model
from lbitcls.workflows.run_export import check_export, export_run
from lbitcls.workflows.run_kernels import Start, choose_kernels
from lbitcls.workflows.run_start import choose_seed, continues, find_start, run_name, say_where


def train_classifier(
    cfg: ConfigLike,
    *,
    resume: bool = False,
    validate: bool = True,
    data_root: str | None = None,
    launcher: str = "none",
    verbose: bool = False,
    time_limit: float | None = None,
) -> dict[str, Any]:
    """Train the classifier of `cfg`, or resume a run.

    Args:
        cfg: Config; `resume_from` names a checkpoint to resume from, `load_from` weights to initialize from.
        resume: True: resume from the newest readable checkpoint in the work directory; without one, start from scratch.
        validate: False: no validation, so no best weights either.
        data_root: Folder to search for relative data paths (`--data-root`).
        launcher: Launcher that started this process: `none`, `pytorch` or `slurm`.
        verbose: True: show every line of the log file on standard output too.
        time_limit: Time in seconds, from this call on, in which the run ends: if it is near, the run saves and stops.

    Returns:
        Summary of the run, as in `summary.json` of the work directory.

    Raises:
        LbitclsError: the config, the data, a checkpoint, the training or the export failed; the message says how.
            `lbitcls.core.guard.Interrupted`: a signal or the time limit stopped it.
    """
    deadline = None if time_limit is None else time.monotonic() + time_limit
    settings = read_settings(cfg)
    settings.require(("model", "data", "optimizer", "total_epochs"), "training")
    with RunLock(settings.run_folder) as lock:
        return _train(
            *(settings, lock),
            resume=resume,
            validate=validate,
            data_root=data_root,
            launcher=launcher,
            verbose=verbose,
            deadline=deadline,
        )


def _train(
    settings: Settings,
    lock: RunLock,
    *,
    resume: bool,
    validate: bool,
    data_root: str | None,
    launcher: str,
    verbose: bool,
    deadline: float | None,
) -> dict[str, Any]:
    work_dir = lock.folder
    check_export(settings)
    log_file = work_dir / f"{time.strftime('%Y%m%d_%H%M%S')}.log"
    head = partial(_write_head, settings, work_dir)
    with open_session(settings, launcher, log_file, head, lock, verbose) as session:
        if is_main():
            remove_leftovers(work_dir)
        settings, runner, resumed = open_run(
            settings, work_dir, session, resume=resume, validate=validate, data_root=data_root, launcher=launcher
        )
        describe_run(runner)
        say_backbone(runner)
        show_plan_line(settings, runner)
        began = time.monotonic()
        while (rewind := _run_or_rewind(runner, deadline)) is not None:
            del runner  # its memory is needed for the next one
            gc.collect()
            _, runner, _ = open_run(
                settings, work_dir, session, resume=True, validate=validate, data_root=data_root, rewind=rewind
            )
        summary = finish(runner, time.monotonic() - began, log_file, resumed=resumed)
        draw_run(settings, runner, [board.add_picture for board in boards_of(runner)])
        if session.place.rank != 0:
            return summary
    try:
        if settings.export is not None:
            summary["integer"] = export_run(settings, settings.export, summary["checkpoint"], work_dir, data_root)
            write_summary(summary, work_dir)
            for board in boards_of(runner):
                board.add_exported(runner, summary["integer"])
    finally:
        for board in boards_of(runner):
            board.close()
        show_summary(summary)
    return summary


def _run_or_rewind(runner: EpochRunner, deadline: float | None) -> Rewind | None:
    """Train to the end; return a rewind that the run asks for, without references to the runner."""
    if deadline is not None:
        runner.hooks.append(TimeLimitHook(deadline))
    try:
        runner.run()
    except Rewind as rewind:
        if not runner.saved:
            raise TrainingError(f"{rewind}; there is no checkpoint to rewind to.") from None
        runner.logger.warning("Rewinding to the last checkpoint, to continue after this batch: %s.", rewind)
        return rewind.with_traceback(None)
    return None


def open_run(
    settings: Settings,
    work_dir: Path,
    session: Session,
    *,
    resume: bool,
    validate: bool,
    data_root: str | None,
    launcher: str = "none",
    rewind: Rewind | None = None,
) -> tuple[Settings, EpochRunner, bool]:
    """Return the settings with their seed, the runner at its position, and True if it resumes a run.

    Processes that torchrun restarted resume the run that they began.
    """
    if continues(work_dir, launcher, session):
        settings, resume = settings.changed(resume_from=None), True
    start = find_start(settings, work_dir, resume, session)
    settings = settings.changed(seed=choose_seed(settings.seed, start, session))
    _prepare(settings, session)
    run = run_name(start, work_dir if resume else None)
    runner = build_runner(settings, work_dir, session, start, run=run, validate=validate, data_root=data_root)
    if start is not None:
        runner.restore(start[1], start[0])
        say_where(runner, start[0])
    if rewind is not None and (hook := runner.find(NotFiniteHook)) is not None:
        hook.continue_after(rewind)
    return settings, runner, start is not None


def _prepare(settings: Settings, session: Session) -> None:
    """Set the seeds and PyTorch's kernel options, and log the resolved config."""
    seed_everything(settings.seed or 0)
    if session.device.type == "cpu":
        keep_freed_memory()
    torch.backends.cudnn.benchmark = settings.cudnn_benchmark
    if settings.deterministic:
        use_deterministic_kernels()
    session.logger.info("Device: %s, processes: %d", session.device, session.place.world_size, extra=DETAIL)
    session.logger.info("Config:\n%s", settings.text, extra=DETAIL)


def _write_head(settings: Settings, work_dir: Path, logger: logging.Logger) -> None:
    found = "\n".join(f"  {name}: {value}" for name, value in environment().items())
    logger.info("Start running, host: %s, work_dir: %s", host(), work_dir.resolve(), extra=DETAIL)
    if settings.source.filename:
        logger.info("Config file: %s", settings.source.filename, extra=DETAIL)
    logger.info("workflow: %s, max: %s epochs", list(settings.workflow), settings.epochs, extra=DETAIL)
    logger.info("Environment:\n%s", found, extra=DETAIL)


def build_runner(
    cfg: ConfigLike,
    work_dir: Path,
    session: Session,
    start: Start = None,
    *,
    run: str,
    validate: bool = True,
    data_root: str | None = None,
) -> EpochRunner:
    """Build the runner with all parts that `cfg` describes; `run` is the run's name."""
    settings = read_settings(cfg)
    device, epochs, seed = session.device, settings.epochs, settings.seed or 0
    check_data(settings.data)
    dataset, loader = load_data(settings, "train", "training", session, seed=seed, data_root=data_root)
    check_equal("data.train: the number of images", len(dataset))
    going_on = start[0] if start else None
    kernels = choose_kernels(settings, start, session)
    model = make_model(settings, session, dataset, pretrained=not start, data_root=data_root, checkpoint=going_on)
    if start is None and settings.progressive is not None:
        from lbitcls.quant.changing_bits import set_bits

        set_bits(model, settings.progressive.pairs[0])
    if start is None and settings.load_from is not None:
        _start_from(settings.load_from, model, settings, session)
    model = place_model(_synchronize_norms(model, settings, session), settings, session)
    epoch_steps = -(-len(loader) // settings.optimizer_config.cumulative_iters)
    ema = build_average(settings.ema, model, epochs, epoch_steps)
    undivided = shard(model, ema, settings, session)
    hooks = build_hooks(settings, model, session, validate, data_root)
    distiller = build_distiller(settings, model, dataset, session, start)
    hooks += [] if distiller is None else [distiller]
    teacher = None if distiller is None else distiller.teacher
    uneven = getattr(dataset, "on_error", "raise") == "skip"
    step = _build_step(settings, model, session, hooks, uneven=uneven, undivided=undivided)
    trained = model if settings.distill is None else Student(model, settings.distill)
    if is_distributed(settings, session):
        prepare_training(trained, model, step.optimizer)
    if settings.compile:
        _compile([trained, teacher] if teacher is not None and teacher.compiles else [trained], device)
    own = quantizer_policy(settings.optimizer)
    meta = {"world_size": session.place.world_size, "kernels": kernels, "max_epochs": epochs, "run": run}
    meta["teacher"] = None if teacher is None else teacher.digest
    return EpochRunner(
        model,
        step,
        loader,
        build_schedule(settings.lr_config, epoch_len=len(loader), max_epochs=epochs),
        quantizer_schedule=None if own is None else build_schedule(own, epoch_len=len(loader), max_epochs=epochs),
        max_epochs=epochs,
        work_dir=work_dir,
        hooks=[WorkDirHook(run, settings), *hooks, NotebookHook() if in_notebook() else TerminalHook()],
        seed=seed,
        ema=ema,
        writer=CheckpointWriter(settings.checkpoint_config.background),
        wrap=lambda module: wrap_model(trained, settings, session),
        memory_format=torch.channels_last if settings.channels_last else torch.contiguous_format,
        features=_build_features(settings, model, dataset, hooks, session, data_root),
        meta=meta,
        logger=session.logger,
    )


def _start_from(path: str, model: nn.Module, settings: Settings, session: Session) -> None:
    """Load the weights of `load_from`, and the quantizers' values if their grids are the same."""
    content = read_checkpoint(path)
    state_dict = content["state_dict"]
    if settings.quant_transformer:
        from lbitcls.assembly.agreement import with_grids

        state_dict = with_grids(content, settings.model)
    load_weights(model, state_dict, path, logger=session.logger)


def _synchronize_norms(model: nn.Module, settings: Settings, session: Session) -> nn.Module:
    if not settings.sycbn or session.place.world_size == 1:
        return model
    model = synchronize_norms(model, session.device)
    if (settings.quant_transformer or {}).get("fold_bn"):
        from lbitcls.quant.transformer import fold_norms

        fold_norms(model)  # the layers referred to the replaced norms
    return model


def _build_step(
    settings: Settings,
    model: nn.Module,
    session: Session,
    hooks: Sequence[Hook],
    **given: Any,
) -> OptimizerStep:
    precision = read_precision(settings.amp, settings.fp16)
    if session.device.type == "cpu" and precision.dtype is torch.float16:
        session.logger.info("float16 autocast is for GPUs; on the CPU the type is bfloat16.")
        precision = Precision(torch.bfloat16)
    penalty = None
    if settings.quant_transformer:
        from lbitcls.quant import regularization

        def penalty() -> torch.Tensor | float:
            return regularization(model)

    rates = unfreeze_rates(model, hooks)
    optimizer = build_optimizer(model, settings.optimizer, lr_mults=rates, **quantized_parameters(model, settings))
    given |= {**vars(settings.optimizer_config), "precision": precision, "penalty": penalty}
    arguments = next((hook.arguments for hook in hooks if isinstance(hook, Distiller)), None)
    return OptimizerStep(optimizer, session.device, arguments=arguments, **given)


def quantized_parameters(model: nn.Module, settings: Settings) -> dict[str, Any]:
    """Return the arguments of `build_optimizer` for quantized models: `quantizers`, `bits` and `final_bits`."""
    if not settings.quant_transformer:
        return {}
    from lbitcls.quant import quantizer_parameters, weight_bits

    bits, final_bits = weight_bits(model), weight_bits(model, final=True)
    return {"quantizers": quantizer_parameters(model), "bits": bits, "final_bits": final_bits}


def _build_features(
    settings: Settings,
    model: nn.Module,
    dataset: Dataset,
    hooks: Sequence[Hook],
    session: Session,
    data_root: str | None,
) -> FeatureCache:
    datasets, fixed = {"data.train": dataset}, None
    if settings.feature_cache is not None and settings.feature_cache.pipeline is not None:
        section = {**data_section(settings.data, "train", "training"), "pipeline": settings.feature_cache.pipeline}
        dataset, fixed = load_data(
            *(settings, "train", "feature_cache", session),
            seed=settings.seed or 0,
            data_root=data_root,
            section=section,
        )
        datasets = {"feature_cache": dataset}
    for hook in hooks:
        if isinstance(hook, EvaluationHook):
            datasets["data.val"] = hook.loader.dataset
    later = [name for hook in hooks if isinstance(hook, UnfreezeHook) for name in hook.parts(model)]
    return build_feature_cache(settings.feature_cache, model, datasets, settings.compile, later, fixed)


def _compile(models: Sequence[nn.Module], device: torch.device) -> None:
    from lbitcls.quant.kernels.selection import can_compile

    if not can_compile(device.type):
        needed = "Triton (pip install triton)" if device.type == "cuda" else "a C++ compiler (apt-get install g++)"
        raise DependencyError(f"compile=True needs {needed}; install it, or leave compile out.")
    for model in models:
        model.compile()  # in place: the names of the weights stay
