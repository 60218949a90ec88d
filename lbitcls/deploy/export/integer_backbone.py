"""Integer backbone as a frozen feature extractor: an engine runs it during training, and only the head trains.

    backbone=dict(type="IntegerBackbone", model="backbone.onnx")

or, quantized and exported on first use and cached in `~/.cache/lbitcls/backbones`:

    backbone=dict(
        type="IntegerBackbone",
        from_float=dict(type="MobileNetV2"),
        checkpoint="mobilenet_v2.pth",
        calibration=dict(data=dict(type="ImageFolder", data_prefix="photos/train", pipeline=[…]), num_images=200),
    )
"""

from __future__ import annotations

import copy
import hashlib
import logging
import math
import time
from collections.abc import Mapping
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lbitcls.deploy.export.onnx import export_model
from lbitcls.deploy.passes.graph import Graph, operation_of, weights_of
from lbitcls.deploy.runtime.engine import Engine, load
from lbitcls.deploy.runtime.metadata import ModelInfo, existing_file, read_info, read_onnx
from lbitcls.deploy.targets.cpu import CPU
from lbitcls.quant import build_mtransformer, calibrate
from lbitcls.registry import BACKBONES, DATASETS
from lbitcls.utils.cache import cache_folder, exclusive
from lbitcls.utils.checkpoint import load_checkpoint
from lbitcls.utils.errors import CheckpointError, ConfigError, DataError, reject_unknown_keys, require_dict
from lbitcls.utils.jsontext import json_text
from lbitcls.utils.published import fetch_weights, is_published
from lbitcls.version import __version__

logger = logging.getLogger("lbitcls")

W8A8 = dict(
    type="ModelTransformer",
    quan_policy=dict(
        Conv2d=dict(type="LSQConv", num_bit_w=8, num_bit_a=8, per_channel=True),
        Linear=dict(type="LSQLinear", num_bit_w=8, num_bit_a=8, per_channel=True),
    ),
)
"""Default quantization of a float backbone."""


@BACKBONES.register_module()
class IntegerBackbone(nn.Module):
    """Image (N, C, H, W) -> tuple of features, computed by an engine on the CPU; no parameters, no gradient.

    The features are those of inference in both training and eval mode. The engine is opened for the first image, and
    shared by all copies in a process; copies and pickles contain the file's path only. A checkpoint records which file
    the head was trained with; loading it with a different file logs a warning.

    Args:
        model: ONNX file of a backbone (`lbitcls export … --part backbone`).
        from_float: Config of a float backbone to quantize instead.
        checkpoint: Weights of the float backbone: a backbone's or a classifier's, published or your own.
        calibration: `dict(data=dict(type=…, pipeline=[…], …), num_images=200, method='mse')`: the data set, from which
            evenly spread images set the ranges, as its pipeline returns them.
        quant_transformer: Quantization of the layers, whose names begin with `backbone.`; by default LSQ at 8 bits,
            weights per channel.
        engine: `'openvino'` or `'onnxruntime'`.
        threads: Number of threads of the engine; None: as many as PyTorch uses.

    Attributes:
        info: Metadata in the file.
        out_channels: Channels of each feature.

    Raises:
        ConfigError: Neither or both of `model` and `from_float` are given, or a key is missing or unknown.
        CheckpointError: A file is missing, does not fit, or is not a backbone.
        DependencyError: A package of the extra `deploy` is missing.
    """

    def __init__(
        self,
        model: str | None = None,
        from_float: dict[str, Any] | None = None,
        checkpoint: str | None = None,
        calibration: dict[str, Any] | None = None,
        quant_transformer: dict[str, Any] | None = None,
        engine: str = "openvino",
        threads: int | None = None,
    ) -> None:
        super().__init__()
        made_of = {"checkpoint": checkpoint, "calibration": calibration, "quant_transformer": quant_transformer}
        if model is not None:
            _refuse_beside_model({"from_float": from_float, **made_of})
            self.path = existing_file(model).resolve()
        else:
            self.path = _made(from_float, checkpoint, calibration, quant_transformer).resolve()
        self.engine = engine
        self.threads = threads
        self.digest = hashlib.sha256(self.path.read_bytes()).digest()
        self.info = _backbone_info(self.path)
        self._dtype = torch.float32
        self.in_channels = self.info.input_shape[0]
        self.out_channels = tuple(self.info.out_channels or ())

    @property
    def num_features(self) -> int:
        """Channels of the last feature: the head's `in_channels`."""
        return self.out_channels[-1]

    @torch.compiler.disable
    @torch.no_grad()
    def forward(self, img: Tensor) -> tuple[Tensor, ...]:
        engine = _opened(self.path, self.digest, self.engine, self.threads or torch.get_num_threads())
        features = engine.predict(img.float().cpu().contiguous().numpy())
        arrays = features if isinstance(features, tuple) else (features,)
        return tuple(torch.from_numpy(array).to(img.device, self._dtype) for array in arrays)

    @property
    def quantization(self) -> str:
        """Method and bits of the backbone's file, `'LSQ W8A8'`, or `'float'`."""
        return self.info.quantization

    def size_bits(self) -> tuple[int, int]:
        """Return the size in bits of weights and biases in float32, and as stored, with scales and zero points."""
        return stored_bits(read_onnx(self.path), {layer["name"]: layer["weight_bits"] for layer in self.info.layers})

    def computed_otherwise(self) -> IntegerBackbone:
        """Return the same file in the other engine, with features as float64: the yardstick of an exported model.

        Two engines' results for the same graph differ only by the order of additions.
        """
        other = copy.copy(self)
        other.engine = next(name for name in CPU.engines if name != self.engine)
        other._dtype = torch.float64
        return other

    def get_extra_state(self) -> Tensor:
        """Return the file's SHA-256, uint8 (32,)."""
        return torch.tensor(list(self.digest), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        """Log a warning if the checkpoint was trained with a different file."""
        if bytes(state.tolist()) != self.digest:
            logger.warning("The head was trained on the features of a different file than %s.", self.path)

    def extra_repr(self) -> str:
        return f"{self.path}, {self.info.quantization}, engine={self.engine}"


@lru_cache(maxsize=4)
def _opened(path: Path, digest: bytes, engine: str, threads: int) -> Engine:
    """Return the engine of a file with this digest."""
    return load(path, engine, threads)


def stored_bits(model: Any, weight_bits: Mapping[str, int | None]) -> tuple[int, int]:
    """Return the size in bits of an ONNX file's constants in float32, and as stored: integers at their layer's bits.

    Args:
        model: Content of the file.
        weight_bits: Weight bits of its quantized layers, by layer name.
    """
    graph = Graph(model)
    weights = weights_of(graph)
    grids = {name for node in graph.nodes if "quantize" in node.op_type.lower() for name in node.input[1:]}
    sizes = {name: math.prod(tensor.dims) for name, tensor in graph.constants.items()}
    floats = integers = 0
    for weight in weights:
        operation = operation_of(graph, weight)
        bits = weight_bits.get(operation.name if operation is not None else "") or 8
        floats += 32 * sizes[weight.input[0]]
        integers += bits * sizes[weight.input[0]]
    others = sizes.keys() - grids - {weight.input[0] for weight in weights}
    plain = 32 * sum(sizes[name] for name in others)
    return floats + plain, integers + plain + 32 * sum(sizes[name] for name in grids & sizes.keys())


def _refuse_beside_model(others: Mapping[str, Any]) -> None:
    for key, value in others.items():
        if value is not None:
            raise ConfigError(
                f"IntegerBackbone accepts model=FILE, or from_float and its options; got model and {key}."
            )


def _backbone_info(path: Path) -> ModelInfo:
    info = read_info(path)
    if info is None or info.part != "backbone":
        what = "was not written by lbitcls" if info is None else "is a whole model, which outputs logits"
        raise CheckpointError(f"{path} {what}; IntegerBackbone needs a backbone: lbitcls export … --part backbone.")
    return info


class _Whole(nn.Module):
    """Wrapper that gives a backbone the name it has in a classifier; transformers and the export rely on it."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, img: Tensor) -> tuple[Tensor, ...]:
        return self.backbone(img)


def _made(
    from_float: dict[str, Any] | None,
    checkpoint: str | None,
    calibration: dict[str, Any] | None,
    quant_transformer: dict[str, Any] | None,
) -> Path:
    """Return the quantized backbone's file, cached or exported now; its name is a hash of everything it depends on."""
    if from_float is None or checkpoint is None or calibration is None:
        raise ConfigError(
            "IntegerBackbone needs model='backbone.onnx', or from_float=dict(type=…), checkpoint='weights.pth' and "
            "calibration=dict(data=dict(…), num_images=200)."
        )
    section = require_dict("IntegerBackbone: calibration", calibration)
    reject_unknown_keys("IntegerBackbone: calibration", section, ("data", "num_images", "method"))
    weights = fetch_weights(checkpoint) if is_published(checkpoint) else Path(checkpoint).expanduser()
    if not weights.is_file():
        raise CheckpointError(f"IntegerBackbone: there is no checkpoint {weights}.")
    images = _images(section.get("data"), section.get("num_images", 200))
    recipe = {
        "from_float": from_float,
        "quant_transformer": quant_transformer or W8A8,
        "method": section.get("method", "mse"),
        "pipeline": require_dict("data", section["data"]).get("pipeline", []),
        "checkpoint": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "images": hashlib.sha256(images.numpy().tobytes()).hexdigest(),
        "versions": [__version__, *(version(name) for name in ("torch", "onnx", "onnxscript"))],
    }
    text = json_text(recipe, sort_keys=True, default=str, indent=2)
    path = cache_folder("backbones") / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.onnx"
    with exclusive(path):
        if not path.is_file():
            _export(recipe, weights, images, path, text)
    return path


def _images(data: Any, number: Any) -> Tensor:
    """Return `number` images of a data set, evenly spread over it, (N, C, H, W)."""
    if not isinstance(number, int) or number < 1:
        raise ConfigError(f"IntegerBackbone: calibration.num_images must be an integer ≥ 1; got {number!r}.")
    dataset = DATASETS.build(data)
    last = len(dataset) - 1
    chosen = sorted({round(i * last / max(1, number - 1)) for i in range(number)})
    images = [dataset[index]["img"] for index in chosen]
    shapes = sorted({tuple(image.shape) for image in images})
    if len(shapes) > 1:
        raise DataError(
            f"IntegerBackbone: the calibration images differ in shape: {', '.join(map(str, shapes[:3]))}, …; set "
            "calibration.data.pipeline to the test pipeline, which crops them to one size."
        )
    return torch.stack(images).float().contiguous()


def _export(recipe: Mapping[str, Any], weights: Path, images: Tensor, path: Path, text: str) -> None:
    began = time.monotonic()
    with torch.random.fork_rng():  # a run draws the same random numbers whether or not the file was cached
        backbone = BACKBONES.build(dict(recipe["from_float"]))
        load_checkpoint(backbone, weights, logger=logger)
        model = build_mtransformer(dict(recipe["quant_transformer"]))(_Whole(backbone), logger=logger).eval()
        calibrate(model, images.split(32), recipe["method"])
        channels, height, width = images.shape[1:]
        export_model(
            *(model, path),
            input_shape=(channels, height, width),
            part="backbone",
            pipeline=recipe["pipeline"],
            config=text,
        )
    logger.info("IntegerBackbone: exported %s from %s in %.1f s.", path, weights, time.monotonic() - began)
