"""Small trainings that are ended and resumed, and the comparison with one that nothing has ended."""

from __future__ import annotations

import collections
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from stress.configs import text_of_config
from stress.nursery import Child, begin
from stress.wrong_values import LAST, NORMALIZE, TEST, digits

COMMAND = ("train", "config.py", "--work-dir", "work", "--resume")
"""One command for the first start and for each restart."""
_CLOCK = {"time", "data_time", "eta", "memory"}  # of a record: what a clock or the machine decides
_OTHERS = {"seconds", "log", "latency", "latency_ratio", "threads"}  # of a summary

_SECTIONS: dict[str, Any] = dict(
    model=dict(
        type="ImageClassifier",
        backbone=dict(type="ResNetCIFAROptionA", depth=8, in_channels=1, base_channels=4),
        neck=dict(type="GlobalAveragePooling"),
        head=dict(type="LinearClsHead", num_classes=10, in_channels=16, dropout=0.1),
    ),
    data=dict(
        samples_per_gpu=16,
        workers_per_gpu=0,
        train=digits("train", 104, [dict(type="v2.RandomRotation", degrees=10), NORMALIZE, *LAST]),
        val=digits("test", 48, TEST),
        test=digits("test", 48, TEST),
    ),
    evaluation=dict(interval=1, metric="accuracy"),
    optimizer=dict(type="SGD", lr=0.1, momentum=0.9, weight_decay=1e-4),
    lr_config=dict(policy="CosineAnnealing", min_lr=0.0, by_epoch=False, warmup="linear", warmup_iters=4),
    total_epochs=3,
    checkpoint_config=dict(interval=1, by_iter=3, background=True, max_keep_ckpts=2),
    log_config=dict(interval=2, hooks=[dict(type="TextLoggerHook")], pictures=False),
    kernels="plain",
    num_threads=1,
    seed=3,
)
_QUANTIZED: dict[str, Any] = dict(
    quant_transformer=dict(
        type="mTransformerV2",
        quan_policy=dict(Conv2d=dict(type="LSQConv", num_bit_w=4, num_bit_a=4)),
        special_layers=dict(
            layers_name=["backbone.conv1"], convert_type=[dict(type="LSQConv", num_bit_w=8, num_bit_a=8)]
        ),
    ),
    calibration=dict(epoch=1, num_batches=2),
)
_BOARD = dict(interval=2, hooks=[dict(type="TensorboardLoggerHook", images=4)], pictures=False)


def _with(workers: int, **sections: Any) -> dict[str, Any]:
    data = {**_SECTIONS["data"], "workers_per_gpu": workers}
    return {**_SECTIONS, "data": data, **sections}


TRAININGS: dict[str, dict[str, Any]] = {
    "float": _with(0, checkpoint_config=dict(interval=1, by_iter=3, background=False, max_keep_ckpts=2)),
    "quantized": _with(
        2,
        **_QUANTIZED,
        ema=dict(decay=0.9),
        log_config=_BOARD,
    ),
    "distilled": _with(4, distill=dict(teacher=dict(checkpoint="../teacher.pth"), loss="kl")),
    "exported": _with(1, **_QUANTIZED, export=dict(verify=True, num_images=16)),
    "two processes": {**_SECTIONS, **_QUANTIZED, "data": {**_SECTIONS["data"], "samples_per_gpu": 8}},
    "stored": _with(0, **_QUANTIZED, ema=dict(decay=0.9), log_config=_BOARD),
}
"""Sections of the configs by name. `distilled` needs `teacher.pth` above its folder."""


def make_folder(folder: Path, training: str) -> Path:
    """Make a folder with the config of a training; return it."""
    folder.mkdir(parents=True)
    (folder / "config.py").write_text(text_of_config(TRAININGS[training]), encoding="utf-8")
    return folder


def make_teacher(path: Path) -> None:
    """Write the checkpoint of a teacher, an untrained network."""
    from lbitcls.models import build_classifier
    from lbitcls.utils.checkpoint import save_checkpoint
    from lbitcls.utils.config import Config

    torch.manual_seed(0)
    model = build_classifier(_SECTIONS["model"])
    model.cfg = Config(_SECTIONS)
    save_checkpoint(model, path)


def finish(folder: Path, training: str) -> tuple[int | None, str]:
    """Resume a training and wait for its end; return the exit code and standard error."""
    if training == "two processes":
        return _finish_both(folder)
    child = begin(COMMAND, folder)
    return child.code(), child.errors


def begin_both(folder: Path) -> list[Child]:
    """Start a training on two processes, which find each other as torchrun's do."""
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    return [begin((*COMMAND, "--launcher", "pytorch"), folder, _Rank(rank, port)) for rank in (0, 1)]


@dataclass(frozen=True)
class _Rank:
    """Environment of a process that torchrun has started."""

    rank: int
    port: str

    def __call__(self) -> None:
        place = {"RANK": str(self.rank), "LOCAL_RANK": str(self.rank), "WORLD_SIZE": "2"}
        os.environ.update(place, MASTER_ADDR="127.0.0.1", MASTER_PORT=self.port)
        if self.rank:
            for number, name in ((1, "stdout_1.txt"), (2, "stderr_1.txt")):
                os.dup2(os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666), number)


def _finish_both(folder: Path) -> tuple[int | None, str]:
    both = begin_both(folder)
    codes = [child.code() for child in both]
    code = next((code for code in codes if code != 0), 0)
    return code, both[0].errors + (folder / "stderr_1.txt").read_text("utf-8", "replace")


def differences(reference: Path, work: Path) -> list[str]:
    """Return how a finished run's work directory differs from the one that nothing has ended; empty: not at all."""
    found = [f"left behind: {name}" for name in sorted(_temporary(work))]
    names, others = _names(reference), _names(work)
    found += [f"missing: {name}" for name in sorted(names - others)]
    found += [f"additional: {name}" for name in sorted(others - names)]
    for name in sorted(names & others):
        try:
            found += _differences(reference / name, work / name)
        except Exception as error:  # torch raises many kinds on damaged files
            found.append(f"{name} cannot be read ({type(error).__name__})")
    return found


def _differences(reference: Path, path: Path) -> list[str]:
    """Return how a file of a finished run differs."""
    if path.suffix == ".pth":
        return different(content(reference), content(path), path.name)
    if path.name == "log.jsonl":
        return _log_faults(reference, path)
    if path.name == "summary.json":
        return different(_summary(reference), _summary(path), path.name)
    if path.name == "heartbeat.json" and json.loads(path.read_text())["state"] != "finished":
        return [f"{path.name} does not say that the run is finished"]
    same = path.suffix != ".onnx" or reference.read_bytes() == path.read_bytes()
    return [] if same else [f"{path.name} has other bytes"]


def _temporary(work: Path) -> set[str]:
    return {path.name for path in work.rglob("*") if path.name.startswith(".lbitcls-") or path.name == ".run.json"}


def _names(work: Path) -> set[str]:
    """Return the files of a run, without those whose number or name depends on its processes."""
    parts = {path.relative_to(work).parts for path in work.rglob("*") if path.is_file()}
    return {"/".join(name) for name in parts if name[0] != "tf_logs" and not name[-1].endswith((".log", ".tmp"))}


def content(path: Path) -> dict[str, Any]:
    """Return a checkpoint without the name of its run."""
    checkpoint: dict[str, Any] = torch.load(path, weights_only=True)
    checkpoint["meta"].pop("run")
    return checkpoint


def different(left: Any, right: Any, where: str) -> list[str]:
    """Return the places where two contents do not hold the same bits."""
    if isinstance(left, torch.Tensor) and isinstance(right, torch.Tensor):
        same = left.dtype == right.dtype and left.shape == right.shape and torch.equal(left, right)
        return [] if same else [f"{where} has other values"]
    if isinstance(left, dict) and isinstance(right, dict) and left.keys() == right.keys():
        return [text for key in left for text in different(left[key], right[key], f"{where}.{key}")]
    if isinstance(left, (list, tuple)) and isinstance(right, (list, tuple)) and len(left) == len(right):
        return [text for pair in enumerate(zip(left, right)) for text in different(*pair[1], f"{where}[{pair[0]}]")]
    return [] if type(left) is type(right) and left == right else [f"{where} is {right!r:.80}, not {left!r:.80}"]


def _log_faults(reference: Path, log: Path) -> list[str]:
    """Return what is wrong with `log.jsonl`: records twice, or other values."""
    records, expected = (list(_records(path)) for path in (log, reference))
    places = collections.Counter((record["mode"], record["epoch"], record["iter"]) for record in records)
    twice = [f"log.jsonl has {place} {count} times" for place, count in places.items() if count > 1]
    return twice or different(expected, records, "log.jsonl")


def _records(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_text("utf-8").splitlines():
        yield {key: value for key, value in json.loads(line).items() if key not in _CLOCK}


def _summary(path: Path) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads(path.read_text("utf-8"))
    for part in (summary, summary.get("integer") or {}):
        for name in _OTHERS & part.keys():
            del part[name]
    return summary
