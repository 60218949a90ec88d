"""All registries: a name in a config (`type='ResNet'`) is looked up as the class to build.

The registries are mmengine's, with three differences: a module is imported only when an unknown name is requested; an
unknown name or key is a `ConfigError` that suggests the nearest one; and a name is looked up here and nowhere else
(mmengine would import a dotted name).
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator, Sequence
from typing import Any

from mmengine.registry import Registry as _MMEngineRegistry

from lbitcls.utils.arguments import construct
from lbitcls.utils.errors import ConfigError, shown, suggest


def build_from_cfg(cfg: dict, registry: Registry, **default_args: Any) -> Any:
    """Build the object that `cfg` describes: its `type` is the name, the rest are keyword arguments.

    Args:
        cfg: `dict(type=NAME, key=value, ...)`; `type` may also be a class or a function.
        registry: Registry in which the name is looked up.
        default_args: Arguments for keys that `cfg` does not set.

    Raises:
        ConfigError: No `type`, an unknown name, or an unknown or missing key.
    """
    if not isinstance(cfg, dict) or "type" not in cfg:
        raise ConfigError(f"a {registry.name} must be dict(type='…', …); got {shown(cfg)}.")
    arguments = {**default_args, **cfg}
    target = registry.resolve(arguments.pop("type"))
    return construct(target, arguments)


def _name(target: Any) -> str:
    return str(getattr(target, "__qualname__", type(target).__qualname__))


class Registry(_MMEngineRegistry):
    """mmengine's registry, which finds its modules by itself.

    Args:
        name: Kind of the registered classes, for messages ("backbone").
        packages: Modules and packages whose import registers names; they are imported one by one, and only while a
            requested name is still unknown.
    """

    def __init__(self, name: str, packages: tuple[str, ...]) -> None:
        super().__init__(name, build_func=build_from_cfg, scope="lbitcls")
        self._packages = packages

    def register_module(
        self, name: str | Sequence[str] | None = None, force: bool = False, module: Any = None
    ) -> Any:  # mmengine's signature
        """Register a class or a function under its name, or `name`; also as a decorator.

        The names of the package's own classes are reserved, whether their modules are imported yet or not.

        Raises:
            ConfigError: A name is in use, and `force` is False.
        """
        if module is None:
            return lambda target: self.register_module(name, force, target)
        names = [module.__name__] if name is None else [name] if isinstance(name, str) else list(name)
        for key in names:
            self.claim(key, module, force)
        return super().register_module(name, force, module)

    def claim(self, key: str, target: Any, force: bool = False) -> None:
        """Raise `ConfigError` if `key` already names something other than `target`, unless `force`."""
        own = target.__module__.partition(".")[0] in {package.partition(".")[0] for package in self._packages}
        if not own and key not in self.module_dict:
            self.names()  # a package module imported later could otherwise no longer register its class
        found = self.module_dict.get(key)
        if found is None or force:
            return
        raise ConfigError(
            f"the {self.name} '{key}' exists already, {found.__module__}.{_name(found)}; "
            f"{target.__module__}.{_name(target)} needs another name. To replace it on purpose, as when a notebook "
            "cell is run again, register with force=True."
        )

    def find(self, key: str) -> Any:
        """Return the class registered as `key`; raise `ConfigError` with a suggestion if there is none."""
        found = self.get(key)
        if found is None:
            known = sorted(self.module_dict)
            raise ConfigError(
                f"there is no {self.name} named '{key}'{suggest(key, known)} Known: {', '.join(known)}. "
                "A custom class is found if its module is listed in custom_imports."
            )
        return found

    def resolve(self, kind: Any) -> Any:
        """Return the class or function that a section's `type` refers to: by name, or the class itself.

        Raises:
            ConfigError: An unknown name, or neither.
        """
        target = self.find(kind) if isinstance(kind, str) else kind
        if not callable(target):
            raise ConfigError(f"the type of a {self.name} must be a name or a class; got {shown(kind)}.")
        return target

    def get(self, key: str) -> Any:
        """Return the class registered as `key`, or None."""
        for module in self._modules():
            if key in self.module_dict:
                break
            importlib.import_module(module)
        return self.module_dict.get(key)

    def names(self) -> list[str]:
        """Return all names, sorted; imports all modules of the registry."""
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
BACKBONES = Registry("backbone", ("lbitcls.models.backbones", "lbitcls.deploy.export.integer_backbone"))
NECKS = Registry("neck", ("lbitcls.models.necks",))
HEADS = Registry("head", ("lbitcls.models.heads",))
LOSSES = Registry("loss", ("lbitcls.models.losses",))
DATASETS = Registry("dataset", ("lbitcls.datasets",))
PIPELINES = Registry("pipeline step", ("lbitcls.datasets.pipelines",))
HOOKS = Registry(
    "hook",
    ("lbitcls.core.hooks", "lbitcls.tracking.tensorboard", "lbitcls.tracking.quant_stats", "lbitcls.tracking.loggers"),
)
QUANT_LAYERS = Registry("quantized layer", ("lbitcls.quant.quantizers",))
QUANLAYERS = QUANT_LAYERS
ENGINES = Registry("engine", ("lbitcls.deploy.runtime.engines",))
TARGETS = Registry("target", ("lbitcls.deploy.targets",))
TRANSFORMERS = Registry("model transformer", ("lbitcls.quant.transformer",))
