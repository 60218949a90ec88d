"""Build the config reference from the code: `.. config-sections::`, and `.. config-types::` for every registry."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docutils import nodes
from plain_docstrings import inline
from sphinx.util.docutils import SphinxDirective

import lbitcls
from lbitcls import registry
from lbitcls.quant import aliases, methods
from lbitcls.quant.layers import ENTRY_SUFFIXES
from lbitcls.settings.learning_rate import POLICIES, Warmup
from lbitcls.settings.parse import section_fields
from lbitcls.settings.sections import Settings
from lbitcls.settings.training_sections import CalibrationConfig, CheckpointConfig, EvaluationConfig, ParamwiseConfig
from lbitcls.utils.config import SECTIONS

PACKAGE = Path(lbitcls.__file__).parent
SHOWN = {"calibration": CalibrationConfig, "checkpoint_config": CheckpointConfig, "evaluation": EvaluationConfig}
"""Sections that are shown as their classes."""
BUILT = {"model": ("CLASSIFIERS", "ImageClassifier"), "quant_transformer": ("TRANSFORMERS", "ModelTransformer")}
"""Sections that are a type of a registry."""


def modules() -> Iterator[tuple[str, ast.Module]]:
    """Yield (dotted name, syntax tree) of every module."""
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
        yield name.removesuffix(".__init__"), ast.parse(path.read_text(encoding="utf-8"))


def section_keys() -> dict[str, tuple[str, ...]]:
    """Return the keys of each section with a fixed set of keys, from the settings classes."""
    found = dict(classes_below({**section_fields(Settings), "optimizer.paramwise_cfg": ParamwiseConfig}))
    found |= {name: ("type", *parameters(getattr(registry, known).find(kind))) for name, (known, kind) in BUILT.items()}
    return found | {
        "lr_config": tuple(dict.fromkeys(key for kind in POLICIES.values() for key in section_fields(kind)))
    }


def classes_below(fields: dict[str, Any], place: str = "") -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield (place, keys) of every settings class in the annotations of fields, recursively."""
    for name, hint in fields.items():
        inner = section_fields(hint)
        if inner:
            yield f"{place}{name}", tuple(inner)
            yield from classes_below(inner, f"{place}{name}.")


def parameters(target: Any) -> tuple[str, ...]:
    """Return the arguments of a class."""
    return tuple(inspect.signature(target).parameters)


def readers() -> dict[str, list[str]]:
    """Return the modules that read each section: `settings.NAME`, `cfg['NAME']`, `cfg.get('NAME')`."""
    found: dict[str, list[str]] = {section: [] for section in SECTIONS}
    for name, tree in modules():
        owners = ("cfg", "settings", "self") if name == Settings.__module__ else ("cfg", "settings")
        for section in sorted({section for node in ast.walk(tree) for section in sections_read(node, owners)}):
            found[section].append(name)
    return found


def sections_read(node: ast.AST, owners: tuple[str, ...]) -> Iterator[str]:
    """Yield the sections that an expression reads from one of the names in `owners`."""
    value, key = None, None
    if isinstance(node, ast.Attribute):
        value, key = node.value, node.attr
    elif isinstance(node, ast.Subscript):
        value, key = node.value, getattr(node.slice, "value", None)
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "get" and node.args:
        value, key = node.func.value, getattr(node.args[0], "value", None)
    if isinstance(value, ast.Name) and value.id in owners and key in SECTIONS:
        yield str(key)


def registries() -> dict[str, registry.Registry]:
    """Return every registry by its name in `lbitcls.registry`, without second names of the same one."""
    found: dict[int, str] = {}
    for name, value in vars(registry).items():
        if isinstance(value, registry.Registry):
            found.setdefault(id(value), name)
    return {name: getattr(registry, name) for name in found.values()}


def types(known: registry.Registry) -> list[tuple[Any, list[str]]]:
    """Return each type of a registry with its names, its own name first."""
    names: dict[int, list[str]] = {}
    known.names()  # all modules are imported
    for name, target in known.module_dict.items():
        names.setdefault(id(target), []).append(name)
    return [
        (known.module_dict[group[0]], group) for group in sorted(names.values(), key=lambda group: group[0].lower())
    ]


def codes(names: Any) -> str:
    """Return names as inline code: `a`, `b`."""
    return ", ".join(f"``{name}``" for name in names)


def sections_text() -> Iterator[str]:
    """Return the table of sections, and the arguments of the classes that some of them build."""
    keys, places = section_keys(), readers()
    yield from (".. list-table::", "   :header-rows: 1", "   :widths: 20 30 30 20", "")
    yield from ("   * - section", "     - what it is", "     - keys", "     - read in")
    for section, about in SECTIONS.items():
        where = ", ".join(f":py:mod:`~{module}`" for module in places[section])
        yield from (f"   * - ``{section}``", f"     - {inline(about)}", f"     - {codes(keys.get(section, ()))}")
        yield f"     - {where}"
        for inner in sorted(owner for owner in keys if owner.startswith(f"{section}.")):
            yield from (f"   * - ``{inner}``", "     -", f"     - {codes(keys[inner])}", "     -")
    for section, hook in SHOWN.items():
        yield from ("", section, "-" * len(section), "")
        yield from described(hook)
    yield from ("", "lr_config", "---------", "", "Beside ``policy``, which names one of the policies below:", "")
    yield from described(Warmup)
    for name, policy in POLICIES.items():
        yield from ("", f"policy='{name}'", "^" * (len(name) + 9), "")
        yield from described(policy)


def described(target: Any) -> Iterator[str]:
    """Return a class with its signature and docstring, as autodoc shows it."""
    yield from (f".. autoclass:: {target.__module__}.{target.__qualname__}", "   :no-index:", "")


def types_text() -> Iterator[str]:
    """Return every registry with its types."""
    for name, known in registries().items():
        title = name.replace("_", " ").capitalize()
        yield from ("", title, "-" * len(title), "", f"``lbitcls.registry.{name}``: each is a {known.name}.", "")
        yield from methods_text() if known is registry.QUANT_LAYERS else classes_text(known)


def classes_text(known: registry.Registry) -> Iterator[str]:
    """Return the classes of a registry."""
    for target, (name, *others) in types(known):
        yield from ("", name, "^" * len(name), "")
        if others:
            yield from (f"Also {codes(others)}.", "")
        yield from described(target)


def methods_text() -> Iterator[str]:
    """Return each method's entries, with the options that they accept, and its quantizers."""
    registry.QUANT_LAYERS.names()
    for name, method in sorted(methods.METHODS.items(), key=lambda pair: pair[0].lower()):
        entries = [f"{name}{suffix}" for suffix in ENTRY_SUFFIXES.values()]
        older = [old for old, (entry, _) in aliases.ENTRIES.items() if entry in entries]
        yield from ("", name, "^" * len(name), "", f"Entries: {codes(entries)}.")
        yield from ("", f"Older names: {codes(older)}." if older else "", "")
        yield from (f"Keys: {codes(methods.LAYER_KEYS)}, and of the quantizers", "")
        yield from (f"- ``{option}`` ({', '.join(roles)})" for option, roles in sorted(method.options().items()))
        yield ""
        for quantizer in dict.fromkeys(filter(None, (method.weight, method.input))):
            yield from described(quantizer)


class Generated(SphinxDirective):
    """Directive whose text a function returns."""

    def run(self) -> list[nodes.Node]:
        """Return the nodes of the text."""
        self.env.note_reread()  # it depends on the whole package
        text = sections_text() if self.name == "config-sections" else types_text()
        return self.parse_text_to_nodes("\n".join(text), allow_section_headings=True)


def setup(app: Any) -> dict[str, bool]:
    """Register with Sphinx."""
    app.add_directive("config-sections", Generated)
    app.add_directive("config-types", Generated)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
