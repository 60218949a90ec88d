"""Modules of the user's own (`custom_imports`): where they may lie, and who imports them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from lbitcls.utils.config import Config
from lbitcls.utils.custom import import_custom
from lbitcls.utils.errors import ConfigError
from lbitcls.workflows.planning import show_plan

ROOT = Path(__file__).resolve().parents[2]
MODULE = """from lbitcls.quant.methods import register_method
from lbitcls.quant.quantizers.lsq import LSQ

register_method("MyOwn", weight=LSQ, input=LSQ)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, which Python does not look in, as for a script that lies elsewhere."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in ("", str(Path.cwd()))])
    return tmp_path


def test_a_module_in_the_current_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "module_in_the_current_folder.py").write_text("VALUE = 3\n")
    import_custom(dict(imports=["module_in_the_current_folder"]))
    assert sys.modules["module_in_the_current_folder"].VALUE == 3
    assert sys.path[-1] == str(folder)  # installed packages come first
    import_custom(dict(imports="module_in_the_current_folder"))
    assert sys.path.count(str(folder)) == 1


def test_a_module_that_is_not_there(folder: Path) -> None:
    with pytest.raises(ConfigError, match=rf"no_such_module cannot be imported: .* current folder \({folder}\)"):
        import_custom(dict(imports=["no_such_module"]))
    import_custom(dict(imports=["no_such_module"], allow_failed_imports=True))


def test_reading_a_config_imports_its_modules(folder: Path) -> None:
    (folder / "module_of_a_config.py").write_text("VALUE = 4\n")
    (folder / "config.py").write_text("custom_imports = dict(imports=['module_of_a_config'])\n")
    Config.fromfile(folder / "config.py")
    assert sys.modules["module_of_a_config"].VALUE == 4
    (folder / "missing.py").write_text("custom_imports = dict(imports=['module_of_no_one'])\n")
    with pytest.raises(ConfigError, match="module_of_no_one cannot be imported: .* current folder"):
        Config.fromfile(folder / "missing.py")


def test_a_plan_with_a_quantizer_of_ones_own(
    folder: Path, forget_registrations: None, capsys: pytest.CaptureFixture
) -> None:
    (folder / "module_with_a_method.py").write_text(MODULE)
    cfg = Config.fromfile(ROOT / "configs" / "quickstart" / "digits_lsq_4w4f.py")
    cfg.quant_transformer.quan_policy.Conv2d.type = "MyOwnConv"
    cfg.custom_imports = dict(imports=["module_with_a_method"])
    rows = {cost.row.name: cost.row for cost in show_plan(cfg)}
    assert rows["backbone.layer1.0.conv1"].entry == "MyOwnConv"
    assert "MyOwnConv" in capsys.readouterr().out
