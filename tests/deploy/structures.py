"""What random networks are made of: structures on maps (N, C, H, W), and endings from a map to logits (N, K).

Many put a constant, or a change of layout, between a layer and its BatchNorm, where sizes of different axes coincide.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Size = tuple[int, int, int]
Make = Callable[[random.Random, int, int, int], nn.Module]
STRUCTURES: dict[str, Make] = {}
"""Functions of a generator and the sizes C, H and W of a map."""
ENDINGS: dict[str, Callable[[random.Random, int, int, int, int], nn.Module]] = {}
"""Likewise, and the number of classes."""
ONNX_RUNTIME_ONLY = {"spatial_attention"}
"""Structures that OpenVINO computes wrongly: it quantizes wrongly after a maximum that is joined by Concat."""


class Block(nn.Module):
    """A function of its parts and an input; tensors become parameters."""

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


def ending(make: Callable[[random.Random, int, int, int, int], nn.Module]) -> Any:
    ENDINGS[make.__name__] = make
    return make


def conv(draw: random.Random, c: int, out: int | None = None) -> nn.Conv2d:
    """A convolution that keeps H and W."""
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
    """Values that broadcast against a map, along one axis or several."""
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
    groups = draw.choice([c, 2])
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


@structure
def channels_last_norm(draw: random.Random, c: int, h: int, w: int) -> nn.Module:
    return Block(
        lambda s, x: x + s.down(F.gelu(s.up(s.norm(s.conv(x).permute(0, 2, 3, 1))))).permute(0, 3, 1, 2),
        conv=nn.Conv2d(c, c, 3, padding=1, groups=c), norm=nn.LayerNorm(c), up=nn.Linear(c, 2 * c),
        down=nn.Linear(2 * c, c),
    )  # fmt: skip


@structure
def permuted_norm(draw: random.Random, c: int, h: int, w: int) -> nn.Module:
    axes, size = draw.choice([((0, 3, 2, 1), w), ((0, 2, 1, 3), h), ((0, 1, 3, 2), c), ((0, 3, 1, 2), w)])
    return nn.Sequential(plain(draw, c), Block(lambda s, x: x.permute(axes)), nn.BatchNorm2d(size), activation(draw))


@structure
def reshaped_norm(draw: random.Random, c: int, h: int, w: int) -> nn.Module:
    even = c - c % 2
    return Block(
        lambda s, x: s.norm(s.conv(x).reshape(-1, even // 2, 2 * h, w)).relu(),
        conv=plain(draw, c, even), norm=nn.BatchNorm2d(even // 2),
    )  # fmt: skip


@structure
def channel_shuffle(draw: random.Random, c: int, h: int, w: int) -> nn.Module:
    even = c - c % 2
    return nn.Sequential(
        nn.Conv2d(c, even, 3, padding=1, bias=False), nn.ChannelShuffle(2), nn.BatchNorm2d(even), activation(draw)
    )


@structure
def pixel_shuffle(draw: random.Random, c: int, h: int, w: int) -> nn.Module:
    return nn.Sequential(plain(draw, c, 4 * c), nn.PixelShuffle(2), nn.BatchNorm2d(c), nn.PixelUnshuffle(2),
                         nn.BatchNorm2d(4 * c), plain(draw, 4 * c, c))  # fmt: skip


@structure
def halves(draw: random.Random, c: int, h: int, w: int) -> nn.Module:
    if draw.random() < 0.5:
        return Block(lambda s, x: F.glu(s.norm(s.conv(x)), 1), conv=conv(draw, c, 2 * c), norm=nn.BatchNorm2d(2 * c))
    return Block(
        lambda s, x: (lambda a, b: torch.cat([s.norm(s.conv(a)).relu(), b], 1))(*x.tensor_split(2, 1)),
        conv=conv(draw, (c + 1) // 2), norm=nn.BatchNorm2d((c + 1) // 2),
    )  # fmt: skip


@structure
def product_of_two(draw: random.Random, c: int, h: int, w: int) -> nn.Module:
    return Block(
        lambda s, x: s.norm(s.left(x) * s.right(x)).relu(),
        left=plain(draw, c), right=plain(draw, c), norm=nn.BatchNorm2d(c),
    )  # fmt: skip


@structure
def moved(draw: random.Random, c: int, h: int, w: int) -> nn.Module:
    move = draw.choice(
        [
            lambda x: F.pad(x, (1, 0, 0, 1)),
            lambda x: F.pad(x, (1, 1, 1, 1), value=0.7),
            lambda x: F.pad(x, (0, 0, 0, 0, 1, 0)),
            lambda x: x.roll(1, 3),
            lambda x: x.flip(2),
            lambda x: F.interpolate(x, scale_factor=2.0),
            lambda x: F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False),
            lambda x: x[:, :, ::2, 1:],
            lambda x: x.repeat(1, 1, 2, 1),
        ]
    )
    layer = plain(draw, c)
    with torch.no_grad():
        size = move(torch.zeros(2, c, h, w)).shape[1]
    return nn.Sequential(
        layer, Block(lambda s, x: move(x)), nn.BatchNorm2d(size), activation(draw), plain(draw, size, c)
    )


@structure
def clamped(draw: random.Random, c: int, h: int, w: int) -> nn.Module:
    low = draw.choice(
        [
            lambda x: x.clamp(min=0.1),
            lambda x: x.clamp(max=0.5),
            lambda x: x.clamp(-20, 20),
            lambda x: x.clamp(-0.3, 0.8),
            lambda x: x.clamp(0.0, 40.0),
            lambda x: -x.relu(),
            lambda x: x.abs(),
            lambda x: torch.minimum(x, x.mean()),
            lambda x: x.square(),
            lambda x: F.max_pool2d(x.clamp(-2, 2), 2),
        ]
    )
    return nn.Sequential(conv(draw, c), nn.BatchNorm2d(c), Block(lambda s, x: low(x)), plain(draw, c))


@structure
def clamped_by_a_parameter(draw: random.Random, c: int, h: int, w: int) -> nn.Module:
    return Block(
        lambda s, x: s.last(torch.clamp(s.conv(x), s.low, s.high)),
        conv=conv(draw, c), last=plain(draw, c), low=torch.tensor(-1.0), high=torch.tensor(1.5),
    )  # fmt: skip


@structure
def names_of_operations(draw: random.Random, c: int, h: int, w: int) -> nn.Module:
    """Parameters with the names that the tracer gives to results."""
    return Block(
        lambda s, x: (s.conv2d(x).relu() + s.add - x.mean((2, 3), keepdim=True) * s.mean) * s.mul + s.val_0,
        conv2d=plain(draw, c), add=torch.randn(1, c, 1, 1), mean=torch.randn(()), mul=torch.randn(1, 1, 1, w),
        val_0=torch.randn(1),
    )  # fmt: skip


@structure
def conditional_norm(draw: random.Random, c: int, h: int, w: int) -> nn.Module:
    """A BatchNorm whose γ is computed."""
    block = Block(
        lambda s, x: F.batch_norm(s.conv(x), s.mean, s.var, 1 + s.scale.tanh(), s.bias).relu(),
        conv=plain(draw, c), scale=torch.randn(c), bias=torch.zeros(c),
    )  # fmt: skip
    block.register_buffer("mean", torch.randn(c))
    block.register_buffer("var", torch.rand(c) + 0.5)
    return block


@structure
def line(draw: random.Random, c: int, h: int, w: int) -> nn.Module:
    """A Conv1d over the columns, with a constant along either axis before its BatchNorm."""
    how, shapes = combine(draw), dict(length=(1, 1, w), raw=(w,), channel=(c, 1), both=(1, c, w), scalar=())
    return Block(
        lambda s, x: x * s.norm(how(s.conv(x.mean(2)), s.position)).sigmoid().unsqueeze(2),
        conv=nn.Conv1d(c, c, 3, padding=1, bias=draw.random() < 0.5), norm=nn.BatchNorm1d(c),
        position=constant(draw, c, h, w, shapes),
    )  # fmt: skip


@structure
def tokens(draw: random.Random, c: int, h: int, w: int) -> nn.Module:
    """A Linear on (N, W, C) with a constant along either axis, and a BatchNorm over W or over C."""
    how, over_tokens = combine(draw), draw.random() < 0.5
    shapes = dict(token=(1, w, 1), raw=(w, 1), feature=(c,), both=(1, w, c), scalar=(), feature3=(1, 1, c))

    def forward(s: Any, x: Tensor) -> Tensor:
        y = how(s.fc(x.mean(2).transpose(1, 2)), s.position)
        y = s.norm(y) if over_tokens else s.norm(y.transpose(1, 2)).transpose(1, 2)
        return x + y.relu().transpose(1, 2).unsqueeze(2)

    return Block(
        forward, fc=nn.Linear(c, c, bias=draw.random() < 0.5), norm=nn.BatchNorm1d(w if over_tokens else c),
        position=constant(draw, c, h, w, shapes),
    )  # fmt: skip


@structure
def linear_on_axes(draw: random.Random, c: int, h: int, w: int) -> nn.Module:
    """A Linear over W of the map itself, then a BatchNorm of its channels."""
    return Block(
        lambda s, x: s.norm(s.fc(x)).relu(), fc=nn.Linear(w, w, bias=draw.random() < 0.5), norm=nn.BatchNorm2d(c)
    )


@structure
def mixer(draw: random.Random, c: int, h: int, w: int) -> nn.Module:
    """Linear layers over tokens and over features in turn, one of them called twice."""

    def forward(s: Any, x: Tensor) -> Tensor:
        y = x.mean(3).transpose(1, 2)  # (N, H, C)
        y = y + s.tokens(s.first(y).transpose(1, 2)).transpose(1, 2)
        y = y + s.features(s.features(s.second(y)).relu())
        return x * y.transpose(1, 2).unsqueeze(3).sigmoid()

    return Block(
        forward, tokens=nn.Linear(h, h), features=nn.Linear(c, c), first=nn.LayerNorm(c),
        second=nn.LayerNorm(c),
    )  # fmt: skip


@structure
def attention(draw: random.Random, c: int, h: int, w: int) -> nn.Module:
    def forward(s: Any, x: Tensor) -> Tensor:
        y = s.norm(x.mean(2).transpose(1, 2) + s.position)
        q, k, v = s.qkv(y).chunk(3, -1)
        y = s.out(torch.softmax(q @ k.transpose(1, 2) / c**0.5, -1) @ v)
        return x + y.transpose(1, 2).unsqueeze(2)

    return Block(
        forward, norm=nn.LayerNorm(c), qkv=nn.Linear(c, 3 * c), out=nn.Linear(c, c), position=torch.randn(1, w, c)
    )


@structure
def learned_queries(draw: random.Random, c: int, h: int, w: int) -> nn.Module:
    """A layer that is given a constant."""

    def forward(s: Any, x: Tensor) -> Tensor:
        weights = torch.softmax(s.embed(s.query) @ x.flatten(2), -1)  # (N, W, HW)
        return x + (weights @ x.flatten(2).transpose(1, 2)).transpose(1, 2).unsqueeze(2)

    return Block(forward, embed=nn.Linear(c, c), query=torch.randn(w, c))


@ending
def mean(draw: random.Random, c: int, h: int, w: int, k: int) -> nn.Module:
    return Block(lambda s, x: s.fc(x.mean((2, 3))), fc=nn.Linear(c, k))


@ending
def pooled_flat(draw: random.Random, c: int, h: int, w: int, k: int) -> nn.Module:
    pool = draw.choice([nn.AdaptiveAvgPool2d(2), nn.AdaptiveMaxPool2d(2), nn.AdaptiveAvgPool2d((1, 4))])
    return nn.Sequential(pool, nn.Flatten(), nn.Linear(4 * c, k))


@ending
def flat(draw: random.Random, c: int, h: int, w: int, k: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(c * h * w, k, bias=draw.random() < 0.5))


@ending
def maximum(draw: random.Random, c: int, h: int, w: int, k: int) -> nn.Module:
    return Block(lambda s, x: s.fc(x.amax((2, 3))), fc=nn.Linear(c, k))


@ending
def norms_of_vectors(draw: random.Random, c: int, h: int, w: int, k: int) -> nn.Module:
    shapes = dict(feature=(k,), row=(1, k), scalar=(), none=(1,))
    how = combine(draw)
    return Block(
        lambda s, x: s.last(how(s.fc(s.norm(s.hidden(x.mean(3).flatten(1))).relu()), s.shift)),
        hidden=nn.Linear(c * h, w), norm=nn.BatchNorm1d(w), fc=nn.Linear(w, k, bias=draw.random() < 0.5),
        shift=constant(draw, c, h, w, shapes), last=nn.BatchNorm1d(k),
    )  # fmt: skip


@ending
def shared_linear(draw: random.Random, c: int, h: int, w: int, k: int) -> nn.Module:
    return Block(
        lambda s, x: s.out(s.second(s.fc(s.first(s.fc(x.mean((2, 3)))).relu()))),
        fc=nn.Linear(c, c, bias=draw.random() < 0.5), first=nn.BatchNorm1d(c), second=nn.BatchNorm1d(c),
        out=nn.Linear(c, k),
    )  # fmt: skip


@ending
def convolved(draw: random.Random, c: int, h: int, w: int, k: int) -> nn.Module:
    pool = draw.choice([lambda x: x.mean((2, 3)), lambda x: x.mean(2).mean(2), lambda x: x.sum((-1, -2))])
    return Block(
        lambda s, x: pool(s.norm(s.conv(x) + s.position)), conv=nn.Conv2d(c, k, 1, bias=draw.random() < 0.5),
        position=constant(draw, k, h, w), norm=draw.choice([nn.BatchNorm2d(k), nn.Identity()]),
    )  # fmt: skip


@ending
def tokens_mean(draw: random.Random, c: int, h: int, w: int, k: int) -> nn.Module:
    return Block(lambda s, x: s.fc(x.flatten(2).transpose(1, 2)).mean(1), fc=nn.Linear(c, k))


@ending
def class_token(draw: random.Random, c: int, h: int, w: int, k: int) -> nn.Module:
    def forward(s: Any, x: Tensor) -> Tensor:
        y = torch.cat([s.token.expand(x.shape[0], -1, -1), x.flatten(2).transpose(1, 2)], 1)
        y = y + s.attention(y, y, y, need_weights=False)[0]
        return s.fc(s.norm(y[:, 0] + y.mean(1)))

    heads = 2 if c % 2 == 0 else 1
    return Block(
        forward, token=torch.randn(1, 1, c), attention=nn.MultiheadAttention(c, heads, batch_first=True),
        norm=nn.LayerNorm(c), fc=nn.Linear(c, k),
    )  # fmt: skip


@ending
def line_maximum(draw: random.Random, c: int, h: int, w: int, k: int) -> nn.Module:
    return Block(lambda s, x: s.fc(s.conv(x.flatten(2)).amax(2)), conv=nn.Conv1d(c, w, 3), fc=nn.Linear(w, k))
