"""A plan: what a model transformer will do, a row for each layer, before it does anything."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.utils import parametrize


@dataclass(frozen=True)
class PlanRow:
    """What becomes of one module with parameters of its own.

    Attributes:
        name: its full name in the model.
        kind: its type.
        shape: of its weight; () where it has none.
        entry: the config's name of the quantized layer; None: it stays float.
        num_bit_w: bits of the weight; None: float.
        num_bit_a: bits of the input; None: float.
        rule: what decided it: `special_layers`, `quan_policy`, `exclude_layers`, or why no rule applies.
        parameters: number of parameters.
        cfg: the config entry that applies.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    entry: str | None
    num_bit_w: int | None
    num_bit_a: int | None
    rule: str
    parameters: int
    cfg: dict[str, Any] | None = None

    @property
    def quantized(self) -> bool:
        """Whether the layer is replaced."""
        return self.entry is not None


@dataclass(frozen=True)
class Plan:
    """The rows of a plan, in the model's order."""

    rows: tuple[PlanRow, ...]

    def __iter__(self) -> Iterator[PlanRow]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def quantized(self) -> list[PlanRow]:
        """Rows of the layers that are replaced."""
        return [row for row in self.rows if row.quantized]

    def table(self) -> str:
        """The plan as aligned text: the replaced layers, then what stays float, and why, by kind."""
        lines = aligned(
            [("layer", "kind", "shape", "entry", "weight", "input", "rule")]
            + [
                (
                    r.name,
                    r.kind,
                    "×".join(map(str, r.shape)),
                    str(r.entry),
                    _bits(r.num_bit_w),
                    _bits(r.num_bit_a),
                    r.rule,
                )
                for r in self.quantized
            ]
        )
        stays = _stays_float([row for row in self.rows if not row.quantized])
        return "\n".join(lines + stays)


def float_plan(model: nn.Module) -> Plan:
    """The plan of a model of which nothing is quantized: a row for each module with parameters of its own."""
    return Plan(
        tuple(
            PlanRow(name, type(module).__name__, _shape(module), None, None, None, "no quant_transformer", count)
            for name, module in model.named_modules()
            if (count := own_parameters(module))
        )
    )


def _shape(module: nn.Module) -> tuple[int, ...]:
    weight: Any = getattr(module, "weight", None)
    return () if weight is None else tuple(weight.shape)


def own_parameters(module: nn.Module) -> int:
    """Number of parameters that a module holds itself, not through its children."""
    if isinstance(module, parametrize.ParametrizationList):
        return 0  # they count for the layer whose tensor is computed from them
    computed: Any = module.parametrizations if parametrize.is_parametrized(module) else {}
    owners = (module, *computed.values())
    return sum(p.numel() for owner in owners for p in owner.parameters(recurse=False))


def _bits(num_bits: int | None) -> str:
    return "float" if num_bits is None else f"{num_bits} bits"


def aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Rows of cells as lines of text with aligned columns."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.ljust(w) for cell, w in zip(row, widths)).rstrip() for row in rows]


def _stays_float(rows: list[PlanRow]) -> list[str]:
    groups: dict[tuple[str, str], list[PlanRow]] = {}
    for row in rows:
        groups.setdefault((row.kind, row.rule), []).append(row)
    return [
        f"stays float: {len(found)} {kind} ({sum(r.parameters for r in found):,} parameters): {rule}"
        + (f"; {', '.join(r.name for r in found)}" if len(found) <= 4 else "")
        for (kind, rule), found in groups.items()
    ]
