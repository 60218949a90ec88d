"""Comparison report as one self-contained HTML page, with JSON next to it.

The page contains its style, its script, plotly.js and the data. Table and summary are plain HTML; plotly.js runs only
after the page has been painted and is usable, before the first plot.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lbitcls.analysis.advice import advise
from lbitcls.analysis.findings import Analysis
from lbitcls.analysis.illnesses import SEVERITIES
from lbitcls.analysis.summary import describe
from lbitcls.utils.errors import ConfigError, DependencyError
from lbitcls.utils.files import check_writable, write_whole
from lbitcls.utils.jsontext import json_text
from lbitcls.version import __version__

_PAGE = Path(__file__).parent / "page"
_DIGITS = 6  # significant digits of a number in the report


def check_target(path: str | Path, option: str, *inputs: str | Path) -> tuple[Path, Path]:
    """Return the paths of the page and the JSON file, after a check that both are writable and the packages installed.

    Args:
        path: Path of the page, `.html`.
        option: Name of the user's option, for messages.
        inputs: Files that must not be replaced.

    Raises:
        ConfigError: Another suffix, or a file that cannot be written.
        DependencyError: plotly or Jinja2 is missing.
    """
    if Path(path).suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"{option} must name a page to write, *.html; got '{path}'.")
    page = check_writable(path, option, *inputs)
    _plotly_js()
    _environment()
    return page, check_writable(page.with_suffix(".json"), f"{option} (the figures next to the page)", *inputs)


def write_report(analysis: Analysis, page: Path, figures: Path, about: Mapping[str, Any], snippet: str = "") -> None:
    """Write the page and the figures, each atomically.

    Args:
        analysis: Results of the comparison.
        page: HTML file to write.
        figures: JSON file to write.
        about: Description of the compared models: `title`, and texts by topic (`images`, `float config`, …).
        snippet: `special_layers` to paste into the config (`lbitcls.analysis.advice`).
    """
    data = report_data(analysis, about, snippet)
    html = render(data)
    text = _lines(data)
    write_whole(page, lambda path: path.write_text(html, encoding="utf-8"))
    write_whole(figures, lambda path: path.write_text(text, encoding="utf-8"))


def report_data(analysis: Analysis, about: Mapping[str, Any], snippet: str = "") -> dict[str, Any]:
    """Return all results as plain data, numbers to 6 digits, a dict per layer. The keys are those of `findings`."""
    return _rounded(
        {
            "lbitcls_version": __version__,
            "about": dict(about),
            "summary": describe(analysis),
            "advice": {"layers": [asdict(advice) for advice in advise(analysis)], "special_layers": snippet},
            **asdict(analysis),
        }
    )


def render(data: dict[str, Any]) -> str:
    """Return the page for the data of `report_data`."""
    template = _environment().get_template("report.html")
    return template.render(
        data=data,
        severities=SEVERITIES,
        payload=_for_script(json_text(data, ensure_ascii=False, separators=(",", ":"))),
        plotly=_plotly_js(),
        style=(_PAGE / "report.css").read_text(encoding="utf-8"),
        script=(_PAGE / "report.js").read_text(encoding="utf-8"),
    )


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(item) for item in value]
    return value


def _lines(data: Mapping[str, Any]) -> str:
    """Return JSON with one line per key and per layer."""
    parts = {key: json_text(value, ensure_ascii=False) for key, value in data.items()}
    layers = [json_text(layer, ensure_ascii=False) for layer in data["layers"]]
    parts["layers"] = "[\n" + ",\n".join(layers) + "\n]"
    return "{\n" + ",\n".join(f"{json_text(key)}: {text}" for key, text in parts.items()) + "\n}\n"


def _for_script(text: str) -> str:
    """Return JSON that is safe in a script element: nothing in it ends the element or starts a comment."""
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _environment() -> Any:
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
    except ImportError as error:
        raise _missing("Jinja2", error) from error
    environment = Environment(
        loader=FileSystemLoader(_PAGE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(breakable=_breakable, code=_code, number=_number, ratio=_ratio, percent=_percent)
    return environment


def _plotly_js() -> str:
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise _missing("plotly", error) from error
    return str(get_plotlyjs())


def _missing(package: str, error: ImportError) -> DependencyError:
    return DependencyError(
        f"the package {package} is required but cannot be imported ({error}): pip install lbitcls[analysis]."
    )


def _code(text: str) -> Any:
    """Return `text` with backticked parts as code elements, and everything escaped."""
    from markupsafe import Markup, escape

    parts = text.split("`")
    return Markup("").join(
        Markup("<code>{}</code>").format(_breakable(part)) if place % 2 else escape(part)
        for place, part in enumerate(parts)
    )


def _breakable(name: str) -> Any:
    """Return a dotted name that may be broken after its dots."""
    from markupsafe import Markup, escape

    return Markup(".<wbr>").join(escape(part) for part in name.split("."))


def _number(value: float | None, digits: int = 2) -> str:
    """Format a number for the page: grouped thousands, `digits` decimals; a dash for None."""
    return "–" if value is None else f"{value:,.{digits}f}"


def _ratio(value: float, other: float) -> str:
    return "–" if not other else f"{value / other:.3f}"


def _percent(share: float | None, digits: int = 1) -> str:
    return "–" if share is None else f"{100 * share:.{digits}f} %"
