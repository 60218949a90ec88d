"""BatchNorm statistics estimated again."""

import pytest
import torch
from torch import nn

from lbitcls.core.ema import ModelSWA
from lbitcls.core.hooks.precise_bn import PreciseBNHook, estimate_norms
from lbitcls.registry import HOOKS
from lbitcls.utils.errors import ConfigError


def test_statistics_become_the_averages_over_the_batches() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3), nn.Dropout(0.9), nn.BatchNorm2d(3)).train()
    model[3].eval()
    model[3].requires_grad_(False)
    frozen = model[3].running_mean.clone()
    batches = [torch.randn(8, 2, 4, 4) * 3 + 1 for _ in range(4)]
    estimate_norms(model, batches)
    features = [model[0](batch).detach() for batch in batches]
    mean = torch.stack([f.mean((0, 2, 3)) for f in features]).mean(0)
    var = torch.stack([f.var((0, 2, 3)) for f in features]).mean(0)
    torch.testing.assert_close(model[1].running_mean, mean)
    torch.testing.assert_close(model[1].running_var, var)
    assert model[1].momentum == 0.1 and model.training and model[2].training
    assert torch.equal(model[3].running_mean, frozen) and not model[3].training


def test_statistics_of_an_average_are_those_of_its_own_features() -> None:
    """The average is in eval and has no gradients; the model in training tells which norms are frozen."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)).double().train()
    model[2].eval()
    model[2].requires_grad_(False)
    average = ModelSWA(model).module
    nn.init.constant_(model[0].weight, 9.0)
    batches = [torch.randn(8, 2, 4, 4).double() * 3 + 1 for _ in range(4)]
    estimate_norms(average, batches, model)
    features = [average[0](batch).detach() for batch in batches]
    torch.testing.assert_close(average[1].running_mean, torch.stack([f.mean((0, 2, 3)) for f in features]).mean(0))
    torch.testing.assert_close(average[1].running_var, torch.stack([f.var((0, 2, 3)) for f in features]).mean(0))
    assert (average[2].running_mean == 0).all() and not any(module.training for module in average.modules())


def test_the_hook_is_built_from_a_config_and_checks_it() -> None:
    assert isinstance(HOOKS.build(dict(type="PreciseBNHook", num_batches=3)), PreciseBNHook)
    with pytest.raises(ConfigError, match="num_batches must be an integer ≥ 1; got 0"):
        HOOKS.build(dict(type="PreciseBNHook", num_batches=0))
