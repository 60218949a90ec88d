"""Learning-rate range test: its suggestion, its files, and that nothing else changes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lbitcls.analysis.figures import pixels
from lbitcls.apis import train_classifier
from lbitcls.assembly.session import open_session
from lbitcls.commands.main import main
from lbitcls.core.lr_finder import RangeTest, range_test, smoothed, suggest
from lbitcls.core.runner import EpochRunner
from lbitcls.settings.sections import read_settings
from lbitcls.utils.checkpoint import read_checkpoint
from lbitcls.utils.config import Config
from lbitcls.utils.errors import ConfigError, TrainingError
from lbitcls.workflows import finding_lr
from lbitcls.workflows.finding_lr import FIGURE, VALUES, find_learning_rate
from lbitcls.workflows.training import build_runner

QUANTIZED = dict(
    quant_transformer=dict(
        type="mTransformerV2", quan_policy=dict(Conv2d=dict(type="LSQConv", num_bit_w=4, num_bit_a=4))
    ),
    kernels="plain",
)


def assert_descends(found: RangeTest) -> None:
    """The suggested rate lies between the highest loss and the lowest, on a falling part of the curve."""
    place = found.rates.index(found.suggestion)  # type: ignore[arg-type]
    lowest = int(np.argmin(found.smooth))
    assert found.smooth.index(max(found.smooth[: lowest + 1])) <= place < lowest
    assert found.smooth[place + 1] < found.smooth[place]
    assert found.smooth[lowest] + 0.1 < found.smooth[place] < found.smooth[0]


def test_the_suggestion_is_where_the_loss_falls(make_config: Any) -> None:
    cfg = make_config()
    found = find_learning_rate(cfg, least=1e-3, steps=40)
    assert_descends(found)
    assert found.rates[0] == pytest.approx(1e-3) and np.allclose(np.diff(np.log(found.rates)), math.log(1e4) / 39)
    assert find_learning_rate(cfg, least=1e-3, steps=40) == found  # deterministic
    assert find_learning_rate(make_config(seed=4), least=1e-3, steps=40) != found


def test_it_ends_where_the_loss_explodes(make_config: Any, monkeypatch: Any) -> None:
    losses = iter([2.0] * 10 + [1.0] * 10 + [30.0, 60.0, 1.0])
    monkeypatch.setattr("lbitcls.core.lr_finder._train", lambda *given: next(losses))
    found = find_learning_rate(make_config())
    assert found.losses == (2.0,) * 10 + (1.0,) * 10 + (30.0, 60.0)  # the running mean is four times its lowest value
    losses = iter([2.0] * 10 + [math.inf, 1.0])
    assert find_learning_rate(make_config()).losses == (2.0,) * 10


def test_half_of_the_way_down() -> None:
    """A logistic fall of noise-free losses: the middle is known."""
    rates = np.geomspace(1e-6, 1.0, 121).tolist()
    losses = [3.0 / (1 + (rate / 1e-3) ** 2) for rate in rates]
    assert suggest(rates, losses, losses) == pytest.approx(1e-3, rel=0.13)  # a step is a factor of 1.12
    noise = np.random.default_rng(0).normal(0, 0.2, 121)
    noisy = (np.array(losses) + noise).tolist()
    assert 0.7e-3 < suggest(rates, noisy, smoothed(noisy, 3.6)) < 1.5e-3  # type: ignore[operator]
    flat = (2.3 + noise).tolist()
    assert suggest(rates, flat, smoothed(flat, 3.6)) is None
    rising = [1.0 + number for number in range(121)]
    assert suggest(rates, rising, rising) is None


def test_smoothing_is_a_gaussian_window() -> None:
    losses = np.random.default_rng(1).normal(size=30)
    expected = []
    for place in range(30):
        weights = [math.exp(-((other - place) ** 2) / (2 * 2.5**2)) for other in range(30)]
        expected.append(sum(w * v for w, v in zip(weights, losses, strict=True)) / sum(weights))
    assert smoothed(losses.tolist(), 2.5) == pytest.approx(expected, rel=1e-12)


def opened(cfg: Config) -> EpochRunner:
    with open_session(read_settings(cfg)) as session:
        return build_runner(cfg, Path(cfg.work_dir), session, run="range")


@pytest.mark.parametrize("more", [{}, dict(amp="bf16", optimizer_config=dict(cumulative_iters=2)), QUANTIZED])
def test_the_runner_is_unchanged(make_config: Any, more: Any) -> None:
    runner = opened(make_config(optimizer=dict(type="AdamW", lr=0.01), **more))
    finding_lr._enter(runner, None)
    if not more:  # with an optimizer state, and without one
        runner.work_dir.mkdir()
        runner.train_epoch()
    model, optimizer = runner.module, runner.step.optimizer
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = {key: dict(value) for key, value in optimizer.state.items()}
    moments = [{name: value.clone() for name, value in own.items()} for own in state.values()]
    position, numbers = runner.position(), torch.get_rng_state()
    range_test(runner, steps=20)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    after = [optimizer.state[key] for key in state]
    assert len(optimizer.state) == len(state)
    assert all(torch.equal(own[name], old[name]) for own, old in zip(after, moments, strict=True) for name in old)
    assert runner.position() == position and torch.equal(torch.get_rng_state(), numbers)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_run_resumes_as_if_there_had_been_no_test(make_config: Any) -> None:
    from tiny_parts import Ended

    whole, cut = (make_config(name, optimizer=dict(type="SGD", lr=0.05, momentum=0.9)) for name in ("whole", "cut"))
    train_classifier(whole)
    cut.custom_hooks = [dict(type="EndAt", event="after_iter", at=17)]
    with pytest.raises(Ended):
        train_classifier(cut)
    cut.custom_hooks = []
    folder = Path(cut.work_dir)
    files = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    find_learning_rate(cut, resume=True, steps=20)
    changed = {path for path in folder.rglob("*") if path.is_file() and files.get(path) != path.read_bytes()}
    assert changed == {folder / FIGURE, folder / VALUES}
    assert all(path.exists() for path in files)
    train_classifier(cut, resume=True)
    states = [read_checkpoint(Path(cfg.work_dir) / "latest.pth")["state_dict"] for cfg in (whole, cut)]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_the_phase_of_an_epoch(make_config: Any, monkeypatch: Any) -> None:
    """`epoch` decides which parts are frozen and whether the quantizers are on; frozen features are cached."""
    seen = []

    def spy(runner: EpochRunner, **given: Any) -> RangeTest:
        frozen = runner.module.is_frozen("backbone")
        result = range_test(runner, **given)
        seen.append((frozen, runner.phase, runner.features.computed["train"] > 0))
        return result

    monkeypatch.setattr(finding_lr, "range_test", spy)
    cfg = make_config(
        total_epochs=3,
        custom_hooks=[dict(type="UnfreezeHook", epoch=1, lr_mult=0.1)],
        calibration=dict(epoch=2, num_batches=2),
        feature_cache=True,
        **QUANTIZED,
    )
    found = [find_learning_rate(cfg, epoch=epoch, least=1e-3, steps=40) for epoch in (0, 1, 2)]
    assert seen == [(True, "float", True), (False, "float", False), (False, "quantized", False)]
    assert len({result.losses for result in found}) == 3
    assert found[0].suggestion is None  # random features of a frozen backbone teach the head nothing in 40 steps
    for result in found[1:]:
        assert_descends(result)


def test_the_bits_of_an_epoch(make_config: Any, monkeypatch: Any) -> None:
    """`epoch` also selects the stage of `progressive`."""
    from lbitcls.quant import weight_bits

    seen = []

    def spy(runner: EpochRunner, **given: Any) -> RangeTest:
        seen.append(set(weight_bits(runner.module).values()))
        return range_test(runner, **given)

    monkeypatch.setattr(finding_lr, "range_test", spy)
    cfg = make_config(total_epochs=2, progressive=dict(bits=[8, 4], epochs=[1]), **QUANTIZED)
    for epoch in (0, 1):
        find_learning_rate(cfg, epoch=epoch, least=1e-3, steps=10)
    assert seen == [{8}, {4}]


def test_files_and_the_command_to_use(write_config: Any, capsys: Any) -> None:
    config = write_config()
    assert main(["train", str(config), "--find-lr", "--find-lr-steps", "40", "--find-lr-range", "1e-5", "1"]) == 0
    folder = Path(Config.fromfile(config).work_dir)
    values = json.loads((folder / VALUES).read_text())
    said = capsys.readouterr().out
    assert f"Suggested learning rate: optimizer.lr={values['suggestion']:.2g} (tried: 1e-05 to " in said
    assert said.endswith(f"Next:\n  lbitcls train {config} --options optimizer.lr={values['suggestion']:.2g}\n")
    assert sorted(path.suffix for path in folder.iterdir() if not path.name.startswith(".")) == [".json", ".png"]
    assert len(values["rates"]) == len(values["losses"]) == len(values["smooth"]) <= 40
    drawn = pixels(folder / FIGURE).reshape(-1, 3).astype(int)
    blue, orange = np.array([0x1D, 0x4E, 0xD8]), np.array([0xC2, 0x41, 0x0C])
    assert all((np.abs(drawn - color).sum(axis=1) < 12).sum() > 50 for color in (blue, orange))


def test_nothing_to_suggest_is_said(write_config: Any, capsys: Any) -> None:
    config = write_config()
    assert main(["train", str(config), "--find-lr", "--find-lr-steps", "20", "--find-lr-range", "1e-9", "1e-8"]) == 0
    said = capsys.readouterr().out
    assert "No suggestion: the loss did not fall clearly at any learning rate from 1e-09 to 1e-08." in said
    assert "Next" not in said


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (dict(steps=5), "at least 10 steps and two learning rates 0 < MIN < MAX; got 5 steps"),
        (dict(least=1.0, most=0.1), "0 < MIN < MAX; got 100 steps, 1 and 0.1"),
        (dict(epoch=2), "--find-lr-epoch must be an integer from 0 to 1; got 2"),
    ],
)
def test_arguments_out_of_range(make_config: Any, given: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        find_learning_rate(make_config(), **given)


def test_several_processes_are_refused(make_config: Any, monkeypatch: Any) -> None:
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="runs in one process; start it without a launcher"):
        find_learning_rate(make_config(), launcher="pytorch")


def test_no_rate_to_scale_and_no_finite_loss(make_config: Any, monkeypatch: Any) -> None:
    with pytest.raises(ConfigError, match="scales optimizer.lr, which must be > 0; got 0"):
        find_learning_rate(make_config(optimizer=dict(type="SGD", lr=0.0)))
    monkeypatch.setattr("lbitcls.core.lr_finder._train", lambda *given: math.nan)
    with pytest.raises(TrainingError, match="not finite at the first rate"):
        find_learning_rate(make_config())
