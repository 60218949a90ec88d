"""Export of the best weights at the end of a run (section `export`), and comparison with the float model."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from lbitcls.assembly.session import Session, load_data, make_model, open_session
from lbitcls.core.evaluation import evaluate
from lbitcls.deploy.export.onnx import export_model
from lbitcls.deploy.runtime.benchmark import time_models
from lbitcls.deploy.runtime.engine import find_engine
from lbitcls.deploy.runtime.metadata import read_info, require
from lbitcls.deploy.targets.base import find_target
from lbitcls.inference.onnx_classifier import open_classifier
from lbitcls.settings.export import ExportOptions, ExportSection
from lbitcls.settings.sections import Settings
from lbitcls.utils.checkpoint import load_checkpoint
from lbitcls.utils.errors import ConfigError

BATCHES = (1, 16)
_RATIO_OF = 16  # images; with one small image, the engine's overhead would dominate
_TURNS = 10
_PREFIXES = {"": "model", "float_": "float"}  # of the results, by file


def check_export(settings: Settings) -> None:
    """Raise, before the run, the errors that the export at its end would raise.

    Raises:
        ConfigError: two options are incompatible, or nothing is quantized.
        DependencyError: a package of the extra `deploy` is missing.
    """
    if settings.export is None:
        return
    from lbitcls.workflows.exporting import check_options

    if not settings.quant_transformer:
        raise ConfigError("export writes an integer model, but the config has no quant_transformer.")
    if settings.data.val is None:
        raise ConfigError("export measures the integer model on data.val; the config has none.")
    if find_target(settings.export.target).suffix != ".onnx":
        raise ConfigError(
            f"export at the end of a run writes an ONNX file; for {settings.export.target} use lbitcls export."
        )
    find_engine(find_target(settings.export.target).engines[0]).check_installed()
    for package in ("onnx", "onnxscript", "onnxruntime", "openvino"):
        require(package)
    check_options(ExportOptions(**vars(settings.export)))


def export_run(
    settings: Settings, section: ExportSection, checkpoint: str, work_dir: Path, data_root: str | None
) -> dict[str, Any]:
    """Export a checkpoint to `model.onnx` in `work_dir`, the same model in float to `float.onnx`, and measure both.

    Args:
        settings: Settings of the run.
        section: Options of the export.
        checkpoint: Checkpoint with the run's best weights.
        work_dir: Work directory of the run.
        data_root: Folder to search for relative data paths.

    Returns:
        `top1` on the validation set in percent, `size_kib`, `float_size_kib`, `threads`, `file`, and `latency` (for
        each batch size `batch`, `ms`, `float_ms`, `ratio`): empty if the target's engine is not for speed, else with
        `latency_ratio`, to the float file, for 16 images.

    Raises:
        LbitclsError: the export or its verification failed.
    """
    from lbitcls.workflows.exporting import export_checkpoint

    files = {name: work_dir / f"{name}.onnx" for name in ("model", "float")}
    export_checkpoint(settings, checkpoint, files["model"], data_root=data_root, **vars(section))
    with open_session(settings) as session:
        _export_float(settings, checkpoint, files["model"], files["float"], replace(session, logger=_quiet()))
        threads = settings.num_threads or 2
        engine = find_target(section.target).engines[0]
        top1 = _top1(settings, files["model"], session, engine, threads, data_root)
    sizes = {f"{prefix}size_kib": files[name].stat().st_size / 1024 for prefix, name in _PREFIXES.items()}
    found = {"top1": top1, **sizes, "latency": [], "threads": threads, "file": str(files["model"])}
    return found | (_speed(list(files.values()), engine, threads) if find_engine(engine).is_timed else {})


def _speed(files: list[Path], engine: str, threads: int) -> dict[str, Any]:
    """Return `latency` and `latency_ratio` of the first file, relative to the second."""
    seen = time_models(files, engine=engine, threads=threads, batches=BATCHES, repeats=_TURNS)
    latency = [
        {"batch": mine.batch, "ms": mine.median_ms, "float_ms": other.median_ms, "ratio": mine.ratio}
        for mine, other in zip(seen.timings[::2], seen.timings[1::2], strict=True)
    ]
    return {"latency": latency, "latency_ratio": next(row["ratio"] for row in latency if row["batch"] == _RATIO_OF)}


def _export_float(settings: Settings, checkpoint: str, exported: Path, path: Path, session: Session) -> None:
    """Export the same model with its quantizers off, with the input shape and pipeline of `exported`."""
    from lbitcls.quant import set_quantization

    info = read_info(exported)
    assert info is not None
    model = make_model(settings, session, pretrained=False).eval()
    load_checkpoint(model, checkpoint, logger=session.logger)
    set_quantization(model, False)
    export_model(model, path, input_shape=info.input_shape, classes=info.classes, pipeline=info.pipeline)


def _quiet() -> logging.Logger:
    """Return a logger for warnings only; the rest was already logged."""
    logger = logging.getLogger("lbitcls.run_export")
    logger.setLevel("WARNING")
    return logger


def _top1(settings: Settings, path: Path, session: Session, engine: str, threads: int, data_root: str | None) -> float:
    _, loader = load_data(settings, "val", "validation", session, data_root=data_root)
    model = open_classifier(settings, path, "val", session.logger, engine, threads)
    return evaluate(model, loader, session.device, topk=(1,))["top-1"]
