"""Skip connections as modules: `Add` computes the sum of a block, so that another module can take its place.

torchvision's blocks add inside their `forward`. `name_additions` turns them into blocks that compute the same, bit for
bit, and call an `Add`. It has no parameters, so the names in state dicts stay the same.
"""

from __future__ import annotations

from torch import Tensor, nn
from torchvision.models import mobilenetv2, mobilenetv3, resnet

from lbitcls.protocols import Addition


class Add(nn.Module):
    """Sum of a block's own result and its skip connection (`lbitcls.protocols.Addition`).

    Args:
        *readers: Names, in the block, of the layers that read the block's input.
        of_input: True if the skip connection is the block's input, or a part of it; False if it is a tensor of its own,
            such as the result of a `downsample`.
        inplace: Add to the memory of the block's own result.

    Example:
        >>> import torch
        >>> Add("conv1")(torch.ones(2), torch.ones(2))
        tensor([2., 2.])
    """

    def __init__(self, *readers: str, of_input: bool = True, inplace: bool = False) -> None:
        super().__init__()
        self.readers = readers
        self.of_input = of_input
        self.inplace = inplace

    def enter(self, x: Tensor) -> Tensor:
        """Return the block's input as all its layers and the addition receive it."""
        return x

    def forward(self, own: Tensor, skip: Tensor) -> Tensor:
        """Add two tensors of the same shape."""
        if self.inplace:
            own += skip
            return own
        return own + skip

    def extra_repr(self) -> str:
        return ", ".join(self.readers)


class BasicBlock(resnet.BasicBlock):
    """torchvision's block of two convolutions, with its addition as a module."""

    add: Addition

    def forward(self, x: Tensor) -> Tensor:
        x = self.add.enter(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return self.relu(self.add(out, x if self.downsample is None else self.downsample(x)))


class Bottleneck(resnet.Bottleneck):
    """torchvision's block of three convolutions, with its addition as a module."""

    add: Addition

    def forward(self, x: Tensor) -> Tensor:
        x = self.add.enter(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return self.relu(self.add(out, x if self.downsample is None else self.downsample(x)))


class InvertedResidual(mobilenetv2.InvertedResidual):
    """MobileNetV2's block with a skip connection, with its addition as a module."""

    add: Addition

    def forward(self, x: Tensor) -> Tensor:
        x = self.add.enter(x)
        return self.add(self.conv(x), x)


class InvertedResidualV3(mobilenetv3.InvertedResidual):
    """MobileNetV3's block with a skip connection, with its addition as a module."""

    add: Addition

    def forward(self, input: Tensor) -> Tensor:
        x = self.add.enter(input)
        return self.add(self.block(x), x)


def name_additions(network: nn.Module) -> None:
    """Turn the additions in torchvision's blocks into modules `add`, in place; other blocks stay as they are.

    The blocks are those of ResNet (and ResNeXt, Wide ResNet), MobileNetV2 and MobileNetV3.
    """
    for block in list(network.modules()):
        if type(block) in (resnet.BasicBlock, resnet.Bottleneck):
            readers = ("conv1",) if block.downsample is None else ("conv1", "downsample.0")
            block.__class__ = BasicBlock if type(block) is resnet.BasicBlock else Bottleneck
            block.add = Add(*readers, of_input=block.downsample is None, inplace=True)
        elif type(block) is mobilenetv2.InvertedResidual and block.use_res_connect:
            block.__class__ = InvertedResidual
            block.add = Add("conv.0.0")
        elif type(block) is mobilenetv3.InvertedResidual and block.use_res_connect:
            block.__class__ = InvertedResidualV3
            block.add = Add("block.0.0", inplace=True)
