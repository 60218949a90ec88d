"""Settings: every field of every section refuses a wrong type, a number beyond its bounds, and an unknown key."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from annotated_types import Ge, Gt, Le, Lt

from lbitcls.settings.base import Section
from lbitcls.settings.export import ExportOptions, ExportSection
from lbitcls.settings.learning_rate import POLICIES, FixedPolicy, StepPolicy, read_policy
from lbitcls.settings.parse import doc_of, problems, section_fields
from lbitcls.settings.quant import SpecialLayers, TransformerConfig
from lbitcls.settings.sections import LISTS, CustomImports, DataConfig, Settings, given_sections, read_settings
from lbitcls.settings.training_sections import (
    CheckpointConfig,
    EvaluationConfig,
    GradClip,
    MetricOptions,
    OptimizerConfig,
)
from lbitcls.utils.config import SECTIONS, Config
from lbitcls.utils.errors import ConfigError

ROOT = Path(__file__).resolve().parent.parent.parent
NEEDED: dict[str, Any] = dict(
    quan_policy={}, step=3, gamma=0.1, max_norm=1.0, teacher={"checkpoint": "a.pth"}, bits=[8, 2], epochs=[1]
)


def classes(kind: type = Section) -> Iterator[type]:
    for below in kind.__subclasses__():
        yield below
        yield from classes(below)


def marks(annotation: Any) -> Iterator[Any]:
    """The markers of an annotation and of all that is in it."""
    if typing.get_origin(annotation) is typing.Annotated:
        yield from typing.get_args(annotation)[1:]
        yield from marks(typing.get_args(annotation)[0])
    elif typing.get_origin(annotation) is not typing.Literal:
        for inner in typing.get_args(annotation):
            yield from marks(inner)


SECTION_CLASSES = [kind for kind in classes() if kind.__name__ != "Warmup"]


def needed(kind: type, name: str) -> dict[str, Any]:
    """Values for the fields that the class needs beside `name`."""
    given: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        if field.default is field.default_factory is dataclasses.MISSING and field.name != name:
            given[field.name] = NEEDED[field.name]
    return given | ({"min_lr": 0.0} if "min_lr_ratio" in section_fields(kind) and "min_lr" not in (name,) else {})


def beyond(annotation: Any) -> Iterator[Any]:
    """Numbers just beyond the bounds of an annotation."""
    for mark in marks(annotation):
        if isinstance(mark, Ge):
            yield mark.ge - 1
        elif isinstance(mark, Gt):
            yield mark.gt
        elif isinstance(mark, Le):
            yield mark.le + 1
        elif isinstance(mark, Lt):
            yield mark.lt


class Odd:
    """A value that no field takes."""


@pytest.mark.parametrize("kind", SECTION_CLASSES, ids=lambda kind: kind.__name__)
def test_a_field_refuses_what_it_is_not(kind: type) -> None:
    for name, hint in section_fields(kind).items():
        for value in [Odd(), *beyond(hint)]:
            if value == 0 and name == "train":  # as False
                continue
            told = problems(kind, {**needed(kind, name), name: value}, "place")
            assert any(text.startswith(f"place.{name}") and "; got " in text for text in told), (name, value, told)


@pytest.mark.parametrize("kind", SECTION_CLASSES, ids=lambda kind: kind.__name__)
def test_a_class_names_the_key_that_was_meant(kind: type) -> None:
    name = next(iter(section_fields(kind)))
    told = problems(kind, {**needed(kind, ""), f"{name}x": 1}, "place")
    assert told[0].startswith(f"place does not accept '{name}x'. Did you mean '") and f"{name}" in told[0]


@pytest.mark.parametrize("kind", SECTION_CLASSES, ids=lambda kind: kind.__name__)
def test_the_fields_of_a_class_are_documented_in_its_schema(kind: type) -> None:
    from pydantic import TypeAdapter

    schema = TypeAdapter(kind).json_schema()
    for name, hint in section_fields(kind).items():
        if name != "policy":
            assert doc_of(hint).endswith("."), f"{kind.__name__}.{name} has no Doc"
            shown = schema["properties"][name]
            definition = schema.get("$defs", {}).get(shown.get("$ref", "").rpartition("/")[2], {})
            assert shown.get("description", definition.get("description")) == doc_of(hint)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (dict(evaluation=dict(interval=0)), "evaluation.interval must be an integer ≥ 1; got 0."),
        (dict(evaluation=dict(interval=True)), "evaluation.interval must be an integer ≥ 1; got True."),
        (dict(evaluation=dict(interval="5")), "evaluation.interval must be an integer ≥ 1; got the string '5'."),
        (dict(evaluation=dict(interval=2.0)), "evaluation.interval must be an integer ≥ 1; got 2.0."),
        (
            dict(evaluation=dict(metric=["accuracy", "f1_scor"])),
            "got 'f1_scor'. Did you mean 'f1_score'?",
        ),
        (dict(evaluation=dict(save_best="top-3")), "evaluation.save_best: there is no result 'top-3'. Did you mean"),
        (dict(optimizer_config=dict(grad_clip=dict(norm_type=2))), "grad_clip needs 'max_norm', which is not given."),
        (dict(optimizer_config=dict(grad_clip=5)), "optimizer_config.grad_clip must be a dict(…); got 5."),
        (dict(lr_config=dict(policy="stepp")), "lr_config: unknown policy 'stepp'. Did you mean 'step'? Known: "),
        (dict(lr_config=dict(policy="fixed", warmup="linear")), "lr_config: warmup needs warmup_iters > 0."),
        (dict(lr_config=dict(policy="exp", gamma=math.nan)), "lr_config.gamma must be a finite number ≥ 0; got nan."),
        (dict(optimizer="SGD"), "optimizer must be a dict, optimizer = dict(…); got 'SGD'."),
        (dict(amp=5), "amp must be True, a string (dtype) or a dict(…); got 5."),
        (dict(amp="bf32"), "amp.dtype must be one of 'bf16', 'bfloat16', 'fp16', 'float16'; got 'bf32'."),
        (dict(workflow=[("val", 1)]), "workflow must be a list with 'train', such as [('train', 1)]"),
        (dict(num_threads=10**6), "num_threads must be an integer from 1 to 4,096; got 1000000."),
        (dict(data=dict(test=3)), "data.test must be a dict(type='…', pipeline=[…], …); got 3."),
        (
            dict(kernels="fusd"),
            "kernels.kind must be one of 'auto', 'plain', 'fused', 'integer'; got 'fusd'. Did you mean 'fused'?",
        ),
        (dict(kernels="integer-int9"), "kernels.gradients must be one of 'float32', 'bf16', 'int8'; got 'int9'. Did"),
        (dict(kernels="fused-int8"), "kernels: gradients='int8' needs kind='integer'; got kind='fused'."),
        (dict(kernels=[]), "kernels must be a string (kind) or a dict(…); got []."),
        (dict(kernels=()), "kernels must be a string (kind) or a dict(…); got ()."),
        (dict(ema=[]), "ema must be True or a dict(…); got []."),
    ],
)
def test_a_message_says_what_was_given_and_what_was_expected(sections: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_settings(sections)
    assert message in str(caught.value)


def test_all_wrong_values_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        read_settings(dict(seed=-1, ema=dict(decay=2), data=dict(samples_per_gpu=0, val=dict(type="X"))))
    places = sorted(line.partition(" ")[0] for line in str(caught.value).splitlines())
    assert places == ["data.samples_per_gpu", "ema.decay", "seed"]


def test_what_may_be_written_shorter() -> None:
    settings = read_settings(dict(amp="fp16", ema=True, feature_cache=True, deterministic=1, data_root=Path("a")))
    assert settings.amp is not None and settings.amp.dtype == "fp16"
    assert settings.ema is not None and settings.ema.decay == 0.999
    assert settings.feature_cache is not None and settings.deterministic is True and settings.roots == ["a"]
    assert read_settings(dict(lr_config=dict(policy="STEP", step=[3], gamma="1e-1"))).lr_config == StepPolicy(
        step=(3,), gamma=0.1
    )


@pytest.mark.parametrize("off", [None, False, "", {}])
def test_a_section_that_is_off_has_its_default(off: Any) -> None:
    always = ("seed", "total_epochs", "num_threads", "fp16", "feature_cache")
    settings = read_settings({name: off for name in SECTIONS if name not in always})
    assert settings.checkpoint_config == CheckpointConfig(interval=-1 if off is None else 1)
    assert dataclasses.replace(settings, checkpoint_config=CheckpointConfig()) == read_settings({})


@pytest.mark.parametrize("name", SECTIONS)
def test_an_empty_list_is_an_error_except_for_a_section_that_is_a_list(name: str) -> None:
    told = problems(Settings, given_sections({name: []}))
    if name in LISTS:
        assert not told and read_settings({name: []}) == Settings()
    else:
        assert len(told) == 1 and told[0].startswith(f"{name} must be ") and told[0].endswith("; got []."), told


def test_the_sections_are_the_fields() -> None:
    assert section_fields(Settings).keys() == SECTIONS.keys()


def test_every_config_of_the_library_parses() -> None:
    paths = sorted(path for path in (ROOT / "configs").rglob("*.py") if "_base_" not in path.parts)
    assert len(paths) > 50
    for path in paths:
        settings = read_settings(path)
        assert settings.model is not None and settings.source.filename == str(path)


def test_components_are_as_the_config_has_them() -> None:
    """A part of one's own may read `train_cfg.augments`, as in mmcls."""
    settings = read_settings(Config(dict(model=dict(type="X", train_cfg=dict(augments=[dict(type="Y")])))))
    assert settings.model["train_cfg"].augments[0].type == "Y"


def test_an_object_checks_itself_however_it_is_made() -> None:
    assert OptimizerConfig(grad_clip=dict(max_norm=3)).grad_clip == GradClip(max_norm=3.0)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"^checkpoint_config\.interval must be -1 or an integer ≥ 1; got 0\.$"):
        CheckpointConfig(interval=0)
    with pytest.raises(ConfigError, match=r"^--num-images must be an integer ≥ 1; got 0\.$"):
        dataclasses.replace(ExportOptions(), num_images=0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        ExportSection().opset = 18  # type: ignore[misc]
    assert read_policy(FixedPolicy()) == FixedPolicy()  # type: ignore[arg-type]


def test_the_keys_of_the_transformer() -> None:
    with pytest.raises(ConfigError, match="^special_layers: there are 1 layers_name and 0 convert_type"):
        SpecialLayers(layers_name=("fc",))
    with pytest.raises(ConfigError, match="^quant_transformer.fold_bn must be True or False; got 'no'"):
        TransformerConfig(quan_policy={}, fold_bn="no")  # type: ignore[arg-type]


def test_changed_sections_are_recorded() -> None:
    before = read_settings(Config(dict(seed=None, data=dict(samples_per_gpu=4))))
    after = before.changed(seed=3)
    assert (before.seed, after.seed) == (None, 3) and after.data == DataConfig(samples_per_gpu=4)
    assert after.text == "seed = 3\ndata = dict(samples_per_gpu=4)\n" and before.source.seed is None


def test_the_schema_is_json_and_has_the_policies() -> None:
    from pydantic import TypeAdapter

    schema = TypeAdapter(Settings).json_schema()
    assert json.loads(json.dumps(schema))["properties"].keys() == SECTIONS.keys()
    assert {f"{kind.__name__}" for kind in POLICIES.values()} <= schema["$defs"].keys()


def test_the_classes_load_neither_pydantic_nor_torch() -> None:
    code = "import sys, lbitcls.settings.sections; print({'torch', 'pydantic'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stderr


def test_settings_made_without_a_config_have_one() -> None:
    made = Settings(total_epochs=2, checkpoint_config=CheckpointConfig(interval=5), workflow=(("train", 1), ("val", 1)))
    assert made.run_folder == Path("work_dirs/run")
    again = read_settings(dict(made.source))
    assert again == made and "interval=5" in made.text and "amp" not in made.text
    read = read_settings(dict(total_epochs=3, seed=1, amp="bf16", lr_config=dict(policy="step", step=3)))
    other = dataclasses.replace(read, seed=2)
    assert other.source.seed == 2 and read.source.seed == 1 and read_settings(dict(other.source)) == other


@pytest.mark.parametrize(
    "cfg, message",
    [
        (None, "a config must be the path of its file"),
        (3, "a config must be the path of its file"),
        ([1], "a config must be the path of its file"),
        (dict(custom_imports="os"), "custom_imports must be a dict"),
        (dict(optimizer={3: 4}), "optimizer: keys must be strings; got 3."),
        (dict(quant_transformer=dict(type="ModelTransformer", quan_policy={}, exclude_layers=[3])), None),
        (dict(lr_config=dict(step=3)), "lr_config needs 'policy', which is not given. Known: step, "),
    ],
)
def test_what_is_no_config(cfg: Any, message: str | None) -> None:
    try:
        read_settings(cfg)
    except ConfigError as error:
        assert message is not None and message in str(error)
    else:
        assert message is None  # the transformer's own keys are parsed when it is built


def test_a_config_that_contains_itself() -> None:
    cfg: dict[str, Any] = {}
    cfg["model"] = cfg
    with pytest.raises(ConfigError, match="contains itself"):
        read_settings(cfg)
    with pytest.raises(ConfigError, match=r"work_dir must be a folder; got '~nobody_here/x'"):
        _ = read_settings(dict(work_dir="~nobody_here/x")).run_folder


@pytest.mark.parametrize("zero", [0, 0.0])
@pytest.mark.parametrize("name", SECTIONS)
def test_zero_is_never_dropped(name: str, zero: float) -> None:
    told = problems(Settings, given_sections({name: zero}))
    if told:
        assert told[0].startswith(f"{name} ") and f"got {zero}" in told[0], told
    else:
        assert getattr(read_settings({name: zero}), name) in (0, "0")


def test_a_device_may_be_a_number() -> None:
    assert [read_settings(dict(device=value)).device for value in (0, 1, "1", "cuda:1")] == ["0", "1", "1", "cuda:1"]
    for wrong in (-1, True, 1.5):
        with pytest.raises(ConfigError, match=f"device must be 'auto', .* the index of a GPU; got {wrong}"):
            read_settings(dict(device=wrong))
    with pytest.raises(ConfigError, match=r"^gpu_ids must be a list of integers ≥ 0, such as \[0\]; got 0\.$"):
        read_settings(dict(gpu_ids=0))
    assert read_settings(dict(gpu_ids=[0])).gpu_ids == (0,)


def test_the_names_of_kernels_are_those_that_a_log_says() -> None:
    from lbitcls.quant.kernels.selection import GRADIENTS, KINDS, kernels_name, parse_kernels

    names = {kernels_name(kind, gradients) for kind in KINDS for gradients in GRADIENTS if kind == "integer"}
    for name in {*names, *KINDS, "auto"}:
        kernels = read_settings(dict(kernels=name)).kernels
        assert (kernels.kind, kernels.gradients) == parse_kernels(name)
        assert read_settings(dict(kernels=dict(kind=kernels.kind, gradients=kernels.gradients))).kernels == kernels


def test_the_other_spellings_of_not_set() -> None:
    assert read_settings(dict(kernels=None)) == read_settings(dict(kernels={})) == Settings()
    assert read_settings(dict(data=dict(drop_last=None))).data == DataConfig()
    assert read_settings(dict(evaluation=dict(save_best=False))).evaluation == EvaluationConfig(save_best=None)
    assert SpecialLayers(layers_name=None, convert_type=None) == SpecialLayers()  # type: ignore[arg-type]
    imports = read_settings(dict(custom_imports=dict(imports=False, allow_failed_imports=None))).custom_imports
    assert (
        imports == CustomImports() and read_settings(dict(dist_params=dict(backend=False))).dist_params.backend is None
    )
    with pytest.raises(ConfigError, match="data.drop_last must be True or False; got 'no'"):
        DataConfig(drop_last="no")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "given", "messages"),
    [
        (EvaluationConfig, dict(metric=["recall", "f1", 3]), ["metric.1 must be one of 'accuracy'", "metric.2 must"]),
        (EvaluationConfig, dict(metric=3), ["metric must be one of 'accuracy', 'precision', "]),
        (MetricOptions, dict(topk=[]), ["topk must be an integer ≥ 1 or a non-empty list of them; got []."]),
        (MetricOptions, dict(topk=[1, 0, "x"]), ["topk.1 must be an integer ≥ 1; got 0.", "topk.2 must be an integer"]),
        (StepPolicy, dict(step=[3, -1]), ["step.1 must be an integer ≥ 1; got -1."]),
        (
            TransformerConfig,
            dict(quan_policy={}, exclude_layers=["fc", 3]),
            ["exclude_layers.1 must be a string; got 3."],
        ),
        (CustomImports, dict(imports=["a", None]), ["imports.1 must be a string; got None."]),
    ],
)
def test_the_wrong_item_of_a_list_is_named(kind: type, given: dict[str, Any], messages: list[str]) -> None:
    told = problems(kind, given, "here")
    assert len(told) == len(messages) and all(f"here.{text}" in line for text, line in zip(messages, told)), told


def test_one_image_of_the_training_set_is_a_number() -> None:
    assert EvaluationConfig(train=1).train is not True and EvaluationConfig(train=True).train is True
    with pytest.raises(ConfigError, match="train must be True, False, or a number of images ≥ 1; got 0"):
        EvaluationConfig(train=0)
