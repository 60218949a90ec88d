"""Config files: inheritance, the three formats, and the messages for mistakes."""

from pathlib import Path

import pytest

from lbitcls.settings.sections import read_settings
from lbitcls.utils import Config
from lbitcls.utils.config import parse_option
from lbitcls.utils.errors import ConfigError


def write(folder: Path, name: str, text: str) -> str:
    path = folder / name
    path.write_text(text)
    return str(path)


BASE = """model = dict(type='ImageClassifier', backbone=dict(type='ResNet', depth=18))
optimizer = dict(type='SGD', lr=0.1)
"""


def test_a_config_inherits_and_overrides_its_base(tmp_path: Path) -> None:
    write(tmp_path, "base.py", BASE)
    path = write(tmp_path, "child.py", "_base_ = './base.py'\nmodel = dict(backbone=dict(depth=50))\n")
    cfg = Config.fromfile(path)
    assert cfg.model.backbone.depth == 50
    assert cfg.model.backbone.type == "ResNet"
    assert cfg["optimizer"]["lr"] == 0.1


def test_a_dict_replaces_a_bases_plain_value(tmp_path: Path) -> None:
    """A section has short forms, which a child config or an option writes in full; the base's stay as they are."""
    base = "kernels = 'plain'\nema = None\nfeature_cache = True\n"
    write(tmp_path, "base.py", base + "data = dict(val=None, train=dict(type='A', indices=[1]))\n")
    full = dict(kernels=dict(kind="integer"), ema=dict(decay=0.5), feature_cache=dict(max_mib=5))
    text = "".join(f"{name} = {value}\n" for name, value in full.items())
    path = write(
        tmp_path, "child.py", f"_base_ = 'base.py'\n{text}data = dict(val=dict(type='B'), train=dict(root='x'))\n"
    )
    cfg = Config.fromfile(path)
    assert cfg.to_dict() == {
        **full,
        "data": dict(val=dict(type="B"), train=dict(type="A", indices=[1], root="x")),
    }
    grandchild = write(tmp_path, "grandchild.py", "_base_ = 'child.py'\nkernels = dict(gradients='int8')\n")
    assert Config.fromfile(grandchild).kernels == dict(kind="integer", gradients="int8")
    options = Config.fromfile(tmp_path / "base.py")
    options.merge_from_dict(full)
    assert {name: options[name] for name in full} == full
    with pytest.raises(ConfigError, match="indices.*_delete_"):
        Config.fromfile(write(tmp_path, "list.py", "_base_ = 'base.py'\ndata = dict(train=dict(indices=dict(a=1)))\n"))


def test_yaml_and_json_are_read_and_1e_3_is_a_number(tmp_path: Path) -> None:
    yaml = write(tmp_path, "a.yaml", "optimizer: {type: SGD, lr: 1e-3, betas: [9e-1, 1E4]}\nwork_dir: 1e\n")
    json = write(tmp_path, "a.json", '{"optimizer": {"type": "SGD", "lr": 1e-3}}')
    cfg = Config.fromfile(yaml)
    assert cfg.optimizer.lr == 1e-3 and cfg.optimizer.betas == [0.9, 1e4] and cfg.work_dir == "1e"
    assert Config.fromfile(json).optimizer.lr == 1e-3


def test_a_dumped_config_reads_back_equal(tmp_path: Path) -> None:
    cfg = Config.fromfile(write(tmp_path, "base.py", BASE))
    cfg.dump(tmp_path / "out.py")
    assert Config.fromfile(tmp_path / "out.py").to_dict() == cfg.to_dict()
    assert Config.fromstring(cfg.pretty_text).to_dict() == cfg.to_dict()


@pytest.mark.parametrize(
    "value", ["dict(a=1, **{'b-c': -2.5})", "range(0, 9, 3)", "[(1, 'x'), None, {3: True}]", "'é\\n'"]
)
def test_a_text_is_read_without_being_run(value: str) -> None:
    assert Config.fromstring(f"work_dir = {value}").work_dir == eval(value)


@pytest.mark.parametrize(
    "text", ["import os", "x = open('stolen', 'w')", "x = dict(1)", "x = 1 + y", "x = [i for i in 'ab']", "x ="]
)
def test_a_text_that_is_a_program_is_refused(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="the text of this config cannot be read"):
        Config.fromstring(text)
    assert not list(tmp_path.iterdir())


def test_a_third_party_import_does_not_make_a_config_lazy(tmp_path: Path) -> None:
    path = write(tmp_path, "a.py", "import rich\nfrom packaging import version\n" + BASE)
    assert Config.fromfile(path).model.type == "ImageClassifier"


@pytest.mark.parametrize("name, section", [("optimiser", "optimizer"), ("total_epoch", "total_epochs")])
def test_a_name_nearly_a_sections_is_an_error(tmp_path: Path, name: str, section: str) -> None:
    with pytest.raises(ConfigError, match=f"'{name}' is not a section.*Did you mean '{section}'"):
        Config.fromfile(write(tmp_path, "a.py", BASE + f"{name} = 3\n"))


def test_helper_variables_are_legal(tmp_path: Path) -> None:
    text = "img_norm_cfg = dict(mean=[0])\nnum_nodes = 1\ndataset_type = 'ImageNetV1'\nname = 'x'\n"
    assert Config.fromfile(write(tmp_path, "a.py", BASE + text)).num_nodes == 1


@pytest.mark.parametrize(
    ("name", "here"),
    [
        ("param_scheduler", "lr_config"),
        ("data_preprocessor", "Normalize in the pipelines"),
        ("train_cfg", "total_epochs"),
    ],
)
def test_another_frameworks_section_is_named(tmp_path: Path, name: str, here: str) -> None:
    with pytest.raises(ConfigError, match=f"'{name}' is a section of mmengine's runner; use {here}"):
        Config.fromfile(write(tmp_path, "a.py", BASE + f"{name} = dict()\n"))


def test_the_runner_of_mmcls_says_the_length(tmp_path: Path) -> None:
    base = write(tmp_path, "base.py", BASE + "runner = dict(type='EpochBasedRunner', max_epochs=100)\n")
    assert Config.fromfile(base).total_epochs == 100 and "runner" not in Config.fromfile(base)
    child = write(tmp_path, "child.py", "_base_ = './base.py'\nrunner = dict(max_epochs=3)\n")
    assert Config.fromfile(child).total_epochs == 3
    both = write(tmp_path, "both.py", "_base_ = './base.py'\ntotal_epochs = 100\n")
    assert Config.fromfile(both).total_epochs == 100
    for text, message in [
        ("_base_ = './base.py'\ntotal_epochs = 90\n", "max_epochs=100 and total_epochs=90 contradict"),
        ("runner = dict(type='IterBasedRunner', max_iters=100)\n", "'runner' is .* use total_epochs"),
        ("runner = dict(type='EpochBasedRunner', max_epoch=100)\n", "'runner' is .* use total_epochs"),
    ]:
        with pytest.raises(ConfigError, match=message):
            Config.fromfile(write(tmp_path, "other.py", text))


def test_a_syntax_error_names_the_file_and_line_also_in_a_base(tmp_path: Path) -> None:
    write(tmp_path, "base.py", "model = dict(\n")
    path = write(tmp_path, "child.py", "_base_ = ['base.py']\n")
    with pytest.raises(ConfigError, match=r"base\.py is not Python.*line 1"):
        Config.fromfile(path)


def test_an_error_while_the_config_runs_names_file_and_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"a\.py cannot be read: NameError.*line 3"):
        Config.fromfile(write(tmp_path, "a.py", BASE + "seed = undefined_name\n"))


def test_missing_files_are_named_with_the_nearest(tmp_path: Path) -> None:
    write(tmp_path, "resnet.py", BASE)
    with pytest.raises(ConfigError, match=r"no config file .*resnett\.py. Did you mean 'resnet\.py'"):
        Config.fromfile(tmp_path / "resnett.py")
    with pytest.raises(ConfigError, match=r"has the base 'none\.py'"):
        Config.fromfile(write(tmp_path, "b.py", "_base_ = 'none.py'\n"))


def test_a_base_that_leads_back_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path, "a.py", "_base_ = 'b.py'\n")
    write(tmp_path, "b.py", "_base_ = 'a.py'\n")
    with pytest.raises(ConfigError, match="its own base"):
        Config.fromfile(path)


@pytest.mark.parametrize("base", ["5", "None", "[5]", "{'a': 1}", "[['a.py']]", "('a.py', None)"])
def test_a_base_that_is_no_path(tmp_path: Path, base: str) -> None:
    with pytest.raises(ConfigError, match=r"a\.py: _base_ must be a path"):
        Config.fromfile(write(tmp_path, "a.py", f"_base_ = {base}\n"))


@pytest.mark.parametrize("text", ["", "- 1", "5", "null", "1: 2", "null: 2", "[1]"])
def test_a_file_without_sections(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="must have sections at its top, 'name: value'; got "):
        Config.fromfile(write(tmp_path, "a.yaml", text))
    if text in ("5", "null", "[1]"):
        with pytest.raises(ConfigError, match="a config in JSON must have sections at its top"):
            Config.fromfile(write(tmp_path, "a.json", text))


def test_broken_yaml_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"a\.yaml cannot be read"):
        Config.fromfile(write(tmp_path, "a.yaml", "model: [1,\n"))


def test_options_override_dotted_keys_and_list_items(tmp_path: Path) -> None:
    cfg = Config.fromfile(write(tmp_path, "a.py", BASE + "data = dict(train=dict(pipeline=[dict(type='A')]))\n"))
    cfg.merge_from_dict({"optimizer.lr": 0.5, "data.train.pipeline.0.type": "B", "compile": True, "ema.decay": 0.9})
    assert cfg.optimizer.lr == 0.5 and cfg.data.train.pipeline[0].type == "B"
    assert cfg.compile is True and cfg.ema.decay == 0.9


def test_an_option_for_a_key_that_is_not_there_is_an_error_unless_added(tmp_path: Path) -> None:
    cfg = Config.fromfile(write(tmp_path, "a.py", BASE))
    with pytest.raises(ConfigError, match=r"'optimizer\.lrr'. Did you mean 'lr'"):
        cfg.merge_from_dict({"optimizer.lrr": 1})
    with pytest.raises(ConfigError, match="'optimzer'. Did you mean 'optimizer'"):
        cfg.merge_from_dict({"optimzer.lr": 1})
    with pytest.raises(ConfigError, match=r"is the value 0\.1"):
        cfg.merge_from_dict({"optimizer.lr.x": 1})
    cfg.kernels = "integer"
    for key in ("kernels.gradients", "+kernels.gradients"):
        with pytest.raises(ConfigError, match=r"'kernels', which is the value 'integer'.* give 'kernels' as a whole"):
            cfg.merge_from_dict({key: "int8"})
    cfg.merge_from_dict({"+optimizer.nesterov": True})
    assert cfg.optimizer.nesterov is True


@pytest.mark.parametrize(
    ("option", "advice"),
    [
        ("lr", "Did you mean 'optimizer.lr'?"),
        ("LR", "Did you mean 'optimizer.lr'?"),
        ("momentun", "Did you mean 'optimizer.momentum'?"),
        ("batch_size", "Did you mean 'data.samples_per_gpu'?"),
        ("epochs", "Did you mean 'total_epochs'?"),
        ("max_epochs", "Did you mean 'total_epochs'?"),
        ("runner.max_epochs", "Did you mean 'total_epochs'?"),
        ("optimzer.lr", "Did you mean 'optimizer'?"),
        ("interval", "Did you mean 'evaluation.interval' or 'log_config.interval'?"),
        ("mine", "A config has the sections amp, "),
        ("helper", "'helper', a helper variable of the config's file, which has been read already"),
        ("helper.x", "'helper', a helper variable of the config's file, which has been read already"),
    ],
)
def test_an_option_that_nothing_reads_is_an_error_that_names_the_key(option: str, advice: str) -> None:
    sections = dict(
        optimizer=dict(type="SGD", lr=0.1, momentum=0.9),
        evaluation=dict(interval=1),
        log_config=dict(interval=10),
        helper=dict(x=1),
    )
    for sign in ("", "+"):
        cfg = Config(sections)
        with pytest.raises(ConfigError) as caught:
            cfg.merge_from_dict({sign + option: 0.5})
        assert advice in str(caught.value) and "write +" not in str(caught.value)
        assert cfg.to_dict() == sections


def test_keys_of_other_sections_are_suggested_too() -> None:
    cfg = Config(dict(optimizer=dict(type="SGD", lr=0.1), lr_config=dict(warmup="linear")))
    with pytest.raises(ConfigError, match=r"'optimizer\.warmup'. Did you mean 'lr_config\.warmup'\?"):
        cfg.merge_from_dict({"optimizer.warmup": None})


def test_an_option_for_an_item_that_a_list_has_not(tmp_path: Path) -> None:
    cfg = Config.fromfile(write(tmp_path, "a.py", BASE + "data = dict(train=dict(pipeline=[dict(type='A')]))\n"))
    for key in ("data.train.pipeline.9.type", "data.train.pipeline.first.type"):
        with pytest.raises(
            ConfigError, match=r"'data\.train\.pipeline' is a list of length 1, .* it has no item"
        ) as caught:
            cfg.merge_from_dict({key: "B"})
        assert "+" not in str(caught.value)


def test_a_plain_section_of_a_wrong_kind(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"load_from must be a string; got 5"):
        read_settings(write(tmp_path, "a.py", BASE + "load_from = 5\n"))


def test_option_values_are_python_literals() -> None:
    assert parse_option("a.b=1e-3") == ("a.b", 1e-3)
    assert parse_option("a=[1,2]") == ("a", [1, 2])
    assert parse_option("a=1,x") == ("a", [1, "x"])
    assert parse_option("a=true") == ("a", True)
    assert parse_option("a=none") == ("a", None)
    assert parse_option("a=dir/b=c") == ("a", "dir/b=c")
    with pytest.raises(ConfigError, match="key=value"):
        parse_option("lr")


def test_sections_that_a_purpose_needs_are_named(tmp_path: Path) -> None:
    settings = read_settings(write(tmp_path, "a.py", BASE))
    with pytest.raises(ConfigError, match="training needs data"):
        settings.require(("model", "data"), "training")


MARK = "\ufeff"


@pytest.mark.parametrize("name", ["a.py", "a.yaml", "a.json"])
def test_a_byte_order_mark_is_no_syntax(tmp_path: Path, name: str) -> None:
    base = write(tmp_path, "base.py", f"{MARK}{BASE}")
    text = {
        "a.py": "_base_ = 'base.py'\ntotal_epochs = 3\n",
        "a.yaml": "_base_: base.py\ntotal_epochs: 3\n",
        "a.json": '{"_base_": "base.py", "total_epochs": 3}',
    }[name]
    cfg = Config.fromfile(write(tmp_path, name, f"{MARK}{text}"))
    assert cfg.total_epochs == 3 and cfg.model.backbone.depth == 18
    assert MARK not in cfg.text and Path(base).read_text().startswith(MARK)


@pytest.mark.parametrize("value", ["'a\\0b'", "'\\ud800'", "[dict(x='\\udcff')]"])
def test_a_text_that_no_file_can_hold_is_refused(tmp_path: Path, value: str) -> None:
    with pytest.raises(ConfigError, match="contains a NUL or half of a surrogate pair"):
        Config.fromfile(write(tmp_path, "a.py", f"{BASE}helper = {value}\n"))


@pytest.mark.parametrize("name", [".mine", "..mine", ".", "", 3])
def test_modules_are_named_in_full(tmp_path: Path, name: object) -> None:
    with pytest.raises(ConfigError, match="custom_imports.imports must be a list of module names"):
        Config.fromfile(write(tmp_path, "a.py", f"custom_imports = dict(imports=[{name!r}])\n"))
