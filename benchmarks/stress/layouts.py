"""Structures for random networks that change the layout of a map, and endings from a map to logits (N, K)."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stress.structures import Block, activation, combine, constant, conv, plain, structure

ENDINGS: dict[str, Callable[[random.Random, int, int, int, int], nn.Module]] = {}
"""Functions of a generator, the sizes C, H and W of a map, and the number of classes."""


def ending(make: Callable[[random.Random, int, int, int, int], nn.Module]) -> Any:
    ENDINGS[make.__name__] = make
    return make


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
    """Module whose parameters have the names that the tracer gives to results."""
    return Block(
        lambda s, x: (s.conv2d(x).relu() + s.add - x.mean((2, 3), keepdim=True) * s.mean) * s.mul + s.val_0,
        conv2d=plain(draw, c), add=torch.randn(1, c, 1, 1), mean=torch.randn(()), mul=torch.randn(1, 1, 1, w),
        val_0=torch.randn(1),
    )  # fmt: skip


@structure
def conditional_norm(draw: random.Random, c: int, h: int, w: int) -> nn.Module:
    """BatchNorm whose γ is computed."""
    block = Block(
        lambda s, x: F.batch_norm(s.conv(x), s.mean, s.var, 1 + s.scale.tanh(), s.bias).relu(),
        conv=plain(draw, c), scale=torch.randn(c), bias=torch.zeros(c),
    )  # fmt: skip
    block.register_buffer("mean", torch.randn(c))
    block.register_buffer("var", torch.rand(c) + 0.5)
    return block


@structure
def line(draw: random.Random, c: int, h: int, w: int) -> nn.Module:
    """Conv1d over the columns, with a constant along either axis before its BatchNorm."""
    how, shapes = combine(draw), dict(length=(1, 1, w), raw=(w,), channel=(c, 1), both=(1, c, w), scalar=())
    return Block(
        lambda s, x: x * s.norm(how(s.conv(x.mean(2)), s.position)).sigmoid().unsqueeze(2),
        conv=nn.Conv1d(c, c, 3, padding=1, bias=draw.random() < 0.5), norm=nn.BatchNorm1d(c),
        position=constant(draw, c, h, w, shapes),
    )  # fmt: skip


@structure
def tokens(draw: random.Random, c: int, h: int, w: int) -> nn.Module:
    """Linear on (N, W, C) with a constant along either axis, and a BatchNorm over W or over C."""
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
    """Linear over W of the map itself, then a BatchNorm over its channels."""
    return Block(
        lambda s, x: s.norm(s.fc(x)).relu(), fc=nn.Linear(w, w, bias=draw.random() < 0.5), norm=nn.BatchNorm2d(c)
    )


@structure
def mixer(draw: random.Random, c: int, h: int, w: int) -> nn.Module:
    """Linear layers over tokens and features in turn, one of them called twice."""

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
    """Layer whose input is a constant."""

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
