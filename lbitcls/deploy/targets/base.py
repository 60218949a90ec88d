"""What an exported model is made for: a `Target` says what it takes, how a graph is shaped, and which engine judges.

A target of one's own is a class that `@TARGETS.register_module()` makes known to `lbitcls export --target NAME` and to
`export=dict(target=NAME)`; it states only where it differs from the portable rules of the base class:

    @TARGETS.register_module(name="dsp")
    class DSP(Target):
        containers = ("int8",)
        kinds = ("Conv2d",)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

from lbitcls.deploy.passes.containers import to_uint8
from lbitcls.deploy.passes.graph import Graph, weights_of
from lbitcls.registry import TARGETS
from lbitcls.utils.errors import ConfigError, shown

OPSETS = (17, 21)
"""Lowest and highest version of ONNX's operators that is written."""
INT16_OPSET = 21  # of DequantizeLinear on 16-bit integers
INT4_OPSET = 21  # the version from which integers of 4 bits exist
INT8_RANGE = (-128, 127)


@dataclass(frozen=True, kw_only=True)
class LayerFacts:
    """A quantized layer, as a target sees it.

    Attributes:
        name: full name in the model.
        kind: float layer type, such as `Conv2d`.
        method: name of the method.
        weight_bits: bits of the weight; None: float.
        input_bits: bits of the input; None: float.
        container: type that holds the input's integers, `uint8` or `int8`; None: the input is float.
        weight_range: least and largest integer of the weight's grid; None: float.
        input_range: least and largest integer of the input's grid; None: float.
        zero_point: the input's integer that stands for 0; None: float.
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
        """Whether the input's grid has negative integers."""
        return self.input_range is not None and self.input_range[0] < 0


@dataclass(frozen=True)
class Choice:
    """The container of signed inputs, and the latency in ms by container where it was measured."""

    container: str = "int8"
    milliseconds: dict[str, float] = field(default_factory=dict)


class Target:
    """A device or runtime that exported models are made for; as it stands, whatever runs ONNX's operators.

    The class attributes say what the target takes, and the methods act on them: a subclass sets the attributes that
    differ, and overrides a method only for rules that no attribute expresses.

    Attributes:
        name: the name that it is registered under, which exported models record.
        engines: engines that verify its files, from `lbitcls.deploy.runtime.engine.ENGINES`; at least one.
        opsets: lowest and highest version of ONNX's operators that it reads.
        kinds: float types of the layers that it takes quantized; None: all.
        containers: types that may hold the integers of inputs: `uint8`, `int8` or both.
        zero_points: whether an integer other than 0 may stand for an input's 0.
        weight_bits: bits of the widest signed integers that a weight may have: 8 or 16.
        packed_weights: whether it takes weights of 4 bits, two to a byte.
    """

    engines: ClassVar[Sequence[str]] = ("onnxruntime",)
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
        """The type that holds the integers of all inputs; None: `uint8` where none is negative, else `int8`."""
        return None if "uint8" in self.containers else "int8"

    @property
    def signed_residuals(self) -> bool | None:
        """Whether skip connections in 8 bits are held on grids with negative integers; None: as the data needs."""
        return True if self.input_container == "int8" else None

    def check_options(self, opset: int, pack: bool) -> None:
        """Raise for options of an export that the target does not take.

        Raises:
            ConfigError: the opset is not written, or not read by the target; weights cannot be packed.
        """
        lowest, highest = self.opsets
        if not isinstance(opset, int) or not lowest <= opset <= highest:
            reader = "" if self.opsets == OPSETS else f" for {self.name}"
            raise ConfigError(
                f"opset {opset} is not written{reader}; it is {lowest} to {highest} (default {OPSETS[1]})."
            )
        if pack and not self.packed_weights:
            raise ConfigError(f"{self.name} takes no layers with packed weights; export without pack.")
        if pack and opset < INT4_OPSET:
            raise ConfigError(
                f"packed weights are INT4 tensors, which ONNX has from opset {INT4_OPSET} on; got opset {opset}."
            )

    def problems(self, layer: LayerFacts, opset: int) -> list[str]:
        """Why the target, or the opset, cannot take a quantized layer, each with what to do; empty: it can."""
        found = []
        if self.kinds is not None and layer.kind not in self.kinds:
            taken = ", ".join(self.kinds)
            found.append(f"{self.name} takes no quantized {layer.kind} ({taken} only); leave it float")
        if layer.weight_range is not None and not _fits(layer.weight_range, self.weight_bits):
            found.append(
                f"its weights' integers do not fit {self.weight_bits} bits; train them with at most "
                f"{self.weight_bits - 2} bits, or by UQ or LSQ"
            )
        elif layer.weight_range is not None and not _fits(layer.weight_range, 8) and opset < INT16_OPSET:
            found.append(f"its weights' integers need 16 bits, which ONNX has from opset {INT16_OPSET} on")
        if layer.input_range is not None:
            found += self._input_problems(layer, *layer.input_range)
        return found

    def _input_problems(self, layer: LayerFacts, low: int, high: int) -> list[str]:
        found = []
        if layer.zero_point and not self.zero_points:
            found.append("its input has a zero point; train it with LSQ or PACT, or signed=True, whose zero point is 0")
        if high > INT8_RANGE[1] and "uint8" not in self.containers:
            found.append(
                f"its input's integers go up to {high}, int8's to {INT8_RANGE[1]}; train it with num_bit_a=7 or "
                "signed=True"
            )
        if low < 0 and "int8" not in self.containers and not self.zero_points:
            found.append(f"its input's integers go down to {low}, uint8's to 0; train it with signed=False")
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

    def shape(self, graph: Graph) -> None:
        """Change a graph of integer layers, in place, to what the target computes right or fast; here, nothing."""

    def shape_backbone(self, graph: Graph) -> None:
        """As `shape`, for a model whose backbone is one of torchvision's quantized networks, as the last pass."""

    def choose_container(self, graph: Graph, input_shape: tuple[int, int, int] | None) -> Choice:
        """Choose the container of all signed inputs, and bring the graph to it.

        Here it is `int8`, as the graph has it, unless the target takes `uint8` alone.

        Args:
            graph: after `shape`; its signed inputs are held in int8.
            input_shape: (C, H, W) of an image; None: a part of the graph is missing yet, so that nothing can run it.
        """
        if "int8" in self.containers:
            return Choice()
        to_uint8(graph)
        return Choice("uint8")

    def place(self, layer: LayerFacts, choice: Choice) -> LayerFacts:
        """A layer with the container that its input has in the file."""
        if layer.container is None:
            return layer
        if self.input_container is not None:
            return replace(layer, container=self.input_container)
        return replace(layer, container=choice.container) if layer.signed else layer

    def faults(self, graph: Graph) -> list[str]:
        """What the target would not take in a finished graph, by structure, with the nodes' names; empty: nothing."""
        found = []
        for node in [node for node in graph.nodes if node.op_type == "QuantizeLinear"]:
            zero = graph.array(node.input[2])
            container = "uint8" if zero is None else zero.dtype.name
            if container not in self.containers:
                found.append(f"{node.name} makes {container}, not {' or '.join(self.containers)}")
            if zero is not None and zero.any() and not self.zero_points:
                found.append(f"{node.name} has a zero point")
        for weight in weights_of(graph):
            codes = graph.array(weight.input[0])
            if codes is not None and 8 * codes.dtype.itemsize > self.weight_bits:
                found.append(f"{weight.name} has weights of {8 * codes.dtype.itemsize} bits")
        return found

    def check_graph(self, graph: Graph) -> None:
        """Raise `ConfigError` where a finished graph has `faults`."""
        if faults := self.faults(graph):
            raise ConfigError(f"the file is not what {self.name} takes: {'; '.join(faults)}")


def find_target(name: str) -> Target:
    """The target that is registered as `name`.

    Raises:
        ConfigError: there is none, or what is registered is no `Target`.

    Example:
        >>> find_target("tensorrt").containers
        ('int8',)
    """
    if not isinstance(name, str):
        raise ConfigError(f"a target is given by its name: {', '.join(TARGETS.names())}; got {shown(name)}.")
    kind = TARGETS.find(name)
    if not (isinstance(kind, type) and issubclass(kind, Target)):
        raise ConfigError(f"the target '{name}' is {shown(kind)}; it should be a subclass of {__name__}.Target.")
    return kind(name)


def _fits(integers: tuple[int, int], bits: int) -> bool:
    """Whether signed integers of so many bits hold a range."""
    return -(2 ** (bits - 1)) <= integers[0] and integers[1] < 2 ** (bits - 1)
