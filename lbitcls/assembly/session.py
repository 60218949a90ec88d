"""Setup that every command needs: logger, device, process group, and a config's model and data."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import nn

from lbitcls.assembly.classes import check_labels
from lbitcls.settings.sections import SPLITS, DataConfig, Settings
from lbitcls.utils.custom import import_custom
from lbitcls.utils.device import choose_device
from lbitcls.utils.dist import Place, broadcast_object, find_place, init_processes, leave_processes
from lbitcls.utils.errors import ConfigError, LbitclsError
from lbitcls.utils.failures import explain
from lbitcls.utils.lock import RunLock, check_refusal
from lbitcls.utils.logging import log_to_file, setup_logger

if TYPE_CHECKING:
    from lbitcls.datasets.base import BaseDataset
    from lbitcls.datasets.loader import Loader
    from lbitcls.protocols import Classifier, Dataset


@dataclass(frozen=True)
class Session:
    """Rank, device and logger of this process."""

    place: Place
    device: torch.device
    logger: logging.Logger


@contextmanager
def open_session(
    settings: Settings,
    launcher: str = "none",
    log_file: Path | None = None,
    head: Callable[[logging.Logger], None] = lambda logger: None,
    lock: RunLock | None = None,
    verbose: bool = False,
) -> Iterator[Session]:
    """Set up logger, device and process group according to the settings, and import `custom_imports`.

    `head` writes the first lines of the log. An error that ends the command is also written to `log_file`, without a
    traceback; a failure of the machine (a full disk, a killed process) becomes a `ResourceError`. If `lock` is given,
    rank 0 acquires it before anything is written, and all ranks end with the same error if another run holds it.
    `verbose` shows the log file's lines on standard output too.
    """
    place = find_place(launcher)
    refusal = _take(lock) if lock is not None and place.rank == 0 else None
    logger = _open_log(settings.log_level, None if refusal else log_file, place.rank, verbose)
    try:
        if refusal is None:
            head(logger)
        session = _enter(settings, launcher, place, logger)
        if lock is not None:
            check_refusal(broadcast_object(refusal))
            lock.tell()
        yield session
    except Exception as error:
        told = explain(error)
        log_to_file("ERROR", f"{type(told or error).__name__}: {told or error}")
        if told is None or told is error:
            raise
        raise told from error
    leave_processes()  # not after an error: the other processes may not get here


def _take(lock: RunLock) -> str | None:
    try:
        return lock.take()
    except OSError as error:
        raise _unwritable(lock.folder, error) from error


def _unwritable(folder: Path | None, error: OSError) -> LbitclsError:
    """Return the machine's failure (a full disk), after which a restart may succeed, or a mistake of the command."""
    return explain(error) or ConfigError(
        f"nothing can be written to the work directory {folder}: {error.strerror}; name another with --work-dir."
    )


def _open_log(level: str | int, log_file: Path | None, rank: int, verbose: bool) -> logging.Logger:
    try:
        if log_file is not None and rank == 0:
            log_file.parent.mkdir(parents=True, exist_ok=True)
        return setup_logger(level, log_file, rank, verbose)
    except OSError as error:
        raise _unwritable(log_file and log_file.parent, error) from error


def _enter(settings: Settings, launcher: str, place: Place, logger: logging.Logger) -> Session:
    device = choose_device(
        logger,
        settings.device,
        cpu_only=settings.cpu_only,
        gpu_ids=settings.gpu_ids,
        local_rank=place.local_rank,
    )
    if settings.num_threads is not None:
        torch.set_num_threads(settings.num_threads)
    given = settings.dist_params
    init_processes(
        *(launcher, place, given.backend, device, logger), timeout=given.timeout, hang_after=given.hang_after
    )
    import_custom(vars(settings.custom_imports))
    return Session(place, device, logger)


def data_section(data: DataConfig, split: str, purpose: str) -> dict[str, Any]:
    """Return the part of `data` for `split`, in the form that `build_dataset` accepts.

    Raises:
        ConfigError: The part is missing.
    """
    section = data.dataset(split)
    if section is None:
        raise ConfigError(f"{purpose} needs data.{split}; the config has none.")
    return section


def check_data(data: DataConfig) -> None:
    """Check types, keys and pipelines of every data set in a config, including those that the command does not read.

    Raises:
        ConfigError: A part is wrong; the message names it.
    """
    from lbitcls.datasets.builder import check_dataset

    for split in SPLITS:
        section = data.dataset(split)
        if section is None:
            continue
        try:
            check_dataset(section)
        except LbitclsError as error:
            raise type(error)(f"data.{split}: {error}") from error


def load_data(
    settings: Settings,
    split: str,
    purpose: str,
    session: Session,
    *,
    seed: int = 0,
    data_root: str | None = None,
    section: dict[str, Any] | None = None,
    number: int | None = None,
) -> tuple[BaseDataset, Loader]:
    """Build the data set of `split` and its data loader (shuffled for `train`).

    Args:
        settings: Settings whose `data` and `data_root` are used.
        split: Part of `data`.
        purpose: Purpose of the data, for messages.
        session: Session of the command.
        seed: Seed of the order and the augmentation.
        data_root: Base folder for relative paths.
        section: Section of the data set, if it differs from that in `data`.
        number: Maximum number of samples, in a fixed mixed order; None: all samples.

    Raises:
        ConfigError: The section is wrong, or `drop_last` leaves nothing to train on.
        DataError: The data is missing or corrupt.
    """
    from lbitcls.datasets import build_dataloader, build_dataset
    from lbitcls.datasets.subset import Subset

    section = data_section(settings.data, split, purpose) if section is None else section
    dataset = build_dataset(section, data_root=[*settings.roots, data_root])
    if number is not None:
        dataset = Subset(dataset, np.random.default_rng(0).permutation(len(dataset))[:number].tolist())
    train = split == "train"
    loader = build_dataloader(
        dataset,
        settings.data.samples_per_gpu,
        settings.data.workers_per_gpu,
        shuffle=train,
        seed=seed,
        rank=session.place.rank,
        world_size=session.place.world_size,
        drop_last=train and settings.data.drop_last,
        pin_memory=session.device.type == "cuda",
    )
    if train and not len(loader):
        raise ConfigError(
            f"data.drop_last=True leaves no batch: data.train has {len(dataset)} images, a batch takes "
            f"{settings.data.samples_per_gpu} on each of {session.place.world_size} process(es). Lower "
            "data.samples_per_gpu, or leave drop_last out."
        )
    return dataset, loader


def _place_files(section: dict[str, Any], roots: list[Any]) -> dict[str, Any]:
    """Return a copy of the section `model` with full paths for weights found below a data root.

    The images that an integer backbone is calibrated on are searched for below the roots too.
    """
    from lbitcls.datasets.builder import with_roots
    from lbitcls.datasets.root import locate, search_roots

    def placed(owner: Any, key: str) -> None:
        path = owner.get(key) if isinstance(owner, dict) else None
        if isinstance(path, str) and "://" not in path and not Path(path).expanduser().is_file():
            found = locate(path, search_roots(roots))
            owner[key] = str(found) if found else path

    section = copy.deepcopy(section)
    for owner in (section, section.get("backbone")):
        placed(owner, "pretrained")
        placed(owner.get("init_cfg") if isinstance(owner, dict) else None, "checkpoint")
    backbone = section.get("backbone")
    if isinstance(backbone, dict) and backbone.get("type") == "IntegerBackbone":
        placed(backbone, "model")
        placed(backbone, "checkpoint")
        images = (backbone.get("calibration") or {}).get("data")
        if isinstance(images, dict) and "type" in images:
            backbone["calibration"]["data"] = with_roots(images, roots)
    return section


def make_model(
    settings: Settings,
    session: Session,
    dataset: Dataset | None = None,
    split: str = "train",
    *,
    pretrained: bool = True,
    data_root: str | None = None,
    checkpoint: str | Path | None = None,
) -> nn.Module:
    """Build the classifier that the settings describe, including quantized layers, on the CPU.

    Args:
        settings: Settings whose `model`, `quant_transformer` and `data_root` are used.
        session: Session of the command.
        dataset: Data set that provides the class names; its labels are checked.
        split: Part of `data` that the data set belongs to.
        pretrained: False: skip the pretrained weights, because a checkpoint replaces them.
        data_root: Base folder for relative paths of these weights, as for data.
        checkpoint: Checkpoint whose weights will be used unchanged, so that its quantizers must match. If it is from
            an earlier stage of a progressive run, the layers get the bits of that stage.

    Raises:
        ConfigError: A part is unknown, or the data has labels outside the model's classes.
        CheckpointError: `checkpoint` was made with other quantizers.
    """
    from lbitcls.models import build_classifier

    section = _place_files(settings.model, [*settings.roots, data_root])
    model = build_classifier(section, pretrained)
    model.cfg = settings.source
    if dataset is not None:
        cast("Classifier", model).CLASSES = dataset.CLASSES
        check_labels(model, dataset, split)
    if settings.quant_transformer:
        from lbitcls.quant import build_mtransformer

        transformer = build_mtransformer(settings.quant_transformer)
        if checkpoint is not None:
            from lbitcls.assembly.agreement import check_quantizers

            check_quantizers(transformer, model, checkpoint)
        model = transformer(model, logger=session.logger)
        if settings.progressive is not None and checkpoint is not None:
            from lbitcls.assembly.agreement import take_stage

            take_stage(model, checkpoint, settings.progressive.pairs, session.logger)
    return model
