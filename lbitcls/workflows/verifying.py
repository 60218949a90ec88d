"""Verifies exported models on images of your own, against the checkpoint or against each other; `lbitcls verify`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lbitcls.datasets.listing import images_of
from lbitcls.deploy.export.residuals import residual_bits
from lbitcls.deploy.runtime.metadata import ModelInfo, existing_model, model_file, read_info
from lbitcls.deploy.verification.certificate import Certificate
from lbitcls.deploy.verification.crosscheck import compare_files
from lbitcls.deploy.verification.verdict import FEWEST_IMAGES
from lbitcls.deploy.verification.verify import verify
from lbitcls.inference.api import init_model
from lbitcls.inference.preparation import Prepare, preparation
from lbitcls.settings.sections import ConfigLike
from lbitcls.utils.errors import CheckpointError, ConfigError, DataError, LbitclsError
from lbitcls.utils.files import check_writable, is_exported, write_whole
from lbitcls.utils.jsontext import json_text

_BATCH = 20


class UnfaithfulError(LbitclsError):
    """Error for exported models that do not agree with their reference."""


def verify_files(
    paths: Sequence[str | Path],
    images: Sequence[str | Path],
    *,
    cfg: ConfigLike | None = None,
    checkpoint: str | Path | None = None,
    num_images: int = 200,
    engines: Sequence[str] | None = None,
    threads: int | None = None,
    out: str | Path | None = None,
) -> list[Certificate]:
    """Verify exported models on images, and print a certificate for each engine.

    Args:
        paths: Exported files and folders of one model.
        images: Image files, and folders that are searched for images, including their subfolders.
        cfg: Config of the checkpoint; None: the one that it records.
        checkpoint: Checkpoint that the models were exported from; None: the first file, in its first engine, is the
            reference of the others.
        num_images: Number of images, evenly spread over those given; at least 100 to confirm a file.
        engines: Names of engines, each of which runs the files that it opens; None: those of the files' targets.
        threads: Number of threads of each engine; None: its own choice.
        out: JSON file for the certificates.

    Raises:
        CheckpointError: A file is missing or damaged, or no engine runs it.
        ConfigError: An argument is wrong, or the files expect different images.
        DataError: There are no images, or one cannot be read.
        UnfaithfulError: A file does not agree with the reference; the certificates are printed and written before.
    """
    if checkpoint is not None and is_exported(checkpoint):
        raise ConfigError(
            f"--checkpoint must be a checkpoint (.pth); got {checkpoint}. To compare exported models with each other, "
            "name it first among them, without --checkpoint."
        )
    listed = [path for given in images for path in images_of(Path(given).expanduser())]
    used = [*(model_file(Path(path)) for path in paths), *listed, *([] if checkpoint is None else [checkpoint])]
    target = None if out is None else check_writable(out, "--json", *used)
    if num_images < 1:
        raise ConfigError(f"--num-images must be at least 1; got {num_images}.")
    infos = [_info(path) for path in paths]
    for what, key in (("input shapes", "input_shape"), ("parts of a model", "part")):
        if len({getattr(info, key) for info in infos}) > 1:
            said = ", ".join(f"{path}: {getattr(info, key)}" for path, info in zip(paths, infos, strict=True))
            raise ConfigError(f"the files have different {what} ({said}); verify them one by one.")
    prepare = preparation(infos[0].pipeline, infos[0].input_shape)
    batches = list(_batches(_spread(listed, num_images), prepare))
    if checkpoint is None:
        found, reasons = compare_files(paths, batches, engines=engines, threads=threads)
    else:
        found, reasons = _against_checkpoint(paths, infos, batches, cfg, checkpoint, engines, threads)
    _print(found)
    if target is not None:
        record = [certificate.to_json() for certificate in found]
        write_whole(target, lambda path: path.write_text(json_text(record, indent=2) + "\n", "utf-8"))
    if reasons:
        raise UnfaithfulError("these files do not agree with the reference:" + "".join(f"\n  {r}" for r in reasons))
    return found


def _info(path: str | Path) -> ModelInfo:
    info = read_info(existing_model(path))
    if info is None or not info.pipeline:
        raise CheckpointError(
            f"{path} does not record how images are prepared: it is not complete, or lbitcls did not export it."
        )
    return info


def _spread(paths: Sequence[str], number: int) -> list[str]:
    """Return `number` paths, evenly spread; all if there are fewer."""
    step = max(1.0, len(paths) / number)
    return [paths[int(step * index)] for index in range(min(number, len(paths)))]


def _batches(paths: Sequence[str], prepare: Prepare) -> Iterator[torch.Tensor]:
    for first in range(0, len(paths), _BATCH):
        yield torch.from_numpy(np.stack([prepare(path) for path in paths[first : first + _BATCH]]))


def _against_checkpoint(
    paths: Sequence[str | Path],
    infos: Sequence[ModelInfo],
    batches: Sequence[torch.Tensor],
    cfg: ConfigLike | None,
    checkpoint: str | Path,
    engines: Sequence[str] | None,
    threads: int | None,
) -> tuple[list[Certificate], list[str]]:
    """Verify each file against the checkpoint; one with 8-bit skip connections by absolute bounds."""
    model: Any = init_model(cfg, checkpoint, "cpu")
    found: list[Certificate] = []
    reasons: list[str] = []
    for path, info in zip(paths, infos, strict=True):
        approximate = info.residual_bits not in (None, residual_bits(model))
        try:
            result = verify(model, path, batches, engines=engines, threads=threads, approximate=approximate)
        except DataError as error:
            raise ConfigError(
                f"{checkpoint} does not fit {path} ({error}); give the checkpoint that it was exported from."
            ) from error
        found += result.certificates
        reasons += [f"{path}: {reason}" for reason in result.reasons]
    return found, reasons


def _print(found: Sequence[Certificate]) -> None:
    print(f"Compared with {found[0].reference}:")
    for certificate in found:
        print(f"{certificate.file} in {certificate.sentence}")
    if found[0].images < FEWEST_IMAGES:
        print(f"{found[0].images} images are too few to confirm a file; {FEWEST_IMAGES} are needed.")
