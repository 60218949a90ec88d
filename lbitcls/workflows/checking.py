"""Checks a config without training, and lists every problem that would stop a run: `lbitcls check`."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lbitcls.assembly.classes import check_labels, check_names
from lbitcls.assembly.run_hooks import build_hooks
from lbitcls.assembly.session import Session, load_data, make_model, open_session
from lbitcls.core.evaluation import evaluate
from lbitcls.core.hooks.calibration_hook import CalibrationHook
from lbitcls.core.hooks.distiller import Distiller
from lbitcls.core.hooks.evaluation_hook import EvaluationHook
from lbitcls.core.hooks.oscillation_hooks import DampenOscillationsHook, FreezeOscillationsHook
from lbitcls.core.hooks.unfreeze import UnfreezeHook, unfreeze_rates
from lbitcls.core.optim import build_optimizer
from lbitcls.core.runner import EpochRunner
from lbitcls.core.schedule import build_schedule
from lbitcls.datasets.builder import check_dataset
from lbitcls.quant.kernels.selection import restored_kernels
from lbitcls.registry import DATASETS, HOOKS
from lbitcls.settings.sections import SPLITS, ConfigLike, Settings, as_config, read_settings
from lbitcls.settings.training_sections import CalibrationConfig, EvaluationConfig
from lbitcls.tracking.quant_stats import QuantStatsHook
from lbitcls.tracking.run_description import parameters
from lbitcls.utils.checkpoint import read_checkpoint
from lbitcls.utils.errors import ConfigError, DataError, TrainingError
from lbitcls.utils.logging import get_logger, print_table
from lbitcls.utils.published import is_published
from lbitcls.workflows.check_sections import Findings, dry, opening, read_sections
from lbitcls.workflows.faults import component_faults, faults, model_faults, quantization_faults
from lbitcls.workflows.run_export import check_export
from lbitcls.workflows.run_kernels import can_run_kernels
from lbitcls.workflows.training import build_runner, quantized_parameters

IMAGES = 16
"""Maximum batch size of the check."""
Rows = list[tuple[str, str]]


@dataclass(frozen=True)
class Part:
    """Part of `data`: its data set, batches per epoch, batch size, and a batch of its images."""

    dataset: Any
    batches: int
    batch_size: int
    batch: dict[str, torch.Tensor]


def check_config(cfg: ConfigLike, *, data_root: str | None = None) -> Rows:
    """Check everything that training needs, without training, and print what the run will do.

    Builds each part as training does, trains on one batch of at most `IMAGES` images, and evaluates one. Writes,
    downloads and locks nothing, and creates no work directory.

    Args:
        cfg: Config; it is not changed.
        data_root: Folder to search for relative data paths (`--data-root`).

    Returns:
        Rows of the printed table, (name, value).

    Raises:
        ConfigError: the config has problems; the message lists all of them.
    """
    found, given = Findings(), as_config(cfg)
    right = read_sections(given, found)
    rows: Rows = []
    with found.part(), _as_before():
        settings = read_settings(dry(right, found))
        with open_session(opening(right, found)) as session:
            _check_kernels(read_settings(right), session, found)
            rows = _check(settings, session, data_root, found)
    if found.problems:
        listed = "".join(f"\n  {number}. {message}" for number, message in enumerate(found.problems, start=1))
        count = "one problem" if len(found.problems) == 1 else f"{len(found.problems)} problems"
        raise ConfigError(f"{given.filename or 'the config'} has {count}:{listed}")
    rows += [("not checked", "; ".join(found.unchecked))] if found.unchecked else []
    print_table("Check: nothing is wrong", ("", ""), rows)
    return rows


@contextmanager
def _as_before() -> Iterator[None]:
    """Leave the process as it was: the logger's level and the selection of kernels."""
    logger = get_logger()
    level = logger.level
    try:
        with restored_kernels():
            yield
    finally:
        logger.setLevel(level)


def _check(settings: Settings, session: Session, data_root: str | None, found: Findings) -> Rows:
    before = len(found.problems)
    data = _load_parts(settings, session, data_root, found)
    model, rows = _build_model(settings, session, data, data_root, found)
    _check_pieces(settings, model, session, data, data_root, found)
    train = data.get("train")
    if model is None or train is None:
        return []
    if len(found.problems) > before or not settings.optimizer:
        with found.part():
            _try_forward(model, train.batch)
        return []
    with found.part():
        result = _take_step(settings, session, _validates(settings, data), data_root)
        return [*_describe_data(model, data), *rows, *_describe_run(settings, session, data), ("first step", result)]
    return []


def _try_forward(model: Any, batch: Mapping[str, torch.Tensor]) -> None:
    """Compute the loss of a batch, or its scores if a label is not a class of the model (already noted)."""
    known = getattr(model, "num_classes", None)
    fits = known is None or int(batch["gt_label"].max()) < known
    model.train()(batch["img"], gt_label=batch["gt_label"], return_loss=fits)


def _load_parts(settings: Settings, session: Session, data_root: str | None, found: Findings) -> dict[str, Part]:
    """Load the parts of `data` that can be read, with a batch of each."""
    parts = {}
    for split in (split for split in SPLITS if settings.data.dataset(split)):
        section = dict(settings.data.dataset(split) or {})
        fetched = bool(section.get("download"))
        if fetched:
            section["download"] = False
        place = f"data.{split}"
        with found.part(place, partial(component_faults, DATASETS, section, place, check_dataset)):
            try:
                parts[split] = _load_part(settings, split, section, session, data_root)
            except DataError:
                if not fetched:
                    raise
                found.unchecked.append(f"data.{split}, which training will download")
    return parts


def _load_part(
    settings: Settings, split: str, section: dict[str, Any], session: Session, data_root: str | None
) -> Part:
    dataset, loader = load_data(settings, split, "a check", session, data_root=data_root, section=section)
    batches, size = len(loader), loader.batch_size
    loader.batch_size = min(size, IMAGES)
    return Part(dataset, batches, size, next(iter(loader)))


def _build_model(
    settings: Settings, session: Session, data: Mapping[str, Part], data_root: str | None, found: Findings
) -> tuple[nn.Module | None, Rows]:
    """Build the model, quantized if possible, and its rows of the table; None if it cannot be built."""
    model: Any = None
    in_float = settings.changed(quant_transformer=None)
    with found.part(every=partial(model_faults, settings.model)):
        model = make_model(in_float, session, data_root=data_root) if settings.model else None
    rows = [] if model is None else [("parameters", "; ".join(parameters(model)))]
    names = data["train"].dataset.CLASSES if "train" in data else None
    for split, part in data.items() if model is not None else ():
        with found.part():
            check_labels(model, part.dataset, split)
            check_names(names, "data.train", part.dataset, split, session.logger)
    if settings.quant_transformer:
        with found.part(every=partial(quantization_faults, settings.quant_transformer)):
            model, quantized = _quantize(settings, model, session)
            rows += quantized
    return model, rows


def _quantize(settings: Settings, model: nn.Module | None, session: Session) -> tuple[nn.Module | None, Rows]:
    """Return the quantized model and its rows of the table; without a model, only check the entries."""
    from lbitcls.quant import build_mtransformer

    transformer = build_mtransformer(settings.quant_transformer or {})
    if model is None:
        return None, []
    plan = transformer.plan(model)
    counts = Counter(f"{row.entry} W{row.num_bit_w or 32}A{row.num_bit_a or 32}" for row in plan.quantized)
    said = ", ".join(f"{number} {kind}" for kind, number in counts.items())
    quantized = transformer(model, logger=session.logger)
    return quantized, [("layers quantized", f"{len(plan.quantized)} of {len(plan)}: {said}")]


def _check_pieces(
    settings: Settings,
    model: nn.Module | None,
    session: Session,
    data: Mapping[str, Part],
    data_root: str | None,
    found: Findings,
) -> None:
    """Build the other parts that training needs, each independently, and note their problems."""
    with found.part():
        _check_folder(settings.run_folder)
    if settings.resume_from:
        with found.part():
            read_checkpoint(settings.resume_from, mmap=True)
    if settings.load_from and not is_published(settings.load_from):
        with found.part():
            read_checkpoint(settings.load_from, mmap=True)
    if settings.optimizer:
        parts = {} if model is None else quantized_parameters(model, settings)
        complete = model is not None and (not settings.quant_transformer or parts["bits"] or parts["quantizers"])
        given = {key: item for key, item in settings.optimizer.items() if key != "paramwise_cfg" or complete}
        found.note(*faults(partial(build_optimizer, model or nn.Linear(1, 1), **parts), given))
    with found.part():
        build_schedule(settings.lr_config, epoch_len=1, max_epochs=settings.epochs)
    _check_hooks(settings, model, session, _validates(settings, data), data_root, found)
    with found.part():
        check_export(settings)


def _check_kernels(settings: Settings, session: Session, found: Findings) -> None:
    """Note that this machine cannot run the kernels asked for, or those of the run to resume; compile nothing."""
    if settings.quant_transformer:
        with found.part():
            path = settings.resume_from
            start = (Path(path), read_checkpoint(path, mmap=True)) if path else None
            can_run_kernels(settings, start, session.device)


def _check_hooks(
    settings: Settings,
    model: nn.Module | None,
    session: Session,
    validate: bool,
    data_root: str | None,
    found: Findings,
) -> None:
    """Build the hooks of calibration, of validation, and each other one, independently."""
    target = nn.Linear(1, 1) if model is None else model
    own = settings.changed(custom_hooks=[], log_config={"hooks": []})
    rest = own.changed(quant_transformer=None, calibration=None, progressive=None)
    for some, evaluates in ((own, False), (rest, validate)):
        with found.part():
            build_hooks(some, target, session, evaluates, data_root)

    def build(key: str, entry: Any) -> None:
        entries = [entry] if key == "custom_hooks" else {"hooks": [entry]}
        hooks = build_hooks(rest.changed(**{key: entries}), target, session, False, data_root)
        if model is not None:
            unfreeze_rates(model, hooks)

    for key, entries in (("custom_hooks", settings.custom_hooks), ("log_config", settings.log_config.hooks or ())):
        place = "custom_hooks" if key == "custom_hooks" else "log_config.hooks"
        for number, entry in enumerate(entries):
            found.note(*component_faults(HOOKS, entry, f"{place}.{number}", partial(build, key)))


def _validates(settings: Settings, data: Mapping[str, Part]) -> bool:
    """Return True if validation can be built, False if the data that it needs was not read (already noted)."""
    return "train" in data and ("val" in data or not settings.data.val)


def _check_folder(folder: Path) -> None:
    """Raise `ConfigError` if the work directory is not writable."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise ConfigError(f"nothing can be written to the work directory {folder}; name another with --work-dir.")


def _take_step(settings: Settings, session: Session, validate: bool, data_root: str | None) -> str:
    """Build the run, train on one batch and evaluate one; return the results as text."""
    runner = build_runner(
        settings,
        settings.run_folder,
        session,
        run="check",
        validate=validate,
        data_root=data_root,
    )
    loader: Any = runner.loader
    loader.batch_size = min(loader.batch_size, IMAGES)
    _calibrate(runner)
    teachers = [hook.teacher for hook in runner.hooks if isinstance(hook, Distiller)]
    for module in (runner.model, *teachers):
        module._compiled_call_impl = None  # compile=True was checked; compiling takes minutes
    runner.model.train()
    runner.train_iter(next(iter(loader)))
    loss = runner.outputs["loss"].item()
    if not torch.isfinite(torch.tensor(loss)):
        raise TrainingError(
            f"the loss of the first step is {loss}; check the data, and the values of the model's parts."
        )
    said = f"loss {loss:.4f}"
    for hook in runner.hooks:
        if isinstance(hook, EvaluationHook):
            said += f"; validated: {_evaluate(runner, hook)}"
    return said


def _calibrate(runner: EpochRunner) -> None:
    """Switch the quantizers on, as training does at the calibration epoch, and start the hooks on weights."""
    runner.wrap_model()
    for hook in runner.hooks:
        if isinstance(hook, CalibrationHook):
            hook.before_run(runner)
            hook.epoch, hook.num_batches = 0, 1
            hook.before_epoch(runner)
        elif isinstance(hook, (UnfreezeHook, DampenOscillationsHook, FreezeOscillationsHook, QuantStatsHook)):
            hook.before_run(runner)


def _evaluate(runner: EpochRunner, hook: EvaluationHook) -> str:
    loader: Any = hook.loader
    loader.batch_size = min(loader.batch_size, IMAGES)
    batch = runner.to_device(next(iter(loader)))
    results = evaluate(runner.eval_model, [batch], runner.step.device, metrics=hook.metrics, topk=hook.topk)
    if hook.save_best is not None and hook.save_best not in results:
        raise ConfigError(f"evaluation.save_best='{hook.save_best}': the model has too few classes for it.")
    return f"loss {results['loss']:.4f} on {_counted(len(batch['gt_label']), 'image')}"


def _counted(number: int, name: str) -> str:
    return f"{number:,} {name}{'' if number == 1 else 's'}"


def _describe_data(model: Any, data: Mapping[str, Part]) -> Rows:
    train = data["train"]
    names = [str(name) for name in train.dataset.CLASSES or ()]
    listed = ", ".join(names[:10]) + (", …" if len(names) > 10 else "")
    classes = f"{len(names):,}: {listed}" if names else str(model.num_classes)
    images = ", ".join(f"{split} {len(part.dataset):,}" for split, part in data.items())
    shape = (train.batch_size, *train.batch["img"].shape[1:])
    return [("classes", classes), ("images", images), ("a batch", f"img {shape}, gt_label ({train.batch_size},)")]


def _describe_run(settings: Settings, session: Session, data: Mapping[str, Part]) -> Rows:
    """Return the rows of the table that describe the run, one per section."""
    rate = f", lr {settings.optimizer['lr']}" if "lr" in settings.optimizer else ""
    steps = _counted(data["train"].batches, "iteration")
    policy = getattr(settings.lr_config, "policy", "fixed")
    rows = [
        ("training", f"{_counted(settings.epochs, 'epoch')} of {steps} on {session.device}"),
        ("optimizer", f"{settings.optimizer['type']}{rate}, policy {policy}"),
    ]
    if settings.quant_transformer:
        rows.append(("quantizers", f"on from epoch {(settings.calibration or CalibrationConfig()).epoch + 1}"))
    if settings.data.val:
        interval = (settings.evaluation or EvaluationConfig()).interval
        rows.append(("validation", f"on data.val, after every {'epoch' if interval == 1 else f'{interval} epochs'}"))
    if settings.export:
        rows.append(("at the end", "model.onnx and float.onnx, measured on data.val"))
    return [*rows, ("work directory", str(settings.run_folder))]
