"""Average of the weights, by hand; values copied after a calibration."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lbitcls.core.ema import ModelEMA, ModelSWA, build_average
from lbitcls.core.optim import StateError
from lbitcls.settings.training_sections import EmaConfig
from lbitcls.utils.errors import ConfigError


def test_average_by_hand() -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 0.0)
    ema = ModelEMA(model, decay=0.25)
    parameter = ema.module.weight
    average = 0.0
    for step in (1, 2, 3):
        nn.init.constant_(model.weight, float(step))
        ema.update(model)
        decay = min(0.25, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * step
        assert ema.module.weight.item() == pytest.approx(average)
    assert ema.module.weight is parameter and not parameter.requires_grad


def test_buffers_are_copied() -> None:
    model = nn.BatchNorm1d(3)
    ema = ModelEMA(model, decay=0.9)
    model(torch.randn(8, 3))
    ema.update(model)
    assert torch.equal(ema.module.running_mean, model.running_mean)
    assert ema.module.num_batches_tracked == 1


def test_take_over_of_some_parameters() -> None:
    model = nn.Linear(2, 2)
    ema = ModelEMA(model, decay=0.9)
    nn.init.constant_(model.weight, 5.0)
    nn.init.constant_(model.bias, 5.0)
    ema.take_over(model, [model.bias])
    assert (ema.module.bias == 5).all() and not (ema.module.weight == 5).any()


def test_decay_out_of_range() -> None:
    for decay in (1.0, "high"):
        with pytest.raises(ConfigError, match="ema.decay"):
            ModelEMA(nn.Linear(1, 1), decay=decay)


def swa_by_hand(weights: list[float], start: int, epoch_len: int, interval: int | None) -> list[float]:
    """The equal average after each step, from all weights chosen so far; before the first, the weight itself."""
    chosen, averages = [], []
    for number, weight in enumerate(weights):
        after = number - start * epoch_len + 1  # steps from the start on
        due = (number + 1) % epoch_len == 0 if interval is None else after % interval == 0
        if after > 0 and due:
            chosen.append(weight)
        averages.append(sum(chosen) / len(chosen) if chosen else weight)
    return averages


@pytest.mark.parametrize(("start", "interval"), [(0, None), (2, None), (1, 2), (1, 5), (0, 1)])
def test_equal_average_by_hand(start: int, interval: int | None) -> None:
    torch.manual_seed(0)
    model = nn.Linear(1, 1, bias=False).double()
    average, weights, seen = ModelSWA(model, start, interval), torch.randn(16).double().tolist(), []
    for number, weight in enumerate(weights):
        nn.init.constant_(model.weight, weight)
        if number == 9:  # resumed here
            state = average.state_dict()
            resumed = ModelSWA(average.module, start, interval)
            resumed.load_state_dict(state)
            average = resumed
        average.update(model, number // 4, ends_epoch=number % 4 == 3)
        seen.append(average.module.weight.item())
    assert seen == pytest.approx(swa_by_hand(weights, start, 4, interval), rel=1e-12)


def test_equal_average_starts_over_when_quantizers_come_on() -> None:
    model = nn.Linear(1, 1, bias=False)
    average = ModelSWA(model)
    average.update(model, 0, ends_epoch=True)
    average.take_over(model, [])
    nn.init.constant_(model.weight, 7.0)
    average.update(model, 1, ends_epoch=True)
    assert average.module.weight.item() == 7.0 and average.averaged == 1


def test_wrong_averages() -> None:
    model = nn.Linear(1, 1)
    for given, message in (
        (dict(kind="swa", decay=0.9), r"decay=0.9 is for the other kind; kind is 'swa'"),
        (dict(start=3), r"start=3 is for the other kind; kind is 'ema'"),
        (dict(kind="mean"), "ema.kind"),
    ):
        with pytest.raises(ConfigError, match=message):
            EmaConfig(**given)
    with pytest.raises(ConfigError, match="ema.start must be less than total_epochs, 3; got 3"):
        build_average(EmaConfig(kind="swa", start=3), model, 3, 10)
    with pytest.raises(ConfigError, match="ema.interval must be at most 20"):
        build_average(EmaConfig(kind="swa", start=1, interval=21), model, 3, 10)
    with pytest.raises(StateError, match="ema.kind='swa'; the config sets 'ema'"):
        ModelEMA(model).load_state_dict(ModelSWA(model).state_dict())
