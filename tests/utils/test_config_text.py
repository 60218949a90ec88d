"""The text of a config: what is written reads back equal, run or not; what cannot be written is named."""

from __future__ import annotations

import keyword
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lbitcls.settings.sections import read_settings
from lbitcls.utils import Config
from lbitcls.utils.config_text import WIDTH, format_config, read_sections
from lbitcls.utils.errors import ConfigError

TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12) | st.sampled_from(
    ["{{ fileDirname }}", "{{_base_.x}}", "{{{", "\\{{", "'\"", "\r"]
)
BYTES = st.binary(max_size=5) | st.just(b"{{ fileDirname }}")
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | TEXTS
    | BYTES
    | st.builds(range, st.integers(-9, 9), st.integers(-9, 9), st.integers(1, 3))
)
KEYS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS,
    lambda inner: st.tuples(inner, inner),
    max_leaves=3,
)
NAMES = st.sampled_from(["a", "type", "lr_mult", "self", "class", "None", "b-c", "dict", "é", "float", "", "__debug__"])
VALUES = st.recursive(
    SCALARS | st.sets(KEYS, max_size=3),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(NAMES | TEXTS, inner, max_size=4)
        | st.dictionaries(KEYS, inner, max_size=3)
    ),
    max_leaves=15,
)
HELPERS = st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1, max_size=9).map("helper {}".format)
TOP = st.sampled_from(["class", "dict", "range", "float", "globals", "set", "x-y", "mine", "é"]) | HELPERS


def sections_of(cfg: Config) -> dict[str, Any]:
    return {name: kinds(value) for name, value in cfg.to_dict().items()}


def kinds(value: Any) -> Any:
    """The value with its types all the way down, since 1 == True == 1.0 and {} == ConfigDict()."""
    if isinstance(value, dict):
        return dict, [(kinds(key), kinds(item)) for key, item in value.items()]
    if isinstance(value, (list, tuple)):
        return type(value), [kinds(item) for item in value]
    if isinstance(value, set):
        return type(value), sorted(map(repr, value))
    return type(value), repr(value)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.dictionaries(TOP, VALUES, max_size=4))
def test_any_text_reads_back_equal(sections: dict[str, Any]) -> None:
    cfg = Config(sections)
    assert sections_of(Config.fromstring(cfg.pretty_text)) == sections_of(cfg)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.dictionaries(TOP, VALUES, max_size=6))
def test_any_file_reads_back_equal(tmp_path_factory: pytest.TempPathFactory, sections: dict[str, Any]) -> None:
    cfg = Config(sections)
    path = tmp_path_factory.getbasetemp() / "any.py"
    cfg.dump(path)
    again = Config.fromfile(path)
    assert sections_of(again) == sections_of(cfg) and again.pretty_text == cfg.pretty_text


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_without_a_literal(value: float) -> None:
    assert repr(read_sections(format_config({"x": [value]}))["x"][0]) == repr(value)


def test_shipped_configs_read_back_equal(repo_root: Path, tmp_path: Path) -> None:
    for path in sorted((repo_root / "configs").rglob("*.py"))[::9]:
        cfg = Config.fromfile(path)
        cfg.dump(tmp_path / "config.py")
        again = Config.fromfile(tmp_path / "config.py")
        assert kinds(again.to_dict()) == kinds(cfg.to_dict()), path
        longest = max(cfg.pretty_text.splitlines(), key=len)
        assert len(longest) <= WIDTH or " " not in longest.strip(), path


def test_layout() -> None:
    long = [dict(type="Normalize", mean=[0.5] * 9, std=[0.25] * 9), dict(type="Collect", keys=["img", "gt_label"])]
    text = format_config(dict(lr=0.1, empty={}, one=(1,), pipeline=long, by={"b-c": 1}))
    assert text.splitlines()[:3] == ["lr = 0.1", "empty = dict()", "one = (1,)"]
    assert "pipeline = [\n    dict(\n        type='Normalize',\n        mean=[0.5," in text
    assert "\n    ),\n    dict(type='Collect', keys=['img', 'gt_label']),\n]\n" in text and text.endswith(
        "by = {'b-c': 1}\n"
    )


class Plain:
    """Not a plain value."""


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            dict(type=Plain),
            r"optimizer\.type is the class Plain, for which its name is written, 'Plain'; a config holds",
        ),
        (dict(steps=[1, dict(f=len)]), r"optimizer\.steps\[1\]\.f is an object, <built-in function len>"),
        ({3: {(1, 2): Plain()}}, r"optimizer\[3\]\[\(1, 2\)\] is an object"),
        ({Plain: 1}, "optimizer is the class Plain"),
        ({"lr": 10**5000}, r"optimizer\.lr is a whole number of 16,610 bits"),
    ],
)
def test_what_no_text_can_hold_is_named(value: Any, message: str) -> None:
    cfg = Config({})
    cfg._cfg_dict["optimizer"] = value
    with pytest.raises(ConfigError, match=message):
        cfg.dump()
    with pytest.raises(ConfigError, match=message):
        read_settings(cfg).require((), "a plan")


def test_a_value_that_contains_itself() -> None:
    within: list[Any] = []
    within.append(within)
    with pytest.raises(ConfigError, match="contains itself"):
        format_config({"x": within})


def test_objects_among_the_values_of_a_file(tmp_path: Path) -> None:
    """Paths and NumPy's values become plain; what a config imports is no part of it."""
    path = tmp_path / "c.py"
    path.write_text(
        "from pathlib import Path\nimport numpy as np\nfrom collections import OrderedDict\n"
        "work_dir = Path('w') / 'x'\ntotal_epochs = np.int64(3)\nhelper = dict(made=Path)\n"
        "optimizer = OrderedDict(type='SGD', lr=np.float32(0.5), betas=(np.float64(0.1), np.arange(2)))\n"
    )
    cfg = Config.fromfile(path)
    expected = dict(work_dir="w/x", total_epochs=3, optimizer=dict(type="SGD", lr=0.5, betas=(0.1, [0, 1])))
    assert kinds(cfg.to_dict()) == kinds(expected)
    cfg.work_dir, cfg.total_epochs = Path("y"), np.int64(4)  # as a program may set them
    again = Config.fromstring(cfg.pretty_text)
    assert kinds((again.work_dir, again.total_epochs)) == kinds(("y", 4))


@pytest.mark.parametrize("suffix", [".yaml", ".json"])
def test_yaml_and_json_have_lists(tmp_path: Path, suffix: str) -> None:
    cfg = Config(dict(optimizer=dict(betas=(0.1, np.float64(0.5)), steps=range(2)), work_dir=Path("w")))
    cfg.dump(tmp_path / f"c{suffix}")
    plain = dict(optimizer=dict(betas=[0.1, 0.5], steps=[0, 1]), work_dir="w")
    assert kinds(Config.fromfile(tmp_path / f"c{suffix}").to_dict()) == kinds(plain)


@pytest.mark.parametrize("word", [*keyword.kwlist[:4], "x y", "2"])
def test_names_that_no_assignment_can_set(word: str) -> None:
    assert read_sections(format_config({word: [1], "lr": 2})) == {word: [1], "lr": 2}


@pytest.mark.parametrize(
    "text",
    ["globals().update(__import__('os'))", "globals().clear()", "globals()", "x = float(open('f'))", "x = set([y])"],
)
def test_reading_runs_nothing(text: str) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_sections(text)


@pytest.mark.parametrize("text", ["x = " + "[" * 3000 + "]" * 3000, "x = " + "-" * 5000 + "1", "x = float('a')"])
def test_texts_that_cannot_be_parsed(text: str) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_sections(text)
