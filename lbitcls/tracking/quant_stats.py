"""`QuantStatsHook`: statistics of a run's quantizers, and warnings about ill layers.

Every `interval` iterations the model sees a few images of the validation set in eval mode and float32, on rank 0
(`lbitcls.analysis.vital_signs`), and the `WATCHED` steps before are watched (`lbitcls.tracking.step_watch`). The
results are a record of mode `quantizers`:

    {"mode": "quantizers", "epoch": 3, "iter": 100, "layers": {"backbone.conv1": {"weight": {"scale": …}, "input": …}}}

A layer that is ill in two inspections in a row (a broken one in the first) causes a warning, once for each illness.
The hook does not change a run: it is bit-identical with and without it, and its own state is in the checkpoints.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from lbitcls.analysis.illnesses import FATAL, Finding, diagnose
from lbitcls.analysis.vital_signs import VitalSigns, take_signs
from lbitcls.core.hooks.hook import PRIORITIES, Hook
from lbitcls.core.hooks.log import QUANTIZERS
from lbitcls.quant.calibration import named_quantizers
from lbitcls.quant.weight_oscillations import quantizes
from lbitcls.registry import HOOKS
from lbitcls.tracking.probe import probed_dataset, read_probe
from lbitcls.tracking.step_watch import StepWatch
from lbitcls.utils.dist import is_main
from lbitcls.utils.errors import ConfigError, require_count

if TYPE_CHECKING:
    from lbitcls.core.runner import EpochRunner

WATCHED = 8
"""Number of consecutive iterations to watch before an inspection."""

Key = tuple[str, str, str]  # illness, layer, part


@HOOKS.register_module()
class QuantStatsHook(Hook):
    """Hook that logs statistics of the quantizers to `log.jsonl` and TensorBoard, and warns about ill layers.

    Of each quantizer: `scale` (the median of several), `clipped` (a share), `levels_used` of `levels`, `sqnr_db`,
    `gradient_ratio`; of weights also `oscillating` (a share). While the quantizers are off (`calibration.epoch`),
    nothing is inspected.

    Args:
        interval: Iterations between two inspections, at least 1; the last iteration is always followed by one.
        images: Number of images to inspect, at least 1.

    Example:
        >>> QuantStatsHook(interval=50).interval
        50
    """

    priority = PRIORITIES["NORMAL"]

    def __init__(self, interval: int = 100, images: int = 32) -> None:
        self.interval = require_count("QuantStatsHook: interval", interval, 1)
        self.images = require_count("QuantStatsHook: images", images, 1)
        self.watch = StepWatch()
        self.warned: set[Key] = set()
        self._suspected: set[Key] = set()
        self._watching = False
        self._batch: Tensor | None = None
        self._failed = False

    def before_run(self, runner: EpochRunner) -> None:
        if not any(True for _ in named_quantizers(runner.module)):
            raise ConfigError(
                "QuantStatsHook needs quantizers; the model has none. Add quant_transformer, or remove it."
            )
        self.watch.to(runner.step.device)

    def after_step(self, runner: EpochRunner) -> None:
        if self._left(runner, runner.iter + 1) < WATCHED and self._is_on(runner):
            self.watch.follow(runner.module, starts=not self._watching)
            self._watching = True

    def after_iter(self, runner: EpochRunner) -> None:
        if self._left(runner, runner.iter) or not self._is_on(runner):
            return
        self._watching = False
        try:
            self._inspect(runner)
        except Exception as error:  # whatever it is, it must not end the run
            self._failed = True
            runner.logger.warning("QuantStatsHook: Inspecting no more: %s: %s", type(error).__name__, error)

    def _left(self, runner: EpochRunner, done: int) -> int:
        """Return the number of iterations after `done` of them until the next inspection."""
        return min(-done % self.interval, runner.max_epochs * len(runner.loader) - done)

    def _is_on(self, runner: EpochRunner) -> bool:
        return is_main() and not self._failed and any(quantizes(q) for _, q in named_quantizers(runner.module))

    def _inspect(self, runner: EpochRunner) -> None:
        if self._batch is None:
            batch = read_probe(probed_dataset(runner)[1], self.images)
            self._batch = runner.to_device(batch)["img"]
        signs = take_signs(runner.module, [self._batch], self.watch.oscillating())
        layers = _layers(signs, self.watch.gradient_ratios())
        runner.publish({"mode": QUANTIZERS, "epoch": runner.epoch + 1, "iter": runner.inner_iter, "layers": layers})
        found = {(f.illness, f.layer, f.part): f for f in diagnose(signs)}
        for key, finding in found.items():
            if key not in self.warned and (finding.severity == FATAL or key in self._suspected):
                self._warn(runner, key, finding)
        self._suspected = set(found)

    def _warn(self, runner: EpochRunner, key: Key, finding: Finding) -> None:
        self.warned.add(key)
        runner.logger.warning("%s", finding.text)

    def state_dict(self) -> dict[str, Any]:
        keys = {"warned": sorted(map(list, self.warned)), "suspected": sorted(map(list, self._suspected))}
        return {**keys, "watching": self._watching, **self.watch.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.warned, self._suspected = ({_key(key) for key in state[name]} for name in ("warned", "suspected"))
        self._watching = bool(state["watching"])
        self.watch.load_state_dict(state)


def _key(parts: list[str]) -> Key:
    illness, layer, part = parts
    return illness, layer, part


def _layers(signs: VitalSigns, ratios: Mapping[tuple[str, str], float]) -> dict[str, dict[str, dict[str, float]]]:
    """Return the record's `layers`: measures by layer and role."""
    layers: dict[str, dict[str, dict[str, float]]] = {}
    for grid in signs.grids:
        measures = {
            "scale": grid.scale,
            "clipped": grid.clipped,
            "levels_used": grid.levels_used,
            "levels": grid.levels,
            "sqnr_db": grid.sqnr_db,
            "gradient_ratio": ratios.get((grid.layer, grid.role)),
            "oscillating": signs.oscillating.get(grid.layer) if grid.role == "weight" else None,
        }
        known = {name: value for name, value in measures.items() if value is not None}
        layers.setdefault(grid.layer, {})[grid.role] = known
    return layers


def scalars(record: Mapping[str, Any]) -> dict[str, float]:
    """Return a record's values by TensorBoard tag, such as `train_weight_sqnr_db/backbone.conv1`."""
    return dict(_tagged(record["layers"]))


def _tagged(layers: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Iterator[tuple[str, float]]:
    for layer, roles in layers.items():
        for role, measures in roles.items():
            for name, value in measures.items():
                if name != "levels":
                    yield f"train_{role}_{name}/{layer}", value
