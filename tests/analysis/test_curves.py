"""Curves and times from `log.jsonl`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lbitcls.analysis.curves import Run, draw_curves, draw_results, measure_time, read_run
from lbitcls.utils.errors import ConfigError, DataError


def records(counted: bool = True) -> list[dict[str, Any]]:
    """Two epochs of 6 iterations with 10 images each, a record every 4 iterations; validation after each epoch."""
    found: list[dict[str, Any]] = []
    for epoch in (1, 2):
        for i, seconds in ((4, 0.1), (6, 0.4 / epoch)):
            place = dict(mode="train", epoch=epoch, iter=i, images=10 * (6 * epoch - 6 + i))
            found.append({**place, "loss": 3.0 - epoch - i / 10, "time": seconds, "data_time": seconds / 2, "lr": 0.1})
        place = dict(mode="val", epoch=epoch, iter=6, images=60 * epoch)
        found.append({**place, "loss": 2.5 - epoch / 2, "top-1": 40.0 * epoch, "confusion": [[1]]})
    return found if counted else [{k: v for k, v in r.items() if k != "images"} for r in found]


@pytest.fixture
def run() -> Run:
    return Run("a", records())


def test_reading(tmp_path: Path) -> None:
    text = "".join(json.dumps(record) + "\n" for record in records())
    (tmp_path / "log.jsonl").write_text(text + '{"mode": "tra')
    assert read_run(tmp_path).records == records()
    assert read_run(tmp_path / "log.jsonl").name == tmp_path.name
    (tmp_path / "empty.jsonl").write_text("\n")
    for missing in ("nowhere", "empty.jsonl"):
        with pytest.raises(DataError):
            read_run(tmp_path / missing)


def test_series(run: Run) -> None:
    places, values = run.series("loss", "train")
    assert places.tolist() == pytest.approx([4 / 6, 1, 1 + 4 / 6, 2]) and values.tolist() == [1.6, 1.4, 0.6, 0.4]
    assert run.series("loss", "train", "iter")[0].tolist() == pytest.approx([4, 6, 10, 12])
    assert run.series("loss", "val", "images")[0].tolist() == [60, 120]
    assert run.series("top-1", "val")[1].tolist() == [40, 80]
    assert run.quantities() == ["data_time", "loss", "lr", "time", "top-1"]
    with pytest.raises(ConfigError, match="does not record the images"):
        Run("old", records(counted=False)).series("loss", "train", "images")


def test_time_per_iteration(run: Run) -> None:
    """A record stands for all iterations since the previous one."""
    timing = measure_time(run)
    assert timing.iterations == 12
    assert timing.mean == pytest.approx((4 * 0.1 + 2 * 0.4 + 4 * 0.1 + 2 * 0.2) / 12)
    assert timing.data == pytest.approx(timing.mean / 2)
    assert timing.slowest == (1, pytest.approx(0.2)) and timing.fastest == (2, pytest.approx(0.8 / 6))
    with pytest.raises(DataError, match="has no training records"):
        measure_time(Run("x", [r for r in run.records if r["mode"] == "val"]))


def lines(panel: Any) -> dict[str, list[float]]:
    return {line.get_label(): list(line.get_xdata()) for line in panel.get_lines()}


def test_curves_of_two_runs(run: Run) -> None:
    figure = draw_curves([run, Run("b", records())], ["loss", "val/top-1", "lr", "time"], "images")
    loss, top1, rate, _ = figure.axes[:4]
    assert lines(loss).keys() == {"a, train", "a, val", "b, train", "b, val"}
    assert lines(loss)["b, val"] == [60, 120] and loss.get_xlabel() == "images seen"
    assert lines(top1).keys() == {"a, val", "b, val"} and lines(rate).keys() == {"a, train", "b, train"}


@pytest.mark.parametrize(("axis", "tick"), [("epoch", "1"), ("iter", "60,000"), ("images", "1,000,000")])
def test_whole_numbers_along_the_axis(axis: str, tick: str, tmp_path: Path) -> None:
    """This includes a curve with a single point."""
    train = dict(mode="train", epoch=1, iter=60_000, images=1_000_000, loss=1.0)
    panel = draw_curves([Run("a", [train, {**train, "mode": "val"}])], ["loss"], axis).axes[0]
    panel.figure.savefig(tmp_path / "x.png")
    assert [text.get_text() for text in panel.get_xticklabels()].count(tick) == 1
    assert all(place == round(place) for place in panel.get_xticks())


@pytest.mark.parametrize(
    ("keys", "axis", "message"),
    [(["los"], "epoch", "Did you mean 'loss'"), (["train/top-1"], "epoch", "no log has"), (["loss"], "step", "axis")],
)
def test_what_cannot_be_drawn(keys: list[str], axis: str, message: str, run: Run) -> None:
    with pytest.raises(ConfigError, match=message):
        draw_curves([run], keys, axis)


def test_results(run: Run) -> None:
    best = {"quantized": {"key": "top-1", "value": 80.0, "epoch": 2}}
    loss, accuracy = draw_results(run, best, quantized_from=1).axes[:2]
    assert lines(loss).keys() == {"training, batches", "validation", "quantizers on"}
    assert lines(loss)["training, batches"] == pytest.approx([40, 60, 100, 120]) and loss.get_xlabel() == "images seen"
    assert lines(loss)["validation"] == [60, 120] and lines(loss)["quantizers on"] == [60, 60]
    assert lines(accuracy)["best, quantized: 80 % (epoch 2)"] == [120]
    assert len(loss.child_axes) == 1
    measured = {**records()[-1], "mode": "train_eval", "top-1": 90.0}
    accuracy = draw_results(Run("both", [*records(), measured])).axes[1]
    assert lines(accuracy)["training set, eval mode"] == [120]
    for old in (records(counted=False), [r for r in records() if r["mode"] == "train"]):
        assert draw_results(Run("old", old)).axes
