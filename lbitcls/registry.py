"""Every registry, on one page: a name in a config (`type='ResNet'`) to the class that it builds.

The registries are mmengine's, with three habits of our own: a module is imported only when a name is asked for that
is not known yet; an unknown name or key is a `ConfigError` that suggests the nearest one; a name is looked up here
and nowhere else (mmengine would import a dotted name).
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
        registry: where the name is looked up.
        default_args: arguments for keys that `cfg` does not give.

    Raises:
        ConfigError: no `type`, an unknown name, an unknown or a missing key.
    """
    if not isinstance(cfg, dict) or "type" not in cfg:
        raise ConfigError(f"a {registry.name} is given as dict(type='…', …); got {shown(cfg)}.")
    arguments = {**default_args, **cfg}
    target = registry.resolve(arguments.pop("type"))
    return construct(target, arguments)


def _name(target: Any) -> str:
    return str(getattr(target, "__qualname__", type(target).__qualname__))


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

    def register_module(
        self, name: str | Sequence[str] | None = None, force: bool = False, module: Any = None
    ) -> Any:  # mmengine's signature
        """Register a class or a function under its name, or `name`; also as a decorator.

        The names of the package's own classes are taken, whether their modules are imported yet or not.

        Raises:
            ConfigError: a name is taken, and not `force`.
        """
        if module is None:
            return lambda target: self.register_module(name, force, target)
        names = [module.__name__] if name is None else [name] if isinstance(name, str) else list(name)
        for key in names:
            self.claim(key, module, force)
        return super().register_module(name, force, module)

    def claim(self, key: str, target: Any, force: bool = False) -> None:
        """Raise `ConfigError` where `key` is the name of something else than `target` already, and not `force`."""
        own = target.__module__.partition(".")[0] in {package.partition(".")[0] for package in self._packages}
        if not own and key not in self.module_dict:
            self.names()  # a module of the package that is imported later could not register its class any more
        found = self.module_dict.get(key)
        if found is None or force:
            return
        raise ConfigError(
            f"there is a {self.name} '{key}' already, {found.__module__}.{_name(found)}; "
            f"{target.__module__}.{_name(target)} needs another name. To replace it on purpose, as a cell of a "
            "notebook that is run again does, register with force=True."
        )

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

    def resolve(self, kind: Any) -> Any:
        """The class or function that the `type` of a section means: a name, or the class itself.

        Raises:
            ConfigError: an unknown name, or neither.
        """
        target = self.find(kind) if isinstance(kind, str) else kind
        if not callable(target):
            raise ConfigError(f"the type of a {self.name} is a name or a class; got {shown(kind)}.")
        return target

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
BACKBONES = Registry("backbone", ("lbitcls.models.backbones", "lbitcls.deploy.export.integer_backbone"))
NECKS = Registry("neck", ("lbitcls.models.necks",))
HEADS = Registry("head", ("lbitcls.models.heads",))
LOSSES = Registry("loss", ("lbitcls.models.losses",))
DATASETS = Registry("dataset", ("lbitcls.datasets",))
PIPELINES = Registry("pipeline step", ("lbitcls.datasets.pipelines",))
HOOKS = Registry("hook", ("lbitcls.core.hooks", "lbitcls.tracking.tensorboard"))
QUANT_LAYERS = Registry("quantized layer", ("lbitcls.quant.quantizers",))
QUANLAYERS = QUANT_LAYERS
TARGETS = Registry("target", ("lbitcls.deploy.targets",))
TRANSFORMERS = Registry("model transformer", ("lbitcls.quant.transformer",))
