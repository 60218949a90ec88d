"""What the ranks of a test do: train from a config, and tell what they saw."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "apis"))

import tiny_parts  # type: ignore[import-not-found] # noqa: F401 - registers parts of tests before forking

from lbitcls.core.guard import Interrupted
from lbitcls.core.hooks import Hook
from lbitcls.registry import BACKBONES, HOOKS
from lbitcls.utils.config import Config
from lbitcls.utils.dist import sum_over_ranks
from lbitcls.utils.shards import locals_of, whole
from lbitcls.workflows.training import train_classifier

torch.set_num_threads(1)


@BACKBONES.register_module()
class PlainNet(nn.Module):
    """Two convolutions without BatchNorm on 8×8 images."""

    def __init__(self, in_channels: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.num_features = 16

    def forward(self, img: Tensor) -> tuple[Tensor, ...]:
        return (torch.relu(self.conv2(torch.relu(self.conv1(img)))),)


@HOOKS.register_module()
class Trace(Hook):
    """Keeps the loss over all ranks, the learning rate, and a fingerprint of the state after each event."""

    last: Trace

    def __init__(self) -> None:
        Trace.last = self
        self.losses: list[float] = []
        self.rates: list[float] = []
        self.images: list[int] = []
        self.seen: list[int] = []  # samples of this rank
        self.states: list[dict[str, Tensor]] = []
        self.held = 0  # bytes of parameters and optimizer states in this process

    def before_iter(self, runner: Any) -> None:
        if not self.states:
            self._keep(runner)  # after a calibration, or a resume

    def after_iter(self, runner: Any) -> None:
        loss, count = runner.outputs["loss"].double(), runner.batch_count
        total, number = sum_over_ranks(torch.stack([loss * count, loss.new_tensor(count)])).tolist()
        self.losses.append(total / number)
        self.rates.append(runner.step.optimizer.param_groups[0]["lr"])
        self.images.append(runner.images)
        optimizer = runner.step.optimizer
        states = [value for state in optimizer.state.values() for value in state.values()]
        parts = locals_of(t for t in [*runner.module.parameters(), *states] if isinstance(t, Tensor))
        self.held = sum(part.numel() * part.element_size() for part in parts)
        own, _ = runner.loader.share(runner.epoch, runner.inner_iter - 1)
        self.seen += runner.loader.indices(runner.epoch)[runner.inner_iter - 1][:own].tolist()

    def after_epoch(self, runner: Any) -> None:
        self._keep(runner)

    def _keep(self, runner: Any) -> None:
        state = {name: whole(value).clone() for name, value in runner.module.state_dict().items()}
        if runner.ema is not None:
            state |= {f"ema.{name}": whole(value).clone() for name, value in runner.ema.module.state_dict().items()}
        self.states.append(state)


@HOOKS.register_module()
class Accident(Hook):
    """Something happens to one rank before an iteration, once in a job: a signal to itself, sleep, or long work.

    Args:
        at: The iteration.
        how: A signal's name, `sleep`, or `work` for 12 s.
        rank: The rank.
    """

    def __init__(self, at: int, how: str, rank: int = 1) -> None:
        self.at, self.how, self.rank = at, how, rank

    def before_iter(self, runner: Any) -> None:
        note = runner.work_dir / "accident"
        if runner.iter != self.at or self.rank != int(os.environ.get("RANK", 0)) or note.exists():
            return
        note.touch()
        if self.how == "sleep":
            time.sleep(600)
        elif self.how == "work":
            end = time.monotonic() + 12
            while time.monotonic() < end:
                torch.ones(500, 500) @ torch.ones(500, 500)
        else:
            os.kill(os.getpid(), getattr(signal, self.how))


def train(cfg: dict[str, Any], resume: bool = False) -> dict[str, Any]:
    """Train, and return what `Trace` kept, what the log says, and the summary, or the signal that ended it."""
    launcher = "pytorch" if int(os.environ["WORLD_SIZE"]) > 1 else "none"
    config = Config({**cfg, "custom_hooks": [*cfg.get("custom_hooks", ()), dict(type="Trace")]})
    summary: dict[str, Any] = {}
    with contextlib.redirect_stdout(io.StringIO()) as told:
        try:
            summary = train_classifier(config, resume=resume, launcher=launcher)
        except Interrupted as stop:
            summary = {"signal": stop.number}
    return {**vars(Trace.last), "summary": summary, "told": told.getvalue()}


def resume(cfg: dict[str, Any]) -> dict[str, Any]:
    """Resume the run in the config's work directory."""
    return train(cfg, resume=True)


def train_all(runs: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Train from each config, one after the other: a store of its own for each process group."""
    port = int(os.environ["MASTER_PORT"])
    results = {}
    for number, (name, cfg) in enumerate(runs.items()):
        os.environ["MASTER_PORT"] = str(port + number)
        results[name] = train(cfg)
    return results
