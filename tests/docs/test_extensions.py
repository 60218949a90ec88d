"""The extensions of Sphinx in docs/_ext: references from the code, docstrings, links out of docs/."""

from __future__ import annotations

import ast
import doctest
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

import api_pages
import config_reference
import plain_docstrings
import pytest
from blocks import ROOT
from config_tables import section_rows
from outside_pages import relink, shown_files

import lbitcls
from lbitcls import registry
from lbitcls.quant.methods import METHODS
from lbitcls.settings.sections import Settings
from lbitcls.utils.config import SECTIONS

DOCS = ROOT / "docs"
PACKAGE = Path(lbitcls.__file__).parent
REFERENCE = {path.stem: path.read_text(encoding="utf-8") for path in (DOCS / "reference").glob("*.rst")}


def test_every_package_has_a_page() -> None:
    parts = {path.stem for path in (ROOT / "lbitcls").iterdir() if any(path.glob("*.py"))} | {"registry", "protocols"}
    assert parts == {name for name, text in REFERENCE.items() if f".. package:: lbitcls.{name}\n" in text}


def test_a_page_has_every_module_and_what_the_package_offers() -> None:
    text = "\n".join(api_pages.page("lbitcls.quant"))
    for name in ("lbitcls.quant.quantizers.lsq", "lbitcls.quant.kernels.elementwise", "lbitcls.quant.transformer"):
        assert f".. automodule:: {name}\n   :members:" in text
    assert "* - :py:obj:`calibrate <lbitcls.quant.calibration.calibrate>`" in text
    assert "lbitcls.quant.quantizers\n" not in text, "it has nothing of its own"
    assert api_pages.is_public("lbitcls.workflows.training") and not api_pages.is_public("lbitcls.quant")


def modules() -> Iterator[tuple[str, ast.Module]]:
    """(dotted name, syntax tree) of every module."""
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
        yield name.removesuffix(".__init__"), ast.parse(path.read_text(encoding="utf-8"))


def readers() -> dict[str, list[str]]:
    """The modules that read each section: `settings.NAME`, `cfg['NAME']`, `cfg.get('NAME')`."""
    found: dict[str, list[str]] = {section: [] for section in SECTIONS}
    for name, tree in modules():
        owners = ("cfg", "settings", "self") if name == Settings.__module__ else ("cfg", "settings")
        for section in sorted({section for node in ast.walk(tree) for section in sections_read(node, owners)}):
            found[section].append(name)
    return found


def sections_read(node: ast.AST, owners: tuple[str, ...]) -> Iterator[str]:
    """The sections that an expression reads from one of the names `owners`."""
    value, key = None, None
    if isinstance(node, ast.Attribute):
        value, key = node.value, node.attr
    elif isinstance(node, ast.Subscript):
        value, key = node.value, getattr(node.slice, "value", None)
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "get" and node.args:
        value, key = node.func.value, getattr(node.args[0], "value", None)
    if isinstance(value, ast.Name) and value.id in owners and key in SECTIONS:
        yield str(key)


def test_every_section_is_read_somewhere() -> None:
    found = readers()
    assert "lbitcls.assembly.run_hooks" in found["evaluation"]
    assert not [section for section, modules in found.items() if not modules], "nothing reads it"


def test_every_section_is_shown_with_the_meaning_of_its_keys_first() -> None:
    text = "\n".join(config_reference.sections_text())
    assert all(f"\n{section}\n{'-' * len(section)}\n" in text for section in SECTIONS)
    shown = re.findall(r"^``([\w.]+)``$", text, re.MULTILINE)
    rows = [row for name in [*SECTIONS, "optimizer.paramwise_cfg"] for row in section_rows(name)]
    assert set(shown) == {key.strip("`") for key, kind, *_ in rows if "." in key and kind} and len(shown) > 50
    assert (
        "\n``evaluation.interval``\n   Epochs between two validations.\n\n   An integer ≥ 1; default: ``1``.\n" in text
    )
    assert "\n- ``backbone``: Config of the backbone." in text and "\n- ``fold_bn``: " in text
    assert all(f"\npolicy='{name}'\n" in text for name in ("step", "CosineAnnealing", "poly", "exp", "fixed"))
    assert not re.search(r"Annotated|:py:mod:|autoclass", text), "internals"


def test_every_type_of_every_registry_is_shown() -> None:
    text = "\n".join(config_reference.types_text())
    found = [value for value in vars(registry).values() if isinstance(value, registry.Registry)]
    assert len(config_reference.registries()) == len({id(value) for value in found}) >= 10
    for known in found:
        for name in known.names():
            target = known.module_dict[name]
            if getattr(target, "__module__", "").startswith("lbitcls."):
                assert re.search(rf"^{name}$|``{name}``", text, re.MULTILINE), name
    assert "Also ``mTransformerV2``, ``QuanTransformer``." in text
    assert "Older names: ``DRFConv``, ``DRFLinear``." in text
    assert "- ``clip_decay`` (input): Factor λ" in text
    assert "   dict(type='Resize', size=..., interpolation='bilinear', backend=None)\n\n- ``size``: " in text
    assert text.index("\nResize the image.\n") < text.index("dict(type='Resize'"), "the meaning comes first"
    assert not re.search(r"(?<!init_)kwargs|Raises:|Example:|lbitcls\.registry", text), "internals"


def test_every_type_can_be_pasted_into_a_config() -> None:
    text = "\n".join(config_reference.types_text())
    blocks = re.findall(r"^\.\. code-block:: python\n\n((?:   .*\n)+)", text, re.MULTILINE)
    assert len(blocks) > 60
    for block in blocks:
        assert "\n   dict(" in f"\n{block}" and ast.parse(textwrap.dedent(block))


def test_every_option_of_a_method_has_its_meaning() -> None:
    registry.QUANT_LAYERS.names()
    for name, method in METHODS.items():
        if method.weight.__module__.startswith("lbitcls."):
            for option, roles in method.options().items():
                owner = method.weight if "weight" in roles else method.input
                assert config_reference.meaning(option, owner), f"{name}: {option}"


def test_examples_of_the_extensions() -> None:
    assert doctest.testmod(plain_docstrings).failed == 0


@pytest.mark.parametrize(
    ("given", "made"),
    [
        ("Several `names`s and 2**n", "Several ``names``\\ s and 2\\*\\*n"),
        ("`_base_` and copy_ and |x|", "``_base_`` and copy\\_ and \\|x\\|"),
        ("Two:\n- a *b*\n  more\n- c", "Two:\n\n- a \\*b\\*\n  more\n- c"),
        ("Args:\n    x: `y`\n\n    z: one", "Args:\n    x: ``y``\n\n    z: one"),
        ("Example:\n    >>> f(`x`)\n    *", "Example:\n    >>> f(`x`)\n    *"),
        ("A\n\n    b * c\n\n    d\n\ne", "A\n\n.. code-block:: text\n\n    b * c\n\n    d\n\ne"),
    ],
)
def test_docstrings_become_restructuredtext(given: str, made: str) -> None:
    assert "\n".join(plain_docstrings.to_rst(given.split("\n"))) == made


def test_links_out_of_docs_lead_to_the_pages_that_show_the_files() -> None:
    shown = shown_files(DOCS)
    assert shown[ROOT / "CONTRIBUTING.md"] == DOCS / "contributing.md"
    page, inner = DOCS / "config.md", DOCS / "results" / "transfer.md"
    assert relink("[a](../CONTRIBUTING.md#b)", page, page, shown) == "[a](contributing.md#b)"
    assert relink("[a](../../configs/README.md)", inner, inner, shown) == "[a](../configs.md)"
    assert relink("[a](#b) [c](methods.md) [d](https://e.f/g.md)", page, page, shown) == (
        "[a](#b) [c](methods.md) [d](https://e.f/g.md)"
    )
    assert relink("[a](docs/methods.md#c)", ROOT / "CHANGELOG.md", DOCS / "changelog.md", shown) == "[a](methods.md#c)"
    outside = relink("[a](lbitcls/registry.py)", ROOT / "CONTRIBUTING.md", DOCS / "contributing.md", shown)
    assert (DOCS / outside[4:-1]).resolve() == Path(registry.__file__).resolve()
