"""Compares exported models with each other, without the checkpoint: one engine's results are the reference."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lbitcls.deploy.verification.certificate import Certificate
from lbitcls.deploy.verification.judges import TimedEngine, certify, engine_evaluation, judges
from lbitcls.deploy.verification.study import Study
from lbitcls.quant.calibration import images_of
from lbitcls.utils.errors import ConfigError, DataError


def compare_files(
    paths: Sequence[str | Path],
    batches: Iterable[Any],
    *,
    engines: Sequence[str] | None = None,
    threads: int | None = None,
) -> tuple[list[Certificate], list[str]]:
    """Compare exported models, each in each of its engines, with the first one in its first engine.

    Args:
        paths: Exported files and folders of one model.
        batches: float32 images (N, C, H, W), as the test pipeline returns them.
        engines: Names of engines, each of which runs the files that it opens; None: those of the files' targets.
        threads: Number of threads of each engine; None: its own choice.

    Returns:
        A certificate for each engine but the reference, and the reasons against files.

    Raises:
        CheckpointError: A file is missing or damaged, no engine runs it, or its outputs have other shapes.
        ConfigError: There is only one engine and one file.
        DataError: There are no images.
    """
    runs = [TimedEngine(engine) for path in paths for engine in judges(path, engines, threads)[0]]
    if len(runs) < 2:
        raise ConfigError("a single file in a single engine has nothing to be compared with; give the checkpoint, too.")
    names = [f"{run.engine.path} in {run.engine.name}" for run in runs]
    if len({*names}) < len(names):
        raise ConfigError("a file is given twice; name each one once.")
    info = runs[0].engine.info
    study = Study("model" if info is None else info.part)
    for images in map(images_of, batches):
        reference, *others = (engine_evaluation(run)(images) for run in runs)
        study.add(reference, dict(zip(names[1:], others, strict=True)))
    if not study.images:
        raise DataError("there are no images to verify with; give at least one.")
    found = replace(study.result(None, {}, {}), rounding=frozenset(names))
    said = f"{names[0]} {runs[0].engine.version}"
    made = [certify(run, found, said, found.confirms(name), name) for run, name in zip(runs[1:], names[1:])]
    return made, list(found.reasons)
