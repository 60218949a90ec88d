"""Average of the weights, by hand; values copied after a calibration."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lbitcls.core.ema import ModelEMA
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
