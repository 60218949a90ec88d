"""What is in image files and folders of them: `lbitcls infer`."""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lbitcls.datasets.listing import images_of
from lbitcls.inference.api import Result, check_numbers, init_model, predict_pictures
from lbitcls.utils.errors import DataError
from lbitcls.utils.files import check_writable, is_standard_output, write_out
from lbitcls.utils.jsontext import json_text
from lbitcls.utils.logging import track

if TYPE_CHECKING:
    from lbitcls.settings.sections import ConfigLike


def infer_files(
    cfg: ConfigLike,
    checkpoint: str | Path,
    images: Sequence[str | Path],
    *,
    topk: int = 1,
    out: str | Path | None = None,
    device: str | None = None,
    engine: str | None = None,
    threads: int | None = None,
    batch_size: int = 16,
) -> list[dict[str, Any]]:
    """Print what a model says of each image, in order; those that cannot be read are reported, and the others go on.

    Args:
        cfg: the config that the checkpoint was trained with.
        checkpoint: of this model, or an `.onnx` file that was exported of it.
        images: files, and folders whose images are taken, those of their folders too.
        topk: classes to list for each image.
        out: JSON file for the results; `-`: standard output, and all else goes to standard error.
        device: of a checkpoint's model; None: the config's, or else the first GPU, or the CPU.
        engine: of an `.onnx` file: `openvino` (the default) or `onnxruntime`.
        threads: of the engine; None: its own choice.
        batch_size: most images that are predicted at once.

    Returns:
        For each image its `path` and what `inference_model` gives, or `path` and `error`.

    Raises:
        ConfigError: an argument is wrong, or `out` cannot be written.
        CheckpointError: the weights cannot be read, or are another model's.
        DataError: a folder holds no images; or, when all is done and written, images could not be read.
    """
    check_numbers(topk, batch_size)
    paths = [path for given in images for path in images_of(Path(given).expanduser())]
    piped = out is not None and is_standard_output(out)
    target = None if out is None or piped else check_writable(out, "--json", checkpoint, *paths, streams=True)
    with contextlib.redirect_stdout(sys.stderr) if piped else contextlib.nullcontext():
        model = init_model(cfg, checkpoint, device, engine=engine, threads=threads)
        records = _predicted(model, paths, topk, batch_size)
    content = _encoded(json_text(records, indent=2, ensure_ascii=False) + "\n")
    if piped:
        print(content.decode(), end="", flush=True)
    elif target is not None:
        write_out(target, content)
    failed = sum("error" in record for record in records)
    if failed:
        raise DataError(f"{failed} of {len(records)} images could not be used; the messages above say why.")
    return records


def _predicted(model: Any, paths: Sequence[str], topk: int, batch_size: int) -> list[dict[str, Any]]:
    records = []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Image size .* exceeds limit")  # from half of what is refused
        found = predict_pictures(model, paths, topk if topk != 1 else None, batch_size)
        for path, result in zip(paths, track(found, len(paths), "images"), strict=True):
            records.append(_record(path, result))
            _say(records[-1])
    return records


def _record(path: str, result: Result | DataError) -> dict[str, Any]:
    if not isinstance(result, DataError):
        return {"path": path, **result}
    text = str(result)
    return {"path": path, "error": text if text.startswith(path) else f"{path}: {text}"}


def _say(record: dict[str, Any]) -> None:
    if "error" in record:
        print(_encoded(record["error"]).decode(), file=sys.stderr)
        return
    listed = record.get("topk") or [record]
    said = ", ".join(f"{entry['pred_class']} {100 * entry['pred_score']:.1f} %" for entry in listed)
    print(_encoded(f"{record['path']}: {said}").decode())


def _encoded(text: str) -> bytes:
    """UTF-8, with escapes for the bytes of file names that are none; JSON understands them."""
    return text.encode("utf-8", errors="backslashreplace")
