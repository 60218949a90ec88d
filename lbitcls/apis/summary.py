"""How a run ends: the log's last lines, a table, `summary.json`."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

from lbitcls.core.hooks.evaluation import EvaluationHook
from lbitcls.core.runner import EpochRunner
from lbitcls.utils.checkpoint import write_whole
from lbitcls.utils.dist import is_main
from lbitcls.utils.logging import print_table


def finish(runner: EpochRunner, seconds: float, log_file: Path) -> dict[str, Any]:
    """The log's last lines, the table, `summary.json`."""
    best = next((hook.best for hook in runner.hooks if isinstance(hook, EvaluationHook)), {})
    runner.logger.info("Training time: %s", timedelta(seconds=int(seconds)))
    for phase, entry in best.items():
        runner.logger.info(
            "Best validation %s (%s): %.4f in epoch %d", entry["key"], phase, entry["value"], entry["epoch"]
        )
    summary = _summary(runner, best, log_file)
    if is_main():
        text = json.dumps(summary, indent=2) + "\n"
        write_whole(runner.work_dir / "summary.json", lambda path: path.write_text(text, encoding="utf-8"))
        print_table("Result", ("", ""), _rows(summary))
    return summary


def _summary(runner: EpochRunner, best: dict[str, Any], log_file: Path) -> dict[str, Any]:
    from lbitcls.quant import model_size

    summary: dict[str, Any] = {}
    for phase, entry in best.items():
        name = entry["key"].replace("-", "") if entry["key"].startswith("top-") else entry["key"]
        summary[phase] = {name: entry["value"], "epoch": entry["epoch"], "file": str(runner.work_dir / entry["file"])}
    summary["model_size"] = model_size(runner.module)
    last = best.get(runner.phase)
    summary["checkpoint"] = str(runner.work_dir / (last["file"] if last else "latest.pth"))
    summary["log"] = str(log_file)
    return summary


def _rows(summary: dict[str, Any]) -> list[tuple[str, str]]:
    rows = []
    for phase in ("float", "quantized"):
        for key, value in summary.get(phase, {}).items():
            if key not in ("epoch", "file"):
                unit = " %" if key != "loss" else ""
                rows.append((f"{phase} {key.replace('top', 'top-')}", f"{value:.2f}{unit}"))
    size = summary["model_size"]
    rows.append(("size, float", f"{size['float_kib']:.1f} KiB"))
    if "quantized" in summary or size["quantized_kib"] < size["float_kib"]:
        rows.append(("size, at its bits", f"{size['quantized_kib']:.1f} KiB"))
    return [*rows, ("checkpoint", summary["checkpoint"]), ("log", summary["log"])]
