"""The extensions of Sphinx in docs/_ext: references from the code, docstrings, links out of docs/."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import api_pages
import config_reference
import plain_docstrings
import pytest
from blocks import ROOT
from outside_pages import relink, shown_files

from lbitcls import registry
from lbitcls.utils.config import SECTIONS

DOCS = ROOT / "docs"
REFERENCE = {path.stem: path.read_text(encoding="utf-8") for path in (DOCS / "reference").glob("*.rst")}


def test_every_package_has_a_page() -> None:
    parts = {path.stem for path in (ROOT / "lbitcls").iterdir() if any(path.glob("*.py"))} | {"registry"}
    assert parts == {name for name, text in REFERENCE.items() if f".. package:: lbitcls.{name}\n" in text}


def test_a_page_has_every_module_and_what_the_package_offers() -> None:
    text = "\n".join(api_pages.page("lbitcls.quant"))
    for name in ("lbitcls.quant.quantizers.lsq", "lbitcls.quant.kernels.elementwise", "lbitcls.quant.transformer"):
        assert f".. automodule:: {name}\n   :members:" in text
    assert "* - :py:obj:`calibrate <lbitcls.quant.calibration.calibrate>`" in text
    assert "lbitcls.quant.quantizers\n" not in text, "it has nothing of its own"
    assert api_pages.is_public("lbitcls.workflows.training") and not api_pages.is_public("lbitcls.quant")


def test_every_section_is_shown_with_its_keys() -> None:
    keys, readers = config_reference.section_keys(), config_reference.readers()
    dicts = (
        "model data evaluation quant_transformer calibration optimizer_config lr_config checkpoint_config log_config"
    )
    assert {*dicts.split(), "dist_params", "custom_imports", "export"} <= keys.keys()
    assert {name.partition(".")[0] for name in keys} <= SECTIONS.keys()
    assert keys["optimizer_config.grad_clip"] == ("max_norm", "norm_type")
    assert keys["checkpoint_config"] == ("interval", "by_epoch", "max_keep_ckpts")
    assert keys["log_config"] == ("interval", "hooks", "pictures") and keys["ema"] == ("decay",)
    assert keys["amp"] == keys["fp16"] == ("dtype", "loss_scale")
    assert "loader" not in keys["evaluation"] and {"policy", "warmup", "gamma", "power"} <= set(keys["lr_config"])
    assert "lbitcls.assembly.run_hooks" in readers["evaluation"]
    assert not [section for section, modules in readers.items() if not modules], "nothing reads it"
    text = "\n".join(config_reference.sections_text())
    assert all(f"   * - ``{section}``" in text for section in [*SECTIONS, *keys])
    assert all(f"policy='{name}'" in text for name in ("step", "CosineAnnealing", "poly", "exp", "fixed"))


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
    assert "- ``clip_decay`` (input)" in text


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
