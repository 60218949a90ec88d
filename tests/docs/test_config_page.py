"""docs/config.md agrees with the code: its tables of sections are generated, what is written by hand is compared."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from typing import Any

import pytest
from blocks import ROOT
from config_tables import BLOCK, table, written

from lbitcls import registry
from lbitcls.models.classifier import ImageClassifier
from lbitcls.models.heads import LinearClsHead
from lbitcls.quant.transformer import ModelTransformer
from lbitcls.settings.parse import section_fields
from lbitcls.settings.sections import Settings
from lbitcls.utils.config import SECTIONS

TEXT = (ROOT / "docs" / "config.md").read_text(encoding="utf-8")
ROWS = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in TEXT.splitlines() if line[:2] == "| "]
CODES = re.findall(r"`([^`]+)`", re.sub(r"^```.*?^```$", "", TEXT, flags=re.DOTALL | re.MULTILINE))
NAMED = set(re.findall(r"\w+", " ".join(CODES)))
REGISTRIES = {
    name: value
    for name, value in vars(registry).items()
    if isinstance(value, registry.Registry) and name not in ("ENGINES", "QUANT_LAYERS", "QUANLAYERS")
}
OWNERS = {"model": ImageClassifier, "model.head": LinearClsHead, "quant_transformer": ModelTransformer}
"""Whose arguments the keys of a component are."""
NOT_SHOWN = object()


def registered() -> dict[str, Any]:
    """Every name of every registry of classes, to its class."""
    found: dict[str, Any] = {}
    for known in REGISTRIES.values():
        for name in known.names():
            target = known.module_dict[name]
            if target.__module__.startswith("lbitcls."):
                found[name] = target
    return found


def default(target: Any, key: str) -> Any:
    """The default of an argument; NOT_SHOWN where the class takes none of that name, or always needs it."""
    parameter = inspect.signature(target).parameters.get(key)
    return NOT_SHOWN if parameter is None or parameter.default is parameter.empty else parameter.default


def value(text: str) -> Any:
    try:
        return ast.literal_eval(text.replace("3/4", "0.75").replace("4/3", str(4 / 3)))
    except (ValueError, SyntaxError):
        return NOT_SHOWN


def section_rows() -> Iterator[tuple[list[str], list[str]]]:
    """(full keys, the defaults stated) of each row that is about sections."""
    for row in ROWS:
        keys = re.findall(r"`([\w.]+)`", row[0])
        if len(row) == 3 and keys and keys[0].partition(".")[0] in SECTIONS:
            owner = keys[0].rpartition(".")[0]
            yield [f"{owner}{key}" if key.startswith(".") else key for key in keys], re.findall(r"`([^`]+)`", row[2])


def test_the_tables_of_sections_are_up_to_date() -> None:
    assert written(TEXT) == TEXT, "docs/config.md is not as the settings classes are: python docs/config_tables.py"


def test_it_has_every_section_once() -> None:
    names = [name for match in BLOCK.finditer(TEXT) for name in match[2].split()]
    assert sorted(names) == sorted([*section_fields(Settings), "optimizer.paramwise_cfg"])


def test_a_table_has_types_ranges_defaults_and_what_is_inside() -> None:
    text = table(["evaluation", "lr_config", "optimizer_config", "log_config", "optimizer.paramwise_cfg"])
    for key, about, kind, default in (
        ("evaluation.interval", "Epochs between two validations.", "an integer ≥ 1", "`1`"),
        ("optimizer_config.grad_clip.max_norm", "Maximum norm of all gradients together.", "a number > 0", "needed"),
        ("lr_config.policy='poly'", "A polynomial from the base rate to `min_lr`.", "", ""),
        ("lr_config.power", "Exponent of the polynomial.", "a number ≥ 0", "`1.0`"),
        (
            "log_config.hooks",
            "Loggers in addition to log.jsonl, which is always written.",
            "a list, each a `dict(…)`",
            "`[dict(type='TextLoggerHook')]`",
        ),
        (
            "optimizer.paramwise_cfg.custom_keys.NAME.lr_mult",
            "Factor on the learning rate; None: 1.",
            "a number ≥ 0",
            "`None`",
        ),
    ):
        assert f"\n| `{key}` | {about} | {kind} | {default} |\n" in text
    assert text.count("`lr_config.warmup`") == 1


@pytest.mark.parametrize("name", REGISTRIES)
def test_it_names_every_type(name: str) -> None:
    known = registered()
    missing = [kind for kind in REGISTRIES[name].names() if kind in known and kind not in NAMED]
    assert not missing, f"docs/config.md does not name {missing}"


def test_defaults_of_components_are_the_code_s() -> None:
    compared = 0
    for keys, stated in section_rows():
        for key, text in zip(keys, stated if len(stated) == len(keys) else []):
            section, _, name = key.rpartition(".")
            real = default(OWNERS[section], name) if section in OWNERS else NOT_SHOWN
            if NOT_SHOWN not in (real, value(text)):
                assert value(text) == real, f"{key} is {real!r} by default, not {text}"
                compared += 1
    assert compared > 5


def calls() -> Iterator[tuple[str, dict[str, str]]]:
    """(type, its keys with what is written for each) of all that is written as `Type(key=value)` or as a row."""
    for code in CODES:
        if re.fullmatch(r"\w+\(.*\)", code, re.DOTALL):
            call = ast.parse(code.replace(", …", "").replace("…", "..."), mode="eval").body
            assert isinstance(call, ast.Call)
            yield code.partition("(")[0], {str(k.arg): ast.unparse(k.value) for k in call.keywords}
    for row in ROWS:
        kinds = re.findall(r"`(\w+)`", row[0])
        given = re.findall(r"`([a-z]\w*)(?:=([^`]+))?`", row[1])
        if len(kinds) == 1 and len(row) == 2:
            yield kinds[0], dict(given)


def test_keys_and_defaults_of_types_are_the_code_s() -> None:
    known, compared = registered(), 0
    for kind, given in calls():
        for key, text in given.items() if kind in known else ():
            parameters = inspect.signature(known[kind]).parameters
            assert key in parameters, f"{kind} takes no {key}"
            real = default(known[kind], key)
            if text and NOT_SHOWN not in (real, value(text)):
                stated = value(text)
                same = tuple(stated) == real if isinstance(stated, list) else stated == real
                assert same, f"{kind}: {key} is {real!r} by default, not {text}"
                compared += 1
    assert compared > 20
