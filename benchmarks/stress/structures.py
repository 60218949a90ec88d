"""Building blocks of random networks: structures on maps (N, C, H, W); more are in `layouts`.

Many insert a constant, or a change of layout, between a layer and its BatchNorm, with axes of coinciding sizes.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Size = tuple[int, int, int]
Make = Callable[[random.Random, int, int, int], nn.Module]
STRUCTURES: dict[str, Make] = {}
"""Functions of a generator and the sizes C, H and W of a map."""
ONNX_RUNTIME_ONLY = {"spatial_attention"}
"""Structures that OpenVINO computes wrongly: it quantizes wrongly after a maximum that is joined by Concat."""


class Block(nn.Module):
    """Module that applies a function to its parts and an input; tensors become parameters."""

    def __init__(self, function: Callable[[Any, Tensor], Tensor], **parts: Any) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, nn.Parameter(part) if isinstance(part, Tensor) else part)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def structure(make: Make) -> Make:
    STRUCTURES[make.__name__] = make
    return make


def conv(draw: random.Random, c: int, out: int | None = None) -> nn.Conv2d:
    """Return a convolution that keeps H and W."""
    dilation, kernel = draw.choice([1, 1, 2]), draw.choice([(3, 3), (3, 3), (1, 1), (1, 3), (3, 1)])
    padding = tuple(dilation * (k // 2) for k in kernel)
    return nn.Conv2d(c, out or c, kernel, 1, padding, dilation, bias=draw.random() < 0.5)


def plain(draw: random.Random, c: int, out: int | None = None) -> nn.Conv2d:
    return nn.Conv2d(c, out or c, draw.choice([1, 3]), padding="same", bias=draw.random() < 0.5)


def activation(draw: random.Random) -> nn.Module:
    kinds: list[Callable[[], nn.Module]] = [nn.ReLU, nn.ReLU, nn.ReLU6, nn.Identity, nn.Hardswish, nn.SiLU]
    kinds += [nn.Hardtanh, nn.LeakyReLU, nn.GELU, nn.Sigmoid, nn.PReLU, nn.Hardsigmoid, nn.ELU]
    return draw.choice(kinds)()


def after(draw: random.Random, layer: nn.Module, channels: int) -> nn.Sequential:
    return nn.Sequential(layer, nn.BatchNorm2d(channels), activation(draw))


def constant(draw: random.Random, c: int, h: int, w: int, shapes: dict[str, tuple[int, ...]] | None = None) -> Tensor:
    """Return values that broadcast against a map, along one or several axes."""
    shapes = shapes or dict(
        width=(1, 1, 1, w),
        height=(1, 1, h, 1),
        plane=(1, 1, h, w),
        channel=(1, c, 1, 1),
        all=(1, c, h, w),
        row=(w,),
        rank3=(c, 1, 1),
        rank2=(h, w),
        scalar=(),
        one=(1,),
    )
    values = torch.randn(shapes[draw.choice(sorted(shapes))])
    return values + 0.5 * values.sign()


def combine(draw: random.Random) -> Callable[[Tensor, Tensor], Tensor]:
    return draw.choice(
        [
            lambda x, k: x + k,
            lambda x, k: x + k,
            lambda x, k: k + x,
            lambda x, k: x - k,
            lambda x, k: k - x,
            lambda x, k: x * k,
            lambda x, k: torch.add(x, k, alpha=2),
            lambda x, k: (x + k) + k,
            lambda x, k: x / k,
        ]
    )


@structure
def conv_norm(draw: random.Random, c: int, h: int, w: int) -> nn.Module:
    out = draw.choice([c, w, h, 6])
    return after(draw, conv(draw, c, out), out)


@structure
def grouped(draw: random.Random, c: int, h: int, w: int) -> nn.Module:
    groups = draw.choice([c, 2 - c % 2])
    mode = draw.choice(["zeros", "reflect", "replicate", "circular"])
    layer = nn.Conv2d(c, c * draw.choice([1, 2]), 3, padding=1, groups=groups, padding_mode=mode, bias=False)
    return after(draw, layer, layer.out_channels)


@structure
def strided(draw: random.Random, c: int, h: int, w: int) -> nn.Module:
    layer = nn.Conv2d(c, w, (3, 2), stride=draw.choice([1, 2, (1, 2)]), padding=draw.choice([1, (0, 1)]))
    return after(draw, layer, w)


@structure
def position(draw: random.Random, c: int, h: int, w: int) -> nn.Module:
    how = combine(draw)
    return Block(
        lambda s, x: s.act(s.norm(how(s.conv(x), s.position))),
        conv=plain(draw, c), position=constant(draw, c, h, w), norm=nn.BatchNorm2d(c), act=activation(draw),
    )  # fmt: skip


@structure
def position_after_norm(draw: random.Random, c: int, h: int, w: int) -> nn.Module:
    how = combine(draw)
    return Block(
        lambda s, x: s.second(s.act(how(s.norm(s.first(x)), s.position))),
        first=plain(draw, c), second=plain(draw, c), position=constant(draw, c, h, w), norm=nn.BatchNorm2d(c),
        act=activation(draw),
    )  # fmt: skip


@structure
def one_channel_broadcast(draw: random.Random, c: int, h: int, w: int) -> nn.Module:
    return Block(
        lambda s, x: s.norm(s.conv(x) + s.shift).relu(),
        conv=plain(draw, c, 1), shift=torch.randn(1, c, 1, 1), norm=nn.BatchNorm2d(c),
    )  # fmt: skip


@structure
def one_pixel_broadcast(draw: random.Random, c: int, h: int, w: int) -> nn.Module:
    return Block(
        lambda s, x: x + s.norm(s.conv(x.mean((2, 3), keepdim=True)) + s.shift).relu(),
        conv=plain(draw, c, c), shift=constant(draw, c, h, w), norm=nn.BatchNorm2d(c),
    )  # fmt: skip


@structure
def residual(draw: random.Random, c: int, h: int, w: int) -> nn.Module:
    swapped = draw.random() < 0.5
    return Block(
        lambda s, x: s.out(s.norm(s.second(s.inner(s.first(x)))) + x if swapped else x + s.norm(s.second(s.first(x)))),
        first=after(draw, conv(draw, c), c), second=plain(draw, c), norm=nn.BatchNorm2d(c), inner=nn.ReLU(),
        out=nn.ReLU(),
    )  # fmt: skip


@structure
def projected_residual(draw: random.Random, c: int, h: int, w: int) -> nn.Module:
    return Block(
        lambda s, x: torch.relu(s.main(x) + s.skip(x)),
        main=nn.Sequential(after(draw, nn.Conv2d(c, w, 3, 1, 1), w), plain(draw, w, w), nn.BatchNorm2d(w)),
        skip=nn.Sequential(nn.Conv2d(c, w, 1, bias=False), nn.BatchNorm2d(w)),
    )  # fmt: skip


@structure
def branches(draw: random.Random, c: int, h: int, w: int) -> nn.Module:
    pool = draw.choice([nn.Identity(), nn.AvgPool2d(3, 1, 1), nn.AvgPool2d(3, 1, 1, count_include_pad=False)])
    return Block(
        lambda s, x: s.last(torch.cat([s.left(x), s.right(x), s.pool(x)], 1)),
        left=after(draw, conv(draw, c, 4), 4), right=conv(draw, c, 3), pool=pool, last=plain(draw, 7 + c, c),
    )  # fmt: skip


@structure
def joined_then_norm(draw: random.Random, c: int, h: int, w: int) -> nn.Module:
    return Block(
        lambda s, x: s.last(s.norm(torch.cat([s.left(x), s.right(x)], 1)).relu()),
        left=plain(draw, c, 4), right=plain(draw, c, 4), norm=nn.BatchNorm2d(8), last=plain(draw, 8, c),
    )  # fmt: skip


@structure
def joined_rows(draw: random.Random, c: int, h: int, w: int) -> nn.Module:
    axis = draw.choice([2, 3])
    return Block(
        lambda s, x: s.last(s.norm(torch.cat([s.left(x), s.right(x)], axis)).relu()),
        left=plain(draw, c), right=plain(draw, c), norm=nn.BatchNorm2d(c), last=nn.Conv2d(c, c, 2, 2),
    )  # fmt: skip


@structure
def transposed(draw: random.Random, c: int, h: int, w: int) -> nn.Module:
    groups = draw.choice([1, 1, 2])
    out = w + w % groups
    layer = nn.ConvTranspose2d(c, out, 3, 2, 1, draw.choice([0, 1]), groups, bias=draw.random() < 0.5)
    return nn.Sequential(after(draw, layer, out), nn.Conv2d(out, c, 3, 2, 1))


@structure
def transposed_with_position(draw: random.Random, c: int, h: int, w: int) -> nn.Module:
    how = combine(draw)
    return Block(
        lambda s, x: s.norm(how(s.conv(x), s.position)).relu(),
        conv=nn.ConvTranspose2d(c, c, 3, 1, 1, bias=False), position=constant(draw, c, h, w), norm=nn.BatchNorm2d(c),
    )  # fmt: skip


@structure
def pooled(draw: random.Random, c: int, h: int, w: int) -> nn.Module:
    pools: list[nn.Module] = [nn.MaxPool2d(2), nn.MaxPool2d(3, 2, 1), nn.MaxPool2d(3, 2, ceil_mode=True)]
    pools += [nn.MaxPool2d(2, 1, dilation=2), nn.AvgPool2d(2), nn.AvgPool2d(3, 2, 1, ceil_mode=True)]
    pools += [nn.LPPool2d(2, 2), nn.AdaptiveAvgPool2d((3, 2)), nn.AdaptiveMaxPool2d(2)]
    pool = draw.choice(pools)
    return nn.Sequential(conv(draw, c), draw.choice([nn.ReLU(), nn.Identity(), nn.ReLU6()]), pool, plain(draw, c))


@structure
def squeeze_excite(draw: random.Random, c: int, h: int, w: int) -> nn.Module:
    pool = draw.choice([lambda x: x.mean((2, 3), keepdim=True), lambda x: x.amax((2, 3), keepdim=True)])
    return Block(
        lambda s, x: x * s.gate(s.up(s.down(pool(x)).relu())),
        down=nn.Conv2d(c, 4, 1), up=nn.Conv2d(4, c, 1), gate=draw.choice([nn.Sigmoid(), nn.Hardsigmoid()]),
    )  # fmt: skip


@structure
def squeeze_excite_linear(draw: random.Random, c: int, h: int, w: int) -> nn.Module:
    return Block(
        lambda s, x: x * s.up(s.norm(s.down(x.mean((2, 3)))).relu()).sigmoid()[:, :, None, None],
        down=nn.Linear(c, 4), norm=nn.BatchNorm1d(4), up=nn.Linear(4, c, bias=False),
    )  # fmt: skip


@structure
def spatial_attention(draw: random.Random, c: int, h: int, w: int) -> nn.Module:
    return Block(
        lambda s, x: x * s.conv(torch.cat([x.amax(1, keepdim=True), x.mean(1, keepdim=True)], 1)).sigmoid(),
        conv=nn.Conv2d(2, 1, 3, padding=1),
    )


@structure
def called_twice(draw: random.Random, c: int, h: int, w: int) -> nn.Module:
    return Block(
        lambda s, x: s.second(s.conv(s.first(s.conv(x)).relu())),
        conv=plain(draw, c), first=nn.BatchNorm2d(c), second=nn.BatchNorm2d(c),
    )  # fmt: skip


@structure
def wholly_shared(draw: random.Random, c: int, h: int, w: int) -> nn.Module:
    return Block(lambda s, x: s.conv(s.conv(x)) + x, conv=after(draw, plain(draw, c), c))


@structure
def tied(draw: random.Random, c: int, h: int, w: int) -> nn.Module:
    block = Block(
        lambda s, x: s.norm(s.second(s.first(x).relu())).relu(),
        first=nn.Conv2d(c, c, 3, padding=1), second=nn.Conv2d(c, c, 3, padding=2, dilation=2), norm=nn.BatchNorm2d(c),
    )  # fmt: skip
    block.second.weight = block.first.weight
    return block


@structure
def norm_first(draw: random.Random, c: int, h: int, w: int) -> nn.Module:
    return nn.Sequential(nn.BatchNorm2d(c), activation(draw), conv(draw, c))


@structure
def two_norms(draw: random.Random, c: int, h: int, w: int) -> nn.Module:
    between = draw.choice([nn.Identity(), nn.Identity(), nn.Dropout(0.1), nn.ReLU()])
    return nn.Sequential(conv(draw, c), nn.BatchNorm2d(c), between, nn.BatchNorm2d(c, affine=False), activation(draw))


@structure
def used_beside_its_norm(draw: random.Random, c: int, h: int, w: int) -> nn.Module:
    return Block(
        lambda s, x: (lambda y: s.norm(y).relu() + draw_free(y))(s.conv(x)), conv=plain(draw, c), norm=nn.BatchNorm2d(c)
    )


def draw_free(y: Tensor) -> Tensor:
    return y.sigmoid()


@structure
def without_statistics(draw: random.Random, c: int, h: int, w: int) -> nn.Module:
    norm = draw.choice(
        [nn.InstanceNorm2d(c), nn.InstanceNorm2d(c, affine=True), nn.GroupNorm(2, c), nn.GroupNorm(1, c)]
    )
    return nn.Sequential(conv(draw, c), norm, activation(draw))
