"""Metrics against scikit-learn, and counted once per sample on two ranks."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn import metrics as reference
from torch import Tensor, nn

from lbitcls.core.evaluation import METRICS, check_metrics, evaluate, usable_topk
from lbitcls.utils.errors import ConfigError, DataError

CPU = torch.device("cpu")


class Lookup(nn.Module):
    """A classifier whose logits are its input."""

    def predict(self, img: Tensor) -> Tensor:
        assert not self.training
        return img

    def loss(self, logits: Tensor, gt_label: Tensor) -> dict[str, Tensor]:
        return {"loss": nn.functional.cross_entropy(logits, gt_label)}


def samples(count: int = 57, classes: int = 7) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    labels = torch.randint(classes - 1, (count,))  # the last class never occurs
    return torch.randn(count, classes) + 1.5 * nn.functional.one_hot(labels, classes), labels


def in_batches(logits: Tensor, labels: Tensor, size: int = 10) -> list[dict[str, Tensor]]:
    parts = zip(logits.split(size), labels.split(size), strict=True)
    return [dict(img=img, gt_label=label) for img, label in parts]


def test_metrics_equal_scikit_learns() -> None:
    logits, labels = samples()
    model = Lookup().train()
    results = evaluate(model, in_batches(logits, labels), CPU, metrics=METRICS)
    assert model.training
    predicted = logits.argmax(1)
    options = dict(average="macro", zero_division=0)
    assert results["top-1"] == pytest.approx(100 * reference.accuracy_score(labels, predicted))
    assert results["precision"] == pytest.approx(100 * reference.precision_score(labels, predicted, **options))
    assert results["recall"] == pytest.approx(100 * reference.recall_score(labels, predicted, **options))
    assert results["f1_score"] == pytest.approx(100 * reference.f1_score(labels, predicted, **options))
    assert np.array_equal(results["confusion"], reference.confusion_matrix(labels, predicted, labels=range(7)))
    assert results["top-5"] == pytest.approx(100 * reference.top_k_accuracy_score(labels, logits, k=5, labels=range(7)))
    assert results["loss"] == pytest.approx(nn.functional.cross_entropy(logits, labels).item())


def test_no_top_5_with_few_classes() -> None:
    logits, labels = samples(classes=3)
    assert set(evaluate(Lookup(), in_batches(logits, labels), CPU)) == {"loss", "top-1"}
    assert usable_topk((5, 1), 5) == (1, 5)


def test_nothing_to_validate() -> None:
    with pytest.raises(DataError, match="empty"):
        evaluate(Lookup(), [], CPU)


def test_unknown_metric() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'accuracy'"):
        check_metrics("acuracy")


SCRIPT = """
import sys
sys.path.insert(0, {folder!r})
import torch
from test_evaluation import Lookup, in_batches, samples, CPU
from lbitcls.core.evaluation import METRICS, evaluate
from lbitcls.utils import dist
from lbitcls.utils.logging import setup_logger
place = dist.find_place("pytorch")
dist.init_processes("pytorch", place, None, CPU, setup_logger("ERROR"))
for count in (57, 1):
    logits, labels = samples(count)
    whole = in_batches(logits, labels)
    mine = in_batches(logits[place.rank :: 2], labels[place.rank :: 2]) if place.rank < count else []
    results = evaluate(Lookup(), mine, CPU, metrics=METRICS)
    torch.save(results, f"{out}/{{count}}_{{place.rank}}.pt")
dist.leave_processes()
"""


def test_two_ranks_count_each_sample_once(tmp_path: Path, run_ranks: Callable[[Path], None]) -> None:
    """57 samples on two ranks, and a single one, which leaves a rank without any."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(folder=str(Path(__file__).parent), out=tmp_path))
    run_ranks(script)
    for count in (57, 1):
        expected: dict[str, Any] = evaluate(Lookup(), in_batches(*samples(count)), CPU, metrics=METRICS)
        for rank in (0, 1):
            found = torch.load(tmp_path / f"{count}_{rank}.pt")
            assert found.pop("confusion") == expected["confusion"]
            assert found == pytest.approx({k: v for k, v in expected.items() if k != "confusion"}, rel=1e-6)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_images_that_are_not_finite_are_counted_and_named(bad: float) -> None:
    """Also if a grid's end hides them, so that the logits are finite."""
    model, draw = Lookup(), random.Random(1)
    model.predict = lambda img: torch.nan_to_num(img).clamp(-1, 1)  # type: ignore[method-assign]
    for _ in range(5):
        logits, labels = samples()
        places = sorted(draw.sample(range(57), draw.randint(1, 4)))
        logits[places, draw.randrange(7)] = bad
        batches = in_batches(logits, labels)
        for number, batch in enumerate(batches):
            batch["index"] = torch.arange(len(batch["img"])) + 10 * number
        found = rf"the images of {len(places)} samples \(first: picture {places[0]}\) contain NaN or infinite"
        with pytest.raises(DataError, match=found):
            evaluate(model, batches, CPU, describe=lambda index: f"picture {index}")
        with pytest.raises(DataError, match=rf"the images of {len(places)} samples contain"):
            evaluate(model, in_batches(logits, labels), CPU)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("metrics", [("accuracy",), METRICS])
def test_logits_that_are_not_finite_are_an_error(bad: float, metrics: tuple[str, ...]) -> None:
    model = Lookup()
    model.predict = lambda img: torch.where(img == img.max(), bad, img)  # type: ignore[method-assign]
    with pytest.raises(DataError, match=r"the logits of 6 samples .* The images are finite"):
        evaluate(model, in_batches(*samples()), CPU, metrics=metrics)


def test_a_loss_that_is_not_finite_is_an_error() -> None:
    model = Lookup()
    model.loss = lambda logits, gt_label: {"loss": logits.sum() * float("inf")}  # type: ignore[method-assign]
    with pytest.raises(DataError, match="validation: the loss is"):
        evaluate(model, in_batches(*samples()), CPU)
