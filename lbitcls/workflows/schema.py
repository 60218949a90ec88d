"""JSON Schema of configs, with which an editor completes and checks YAML and JSON files: `lbitcls schema`.

The sections are the settings classes. A component (`type: NAME`) has the arguments of its constructor, with the
descriptions in its docstring. No key is required, since a config may inherit it from its `_base_`.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping
from typing import Any

from lbitcls import registry
from lbitcls.core.optim import optimizers
from lbitcls.quant.aliases import ENTRIES, KEYS, WITHOUT_MEANING
from lbitcls.quant.methods import LAYER_KEYS, LayerEntry
from lbitcls.registry import Registry
from lbitcls.settings.learning_rate import POLICIES
from lbitcls.settings.parse import doc_of, section_fields
from lbitcls.settings.sections import LISTS, NUMBERS, Settings
from lbitcls.settings.training_sections import ParamwiseConfig
from lbitcls.utils.arguments import annotations_of
from lbitcls.utils.files import check_writable, write_whole
from lbitcls.utils.jsontext import json_text

Schema = dict[str, Any]

OFF: Schema = {"enum": [None, False]}
"""Values that switch a section off."""
EMPTY: Schema = {"type": ["string", "object"], "maxLength": 0, "maxProperties": 0}
"""Empty values, which switch a section off too, but which an editor should not suggest."""
EMPTY_LIST: Schema = {"type": "array", "maxItems": 0}
"""Empty value that switches off a section that is a list."""
NULL: Schema = {"type": "null"}
DIALECT = "https://json-schema.org/draft/2020-12/schema"
BASES: Schema = {"type": ["string", "array"], "description": "Configs to inherit from."}
DELETE: Schema = {"type": "boolean", "description": "Drop the base config's content of this section."}
BITS: Schema = {"enum": [*range(1, 9), 32], "description": "Bits, 2 to 8 (weights of some methods: from 1); 32: float."}
PARTS = {
    **{"backbone": registry.BACKBONES, "neck": registry.NECKS, "head": registry.HEADS, "loss": registry.LOSSES},
    **{"pipeline": registry.PIPELINES, "quan_policy": registry.QUANT_LAYERS},
}
"""Arguments that are components, or lists or dicts of components."""
TAKEN_AROUND: dict[str, Schema] = {
    "backbone": {
        "frozen": {"type": "boolean", "description": "Freeze the backbone."},
        "pretrained": {"description": "Weights to initialize from: a local file or a published name."},
        "init_cfg": {"type": "object", "description": "dict(type='Pretrained', checkpoint=FILE)."},
    },
    "dataset": {
        "data_root": {"description": "Folders to search first for relative paths."},
        "indices": {"type": "array", "description": "Positions of the samples to use, from 0."},
        "exclude_indices": {"type": "array", "description": "Positions of the samples to leave out, from 0."},
    },
    "hook": {"priority": {"type": ["string", "integer"], "description": "Order among hooks: NORMAL, LOW, …"}},
}
"""Keys that a component accepts beside its own arguments, by the name of its registry."""


def write_schema(out: str | None = None) -> str:
    """Print the schema, or write it to `out`; return its text."""
    text = json_text(config_schema(), indent=1, ensure_ascii=False) + "\n"
    if out is None:
        print(text, end="")
    else:
        write_whole(check_writable(out, "--out"), lambda path: path.write_text(text, "utf-8"))
    return text


def config_schema() -> Schema:
    """Return the schema of a config: sections from their settings classes, components from the registries."""
    schema = _of_hint(Settings)
    definitions: Schema = schema.pop("$defs")
    for known in (registry.CLASSIFIERS, registry.DATASETS, registry.HOOKS, registry.TRANSFORMERS, *PARTS.values()):
        definitions |= _components(known)
    definitions |= _optimizers()
    paramwise = _of_hint(ParamwiseConfig)
    paramwise["$defs"]["QuantizerParams"]["properties"]["optimizer"]["anyOf"] = [_ref("optimizer"), NULL]
    definitions |= {**paramwise.pop("$defs"), "paramwise_cfg": paramwise}
    data, log = definitions["DataConfig"]["properties"], definitions["LogConfig"]["properties"]
    for split in ("train", "val", "test", "calibration"):
        data[split] = {"anyOf": [_ref("dataset"), NULL], "description": data[split]["description"]}
    log["hooks"] = {"anyOf": [_list_of("hook"), NULL], "description": log["hooks"]["description"]}
    for policy, kind in POLICIES.items():
        definitions[kind.__name__]["properties"]["policy"] = _any_case(policy)
    sections = schema["properties"]
    sections |= {"model": _ref("classifier"), "optimizer": _ref("optimizer"), "custom_hooks": _list_of("hook")}
    sections["quant_transformer"] = _ref("model transformer")
    for name, hint in section_fields(Settings).items():
        inner = {key: value for key, value in sections[name].items() if key not in ("description", "default", "title")}
        options = inner["anyOf"] if list(inner) == ["anyOf"] else [inner]
        kept = {key: value for key, value in sections[name].items() if key == "default" and value is not None}
        off = [NULL] if name in NUMBERS else [OFF, EMPTY, EMPTY_LIST] if name in LISTS else [OFF, EMPTY]
        sections[name] = {"anyOf": [*options, *off], "description": doc_of(hint), **kept}
    sections["_base_"] = BASES
    whole = {"$schema": DIALECT, "title": "lbitcls config", "type": "object", "properties": sections}
    return _for_editors({**whole, "additionalProperties": True, "$defs": definitions})


def _any_case(name: str) -> Schema:
    """Return the schema of a name whose letter case does not matter."""
    letters = "".join(f"[{letter.lower()}{letter.upper()}]" for letter in name)
    return {"anyOf": [{"const": name}, {"type": "string", "pattern": f"^{letters}$"}]}


def _for_editors(value: Any) -> Any:
    """Return a schema that also accepts part of a config: no key is required, and sections accept `_delete_`."""
    if isinstance(value, list):
        return [_for_editors(item) for item in value]
    if not isinstance(value, dict):
        return value
    renamed = {"anyOf" if key == "oneOf" else key: item for key, item in value.items() if key != "discriminator"}
    if isinstance(value.get("properties"), dict) and "type" in value:
        renamed.pop("required", None)
        renamed.pop("title", None)
        if value.get("additionalProperties") is False:
            renamed["properties"] = {**value["properties"], "_delete_": DELETE}
    return {key: _for_editors(item) for key, item in renamed.items()}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/$defs/{name.replace(' ', '_')}"}


def _list_of(name: str) -> Schema:
    return {"type": "array", "items": _ref(name)}


def _components(known: Registry) -> Schema:
    """Return the definitions of a registry: one for its name, and one per type."""
    targets: dict[str, Any] = {name: known.module_dict[name] for name in known.names()}
    if known is registry.QUANT_LAYERS:
        targets |= {old: targets[new] for old, (new, _) in ENTRIES.items()}
    types = {
        name: _entry(target) if isinstance(target, LayerEntry) else _arguments(target, known.name)
        for name, target in targets.items()
    }
    return _choice(known.name, types, r"^(v2|mmcv)\." if known is registry.PIPELINES else None)


def _choice(name: str, types: Mapping[str, Schema], further: str | None = None) -> Schema:
    """Return the definitions of a component, whose keys depend on its `type`.

    Args:
        name: Name of the definition.
        types: Schema of each type.
        further: Pattern of other permitted types; None: no others.
    """
    names: Schema = {"enum": sorted(types)}
    if further is not None:
        names = {"anyOf": [names, {"type": "string", "pattern": further}]}
    cases = [
        {
            "if": {"properties": {"type": {"const": kind}}, "required": ["type"]},
            "then": _ref(f"{name}.{kind}"),
        }
        for kind in sorted(types)
    ]
    own = {f"{name}.{kind}".replace(" ", "_"): schema for kind, schema in types.items()}
    return {name.replace(" ", "_"): {"type": "object", "properties": {"type": names}, "allOf": cases}, **own}


def _arguments(target: Any, owner: str) -> Schema:
    """Return the schema of a class's or a function's arguments, with their types, defaults and descriptions."""
    parameters = inspect.signature(target).parameters.values()
    hints, texts = annotations_of(target), _described(target)
    properties: Schema = {"type": {}}
    for parameter in (p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)):
        name = parameter.name
        properties[name] = _part(name, hints.get(name, Any)) if owner != "optimizer" else {}
        properties[name] |= {"description": texts[name]} if name in texts else {}
        if isinstance(parameter.default, (bool, int, float, str)):
            properties[name] |= {"default": parameter.default}
    properties |= {name: schema for name, schema in TAKEN_AROUND.get(owner, {}).items() if name not in properties}
    further = any(p.kind is p.VAR_KEYWORD for p in parameters)
    about = (inspect.getdoc(target) or "").partition("\n\n")[0].replace("\n", " ")
    return {"type": "object", "description": about, "properties": properties, "additionalProperties": further}


def _part(name: str, hint: Any) -> Schema:
    """Return the schema of an argument: of a component, of several, or of its annotation."""
    if name not in PARTS:
        return _special_layers() if name == "special_layers" else _of_hint(hint)
    known = PARTS[name].name
    if name == "pipeline":
        return _list_of(known)
    whole: Schema = {"anyOf": [_ref(known), NULL]}
    return {"type": "object", "additionalProperties": whole} if name == "quan_policy" else whole


def _special_layers() -> Schema:
    """Return the schema of the special layers: their full names, and an entry for each."""
    names = {"type": ["array", "null"], "items": {"type": "string"}, "description": "Full names of layers."}
    entries = {"type": ["array", "null"], "items": {"anyOf": [_ref("quantized layer"), NULL]}}
    known = {"layers_name": names, "convert_type": entries}
    return {"type": ["object", "null"], "properties": known, "additionalProperties": False}


def _entry(entry: LayerEntry) -> Schema:
    """Return the schema of a quantized layer's entry: bits, and the options of its quantizers."""
    properties: Schema = {"type": {}}
    for name in (*LAYER_KEYS, *KEYS):
        properties[name] = BITS if KEYS.get(name, name) in ("num_bit_w", "num_bit_a") else {"type": "boolean"}
    for quantizer in filter(None, (entry.method.weight, entry.method.input)):
        texts = _described(quantizer)
        hints: dict[str, Any] = {}
        for kind in reversed(quantizer.__mro__):
            hints |= annotations_of(kind) if "__init__" in vars(kind) and kind.__module__.startswith("lbitcls") else {}
        for name in entry.method.options():
            if name in hints and name not in LAYER_KEYS:
                properties[name] = {**_of_hint(hints[name]), **({"description": texts[name]} if name in texts else {})}
    older: Schema = {name: {} for name in (*entry.method.options(), "auto_signed", "power", *WITHOUT_MEANING)}
    about = f"{entry.method.name} layer that replaces a {entry.kind}."
    return {"type": "object", "description": about, "properties": older | properties, "additionalProperties": False}


def _optimizers() -> Schema:
    """Return the definitions of PyTorch's optimizers, with their arguments and `paramwise_cfg`."""
    types = {name: _arguments(kind, "optimizer") for name, kind in optimizers().items()}
    for schema in types.values():
        schema["properties"].pop("params", None)
        schema["properties"]["paramwise_cfg"] = {"anyOf": [_ref("paramwise_cfg"), OFF]}
    return _choice("optimizer", types)


def _described(target: Any) -> dict[str, str]:
    """Return the descriptions of arguments in the docstrings of a class and its bases."""
    found: dict[str, str] = {}
    for kind in reversed(getattr(target, "__mro__", [target])):
        if kind.__module__.partition(".")[0] in ("lbitcls", "torch"):
            found |= dict(_argument_texts(inspect.getdoc(kind) or ""))
    return found


def _argument_texts(doc: str) -> Iterable[tuple[str, str]]:
    """Yield (name, description) of each argument under `Args:` in a docstring."""
    section = re.search(r"^Args:\n(.*?)(?=^\S|\Z)", doc, re.DOTALL | re.MULTILINE)
    for match in re.finditer(
        r"^    (\w+)(?: \([^\n]*?\))?:(.*?)(?=^    \S|\Z)", section[1] if section else "", re.DOTALL | re.MULTILINE
    ):
        yield match[1], " ".join(match[2].split())


def _of_hint(hint: Any) -> Schema:
    """Return the schema of an annotation; one that accepts everything if the annotation is no plain type."""
    from pydantic import ConfigDict, TypeAdapter
    from pydantic.errors import PydanticUserError
    from pydantic.json_schema import GenerateJsonSchema

    class Lenient(GenerateJsonSchema):
        def handle_invalid_for_json_schema(self, schema: Any, error_info: str) -> Schema:
            return {}

    config = None if hint in (Settings, ParamwiseConfig) else ConfigDict(arbitrary_types_allowed=True)
    try:
        schema = TypeAdapter(hint, config=config).json_schema(schema_generator=Lenient)
    except PydanticUserError:
        return {}
    return {} if "$defs" in schema and config is not None else schema  # its references would dangle
