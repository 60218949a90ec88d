"""A model's answers for the samples of a data set: predicted classes and probabilities, without the logits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lbitcls.utils.dist import gather_objects


@dataclass(frozen=True)
class Answers:
    """Answers of a model.

    Attributes:
        classes: Number of classes K.
        samples: int64 (N, 3): a sample's index in its data set, its label, its predicted class.
        probabilities: float32 (N, 2): those of the predicted and of the true class.
    """

    classes: int
    samples: Tensor
    probabilities: Tensor


def answers_of(logits: Tensor, labels: Tensor, indices: Tensor) -> Answers:
    """Return the answers that logits (N, K) give for the samples `indices` (N,) with `labels` (N,)."""
    scores = logits.float().softmax(dim=1)
    labels, indices = labels.to(scores.device), indices.to(scores.device)
    best = scores.max(dim=1)
    of_true = scores.gather(1, labels[:, None])[:, 0]
    return Answers(
        logits.shape[1], torch.stack([indices, labels, best.indices], 1), torch.stack([best.values, of_true], 1)
    )


class AnswerLog:
    """Answers collected batch by batch, on every rank."""

    def __init__(self) -> None:
        self._found: list[Answers] = []
        self._whole = True

    def add(self, batch: dict[str, Tensor], logits: Tensor) -> None:
        """Add a batch; one without `index` ends the collection, since its samples are unknown."""
        if "index" not in batch:
            self._whole = False
        if self._whole:
            self._found.append(answers_of(logits.detach(), batch["gt_label"], batch["index"]))

    def result(self) -> Answers | None:
        """Return the answers of all ranks, on the CPU, in order of the samples; None on other ranks than 0.

        All ranks call it. None too if samples are unknown or there are none.
        """
        joined = self._joined() if self._whole and self._found else None
        parts = gather_objects((self._whole, joined))
        found = [part for whole, part in parts if whole and part is not None]
        if not found or not all(whole for whole, _ in parts):
            return None
        samples = torch.cat([part.samples for part in found])
        order = samples[:, 0].argsort(stable=True)
        probabilities = torch.cat([part.probabilities for part in found])
        return Answers(found[0].classes, samples[order], probabilities[order])

    def _joined(self) -> Answers:
        samples = torch.cat([part.samples for part in self._found]).cpu()
        probabilities = torch.cat([part.probabilities for part in self._found]).cpu()
        return Answers(self._found[0].classes, samples, probabilities)
