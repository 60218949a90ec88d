"""Configs with one wrong value anywhere: each trains, or ends in a message for its user; never in a traceback."""

from __future__ import annotations

import math
import signal
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from lbitcls.commands.main import main
from lbitcls.core.runner import EpochRunner
from lbitcls.quant.kernels import selection
from lbitcls.utils import Config
from lbitcls.utils.logging import get_logger
from lbitcls.workflows import training
from stress.wrong_values import BASES, QUANTIZED, mutant, of, places, put, text_of


class Trained(BaseException):
    """Ends a run after its first epoch."""


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Runs end after an epoch, and nothing is compiled or formatted."""
    epoch = EpochRunner.train_epoch

    def once(self: EpochRunner) -> None:
        epoch(self)
        raise Trained

    monkeypatch.setattr(EpochRunner, "train_epoch", once)
    monkeypatch.setattr(Config, "pretty_text", property(lambda cfg: repr(cfg._cfg_dict.to_dict())))
    monkeypatch.setattr(Config, "dump", lambda cfg, file=None: None)
    monkeypatch.setattr(training, "_compile", lambda model, device: None)
    monkeypatch.setattr(selection, "can_compile", lambda device: False)  # kernels='auto' are plain ones
    monkeypatch.chdir(tmp_path)
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(1)


def outcome(sections: dict[str, Any], folder: Path, capsys: Any) -> str:
    """`trains`, or the message; an error that is no message for the user is raised."""
    config = folder / "config.py"
    config.write_text("".join(f"{name} = {text_of(value)}\n" for name, value in sections.items()))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            code = main(["train", str(config)])
    except Trained:
        code = 0
    finally:
        torch.use_deterministic_algorithms(False)
        torch.set_num_threads(1)
        for handler in list(get_logger().handlers):
            get_logger().removeHandler(handler)
            handler.close()
    said = capsys.readouterr().err
    assert code in (0, 1, 2), (code, said)
    return "trains" if code == 0 else said


def late(signum: int, frame: Any) -> None:
    raise TimeoutError("a run of two batches hangs")


def broken(numbers: range, folder: Path, capsys: Any) -> tuple[list[str], int]:
    """The mutants that end in a traceback or hang, and how many end in a message."""
    wrong, told = [], 0
    before = signal.signal(signal.SIGALRM, late)
    try:
        for number in numbers:
            said, sections = mutant(number)
            signal.alarm(60)
            try:
                told += outcome(sections, folder, capsys) != "trains"
            except (Exception, TimeoutError) as error:
                trace = error.__traceback__
                while trace is not None and trace.tb_next is not None:
                    trace = trace.tb_next
                where = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace else ""
                wrong.append(f"{said}\n    {type(error).__name__}: {str(error)[:200]}  {where}")
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    return wrong, told


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("base", sorted(BASES))
def test_the_bases_train(base: str, tmp_path: Path, capsys: Any) -> None:
    assert outcome(BASES[base], tmp_path, capsys) == "trains"


@pytest.mark.usefixtures("quick")
def test_a_wrong_value_is_told(tmp_path: Path, capsys: Any) -> None:
    wrong, told = broken(range(60), tmp_path, capsys)
    assert not wrong, "\n".join(wrong)
    assert told > 25


OUT_OF_RANGE = {
    "optimizer_config.grad_clip.max_norm": -1e9,
    "optimizer_config.grad_clip.norm_type": -2,
    "optimizer.lr": -0.1,
    "optimizer.momentum": 1.5,
    "optimizer.weight_decay": -1,
    "optimizer.paramwise_cfg.custom_keys.head.lr_mult": -1,
    "lr_config.min_lr": -1.0,
    "lr_config.warmup_ratio": 2,
    "lr_config.warmup_iters": 0,
    "model.head.dropout": 1.5,
    "model.head.loss.loss_weight": -1,
    "model.head.loss.class_weight.0": -1,
    "evaluation.interval": 0,
    "checkpoint_config.interval": 0,
    "log_config.interval": 0,
    "calibration.num_batches": 0,
    "data.samples_per_gpu": 0,
    "data.workers_per_gpu": 10**30,
    "num_threads": 10**30,
    "quant_transformer.quan_policy.Conv2d.num_bit_w": 0,
    "quant_transformer.quan_policy.Linear.num_bit_a": 9,
    "data.train.pipeline.0.size": 10**9,
    "data.train.pipeline.0.padding": -1,
    "data.train.pipeline.1.mean": [math.nan],
    "data.val.pipeline.0.std": [math.nan],
    "data.val.pipeline.0.mean": [math.inf],
    # Training builds no data.test; it is checked all the same.
    "data.test": 3,
    "data.test.type": "Digit",
    "data.test.split": 3,
    "data.test.colour": 1,
    "data.test.pipeline": dict(type="Resize"),
    "data.test.pipeline.0.size": "8",
    "data.test.pipeline.0.type": "Resiz",
    "data.test.pipeline.1.crop_size": -8,
    "data.test.pipeline.2.std": [0.0],
    "data.test.pipeline.4.keys": None,
}


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("place", OUT_OF_RANGE)
def test_a_number_beyond_its_meaning_is_refused(place: str, tmp_path: Path, capsys: Any) -> None:
    path = tuple(int(key) if key.isdigit() else key for key in place.split("."))
    said = outcome(put(QUANTIZED, path, OUT_OF_RANGE[place]), tmp_path, capsys)
    assert said.startswith("ConfigError: "), said
    if path[:2] == ("data", "test"):
        assert said.startswith(("ConfigError: data.test: ", "ConfigError: data.test must be ")), said
    assert not (tmp_path / "work" / "latest.pth").exists()


NUMBERS = [
    (name, path)
    for name, base in BASES.items()
    for path in places(base)
    if type(of(base, path)) in (int, float) and "indices" not in path
]


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_nan_is_no_number_anywhere(tmp_path: Path, capsys: Any) -> None:
    accepted = [
        f"{name}: {'.'.join(map(str, path))}"
        for name, path in NUMBERS
        if outcome(put(BASES[name], path, math.nan), tmp_path, capsys) == "trains"
    ]
    assert len(NUMBERS) > 60 and not accepted, accepted


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("part", range(4))
def test_many_wrong_values_are_told(part: int, tmp_path: Path, capsys: Any) -> None:
    wrong, _ = broken(range(100 + 150 * part, 250 + 150 * part), tmp_path, capsys)
    assert not wrong, "\n".join(wrong)
