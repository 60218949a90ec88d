"""Measures of tensors and of a model's output: SQNR, cosine similarity, histograms, KL divergence.

    SQNR = 10 · log10(Σ r² / Σ (r - q)²) dB        cosine = Σ r·q / sqrt(Σ r² · Σ q²)
    KL = mean over the images of Σ_k p_k · log(p_k / q_k), p and q the softmax of the logits, in nats

r is the reference, q the tensor compared with it. Sums are accumulated in float64 and tensors are dropped, so any
number of images can be measured in the memory of one batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

VALUE_BINS = 96
_PART = 2**17
_STEP_BINS = 160  # maximum; more than half of it is used


class Similarity:
    """Sums over pairs of values, from which SQNR and cosine similarity are computed."""

    def __init__(self) -> None:
        self._sums = [0.0] * 4  # Σ r², Σ q², Σ r·q, Σ (r - q)²

    def add(self, reference: Tensor, other: Tensor) -> None:
        """Add the values of two tensors of one shape."""
        for one, two in zip(parts(reference), parts(other), strict=True):
            r, q = one.double(), two.double()
            noise = r - q
            dots = torch.stack([torch.dot(r, r), torch.dot(q, q), torch.dot(r, q), torch.dot(noise, noise)])
            self._sums = [total + dot for total, dot in zip(self._sums, dots.tolist(), strict=True)]

    @property
    def noise(self) -> float:
        """Sum of the squared differences."""
        return self._sums[3]

    @property
    def sqnr_db(self) -> float | None:
        """SQNR in dB; None if there is no error, or no signal."""
        signal, _, _, noise = self._sums
        return 10 * math.log10(signal / noise) if signal and noise else None

    @property
    def cosine(self) -> float | None:
        """Cosine similarity, -1 to 1; None if either tensor is all zeros."""
        signal, other, product, _ = self._sums
        norms = math.sqrt(signal * other)
        return min(1.0, max(-1.0, product / norms)) if norms else None


def parts(x: Tensor) -> tuple[Tensor, ...]:
    """Return the values of a tensor in parts that fit into a CPU's cache."""
    return x.detach().flatten().split(_PART if x.device.type == "cpu" else max(x.numel(), 1))


class Histogram:
    """Counts of values in `bins` bins of one `width` from `start` on; the outer bins include all values beyond."""

    def __init__(self, start: float, width: float, bins: int) -> None:
        self.start, self.width, self.bins = start, width, bins
        self.counts = torch.zeros(bins, dtype=torch.int64)

    def add(self, x: Tensor) -> None:
        """Count the values of a tensor."""
        for part in parts(x):
            place = (part.float() - self.start).div_(self.width).floor_().clamp_(0, self.bins - 1)
            self.counts += torch.bincount(place.to(torch.int32), minlength=self.bins).cpu()

    def add_counted(self, values: Tensor, counts: Tensor) -> None:
        """Add `counts` occurrences of `values`, element by element."""
        place = (values.double().cpu() - self.start).div_(self.width).floor_().clamp_(0, self.bins - 1)
        self.counts.index_add_(0, place.long(), counts)

    def empty_copy(self) -> Histogram:
        """Return a histogram with the same bins and no values."""
        return Histogram(self.start, self.width, self.bins)


def value_bins(lowest: float, highest: float) -> Histogram:
    """Return bins over a range of values, of arbitrary width."""
    width = (highest - lowest) / VALUE_BINS or 1.0
    return Histogram(lowest, width, VALUE_BINS)


def step_bins(quant_min: int, quant_max: int, lowest: float, highest: float) -> Histogram:
    """Return bins in steps of a grid, with borders between two integers, or at fractions 1/2^k of a step.

    They cover the grid, and up to half its span beyond it on either side.

    Args:
        quant_min: Smallest integer of the grid.
        quant_max: Largest integer of the grid.
        lowest: Smallest value to count, in steps.
        highest: Largest value to count, in steps.
    """
    span = max(quant_max - quant_min, 1)
    low = min(quant_min - 1.0, max(lowest, quant_min - span / 2))
    high = max(quant_max + 1.0, min(highest, quant_max + span / 2))
    width = 2.0 ** math.ceil(math.log2((high - low + 1) / _STEP_BINS))
    start = math.floor(low) - 0.5
    return Histogram(start, width, math.ceil((high + 0.5 - start) / width))


@dataclass(frozen=True)
class OutputError:
    """Difference of a model's output from a reference's.

    Attributes:
        kl: KL divergence of the softmax outputs from the reference's, in nats, mean over the images.
        sqnr_db: SQNR of the logits, in dB; None: they are equal.
        changed: Fraction of the images whose top-scoring class differs.
        top1: Fraction of the images that the model classifies correctly; None: labels are unknown.
    """

    kl: float
    sqnr_db: float | None
    changed: float
    top1: float | None = None


def output_error(reference: Tensor, logits: Tensor, labels: Tensor | None = None) -> OutputError:
    """Compare logits (N, K) with those of a reference; `labels` (N,) int64 are the true classes.

    Example:
        >>> output_error(torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 2.0]])).changed
        1.0
    """
    similarity = Similarity()
    similarity.add(reference, logits)
    p, q = reference.double().log_softmax(1), logits.double().log_softmax(1)
    kl = (p.exp() * (p - q)).sum(1).mean().item()
    best = logits.argmax(1)
    changed = (best != reference.argmax(1)).double().mean().item()
    return OutputError(max(kl, 0.0), similarity.sqnr_db, changed, top1(logits, labels))


def top1(logits: Tensor, labels: Tensor | None) -> float | None:
    """Return the fraction of images whose class with the highest logit is the true one; None without labels."""
    return None if labels is None else (logits.argmax(1) == labels).double().mean().item()


def entropy_bits(counts: Tensor) -> float:
    """Return the entropy of a distribution of counts, in bits: the mean number of bits that its values would need."""
    p = counts[counts > 0].double()
    p = p / p.sum()
    return float(-(p * p.log2()).sum().abs().neg())
