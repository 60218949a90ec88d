"""Every registry, on one page: a name in a config (`type='ResNet'`) to the class that it builds.

The registries are mmengine's, with three habits of our own: a module is imported only when a name is asked for that
is not known yet; an unknown name or key is a `ConfigError` that suggests the nearest one; a name is looked up here
and nowhere else (mmengine would import a dotted name).
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator
from typing import Any

from mmengine.registry import Registry as _MMEngineRegistry

from lbitcls.utils.errors import ConfigError, reject_unknown_keys, suggest


def build_from_cfg(cfg: dict, registry: Registry, **default_args: Any) -> Any:
    """Build the object that `cfg` describes: its `type` is the name, the rest are keyword arguments.

    Args:
        cfg: `dict(type=NAME, key=value, ...)`; `type` may also be a class or a function.
        registry: where the name is looked up.
        default_args: arguments for keys that `cfg` does not give.

    Raises:
        ConfigError: no `type`, an unknown name, an unknown or a missing key.
    """
    if not isinstance(cfg, dict) or "type" not in cfg:
        raise ConfigError(f"a {registry.name} is given as dict(type='…', …); got {cfg!r}")
    arguments = {**default_args, **cfg}
    kind = arguments.pop("type")
    target = registry.find(kind) if isinstance(kind, str) else kind
    if not callable(target):
        raise ConfigError(f"the type of a {registry.name} is a name or a class; got {kind!r}.")
    check_arguments(target, arguments)
    return target(**arguments)


def check_arguments(target: Callable, arguments: dict[str, Any]) -> None:
    """Raise `ConfigError` unless `target(**arguments)` fits the signature of `target`."""
    parameters = inspect.signature(target).parameters.values()
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    owner = getattr(target, "__name__", str(target))
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        reject_unknown_keys(owner, arguments, names)
    missing = [p.name for p in parameters if p.name in names and p.default is p.empty and p.name not in arguments]
    if missing:
        raise ConfigError(f"{owner} needs {', '.join(repr(name) for name in missing)}, which the config does not give.")


class Registry(_MMEngineRegistry):
    """mmengine's registry that finds its modules by itself.

    Args:
        name: what the registry holds, as messages say it ("backbone").
        packages: modules and packages whose import registers names; each is imported only while a name that was
            asked for is still unknown, one module after the other.
    """

    def __init__(self, name: str, packages: tuple[str, ...]) -> None:
        super().__init__(name, build_func=build_from_cfg, scope="lbitcls")
        self._packages = packages

    def find(self, key: str) -> Any:
        """The class registered as `key`; `ConfigError` with a suggestion when there is none."""
        found = self.get(key)
        if found is None:
            known = sorted(self.module_dict)
            raise ConfigError(
                f"there is no {self.name} named '{key}'{suggest(key, known)} Known: {', '.join(known)}. "
                "A class of your own is found when its module is listed in custom_imports."
            )
        return found

    def get(self, key: str) -> Any:
        """The class registered as `key`, or None."""
        for module in self._modules():
            if key in self.module_dict:
                break
            importlib.import_module(module)
        return self.module_dict.get(key)

    def names(self) -> list[str]:
        """Every name, sorted; imports all modules of the registry."""
        for module in self._modules():
            importlib.import_module(module)
        return sorted(self.module_dict)

    def _modules(self) -> Iterator[str]:
        for name in self._packages:
            yield name
            package = importlib.import_module(name)
            for info in pkgutil.walk_packages(getattr(package, "__path__", []), f"{name}."):
                yield info.name


CLASSIFIERS = Registry("classifier", ("lbitcls.models.classifier",))
BACKBONES = Registry("backbone", ("lbitcls.models.backbones", "lbitcls.deploy.integer_backbone"))
NECKS = Registry("neck", ("lbitcls.models.necks",))
HEADS = Registry("head", ("lbitcls.models.heads",))
LOSSES = Registry("loss", ("lbitcls.models.losses",))
DATASETS = Registry("dataset", ("lbitcls.datasets",))
PIPELINES = Registry("pipeline step", ("lbitcls.datasets.pipelines",))
HOOKS = Registry("hook", ("lbitcls.core.hooks", "lbitcls.apis.tensorboard"))
QUANT_LAYERS = Registry("quantized layer", ("lbitcls.quant.quantizers",))
QUANLAYERS = QUANT_LAYERS
TRANSFORMERS = Registry("model transformer", ("lbitcls.quant.transformer",))
