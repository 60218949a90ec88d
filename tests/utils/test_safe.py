"""Untrusted configs: what may run code, and what the safe mode refuses."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lbitcls.commands.main import VERBS, main
from lbitcls.utils.config import Config
from lbitcls.utils.errors import ConfigError
from lbitcls.utils.safe import is_safe_mode, read_yaml, safe_mode

TOUCH = "import pathlib; pathlib.Path('ran').touch()"
PROGRAMS = [
    "!!python/object/apply:os.mkdir [ran]",
    "!!python/object/apply:os.system ['touch ran']",
    "!!python/object/apply:subprocess.check_call [['touch', ran]]",
    "!!python/object/new:os.mkdir [ran]",
    '!!python/object/new:type {args: [z, !!python/tuple [], {extend: !!python/name:exec }], listitems: "'
    + TOUCH
    + '"}',
    "!!python/name:os.system",
    "!!python/module:os",
    "!!python/object:os.stat_result {}",
    "!<tag:yaml.org,2002:python/object/apply:os.mkdir> [ran]",
]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LBITCLS_SAFE", raising=False)
    return tmp_path


@pytest.mark.parametrize("value", PROGRAMS)
@pytest.mark.parametrize("place", ["x: {}", "_base_: {}", "? {}\n: 1", "model: [{{a: {}}}]"])
def test_yaml_runs_nothing_while_it_is_read(value: str, place: str, here: Path) -> None:
    text = place.format(value)
    (here / "evil.yaml").write_text(text)
    (here / "child.yml").write_text("_base_: evil.yaml\n")
    (here / "child.py").write_text("_base_ = 'evil.yaml'\n")
    for name in ("evil.yaml", "child.yml", "child.py"):
        with pytest.raises(ConfigError, match=f"{name} cannot be read"):
            Config.fromfile(name)
    with pytest.raises(ConfigError, match="cannot be read"):
        Config.fromstring(text, ".yaml")
    assert not (here / "ran").exists()


def test_a_folder_whose_name_is_yaml(here: Path) -> None:
    """mmengine puts the names of the file into its text before it is read."""
    folder = here / "a'\nx: !!python{object%apply:os.mkdir [ran]\ny: '".replace("{", "∕").replace("%", "∕")
    folder.mkdir()
    (folder / "c.yaml").write_text("work_dir: '{{ fileDirname }}'\n")
    with pytest.raises(ConfigError, match="cannot be read"):
        Config.fromfile(folder / "c.yaml")
    assert not (here / "ran").exists()


def test_plain_yaml_is_read(here: Path) -> None:
    (here / "a.yaml").write_text("a: &x [1e-3, 2]\nb: *x\nmodel: {topk: !!python/tuple [1, 5]}\n")
    cfg = Config.fromfile("a.yaml")
    assert cfg.a == cfg.b == [1e-3, 2] and cfg.model.topk == (1, 5)
    assert Config.fromstring("lr: 1e-3", ".yaml").lr == 1e-3 and Config.fromstring('{"x": "1e-3"}', ".json").x == 1e-3
    cfg.dump(here / "b.yaml")
    again = Config.fromfile("b.yaml")  # YAML has no tuples
    assert (again.a, again.b, again.model.topk) == (cfg.a, cfg.b, [1, 5])


def test_aliases_that_make_much_of_little() -> None:
    lines = ["a0: &a0 [1, 1]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12))]
    for levels in (12, 6):  # of 11 and 5, a hundred thousand million and two hundred thousand values
        with pytest.raises(ValueError, match="more than 100,000 values"):
            read_yaml("\n".join(lines[:levels]))
    written = f"a: [{', '.join(['1'] * 110_000)}]"
    assert len(read_yaml(written)["a"]) == 110_000, "what is written out is no alias"
    with pytest.raises(ValueError, match="refers back to itself"):
        read_yaml("a: &a [*a]")


@pytest.mark.timeout(30)
def test_merges_that_make_much_of_little() -> None:
    nested = ["a0: &a0 {x: 1, y: 2}"]
    nested += [f"a{n}: &a{n}\n  <<: [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    wide = [f"a: &a {{{', '.join(f'k{n}: 1' for n in range(1100))}}}", *(f"b{n}: {{<<: *a}}" for n in range(1000))]
    for lines in (nested, wide):
        with pytest.raises(ValueError, match="merges .* more than 100,000 values"):
            read_yaml("\n".join(lines))
    assert read_yaml("a: &a {x: 1, y: 2}\nb: &b {<<: *a, y: 3}\nc: {<<: [*b, *a], z: 4}")["c"] == {
        "x": 1,
        "y": 3,
        "z": 4,
    }
    assert read_yaml("a: &a {<<: *a, x: 1}") == {"a": {"x": 1}}


def test_mmengines_own_reader_is_as_before() -> None:
    from mmengine.fileio.handlers.registry_utils import file_handlers

    before = dict(file_handlers)
    Config.fromstring("a: 1", ".yaml")
    with pytest.raises(ConfigError):
        Config.fromfile("missing.yaml")
    assert file_handlers == before


REFUSED = {
    "a.py": "model = dict()\n" + TOUCH,
    "base.yaml": "_base_: a.py\n",
    "bases.json": '{"_base_": ["plain.yaml", "./a.py"]}',
    "second.yml": "_base_: base.yaml\n",
    "imports.yaml": "custom_imports: {imports: [module_that_runs]}\n",
    "imports.json": '{"custom_imports": {"imports": "module_that_runs", "allow_failed_imports": true}}',
    "package.yaml": "_base_: mmengine::a.py\n",
}


def _write_all(folder: Path) -> None:
    for name, text in {**REFUSED, "plain.yaml": "seed: 1\n", "module_that_runs.py": TOUCH}.items():
        (folder / name).write_text(text)


@pytest.mark.parametrize("name", [name for name in REFUSED if name != "package.yaml"])
def test_the_safe_mode_refuses_what_runs_code(name: str, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write_all(here)
    monkeypatch.setenv("LBITCLS_SAFE", "1")
    with pytest.raises(ConfigError, match=r"would run code, which --safe \(LBITCLS_SAFE=1\) refuses"):
        Config.fromfile(name)
    assert not (here / "ran").exists()
    assert Config.fromfile("plain.yaml").seed == 1
    monkeypatch.setenv("LBITCLS_SAFE", "0")
    sys.modules.pop("module_that_runs", None)
    Config.fromfile(name)
    assert (here / "ran").exists()


def test_a_base_in_a_package_in_safe_mode(here: Path) -> None:
    _write_all(here)
    with safe_mode(), pytest.raises(ConfigError):
        Config.fromfile("package.yaml")
    assert not (here / "ran").exists()


def test_the_safe_mode_ends() -> None:
    with safe_mode(False):
        assert not is_safe_mode()
    with pytest.raises(KeyError), safe_mode():
        assert is_safe_mode() and os.environ["LBITCLS_SAFE"] == "1"
        raise KeyError
    assert not is_safe_mode()


COMMANDS = {
    "train": ["a.py"],
    "test": ["a.py", "x.pth"],
    "infer": ["a.py", "x.pth", "x.png"],
    "check": ["a.py"],
    "plan": ["a.py"],
    "calibrate": ["a.py", "x.pth", "--out", "y.pth"],
    "export": ["a.py", "x.pth", "--out", "y.onnx"],
    "visualize": ["batch", "a.py"],
    "verify": ["x.onnx", "--images", "image.png", "--config", "a.py", "--checkpoint", "x.pth"],
    "compare": ["image.png", "a.py", "x.pth", "--float-only"],
    "doctor": ["a.py", "x.pth"],
    "search": ["a.py", "x.pth", "--budget", "size=4bit", "--out", "y.py"],
    "sweep": ["a.py", "--options", "seed=1,2"],
}


@pytest.mark.parametrize("verb", COMMANDS)
def test_every_command_that_reads_a_config_has_the_flag(
    verb: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _write_all(here)
    (here / "image.png").touch()
    assert main([verb, *COMMANDS[verb], "--safe"]) == 2
    assert "a.py would run code" in capsys.readouterr().err
    assert not (here / "ran").exists() and not is_safe_mode()


def test_no_other_command_reads_a_config() -> None:
    others = {"analyze", "benchmark", "convert", "demo", "init", "list", "pull", "push", "schema"}
    assert set(VERBS) - set(COMMANDS) == others


def test_the_variable_holds_for_a_command(here: Path) -> None:
    _write_all(here)
    command = [sys.executable, "-m", "lbitcls.commands.main", "plan", "base.yaml"]
    done = subprocess.run(command, env={**os.environ, "LBITCLS_SAFE": "1"}, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "LBITCLS_SAFE=1" in done.stderr and not (here / "ran").exists()
