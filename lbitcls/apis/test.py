"""Test a checkpoint, or a shipped ONNX file, on the config's test set: metrics, and a row for each image."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lbitcls.apis.classes import check_labels, check_names
from lbitcls.apis.session import Session, load_data, make_model, open_session
from lbitcls.core.evaluation import check_metrics, evaluate, read_topk
from lbitcls.utils.checkpoint import load_checkpoint
from lbitcls.utils.config import Config, require_sections
from lbitcls.utils.dist import gather_objects, is_main
from lbitcls.utils.errors import ConfigError
from lbitcls.utils.files import check_writable, write_whole
from lbitcls.utils.logging import print_table, track


def test_classifier(
    cfg: Config,
    checkpoint: str | Path,
    *,
    metrics: Sequence[str] = ("accuracy",),
    out: str | Path | None = None,
    predictions: str | Path | None = None,
    data_root: str | None = None,
    launcher: str = "none",
    engine: str | None = None,
    threads: int | None = None,
) -> dict[str, Any]:
    """Test the model of `cfg` with the weights in `checkpoint`, or the file that was exported of it, on
    `data.test`, or `data.val` where that is missing.

    Args:
        cfg: the config that the checkpoint was trained with; `evaluation.metric_options` says which top-k are
            measured.
        checkpoint: of this model; also a published state dict that fits it, or an `.onnx` file, which an engine runs
            on the CPU.
        metrics: names out of `lbitcls.core.evaluation.METRICS`; accuracy is always among the results.
        out: JSON file for the results.
        predictions: `.csv` or `.jsonl` file for a row per image: path, label, prediction, scores.
        data_root: where relative data paths may start (`--data-root`).
        launcher: `none`, `pytorch` or `slurm`.
        engine: of an `.onnx` file: `openvino` (the default) or `onnxruntime`.
        threads: of the engine; None: its own choice.

    Returns:
        `{'loss': …, 'top-1': …, 'top-5': …, …}`, in percent but the loss.

    Raises:
        CheckpointError: the checkpoint cannot be read, or is another model's, has other quantizers, or is a file of a
            backbone.
        ConfigError: an unknown metric or engine, an engine for a checkpoint, or a file that cannot be written.
        DataError: the test set numbers its classes otherwise than the checkpoint.
    """
    require_sections(cfg, ("model", "data"), "testing")
    chosen = tuple(dict.fromkeys(("accuracy", *check_metrics(metrics))))
    topk = read_topk((cfg.get("evaluation") or {}).get("metric_options"))
    writer = _row_writer(predictions)
    results_file = None if out is None else check_writable(out, "--out", checkpoint)
    read = [checkpoint] if out is None else [checkpoint, out]
    rows_file = None if predictions is None else check_writable(predictions, "--predictions", *read)
    with open_session(cfg, launcher) as session:
        split = "test" if cfg.data.get("test") is not None else "val"
        dataset, loader = load_data(cfg, split, "testing", session, data_root=data_root)
        model = open_model(cfg, checkpoint, split, dataset, session, engine, threads, data_root)
        rows: list[tuple[int, int, list[float]]] = []

        def watch(batch: dict[str, torch.Tensor], logits: torch.Tensor) -> None:
            scores = logits.float().softmax(dim=1).cpu()
            rows.extend(zip(batch["index"].tolist(), batch["gt_label"].tolist(), scores.tolist(), strict=True))

        batches = track(loader, len(loader), "testing", shown=is_main())
        results = evaluate(model, batches, session.device, metrics=chosen, topk=topk, watch=watch if writer else None)
        gathered = gather_objects(rows) if writer else []
        if is_main():
            _print(results)
            if results_file is not None:
                text = json.dumps(results, indent=2) + "\n"
                write_whole(results_file, lambda path: path.write_text(text, encoding="utf-8"))
            if rows_file is not None:
                rows = sorted(row for part in gathered for row in part)
                write_whole(rows_file, lambda path: writer(path, dataset, rows))
    return results


def open_model(
    cfg: Config,
    path: str | Path,
    split: str,
    dataset: Any,
    session: Session,
    engine: str | None = None,
    threads: int | None = None,
    data_root: str | None = None,
) -> nn.Module:
    """The classifier of `cfg` with the weights of a checkpoint, on its device, or the `.onnx` file in its place.

    Raises:
        CheckpointError: `path` cannot be read, is another model's, has other quantizers, or is a file of a backbone.
        ConfigError: an engine for a checkpoint, or `dataset` has labels that are no class of the model.
        DataError: `dataset`, `data.<split>`, numbers its classes otherwise than the checkpoint.
    """
    shipped = Path(path).suffix.lower() == ".onnx"
    if not shipped and (engine is not None or threads is not None):
        raise ConfigError(f"--engine and --threads are for .onnx files, which an engine runs; got '{path}'.")
    if shipped:
        model, classes = _shipped(cfg, path, session, dataset, split, engine, threads)
    else:
        model = make_model(cfg, session, dataset, split, pretrained=False, data_root=data_root, checkpoint=path)
        classes = load_checkpoint(model, path, strict=True, logger=session.logger)["meta"].get("CLASSES")
        model.to(session.device)
    check_names(classes, f"the {'file' if shipped else 'checkpoint'} {path}", dataset, split, session.logger)
    return model


def _shipped(
    cfg: Config, path: str | Path, session: Session, dataset: Any, split: str, engine: str | None, threads: int | None
) -> tuple[nn.Module, list[str] | None]:
    """The model in an ONNX file, and the names of its classes."""
    from lbitcls.apis.shipped import open_shipped

    model = open_shipped(cfg, path, split, session.logger, engine, threads)
    check_labels(model, dataset, split)
    return model, model.engine.info.classes if model.engine.info is not None else None


def _row_writer(path: str | Path | None) -> Any:
    """The function that writes the rows in the format of the file's name, before any work is done."""
    if path is None:
        return None
    writers = {".csv": _write_csv, ".jsonl": _write_jsonl}
    if Path(path).suffix not in writers:
        raise ConfigError(f"--predictions writes .csv or .jsonl; got '{path}'.")
    return writers[Path(path).suffix]


def _write_csv(path: Path, dataset: Any, rows: list[tuple[int, int, list[float]]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "prediction", "scores"])
        for index, label, scores in rows:
            writer.writerow([dataset.describe(index), label, _best(scores), json.dumps(scores)])


def _write_jsonl(path: Path, dataset: Any, rows: list[tuple[int, int, list[float]]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for index, label, scores in rows:
            row = {"path": dataset.describe(index), "label": label, "prediction": _best(scores), "scores": scores}
            file.write(json.dumps(row) + "\n")


def _best(scores: list[float]) -> int:
    return max(range(len(scores)), key=scores.__getitem__)


def _print(results: dict[str, Any]) -> None:
    numbers = {name: value for name, value in results.items() if isinstance(value, float)}
    print_table("Test", ("metric", "value"), [(name, f"{value:.4f}") for name, value in numbers.items()])
    if "confusion" in results:
        width = len(results["confusion"])
        if width <= 20:
            header = ("true \\ predicted", *map(str, range(width)))
            print_table("Confusion", header, [(i, *row) for i, row in enumerate(results["confusion"])])
