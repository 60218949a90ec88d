"""Chooses the bits of each layer under a budget: `lbitcls search`."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from lbitcls.analysis.bits_curve import draw_bits
from lbitcls.analysis.figures import save
from lbitcls.analysis.measures import OutputError, output_error
from lbitcls.analysis.passes import in_eval, predict
from lbitcls.analysis.sensitivity import MEASURES, errors_alone
from lbitcls.assembly.session import Session, make_model, open_session
from lbitcls.quant import build_mtransformer, calibrate
from lbitcls.quant.bit_assignment import (
    Bits,
    Budget,
    SearchCosts,
    Table,
    assign,
    can_be_searched,
    require_affordable,
    require_solver,
    total,
    with_bits,
)
from lbitcls.quant.calibration import quantizing
from lbitcls.quant.cost import plan_cost
from lbitcls.quant.plan import Plan, PlanRow, aligned
from lbitcls.settings.sections import ConfigLike, Settings, read_settings
from lbitcls.utils.checkpoint import load_checkpoint
from lbitcls.utils.config import Config
from lbitcls.utils.config_text import format_config
from lbitcls.utils.errors import ConfigError, suggest
from lbitcls.utils.files import check_writable, write_whole
from lbitcls.utils.jsontext import json_text
from lbitcls.utils.library import NAME, config_library
from lbitcls.workflows.calibrating import calibration_images, first_images

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BITS = (2, 3, 4, 5, 6, 8)
POINTS = 24
"""Number of budgets for which the curve is computed."""


@dataclass(frozen=True)
class FoundBits:
    """Result of a search.

    Attributes:
        bits: Bits of each searched layer.
        errors: Error of each layer alone at each of the bits that it may have.
        uniform: Error of the calibrated network against the float one, by the bits of all searched layers.
        mixed: The same with `bits`.
        costs: Costs of the layers.
    """

    bits: Bits
    errors: Table
    uniform: dict[int, OutputError]
    mixed: OutputError
    costs: SearchCosts

    def equal(self, bits: int) -> Bits:
        """Return an assignment of the same bits to all layers."""
        return dict.fromkeys(self.bits, bits)


@dataclass(frozen=True)
class _Search:
    """Parts that all networks of a search share."""

    section: Mapping[str, Any]
    model: nn.Module
    plan: Plan
    batches: Sequence[Tensor]
    weights_only: bool

    def with_bits(self, bits: Mapping[str, int]) -> dict[str, Any]:
        """Return the section `quant_transformer` with these bits."""
        return with_bits(self.section, self.plan, bits, self.weights_only)

    def network(self, bits: Mapping[str, int]) -> nn.Module:
        """Return the calibrated network with these bits."""
        model = build_mtransformer(self.with_bits(bits))(copy.deepcopy(self.model)).eval()
        calibrate(model, self.batches, "mse")
        return model

    def error(self, model: nn.Module) -> OutputError:
        """Return the error of a network against itself in float."""
        with in_eval(model):
            with quantizing(model):
                reference = predict(model, self.batches)
            return output_error(reference, predict(model, self.batches))


def search_bits(
    cfg: ConfigLike,
    checkpoint: str | Path,
    out: str | Path,
    *,
    budget: str,
    bits: Sequence[int] = BITS,
    keep: Sequence[str] | None = None,
    weights_only: bool = False,
    measure: str = "kl",
    num_images: int = 128,
    split: str | None = None,
    target: str | None = None,
    data_root: str | None = None,
) -> FoundBits:
    """Measure each layer at each number of bits, choose the best bits under a budget, and write a config with them.

    Beside `out` a figure (`.png`) shows the trade-off, and a `.json` file has all numbers.

    Args:
        cfg: Config with `quant_transformer`: its methods and options stay, its bits are replaced.
        checkpoint: Float weights of the model.
        out: Config to write (`.py`).
        budget: Upper limit, as `Budget.read` understands it: `'size=3bit'`, `'bops=0.5x'`, ….
        bits: Numbers of bits to choose from, 2 to 8.
        keep: Full names of layers that keep the config's bits; None: those in `special_layers`.
        weights_only: True: inputs keep the config's bits; False: an input gets the bits of its layer's weight.
        measure: `'kl'` or `'fisher'` (`lbitcls.analysis.sensitivity`).
        num_images: Number of images to measure on.
        split: Part of `data` with the images, as for `calibrate_checkpoint`.
        target: Deployment target whose rules bound the choice; None: any.
        data_root: Folder to search for relative data paths.

    Raises:
        ConfigError: An argument or the config does not suit a search, or no assignment fits into the budget.
        CheckpointError: The weights do not fit.
        DependencyError: scipy is not installed.
    """
    require_solver()
    settings = read_settings(cfg)
    settings.require(("model", "data", "quant_transformer"), "a search for bits")
    limit = Budget.read(budget)
    _check(settings, bits, measure, num_images)
    out = _check_out(out, checkpoint, *filter(None, [settings.source.filename]))
    with open_session(settings) as session:
        search = _begin(settings, session, checkpoint, split, num_images, weights_only, data_root)
        rows = plan_cost(search.plan, search.model, search.batches[0][:1])
        names = _names([cost.row for cost in rows], keep)
        costs = SearchCosts(limit, rows, names, weights_only)
        require_affordable(costs.table(dict.fromkeys(names, bits)), costs.limit())
        errors, uniform = _measure(search, names, sorted(set(bits)), measure, target)
        found = assign(errors, costs.table(errors), costs.limit())
        result = FoundBits(found, errors, uniform, search.error(search.network(found)), costs)
    _write(result, _config(settings, checkpoint, search.with_bits(found), out, result), out)
    _report(result, out)
    return result


def _begin(
    settings: Settings,
    session: Session,
    checkpoint: str | Path,
    split: str | None,
    num_images: int,
    weights_only: bool,
    data_root: str | None,
) -> _Search:
    """Return the float network, its plan and the images."""
    loader = calibration_images(settings, split, session, data_root)
    batches = [batch.to(session.device) for batch in first_images(loader, num_images)]
    model = make_model(replace(settings, quant_transformer=None), session, pretrained=False, data_root=data_root)
    loaded = load_checkpoint(model, checkpoint, logger=session.logger)
    state = loaded["state_dict"]
    if any(bool(state[key]) for key in state if key.endswith("_quantizer.enabled")):
        raise ConfigError(f"{checkpoint} is quantized; a search needs the float checkpoint that it was made from.")
    section = settings.quant_transformer or {}
    plan = build_mtransformer(section).plan(model)
    return _Search(section, model.to(session.device).eval(), plan, batches, weights_only)


def _check(settings: Settings, bits: Sequence[int], measure: str, num_images: int) -> None:
    if settings.progressive is not None:
        raise ConfigError("a search for bits does not combine with progressive, which changes them; leave it out.")
    if not bits or any(b not in range(2, 9) for b in bits):
        raise ConfigError(f"--bits must be numbers from 2 to 8; got {' '.join(map(str, bits))}.")
    if measure not in MEASURES:
        raise ConfigError(
            f"--measure must be one of {', '.join(MEASURES)}; got '{measure}'{suggest(measure, MEASURES)}"
        )
    if num_images < 1:
        raise ConfigError(f"--num-images must be an integer ≥ 1; got {num_images}.")


def _check_out(out: str | Path, *inputs: str | Path) -> Path:
    """Return the config to write, after a check that it and what is written beside it replace no file that is read."""
    path = check_writable(out, "--out", *inputs)
    if path.suffix != ".py":
        raise ConfigError(f"--out must be a config to write, with the suffix .py; got {path}.")
    for suffix in (".png", ".json"):
        check_writable(path.with_suffix(suffix), f"--out (its {suffix} file)", *inputs)
    return path


def _names(rows: Sequence[PlanRow], keep: Sequence[str] | None) -> list[str]:
    """Return the names of the layers whose bits are searched."""
    quantized = [row.name for row in rows if row.quantized]
    if unknown := [name for name in keep or () if name not in quantized]:
        raise ConfigError(f"--keep {unknown[0]}: the config quantizes no such layer{suggest(unknown[0], quantized)}")
    kept = {row.name for row in rows if row.rule.startswith("special_layers")} if keep is None else set(keep)
    found = [row.name for row in rows if row.name not in kept and row.quantized and can_be_searched(row)]
    if not found:
        raise ConfigError("there is no layer to search: all that the config quantizes keep their bits (--keep).")
    return found


def _measure(
    search: _Search, names: Sequence[str], bits: Sequence[int], measure: str, target: str | None
) -> tuple[dict[str, dict[int, float]], dict[int, OutputError]]:
    """Return each layer's error at the bits that it may have, and the network's error with the same bits everywhere."""
    errors: dict[str, dict[int, float]] = {name: {} for name in names}
    uniform, refused = {}, {}
    for number in bits:
        model = search.network(dict.fromkeys(names, number))
        problems = {} if target is None else _problems(model, target)
        for name, error in errors_alone(model, names, search.batches, measure, shown=True).items():
            if name in problems:
                refused[name] = f"{number} bits: {problems[name]}"
            else:
                errors[name][number] = error
        uniform[number] = search.error(model)
    if without := [name for name in names if not errors[name]]:
        raise ConfigError(f"{target} takes {without[0]} with none of the bits {list(bits)}; {refused[without[0]]}.")
    return errors, uniform


def _problems(model: nn.Module, target: str) -> dict[str, str]:
    """Return the layers that a target does not support as they are quantized, with the first reason."""
    from lbitcls.deploy.export.lowering import layer_facts
    from lbitcls.deploy.targets.base import OPSETS, find_target

    chosen = find_target(target)
    found = {fact.name: chosen.problems(fact, OPSETS[1]) for fact in layer_facts(model)}
    return {name: problems[0] for name, problems in found.items() if problems}


def _config(
    settings: Settings, checkpoint: str | Path, section: Mapping[str, Any], out: Path, result: FoundBits
) -> str:
    """Return the text of the config with the bits that were found."""
    about = (
        f'"""Bits by layer for {result.costs.budget}, found by `lbitcls search` from {Path(checkpoint).name}."""\n\n'
    )
    source = settings.source
    base = Path(source.filename or "")
    if not base.is_file() or source.pretty_text != Config.fromfile(base).pretty_text:  # options changed it
        return about + format_config({**source, "quant_transformer": section})
    changed = {"quant_transformer": {"special_layers": section["special_layers"]}}
    return about + format_config({"_base_": _path_of(base.resolve(), out), **changed})


def _path_of(base: Path, out: Path) -> str:
    """Return the path of a config as another one, in the file `out`, names it: the package's from any folder."""
    library = config_library().resolve()
    if base.is_relative_to(library):
        return str(Path(NAME, base.relative_to(library)))
    return os.path.relpath(base, out.resolve().parent)


def _write(result: FoundBits, config: str, out: Path) -> None:
    """Write the config, and beside it the figure and the numbers."""
    write_whole(out, partial(Path.write_text, data=config, encoding="utf-8"))
    save(_figure(result), out.with_suffix(".png"))
    numbers = {
        "budget": str(result.costs.budget),
        "bits": result.bits,
        "errors": result.errors,
        "kl": result.mixed.kl,
        "changed": result.mixed.changed,
        "uniform": {bits: {"kl": error.kl, "changed": error.changed} for bits, error in result.uniform.items()},
    }
    write_whole(out.with_suffix(".json"), partial(Path.write_text, data=json_text(numbers) + "\n", encoding="utf-8"))


def _figure(result: FoundBits) -> Figure:
    """Return the figure of the trade-off between costs and errors."""
    costs, errors = result.costs, result.errors
    table = costs.table(errors)
    least, most = (sum(end(of_layer.values()) for of_layer in table.values()) for end in (min, max))
    limits = [least + (most - least) * step / (POINTS - 1) for step in range(POINTS)]
    best = [assign(errors, table, limit) for limit in limits]
    curve = [(costs.total(bits), total(errors, bits)) for bits in best]
    same = [result.equal(bits) for bits in result.uniform if all(bits in of_layer for of_layer in errors.values())]
    uniform = {next(iter(bits.values())): (costs.total(bits), total(errors, bits)) for bits in same}
    return draw_bits(curve, uniform, (costs.total(result.bits), total(errors, result.bits)), costs.unit, result.bits)


def _report(result: FoundBits, out: Path) -> None:
    costs = result.costs
    rows = [(name, str(bits), f"{result.errors[name][bits]:.2e}") for name, bits in result.bits.items()]
    print("\n".join(aligned([("layer", "bits", "error alone"), *rows])))
    found = [("by layer", result.bits, result.mixed)]
    found += [(f"{bits} bits", result.equal(bits), error) for bits, error in result.uniform.items()]
    lines = [
        (what, f"{costs.total(bits):.4g}", f"{error.kl:.4f}", f"{100 * error.changed:.1f} %")
        for what, bits, error in found
    ]
    print("\n" + "\n".join(aligned([("network", costs.unit, "KL to float", "other class"), *lines])))
    print(f"\nwrote {out}, {out.with_suffix('.png').name} and {out.with_suffix('.json').name}")
