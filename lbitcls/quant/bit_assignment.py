"""Bits for each layer under a budget: the assignment with the smallest sum of errors, by integer programming.

    minimize Σ_l error(l, b_l)   subject to   Σ_l cost(l, b_l) <= limit,   one b_l for each layer l

The errors of layers are added as if each were the only one that is quantized, as in HAWQ-V2 (arXiv:1911.03852) and
HAWQ-V3 (arXiv:2011.10680, equation 6), which solve the same program. `scipy.optimize.milp` finds the optimum.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lbitcls.quant.aliases import KEYS
from lbitcls.quant.cost import LayerCost
from lbitcls.quant.methods import LayerEntry, find_entry
from lbitcls.quant.plan import Plan, PlanRow
from lbitcls.quant.spec import FLOAT_BITS
from lbitcls.utils.errors import ConfigError
from lbitcls.utils.extras import import_extra

Bits = dict[str, int]
"""Bits of each layer, by its full name."""
Table = Mapping[str, Mapping[int, float]]
"""A number for each layer and each of its possible bits."""
_BUDGET = re.compile(r"(size|bops)=(\d+(?:\.\d+)?)(bit|x|KiB|G)")
_UNITS = {"size": ("bit", "x", "KiB"), "bops": ("x", "G")}


@dataclass(frozen=True)
class Budget:
    """Upper limit of what the layers may cost.

    Attributes:
        kind: `size`, bits of the parameters, or `bops`, bit-operations of one image.
        number: Number in `unit`.
        unit: `bit`: mean bits of the searched layers' weights; `x`: times the cost of the config as it is; `KiB`: of
            all parameters; `G`: 10⁹ bit-operations of all layers.
    """

    kind: str
    number: float
    unit: str

    @classmethod
    def read(cls, text: str) -> Budget:
        """Parse `size=3bit`, `size=0.5x`, `size=200KiB`, `bops=0.5x` or `bops=1.2G`.

        Raises:
            ConfigError: It is none of these.
        """
        if text.startswith("latency"):
            raise ConfigError(
                "--budget latency: the engines compute 2 to 8 bits by the same 8-bit kernels, so bits do not change "
                "the time. Use --budget size=… or bops=…."
            )
        found = _BUDGET.fullmatch(text)
        if found is None or found[3] not in _UNITS[found[1]] or float(found[2]) <= 0:
            raise ConfigError(
                f"--budget must be size=Nbit, size=Nx, size=NKiB, bops=Nx or bops=NG with N > 0; got '{text}'."
            )
        return cls(found[1], float(found[2]), found[3])

    def __str__(self) -> str:
        return f"{self.kind}={self.number:g}{self.unit}"


class SearchCosts:
    """Costs of the layers of a search, as a budget counts them.

    Args:
        budget: Budget.
        costs: Cost of all layers with the config's bits (`plan_cost`).
        names: Layers whose bits are searched.
        weights_only: True: inputs keep the config's bits; False: they get those of the weight.

    Attributes:
        unit: What `total` counts.
    """

    def __init__(self, budget: Budget, costs: Sequence[LayerCost], names: Collection[str], weights_only: bool) -> None:
        self.budget = budget
        self.searched = [cost for cost in costs if cost.row.name in names]
        self.others = [cost for cost in costs if cost.row.name not in names]
        self.weights_only = weights_only
        self.unit = "weights, KiB" if budget.kind == "size" else "bit-operations, G"

    def of_layer(self, cost: LayerCost, bits: int) -> float:
        """Return the cost of a searched layer with other bits: bits of its weight, or bit-operations."""
        if self.budget.kind == "size":
            return float(weights_of(cost.row) * bits)
        kept = cost.row.num_bit_a or FLOAT_BITS
        return float(cost.macs * bits * (kept if self.weights_only or cost.row.num_bit_a is None else bits))

    def table(self, choices: Mapping[str, Iterable[int]]) -> Table:
        """Return the cost of each searched layer at each of its possible bits."""
        return {c.row.name: {bits: self.of_layer(c, bits) for bits in choices[c.row.name]} for c in self.searched}

    def total(self, bits: Mapping[str, int]) -> float:
        """Return the cost of all searched layers together, in `unit`."""
        found = sum(self.of_layer(cost, bits[cost.row.name]) for cost in self.searched)
        return found / (8192 if self.budget.kind == "size" else 1e9)

    def limit(self) -> float:
        """Return what the searched layers may cost together, in the unit of `of_layer`."""
        budget = self.budget
        if budget.unit == "bit":
            return budget.number * sum(weights_of(cost.row) for cost in self.searched)
        whole = sum(self._as_planned(cost) for cost in (*self.searched, *self.others))
        allowed = budget.number * {"x": whole, "KiB": 8192.0, "G": 1e9}[budget.unit]
        fixed = sum(self._as_planned(cost) for cost in self.others)
        if budget.kind == "size":
            fixed += sum(FLOAT_BITS * (cost.row.parameters - weights_of(cost.row)) for cost in self.searched)
        return allowed - fixed

    def _as_planned(self, cost: LayerCost) -> float:
        return float(cost.size_bits if self.budget.kind == "size" else cost.bit_operations)


def weights_of(row: PlanRow) -> int:
    """Return the number of elements of a layer's weight."""
    number = 1
    for size in row.shape:
        number *= size
    return number


def assign(errors: Table, costs: Table, limit: float) -> Bits:
    """Return the bits of each layer whose errors have the smallest sum, and whose costs have at most the sum `limit`.

    Args:
        errors: Error of each layer at each of its possible bits, >= 0.
        costs: Cost of the same, >= 0.
        limit: Largest sum of costs.

    Raises:
        ConfigError: Even the smallest costs exceed the limit.
        DependencyError: scipy is not installed.

    Example:
        >>> assign({"a": {2: 1.0, 4: 0.1}, "b": {2: 0.2, 4: 0.1}}, {"a": {2: 2, 4: 4}, "b": {2: 2, 4: 4}}, 6)
        {'a': 4, 'b': 2}
    """
    require_affordable(costs, limit)
    pairs = [(name, bits) for name, of_layer in errors.items() for bits in of_layer]
    chosen = _solve(pairs, list(errors), errors, costs, limit)
    return dict(pair for pair, taken in zip(pairs, chosen, strict=True) if taken > 0.5)


def require_affordable(costs: Table, limit: float) -> None:
    """Raise `ConfigError` if even the smallest costs, summed over the layers, exceed the limit."""
    least = sum(min(of_layer.values()) for of_layer in costs.values())
    if least > limit * (1 + 1e-12):
        found = f"{least / limit:.3g} times" if limit > 0 else "more than"
        raise ConfigError(
            f"the budget is too small: with the fewest bits that each layer may have, the cost is {found} what the "
            "budget leaves for these layers."
        )


def require_solver() -> Any:
    """Return the module `scipy.optimize`; raise `DependencyError` if it is not installed."""
    return import_extra("scipy.optimize", "search", "lbitcls search")


def _solve(
    pairs: Sequence[tuple[str, int]], names: Sequence[str], errors: Table, costs: Table, limit: float
) -> Sequence[float]:
    """Return 1 for each pair (layer, bits) that is chosen, else 0."""
    solver = require_solver()
    cost = np.array([[costs[name][bits] for name, bits in pairs]])
    one_each = np.array([[float(name == layer) for name, _ in pairs] for layer in names])
    error = np.array([errors[name][bits] for name, bits in pairs])
    scale = max(error.max(), 1e-300)
    solution = solver.milp(
        error / scale,  # the solver's tolerances are absolute
        constraints=[
            solver.LinearConstraint(cost / limit, ub=1.0 + 1e-12),
            solver.LinearConstraint(one_each, 1.0, 1.0),
        ],
        integrality=np.ones(len(pairs)),
        bounds=solver.Bounds(0, 1),
        options={"mip_rel_gap": 0.0},
    )
    if solution.x is None:
        raise ConfigError(f"no assignment was found: {solution.message}")
    return list(solution.x)


def total(table: Table, bits: Mapping[str, int]) -> float:
    """Return the sum over the layers at their bits."""
    return sum(table[name][number] for name, number in bits.items())


def can_be_searched(row: PlanRow) -> bool:
    """Return True if a layer's bits can be chosen: its weight is quantized by a method of the registry."""
    return row.num_bit_w is not None and isinstance(find_entry(row.cfg)[0], LayerEntry)


def entry_with_bits(row: PlanRow, bits: int, weights_only: bool = False) -> dict[str, Any]:
    """Return a layer's entry with other bits; what it leaves in float stays so, and `weights_only` keeps its inputs."""
    entry = {KEYS.get(key, key): value for key, value in copy.deepcopy(row.cfg or {}).items()}
    if row.num_bit_w is not None:
        entry["num_bit_w"] = bits
    if row.num_bit_a is not None and not weights_only:
        entry["num_bit_a"] = bits
    return entry


def with_bits(section: Mapping[str, Any], plan: Plan, bits: Mapping[str, int], weights_only: bool) -> dict[str, Any]:
    """Return a `quant_transformer` section in which these layers have other bits, as `special_layers`.

    Args:
        section: Section of the config.
        plan: Its plan.
        bits: New bits of layers that are quantized.
        weights_only: True: inputs keep their bits; False: those that are quantized get the weight's.
    """
    special = dict(section.get("special_layers") or {})
    named = dict(zip(special.get("layers_name") or (), special.get("convert_type") or ()))
    for row in plan:
        if row.name in bits:
            named[row.name] = entry_with_bits(row, bits[row.name], weights_only)
    return {**section, "special_layers": {"layers_name": list(named), "convert_type": list(named.values())}}
