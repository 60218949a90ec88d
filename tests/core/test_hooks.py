"""Individual hooks: lines and records of the log, priorities, workflow, settings."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lbitcls.core.hooks.calibration_hook import CalibrationHook
from lbitcls.core.hooks.checkpoint_hook import CheckpointHook
from lbitcls.core.hooks.evaluation_hook import EvaluationHook, validated_epochs
from lbitcls.core.hooks.hook import Hook, read_priority
from lbitcls.core.hooks.log import LogHook, _is_before, _order, _rates, read_record, text_line
from lbitcls.core.runner import EpochRunner
from lbitcls.settings.sections import read_settings
from lbitcls.settings.training_sections import EvaluationConfig
from lbitcls.utils.errors import ConfigError


def test_train_line_reads_like_the_tutorials() -> None:
    record = {
        "mode": "train",
        "epoch": 1,
        "iter": 200,
        "lr": 1e-3,
        "eta": 91931.4,
        "time": 1.4731,
        "data_time": 0.449,
        "memory": 10283,
        "loss": 1.34654,
        "top-1": 68.22266,
        "top-5": 86.74951,
    }
    assert text_line(record, 626) == (
        "Epoch [1][200/626]\tlr: 1.000e-03, eta: 1 day, 1:32:11, time: 1.473, data_time: 0.449, memory: 10283, "
        "loss: 1.3465, top-1: 68.2227, top-5: 86.7495"
    )


def test_each_distinct_rate_is_shown() -> None:
    weights = [torch.nn.Parameter(torch.zeros(1)) for _ in range(3)]
    groups = [dict(params=[p], lr=lr) for p, lr in zip(weights, (1e-4, 1e-3, 1e-4))]
    rates = _rates(torch.optim.SGD(groups, lr=1))
    assert rates == {"lr": 1e-4, "lrs": [1e-4, 1e-3]}
    assert _rates(torch.optim.SGD(weights, lr=0.1)) == {"lr": 0.1}
    record = {"mode": "train", "epoch": 1, "iter": 2, **rates, "eta": 1.0, "time": 0.1, "data_time": 0.0, "loss": 1.0}
    assert "\tlr: 1.000e-04/1.000e-03, eta: 0:00:01, time: 0.100, data_time: 0.000, loss: 1.0000" in text_line(
        record, 4
    )


@pytest.mark.parametrize(("length", "every"), [(4, 1), (19, 1), (61, 6), (1000, 100), (5000, 100)])
def test_a_short_epoch_has_ten_records(length: int, every: int) -> None:
    hook = LogHook()
    hook.before_epoch(SimpleNamespace(loader=range(length)))
    assert hook._every == every and (length < 10 or length // every >= 10)


def test_val_line() -> None:
    record = {"mode": "val", "epoch": 3, "iter": 626, "loss": 0.5, "top-1": 70.0, "confusion": [[1]]}
    assert text_line(record, 626) == "Epoch(val) [3][626]\tloss: 0.5000, top-1: 70.0000"


def test_order_of_results() -> None:
    assert sorted(["top-5", "loss_quant", "top-1", "loss", "grad_norm"], key=_order) == (
        ["loss", "grad_norm", "loss_quant", "top-1", "top-5"]
    )


@pytest.mark.parametrize(
    ("line", "kept"),
    [
        ('{"mode": "train", "epoch": 2, "iter": 10}', True),
        ('{"mode": "val", "epoch": 2, "iter": 10}', True),
        ('{"mode": "train", "epoch": 3, "iter": 5}', True),
        ('{"mode": "train", "epoch": 3, "iter": 6}', False),
        ('{"mode": "train", "epoch": 3, "iter": 6, "images": 700}', True),  # of shorter batches
        ('{"mode": "train", "epoch": 3, "iter": 5, "images": 701}', False),
        ('{"mode": "val", "epoch": 3, "iter": 5}', False),
        ('{"mode": "train", "epoch": 2, "it', False),
    ],
)
def test_records_kept_when_a_run_goes_on(line: str, kept: bool) -> None:
    """At 2 epochs and 5 iterations, 700 images: a killed process wrote the rest."""
    record = read_record(line.encode())
    assert (record is not None and _is_before(record, 2, 5, 700)) is kept


@pytest.mark.parametrize(
    ("workflow", "epochs"),
    [
        ([("train", 1)], set()),
        ([("train", 1), ("val", 1)], {1, 2, 3, 4, 5}),
        ([["train", 2], ["val", 1]], {2, 4, 6}),
    ],
)
def test_workflow(workflow: Any, epochs: set[int]) -> None:
    assert validated_epochs(workflow, 5) == epochs


@pytest.mark.parametrize("workflow", [[("val", 1)], [("test", 1)], [("train", 0)], [("train",)], ["train"]])
def test_wrong_workflow(workflow: Any) -> None:
    with pytest.raises(ConfigError, match="workflow must be a list"):
        read_settings(dict(workflow=workflow))


def test_priorities() -> None:
    assert [read_priority(value) for value in ("NORMAL", "very_low", 5)] == [50, 90, 5]
    with pytest.raises(ConfigError, match="Did you mean 'NORMAL'"):
        read_priority("NORML")
    with pytest.raises(ConfigError, match="from 0 to 100"):
        read_priority(101)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CheckpointHook(interval=0), "checkpoint_config"),
        (lambda: CheckpointHook(max_keep_ckpts=0), "max_keep_ckpts"),
        (lambda: LogHook(interval=0), "log_config.interval"),
        (lambda: CalibrationHook(epoch=-1), "calibration"),
        (lambda: EvaluationConfig(interval=0), "evaluation.interval"),
        (lambda: EvaluationConfig(metric="f1"), "evaluation.metric must be one of 'accuracy', .* got 'f1'"),  # type: ignore[arg-type]
        (lambda: EvaluationConfig(metric_options=dict(topn=1)), "Did you mean 'topk'"),  # type: ignore[arg-type]
        (lambda: EvaluationConfig(save_best="top-3"), "no result 'top-3'. Did you mean 'top-"),
    ],
)
def test_mistakes(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_older_spelling_of_the_best() -> None:
    for given, meant in (("accuracy_top-1", "top-1"), ("auto", "top-1"), (None, None)):
        assert EvaluationHook([], EvaluationConfig(save_best=given)).save_best == meant


def test_a_run_finds_a_hook_by_its_type(tmp_path: Path) -> None:
    class Early(LogHook):
        priority = 0

    nothing: Any = None
    hooks = [LogHook(1), Early(2), CalibrationHook()]
    runner = EpochRunner(nothing, nothing, nothing, nothing, max_epochs=1, work_dir=tmp_path, hooks=hooks)
    assert runner.find(LogHook) is hooks[1], "the first to be called, of a class derived too"
    assert runner.find(CalibrationHook) is hooks[2]
    assert runner.find(Hook) is hooks[1]
    assert runner.find(EvaluationHook) is None
