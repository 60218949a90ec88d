"""What people type: short forms, options before the config, misspelled flags, verbs and paths; examples; `list`."""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lbitcls.commands.base import SHORT_FORMS
from lbitcls.commands.flags import files_first
from lbitcls.commands.main import VERBS, main
from lbitcls.quant.methods import METHODS
from lbitcls.utils.config import Config
from lbitcls.utils.library import config_library
from lbitcls.workflows.catalog import KINDS, list_entries

WORKFLOWS = {"train": "training.train_classifier", "test": "testing.test_classifier"}
WORKFLOWS |= {"calibrate": "calibrating.calibrate_checkpoint", "check": "checking.check_config"}
Typed = Callable[..., Config]


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Typed:
    """`typed("train", config, "--epochs", "3")`: the config that the command's workflow is given."""

    def run(*arguments: str) -> Config:
        given: list[Config] = []
        monkeypatch.setattr(f"lbitcls.workflows.{WORKFLOWS[arguments[0]]}", lambda cfg, *_, **__: given.append(cfg))
        monkeypatch.setattr("lbitcls.commands.main.say_next", lambda *_: None)
        assert main(arguments) == 0, capsys.readouterr().err
        return given[0]

    return run


def test_short_forms_set_keys_of_the_config(write_config: Any, typed: Typed) -> None:
    config = str(write_config())
    cfg = typed("train", "--epochs", "7", "--batch-size", "9", config, "--lr", "0.3", "--workers", "1")
    assert (cfg.total_epochs, cfg.data.samples_per_gpu, cfg.optimizer.lr, cfg.data.workers_per_gpu) == (7, 9, 0.3, 1)
    assert cfg.optimizer.momentum == 0.9  # the rest of the section stays
    for verb, more in (("test", ["none.pth"]), ("calibrate", ["none.pth", "--out", "x.pth"])):
        cfg = typed(verb, config, *more, "--batch-size", "5", "--workers", "2")
        assert (cfg.data.samples_per_gpu, cfg.data.workers_per_gpu) == (5, 2)


def test_epochs_of_the_runner_of_mmcls(tmp_path: Path, write_config: Any, typed: Typed) -> None:
    (tmp_path / "mmcls.py").write_text(
        f"_base_ = {str(write_config(total_epochs=None))!r}\nrunner = dict(type='EpochBasedRunner', max_epochs=90)\n"
    )
    assert typed("train", str(tmp_path / "mmcls.py"), "--epochs", "4").total_epochs == 4


def test_a_named_run_lies_beside_the_default_one(write_config: Any, typed: Typed, tmp_path: Path) -> None:
    assert typed("train", str(write_config()), "--name", "b").work_dir == str(tmp_path / "b")
    config = str(write_config(work_dir=None))
    assert Path(typed("train", config, "--name", "c").work_dir) == Path("work_dirs/c")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--name", "a/b"], "--name must be the name of a folder; got 'a/b'. For a path use --work-dir."),
        (["--name", ".."], "--name must be the name of a folder"),
        (["--name", ""], "--name must be the name of a folder"),
        (["--name", "a", "--work-dir", "b"], "--name a and --work-dir b both set the work directory"),
        (["--epochs", "0"], "total_epochs must be an integer"),
        (["--batch-size", "0"], "data.samples_per_gpu must be an integer"),
        (["--workers", "-1"], "data.workers_per_gpu must be an integer"),
        (["--lr", "nan"], "lr"),
        (["--epochs", "3", "--options", "total_epochs=2"], "--epochs 3 and --options total_epochs=2 contradict"),
        (["--lr", "1", "--options", "optimizer=dict"], "sets no lr. To add it, write --options +optimizer.lr=1.0"),
    ],
)
def test_mistakes_in_short_forms(arguments: list[str], message: str, write_config: Any, capsys: Any) -> None:
    assert main(["train", str(write_config()), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_lr_needs_an_optimizer_with_one(write_config: Any, capsys: Any, typed: Typed) -> None:
    config = str(write_config(optimizer=dict(type="Adam")))
    assert main(["train", config, "--lr", "0.1"]) == 2
    assert "sets no lr. To add it, write --options +optimizer.lr=0.1" in capsys.readouterr().err
    assert typed("train", config, "--options", "+optimizer.lr=0.1").optimizer.lr == 0.1


@pytest.mark.parametrize(
    "arguments",
    [
        ["--options", "optimizer.lr=0.3", "seed=4", "CONFIG"],
        ["--seed", "4", "--options", "optimizer.lr=0.3", "CONFIG"],
        ["--gpu-ids", "0", "CONFIG", "--cfg-options", "optimizer.lr=0.3", "--seed", "4"],
        ["--options", "optimizer.lr=0.3", "--seed", "4", "CONFIG", "--options", "load_from=none"],
        ["CONFIG", "--seed", "4", "--options", "optimizer.lr=0.3"],
    ],
)
def test_options_may_stand_before_the_config(arguments: list[str], write_config: Any, typed: Typed) -> None:
    config = str(write_config())
    cfg = typed("train", *(config if word == "CONFIG" else word for word in arguments))
    assert (cfg.optimizer.lr, cfg.seed) == (0.3, 4)


def test_files_keep_their_order_and_values_theirs() -> None:
    parser = argparse.ArgumentParser()
    VERBS["test"].add_arguments(parser)
    for words in (
        ["--metrics", "a", "b", "c.py", "d.pth"],
        ["--metrics", "a", "b", "--out", "x.json", "c.py", "d.pth"],
    ):
        args = parser.parse_intermixed_args(files_first(parser, words))
        assert (args.model, args.folder, args.metrics) == ("c.py", ["d.pth"], ["a", "b"])
    wrong = ["--options", "load_from=a.pth", "b", "c.py"]
    assert files_first(parser, wrong) == ["c.py", "--options", "load_from=a.pth", "b"]


@pytest.mark.parametrize(
    ("arguments", "advice"),
    [
        ("train --momentum 0.9 CONFIG", "--options optimizer.momentum=0.9"),
        ("train CONFIG --weight-decay=1e-4", "--options optimizer.weight_decay=1e-4"),
        ("train CONFIG --nesterov true", "--options +optimizer.nesterov=true"),
        ("train CONFIG --min_lr 0.1", "--options lr_config.min_lr=0.1"),
        ("train CONFIG --ema", "--options ema=…"),
        ("train CONFIG --learning-rate 0.1", "--lr 0.1"),
        ("train CONFIG --num_workers 2", "--workers 2"),
        ("train CONFIG --work_dir x", "--work-dir x"),
        ("train CONFIG --sed 3", "--seed 3"),
        ("test CONFIG --epochs 3", "--options total_epochs=3"),
        ("check CONFIG --batch-size 3", "--options data.samples_per_gpu=3"),
        ("infer CONFIG --batch_size 3", "--batch-size 3"),
        ("train no_such.py --momentum 0.9", "--options optimizer.momentum=0.9"),
        ("benchmark a.onnx --thread_s 2", "--threads 2"),
    ],
)
def test_an_unknown_flag_names_what_does_it(arguments: str, advice: str, write_config: Any, capsys: Any) -> None:
    words = arguments.replace("CONFIG", str(write_config())).split()
    assert main(words) == 2
    assert f"Did you mean {advice}?" in capsys.readouterr().err


def test_every_suggested_option_is_accepted(write_config: Any, typed: Typed, capsys: Any) -> None:
    config = str(write_config())
    for name in ("momentum", "nesterov", "min-lr", "warmup_ratio", "decay", "interval", "max_keep_ckpts", "grad_clip"):
        assert main(["check", config, f"--{name}", "1"]) == 2
        option = capsys.readouterr().err.partition("--options ")[2].partition("?")[0]
        assert option.partition("=")[0].endswith(name.replace("-", "_"))
        typed("check", config, "--options", option)


def test_an_unknown_flag_without_advice(write_config: Any, capsys: Any) -> None:
    assert main(["analyze", "--qqq", "3"]) == 2
    assert capsys.readouterr().err == (
        "ConfigError: lbitcls analyze has no option --qqq. lbitcls analyze --help lists the options.\n"
    )


def test_no_config_runs_for_advice_in_safe_mode(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "a.py").write_text(f"import pathlib\npathlib.Path({str(tmp_path / 'ran')!r}).touch()\n")
    for arguments in (["--safe", "--momentum", "1"], ["--momentum", "1"]):
        assert main(["train", str(tmp_path / "a.py"), *arguments]) == 2
        assert "has no option --momentum" in capsys.readouterr().err
        assert (tmp_path / "ran").exists() == ("--safe" not in arguments)


def test_every_flag_of_every_verb_is_known(capsys: Any) -> None:
    for name, entry in VERBS.items():
        parser = argparse.ArgumentParser()
        entry.add_arguments(parser)
        for flag in [flag for flag in parser._option_string_actions if flag.startswith("--")]:
            with pytest.raises(SystemExit):
                main([name, flag, "--help"])
    assert "has no option" not in capsys.readouterr().err


@pytest.mark.parametrize("verb", VERBS)
def test_help_ends_with_two_examples_that_parse(verb: str, capsys: Any) -> None:
    with pytest.raises(SystemExit):
        main([verb, "--help"])
    *_, first, second = capsys.readouterr().out.splitlines()
    assert [f"  {example}" for example in VERBS[verb].examples] == [first, second]
    parser = argparse.ArgumentParser()
    VERBS[verb].add_arguments(parser)
    for example in VERBS[verb].examples:
        program, name, *words = shlex.split(example)
        assert (program, name) == ("lbitcls", verb)
        parser.parse_intermixed_args(files_first(parser, words))
        assert all((config_library().parent / word).is_file() for word in words if word.startswith("configs/"))


def test_the_command_alone_says_what_to_do_first(capsys: Any) -> None:
    assert main([]) == 0
    said = capsys.readouterr().out
    steps = [line.split() for line in said.splitlines() if line.startswith("  lbitcls ")]
    assert [step[1] for step in steps] == ["train", "init", "list", "train", "export"]
    assert all(len(line) <= 80 for line in said.splitlines())
    for _, verb, *words in steps:
        parser = argparse.ArgumentParser()
        VERBS[verb].add_arguments(parser)
        parser.parse_intermixed_args(words)


def test_short_forms_are_documented() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "config.md").read_text(encoding="utf-8")
    assert all(f"| `--{flag}` | `{form.key}`" in page for flag, form in SHORT_FORMS.items())


@pytest.mark.parametrize("kind", KINDS)
def test_lists_have_a_sentence_for_each_entry(kind: str, capsys: Any) -> None:
    entries = list_entries(kind)
    assert entries == sorted(entries) and all(name and about for name, about in entries)
    name, about = entries[-1]
    assert main(["list", kind, name.upper(), about.split()[0]]) == 0
    assert name in capsys.readouterr().out.split()


def test_lists_are_complete() -> None:
    library = config_library()
    configs = [name for name, _ in list_entries("configs")]
    assert all((library.parent / name).is_file() for name in configs)
    assert len(configs) > 100 and not [name for name in configs if "_base_" in name]
    assert {name for name, _ in list_entries("methods")} == METHODS.keys()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["config"], "there is no list of 'config'. Did you mean 'configs'? Known: configs, methods"),
        (["configs", "resnet81"], "configs has 'resnet81'. Did you mean 'resnet18'?"),
        (["targets", "cpu", "npu"], "none of the 6 targets has 'cpu' and 'npu'"),
    ],
)
def test_mistakes_in_lists(words: list[str], message: str, capsys: Any) -> None:
    assert main(["list", *words]) == 2
    assert message in capsys.readouterr().err


def test_the_list_of_configs_needs_no_torch() -> None:
    code = (
        "import sys; from lbitcls.commands.main import main; main(['list', 'configs', 'digits'])\n"
        "assert not {'torch', 'mmengine', 'numpy'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "configs/quickstart/digits_lsq_4w4f.py" in done.stdout, done.stderr


@pytest.mark.parametrize("device", ["cuda", "gpu:0", "1"])
def test_a_requested_gpu_must_exist(
    device: str, write_config: Any, capsys: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for verb, more in (("train", []), ("test", []), ("check", []), ("infer", ["none.pth", "none.jpg"])):
        assert main([verb, str(write_config()), *more, "--device", device]) == 2
        assert f"{device} is requested, but this machine has no GPU" in capsys.readouterr().err
    assert main(["train", str(write_config()), "--gpu-ids", "1"]) == 2
    assert "cuda:1 is requested, but this machine has no GPU" in capsys.readouterr().err
    assert main(["train", str(write_config(device=device))]) == 2
    assert f"{device} is requested, but this machine has no GPU" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.pth"))
