"""Configs with wrong values, at any place of two that train or under any key of the schema; texts that are none."""

from __future__ import annotations

import contextlib
import random
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from lbitcls.commands.main import _parse
from lbitcls.core.runner import EpochRunner
from lbitcls.quant.kernels import selection
from lbitcls.settings.sections import read_settings
from lbitcls.utils import Config
from lbitcls.utils.errors import DataError
from lbitcls.utils.logging import get_logger
from lbitcls.utils.safe import safe_mode
from lbitcls.workflows import training
from lbitcls.workflows.schema import config_schema
from stress.damage import damaged
from stress.names import odd_name
from stress.verdicts import Kind
from stress.wrong_values import BASES, VALUES, mutant, of, put, text_of, unshared

_TRAINED = 0.7  # share of the cases that go through `train`; the others are read only
_NESTED = zip("abcdef", ("x", "*a", "*b", "*c", "*d", "*e"))
_BOMB = "".join(f"{name}: &{name} [{', '.join([inner] * 8)}]\n" for name, inner in _NESTED)
_YAML = (
    _BOMB,
    "model: !!python/object/apply:os.system ['touch ../../secrets/x']\n",
    "model: !!python/object/new:type [x, [], {}]\n",
    "model: !!python/name:os.system\n",
    "a: &a\n  b: *a\n",
    "_base_: /etc/passwd\n",
    "_base_: config.yaml\n",
    "_base_: [a.py, '/dev/zero']\n",
    "custom_imports: {imports: [antigravity]}\n",
    "total_epochs: 1e3\nseed: 0o17\nlog_level: 2026-01-01\n",
    "- 1\n- 2\n",
    "? [a, b]\n: c\n",
    "%YAML 9.9\n---\nseed: 1\n",
    "a: " + "[" * 2000,
    "a: " + "9" * 5000 + "\n",
    "<<: [1, 2]\n",
    "{{ fileBasename }}: {{ _base_.x }}\n",
)
_JSON = (
    "[" * 100_000,
    '{"seed": NaN}',
    '{"seed": 1, "seed": 2}',
    '{"a": 1e999}',
    "null",
    '"x"',
    "{}",
    '{"\\ud800": 1}',
)
_PYTHON = (
    "model = dict(",
    "x = 1\n" * 3000,
    "seed = " + "-" * 5000 + "1",
    "seed = " + "(" * 500,
    "\0",
    "# coding: x\n",
)


class Trained(BaseException):
    """Ends a run after its first epoch."""


class Configs(Kind):
    """A config per case, trained for two batches, or read in the safe mode where it is a text that may be none."""

    name = "configs"
    count = 2_000
    most_mib = 512

    def prepare(self, folder: Path) -> None:
        self.schema = config_schema()
        self.keys = sorted(set(_keys(self.schema)))
        epoch = EpochRunner.train_epoch

        def once(runner: EpochRunner) -> None:
            epoch(runner)
            raise Trained

        EpochRunner.train_epoch = once  # type: ignore[method-assign]
        training._compile = lambda model, device: None  # type: ignore[assignment]
        selection.can_compile = lambda device: False
        self.texts = [text_of_config(base).encode() for base in BASES.values()]

    def draw(self, number: int, folder: Path) -> str:
        draw = random.Random(f"config {number}")
        if draw.random() < _TRAINED:
            said, sections = mutant(number) if draw.random() < 0.5 else self._grown(draw)
            (folder / "config.py").write_text(text_of_config(sections))
            return said
        suffix = draw.choice((".yaml", ".yaml", ".json", ".py"))
        said, content = self._text(suffix, draw)
        (folder / f"config{suffix}").write_bytes(content)
        return f"{suffix} {said}"

    def read(self, number: int, folder: Path) -> object:
        (path,) = folder.iterdir()
        if random.Random(f"config {number}").random() < _TRAINED:
            with contextlib.chdir(folder):
                return trained(path)
        with safe_mode():
            if path.suffix == ".py":
                return read_settings(Config.fromstring(path.read_bytes().decode("utf-8", "replace")))
            return read_settings(path)

    def _grown(self, draw: random.Random) -> tuple[str, dict[str, Any]]:
        """Keys of the schema set, one to three, to values of its type or others, in one of the two configs."""
        name = draw.choice(sorted(BASES))
        sections, said = unshared(BASES[name]), []
        for _ in range(draw.choice((1, 2, 3))):
            place = draw.choice(self.keys)
            value = draw.choice(VALUES) if draw.random() < 0.7 else odd_name(draw)
            with contextlib.suppress(KeyError, IndexError, TypeError):
                for key in range(len(place)):
                    if key and not isinstance(of(sections, place[:key]), dict):
                        sections = put(sections, place[:key], {})
                    elif key and place[key - 1] not in of(sections, place[: key - 1]):
                        break
                sections = _set(sections, place, value)
                said.append(f"{'.'.join(place)} = {ascii(value)[:60]}")
        if isinstance(sections.get("total_epochs"), (int, float)) and sections["total_epochs"] > 1000:
            sections["total_epochs"] = 1
        return f"{name} {', '.join(said)}", sections

    def _text(self, suffix: str, draw: random.Random) -> tuple[str, bytes]:
        odd = {".yaml": _YAML, ".json": _JSON, ".py": _PYTHON}[suffix]
        if draw.random() < 0.5:
            text = draw.choice(odd)
            return text[:60], text.encode()
        said, content = damaged(draw.choice([*self.texts, *(text.encode() for text in odd)])[:4000], draw, self.texts)
        return said, content


def _set(sections: dict[str, Any], place: tuple[str, ...], value: Any) -> dict[str, Any]:
    """Set a value under keys, with dicts on the way where there are none."""
    changed = unshared(sections)
    owner: Any = changed
    for key in place[:-1]:
        if not isinstance(owner.get(key), dict):
            owner[key] = {}
        owner = owner[key]
    owner[place[-1]] = value
    return changed


def _keys(schema: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """Yield the places of all keys in a schema, down to three levels."""
    definitions = schema["$defs"]

    def inside(node: Any, above: tuple[str, ...], seen: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        if not isinstance(node, dict) or len(above) > 3:
            return
        reference = node.get("$ref", "").rpartition("/")[2]
        if reference and reference not in seen:
            yield from inside(definitions.get(reference), above, (*seen, reference))
        for part in ("anyOf", "oneOf", "allOf"):
            for option in node.get(part, []):
                yield from inside(option, above, seen)
        for name, inner in node.get("properties", {}).items():
            yield (*above, name)
            yield from inside(inner, (*above, name), seen)

    return inside(schema, (), ())


def text_of_config(sections: dict[str, Any]) -> str:
    """Return a Python config with these sections."""
    return "".join(f"{name} = {text_of(value)}\n" for name, value in sections.items())


def trained(path: Path) -> str:
    """Train a config for an epoch, as the command does up to the place where it prints errors."""
    args = _parse(["train", str(path)], None)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            args.run(args)
    except Trained:
        return "trains"
    except OSError as error:  # the command prints it in one line, too
        raise DataError(str(error)) from error
    finally:
        torch.use_deterministic_algorithms(False)
        torch.set_num_threads(1)
        for handler in list(get_logger().handlers):
            get_logger().removeHandler(handler)
            handler.close()
    return "done"
