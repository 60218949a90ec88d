"""Settings as Python objects: their keywords, their place in a config, what they share with it, and their hashes."""

from __future__ import annotations

import copy
import dataclasses
import inspect
from typing import Any

import pytest
from mutations import CONFIGS
from test_settings import SECTION_CLASSES, needed

from lbitcls.settings.base import Section
from lbitcls.settings.learning_rate import StepPolicy
from lbitcls.settings.parse import problems, section_fields
from lbitcls.settings.sections import DataConfig, Settings, read_settings
from lbitcls.settings.training_sections import EvaluationConfig, GradClip, LogConfig, MetricOptions, OptimizerConfig
from lbitcls.utils.config import Config
from lbitcls.utils.errors import ConfigError


@pytest.mark.parametrize("kind", SECTION_CLASSES, ids=lambda kind: kind.__name__)
def test_a_wrong_keyword_in_python_is_told_as_in_a_config(kind: type) -> None:
    name = next(iter(section_fields(kind)))
    with pytest.raises(ConfigError) as caught:
        kind(**{**needed(kind, ""), f"{name}x": 1})
    assert f"does not accept '{name}x'. Did you mean '" in str(caught.value)
    assert str(caught.value).splitlines() == problems(kind, {**needed(kind, ""), f"{name}x": 1}, kind.PLACE)  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match=f"^{kind.__name__} accepts its values by name only; got 3."):
        kind(3)
    assert list(inspect.signature(kind).parameters) == [field.name for field in dataclasses.fields(kind)]


def test_what_a_class_needs_is_told() -> None:
    with pytest.raises(ConfigError, match="^optimizer_config.grad_clip needs 'max_norm', which is not given.$"):
        GradClip()  # type: ignore[call-arg]
    with pytest.raises(ConfigError, match="interval.*\n.*metric"):
        EvaluationConfig(interval=0, metric="acuracy")  # type: ignore[arg-type]


SETTINGS_OBJECTS: dict[str, Section] = dict(
    evaluation=EvaluationConfig(interval=3, save_best=None, metric_options=MetricOptions(topk=(1, 3))),
    optimizer_config=OptimizerConfig(grad_clip=GradClip(max_norm=1.0)),
    log_config=LogConfig(hooks=None),
    lr_config=StepPolicy(step=(1, 2)),
    data=DataConfig(samples_per_gpu=3, train=dict(type="Digits")),
)


def test_settings_in_a_config_are_as_their_dicts() -> None:
    cfg = Config(dict(total_epochs=3))
    for name, section in SETTINGS_OBJECTS.items():
        cfg[name] = section
    settings = read_settings(cfg)
    assert {name: getattr(settings, name) for name in SETTINGS_OBJECTS} == SETTINGS_OBJECTS
    assert read_settings(Config.fromstring(settings.text)) == settings and settings == read_settings(dict(cfg))
    assert settings.changed(optimizer_config=OptimizerConfig()).optimizer_config == OptimizerConfig()
    assert read_settings(
        dict(evaluation=dict(metric_options=MetricOptions(topk=(1, 2))))
    ).evaluation == EvaluationConfig(metric_options=MetricOptions(topk=(1, 2)))


def shake(value: Any) -> None:
    """Change every list and dict, at every depth."""
    if isinstance(value, dict):
        for inner in value.values():
            shake(inner)
        value["shaken"] = 1
    elif isinstance(value, (list, tuple)):
        for inner in value:
            shake(inner)
        if isinstance(value, list):
            value.append("shaken")


@pytest.mark.parametrize("name", CONFIGS)
def test_settings_share_nothing_with_what_they_come_from(name: str) -> None:
    before = read_settings(CONFIGS[name])
    for given in (copy.deepcopy(CONFIGS[name]), Config(copy.deepcopy(CONFIGS[name]))):
        settings = read_settings(given)
        shake(given if isinstance(given, dict) else given._cfg_dict)
        assert settings == before and settings.text == before.text
        shake(settings.source._cfg_dict)
        assert settings == before
    own = Settings(**copy.deepcopy(CONFIGS[name]))
    hooks: list[Any] = [dict(type="X", steps=[1])]
    made = LogConfig(hooks=hooks)  # type: ignore[arg-type]  # also a list
    shake(hooks)
    assert made == LogConfig(hooks=({"type": "X", "steps": [1]},)) and own == read_settings(CONFIGS[name])


@pytest.mark.parametrize("name", CONFIGS)
def test_equal_settings_have_equal_hashes(name: str) -> None:
    one, two = (read_settings(copy.deepcopy(CONFIGS[name])) for _ in range(2))
    assert one == two and hash(one) == hash(two) and len({one, two, dataclasses.replace(one, seed=99)}) == 2
