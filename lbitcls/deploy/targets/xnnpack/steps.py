"""One node of an ONNX graph as a PyTorch module."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lbitcls.deploy.passes.graph import attributes
from lbitcls.utils.errors import ConfigError

if TYPE_CHECKING:
    from onnx import NodeProto


class Step(nn.Module):
    """One node of the graph.

    Its constants are buffers, registered when the step first runs: an eager pass precedes the export.

    Attributes:
        attributes: The node's attributes.
        outputs: Names of the tensors that it computes.
        function: PyTorch function that computes it from the step and the inputs; None: it depends on constants only.
    """

    def __init__(self, node: NodeProto, function: Callable[..., Any] | None = None) -> None:
        super().__init__()
        self.function = function
        self.called, self.kind = node.name, node.op_type
        self.inputs, self.outputs = list(node.input), list(node.output)
        self.attributes = attributes(node)

    def forward(self, *inputs: Any) -> Any:
        """Compute the node's output."""
        assert self.function is not None, self.called
        return self.function(self, *inputs)

    def constant(self, name: str, value: np.ndarray) -> Tensor:
        """Return a constant as a tensor."""
        if not hasattr(self, name):
            self.register_buffer(name, torch.from_numpy(np.array(value, order="C")))
        return getattr(self, name)

    def window(self) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """Return the kernel size (if it is an attribute), the strides and the pads of a window over two axes."""
        strides = tuple(self.attributes.get("strides", (1, 1)))
        self.expect(len(strides) == 2, "runs over one or three axes, not over height and width")
        self.expect(self.attributes.get("auto_pad", b"NOTSET") == b"NOTSET", "leaves its padding to the engine")
        return tuple(self.attributes.get("kernel_shape", ())), strides, tuple(self.attributes.get("pads", (0,) * 4))

    def channels_last(self, x: Tensor) -> Tensor:
        """Return `x` unchanged, in the order of axes in which XNNPACK convolves, if it may be an image.

        ExecuTorch 1.5 reorders the axes of the first tensor that a layer's input is computed from, but not a padding in
        between. An operation that forces the order, here a PReLU that changes nothing, keeps it from doing so.
        """
        return F.prelu(x, self.constant("slope", np.ones(x.shape[1], np.float32))) if x.dim() == 4 else x

    def expect(self, condition: bool, what: str) -> None:
        """Raise `ConfigError` with the node's name unless `condition` is True."""
        if not condition:
            raise ConfigError(f"{self.called} ({self.kind}) {what}, which the export for ExecuTorch cannot express.")
