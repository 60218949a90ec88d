"""Ways to damage bytes, the same for all formats, drawn by a seed."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

_NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**63 - 1, 2**64 - 1)


def flipped(content: bytes, draw: random.Random) -> bytes:
    """Return the content with one to eight flipped bits, half of the time near its head."""
    changed = bytearray(content)
    end = len(changed) if draw.random() < 0.5 else min(len(changed), 200)
    for _ in range(draw.randint(1, 8)):
        changed[draw.randrange(end)] ^= 1 << draw.randrange(8)
    return bytes(changed)


def truncated(content: bytes, draw: random.Random) -> bytes:
    return content[: draw.randrange(len(content))]


def extended(content: bytes, draw: random.Random) -> bytes:
    more = draw.choice((content, bytes(draw.randint(1, 4096)), draw.randbytes(draw.randint(1, 400))))
    return content + more


def number_set(content: bytes, draw: random.Random) -> bytes:
    """Return the content with a number of 1, 2, 4 or 8 bytes set to one at the edge of its range."""
    size, order = draw.choice((1, 2, 4, 8)), draw.choice(("big", "little"))
    value = draw.choice(_NUMBERS) & (256**size - 1)
    place = draw.randrange(min(len(content), draw.choice((64, 512, 2**30))))
    return content[:place] + value.to_bytes(size, order) + content[place + size :]


def cut_out(content: bytes, draw: random.Random) -> bytes:
    start = draw.randrange(len(content))
    return content[:start] + content[start + draw.randint(1, 64) :]


def repeated(content: bytes, draw: random.Random) -> bytes:
    start = draw.randrange(len(content))
    end = start + draw.randint(1, 64)
    return content[:end] + content[start:end] * draw.randint(1, 8) + content[end:]


def spliced(content: bytes, draw: random.Random, others: Sequence[bytes]) -> bytes:
    """Return the head of the content before the rest of another file."""
    other = draw.choice(others)
    return content[: draw.randrange(len(content))] + other[draw.randrange(len(other)) :]


_WAYS: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    *(flipped, flipped, truncated, number_set, number_set, extended, cut_out, repeated),
)


def damaged(content: bytes, draw: random.Random, others: Sequence[bytes]) -> tuple[str, bytes]:
    """Return the content damaged in one way to three, and these ways in words; it may become empty."""
    ways = []
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        if not content:
            break
        if draw.random() < 0.1:
            content = spliced(content, draw, others)
            ways.append("spliced")
        else:
            way = draw.choice(_WAYS)
            content = way(content, draw)
            ways.append(way.__name__)
    return "+".join(ways), content
