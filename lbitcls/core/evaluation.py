"""Validation: counts every sample once on any number of ranks; all results except the loss are in percent.

Each rank sums loss, hits and the confusion matrix of its own samples; the sums are added over the ranks. Precision,
recall and F1 are means over the classes that occur (in the labels or predictions), like scikit-learn's `macro`.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, cast, get_args

import torch
from torch import nn

from lbitcls.protocols import FixedFeatures, predictor
from lbitcls.quant.bypass import noticing
from lbitcls.settings.training_sections import Metric
from lbitcls.utils.dist import broadcast_object, gather_objects, sum_over_ranks
from lbitcls.utils.errors import ConfigError, DataError, require_list, suggest
from lbitcls.utils.shards import has_shards

_REMEDIES = {
    "the images": "Check them and the test pipeline (a standard deviation of 0 divides by zero).",
    "the logits": "The images are finite: the weights come from a run that diverged, or a layer overflows.",
}
METRICS = get_args(Metric)
Watcher = Callable[[dict[str, torch.Tensor], torch.Tensor], None]


def check_metrics(names: str | Sequence[str]) -> tuple[str, ...]:
    """Return the metrics in `names` as a tuple; raise `ConfigError` for an unknown one."""
    chosen = (names,) if isinstance(names, str) else tuple(require_list("metrics", names))
    for name in chosen:
        if name not in METRICS:
            raise ConfigError(f"unknown metric '{name}'{suggest(str(name), METRICS)} Known: {', '.join(METRICS)}.")
    return chosen


class Tally:
    """Sums over samples: loss, top-k hits, and optionally the confusion matrix (rows: true class)."""

    def __init__(self, num_classes: int, topk: Sequence[int], device: torch.device, confusion: bool = False) -> None:
        self.num_classes = num_classes
        self.topk = usable_topk(topk, num_classes)
        self._samples = 0
        self._finite: list[tuple[str, torch.Tensor, torch.Tensor | None]] = []
        self._sums = torch.zeros(1 + len(self.topk), dtype=torch.float64, device=device)
        self._confusion = torch.zeros(num_classes**2 if confusion else 0, dtype=torch.int64, device=device)

    def add(self, logits: torch.Tensor, labels: torch.Tensor, loss: torch.Tensor) -> None:
        """Add a batch: logits (N, K), labels (N,), and the batch's mean loss."""
        logits = torch.nan_to_num(logits)  # `require_finite` reports non-finite values; counting must continue
        best = logits.topk(max(self.topk), dim=1).indices
        hits = best.eq(labels[:, None])
        counts = [hits[:, :k].sum().double() for k in self.topk]
        self._samples += len(labels)
        self._sums += torch.stack([loss.double() * len(labels), *counts])
        if self._confusion.numel():
            pairs = labels * self.num_classes + best[:, 0]
            self._confusion += torch.bincount(pairs, minlength=self.num_classes**2)

    def note(self, what: str, values: torch.Tensor, index: torch.Tensor | None) -> None:
        """Record which of a batch's `values` (N, …), of the samples `index`, are finite."""
        self._finite.append((what, values.isfinite().flatten(1).all(1), index))

    def require_finite(self, describe: Callable[[int], str] = str) -> None:
        """Raise on all ranks if a value recorded on any rank is not finite.

        Raises:
            DataError: Values are not finite; the message gives their kind, the number of samples, and the first one.
        """
        found: dict[str, list[str]] = {}
        for what, finite, index in self._finite:
            for i in (~finite).nonzero().flatten().tolist():
                found.setdefault(what, []).append("?" if index is None else describe(int(index[i])))
        everywhere = [found for found in gather_objects(found) if found]
        everywhere = broadcast_object(everywhere)
        for what, remedy in _REMEDIES.items():
            names = [name for found in everywhere for name in found.get(what, ())]
            if names:
                which = "" if names[0] == "?" else f" (first: {names[0]})"
                raise DataError(
                    f"validation: {what} of {len(names)} samples{which} contain NaN or infinite values, so no metric "
                    f"is meaningful. {remedy}"
                )

    def results(self, metrics: Sequence[str]) -> dict[str, Any]:
        """Return the metrics over all ranks' samples."""
        samples = self._sums.new_tensor([self._samples])
        number, loss, *hits = sum_over_ranks(torch.cat([samples, self._sums])).tolist()
        results: dict[str, Any] = {"loss": loss / number}
        if not math.isfinite(loss):
            raise DataError(f"validation: the loss is {loss}, although all logits are finite; check the head's loss.")
        if "accuracy" in metrics:
            results |= {f"top-{k}": 100 * count / number for k, count in zip(self.topk, hits, strict=True)}
        if self._confusion.numel():
            confusion = sum_over_ranks(self._confusion).view(self.num_classes, self.num_classes).cpu()
            results |= _from_confusion(confusion, metrics)
        return results


def _from_confusion(confusion: torch.Tensor, metrics: Sequence[str]) -> dict[str, Any]:
    true, predicted = confusion.sum(1).double(), confusion.sum(0).double()
    hits, occurs = confusion.diag().double(), (true + predicted) > 0
    precision = 100 * hits / predicted.clamp(min=1)
    recall = 100 * hits / true.clamp(min=1)
    f1_score = 200 * hits / (true + predicted).clamp(min=1)
    values = {"precision": precision, "recall": recall, "f1_score": f1_score}
    results: dict[str, Any] = {name: v[occurs].mean().item() for name, v in values.items() if name in metrics}
    if "confusion" in metrics:
        results["confusion"] = confusion.tolist()
    return results


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Iterable[dict[str, torch.Tensor]],
    device: torch.device,
    *,
    metrics: Sequence[str] = ("accuracy",),
    topk: Sequence[int] = (1, 5),
    watch: Watcher | None = None,
    describe: Callable[[int], str] = str,
) -> dict[str, Any]:
    """Validate `model` (in eval mode, in float32) on this rank's batches.

    Args:
        model: Model with `predict(img)` and `loss(logits, gt_label)`, or any module from images to logits, with
            cross-entropy as the loss; its mode is restored afterwards.
        batches: Dicts with `gt_label` (N,) and either `img` (N, C, H, W) or `features` for `model.predict_features`.
        device: Device of the model.
        metrics: Names from `METRICS`.
        topk: The k of each `top-k`; values above the number of classes are left out.
        watch: Function called with each batch and its logits.
        describe: Function that names a sample in messages, given its number (a batch's `index`).

    Returns:
        `loss` (mean over the samples), `top-1`, `top-5`, … as requested; the same on all ranks.

    Raises:
        DataError: There are no samples, or images, logits or the loss are not finite.
    """
    was_training = model.training
    model.eval()
    needs_confusion = bool(set(metrics) - {"accuracy"})
    tally: Tally | None = None
    try:
        for batch, counts in _in_step(batches, device) if has_shards(model) else ((batch, True) for batch in batches):
            if not counts:
                _logits(model, batch, device)
                continue
            labels = batch["gt_label"].to(device)
            # Cached features replace the frozen layers, which are then not called.
            first = tally is None and "features" not in batch
            with noticing(model, "validation") if first else contextlib.nullcontext():
                logits = _logits(model, batch, device)
            tally = tally or Tally(logits.shape[1], topk, device, needs_confusion)
            tally.note("the images", batch["features" if "features" in batch else "img"], batch.get("index"))
            tally.note("the logits", logits, batch.get("index"))
            tally.add(logits.float(), labels, _loss(model, logits, labels))
            if watch is not None:
                watch(batch, logits)
    finally:
        model.train(was_training)
    known = gather_objects(tally.num_classes if tally else 0)
    classes = broadcast_object(max(known, default=0))
    if classes == 0:
        raise DataError("validation: the data set is empty.")
    tally = tally or Tally(classes, topk, device, needs_confusion)  # a rank without samples adds zeros
    tally.require_finite(describe)
    return tally.results(metrics)


def _in_step(
    batches: Iterable[dict[str, torch.Tensor]], device: torch.device
) -> Iterator[tuple[dict[str, torch.Tensor], bool]]:
    """Yield each batch with True; then, until the other ranks' batches have ended, the last one with False.

    The forward pass of a distributed model needs all ranks.
    """
    remaining, last = iter(batches), None
    while True:
        batch = next(remaining, None)
        if not sum_over_ranks(torch.tensor(int(batch is not None), device=device)):
            return
        last = last if batch is None else batch
        if last is None:
            raise DataError("validation: a distributed model needs at least one image for each process.")
        yield last, batch is not None


def _logits(model: nn.Module, batch: dict[str, torch.Tensor], device: torch.device) -> torch.Tensor:
    if "features" in batch:
        return cast("FixedFeatures", model).predict_features(batch["features"].to(device))
    return predictor(model)(batch["img"].to(device))


def _loss(model: nn.Module, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    loss: Callable[..., dict[str, torch.Tensor]] | None = getattr(model, "loss", None)
    if loss is None:
        return torch.nn.functional.cross_entropy(logits.float(), labels)
    return loss(logits, labels)["loss"]


def usable_topk(topk: Sequence[int], num_classes: int) -> tuple[int, ...]:
    """Return the k that are meaningful for `num_classes` classes, in order; 1 is always included.

    Example:
        >>> usable_topk((1, 5), num_classes=2)
        (1,)
    """
    return tuple(sorted({1, *(k for k in topk if k <= num_classes)}))
