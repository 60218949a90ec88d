"""Time that a save takes from training: in the background against in the foreground, in one process.

    python benchmarks/saving.py [--saves N] [--folder DIR] [--threads N] [--size N] [--json FILE]

ResNet-50 with SGD and momentum; a save of each kind in turn, with training steps in between. `blocked` is the time of
the call; `slowed` is how much longer the steps took while the file was written than as many steps without a write.
Medians; the ratio is that of blocked plus slowed to the foreground's save.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from lbitcls.core.checkpoint_writer import CheckpointWriter
from lbitcls.models import build_classifier
from lbitcls.utils.checkpoint import checkpoint_content
from lbitcls.utils.memory import keep_freed_memory

MODEL = dict(
    type="ImageClassifier",
    backbone=dict(type="ResNet", depth=50, num_stages=4, out_indices=(3,)),
    neck=dict(type="GlobalAveragePooling"),
    head=dict(type="LinearClsHead", num_classes=1000, in_channels=2048),
)


def timed(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


class Training:
    """Model, optimizer and one batch of random images of `size` × `size`."""

    def __init__(self, size: int) -> None:
        torch.manual_seed(0)
        self.model = build_classifier(MODEL).train()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01, momentum=0.9)
        self.img, self.label = torch.randn(4, 3, size, size), torch.arange(4)

    def step(self) -> None:
        self.optimizer.zero_grad()
        self.model(self.img, gt_label=self.label, return_loss=True)["loss"].backward()
        self.optimizer.step()

    def save(self, writer: CheckpointWriter, path: Path) -> None:
        writer.save(checkpoint_content(self.model, self.optimizer), path)

    def background(self, writer: CheckpointWriter, path: Path, alone: float) -> tuple[float, float]:
        """Return the seconds of the call, and those by which the steps during the write took longer."""
        blocked = timed(lambda: self.save(writer, path))
        slowed = 0.0
        while not all(job.done() for job in writer._pending):
            slowed += timed(self.step) - alone
        writer.check()
        return blocked, slowed


def measure(training: Training, folder: Path, saves: int) -> dict[str, float]:
    foreground, blocked, slowed = [], [], []
    with CheckpointWriter(background=False) as now, CheckpointWriter() as later:
        for number in range(saves + 1):
            alone = statistics.median(timed(training.step) for _ in range(5))
            foreground.append(timed(lambda: training.save(now, folder / "a.pth")))
            found = training.background(later, folder / f"{number}.pth", alone)
            blocked.append(found[0])
            slowed.append(found[1])
            (folder / f"{number}.pth").unlink()
    values = {"foreground": foreground, "blocked": blocked, "slowed": slowed}
    result = {f"{name}_ms": 1000 * statistics.median(seconds[1:]) for name, seconds in values.items()}
    size = (folder / "a.pth").stat().st_size / 2**20
    taken = result["blocked_ms"] + result["slowed_ms"]
    return {**result, "ratio": taken / result["foreground_ms"], "step_ms": 1000 * alone, "mib": size}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--saves", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="folder to write to (default: a temporary one)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--size", type=int, default=64, help="height and width of the images")
    parser.add_argument("--json", type=Path, help="JSON file to write the result to")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    keep_freed_memory()  # as a run on a CPU does
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        row = measure(Training(args.size), Path(folder), args.saves)
    print(
        f"{row['mib']:.0f} MiB: foreground {row['foreground_ms']:.0f} ms; background blocked {row['blocked_ms']:.0f} "
        f"ms, slowed by {row['slowed_ms']:.0f} ms (step {row['step_ms']:.0f} ms), ratio {row['ratio']:.2f}"
    )
    if args.json:
        args.json.write_text(json.dumps({**row, "threads": args.threads, "size": args.size}, indent=2) + "\n")


if __name__ == "__main__":
    main()
