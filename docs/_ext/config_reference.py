"""Build the config reference from the code: `.. config-sections::`, and `.. config-types::` for every registry."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterable, Iterator
from typing import Any

from config_tables import Row, section_rows
from docutils import nodes
from plain_docstrings import SECTION, inline, to_rst
from sphinx.util.docutils import SphinxDirective

from lbitcls import registry
from lbitcls.quant import aliases, methods
from lbitcls.quant.layers import ENTRY_SUFFIXES
from lbitcls.settings.base import Section
from lbitcls.utils.config import SECTIONS

BUILT = {"model": ("CLASSIFIERS", "ImageClassifier"), "quant_transformer": ("TRANSFORMERS", "ModelTransformer")}
"""Sections that are a type of a registry."""
DEFAULTS = {"needed": "needed", "its defaults": "optional"}
ARGUMENT = re.compile(r"^    ([*\w]+): ?(.*)")


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
    """Return every section with its keys: the meaning first, then type and default."""
    for section in SECTIONS:
        (_, kind, default, about), *inner = section_rows(section)
        yield from ("", section, "-" * len(section), "", inline(about), "", *allowed(kind, default), "")
        if section in BUILT:
            known, name = BUILT[section]
            yield from keys_text(getattr(registry, known).find(name))
        if section == "optimizer":
            inner += section_rows("optimizer.paramwise_cfg")
        yield from rows_text(inner)


def rows_text(rows: Iterable[Row]) -> Iterator[str]:
    """Return keys as definitions; a policy of the learning rate, which has no type, begins a section of its keys."""
    for key, kind, default, about in rows:
        if not kind:
            title = key.strip("`").partition(".")[2]
            yield from ("", title, "^" * len(title), "", inline(about), "")
            continue
        yield from (inline(key), f"   {inline(about)}", "")
        yield from (*(f"   {line}" for line in allowed(kind, default)), "")


def allowed(kind: str, default: str) -> list[str]:
    """Return type, range and default of a key, as one line."""
    sentence = kind if kind.startswith("`") else kind[:1].upper() + kind[1:]
    return [inline(f"{sentence}; {DEFAULTS.get(default, f'default: {default}')}."), ""]


def types_text() -> Iterator[str]:
    """Return every registry with its types."""
    for name, known in registries().items():
        title = name.replace("_", " ").capitalize()
        yield from ("", title, "-" * len(title), "")
        yield from methods_text() if known is registry.QUANT_LAYERS else classes_text(known)


def classes_text(known: registry.Registry) -> Iterator[str]:
    """Return the classes of a registry: meaning, how a config writes it, keys."""
    for target, (name, *others) in types(known):
        yield from ("", name, "^" * len(name), "", *to_rst(about_of(target)), "")
        if others:
            yield from (f"Also {codes(others)}.", "")
        yield from written(name, inspect.signature(target).parameters.values())
        yield from keys_text(target)


def methods_text() -> Iterator[str]:
    """Return the methods: meaning, how a config writes an entry, the keys of their own, and other names."""
    registry.QUANT_LAYERS.names()
    yield from (f"Every entry has the keys {codes(methods.LAYER_KEYS)}: :doc:`../config`.", "")
    for name, method in sorted(methods.METHODS.items(), key=lambda pair: pair[0].lower()):
        entries = [f"{name}{suffix}" for suffix in ENTRY_SUFFIXES.values()]
        older = [old for old, (entry, _) in aliases.ENTRIES.items() if entry in entries]
        yield from ("", name, "^" * len(name), "")
        for quantizer in dict.fromkeys(filter(None, (method.weight, method.input))):
            yield from (*to_rst(about_of(quantizer)), "")
        options = sorted(method.options().items())
        owners = {key: method.weight if "weight" in roles else method.input for key, roles in options}
        bits = [inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=4) for key in methods.LAYER_KEYS[:2]]
        yield from written(entries[0], [*bits, *(argument(key, owner) for key, owner in owners.items())])
        for key, roles in options:
            yield f"- ``{key}`` ({', '.join(roles)}): {inline(meaning(key, owners[key]))}"
        yield from ("", f"Entries: {codes(entries)}.", "", f"Older names: {codes(older)}." if older else "", "")


def written(name: str, arguments: Iterable[inspect.Parameter]) -> Iterator[str]:
    """A type with its keys and their defaults, as a config writes it; `...` for what has no default."""
    keys = [f"type={name!r}"]
    for argument in arguments:
        if argument.kind not in (argument.VAR_POSITIONAL, argument.VAR_KEYWORD):
            value = "..." if argument.default is argument.empty else repr(argument.default)
            keys.append(f"{argument.name}={value}")
    lines = textwrap.wrap(f"dict({', '.join(keys)})", 84, subsequent_indent="     ", break_on_hyphens=False)
    yield from (".. code-block:: python", "", *(f"   {line}" for line in lines), "")


def keys_text(target: Any) -> Iterator[str]:
    """The keys of a class with their meaning."""
    names = inspect.signature(target).parameters
    yield from (
        f"- ``{key}``: {inline(about)}" for key, about in arguments_of(target).items() if key in names and about
    )
    yield ""


def about_of(target: Any) -> list[str]:
    """The docstring of a class without its sections: what it is, not how Python calls it."""
    kept, inside = [], False
    for line in inspect.cleandoc(target.__doc__ or "").splitlines():
        inside = bool(SECTION.match(line)) or (inside and (line.startswith(" ") or not line))
        kept += [] if inside else [line]
    return kept


def arguments_of(target: Any) -> dict[str, str]:
    """The arguments that a class's docstring describes, each with its meaning in one line."""
    found: dict[str, str] = {}
    name, inside = "", False
    for line in inspect.cleandoc(target.__doc__ or "").splitlines():
        if line and not line.startswith(" "):
            inside = line == "Args:"
        elif inside and (described := ARGUMENT.match(line)):
            name = described[1]
            found[name] = described[2]
        elif inside and line.strip():
            found[name] = f"{found[name]} {line.strip()}".strip()
    return found


def argument(option: str, quantizer: Any) -> inspect.Parameter:
    """An option of a quantizer with its default, from the class that has it."""
    known = (inspect.signature(kind.__init__).parameters for kind in quantizer.__mro__)
    return next(parameters[option] for parameters in known if option in parameters)


def meaning(option: str, quantizer: Any) -> str:
    """The meaning of an option of a quantizer, from the class that describes it."""
    return next(filter(None, (arguments_of(kind).get(option) for kind in quantizer.__mro__)), "")


class Generated(SphinxDirective):
    """Directive whose text a function returns."""

    def run(self) -> list[nodes.Node]:
        """Return the nodes of the text."""
        self.env.note_reread()  # it depends on the whole package
        text = sections_text() if self.name == "config-sections" else types_text()
        return self.parse_text_to_nodes("\n".join(text), allow_section_headings=True)


def signature(app: Any, what: str, name: str, obj: Any, *given: Any) -> tuple[str, None] | None:
    """A settings class without its annotated fields, which `.. config-sections::` shows."""
    return ("", None) if inspect.isclass(obj) and issubclass(obj, Section) else None


def setup(app: Any) -> dict[str, bool]:
    """Register with Sphinx."""
    app.connect("autodoc-process-signature", signature)
    app.add_directive("config-sections", Generated)
    app.add_directive("config-types", Generated)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
