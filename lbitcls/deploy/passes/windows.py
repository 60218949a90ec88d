"""Pass over the ONNX graph that fits the padding of poolings to their windows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lbitcls.deploy.passes.graph import Graph, attributes
from lbitcls.deploy.runtime.metadata import require

if TYPE_CHECKING:
    from onnx import NodeProto


def fit_windows(graph: Graph) -> None:
    """Pad the end of an image that is smaller than the window of a pooling with `ceil_mode`, which reaches beyond it.

    OpenVINO refuses the pooling otherwise (2026.4). Its result, of one window, stays the same: padding is neither a
    maximum nor counted in an average.
    """
    if any(map(_reaches_beyond, graph.nodes)):
        sizes = _sizes(graph)  # saves the graph, which replaces its nodes
        for pool in filter(_reaches_beyond, graph.nodes):
            _fit(pool, sizes.get(pool.input[0], []))


def _reaches_beyond(node: NodeProto) -> bool:
    return node.op_type in ("MaxPool", "AveragePool") and attributes(node).get("ceil_mode", 0) == 1


def _fit(pool: NodeProto, sizes: list[int]) -> None:
    known = attributes(pool)
    kernel = known["kernel_shape"]
    rank = len(kernel)
    if len(sizes) != rank or 0 in sizes:  # unknown
        return
    pads, dilations = list(known.get("pads", [0] * 2 * rank)), known.get("dilations", [1] * rank)
    reach = [d * (k - 1) + 1 for k, d in zip(kernel, dilations, strict=True)]
    ends = [max(e, r - s - b) for e, r, s, b in zip(pads[rank:], reach, sizes, pads[:rank], strict=True)]
    counted = pool.op_type == "AveragePool" and known.get("count_include_pad", 0)
    if ends == pads[rank:] or (counted and any(pads)):
        return
    kept = [a for a in pool.attribute if a.name not in ("pads", "count_include_pad")]
    del pool.attribute[:]
    pool.attribute.extend([*kept, require("onnx").helper.make_attribute("pads", pads[:rank] + ends)])


def _sizes(graph: Graph) -> dict[str, list[int]]:
    """Return the sizes of each tensor after the first two, which are its images and channels."""
    inferred = require("onnx").shape_inference.infer_shapes(graph.save())
    values = (*inferred.graph.value_info, *inferred.graph.input)
    return {value.name: [size.dim_value for size in value.type.tensor_type.shape.dim[2:]] for value in values}
