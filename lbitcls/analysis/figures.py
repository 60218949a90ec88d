"""Common parts of the figures: colors, fonts, display in notebooks, and atomic writing.

Figures are created without pyplot, so that no window system is needed and no global state changes.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from lbitcls.utils.errors import ConfigError
from lbitcls.utils.files import check_writable, write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, RED, PURPLE, GREY, INK = (
    *("#1d4ed8", "#c2410c", "#047857", "#dc2626", "#7e22ce", "#6b7280", "#111827"),
)
LINES = (BLUE, ORANGE, GREEN, PURPLE, "#0e7490", "#be185d", "#854d0e", GREY)
FORMATS = (".png", ".pdf", ".svg", ".jpg")
DPI = 110
_FONTS = ("DejaVu Sans", "Noto Sans CJK SC", "Noto Sans CJK JP", "WenQuanYi Zen Hei", "Arial Unicode MS")
_STYLE: dict[str, Any] = {
    "text.parse_math": False,  # a class name may be "5$ note"
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "font.size": 9,
    "text.color": INK,
    "axes.titlesize": 10,
    "axes.labelcolor": GREY,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#9ca3af",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#eceef1",
    "grid.linewidth": 0.8,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "lines.linewidth": 1.6,
    "legend.edgecolor": "none",
    "legend.fontsize": 8.5,
}


@contextmanager
def style() -> Iterator[None]:
    """Apply the figures' style within the block."""
    import matplotlib

    look: Any = {**_STYLE, "font.family": _fonts()}
    with matplotlib.rc_context(look):
        yield


@cache
def _fonts() -> list[str]:
    """Return the installed fonts of `_FONTS`; the first comes with matplotlib."""
    from matplotlib.font_manager import fontManager

    present = set(fontManager.get_font_names())
    return [name for name in _FONTS if name in present]


@cache
def _letters() -> frozenset[int]:
    """Return the characters that the fonts contain."""
    from matplotlib.font_manager import findfont
    from matplotlib.ft2font import FT2Font

    return frozenset(code for name in _fonts() for code in FT2Font(findfont(name)).get_charmap())


def can_draw(text: str) -> bool:
    """Return True if this machine's fonts contain every character of `text`; missing ones are drawn as boxes."""
    return all(ord(letter) in _letters() for letter in text)


def new_figure(width: float, height: float, arranged: bool = True) -> Figure:
    """Create an empty figure of `width` by `height` inches, which a notebook displays as a cell's result.

    `arranged`: reserve room for the labels, which takes a second if there are many.
    """
    from matplotlib.figure import Figure

    figure: Any = Figure(figsize=(width, height), dpi=DPI, layout="constrained" if arranged else None)
    figure._repr_png_ = lambda: png(figure)
    return figure


def png(figure: Figure) -> bytes:
    """Return the figure as the bytes of a PNG file."""
    buffer = io.BytesIO()
    _write(figure, buffer, "png")
    return buffer.getvalue()


def pixels(picture: str | Path | BinaryIO) -> np.ndarray:
    """Read a saved figure, uint8 (H, W, 3)."""
    from PIL import Image

    with Image.open(picture) as image:
        return np.asarray(image.convert("RGB"))


def rendered(figure: Figure) -> np.ndarray:
    """Return the figure as an image, uint8 (H, W, 3)."""
    return pixels(io.BytesIO(png(figure)))


def save(figure: Figure, path: str | Path) -> Path:
    """Write the figure to `path` atomically, in the format of the suffix.

    Raises:
        ConfigError: Unknown format.
    """
    path = check_path(path)
    write_whole(path, lambda temporary: _write(figure, temporary, path.suffix.lower()[1:]))
    return path


def check_path(path: str | Path, option: str = "--out") -> Path:
    """Return `path` after a check that a figure can be written to it; else raise `ConfigError`, also for the suffix.

    `option` is the name of the user's option, for the message.
    """
    path = Path(path).expanduser()
    if path.suffix.lower() not in FORMATS or path.is_dir():
        raise ConfigError(f"a figure's file must be {', '.join('*' + f for f in FORMATS)}; got '{path}'.")
    return check_writable(path, option)


def _write(figure: Figure, target: Any, kind: str) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # drawn as a box
        figure.savefig(target, format=kind)


def shorten(text: str, length: int) -> str:
    """Return `text` with an ellipsis in its middle if it is longer than `length`."""
    if len(text) <= length:
        return text
    tail = (length - 1) // 3
    return f"{text[: length - 1 - tail]}…{text[len(text) - tail :]}"
