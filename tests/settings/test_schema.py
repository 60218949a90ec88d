"""The JSON Schema of configs: valid itself, right about every config of the library, and about typical mistakes."""

from __future__ import annotations

import copy
import json
import math
import random
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from mutations import CONFIGS, VALUES

from lbitcls import registry
from lbitcls.commands.main import main
from lbitcls.core.optim import optimizers
from lbitcls.settings.learning_rate import POLICIES
from lbitcls.settings.parse import doc_of, problems, section_fields
from lbitcls.settings.sections import Settings, given_sections
from lbitcls.utils.config import Config
from lbitcls.utils.config_text import with_lists
from lbitcls.workflows.schema import config_schema

ROOT = Path(__file__).resolve().parent.parent.parent
SCHEMA = config_schema()
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)


def errors(config: dict[str, Any]) -> list[str]:
    return [f"{list(error.absolute_path)}: {error.message[:200]}" for error in VALIDATOR.iter_errors(config)]


def plain(config: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(with_lists(copy.deepcopy(config))))


def test_it_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["$schema"] == "https://json-schema.org/draft/2020-12/schema"


def test_every_config_of_the_library_is_valid() -> None:
    paths = sorted(path for path in (ROOT / "configs").rglob("*.py") if "_base_" not in path.parts)
    assert len(paths) > 50
    found = {path.name: errors(plain(Config.fromfile(path).to_dict())) for path in paths}
    assert not {name: told for name, told in found.items() if told}


@pytest.mark.parametrize("name", CONFIGS)
def test_configs_with_much_in_them_are_valid(name: str) -> None:
    assert not errors(plain(CONFIGS[name]))


@pytest.mark.parametrize(
    "more",
    [
        {"normalize": {"mean": [1]}},
        {
            "_base_": "other.yaml",
            "model": {"backbone": {"depth": 50}},
            "lr_config": {"_delete_": True, "policy": "poly"},
        },
        {"_base_": ["a.yaml", "b.yaml"], "lr_config": {"min_lr": 0.1}},
        {"evaluation": None, "ema": False, "amp": "bf16", "feature_cache": True, "export": None, "seed": None},
        {"data": {"train": {"type": "Digits", "pipeline": [{"type": "v2.RandomRotation", "degrees": 10}]}}},
        {"data": {"train": {"type": "Digits", "indices": [1, 2], "data_root": "x"}, "val": None}},
        {
            "quant_transformer": {
                "quan_policy": {"Conv2d": {"type": "LSQConv2d", "nbits_w": 4, "bit_a": 4}, "Linear": None}
            }
        },
        {"optimizer": {"type": "Adam", "betas": [0.9, 0.99], "paramwise_cfg": {"custom_keys": {"fc": {"lr_mult": 2}}}}},
        {"kernels": "integer-int8"},
        {"custom_hooks": [{"type": "UnfreezeHook", "epoch": 1, "layers": ["backbone"], "priority": "LOW"}]},
        {"model": {"backbone": {"type": "ResNet", "depth": 18, "frozen": True, "pretrained": "a.pth"}, "neck": None}},
    ],
)
def test_what_may_be_written_is_valid(more: dict[str, Any]) -> None:
    assert not errors(more)


@pytest.mark.parametrize(
    "wrong",
    [
        {"evaluation": {"intervall": 1}},
        {"evaluation": {"interval": 0}},
        {"evaluation": {"metric": "acuracy"}},
        {"total_epochs": 0},
        {"total_epochs": "ten"},
        {"data": {"samples_per_gpu": 2.5}},
        {"data": {"trian": {}}},
        {"data": {"train": {"type": "Digit"}}},
        {"data": {"train": {"type": "Digits", "spilt": "train"}}},
        {"data": {"train": {"type": "Digits", "pipeline": {"type": "Resize"}}}},
        {"data": {"val": {"type": "Digits", "pipeline": [{"type": "Resise", "size": 8}]}}},
        {"data": {"val": {"type": "Digits", "pipeline": [{"type": "RandomFlip", "flip_prop": 0.5}]}}},
        {"model": {"type": "ImageClassifier", "backbone": {"type": "ResNet", "depht": 18}}},
        {"model": {"type": "ImageClassifier", "head": {"type": "LinearClsHead", "num_classes": "ten"}}},
        {"model": {"type": "ImageClassifier", "head": {"type": "LinearClsHead", "loss": {"type": "CrossEntropy"}}}},
        {"model": 5},
        {"optimizer": {"type": "SDG"}},
        {"optimizer": {"type": "SGD", "learning_rate": 0.1}},
        {"optimizer": {"type": "SGD", "paramwise_cfg": {"bias_decay": 0}}},
        {"quant_transformer": {"type": "mTransformerV2", "quan_policy": {"Conv2d": {"type": "LSQKonv"}}}},
        {
            "quant_transformer": {
                "type": "mTransformerV2",
                "quan_policy": {"Conv2d": {"type": "LSQConv", "num_bit_w": 9}},
            }
        },
        {"quant_transformer": {"type": "mTransformerV2", "quan_policy": {"Conv2d": {"type": "LSQConv", "bits": 4}}}},
        {"quant_transformer": {"type": "mTransformerV2", "special_layers": {"convert_type": [{"type": "LSQ"}]}}},
        {"custom_hooks": [{"type": "UnfreezeHok"}]},
        {"log_config": {"hooks": [{"type": "TensorBoardHook"}]}},
        {"lr_config": {"policy": "step", "gama": 0.1}},
        {"lr_config": {"policy": "stepp"}},
        {"ema": {"decay": 1.5}},
        {"amp": 3},
        {"kernels": "fusd"},
        {"kernels": "fused-int8"},
        {"kernels": []},
        {"export": {"opset": 9}},
    ],
)
def test_a_mistake_is_not(wrong: dict[str, Any]) -> None:
    assert errors(wrong), wrong


COMPONENTS = ("model", "optimizer", "quant_transformer", "custom_hooks")  # the schema knows their types, a section not
FIELDS_OF_COMPONENTS = ("train", "val", "test", "calibration", "hooks")
BEYOND_A_SCHEMA = (
    *(
        " needs '",
        "needs warmup",
        "needs kind=",
        "accepts either",
        "there is no result",
        "must be a list with 'train'",
        "is for the other kind",
        "is for the action",
    ),
)
"""In messages about a key that a base config may set, and about values that do not fit together."""
WORDS: tuple[Any, ...] = ("Step", "BF16", "bf16", "fp16", "auto", "linear", "accuracy", ["accuracy", "recall"], [1, 5])


def spots() -> Iterator[tuple[str, ...]]:
    """The keys of each section and of each field of a section, at every depth."""

    def below(hint: Any, place: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        yield place
        for kind in settings_in(hint):
            for name, inner in section_fields(kind).items():
                if not (place == ("data",) and name in FIELDS_OF_COMPONENTS) and name != "hooks":
                    yield from below(inner, (*place, name))

    for name, hint in section_fields(Settings).items():
        if name not in COMPONENTS:
            yield from below(hint, (name,))


def settings_in(hint: Any) -> Iterator[Any]:
    if section_fields(hint):
        yield hint
    elif typing.get_origin(hint) is not typing.Literal:
        for inner in typing.get_args(hint):
            yield from settings_in(inner)


def comparable(value: Any) -> bool:
    """False for what JSON has no word for, and for the two kinds of numbers that a schema cannot tell apart."""
    if isinstance(value, (list, tuple)):
        return all(comparable(item) for item in value)
    if isinstance(value, float):
        return math.isfinite(value) and not value.is_integer()
    if isinstance(value, int) and abs(value) > sys.float_info.max:
        return False
    numeric = isinstance(value, str) and value in ("1e-3", "nan")  # read as a number; the schema wants one
    return not numeric and not (isinstance(value, dict) and any(not isinstance(key, str) for key in value))


def test_the_schema_accepts_what_the_loader_does() -> None:
    draw, places = random.Random(0), list(dict.fromkeys(spots()))
    assert len(places) > 80
    values = [value for value in (*VALUES, *WORDS) if comparable(value)]
    wrong = []
    for _ in range(2500):
        place, value = draw.choice(places), copy.deepcopy(draw.choice(values))
        config: Any = value
        for number, key in enumerate(reversed(place)):
            policies = [name for name, kind in POLICIES.items() if key in section_fields(kind)]
            tagged = len(place) - number == 2 and place[0] == "lr_config" and key != "policy"
            config = {key: config, **({"policy": draw.choice(policies)} if tagged else {})}
        told = "\n".join(problems(Settings, given_sections(config)))
        beyond = any(text in told for text in BEYOND_A_SCHEMA)
        if not beyond and bool(errors(plain(config))) != bool(told):
            wrong.append(f"{config}: the loader says {told or 'nothing'}, the schema {errors(plain(config))}")
    assert not wrong, "\n".join(dict.fromkeys(wrong))


def test_every_section_is_described_and_takes_no_other_key() -> None:
    for name, hint in section_fields(Settings).items():
        assert SCHEMA["properties"][name]["description"] == doc_of(hint)
    for name in ("DataConfig", "EvaluationConfig", "ExportSection", "StepPolicy"):
        assert SCHEMA["$defs"][name]["additionalProperties"] is False


def test_it_has_every_registered_name_and_describes_arguments() -> None:
    now = config_schema()["$defs"]  # other tests register parts of their own
    for known in (registry.BACKBONES, registry.HEADS, registry.DATASETS, registry.LOSSES, registry.HOOKS):
        assert set(now[known.name]["properties"]["type"]["enum"]) == set(known.names())
    assert SCHEMA["$defs"]["optimizer"]["properties"]["type"]["enum"] == sorted(optimizers())
    named = [name for name in SCHEMA["$defs"] if "." in name]
    said = [
        bool(shown.get("description"))
        for name in named
        if not name.startswith(("optimizer", "quantized_layer"))
        for key, shown in SCHEMA["$defs"][name]["properties"].items()
        if key != "type"
    ]
    assert len(named) > 60 and sum(said) > 0.9 * len(said)
    digits = SCHEMA["$defs"]["dataset.Digits"]["properties"]
    assert digits["split"]["description"].startswith("`'train'` (default) or `'test'`")


def test_the_command_writes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], forget_registrations: None
) -> None:
    out = tmp_path / "lbitcls.schema.json"
    assert main(["schema", "--out", str(out)]) == 0
    assert (
        json.loads(out.read_text(encoding="utf-8")) == json.loads(json.dumps(config_schema()))
        and not capsys.readouterr().out
    )
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_loss_of_mine.py").write_text(
        "from lbitcls.registry import LOSSES\n\n@LOSSES.register_module()\ndef OwnLoss(scale: float = 1.0): ...\n"
    )
    assert main(["schema", "--import", "own_loss_of_mine"]) == 0
    own = json.loads(capsys.readouterr().out)["$defs"]
    assert "OwnLoss" in own["loss"]["properties"]["type"]["enum"] and own["loss.OwnLoss"]["properties"]["scale"]
    sys.modules.pop("own_loss_of_mine")
