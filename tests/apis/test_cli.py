"""The command line: flags, exit codes, messages without a traceback."""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from lbitcls.commands.main import PURPOSES, VERBS, main

ROOT = Path(__file__).resolve().parents[2]


def test_train_and_test(write_config: Any, tmp_path: Path, capsys: Any) -> None:
    config, work = str(write_config()), tmp_path / "elsewhere"
    options = ["--options", "total_epochs=1", "optimizer.lr=0.05", "--options", "data.samples_per_gpu=256"]
    flags = ["--work-dir", str(work), "--seed", "5", "--cpu-only", "--device", "gpu:1", "--sycbn", "--gpus", "1"]
    assert main(["train", config, *flags, *options]) == 0
    meta = torch.load(work / "latest.pth", weights_only=True)["meta"]
    assert (meta["seed"], meta["epoch"], meta["iter"]) == (5, 1, 6)
    assert "lr=0.05" in meta["config"]
    assert (work / "tiny.py").exists()
    assert main(["test", config, str(work / "latest.pth"), "--out", str(tmp_path / "m.json")]) == 0
    assert (tmp_path / "m.json").exists()
    assert main(["train", config, "--work-dir", str(work), "--resume", *options]) == 0
    assert main(["train", config, "--work-dir", str(work), "--no-validate", *options]) == 0
    capsys.readouterr()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["train", "no_such.py"], 2, "there is no config file"),
        (["train", "CONFIG", "--gpus", "2"], 2, "dist_train.sh"),
        (["train", "CONFIG", "--gpus", "0"], 2, "--cpu-only"),
        (["train", "CONFIG", "--gpu-ids", "0", "1"], 2, "dist_train.sh"),
        (["train", "CONFIG", "--device", "tpu"], 2, "a device must be"),
        (["trian", "CONFIG"], 2, "there is no verb 'trian'. Did you mean 'train'?"),
        (["CONFIG", "--seed", "1"], 2, "To train it: lbitcls train "),
        (["train", "CONFIG", "--options", "optimizer.lrr=1"], 2, "Did you mean 'lr'"),
        (["train", "CONFIG", "--options", "lr"], 2, "key=value"),
        (["train", "CONFIG", "--resume-from", "no.pth"], 1, "there is no checkpoint"),
        (["train", "CONFIG", "--load-from", "no.pth"], 1, "there is no checkpoint"),
        (["test", "CONFIG", "no.pth"], 1, "there is no checkpoint"),
        (["test", "CONFIG", "no.pth", "--metrics", "acuracy"], 2, "Did you mean 'accuracy'"),
    ],
)
def test_mistakes(write_config: Any, capsys: Any, arguments: list[str], code: int, message: str) -> None:
    config = str(write_config())
    assert main([config if argument == "CONFIG" else argument for argument in arguments]) == code
    captured = capsys.readouterr()
    assert message in captured.err and "Traceback" not in captured.err


@pytest.mark.parametrize("name", VERBS)
def test_cfg_options_is_another_spelling_of_options(name: str) -> None:
    parser = argparse.ArgumentParser()
    VERBS[name].add_arguments(parser)
    by_name = parser._option_string_actions
    assert by_name.get("--cfg-options") is by_name.get("--options")


def test_both_spellings_of_options_override_the_config(write_config: Any, capsys: Any) -> None:
    config = str(write_config(total_epochs=1))
    assert main(["train", config, "--options", "optimizer.lr=0.05", "--cfg-options", "optimizer.type=SDG"]) == 2
    assert "Did you mean 'SGD'" in capsys.readouterr().err
    assert main(["train", config, "--cfg-options", "optimizer.lrr=1", "--options", "total_epochs=1"]) == 2
    assert "Did you mean 'lr'" in capsys.readouterr().err


def test_tools_take_cfg_options(run_tool: Any) -> None:
    done = run_tool("show_plan", "no_such.py", "--cfg-options", "optimizer.lr=1")
    assert done.returncode == 2 and "there is no config file" in done.stderr, done.stderr


def test_error_is_in_the_log_file(write_config: Any, tmp_path: Path, capsys: Any) -> None:
    config, work = str(write_config(total_epochs=1)), tmp_path / "elsewhere"
    assert main(["train", config, "--work-dir", str(work), "--options", "optimizer.type=SDG"]) == 2
    captured = capsys.readouterr()
    text = next(work.glob("*.log")).read_text()
    assert text.count("Did you mean 'SGD'") == 1 and "ERROR - ConfigError: " in text and "Traceback" not in text
    assert captured.err.count("Did you mean 'SGD'") == 1 and "Did you mean" not in captured.out


def test_places_that_cannot_be_written(write_config: Any, tmp_path: Path, capsys: Any) -> None:
    config = str(write_config(total_epochs=1))
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        assert main(["train", config, "--work-dir", str(place)]) == 2
        assert f"work directory {place}: " in capsys.readouterr().err
    assert main(["test", config, "none.pth", "--out", str(tmp_path)]) == 2
    assert f"{tmp_path} is a folder" in capsys.readouterr().err
    for verb, option, name in (
        ("test", "--out", "results.json"),
        ("test", "--predictions", "rows.csv"),
        ("export", "--out", "model.onnx"),
        ("calibrate", "--out", "quantized.pth"),
        ("benchmark", "--json", "times.json"),
        ("visualize", "--out", "batch.png"),
        ("analyze", "--out", "curves.png"),
        ("compare", "--save-path", "report.html"),
        ("infer", "--json", "found.json"),
        ("init", "--out", "config.py"),
    ):
        out = tmp_path / "file" / name
        options = ["--options", "quant_transformer.type=ModelTransformer"] if verb == "calibrate" else []
        inputs = {
            "compare": [config, config, "none.pth"],
            "infer": [config, "no.pth", "no.jpg"],
            "benchmark": ["no.onnx"],
            "visualize": ["batch", config],
            "analyze": ["no"],
            "init": [str(tmp_path)],
        }
        given = inputs.get(verb, [config, "none.pth"])
        assert main([verb, *given, option, str(out), *options]) == 2
        captured = capsys.readouterr()
        assert f"{option} {out} cannot be written: Not a directory" in captured.err and captured.out == ""


def test_no_memory(write_config: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def test_classifier(*arguments: Any, **options: Any) -> None:
        raise MemoryError("Unable to allocate 23.3 TiB")

    monkeypatch.setattr("lbitcls.workflows.testing.test_classifier", test_classifier)
    assert main(["test", str(write_config()), "none.pth"]) == 71
    assert capsys.readouterr().err == (
        "ResourceError: memory ran out (Unable to allocate 23.3 TiB). Lower data.samples_per_gpu, or use a smaller "
        "model or smaller images.\n"
    )


@pytest.mark.parametrize("arguments", [["train"], ["train", "x.py", "--launcher", "mpi"], ["--safe", "train", "x.py"]])
def test_wrong_usage(arguments: list[str], capsys: Any) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage" in capsys.readouterr().err


def test_help_lists_the_verbs(capsys: Any) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    output = capsys.readouterr().out
    listed = output[output.index(PURPOSES[0]) :]
    for name, entry in VERBS.items():
        after = listed.index(f"{entry.purpose}:\n")
        line = listed.index(f"  {name:<11} {entry.help}\n")
        headings = [listed.index(f"{purpose}:\n") for purpose in PURPOSES]
        assert after == max(at for at in headings if at < line), name


def test_every_tool_is_a_verb_and_every_verb_a_tool() -> None:
    tools = [path.read_text(encoding="utf-8") for path in (ROOT / "tools").glob("*.py")]
    assert sorted(re.search(r'main\(only="(\w+)"\)', text)[1] for text in tools) == sorted(VERBS)


@pytest.mark.parametrize("verb", ["train", "test", "infer"])
def test_shims_run_from_anywhere_and_without_torch(verb: str, tmp_path: Path) -> None:
    code = (
        f"import sys, runpy; sys.argv = ['{verb}.py', '--help']\n"
        f"try: runpy.run_path({str(ROOT / 'tools' / f'{verb}.py')!r}, run_name='__main__')\n"
        "except SystemExit as error: assert not error.code\n"
        "assert not {'torch', 'mmengine', 'rich', 'numpy'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--options" in done.stdout
