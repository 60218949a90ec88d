"""Parts that the tests register: a small backbone, and hooks that end a run at a chosen moment."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from typing import Any

import torch
from torch import Tensor, nn

from lbitcls.core.hooks import Hook
from lbitcls.registry import BACKBONES, HOOKS
from lbitcls.utils.dist import rank


@BACKBONES.register_module()
class TinyNet(nn.Module):
    """Two convolutions with BatchNorm on 8×8 images: what a checkpoint must restore, in little time."""

    in_channels = 1

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(self.in_channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(2 * width)
        self.num_features = 2 * width

    def forward(self, img: Tensor) -> tuple[Tensor, ...]:
        features = torch.relu(self.bn1(self.conv1(img)))
        return (torch.relu(self.bn2(self.conv2(features))),)


@BACKBONES.register_module()
class TinyColorNet(TinyNet):
    """TinyNet for images with three channels."""

    in_channels = 3


class Ended(BaseException):
    """Stands for the end of a process: nothing in the package catches it."""


@HOOKS.register_module()
class EndAt(Hook):
    """Ends the run at an event, `how` being an exception, or a signal to the own process.

    Args:
        event: the hook's method that ends it.
        at: the runner's `iter` (or, after an epoch, `epoch`) at which it does.
        how: `raise`, or a signal's name.
        only_rank: the rank that ends; None: all.
    """

    def __init__(self, event: str, at: int, how: str = "raise", only_rank: int | None = None) -> None:
        self.at = at
        self.how = how
        self.counts_epochs = event == "after_epoch"
        if only_rank in (None, rank()):
            setattr(self, event, self._end)

    def _end(self, runner: Any) -> None:
        if (runner.epoch if self.counts_epochs else runner.iter) != self.at:
            return
        if self.how == "raise":
            raise Ended
        os.kill(os.getpid(), getattr(signal, self.how))


@HOOKS.register_module()
class Poison(Hook):
    """Makes a weight infinite on one rank, so that the next loss is not finite."""

    def __init__(self, at: int, only_rank: int = 0) -> None:
        self.at = at
        self.only_rank = only_rank

    def before_iter(self, runner: Any) -> None:
        if runner.iter == self.at and rank() == self.only_rank:
            with torch.no_grad():
                next(runner.module.parameters()).fill_(float("inf"))


@HOOKS.register_module()
class Fail(Hook):
    """Raises an error of the user's on one rank."""

    def __init__(self, at: int, only_rank: int = 0) -> None:
        self.at = at
        self.only_rank = only_rank

    def before_iter(self, runner: Any) -> None:
        if runner.iter == self.at and rank() == self.only_rank:
            from lbitcls.utils.errors import DataError

            raise DataError("image 7 cannot be read")


@HOOKS.register_module()
class Fingerprint(Hook):
    """Writes, at the end, a file for each rank with the sums of its parameters and buffers."""

    def after_run(self, runner: Any) -> None:
        state = {name: value.double().sum().item() for name, value in runner.module.state_dict().items()}
        torch.save(state, runner.work_dir / f"rank_{rank()}.pt")


@HOOKS.register_module()
class Spoil(Hook):
    """Makes a weight infinite after an iteration, as a last step that went wrong does."""

    def __init__(self, at: int) -> None:
        self.at = at

    def after_iter(self, runner: Any) -> None:
        if runner.iter == self.at:
            with torch.no_grad():
                next(runner.module.parameters()).fill_(float("inf"))


@HOOKS.register_module()
class KillReader(Hook):
    """Kills a process that reads data, as the system does where memory is short."""

    def __init__(self, at: int) -> None:
        self.at = at

    def before_iter(self, runner: Any) -> None:
        if runner.iter == self.at:
            os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)


@HOOKS.register_module()
class Count(Hook):
    """Counts iterations in steps of its own, as a hook with a state does."""

    def __init__(self, by: int) -> None:
        self.by = by
        self.total = 0

    def after_iter(self, runner: Any) -> None:
        self.total += self.by

    def state_dict(self) -> dict[str, Any]:
        return {"total": self.total}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.total = state["total"]


@HOOKS.register_module()
class SpoilImages(Hook):
    """Makes an image of some training batches not finite on one rank.

    Args:
        at: the iterations of the run.
        only_rank: the rank.
    """

    def __init__(self, at: list[int], only_rank: int = 0) -> None:
        self.at = at
        self.only_rank = only_rank

    def before_run(self, runner: Any) -> None:
        move = runner.to_device

        def spoiled(batch: Any) -> Any:
            moved = move(batch)
            if runner.module.training and runner.iter in self.at and rank() == self.only_rank:
                moved["img"] = moved["img"].clone()
                moved["img"][3] = float("nan")
            return moved

        runner.to_device = spoiled


@HOOKS.register_module()
class Overflow(Hook):
    """Gives the second convolution weights, and scales of its quantizer, so large that its output is infinite."""

    def __init__(self, at: int) -> None:
        self.at = at

    def before_iter(self, runner: Any) -> None:
        if runner.iter == self.at:
            layer = runner.module.backbone.conv2
            with torch.no_grad():
                layer.weight.fill_(3e38)
                if hasattr(layer, "weight_quantizer"):
                    layer.weight_quantizer.scale.fill_(1e38)


@HOOKS.register_module()
class KillWriter(Hook):
    """Kills the process while its checkpoint number `at` (from 0) is written.

    Args:
        at: the number.
        moment: `file`: half of the file is written; `latest`: the file is there, but latest.pth is the one before.
    """

    def __init__(self, at: int, moment: str) -> None:
        self.left = at
        self.moment = moment

    def before_run(self, runner: Any) -> None:
        import threading

        from lbitcls.core import runner as place
        from lbitcls.utils import checkpoint

        owner, name = (checkpoint, "_write") if self.moment == "file" else (place, "link_whole")
        original = getattr(owner, name)

        def write(content: Any, path: Any) -> None:
            assert threading.current_thread() is not threading.main_thread()
            if self.left == 0:
                if self.moment == "file":
                    original(content, path)
                    os.truncate(path, path.stat().st_size // 2)
                os.kill(os.getpid(), signal.SIGKILL)
            self.left -= 1
            original(content, path)

        setattr(owner, name, write)


@HOOKS.register_module()
class Slow(Hook):
    """Takes time in each training iteration and each batch of a validation."""

    def __init__(self, seconds: float, validation: float = 0.0) -> None:
        self.seconds = seconds
        self.validation = validation

    def before_iter(self, runner: Any) -> None:
        time.sleep(self.seconds)

    def during_validation(self, runner: Any) -> None:
        time.sleep(self.validation)


@HOOKS.register_module()
class SpoilGradient(Hook):
    """Makes the gradient of an iteration infinite; the loss stays finite."""

    def __init__(self, at: int) -> None:
        self.at = at

    def before_run(self, runner: Any) -> None:
        weight = next(runner.module.parameters())
        weight.register_hook(lambda gradient: gradient * float("inf") if runner.iter == self.at else gradient)
