"""The registry: lazy modules, and messages for unknown names and keys."""

import subprocess
import sys
from pathlib import Path

import pytest

from lbitcls import registry as registry_page
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
        ({"type": "Hamer"}, "no tool named 'Hamer'. Did you mean 'Hammer'? Known: Hammer, Saw"),
        (
            {"type": "Saw", "wieght": 1},
            "Saw does not accept 'wieght'. Did you mean 'weight'? It accepts: length, weight",
        ),
        ({"type": "Saw"}, "Saw needs 'weight'"),
        ({"weight": 3}, "must be dict(type="),
        ("Saw", "must be dict(type="),
    ],
)
def test_mistakes_are_answered(registry: Registry, cfg: dict, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        registry.build(cfg)
    assert message in str(error.value)


def test_a_name_registered_twice_is_an_error(registry: Registry) -> None:
    own = registry.find("Saw")
    message = r"the tool 'Saw' exists already, shelf.second.Saw; .* register with force=True"
    with pytest.raises(ConfigError, match=message):
        registry.register_module(name="Saw", module=dict)
    assert registry.find("Saw") is own
    registry.register_module(name="Saw", module=dict, force=True)
    assert registry.find("Saw") is dict


REGISTRIES = [found for found in vars(registry_page).values() if isinstance(found, Registry)]


@pytest.mark.usefixtures("forget_registrations")
@pytest.mark.parametrize("registry", list(dict.fromkeys(REGISTRIES)), ids=lambda registry: registry.name)
def test_a_built_ins_name_is_taken_before_its_module_is_imported(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = registry.names()[-1]
    built_in = registry.find(key)
    own = type(key, (), {"__module__": "mine"})
    message = rf"'{key}' exists already, lbitcls\..*mine\.{key} needs another name.*force=True"
    with pytest.raises(ConfigError, match=message):
        registry.register_module()(own)
    assert registry.find(key) is built_in
    registry.register_module(force=True)(own)
    assert registry.find(key) is own
    assert registry.build({"type": key}).__class__ is own


ORDER = """
from lbitcls.registry import BACKBONES, HEADS
from lbitcls.utils.errors import ConfigError
import sys
assert "lbitcls.models.backbones.resnet" not in sys.modules
class ResNet: pass
try:
    BACKBONES.register_module()(ResNet)
except ConfigError:
    print("refused")
BACKBONES.register_module(force=True)(ResNet)
assert BACKBONES.find("ResNet") is ResNet
assert BACKBONES.find("MobileNetV2")().__class__.__module__ == "lbitcls.models.backbones.mobilenet_v2"
from lbitcls.quant.methods import register_method
from lbitcls.quant.quantizer import Quantizer
class Mine(Quantizer): pass
try:
    register_method("LSQ", weight=Mine, input=Mine)
except ConfigError:
    print("refused")
"""


def test_the_order_of_imports_does_not_matter() -> None:
    done = subprocess.run([sys.executable, "-c", ORDER], capture_output=True, text=True, check=True)
    assert done.stdout == "refused\nrefused\n"
