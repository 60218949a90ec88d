"""Plan of a model transformer: one row for each layer, known before the model changes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.utils import parametrize


@dataclass(frozen=True)
class PlanRow:
    """Plan for one module that owns parameters.

    Attributes:
        name: Full name in the model.
        kind: Type of the module.
        shape: Shape of the weight; () without a weight.
        entry: Config name of the quantized layer; None: the layer stays float.
        num_bit_w: Bits of the weight; None: float.
        num_bit_a: Bits of the input; None: float.
        rule: Deciding rule: `special_layers`, `quan_policy`, `exclude_layers`, or the reason why no rule applies.
        parameters: Number of parameters.
        cfg: Config entry that applies.
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
        """True if the layer is replaced."""
        return self.entry is not None


@dataclass(frozen=True)
class Plan:
    """Rows of a plan, in the model's order, and the names of the additions whose operands get 8 bits."""

    rows: tuple[PlanRow, ...]
    additions: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[PlanRow]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def quantized(self) -> list[PlanRow]:
        """Rows of the layers that are replaced."""
        return [row for row in self.rows if row.quantized]

    def table(self) -> str:
        """Return the plan as aligned text: the replaced layers, then those that stay float, and why, by kind."""
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
        added = [f"skip connections in 8 bits: {', '.join(self.additions)}"] if self.additions else []
        return "\n".join(lines + added + stays)


def float_plan(model: nn.Module) -> Plan:
    """Return the plan of an unquantized model: one row for each module that owns parameters."""
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
    """Return the number of parameters that a module owns, not counting its children's."""
    if isinstance(module, parametrize.ParametrizationList):
        return 0  # counted for the layer whose tensor is computed from them
    computed: Any = module.parametrizations if parametrize.is_parametrized(module) else {}
    owners = (module, *computed.values())
    return sum(p.numel() for owner in owners for p in owner.parameters(recurse=False))


def _bits(num_bits: int | None) -> str:
    return "float" if num_bits is None else f"{num_bits} bits"


def aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Return rows of cells as lines of text with aligned columns."""
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
