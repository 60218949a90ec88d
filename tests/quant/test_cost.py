"""Costs of a plan: multiply-accumulates, bit-operations and sizes by hand."""

import torch
from torch import nn

from lbitcls.quant import build_mtransformer
from lbitcls.quant.cost import count_macs, plan_cost


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),  # 8 × 4 × 4 outputs of 3 · 9
        nn.BatchNorm2d(8),
        nn.ConvTranspose2d(8, 4, 2, stride=2),  # 8 × 4 × 4 inputs, each into 4 · 4
        nn.Conv2d(4, 4, 3, padding=1, groups=4),  # 4 × 8 × 8 outputs of 9
        nn.Flatten(),
        nn.Linear(4 * 64, 10),
    )


def test_macs_are_counted_by_kind() -> None:
    macs = count_macs(network(), torch.zeros(1, 3, 8, 8))
    assert macs == {"0": 128 * 27, "2": 128 * 16, "3": 256 * 9, "5": 2560}


def test_bits_enter_operations_and_size() -> None:
    model = network().train()
    entry = dict(type="LSQConv", num_bit_w=4, num_bit_a=2)
    transformer = build_mtransformer(dict(type="ModelTransformer", quan_policy=dict(Conv2d=entry)))
    costs = {cost.row.name: cost for cost in plan_cost(transformer.plan(model), model, torch.zeros(1, 3, 8, 8))}
    first, linear = costs["0"], costs["5"]
    assert first.bit_operations == 128 * 27 * 8 and first.float_bit_operations == 128 * 27 * 1024
    assert first.size_bits == 8 * 27 * 4 + 8 * 32 and first.float_size_bits == (8 * 27 + 8) * 32
    assert linear.bit_operations == linear.float_bit_operations and linear.size_bits == linear.float_size_bits
    assert model.training and model[1].num_batches_tracked == 0
