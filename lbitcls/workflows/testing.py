"""Tests a checkpoint, an exported model or a model in memory: metrics, and a row per image; `lbitcls test`."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from lbitcls.assembly.classes import check_labels, check_names
from lbitcls.assembly.session import Session, load_data, make_model, open_session
from lbitcls.core.evaluation import check_metrics, evaluate
from lbitcls.inference.self_described import folder_config, recorded_config
from lbitcls.protocols import Dataset
from lbitcls.settings.sections import ConfigLike, Settings, read_settings
from lbitcls.settings.training_sections import EvaluationConfig
from lbitcls.utils.checkpoint import load_checkpoint
from lbitcls.utils.dist import gather_objects, is_main
from lbitcls.utils.errors import ConfigError, DataError
from lbitcls.utils.files import check_writable, is_exported, write_whole
from lbitcls.utils.jsontext import json_text
from lbitcls.utils.logging import print_table, track
from lbitcls.workflows.class_results import ClassCounts, name_of, print_classes, print_confusion

Row = tuple[int, int, list[float], list[float]]  # an image's position, its label, its scores, its logits
_COLUMNS = ("path", "label", "prediction", "true_class", "predicted_class", "scores")


def test_classifier(
    cfg: ConfigLike | None,
    checkpoint: str | Path | None = None,
    *,
    folder: str | Path | None = None,
    metrics: Sequence[str] = ("accuracy",),
    out: str | Path | None = None,
    predictions: str | Path | None = None,
    data_root: str | None = None,
    launcher: str = "none",
    engine: str | None = None,
    threads: int | None = None,
) -> dict[str, Any]:
    """Test a checkpoint or an exported model on `data.test`, or on `data.val` if the config has no `data.test`.

    Args:
        cfg: Config that the checkpoint was trained with; `evaluation.metric_options` sets the k of top-k. None: the
            config that the file records; it is parsed, not executed.
        checkpoint: Checkpoint of the config's model, a published state dict that fits it, or an exported model,
            which an engine runs on the CPU. None: the model at the start of training, with the weights of `pretrained`
            and `load_from`, or random ones; the log reports which.
        folder: Image folder to test on, with one folder for each of the model's classes; None: the config's data.
        metrics: Names from `lbitcls.core.evaluation.METRICS`; accuracy is always among the results.
        out: JSON file for the results.
        predictions: File for one row per image, in the data set's order. `.csv` or `.jsonl`: path, label, prediction,
            their classes' names, scores (softmax). `.npz`: NumPy arrays `paths`, `labels`, `predictions` (N,) and
            `logits` (N, K), float32.
        data_root: Folder to search for relative data paths (`--data-root`).
        launcher: `none`, `pytorch` or `slurm`.
        engine: Engine for an exported model; None: the first that judges files of its target.
        threads: Number of threads of the engine; None: its own choice.

    Returns:
        `{'loss': …, 'top-1': …, 'top-5': …, …, 'correct': …, 'total': …, 'classes': […]}`, in percent except the loss
        and the two that count images; `classes` has a dict per class in label order: its `class` name, its number of
        `images`, its `precision`, `recall` and `f1_score`.

    Raises:
        CheckpointError: the checkpoint cannot be read, is another model's or a backbone's, or has other quantizers.
        ConfigError: an unknown metric or engine, an engine for a checkpoint, or a file that cannot be written.
        DataError: the class order of the test set differs from the checkpoint's; `folder` has other classes; or images
            or logits are not finite.
    """
    settings = read_settings(_config_for(cfg, checkpoint, folder))
    settings.require(("model", "data"), "testing")
    chosen = tuple(dict.fromkeys(("accuracy", *check_metrics(metrics))))
    topk = (settings.evaluation or EvaluationConfig()).topk
    writer = _row_writer(predictions)
    used = [] if checkpoint is None else [checkpoint]
    results_file = None if out is None else check_writable(out, "--out", *used)
    read = used if out is None else [*used, out]
    rows_file = None if predictions is None else check_writable(predictions, "--predictions", *read)
    with open_session(settings, launcher) as session:
        split = settings.data.tested
        dataset, loader = load_data(settings, split, "testing", session, data_root=data_root)
        model = open_model(settings, checkpoint, split, dataset, session, engine, threads, data_root)
        rows: list[Row] = []
        counts = ClassCounts()

        def watch(batch: dict[str, torch.Tensor], logits: torch.Tensor) -> None:
            counts.add(batch["gt_label"], logits)
            if writer is None:
                return
            values = (batch["index"], batch["gt_label"], logits.float().softmax(dim=1), logits.float())
            rows.extend(zip(*(value.tolist() for value in values), strict=True))

        batches = track(loader, len(loader), "testing", shown=is_main())
        results = evaluate(
            model,
            batches,
            session.device,
            metrics=chosen,
            topk=topk,
            watch=watch,
            describe=getattr(dataset, "describe", str),
        )
        names = dataset.CLASSES or getattr(model, "CLASSES", None)
        results |= counts.results(names)
        gathered = gather_objects(rows) if writer else []
        if is_main():
            _print(results, names, getattr(model, "num_classes", None))
            if results_file is not None:
                text = json_text(results, indent=2) + "\n"
                write_whole(results_file, lambda path: path.write_text(text, encoding="utf-8"))
            if writer is not None and rows_file is not None:
                rows = sorted(row for part in gathered for row in part)
                write_whole(rows_file, lambda path: writer(path, (_named_row(row, dataset, names) for row in rows)))
    return results


def _config_for(cfg: ConfigLike | None, checkpoint: str | Path | None, folder: str | Path | None) -> ConfigLike:
    """Return the config given, or the one that the model's file records; with a folder as its test set."""
    if cfg is not None and folder is None:
        return cfg
    if checkpoint is None:
        raise ConfigError("no model is given: name a config, or a file that records its own (.onnx, .pth).")
    if folder is None:
        return recorded_config(checkpoint)
    return folder_config(checkpoint, folder, cfg)


def open_model(
    settings: Settings,
    path: str | Path | None,
    split: str,
    dataset: Dataset,
    session: Session,
    engine: str | None = None,
    threads: int | None = None,
    data_root: str | None = None,
) -> nn.Module:
    """Return the settings' classifier with a checkpoint's weights, on its device, or the exported model in `path`.

    Without a path, return the model at the start of training; published weights are searched below `data_root`.

    Raises:
        CheckpointError: `path` cannot be read, is another model's or a backbone's, or has other quantizers.
        ConfigError: an engine for a checkpoint, or labels in `dataset` that are not classes of the model.
        DataError: the class order of `dataset`, which is `data.<split>`, differs from the checkpoint's.
    """
    exported = path is not None and is_exported(path)
    if not exported and (engine is not None or threads is not None):
        raise ConfigError(f"--engine and --threads need an exported model, which an engine runs; got '{path}'.")
    if path is None:
        return _untrained(settings, split, dataset, session, data_root)
    if exported:
        model, classes = _exported(settings, path, session, dataset, split, engine, threads)
    else:
        model = make_model(settings, session, dataset, split, pretrained=False, data_root=data_root, checkpoint=path)
        classes = load_checkpoint(model, path, strict=True, logger=session.logger)["meta"].get("CLASSES")
        model.to(session.device)
    check_names(classes, f"the {'file' if exported else 'checkpoint'} {path}", dataset, split, session.logger)
    return model


def _untrained(settings: Settings, split: str, dataset: Dataset, session: Session, data_root: str | None) -> nn.Module:
    """Build the model at the start of training.

    Raises:
        ConfigError: its quantizers have no initial values, as before any training.
    """
    from lbitcls.quant import named_quantizers

    model = make_model(settings, session, dataset, split, data_root=data_root)
    backbone = settings.model.get("backbone") or {}
    sources = [text for text in (settings.model.get("pretrained"), backbone.get("pretrained")) if text]
    if settings.load_from is not None:
        load_checkpoint(model, settings.load_from, logger=session.logger)
        sources.append(settings.load_from)
    waiting = [name for name, quantizer in named_quantizers(model) if not quantizer.is_initialized]
    if waiting:
        raise ConfigError(
            f"no checkpoint is given, and {len(waiting)} quantizers, {waiting[0]} first, have not seen data yet. Give "
            "a quantized checkpoint (lbitcls calibrate writes one), or test the float model: "
            "--options quant_transformer=none"
        )
    said = f"weights of {', '.join(map(str, sources))}" if sources else "random weights"
    session.logger.info("No checkpoint: Testing the model at the start of training, with %s.", said)
    return model.to(session.device)


def _exported(
    settings: Settings,
    path: str | Path,
    session: Session,
    dataset: Dataset,
    split: str,
    engine: str | None,
    threads: int | None,
) -> tuple[nn.Module, list[str] | None]:
    """Return the model in an ONNX file, and its class names."""
    from lbitcls.inference.onnx_classifier import open_classifier

    model = open_classifier(settings, path, split, session.logger, engine, threads)
    check_labels(model, dataset, split)
    return model, model.engine.info.classes if model.engine.info is not None else None


def test_model(
    model: nn.Module,
    loader: Iterable[Mapping[str, torch.Tensor] | Sequence[torch.Tensor]],
    *,
    metrics: Sequence[str] = ("accuracy",),
    topk: Sequence[int] = (1, 5),
) -> dict[str, Any]:
    """Test a model in memory on the batches of a loader: `evaluate`, on the model's own device.

    Args:
        model: Classifier, or any module that maps images to logits.
        loader: Loader of dicts with `img` and `gt_label`, or of pairs (images, labels).
        metrics: Names from `lbitcls.core.evaluation.METRICS`.
        topk: The k of each `top-k`.

    Returns:
        Results as from `test_classifier`.

    Raises:
        DataError: the loader yields no batch, or something other than batches.
        ConfigError: an unknown metric.

    Example:
        >>> test_model(model, loader)["total"]  # doctest: +SKIP
        360
    """
    counts = ClassCounts()

    def watch(batch: dict[str, torch.Tensor], logits: torch.Tensor) -> None:
        counts.add(batch["gt_label"], logits)

    device = next((tensor.device for tensor in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    results = evaluate(
        *(model, map(_as_batch, loader), device),
        metrics=tuple(dict.fromkeys(("accuracy", *check_metrics(metrics)))),
        topk=topk,
        watch=watch,
    )
    names: Any = getattr(model, "CLASSES", None)
    return results | counts.results(names)


def _as_batch(batch: object) -> dict[str, torch.Tensor]:
    if isinstance(batch, dict) and "gt_label" in batch:
        return batch
    if isinstance(batch, (list, tuple)) and len(batch) == 2:
        return {"img": batch[0], "gt_label": batch[1]}
    raise DataError(
        f"a batch must be a dict with img and gt_label, or a pair (images, labels); got {type(batch).__name__}."
    )


def _row_writer(path: str | Path | None) -> Callable[[Path, Iterable[dict[str, Any]]], None] | None:
    """Return the function that writes the rows, by the file's suffix; raise `ConfigError` for another suffix."""
    if path is None:
        return None
    writers = {".csv": _write_csv, ".jsonl": _write_jsonl, ".npz": _write_npz}
    if Path(path).suffix not in writers:
        raise ConfigError(f"--predictions must be a .csv, .jsonl or .npz file; got '{path}'.")
    return writers[Path(path).suffix]


def _named_row(row: Row, dataset: Dataset, names: Sequence[str] | None) -> dict[str, Any]:
    """Return what the file of predictions says of an image, by column."""
    index, label, scores, logits = row
    best = max(range(len(scores)), key=scores.__getitem__)
    return {
        "path": dataset.describe(index),
        "label": label,
        "prediction": best,
        "true_class": name_of(names, label),
        "predicted_class": name_of(names, best),
        "scores": scores,
        "logits": logits,
    }


def _write_csv(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(_COLUMNS)
        writer.writerows([*(row[name] for name in _COLUMNS[:-1]), json_text(row["scores"])] for row in rows)


def _write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json_text({name: row[name] for name in _COLUMNS}) + "\n" for row in rows)


def _write_npz(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    kept = [(row["path"], row["label"], row["prediction"], row["logits"]) for row in rows]
    paths, labels, predictions, logits = (np.array(values) for values in zip(*kept, strict=True))
    with path.open("wb") as file:  # a path without the suffix .npz would get it
        np.savez_compressed(file, paths=paths, labels=labels, predictions=predictions, logits=logits.astype(np.float32))


def _print(results: dict[str, Any], names: Sequence[str] | None, classes: int | None) -> None:
    """Print the results, except accuracies that cannot be below 100 %: top-5 of five classes."""
    print(f"correct: {results['correct']:,} / {results['total']:,}")
    certain = {f"top-{k}" for k in range(2, 1000) if classes is not None and k >= classes}
    numbers = {name: value for name, value in results.items() if isinstance(value, float) and name not in certain}
    print_table("Test", ("metric", "value"), [(name, f"{value:.4f}") for name, value in numbers.items()])
    print_classes(results["classes"])
    if "confusion" in results:
        print_confusion(results["confusion"], names)
