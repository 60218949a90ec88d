"""Base class of deployment targets: what a target supports, how it shapes a graph, and which engine judges its files.

`@TARGETS.register_module()` makes a target of your own available to `lbitcls export --target NAME` and to
`export=dict(target=NAME)`; its class states only where it differs from the portable rules of the base class:

    @TARGETS.register_module(name="dsp")
    class DSP(Target):
        containers = ("int8",)
        kinds = ("Conv2d",)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from lbitcls.deploy.passes.containers import to_uint8
from lbitcls.deploy.passes.graph import Graph, weights_of
from lbitcls.deploy.runtime.metadata import ModelInfo, sealed
from lbitcls.registry import TARGETS
from lbitcls.utils.errors import ConfigError, shown

if TYPE_CHECKING:
    from onnx import ModelProto

OPSETS = (17, 21)
"""Lowest and highest opset that the export writes."""
INT16_OPSET = 21  # first opset whose DequantizeLinear accepts 16-bit integers
INT4_OPSET = 21  # first opset with 4-bit integers
INT8_RANGE = (-128, 127)


@dataclass(frozen=True, kw_only=True)
class LayerFacts:
    """Facts about a quantized layer that a target decides by.

    Attributes:
        name: Full name in the model.
        kind: Float layer type, such as `Conv2d`.
        method: Name of the quantization method.
        weight_bits: Bits of the weight; None: float.
        input_bits: Bits of the input; None: float.
        container: Integer type of the input, `uint8` or `int8`; None: the input is float.
        weight_range: Smallest and largest integer of the weight's grid; None: float.
        input_range: Smallest and largest integer of the input's grid; None: float.
        zero_point: Integer that represents 0 in the input; None: float.
    """

    name: str
    kind: str
    method: str
    weight_bits: int | None
    input_bits: int | None
    container: str | None
    weight_range: tuple[int, int] | None
    input_range: tuple[int, int] | None
    zero_point: int | None

    @property
    def signed(self) -> bool:
        """True if the input's grid has negative integers."""
        return self.input_range is not None and self.input_range[0] < 0


@dataclass(frozen=True)
class Choice:
    """Container of signed inputs, and the latency in ms by container, if measured."""

    container: str = "int8"
    milliseconds: dict[str, float] = field(default_factory=dict)


class Target:
    """Device or runtime that models are exported for; this base class: anything that runs ONNX's operators.

    The class attributes state what the target supports, and the methods act on them: a subclass sets the attributes
    that differ, and overrides a method only for rules that no attribute expresses.

    Attributes:
        name: Name under which it is registered; exported models record it.
        suffix: Suffix of what is written; an empty one stands for a folder.
        extra: Extra of lbitcls that installs what writing needs.
        packages: Packages that writing needs.
        engines: Engines that verify its files, by their names in `lbitcls.registry.ENGINES`; at least one.
        needs_images: True if `fill_grids` needs calibration images.
        rounds_between_layers: True if its engines round where training does not: on the way from one layer to the next.
        opsets: Lowest and highest opset that it reads.
        kinds: Float types of the layers that it supports quantized; None: all.
        containers: Integer types that it supports for inputs: `uint8`, `int8` or both.
        zero_points: True if an input's zero point may differ from 0.
        weight_bits: Bits of the widest signed integers that it supports for weights: 8 or 16.
        packed_weights: True if it supports 4-bit weights, two per byte.
    """

    suffix: ClassVar[str] = ".onnx"
    extra: ClassVar[str] = "deploy"
    packages: ClassVar[Sequence[str]] = ()
    engines: ClassVar[Sequence[str]] = ("onnxruntime",)
    needs_images: ClassVar[bool] = False
    rounds_between_layers: ClassVar[bool] = False
    opsets: ClassVar[tuple[int, int]] = OPSETS
    kinds: ClassVar[Sequence[str] | None] = None
    containers: ClassVar[Sequence[str]] = ("uint8", "int8")
    zero_points: ClassVar[bool] = True
    weight_bits: ClassVar[int] = 16
    packed_weights: ClassVar[bool] = True

    def __init__(self, name: str = "") -> None:
        self.name = name or type(self).__name__

    @property
    def input_container(self) -> str | None:
        """Integer type of all inputs; None: `uint8` if no integer is negative, else `int8`."""
        return None if "uint8" in self.containers else "int8"

    @property
    def signed_residuals(self) -> bool | None:
        """True if skip connections in 8 bits need grids with negative integers; None: as the data needs."""
        return True if self.input_container == "int8" else None

    def check_options(self, opset: int, pack: bool) -> None:
        """Check the options of an export.

        Raises:
            ConfigError: The export or the target does not support the opset, or the weights cannot be packed.
        """
        lowest, highest = self.opsets
        if not isinstance(opset, int) or not lowest <= opset <= highest:
            reader = "" if self.opsets == OPSETS else f" for {self.name}"
            raise ConfigError(
                f"opset {opset} is not supported{reader}; use {lowest} to {highest} (default {OPSETS[1]})."
            )
        if pack and not self.packed_weights:
            raise ConfigError(f"{self.name} does not support packed weights; export without pack.")
        if pack and opset < INT4_OPSET:
            raise ConfigError(
                f"packed weights are INT4 tensors, which need opset {INT4_OPSET} or higher; got opset {opset}."
            )

    def choose_runtime(self, runtime: str) -> None:
        """Choose where the runtime of a web page comes from; other targets have the default alone, `'copy'`.

        Raises:
            ConfigError: The target does not write a page.
        """
        if runtime != "copy":
            raise ConfigError(f"runtime={runtime!r} is for web pages, and {self.name} writes none; leave it out.")

    def check_preparation(
        self, part: str, pipeline: Sequence[dict[str, Any]], input_shape: tuple[int, int, int]
    ) -> None:
        """Check, before the model is traced, that the target can prepare images for it; here: no-op.

        Args:
            part: Part of the model that is exported.
            pipeline: Test pipeline.
            input_shape: (C, H, W) of an image.

        Raises:
            ConfigError: It cannot.
        """

    def problems(self, layer: LayerFacts, opset: int) -> list[str]:
        """Return why the target or the opset does not support a layer, each with what to do; empty if it does."""
        found = []
        if self.kinds is not None and layer.kind not in self.kinds:
            taken = ", ".join(self.kinds)
            found.append(f"{self.name} does not support a quantized {layer.kind} ({taken} only); leave it float")
        if layer.weight_range is not None and not _fits(layer.weight_range, self.weight_bits):
            found.append(
                f"its integer weights do not fit into {self.weight_bits} bits; train them with at most "
                f"{self.weight_bits - 2} bits, or with UQ or LSQ"
            )
        elif layer.weight_range is not None and not _fits(layer.weight_range, 8) and opset < INT16_OPSET:
            found.append(f"its integer weights need 16 bits, and so opset {INT16_OPSET} or higher")
        if layer.input_range is not None:
            found += self._input_problems(layer, *layer.input_range)
        return found

    def _input_problems(self, layer: LayerFacts, low: int, high: int) -> list[str]:
        found = []
        if layer.zero_point and not self.zero_points:
            found.append("its input has a zero point; train it with LSQ, PACT or signed=True, whose zero point is 0")
        if high > INT8_RANGE[1] and "uint8" not in self.containers:
            found.append(
                f"its input's integers reach {high}, but int8 ends at {INT8_RANGE[1]}; train it with num_bit_a=7 or "
                "signed=True"
            )
        if low < 0 and "int8" not in self.containers and not self.zero_points:
            found.append(f"its input's integers reach {low}, but uint8 starts at 0; train it with signed=False")
        return found

    def check_layers(self, layers: Sequence[LayerFacts], opset: int) -> None:
        """Raise `ConfigError` with the names of all layers that have `problems`."""
        problems: dict[str, list[str]] = {}
        for layer in layers:
            for problem in self.problems(layer, opset):
                problems.setdefault(problem, []).append(layer.name)
        if problems:
            lines = "".join(f"\n  {', '.join(names)}: {problem}" for problem, names in problems.items())
            raise ConfigError(f"these layers cannot be exported for {self.name} at opset {opset}:{lines}")

    def check_additions(self, operands: Sequence[LayerFacts]) -> None:
        """Raise `ConfigError` with the names of the operands of additions whose grids the target does not support."""
        found = [o.name for o in operands if o.input_range is not None and self._input_problems(o, *o.input_range)]
        if found:
            raise ConfigError(
                f"{self.name} does not support the integers of these skip connections: {', '.join(found)}. Train "
                "without residual_bits; lbitcls export --residual-bits 8 then chooses integers for the target."
            )

    def shape(self, graph: Graph) -> None:
        """Change a graph of integer layers in place, so that the target computes it correctly or fast; here: no-op."""

    def fill_grids(self, graph: Graph, batches: Sequence[np.ndarray]) -> None:
        """Give the tensors between layers that training left in float a grid, from calibration images; here: no-op.

        Args:
            graph: Graph after `shape` and `choose_container`.
            batches: float32 images (N, C, H, W), as the test pipeline returns them; called if `needs_images`.
        """

    def foreign(self, folder: Path) -> list[str]:
        """Return the entries of a folder that an export for this target does not write, and so may not remove."""
        return sorted(entry.name for entry in folder.iterdir())

    def write(self, model: ModelProto, info: ModelInfo, path: Path) -> None:
        """Write the finished graph, with its metadata, to a temporary file or folder, which the caller renames.

        Raises:
            ConfigError: The target cannot express the graph; names nodes and remedy, and nothing is written.
        """
        path.write_bytes(sealed(model))

    def shape_backbone(self, graph: Graph) -> None:
        """Shape a model whose backbone is one of torchvision's quantized networks; the last pass. Here: no-op."""

    def choose_container(self, graph: Graph, input_shape: tuple[int, int, int] | None) -> Choice:
        """Choose the container of all signed inputs, and convert the graph to it.

        Here: `int8`, which the graph has already, unless the target supports only `uint8`.

        Args:
            graph: Graph after `shape`; its signed inputs are int8.
            input_shape: (C, H, W) of an image; None: a part of the graph is still missing, so that it cannot run.
        """
        if "int8" in self.containers:
            return Choice()
        to_uint8(graph)
        return Choice("uint8")

    def place(self, layer: LayerFacts, choice: Choice) -> LayerFacts:
        """Return the layer with the container that its input has in the exported model."""
        if layer.container is None:
            return layer
        if self.input_container is not None:
            return replace(layer, container=self.input_container)
        return replace(layer, container=choice.container) if layer.signed else layer

    def faults(self, graph: Graph) -> list[str]:
        """Return what the target rejects in a finished graph's structure, with the nodes' names; empty if nothing."""
        found = []
        for node in [node for node in graph.nodes if node.op_type == "QuantizeLinear"]:
            zero = graph.array(node.input[2])
            container = "uint8" if zero is None else zero.dtype.name
            if container not in self.containers:
                found.append(f"{node.name} outputs {container}, not {' or '.join(self.containers)}")
            if zero is not None and zero.any() and not self.zero_points:
                found.append(f"{node.name} has a zero point")
        for weight in weights_of(graph):
            codes = graph.array(weight.input[0])
            if codes is not None and 8 * codes.dtype.itemsize > self.weight_bits:
                found.append(f"{weight.name} has weights of {8 * codes.dtype.itemsize} bits")
        return found

    def check_graph(self, graph: Graph) -> None:
        """Raise `ConfigError` if a finished graph has `faults`."""
        if faults := self.faults(graph):
            raise ConfigError(f"the exported model breaks the rules of {self.name}: {'; '.join(faults)}")


def find_target(name: str) -> Target:
    """Return the target registered as `name`.

    Raises:
        ConfigError: There is no such target, or the registered object is not a `Target`.

    Example:
        >>> find_target("tensorrt").containers
        ('int8',)
    """
    if not isinstance(name, str):
        raise ConfigError(f"target must be a name: {', '.join(TARGETS.names())}; got {shown(name)}.")
    kind = TARGETS.find(name)
    if not (isinstance(kind, type) and issubclass(kind, Target)):
        raise ConfigError(f"the target '{name}' is {shown(kind)}; it must be a subclass of {__name__}.Target.")
    return kind(name)


def _fits(integers: tuple[int, int], bits: int) -> bool:
    """Return True if signed integers of `bits` bits can represent a range."""
    return -(2 ** (bits - 1)) <= integers[0] and integers[1] < 2 ** (bits - 1)
