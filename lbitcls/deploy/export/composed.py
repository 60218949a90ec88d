"""Export of a model whose backbone is already integer: the backbone's graph, unchanged, followed by the head.

`IntegerBackbone` has its own ONNX file. A single node stands in for it while the rest of the model is traced; at the
end, that file's graph replaces the node, and no weight, scale or zero point changes. A quantized network of torchvision
has no such file; it expresses its integers in plain operations, which are traced with the rest.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from lbitcls.deploy.passes.graph import Graph
from lbitcls.deploy.runtime.metadata import ModelInfo, read_onnx
from lbitcls.deploy.targets.base import Choice, Target
from lbitcls.utils.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from onnx import ModelProto

_DOMAIN, _KIND = "lbitcls", "Backbone"


@runtime_checkable
class ExportedBackbone(Protocol):
    """Backbone that runs an exported model: `IntegerBackbone`.

    Attributes:
        path: ONNX file.
        info: Metadata in the file.
        digest: SHA-256 of the file that the model was built with.
    """

    path: Path
    info: ModelInfo
    digest: bytes


class _StandIn(nn.Module):
    """Single node that stands in for a backbone's graph.

    Args:
        shapes: Shapes of the features, without N.
    """

    def __init__(self, shapes: Sequence[Sequence[int]]) -> None:
        super().__init__()
        self.shapes = shapes

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        shapes = [(image.shape[0], *shape) for shape in self.shapes]
        kind, kinds = f"{_DOMAIN}::{_KIND}", [torch.float32] * len(shapes)
        return tuple(torch.onnx.ops.symbolic_multi_out(kind, (image,), dtypes=kinds, shapes=shapes, version=1))


@dataclass(frozen=True)
class Carried:
    """Contribution of an integer backbone to an exported model; empty for any other model.

    Attributes:
        opset: Opset of the exported model.
        backbone: Module to trace instead of the backbone; None: the backbone itself.
        layers: Records of the backbone's integer layers, as in `ModelInfo.layers`.
        residual_bits: Bits of the backbone's skip connections.
        graph: Graph that replaces the stand-in; None: there is no stand-in.
    """

    opset: int
    backbone: nn.Module | None = None
    layers: list[dict[str, Any]] = field(default_factory=list)
    residual_bits: int | None = None
    graph: ModelProto | None = None

    def traceable(self, lowered: Any) -> nn.Module:
        """Return the lowered model with the module to trace as its backbone."""
        if self.backbone is not None:
            lowered.backbone = self.backbone
        return lowered

    def choose_container(self, graph: Graph, target: Target, input_shape: tuple[int, int, int]) -> Choice:
        """Choose as `Target.choose_container` does, without measuring if the graph cannot run yet."""
        return target.choose_container(graph, input_shape if self.graph is None else None)

    def insert(self, graph: Graph, target: Target) -> None:
        """Replace the stand-in by the backbone's graph; shape a traced backbone for the target."""
        if self.graph is not None:
            _insert(graph, Graph(self.graph))
        elif self.backbone is not None:
            target.shape_backbone(graph)

    def summary(self, found: dict[str, Any]) -> dict[str, Any]:
        """Return `method` and `bits` of the whole exported model, given those of the other layers."""
        if not self.layers:
            return found
        methods = {record["method"] for record in self.layers} | set(found["method"].split("+")) - {"float"}
        bits = Counter(f"W{record['weight_bits'] or 32}A{record['input_bits'] or 32}" for record in self.layers)
        return {"method": "+".join(sorted(methods)), "bits": bits.most_common(1)[0][0]}


def carry_backbone(model: nn.Module, input_shape: tuple[int, int, int], opset: int, target: Target) -> Carried:
    """Return the contribution of `model`'s backbone to the exported model.

    Args:
        model: Classifier, or a module with a classifier's `backbone`.
        input_shape: (C, H, W) of an image.
        opset: Requested opset; the exported model gets that of an `IntegerBackbone`'s file if it is lower.
        target: Requested target.

    Raises:
        ConfigError: The backbone's file is for another image shape, a higher opset or another target.
        CheckpointError: The backbone's file is not the one that the model was built with.
    """
    backbone: Any = getattr(model, "backbone", None)
    if isinstance(backbone, ExportedBackbone):
        return _from_file(backbone, input_shape, opset, target)
    if not hasattr(backbone, "spelled_out"):
        return Carried(opset)
    if not target.zero_points or "uint8" not in target.containers:
        raise ConfigError(
            f"torchvision's quantized networks have zero points, which {target.name} does not support: use cpu."
        )
    common = dict(method="torchvision", weight_bits=8, input_bits=8, container="uint8", packed=False)
    layers = [
        {"name": f"backbone.{layer['name']}", "kind": layer["kind"], **common} for layer in backbone.integer_layers()
    ]
    return Carried(opset, backbone.spelled_out(), layers)


def refuse_residuals(model: nn.Module) -> None:
    """Raise `ConfigError` if skip connections can no longer be quantized, because the backbone is already integer."""
    backbone = getattr(model, "backbone", None)
    if isinstance(backbone, ExportedBackbone) or hasattr(backbone, "spelled_out"):
        raise ConfigError(
            "residual_bits quantizes float skip connections; those of an integer backbone are exported unchanged: "
            "export the backbone's file with --residual-bits, or omit the option."
        )


def _from_file(backbone: ExportedBackbone, input_shape: tuple[int, int, int], opset: int, target: Target) -> Carried:
    path, info = backbone.path, backbone.info
    if hashlib.sha256(path.read_bytes()).digest() != backbone.digest:
        raise CheckpointError(f"{path} has changed since the model was built; build the model again.")
    proto = read_onnx(path)
    own = next(entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx"))
    again = "export the backbone again"
    if tuple(input_shape) != tuple(info.input_shape):
        raise ConfigError(
            f"{path} expects images {tuple(info.input_shape)}, but the test pipeline returns {tuple(input_shape)}: "
            f"change the pipeline, or {again}."
        )
    if own > opset:
        raise ConfigError(f"{path} has opset {own}, above the requested {opset}; {again} with opset {opset}.")
    if info.target != target.name:
        raise ConfigError(f"{path} was exported for {info.target}, not for {target.name}; {again} for {target.name}.")
    stand_in = _StandIn(info.feature_shapes or [])
    return Carried(own, stand_in, [dict(layer) for layer in info.layers], info.residual_bits, proto)


def _insert(graph: Graph, inner: Graph) -> None:
    """Replace the stand-in in `graph` by the nodes and constants of `inner`; values stay, names may change."""
    node = next(node for node in graph.nodes if (node.domain, node.op_type) == (_DOMAIN, _KIND))
    names = dict(zip((value.name for value in inner.model.graph.output), node.output, strict=True))
    names[inner.model.graph.input[0].name] = node.input[0]
    own = [*inner.constants, *(output for inside in inner.nodes for output in inside.output)]
    outer = {*graph.constants, *(name for outside in graph.nodes for name in (*outside.input, *outside.output))}
    taken = {*own, *outer}
    for name in (name for name in own if name and name not in names):
        free = (f"{name}_{number}" for number in count(2))
        names[name] = name if name not in outer else next(new for new in free if new not in taken)
        taken.add(names[name])
    for name, tensor in inner.constants.items():
        tensor.name = names[name]
        graph.constants[tensor.name] = tensor
    for inside in inner.nodes:
        inside.input[:] = [names.get(name, name) for name in inside.input]
        inside.output[:] = [names.get(name, name) for name in inside.output]
    at = graph.nodes.index(node)
    graph.nodes[at : at + 1] = inner.nodes
    _keep_domains(graph)


def _keep_domains(graph: Graph) -> None:
    """Remove the stand-in's domain from the opset imports."""
    kept = [entry for entry in graph.model.opset_import if entry.domain != _DOMAIN]
    del graph.model.opset_import[:]
    graph.model.opset_import.extend(kept)
