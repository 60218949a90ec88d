"""Names that files, classes and keys have where somebody means ill, or is careless."""

from __future__ import annotations

import random

ODD = (
    *("a\nb", "a\rb", "a\r\nb", "a\tb", "a\0b", "\x1b[2J", "\x1b]0;title\x07", "\x9b31m", "\x7f", "\x85", "\u2028"),
    *("\u202egnp.exe", "\u2066x\u2069", "\ufeffx", "\u200b", "é", "e\u0301", "雛菊", "🐝", "\U0010ffff", "\ud800"),
    *("<script>alert(1)</script>", "<img src=x onerror=alert(1)>", '"><b>', "&amp;", "</script><!--", "]]>"),
    *("../x", "../../secrets/precious", "/etc/passwd", "~", "~root", "-rf", "--out", "$(touch x)", "`id`", ";id"),
    *("%s%n", "{0.__class__}", "{{ config }}", "{", "}", "%(asctime)s", "'", '"', "\\", "\\x41", "CON", "nul.", "."),
    *("..", "", " ", " a ", "a b", "x" * 255, "x" * 5000, "é" * 128, "a/b", "a\\b", "C:x", "1e5", "NaN", "None"),
)
"""One of each kind; the surrogate can be in no UTF-8 file."""


def odd_name(draw: random.Random) -> str:
    """Return an odd name, or several together, or a name of random characters."""
    kind = draw.random()
    if kind < 0.6:
        return draw.choice(ODD)
    if kind < 0.8:
        return draw.choice(ODD) + draw.choice(("", "a", " ")) + draw.choice(ODD)
    return "".join(chr(draw.choice((draw.randrange(128), draw.randrange(0x3000)))) for _ in range(draw.randint(1, 12)))


def writable(name: str) -> bool:
    """Return True if a file system accepts the name for one file."""
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        return False
    return 0 < size <= 255 and not {"\0", "/"} & set(name) and name not in (".", "..")
