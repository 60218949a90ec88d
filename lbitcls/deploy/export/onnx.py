"""Exports a model with integer weights: traces it to ONNX, runs graph passes, shapes and writes it for the target."""

from __future__ import annotations

import contextlib
import io
import logging
import time
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lbitcls.deploy.export.composed import carry_backbone
from lbitcls.deploy.export.lowering import addition_facts, check_expressible, check_finite, layer_facts, lower
from lbitcls.deploy.export.residuals import residual_bits
from lbitcls.deploy.passes.graph import (
    Graph,
    check_flat,
    drop_repeated,
    name_nodes,
    separate_weights,
    settle_signs,
    to_opset_17,
)
from lbitcls.deploy.passes.maxima import pool_integers
from lbitcls.deploy.passes.norms import absorb_norms
from lbitcls.deploy.passes.packing import pack_weights
from lbitcls.deploy.runtime.engine import cannot_run
from lbitcls.deploy.runtime.metadata import ModelInfo, model_file, require, write_info
from lbitcls.deploy.targets.base import LayerFacts, Target, find_target
from lbitcls.deploy.verification.live_model import check_called, check_lowered, check_weights_in_use
from lbitcls.quant.computed_weights import copy_model, plain_copy
from lbitcls.utils.errors import ConfigError, reason_of
from lbitcls.utils.files import write_whole
from lbitcls.utils.folders import write_folder
from lbitcls.version import __version__

if TYPE_CHECKING:
    from onnx import ModelProto

logger = logging.getLogger("lbitcls")
PARTS = ("model", "backbone")
_TRACED = 18  # lowest opset that the tracer writes; opset 17 is converted from it
_ROOT = "traced"
_RECORDED = ("name", "kind", "method", "weight_bits", "input_bits", "container")  # of each layer


@dataclass(frozen=True)
class ExportReport:
    """Result of an export.

    Attributes:
        path: Exported file.
        info: Metadata in the file.
        opset: ONNX operator set version.
        size: Size of the file in bytes.
        unpacked_size: Size in bytes that the file would have without `pack`.
        float_size: Size in bytes of the model's parameters and running statistics in float32.
        seconds: Duration of the export in seconds.
        norms_left: BatchNormalization nodes that stay, because no integer layer precedes them.
        not_packed: Layers of 4 bits or fewer that stay in int8 despite `pack`, with the reason.
        container_ms: Latency in ms by container, if the container of signed inputs was chosen by measurement.
        cannot_run: Engines of the target that cannot run the exported model, with the reason.
    """

    path: Path
    info: ModelInfo
    opset: int
    size: int
    unpacked_size: int
    float_size: int
    seconds: float
    norms_left: list[str]
    not_packed: dict[str, str]
    container_ms: dict[str, float]
    cannot_run: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain data, without the config's text."""
        record = asdict(self)
        del record["info"]["config"]
        return {**record, "path": str(self.path)}


def export_model(
    model: nn.Module,
    path: str | Path,
    *,
    input_shape: tuple[int, int, int],
    opset: int = 21,
    part: str = "model",
    pack: bool = False,
    target: str = "cpu",
    classes: Sequence[str] | None = None,
    pipeline: Sequence[dict[str, Any]] = (),
    config: str = "",
    batches: Iterable[Tensor] = (),
    runtime: str = "copy",
) -> ExportReport:
    """Export `model` for a target: input `image` (N, C, H, W), output `logits` (N, K) or `feature_0`, ….

    Args:
        model: Classifier, or any module that accepts an image; quantized or float. It is not changed. For skip
            connections in 8 bits, pass the copy that `residuals.carry_residuals` returns.
        path: File or folder to write, atomically: whole or not at all.
        input_shape: (C, H, W) of an image.
        opset: ONNX operator set version, 17 to 21; lower in the file if an integer backbone's file has a lower one.
        part: `'model'`, or `'backbone'` for its features.
        pack: Store weights of 4 bits or fewer in 4 bits.
        target: Name of a target in the registry `TARGETS`: `'cpu'`, `'tensorrt'`, …, or your own.
        classes: Class names; None: the model's own, if it has any.
        pipeline: Test pipeline, for the metadata.
        config: Text of the config, for the metadata.
        batches: Calibration images (N, C, H, W), float32, for a target that needs them.
        runtime: Runtime of a web page: `'copy'` it into the folder, or link it (`'cdn'`).

    Raises:
        ConfigError: A layer cannot be expressed in ONNX, is not supported by the target, or has a weight that the model
            reads without calling the layer; an option is unknown; the model cannot be traced.
        CheckpointError: Weights, statistics or scales are not finite.
        NotInitializedError: A quantizer is not initialized.
        DependencyError: A package is missing.

    Example:
        >>> report = export_model(model, "model.onnx", input_shape=(1, 8, 8))
        >>> report.info.num_classes, report.info.bits
        (10, 'float')
    """
    start = time.perf_counter()
    made_for = check_options(opset, part, pack, target, runtime)
    made_for.check_preparation(part, pipeline, input_shape)
    images = [batch.float().cpu().numpy() for batch in batches] if made_for.needs_images else []
    names = _class_names(model, classes) if part == "model" else None
    plain = plain_copy(model)
    exported = plain if part == "model" else _Backbone(plain)
    carried = carry_backbone(exported, input_shape, opset, made_for)
    check_called(copy_model(plain), input_shape, part)  # hooks may change what they run on
    check_expressible(exported)
    check_finite(exported)
    check_weights_in_use(model, plain, input_shape, part)
    model = exported
    layers = layer_facts(model)
    made_for.check_layers(layers, opset)
    made_for.check_additions(addition_facts(model))
    lowered = lower(model, made_for.input_container)
    check_lowered(model, lowered, input_shape, part)
    opset, lowered = carried.opset, carried.traceable(lowered)
    graph = Graph(trace(lowered, input_shape, opset, part))
    norms_left = to_integer_layers(graph)
    if opset < _TRACED:
        to_opset_17(graph)
    made_for.shape(graph)
    choice = carried.choose_container(graph, made_for, input_shape)
    facts = [made_for.place(layer, choice) for layer in layers]
    unpacked = graph.save().ByteSize()
    low_bit = {fact.name for fact in facts if (fact.weight_bits or 8) <= 4}
    packed, not_packed = pack_weights(graph, low_bit) if pack else ([], {})
    saved = unpacked - graph.save().ByteSize()
    carried.insert(graph, made_for)
    if made_for.needs_images:
        made_for.fill_grids(graph, images)
    proto = graph.save()
    info = ModelInfo(
        version=__version__,
        part=part,
        input_shape=input_shape,
        classes=names,
        pipeline=[dict(step) for step in pipeline],
        layers=[*carried.layers, *(_record(fact, packed) for fact in facts)],
        residual_bits=carried.residual_bits or residual_bits(model),
        target=target,
        engines=list(made_for.engines),
        config=config,
        **carried.summary(_summary(facts)),
        **_outputs(proto, part),
    )
    finished = _finished(proto, info, made_for)
    put = write_whole if made_for.suffix else write_folder
    put(Path(path), lambda draft: made_for.write(finished, info, draft))
    refused = cannot_run(path, made_for.engines)
    for engine, reason in refused.items():
        logger.warning("%s cannot run %s: %s", engine, path, reason)
    size, seconds = model_file(Path(path)).stat().st_size, time.perf_counter() - start
    return ExportReport(
        Path(path),
        info,
        opset,
        size,
        size + saved,
        _float_size(model),
        seconds,
        norms_left,
        not_packed,
        choice.milliseconds,
        refused,
    )


def to_integer_layers(graph: Graph) -> list[str]:
    """Turn a traced graph's layers into integer layers; return the names of the BatchNorms that stay."""
    name_nodes(graph, _ROOT)
    check_flat(graph)
    separate_weights(graph)
    norms_left = absorb_norms(graph)
    settle_signs(graph)
    pool_integers(graph)
    drop_repeated(graph)
    graph.save()
    return norms_left


class _Backbone(nn.Module):
    """Backbone of a classifier, without neck and head."""

    def __init__(self, classifier: Any) -> None:
        super().__init__()
        if not hasattr(classifier, "backbone"):
            raise ConfigError(f"{type(classifier).__name__} has no backbone to export; use part='model'.")
        self.backbone = classifier.backbone

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        features = self.backbone(image)
        return tuple(features) if isinstance(features, (tuple, list)) else (features,)


class _Traced(nn.Module):
    """Model as it is traced: from the image to `predict`'s output."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        setattr(self, _ROOT, model)

    def forward(self, image: Tensor) -> Tensor | tuple[Tensor, ...]:
        model = getattr(self, _ROOT)
        return model.predict(image) if hasattr(model, "predict") else model(image)


def trace(model: nn.Module, input_shape: tuple[int, int, int], opset: int, part: str = "model") -> ModelProto:
    """Return the ONNX graph of a lowered model, from torch's exporter (opset 18 or later); the batch size is free.

    Raises:
        ConfigError: Torch cannot trace the model.
    """
    for package in ("onnx", "onnxscript"):
        require(package)
    wrapped = _Traced(model).eval()
    try:
        with torch.no_grad(), _quiet():
            program: Any = torch.onnx.export(
                wrapped,
                (torch.zeros(2, *input_shape),),
                dynamo=True,
                opset_version=max(opset, _TRACED),
                input_names=["image"],
                output_names=None if part == "backbone" else ["logits"],
                dynamic_shapes=({0: torch.export.Dim("N")},),
                optimize=True,
                verbose=False,
            )
    except Exception as error:  # torch's own types, and anything that the model's code raises on traced tensors
        raise ConfigError(
            f"{type(model).__name__} cannot be traced for ONNX with a free batch size: {reason_of(error)}"
        ) from error
    proto = program.model_proto
    batch = proto.graph.input[0].type.tensor_type.shape.dim[0]
    if batch.HasField("dim_value"):
        raise ConfigError(
            f"{type(model).__name__} cannot be traced for ONNX with a free batch size: it converts the batch size to a "
            f"Python number (len(x), int(x.shape[0])), so the exported model would accept {batch.dim_value} images and "
            "no other number. Use x.shape[0] itself."
        )
    if part == "backbone":
        _rename_outputs(proto)
    return proto


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the tracer's own progress and warnings, which are not about the user's model."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def _rename_outputs(proto: ModelProto) -> None:
    for number, output in enumerate(proto.graph.output):
        new = f"feature_{number}"
        for node in proto.graph.node:
            node.output[:] = [new if name == output.name else name for name in node.output]
            node.input[:] = [new if name == output.name else name for name in node.input]
        output.name = new


def check_options(opset: int, part: str, pack: bool, target: str, runtime: str = "copy") -> Target:
    """Check these arguments of `export_model`; return the target.

    Raises:
        ConfigError: A value is wrong, or two values contradict each other.
    """
    made_for = find_target(target)
    if part not in PARTS:
        raise ConfigError(f"part must be 'model' or 'backbone'; got {part!r}.")
    made_for.check_options(opset, pack)
    made_for.choose_runtime(runtime)
    return made_for


def _finished(proto: ModelProto, info: ModelInfo, target: Target) -> ModelProto:
    """Return the graph with shapes and metadata, checked."""
    onnx = require("onnx")
    proto.producer_name, proto.producer_version = "lbitcls", __version__
    proto = onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True)
    write_info(proto, info)
    onnx.checker.check_model(proto, full_check=True)
    target.check_graph(Graph(proto))
    return proto


def _record(fact: LayerFacts, packed: Sequence[str]) -> dict[str, Any]:
    record = {key: getattr(fact, key) for key in _RECORDED}
    return {**record, "packed": fact.name in packed}


def _summary(facts: Sequence[LayerFacts]) -> dict[str, Any]:
    """Return `method` and `bits` of an exported model."""
    if not facts:
        return {"method": "float", "bits": "float"}
    bits = Counter(f"W{fact.weight_bits or 32}A{fact.input_bits or 32}" for fact in facts)
    return {"method": "+".join(sorted({fact.method for fact in facts})), "bits": bits.most_common(1)[0][0]}


def _outputs(proto: ModelProto, part: str) -> dict[str, Any]:
    shapes = [[d.dim_value for d in value.type.tensor_type.shape.dim[1:]] for value in proto.graph.output]
    if part == "backbone":
        return {"out_channels": [shape[0] for shape in shapes], "feature_shapes": shapes}
    return {"num_classes": shapes[0][-1] if shapes[0] else None}


def _class_names(model: nn.Module, classes: Sequence[str] | None) -> list[str] | None:
    names = classes if classes is not None else getattr(model, "CLASSES", None)
    return None if names is None else list(names)


def _float_size(model: nn.Module) -> int:
    from lbitcls.quant.size import model_size

    return round(1024 * model_size(model)["float_kib"])
