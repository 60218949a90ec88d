"""Prints how each layer of a config's model is quantized, and its cost: `lbitcls plan`."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lbitcls.assembly.image_sizes import section_channels, section_size
from lbitcls.quant.cost import LayerCost, plan_cost
from lbitcls.quant.integer_report import integer_summary
from lbitcls.quant.kernels import machine
from lbitcls.quant.plan import Plan, aligned, float_plan
from lbitcls.settings.sections import ConfigLike, Settings, read_settings
from lbitcls.tracking.run_description import parameters
from lbitcls.utils.custom import import_custom
from lbitcls.utils.errors import ConfigError

FLOAT_HEADER = ("layer", "kind", "shape", "params", "MMACs", "KiB")
HEADER = ("layer", "kind", "shape", "method", "W", "A", "rule", "params", "MMACs", "GBOPs", "KiB")


def show_plan(cfg: ConfigLike, shape: Sequence[int] | None = None) -> list[LayerCost]:
    """Print how the config's transformer quantizes each layer, and each layer's cost for one image.

    Without `quant_transformer`, print each layer of the float model with its cost.

    Args:
        cfg: Config; the modules in its `custom_imports` are imported.
        shape: Image shape (C, H, W); None: that of the config's test pipeline.

    Returns:
        One row per layer with parameters, in the model's order.
    """
    settings = read_settings(cfg)
    settings.require(("model",), "a plan")
    from lbitcls.models import build_classifier
    from lbitcls.quant import build_mtransformer

    import_custom(vars(settings.custom_imports))
    model = build_classifier(settings.model, pretrained=False)
    section = settings.quant_transformer
    plan = build_mtransformer(section).plan(model) if section else float_plan(model)
    size = tuple(shape or image_shape(settings, model))
    try:
        rows = plan_cost(plan, model, torch.zeros(1, *size))
    except (RuntimeError, ValueError, TypeError) as error:
        raise ConfigError(
            f"the model does not accept an image of {size} (channels, height, width), which is "
            f"{'the --shape given' if shape else 'the shape from the data and the backbone'}: {error}. Give a shape "
            "that it accepts as --shape C H W; a backbone of your own sets its number of input channels in "
            "in_channels."
        ) from error
    if section:
        _print(rows)
        if settings.kernels.kind in ("auto", "integer"):
            _print_products(rows, model)
    else:
        _print_float(rows)
    print("\nparameters: " + "; ".join(parameters(model)))
    return rows


def image_shape(settings: Settings, model: torch.nn.Module) -> tuple[int, int, int]:
    """Return (C, H, W) of an image after the test pipeline, from its last resizing step, else from the data set."""
    data = settings.data
    section = data.test or data.val or data.train or {}
    size = section_size(section)
    if size is None:
        raise ConfigError("the pipeline does not set the image size; give --shape C H W.")
    return getattr(model.backbone, "in_channels", None) or section_channels(section) or _first_channels(model), *size


def _first_channels(model: torch.nn.Module) -> int:
    """Return the number of input channels of the model's first convolution; 3 if it has none."""
    convs = (module for module in model.modules() if isinstance(module, torch.nn.Conv2d))
    return next((conv.in_channels for conv in convs), 3)


def _print(rows: list[LayerCost]) -> None:
    print("\n".join(aligned([HEADER, *(_cells(row) for row in rows if row.row.quantized)])))
    groups: dict[tuple[str, str], list[LayerCost]] = {}
    for cost in rows:
        if not cost.row.quantized:
            groups.setdefault((cost.row.kind, cost.row.rule), []).append(cost)
    stays = [
        (str(len(costs)), kind, f"{sum(c.row.parameters for c in costs):,}", why)
        for (kind, why), costs in groups.items()
    ]
    print("\nstays float")
    print("\n".join(aligned([("layers", "kind", "params", "why"), *stays])))
    print("\n" + "\n".join(aligned([("total", "float", "as planned", "ratio"), *_totals(rows)])))


def _print_products(rows: list[LayerCost], model: torch.nn.Module) -> None:
    """Print which layers multiply integers in training, where this machine's CPU does so exactly."""
    obstacle = machine.find_obstacle()
    if obstacle:
        print(f"\nno integer kernels on this machine: {obstacle}")
        return
    plan, macs = Plan(tuple(cost.row for cost in rows)), {cost.row.name: cost.macs for cost in rows}
    print("\nwith integer kernels, on a CPU")
    print("\n".join(integer_summary(plan, model, macs)))


def _print_float(rows: list[LayerCost]) -> None:
    """Print each layer of a float model."""
    cells = [
        (
            *(cost.row.name, cost.row.kind, "×".join(map(str, cost.row.shape)), f"{cost.row.parameters:,}"),
            *(f"{cost.macs / 1e6:.2f}", f"{cost.size_bits / 8192:.1f}"),
        )
        for cost in rows
    ]
    total = ("total", "", "", f"{sum(cost.row.parameters for cost in rows):,}")
    costs = (f"{sum(cost.macs for cost in rows) / 1e6:.2f}", f"{sum(cost.size_bits for cost in rows) / 8192:.1f}")
    print("\n".join(aligned([FLOAT_HEADER, *cells, (*total, *costs)])))


def _cells(cost: LayerCost) -> tuple[str, ...]:
    row = cost.row
    return (
        row.name,
        row.kind,
        "×".join(map(str, row.shape)),
        str(row.entry),
        str(row.num_bit_w or 32),
        str(row.num_bit_a or 32),
        row.rule,
        f"{row.parameters:,}",
        f"{cost.macs / 1e6:.2f}",
        f"{cost.bit_operations / 1e9:.3f}",
        f"{cost.size_bits / 8192:.1f}",
    )


def _totals(rows: list[LayerCost]) -> list[tuple[str, ...]]:
    size, float_size = sum(r.size_bits for r in rows) / 8192, sum(r.float_size_bits for r in rows) / 8192
    work, float_work = sum(r.bit_operations for r in rows) / 1e9, sum(r.float_bit_operations for r in rows) / 1e9
    return [
        ("parameters, KiB", f"{float_size:.1f}", f"{size:.1f}", f"{size / float_size:.3f}"),
        ("bit-operations, G", f"{float_work:.2f}", f"{work:.2f}", f"{work / float_work:.3f}"),
    ]
