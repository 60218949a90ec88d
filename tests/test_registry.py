"""The registry: lazy modules, and messages for unknown names and keys."""

import sys
from pathlib import Path

import pytest

from lbitcls.registry import Registry
from lbitcls.utils.errors import ConfigError


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    """A registry over a package of two modules; `second` must not be imported for a name of `first`."""
    package = tmp_path / "shelf"
    package.mkdir()
    (package / "__init__.py").write_text(
        "from lbitcls.registry import Registry\nTOOLS = Registry('tool', ('shelf',))\n"
    )
    for module, name in (("first", "Hammer"), ("second", "Saw")):
        (package / f"{module}.py").write_text(
            "from shelf import TOOLS\n\n@TOOLS.register_module()\n"
            f"class {name}:\n    def __init__(self, weight, length=2):\n        self.args = (weight, length)\n"
        )
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("shelf", "shelf.first", "shelf.second"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import shelf

    return shelf.TOOLS


def test_a_module_is_imported_only_for_a_name_not_yet_known(registry: Registry) -> None:
    assert registry.build({"type": "Hammer", "weight": 1}).args == (1, 2)
    assert "shelf.first" in sys.modules and "shelf.second" not in sys.modules
    assert registry.names() == ["Hammer", "Saw"]


def test_config_values_win_over_default_arguments(registry: Registry) -> None:
    assert registry.build({"type": "Saw", "weight": 1}, weight=5, length=6).args == (1, 6)


@pytest.mark.parametrize(
    "cfg, message",
    [
        ({"type": "Hamer"}, "no tool named 'Hamer'; did you mean 'Hammer'? Known: Hammer, Saw"),
        (
            {"type": "Saw", "wieght": 1},
            "Saw takes no 'wieght'; did you mean 'weight'? It takes: length, weight",
        ),
        ({"type": "Saw"}, "Saw needs 'weight'"),
        ({"weight": 3}, "given as dict(type="),
        ("Saw", "given as dict(type="),
    ],
)
def test_mistakes_are_answered(registry: Registry, cfg: dict, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        registry.build(cfg)
    assert message in str(error.value)


def test_a_name_registered_twice_is_an_error(registry: Registry) -> None:
    with pytest.raises(KeyError, match="already registered"):
        registry.register_module(name="Saw", module=registry.find("Saw"))
        registry.register_module(name="Saw", module=dict)
