"""Classify image files and folders of images (`lbitcls infer`)."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lbitcls.datasets.listing import images_of
from lbitcls.inference.api import Result, check_numbers, init_model, predict_pictures
from lbitcls.protocols import Classifier
from lbitcls.utils.errors import DataError, visible
from lbitcls.utils.files import check_writable, is_exported, is_standard_output, write_out
from lbitcls.utils.jsontext import json_text
from lbitcls.utils.logging import get_logger, track

if TYPE_CHECKING:
    from lbitcls.inference.labelled import LabelledFolder
    from lbitcls.settings.sections import ConfigLike


def infer_files(
    cfg: ConfigLike | None,
    checkpoint: str | Path,
    images: Sequence[str | Path],
    *,
    topk: int = 1,
    out: str | Path | None = None,
    folder: str | Path | None = None,
    device: str | None = None,
    engine: str | None = None,
    threads: int | None = None,
    batch_size: int = 16,
) -> list[dict[str, Any]]:
    """Print a model's predictions for each image, in order; images that cannot be read are reported and skipped.

    Args:
        cfg: Config that the checkpoint was trained with; None: the one that the file records.
        checkpoint: Checkpoint of this model, or a model exported from it.
        images: Image files, and folders that are searched for images, including their subfolders.
        topk: Number of classes to list for each image, at least 1.
        out: JSON file for the results; `-`: standard output, while all other output goes to standard error.
        folder: New or empty folder for the labeled images and `predictions.csv`.
        device: Device for a checkpoint's model; None: the config's, or else the first GPU, or the CPU.
        engine: Engine for an exported model; None: the first that judges files of its target.
        threads: Number of threads of the engine; None: its own choice.
        batch_size: Maximum number of images predicted at once, at least 1.

    Returns:
        For each image its `path` and the result of `inference_model`, or `path` and `error`.

    Raises:
        ConfigError: An argument is wrong, the device does not exist, or `out` cannot be written.
        CheckpointError: The weights cannot be read, or are another model's.
        DataError: A folder contains no images; or, after all results are written, some images could not be read.
    """
    check_numbers(topk, batch_size)
    paths = [path for given in images for path in images_of(Path(given).expanduser())]
    piped = out is not None and is_standard_output(out)
    if device not in (None, "auto") and not is_exported(checkpoint):
        from lbitcls.utils.device import choose_device

        choose_device(get_logger(), device)  # strict, unlike `init_model`
    target = None if out is None or piped else check_writable(out, "--json", checkpoint, *paths, streams=True)
    labelled = None if folder is None else _labelled_folder(folder)
    with contextlib.redirect_stdout(sys.stderr) if piped else contextlib.nullcontext():
        model = init_model(cfg, checkpoint, device, engine=engine, threads=threads)
        records = _predicted(model, paths, topk, batch_size, labelled)
        if labelled is not None:
            print(f"Wrote labeled images and {labelled.finish()}")
    content = _encoded(json_text(records, indent=2, ensure_ascii=False) + "\n")
    if piped:
        print(content.decode(), end="", flush=True)
    elif target is not None:
        write_out(target, content)
    failed = sum("error" in record for record in records)
    if failed:
        raise DataError(f"{failed} of {len(records)} images could not be used; the messages above say why.")
    return records


def _labelled_folder(path: str | Path) -> LabelledFolder:
    from lbitcls.inference.labelled import LabelledFolder

    return LabelledFolder(path)


def _predicted(
    model: Classifier, paths: Sequence[str], topk: int, batch_size: int, labelled: LabelledFolder | None
) -> list[dict[str, Any]]:
    records = []
    found = predict_pictures(model, paths, topk if topk != 1 else None, batch_size)
    for path, result in zip(paths, track(found, len(paths), "images"), strict=True):
        records.append(_record(path, result))
        _say(records[-1])
        if labelled is not None:
            labelled.add(model, records[-1])
    return records


def _record(path: str, result: Result | DataError) -> dict[str, Any]:
    if not isinstance(result, DataError):
        return {"path": path, **result}
    text = str(result)
    return {"path": path, "error": text if text.startswith(visible(path)) else f"{path}: {text}"}


def _say(record: dict[str, Any]) -> None:
    if "error" in record:
        print(visible(_encoded(record["error"]).decode()), file=sys.stderr)
        return
    listed = record.get("topk") or [record]
    said = ", ".join(f"{entry['pred_class']} {100 * entry['pred_score']:.1f} %" for entry in listed)
    print(visible(_encoded(f"{record['path']}: {said}").decode()))


def _encoded(text: str) -> bytes:
    """Encode as UTF-8, with escapes that JSON accepts for bytes of file names that are not UTF-8."""
    return text.encode("utf-8", errors="backslashreplace")
