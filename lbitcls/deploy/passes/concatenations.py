"""Pass that quantizes what is concatenated, instead of the concatenation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lbitcls.deploy.passes.graph import Graph
from lbitcls.deploy.passes.maxima import quantization_of

if TYPE_CHECKING:
    from onnx import NodeProto

_COMPUTED = ("Relu", "Clip", "Conv", "Add", "Mul")


def concatenate_integers(graph: Graph) -> None:
    """Move the quantization of a Concat to its inputs, if nothing else uses these or the float result.

    The values stay the same. OpenVINO does this too, but after it has combined ReLU, scale and bias of a convolution
    with the quantization behind it; those of a concatenated convolution then remain operations of their own (a tenth of
    SqueezeNet's time).

    Integers that are concatenated stay as they are: ONNX Runtime makes one rounding of two in a row, another one.
    """
    for concat in [node for node in graph.nodes if node.op_type == "Concat"]:
        chain = quantization_of(graph, concat.output[0])
        if not chain or any(graph.only_consumer(name) is not concat for name in concat.input):
            continue
        if any((node := graph.producer(name)) is None or node.op_type not in _COMPUTED for name in concat.input):
            continue
        concat.output[0] = chain[-1].output[0]
        for position, source in enumerate(concat.input):
            concat.input[position] = _repeat(graph, chain, _before_relu(graph, chain, source), position)
        for node in chain:
            graph.nodes.remove(node)


def _before_relu(graph: Graph, chain: list[NodeProto], source: str) -> str:
    """Remove the ReLU that outputs `source` if the chain's Clip removes negative values; return the new source."""
    relu, bound = graph.producer(source), graph.array(chain[0].input[1]) if chain[0].op_type == "Clip" else None
    if relu is None or relu.op_type != "Relu" or bound is None or bound < 0:
        return source
    graph.nodes.remove(relu)
    return relu.input[0]


def _repeat(graph: Graph, chain: list[NodeProto], source: str, position: int) -> str:
    """Apply copies of a chain of operations to a tensor; return the name of the result."""
    last = graph.producer(source)
    for node in chain:
        output = graph.free_name(f"{node.output[0]}_{position}")
        last = graph.add_node(node.op_type, [source, *node.input[1:]], output, last, node.name)
        last.attribute.extend(node.attribute)
        source = output
    return source
