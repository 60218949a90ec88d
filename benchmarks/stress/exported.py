"""Exported models: `.onnx` graphs and metadata, and the metadata behind `.tflite` and `.pte` files."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from lbitcls.deploy.runtime.metadata import MARK, ModelInfo, sealed, with_trailer, write_info
from lbitcls.inference.api import inference_model, init_model
from lbitcls.inference.self_described import describe
from stress.damage import damaged
from stress.names import odd_name
from stress.verdicts import Kind
from stress.wrong_values import VALUES, of, places, put

INFO = ModelInfo(
    version="0.1.0",
    input_shape=(3, 6, 5),
    num_classes=4,
    classes=["ant", "bee", "çat", "dog"],
    pipeline=[
        dict(type="LoadImageFromFile"),
        dict(type="Resize", size=(6, 5)),
        dict(type="CenterCrop", crop_size=(6, 5)),
        dict(type="Normalize", mean=[0.5, 0.5, 0.5], std=[0.25, 0.25, 0.25], to_rgb=True),
        dict(type="ImageToTensor", keys=["img"]),
        dict(type="Collect", keys=["img"]),
    ],
    method="LSQ",
    bits="W4A4",
    layers=[dict(name="fc", kind="Linear", method="LSQ", weight_bits=4, input_bits=4, container="uint8", packed=False)],
    engines=["onnxruntime"],
    config="model = dict(type='ImageClassifier')\ndata = dict(test=dict(type='Digits', pipeline=[]))\n",
)
_EDGES = (0, 1, -1, 2, 7, 2**31 - 1, 2**31, 2**40, 2**62, -(2**63))
_TEXTS = (
    "",
    "image",
    "logits",
    "Conv",
    "Loop",
    "If",
    "no_such_op",
    "x" * 3000,
    "\x1b[2J",
    "a\nb",
    "../../secrets/precious",
)


def small_model() -> Any:
    """Return a 1×1 convolution, ReLU and mean, from images (N, 3, 6, 5) to logits (N, 4)."""
    from onnx import TensorProto, helper

    weight = np.random.default_rng(7).standard_normal((4, 3), dtype=np.float32)
    nodes = [
        helper.make_node("Conv", ["image", "weight"], ["convolved"], kernel_shape=[1, 1], strides=[1, 1]),
        helper.make_node("Relu", ["convolved"], ["positive"]),
        helper.make_node("GlobalAveragePool", ["positive"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["logits"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, 6, 5])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor("weight", TensorProto.FLOAT, (4, 3, 1, 1), weight.flatten().tolist())],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def odd_record(draw: random.Random) -> tuple[str, str]:
    """Return the JSON of metadata with one to three wrong values, and the places in words."""
    record = json.loads(json.dumps(dataclasses.asdict(INFO)))
    said = []
    for _ in range(draw.choice((1, 1, 2, 3))):
        path = draw.choice(list(places(record)))
        value = (
            draw.choice(VALUES) if draw.random() < 0.6 else draw.choice((*_EDGES, odd_name(draw), [odd_name(draw)] * 4))
        )
        try:
            of(record, path)
            record = put(record, path, value)
        except (KeyError, IndexError, TypeError):
            continue
        said.append(f"{'.'.join(map(str, path))} = {ascii(value)[:60]}")
    return ", ".join(said), json.dumps(record, default=repr, ensure_ascii=draw.random() < 0.5)


class Exported(Kind):
    """An exported model per case: described, opened in its engine, and run on an image."""

    name = "exported models"
    count = 5_000
    most_mib = 256

    def prepare(self, folder: Path) -> None:
        model = small_model()
        write_info(model, INFO)
        self.whole = sealed(model)
        self.trailer = with_trailer(bytes(range(256)) * 4, INFO)
        self.ways: tuple[Callable[[random.Random], tuple[str, str, bytes]], ...] = (
            *(self._damaged, self._recorded, self._recorded, self._rewired, self._rewired, self._elsewhere),
            *(self._trailer, self._behind),
        )

    def draw(self, number: int, folder: Path) -> str:
        draw = random.Random(f"exported {number}")
        way = draw.choice(self.ways)
        said, suffix, content = way(draw)
        (folder / f"x{suffix}").write_bytes(content)
        return f"{way.__name__} {suffix} {said}"

    def read(self, number: int, folder: Path) -> object:
        (path,) = folder.iterdir()
        if path.suffix != ".onnx" or number % 3 == 0:
            return describe(path)
        model = init_model(None, path)
        return inference_model(model, np.zeros((9, 7, 3), np.uint8))

    def _damaged(self, draw: random.Random) -> tuple[str, str, bytes]:
        said, content = damaged(self.whole, draw, [self.whole, self.trailer])
        return said, ".onnx", content

    def _recorded(self, draw: random.Random) -> tuple[str, str, bytes]:
        """Metadata that are wrong, and sealed all the same: whoever writes a file can do that."""
        model = small_model()
        write_info(model, INFO)
        said, text = odd_record(draw)
        model.metadata_props[0].value = text.encode("utf-8", "replace").decode()
        return said, ".onnx", sealed(model)

    def _rewired(self, draw: random.Random) -> tuple[str, str, bytes]:
        """Return a graph with wrong attributes, names, shapes or types, without a seal."""
        model = small_model()
        if draw.random() < 0.7:
            write_info(model, INFO)
        said = [_change(model, draw) for _ in range(draw.choice((1, 1, 2, 4)))]
        return ", ".join(said), ".onnx", model.SerializeToString()

    def _elsewhere(self, draw: random.Random) -> tuple[str, str, bytes]:
        """Weights that lie in another file."""
        model = small_model()
        write_info(model, INFO)
        weight = model.graph.initializer[0]
        weight.ClearField("float_data")
        weight.data_location = 1
        place = draw.choice(
            ("../../secrets/precious", "/etc/passwd", "", "x.onnx", "/dev/zero", "a\0b", odd_name(draw))
        )
        given = {"location": place.encode("utf-8", "replace").decode()}
        given |= {name: str(draw.choice(_EDGES)) for name in ("offset", "length") if draw.random() < 0.5}
        for key, value in given.items():
            weight.external_data.add(key=key, value=value)
        return ascii(given), ".onnx", model.SerializeToString()

    def _trailer(self, draw: random.Random) -> tuple[str, str, bytes]:
        said, content = damaged(self.trailer, draw, [self.whole, self.trailer])
        return said, draw.choice((".tflite", ".pte", ".PTE", ".onnx")), content

    def _behind(self, draw: random.Random) -> tuple[str, str, bytes]:
        """Return a trailer with wrong metadata or a wrong length, and the right digest."""
        said, record = odd_record(draw)
        text = record.encode("utf-8", "replace")
        length = len(text) if draw.random() < 0.7 else draw.choice((0, 1, 2**40, 2**64 - 1, len(text) + 5))
        body = b"content" + text + length.to_bytes(8, "little")
        content = body + hashlib.sha256(body).hexdigest().encode() + MARK
        return f"{length} {said}", draw.choice((".tflite", ".pte")), content


def _change(model: Any, draw: random.Random) -> str:
    """Set one field somewhere in a graph to an odd value; return its name."""
    messages = list(_messages(model))
    message = draw.choice(messages)
    fields = [field for field in message.DESCRIPTOR.fields if field.message_type is None]
    if not fields:
        return "nothing"
    set_ones = [field for field in fields if field in [found for found, _ in message.ListFields()]]
    field = draw.choice(set_ones or fields)
    value: Any = draw.choice(_EDGES)
    if field.cpp_type == field.CPPTYPE_STRING:
        value = draw.choice(_TEXTS)
        value = value.encode() if field.type == field.TYPE_BYTES else value
    elif field.cpp_type in (field.CPPTYPE_FLOAT, field.CPPTYPE_DOUBLE):
        value = draw.choice((float("nan"), float("inf"), 0.0, 1e38))
    try:
        repeats = hasattr(getattr(message, field.name), "append")
        if repeats:
            values = getattr(message, field.name)
            values.append(value) if not values or draw.random() < 0.3 else values.__setitem__(0, value)
        else:
            setattr(message, field.name, value)
    except (ValueError, TypeError):
        return "nothing"
    return f"{message.DESCRIPTOR.name}.{field.name} = {value!r:.40}"


def _messages(message: Any) -> Any:
    """Yield a protobuf message and all in it."""
    yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for inner in value if hasattr(value, "append") or hasattr(value, "add") else [value]:
                yield from _messages(inner)
