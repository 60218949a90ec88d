"""ExecuTorch's runtime, with the XNNPACK delegate: the engine of `.pte` files. It needs PyTorch."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from lbitcls.deploy.runtime.engine import Description, Engine
from lbitcls.deploy.runtime.metadata import read_info, require
from lbitcls.deploy.runtime.silence import silent
from lbitcls.registry import ENGINES

_METHOD = "forward"
_DELEGATE = "XnnpackBackend"
_LAYERS = ("XNNConv2d", "XNNDepthwiseConv2d", "XNNConvTranspose2d", "XNNFullyConnected")
_INTEGERS = ("xnn_datatype_qint8", "xnn_datatype_qdint8", "xnn_datatype_qcint8")
_LOCK = Lock()  # ExecuTorch's thread pool is one for the process


@ENGINES.register_module(name="executorch")
class ExecuTorchEngine(Engine):
    """ExecuTorch on the CPU. Its files compute one image at a time; a batch is a loop over its images.

    The number of threads is the process's: the engine opened last sets it.
    """

    name = "executorch"
    package = "executorch"
    extra = "executorch"
    suffixes = (".pte",)

    def __init__(self, path: Path, threads: int | None, precision: str) -> None:
        read_info(path)  # a damaged file ends here, before native code reads it
        with _LOCK, silent():
            runtime = require("executorch.runtime", self.extra).Runtime.get()
            if threads is not None:
                require("executorch.extension.pybindings.portable_lib", self.extra)._unsafe_reset_threadpool(threads)
            self._program = runtime.load_program(path.read_bytes())
            self._method = self._program.load_method(_METHOD)
        self._lock = Lock()
        super().__init__(path, threads, precision)

    def _describe(self, path: Path) -> Description:
        meta, info = self._method.metadata, read_info(path)
        _, *shape = meta.input_tensor_meta(0).sizes()
        outputs = meta.num_outputs()
        logits = info is None or info.part == "model"
        names = ("logits",) if logits and outputs == 1 else tuple(f"feature_{place}" for place in range(outputs))
        return Description(info, (shape[0], shape[1], shape[2]), None, names)

    def _run(self, images: np.ndarray) -> Sequence[np.ndarray]:
        torch = require("torch", "runtime")
        with self._lock:
            each = [[out.numpy() for out in self._method.execute([one])] for one in torch.from_numpy(images).split(1)]
        return [np.concatenate(outputs) for outputs in zip(*each, strict=True)]

    def integer_counts(self) -> tuple[int, int]:
        """Return how many convolutions and linear layers XNNPACK's graph has in integers, and how many in all."""
        graphs = delegate_graphs(self.path.read_bytes())
        layers = [in_integers for graph in graphs for in_integers in _layers(graph)]
        return sum(layers), len(layers)


def delegate_graphs(content: bytes) -> list[dict[str, Any]]:
    """Return the graphs that XNNPACK gets from a `.pte` file, as its own schema describes them."""
    binary = require("executorch.exir._serialize._program", "executorch").deserialize_pte_binary(content)
    program = binary.program
    places = [d.processed.index for d in program.execution_plan[0].delegates if d.id == _DELEGATE]
    return [_graph(bytes(program.backend_delegate_data[place].data)) for place in places]


def _graph(payload: bytes) -> dict[str, Any]:
    """Return a delegate's payload, which is a header and a FlatBuffer, as plain data."""
    serialize = require("executorch.backends.xnnpack.serialization.xnnpack_graph_serialize", "executorch")
    flatbuffers = require("executorch.exir._serialize._flatbuffer", "executorch")
    header = serialize.XNNHeader.from_bytes(payload[: serialize.XNNHeader.EXPECTED_LENGTH])
    content = payload[header.flatbuffer_offset : header.flatbuffer_offset + header.flatbuffer_size]
    with tempfile.TemporaryDirectory() as folder:
        schema, binary = Path(folder, "schema.fbs"), Path(folder, "graph.bin")
        schema.write_bytes(serialize._get_schema_bytes())
        binary.write_bytes(content)
        flatbuffers._flatc_decompile(folder, str(schema), str(binary))
        text = Path(folder, "graph.json").read_text("utf-8")
    graph: dict[str, Any] = json.loads(re.sub(r"(: -?)inf\b", r"\1Infinity", text))
    return graph


def _layers(graph: dict[str, Any]) -> Iterator[bool]:
    """Yield True or False for each layer: True if its input and its weights are integers."""
    types = {}
    for value in graph["xvalues"]:
        tensor = value["xvalue_union"]
        tensor = tensor.get("tensor_value", tensor)
        types[tensor["id_out"]] = tensor["datatype"]
    for node in graph["xnodes"]:
        kind, layer = node["xnode_union_type"].lstrip("_"), node["xnode_union"]
        if kind in _LAYERS and not _is_subsampling(kind, layer):
            yield types[layer["input1_id"]] in _INTEGERS and types[layer["filter_id"]] in _INTEGERS


def _is_subsampling(kind: str, layer: dict[str, Any]) -> bool:
    """Return True for the convolution by which the export takes every n-th row or column."""
    return (
        kind == "XNNDepthwiseConv2d"
        and layer["kernel_height"] == layer["kernel_width"] == 1
        and max(layer["subsampling_height"], layer["subsampling_width"]) > 1
        and layer["bias_id"] == 2**32 - 1
    )
