"""Converts a finished ONNX graph to the bytes of a TFLite file."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from lbitcls.deploy.targets.tflite.moves import MOVES
from lbitcls.deploy.targets.tflite.operations import FLOAT, INTEGER
from lbitcls.deploy.targets.tflite.reading import Source
from lbitcls.deploy.targets.tflite.writing import Kinds, TFLiteWriter
from lbitcls.deploy.targets.tflite.written_layers import float_layer, integer_layer

if TYPE_CHECKING:
    from onnx import ModelProto

_KINDS = Kinds(MOVES, INTEGER, FLOAT, integer_layer, float_layer)
_DEPTH = 20  # Python frames per node: a chain of float operations is written from its end


def tflite_bytes(model: ModelProto) -> bytes:
    """Return the TFLite file of a finished graph; its input `image` is (N, H, W, C).

    Raises:
        UnsupportedError: An operation has no counterpart in the format.
    """
    source = Source(model)
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(max(before, _DEPTH * len(source.nodes)))
    try:
        return TFLiteWriter(source, _KINDS).bytes()
    finally:
        sys.setrecursionlimit(before)
