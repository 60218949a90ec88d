"""Summary of a run: last lines of the log, `summary.json`, a table."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any, cast

from lbitcls.core.hooks.evaluation_hook import EvaluationHook
from lbitcls.core.runner import EpochRunner
from lbitcls.protocols import SizedInBits
from lbitcls.tracking.model_bits import integer_backbone, quantization
from lbitcls.utils.dist import is_main
from lbitcls.utils.files import write_whole
from lbitcls.utils.jsontext import json_text
from lbitcls.utils.logging import DETAIL, print_table


def finish(runner: EpochRunner, seconds: float, log_file: Path, resumed: bool = False) -> dict[str, Any]:
    """Write the last lines of the log and `summary.json`; return the content of the summary.

    Args:
        runner: Runner whose run is over.
        seconds: Duration of the run in this process.
        log_file: Text log of the run.
        resumed: True: earlier processes trained a part, so that `seconds` is not the run's duration.
    """
    best = validation.best if (validation := runner.find(EvaluationHook)) else {}
    runner.logger.info("Training time: %s", timedelta(seconds=int(seconds)))
    integer = integer_backbone(runner.module)
    for phase, entry in best.items():
        kind = phase if integer is None else f"integer backbone, {phase} head"
        runner.logger.info(
            "Best validation %s (%s): %.4f in epoch %d",
            *(entry["key"], kind, entry["value"], entry["epoch"]),
            extra=DETAIL,
        )
    summary = _summary(runner, best, log_file)
    if not resumed:
        summary["seconds"] = seconds
    if is_main():
        write_summary(summary, runner.work_dir)
    return summary


def say_backbone(runner: EpochRunner) -> None:
    """Log the method, bits and size of an integer backbone, if the model has one."""
    integer = integer_backbone(runner.module)
    if integer is not None:
        backbone = cast("SizedInBits", runner.module.backbone)
        as_float, as_it_is = (bits / 8192 for bits in backbone.size_bits())
        runner.logger.info(
            "The backbone is integer (%s), %.1f KiB instead of %.1f KiB in float, and stays fixed; the head trains.",
            *(integer, as_it_is, as_float),
            extra=DETAIL,
        )


def write_summary(summary: dict[str, Any], work_dir: Path) -> None:
    """Write `summary.json`."""
    text = json_text(summary, indent=2) + "\n"
    write_whole(work_dir / "summary.json", lambda path: path.write_text(text, encoding="utf-8"))


def show_summary(summary: dict[str, Any]) -> None:
    """Print the summary table at the end of a run."""
    print_table("Result", ("", ""), _rows(summary))


def _summary(runner: EpochRunner, best: dict[str, Any], log_file: Path) -> dict[str, Any]:
    from lbitcls.quant import model_size

    summary: dict[str, Any] = {}
    integer = integer_backbone(runner.module)
    if integer is not None:
        summary["integer_backbone"] = integer
    for phase, entry in best.items():
        phase = "quantized" if integer is not None and "quantized" not in best else phase
        name = entry["key"].replace("-", "") if entry["key"].startswith("top-") else entry["key"]
        summary[phase] = {name: entry["value"], "epoch": entry["epoch"], "file": str(runner.work_dir / entry["file"])}
    summary["model_size"] = model_size(runner.module)
    last = best.get(runner.phase)
    summary["checkpoint"] = str(runner.work_dir / (last["file"] if last else "latest.pth"))
    summary["log"] = str(log_file)
    summary["quantization"] = quantization(runner.module)
    summary["seed"] = runner.seed
    summary["epochs"] = runner.epoch
    return summary


def _rows(summary: dict[str, Any]) -> list[tuple[str, str]]:
    integer = summary.get("integer_backbone")
    rows = [] if integer is None else [("backbone", f"integer, {integer}")]
    for phase in ("float", "quantized"):
        for key, value in summary.get(phase, {}).items():
            if key not in ("epoch", "file"):
                unit = " %" if key != "loss" else ""
                rows.append((f"{phase} {key.replace('top', 'top-')}", f"{value:.2f}{unit}"))
    size = summary["model_size"]
    rows.append(("size, float", f"{size['float_kib']:.1f} KiB"))
    if "quantized" in summary or size["quantized_kib"] < size["float_kib"]:
        rows.append(("size, quantized", f"{size['quantized_kib']:.1f} KiB"))
    rows += _integer_rows(summary.get("integer"))
    return [*rows, ("checkpoint", summary["checkpoint"]), ("log", summary["log"])]


def _integer_rows(integer: dict[str, Any] | None) -> list[tuple[str, str]]:
    """Return the rows that compare the exported model with the float model's file."""
    if integer is None:
        return []
    sizes = f"{integer['size_kib']:.1f} KiB, {integer['size_kib'] / integer['float_size_kib']:.2f} of the float file"
    rows = [("integer top-1", f"{integer['top1']:.2f} %"), ("size, integer model", sizes)]
    for entry in integer["latency"]:
        images = "1 image" if entry["batch"] == 1 else f"{entry['batch']} images"
        rows.append((f"time of {images}", f"{entry['ms']:.2f} ms, {entry['ratio']:.2f} of the float file's"))
    return [*rows, ("integer model", integer["file"])]
