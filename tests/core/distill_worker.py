"""Run on two processes: a distillation in which each has half of the images (see test_distillation.py)."""

from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from test_distillation import Net, batch, section
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from lbitcls.core.distillation import Student, Teacher
from lbitcls.core.hooks.distiller import Distiller
from lbitcls.core.step import OptimizerStep
from lbitcls.utils.logging import get_logger

EPOCHS = ([[0, 1, 2], [3, 4, 5]], [[5, 3, 0], [4, 2, 1]])  # images of each process
LAST = [[0, 1, 2], [3, 4, 0]]  # the second process has an image of the first, and nobody image 5


def part(indices: list[int]) -> dict[str, Tensor]:
    return {name: value[indices] for name, value in batch(6).items()}


def train(model: Any, student: Any, distiller: Distiller, own: Any) -> Tensor:
    step = OptimizerStep(
        torch.optim.SGD(student.classifier.parameters(), 0.5),
        torch.device("cpu"),
        arguments=distiller.arguments,
    )
    for epoch in EPOCHS:
        step(model, part(own(epoch)), 0, 1)
    return student.classifier.head.weight.detach()


def compare(given: dict[str, Any], first: list[list[int]], kept: int) -> None:
    """Train on both processes, and compare with one process that has all images."""
    settings, rank = section(**given), dist.get_rank()
    weights = []
    for alone in (False, True):
        classifier, teacher = Net(1), Teacher(Net(2), settings.pairs)
        student = Student(classifier, settings)
        distiller = Distiller(teacher, classifier, "mixed" if kept == 0 or alone else "")
        loader = SimpleNamespace(dataset=range(6), iterate=lambda epoch: [part(first[rank])])
        step = OptimizerStep(torch.optim.SGD(classifier.parameters(), 0.5), torch.device("cpu"))
        distiller.before_run(
            SimpleNamespace(loader=loader, max_epochs=2, step=step, to_device=lambda b: b, logger=get_logger())  # type: ignore[arg-type]
        )
        if not alone and int(distiller._known.sum()) != kept:
            raise SystemExit(f"{distiller._known.sum()} images are known, not {kept}")
        model = student if alone else DistributedDataParallel(student)
        own = (lambda epoch: epoch[0] + epoch[1]) if alone else (lambda epoch: epoch[rank])
        weights.append(train(model, student, distiller, own))
    tolerance = 1e-12 if kept == 0 else 1e-6  # kept logits are float32
    torch.testing.assert_close(*weights, rtol=tolerance, atol=tolerance)


def main() -> None:
    """Try every source of the teacher's outputs."""
    dist.init_process_group("gloo")
    compare({}, EPOCHS[0], kept=0)
    compare(dict(loss="feature", modules=["backbone"]), EPOCHS[0], kept=0)
    compare({}, EPOCHS[0], kept=6)
    compare({}, LAST, kept=5)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
