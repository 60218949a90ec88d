"""Bits under a budget: the optimum of the integer program, budgets as text, and the section that is written."""

import itertools

import pytest
import torch
from torch import nn

from lbitcls.quant import build_mtransformer
from lbitcls.quant.bit_assignment import Budget, SearchCosts, assign, total, weights_of, with_bits
from lbitcls.quant.cost import plan_cost
from lbitcls.utils.errors import ConfigError

BITS = (2, 3, 4, 8)


@pytest.mark.parametrize("seed", range(8))
def test_the_assignment_is_the_best_of_all(seed: int) -> None:
    """Against all 4⁵ assignments, with errors over many orders of magnitude and layers without some choices."""
    draw = torch.Generator().manual_seed(seed)
    names = [f"layer{i}" for i in range(5)]
    errors = {n: {b: float(10 ** torch.empty(1).uniform_(-6, 1, generator=draw)) for b in BITS} for n in names}
    del errors["layer1"][2], errors["layer3"][8]
    sizes = {n: float(torch.randint(1, 10_000, (), generator=draw)) for n in names}
    costs = {n: {b: sizes[n] * b for b in errors[n]} for n in names}
    limit = 3.4 * sum(sizes.values())
    found = assign(errors, costs, limit)
    every = (dict(zip(names, bits)) for bits in itertools.product(*(errors[n] for n in names)))
    best = min(total(errors, bits) for bits in every if total(costs, bits) <= limit)
    assert total(costs, found) <= limit * (1 + 1e-9)
    assert total(errors, found) == pytest.approx(best, rel=1e-6)


def test_a_budget_that_equal_bits_fill_allows_them() -> None:
    costs = {name: {b: size * b for b in BITS} for name, size in (("a", 270_001.0), ("b", 37.0))}
    errors = {name: {b: 1.0 / b for b in BITS} for name in costs}
    assert total(costs, assign(errors, costs, 3 * 270_038.0)) <= 3 * 270_038.0
    with pytest.raises(ConfigError, match=r"the budget is too small: .* the cost is 2 times"):
        assign(errors, costs, 270_038.0)


@pytest.mark.parametrize(
    "text", ["3", "size=3", "size=-1bit", "size=0bit", "bops=3bit", "bops=5KiB", "size=x", "bits=3bit"]
)
def test_other_budgets_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--budget must be size=Nbit, size=Nx"):
        Budget.read(text)


def test_a_budget_of_time_is_refused_with_the_reason() -> None:
    with pytest.raises(ConfigError, match="the same 8-bit kernels"):
        Budget.read("latency=0.5x")


class Small(nn.Module):
    """Two convolutions and a linear layer, one of them in float inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 8, 3)
        self.two = nn.Conv2d(8, 4, 3, groups=2)
        self.head = nn.Linear(4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.two(self.one(x).relu()).relu().mean((2, 3)))


SECTION = dict(
    type="ModelTransformer",
    quan_policy=dict(
        Conv2d=dict(type="LSQConv", num_bit_w=4, num_bit_a=4, per_channel=True),
        Linear=dict(type="LSQLinear", num_bit_w=4, quant_activation=False),
    ),
    special_layers=dict(layers_name=["one"], convert_type=[dict(type="LSQConv", num_bit_w=8, num_bit_a=8)]),
)


def costs_of(budget: str, weights_only: bool = False) -> SearchCosts:
    model = Small()
    plan = build_mtransformer(SECTION).plan(model)
    rows = plan_cost(plan, model, torch.zeros(1, 3, 12, 12))
    return SearchCosts(Budget.read(budget), rows, ["two", "head"], weights_only)


@pytest.mark.parametrize("weights_only", [False, True])
@pytest.mark.parametrize("budget", ["size=1x", "bops=1x", "size=4bit"])
def test_the_configs_own_bits_fill_their_budget(budget: str, weights_only: bool) -> None:
    costs = costs_of(budget, weights_only)
    own = costs.table({"two": [4], "head": [4]})
    assert total(own, {"two": 4, "head": 4}) == pytest.approx(costs.limit())


@pytest.mark.parametrize("weights_only", [False, True])
def test_costs_are_those_of_the_network_that_is_built(weights_only: bool) -> None:
    """Bits are changed, the network is planned anew, and its cost is counted by the other code."""
    costs, model = costs_of("bops=1x", weights_only), Small()
    bits = {"two": 2, "head": 8}
    section = with_bits(SECTION, build_mtransformer(SECTION).plan(model), bits, weights_only)
    rows = {
        row.row.name: row
        for row in plan_cost(build_mtransformer(section).plan(model), model, torch.zeros(1, 3, 12, 12))
    }
    assert {name: rows[name].row.num_bit_w for name in rows} == {"one": 8, "two": 2, "head": 8}
    assert rows["two"].row.num_bit_a == (4 if weights_only else 2) and rows["head"].row.num_bit_a is None
    assert costs.total(bits) * 1e9 == pytest.approx(rows["two"].bit_operations + rows["head"].bit_operations)
    assert weights_of(rows["two"].row) == 4 * 4 * 9
    assert rows["two"].row.cfg["per_channel"] is True and SECTION["special_layers"]["layers_name"] == ["one"]


def test_older_names_of_bits_are_replaced() -> None:
    """`nbits_w` beside `num_bit_w` would be an error."""
    section = dict(type="ModelTransformer", quan_policy=dict(Conv2d=dict(type="LSQConv2d", nbits_w=4, bit_a=32)))
    model = Small()
    found = with_bits(section, build_mtransformer(section).plan(model), {"two": 2}, weights_only=False)
    rows = {row.name: row for row in build_mtransformer(found).plan(model)}
    assert (rows["two"].num_bit_w, rows["two"].num_bit_a, rows["one"].num_bit_w) == (2, None, 4)
