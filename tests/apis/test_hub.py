"""Models pushed to a hub and pulled from it, on the loopback interface: files, card, names, and what stays there."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from lbitcls.apis import inference_model, init_model
from lbitcls.commands.main import main
from lbitcls.utils.checkpoint import read_checkpoint
from lbitcls.utils.config import Config
from lbitcls.utils.errors import CheckpointError, ConfigError
from lbitcls.utils.hub import fetch_model, parse_name

pytest.importorskip("huggingface_hub")
pytest.importorskip("safetensors")
sys.path.insert(0, str(Path(__file__).resolve().parent))

from hub_server import Hub, running_hub

REPO = "mara/digits"
# The hub's client uploads in a way that its HTTP library deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    from huggingface_hub import constants

    with running_hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.address)
        monkeypatch.setenv("HF_TOKEN", "hf_test")
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        yield hub


@pytest.fixture
def pushed(hub: Hub, delivered: Any, capsys: Any) -> Hub:
    """A hub with the quantized model: its weights and its exported form."""
    assert main(["push", str(delivered.checkpoint), str(delivered.exported), REPO, "--license", "mit"]) == 0
    assert f"/{REPO}/commit/" in capsys.readouterr().out
    return hub


def card(hub: Hub, repo: str = REPO) -> tuple[dict[str, Any], str]:
    _, head, text = hub.repos[repo]["README.md"].decode().split("---\n", 2)
    return yaml.safe_load(head), text


def test_files_are_pushed_as_plain_data_with_a_card(pushed: Hub) -> None:
    files = {"README.md", "config.json", "model.onnx", "model.report.json", "model.safetensors"}
    assert set(pushed.repos[REPO]) == files and not pushed.private[REPO]
    head, text = card(pushed)
    assert head["library_name"] == "lbitcls" and head["license"] == "mit"
    assert {"quantization", "LSQ", "W4A4"} <= set(head["tags"])
    assert "| classes | digit 0, digit 1" in text and f"init_model('hf://{REPO}')" in text
    config = json.loads(pushed.repos[REPO]["config.json"])
    assert config["model"]["backbone"]["type"] == "ResNetCIFAROptionA"
    content = json.loads(pushed.repos[REPO]["model.report.json"])
    assert content["export"]["path"] == "model.onnx"


def test_nothing_of_the_machine_is_pushed(hub: Hub, delivered: Any, tmp_path: Path) -> None:
    assert main(["push", str(delivered.checkpoint), REPO, "--out", str(tmp_path / "card")]) == 0
    assert not hub.asked, "--out needs no network"
    texts = [path.read_bytes() for path in (tmp_path / "card").iterdir()]
    assert not any(b"log_config" in text for text in texts)
    assert not any(b"work_dir" in text or str(delivered.checkpoint.parent).encode() in text for text in texts)


def test_a_name_stands_for_the_model(pushed: Hub, delivered: Any) -> None:
    image = np.random.default_rng(0).integers(0, 255, (8, 8), np.uint8)
    wanted = inference_model(init_model(None, delivered.checkpoint), image)
    assert inference_model(init_model(f"hf://{REPO}"), image) == wanted
    assert not any(name in asked for asked in pushed.asked for name in ("resolve/main/model.onnx", "config.json"))
    exported = init_model(f"hf://{REPO}/model.onnx")
    assert inference_model(exported, image)["pred_label"] == wanted["pred_label"]
    from_config = init_model(str(delivered.config), f"hf://{REPO}@main/model.safetensors")
    assert inference_model(from_config, image) == wanted


def test_a_model_that_was_fetched_needs_no_network(pushed: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    first = fetch_model(f"hf://{REPO}")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    assert fetch_model(f"hf://{REPO}") == first


def test_commands_accept_a_name(pushed: Hub, tmp_path: Path, capsys: Any) -> None:
    from PIL import Image

    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "a.png")
    assert main(["infer", f"hf://{REPO}", str(tmp_path / "a.png")]) == 0
    assert "digit " in capsys.readouterr().out


def test_load_from_accepts_a_name(pushed: Hub, delivered: Any) -> None:
    content, wanted = read_checkpoint(f"hf://{REPO}"), read_checkpoint(delivered.checkpoint)
    assert content["state_dict"].keys() == wanted["state_dict"].keys()


def test_pull_writes_plain_data_only(pushed: Hub, tmp_path: Path, capsys: Any) -> None:
    pushed.repos[REPO] |= {
        "train.py": b"raise SystemExit('executed')",
        "weights.bin": b"x",
        "../outside.json": b"{}",
        "deep/notes.txt": b"kept",
    }
    folder = tmp_path / "pulled"
    assert main(["pull", REPO, "--out", str(folder)]) == 0
    files = {"README.md", "config.json", "model.onnx", "model.report.json", "model.safetensors", "deep/notes.txt"}
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} == files
    assert not (tmp_path / "outside.json").exists() and capsys.readouterr().out.startswith(str(folder / "model."))
    assert Config.fromfile(folder / "config.json").model.head.num_classes == 10
    assert main(["pull", REPO, "--out", str(folder)]) == 2
    assert "exists; name a new folder" in capsys.readouterr().err


def test_pull_of_named_files(pushed: Hub, tmp_path: Path) -> None:
    assert main(["pull", REPO, "model.onnx", "--out", str(tmp_path / "one")]) == 0
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["model.onnx"]
    assert main(["pull", REPO, "train.py", "--out", str(tmp_path / "two")]) == 2


def test_a_damaged_model_is_not_pulled(pushed: Hub, tmp_path: Path, capsys: Any) -> None:
    data = bytearray(pushed.repos[REPO]["model.safetensors"])
    data[-1] ^= 1
    pushed.repos[REPO]["model.safetensors"] = bytes(data)
    assert main(["pull", REPO, "--out", str(tmp_path / "pulled")]) == 1
    assert "its weights are not those of its checksum" in capsys.readouterr().err
    assert not (tmp_path / "pulled").exists()


def test_what_is_not_there_is_one_line(pushed: Hub, tmp_path: Path, capsys: Any) -> None:
    assert main(["pull", "mara/none", "--out", str(tmp_path / "x")]) == 1
    assert main(["pull", REPO, "none.onnx", "--out", str(tmp_path / "x")]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and all("cannot be reached (" in line and "HF_TOKEN" in line for line in lines)
    pushed.repos["mara/other"] = {"weights.onnx": b"", "train.py": b""}
    with pytest.raises(CheckpointError, match=r"has neither model.safetensors nor model.onnx; .*: weights.onnx\."):
        fetch_model("hf://mara/other")


@pytest.mark.parametrize(
    "name", ["hf://mara", "hf://mara/x/../../y.json", "hf://mara/x/train.py", "hf://../x", "hf://"]
)
def test_names_of_other_forms(name: str) -> None:
    with pytest.raises(ConfigError, match=r"hf://OWNER/NAME|is not fetched"):
        parse_name(name)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.pth", REPO], "there is no run or model none.pth"),
        (["{here}", REPO], "neither a checkpoint nor model.onnx"),
        (["{config}", REPO], "push needs a work directory, or files .pth"),
        (["{checkpoint}", "digits"], "must be owner/name, such as"),
    ],
)
def test_what_cannot_be_pushed(arguments: list[str], message: str, delivered: Any, tmp_path: Path, capsys: Any) -> None:
    places = dict(here=str(tmp_path), config=str(delivered.config), checkpoint=str(delivered.checkpoint))
    assert main(["push", *(word.format(**places) for word in arguments), "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_public_model_gets_no_private_files(pushed: Hub, delivered: Any, capsys: Any) -> None:
    before = dict(pushed.repos[REPO])
    assert main(["push", str(delivered.checkpoint), REPO, "--private"]) == 2
    assert f"hf://{REPO} is public" in capsys.readouterr().err and pushed.repos[REPO] == before


def test_a_run_is_pushed_with_its_results(hub: Hub, make_config: Any, tmp_path: Path) -> None:
    from lbitcls.apis import train_classifier

    summary = train_classifier(make_config(total_epochs=1))
    assert main(["push", str(tmp_path / "work"), "mara/tiny", "--private"]) == 0
    assert hub.private["mara/tiny"] and set(hub.repos["mara/tiny"]) == {"README.md", "config.json", "model.safetensors"}
    head, text = card(hub, "mara/tiny")
    (result,) = head["model-index"][0]["results"]
    assert result["metrics"][0]["value"] == round(summary["float"]["top1"], 2)
    assert f"| top-1, float | {summary['float']['top1']:.2f} % |" in text and "| seed | 3 |" in text


def test_names_in_a_card_are_not_markup() -> None:
    from lbitcls.tracking.model_card import CardFacts, model_card

    text = model_card(CardFacts(repo=REPO, files={"model.onnx": 1}, classes=["<img src=x>", "[a](b)\n# c", "d|e"]))
    assert "<img" not in text.replace("\\<", "") and "\n# c" not in text and "d\\|e" in text
