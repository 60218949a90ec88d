"""Standard JSON: numbers that are not finite are never written."""

import ast
import json
import math
import random
from pathlib import Path
from typing import Any

import pytest

from lbitcls.utils.errors import DataError
from lbitcls.utils.jsontext import json_text, with_nulls

BAD = [float("nan"), float("inf"), float("-inf")]


def draw(random: random.Random, depth: int = 0) -> tuple[Any, int]:
    """Return random plain data, and the number of its values that are not finite."""
    kind = random.randrange(7 if depth < 4 else 4)
    if kind < 4:
        value = [random.random(), random.randrange(9), "NaN", random.choice([*BAD, None])][kind]
        return value, int(isinstance(value, float) and not math.isfinite(value))
    parts = [draw(random, depth + 1) for _ in range(random.randrange(4))]
    count = sum(number for _, number in parts)
    values = [value for value, _ in parts]
    return {4: values, 5: tuple(values), 6: {f"k{i}": v for i, v in enumerate(values)}}[kind], count


def test_random_data_is_written_as_valid_json_or_refused() -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    source, refused = random.Random(0), 0
    for _ in range(500):
        value, bad = draw(source)
        plain = json.loads(json_text(with_nulls(value)), parse_constant=refuse)
        if bad:
            refused += 1
            with pytest.raises(DataError, match="JSON cannot represent"):
                json_text(value)
        else:
            assert json.loads(json_text(value, indent=2), parse_constant=refuse) == plain
    assert refused > 50


def test_the_place_is_named() -> None:
    with pytest.raises(DataError, match=r"phases\.1\.top-1 is nan, which JSON cannot represent; nothing is written"):
        json_text({"phases": [{"top-1": 1.0}, {"top-1": float("nan")}]})


def test_what_is_no_data_is_still_pythons_error() -> None:
    circle: list[Any] = []
    circle.append(circle)
    with pytest.raises(ValueError, match="Circular"):
        json_text(circle)


def test_nothing_else_of_the_package_writes_json(repo_root: Path) -> None:
    for path in (repo_root / "lbitcls").rglob("*.py"):
        if path.name == "jsontext.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            is_json = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "json"
            assert not (is_json and node.attr in ("dump", "dumps")), f"{path}:{node.lineno}"
