"""Integer backbone in training: its features, its cache, and that only the head learns."""

from __future__ import annotations

import copy
import json
import logging
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

from lbitcls.commands.main import main
from lbitcls.datasets import build_dataloader, build_dataset
from lbitcls.deploy.export import integer_backbone
from lbitcls.deploy.export.integer_backbone import IntegerBackbone
from lbitcls.models import build_backbone, build_classifier
from lbitcls.utils.checkpoint import load_checkpoint, save_checkpoint
from lbitcls.utils.config import Config
from lbitcls.utils.errors import CheckpointError, ConfigError, DataError

FLOAT = dict(type="ResNetCIFAROptionA", depth=8, in_channels=1, base_channels=8, out_indices=(1, 2))
NORMALIZE = dict(type="Normalize", mean=[0.305], std=[0.376])
IMAGES = dict(type="Digits", split="train", pipeline=[NORMALIZE])


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    patch = pytest.MonkeyPatch()
    patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    yield
    patch.undo()


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A classifier with the float backbone, trained on the digits for three epochs."""
    torch.manual_seed(0)
    model = build_classifier(
        dict(
            type="ImageClassifier",
            backbone=FLOAT,
            neck=dict(type="GlobalAveragePooling"),
            head=dict(type="LinearClsHead", num_classes=10, in_channels=32),
        )
    ).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    loader = build_dataloader(build_dataset(IMAGES), samples_per_gpu=64, workers_per_gpu=0, shuffle=True, seed=0)
    for batch in (batch for _ in range(3) for batch in loader):
        optimizer.zero_grad()
        model(batch["img"], gt_label=batch["gt_label"])["loss"].backward()
        optimizer.step()
    path = tmp_path_factory.mktemp("weights") / "float.pth"
    save_checkpoint(model, path)
    return str(path)


@pytest.fixture(scope="module")
def recipe(weights: str) -> dict[str, Any]:
    calibration = dict(data=IMAGES, num_images=50)
    return dict(type="IntegerBackbone", from_float=FLOAT, checkpoint=weights, calibration=calibration)


@pytest.fixture(scope="module")
def backbone(recipe: dict[str, Any]) -> Any:
    return build_backbone(recipe)


def test_features_are_those_of_the_float_backbone(backbone: Any, weights: str, digits: torch.Tensor) -> None:
    """Features agree to 30 dB, the precision of 8 bits."""
    real = build_backbone(FLOAT)
    load_checkpoint(real, weights)
    with torch.no_grad():
        expected = real.eval()(digits)
    features = backbone(digits)
    assert isinstance(features, tuple) and len(features) == 2
    for feature, reference in zip(features, expected):
        assert feature.shape == reference.shape and feature.dtype == torch.float32
        noise = (feature - reference).square().mean() / reference.square().mean()
        assert 0 < noise < 1e-3
    assert backbone.out_channels == (16, 32) and backbone.num_features == 32 and backbone.in_channels == 1
    assert backbone.info.bits == "W8A8" and backbone.info.part == "backbone"
    assert "LSQ W8A8" in repr(backbone)


def test_it_is_frozen(backbone: Any, digits: torch.Tensor) -> None:
    assert not list(backbone.parameters()) and not list(backbone.buffers())
    first = backbone.train()(digits[:3].clone().requires_grad_())
    assert not any(feature.requires_grad for feature in first)
    assert all(torch.equal(a, b) for a, b in zip(first, backbone.eval()(digits[:3])))


def test_copies_share_the_file(backbone: Any, digits: torch.Tensor) -> None:
    expected = backbone(digits[:4])
    for other in (copy.deepcopy(backbone), pickle.loads(pickle.dumps(backbone))):
        assert other.path == backbone.path
        assert all(torch.equal(a, b) for a, b in zip(expected, other(digits[:4])))
    assert len(pickle.dumps(backbone)) < 20_000
    last = backbone(digits[:4].to(memory_format=torch.channels_last).double())[-1]
    torch.testing.assert_close(last, expected[-1])


def test_the_file_is_made_once_for_all_that_decides_it(
    recipe: dict[str, Any], backbone: Any, weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Path] = []

    def export(recipe: Any, weights: Path, images: torch.Tensor, path: Path, text: str) -> None:
        assert images.shape[1:] == (1, 8, 8)
        made.append(path)
        path.write_bytes(backbone.path.read_bytes())

    monkeypatch.setattr(integer_backbone, "_export", export)
    assert build_backbone(copy.deepcopy(recipe)).path == backbone.path and not made
    (tmp_path / "copy.pth").write_bytes(Path(weights).read_bytes())
    assert build_backbone(dict(recipe, checkpoint=str(tmp_path / "copy.pth"))).path == backbone.path and not made
    state = torch.load(weights, weights_only=True)
    state["state_dict"]["backbone.conv1.weight"][0] += 1e-3
    torch.save(state, tmp_path / "other.pth")
    steps = [dict(type="Normalize", mean=[0.3], std=[0.376])]
    others = [
        dict(recipe, checkpoint=str(tmp_path / "other.pth")),
        dict(recipe, calibration=dict(data=IMAGES, num_images=49)),
        dict(recipe, calibration=dict(data=dict(IMAGES, pipeline=steps), num_images=50)),
        dict(recipe, calibration=dict(data=IMAGES, num_images=50, method="minmax")),
        dict(recipe, from_float=dict(FLOAT, out_indices=(2,))),
        dict(recipe, quant_transformer=dict(integer_backbone.W8A8, exclude_layers=["backbone.conv1"])),
    ]
    for other in others:
        for _ in range(2):
            build_backbone(copy.deepcopy(other))
    assert len(made) == len(set(made)) == len(others) and backbone.path not in made


@pytest.mark.slow
def test_processes_make_the_file_together(recipe: dict[str, Any], repo_root: Path, tmp_path: Path) -> None:
    wanted = dict(recipe, calibration=dict(data=IMAGES, num_images=20))
    code = (
        "import json, sys, logging; logging.basicConfig(level='INFO');"
        "from lbitcls.models import build_backbone;"
        "print(build_backbone(json.loads(sys.argv[1])).digest.hex())"
    )
    env = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    command = [sys.executable, "-c", code, json.dumps(wanted)]
    pipes: dict[str, Any] = dict(cwd=repo_root, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    running = [subprocess.Popen(command, **pipes) for _ in range(2)]
    ends = [process.communicate(timeout=120) for process in running]
    assert [process.returncode for process in running] == [0, 0], ends
    assert ends[0][0] == ends[1][0]
    assert sum(err.count("IntegerBackbone: exported") for _, err in ends) == 1
    assert [path.suffix for path in (tmp_path / "lbitcls" / "backbones").iterdir() if path.suffix != ".lock"] == [
        ".onnx"
    ]


def test_a_given_file(backbone: Any, digits: torch.Tensor, tmp_path: Path) -> None:
    given = tmp_path / "backbone.onnx"
    given.write_bytes(backbone.path.read_bytes())
    opened = build_backbone(dict(type="IntegerBackbone", model=str(given), engine="onnxruntime", threads=1))
    for mine, other in zip(opened(digits), backbone(digits)):
        assert (mine - other).abs().mean() < 1e-2 * other.abs().mean()


def test_other_bits_by_the_names_of_a_classifier(recipe: dict[str, Any]) -> None:
    entry = dict(type="LSQConv", num_bit_w=4, num_bit_a=4)
    special = dict(layers_name=["backbone.conv1"], convert_type=[dict(type="LSQConv", num_bit_w=8, num_bit_a=8)])
    transformer = dict(type="mTransformerV2", quan_policy=dict(Conv2d=entry), special_layers=special)
    torch.manual_seed(5)
    drawn = torch.rand(2)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(1), drawn[:1])
    found = build_backbone(dict(recipe, quant_transformer=transformer)).info
    assert torch.equal(torch.rand(1), drawn[1:]), "making the file draws no random numbers"
    assert found.bits == "W4A4"
    assert {layer["name"]: layer["weight_bits"] for layer in found.layers}["backbone.conv1"] == 8


def test_only_the_head_trains(recipe: dict[str, Any], tmp_path: Path, caplog: Any) -> None:
    """With the tools: a head on integer features learns the digits; its checkpoint is tested with the same file."""
    data = dict(type="Digits", pipeline=[NORMALIZE])
    cfg = Config(
        dict(
            model=dict(
                type="ImageClassifier",
                backbone=recipe,
                neck=dict(type="GlobalAveragePooling"),
                head=dict(type="LinearClsHead", num_classes=10, in_channels=32, topk=(1,)),
            ),
            data=dict(
                samples_per_gpu=64,
                train=dict(data, split="train"),
                val=dict(data, split="test"),
            ),
            optimizer=dict(type="Adam", lr=0.05),
            ema=dict(decay=0.9),
            total_epochs=4,
            seed=0,
            work_dir=str(tmp_path / "work"),
        )
    )
    cfg.dump(tmp_path / "head.py")
    assert main(["train", str(tmp_path / "head.py")]) == 0
    summary = json.loads((tmp_path / "work" / "summary.json").read_text())
    assert summary["quantized"]["top1"] > 92
    state = torch.load(summary["checkpoint"], weights_only=True)["state_dict"]
    assert sorted(state) == ["backbone._extra_state", "head.fc.bias", "head.fc.weight"]
    out = tmp_path / "test.json"
    assert main(["test", str(tmp_path / "head.py"), summary["checkpoint"], "--out", str(out)]) == 0
    assert json.loads(out.read_text())["top-1"] == summary["quantized"]["top1"]
    assert main(["train", str(tmp_path / "head.py"), "--resume", "--options", "total_epochs=5"]) == 0


def test_a_checkpoint_of_another_file_is_noticed(backbone: Any, tmp_path: Path, caplog: Any) -> None:
    changed = tmp_path / "changed.onnx"
    model = onnx.load(backbone.path)
    model.doc_string = "exported again"
    model.metadata_props.pop()  # the digest
    onnx.save(model, changed)
    other = IntegerBackbone(model=str(changed))
    with caplog.at_level(logging.WARNING, logger="lbitcls"):
        logging.getLogger("lbitcls").propagate = True
        backbone.load_state_dict(backbone.state_dict())
        assert "a different file" not in caplog.text
        backbone.load_state_dict(other.state_dict())
    assert "a different file" in caplog.text


def test_mistakes(recipe: dict[str, Any], backbone: Any, write_onnx: Any, info: Any, tmp_path: Path) -> None:
    for given, message in (
        (dict(), "needs model='backbone.onnx', or from_float"),
        (dict(model="x.onnx", checkpoint="y.pth"), "got model and checkpoint"),
        (dict(from_float=FLOAT, checkpoint="y.pth"), "and calibration="),
        (dict(recipe, calibration=dict(data=IMAGES, images=3)), "does not accept 'images'"),
        (dict(recipe, calibration=dict(data=IMAGES, num_images=0)), "num_images must be an integer ≥ 1; got 0"),
        (dict(recipe, calibration=dict(num_images=3)), "a dataset must be dict"),
        (dict(recipe, calibration=dict(data=IMAGES, method="mze", num_images=3)), "Did you mean 'mse'"),
        (dict(model="x.onnx", frozen_stages=1), "does not accept 'frozen_stages'"),
    ):
        with pytest.raises(ConfigError, match=message):
            build_backbone({"type": "IntegerBackbone", **given})
    for file, message in ((write_onnx(), "not written by lbitcls"), (write_onnx("m.onnx", info), "is a whole model")):
        with pytest.raises(CheckpointError, match=f"{message}.*--part backbone"):
            IntegerBackbone(model=str(file))
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        build_backbone(dict(recipe, checkpoint=str(tmp_path / "no.pth")))
    with pytest.raises(DataError, match=r"expects images \(N, 1, 8, 8\); got \(2, 1, 9, 9\)"):
        backbone(torch.zeros(2, 1, 9, 9))
    with pytest.raises(ConfigError, match="in_channels=32"):
        head = dict(type="LinearClsHead", num_classes=10, in_channels=64)
        build_classifier(
            dict(
                type="ImageClassifier",
                backbone=dict(type="IntegerBackbone", model=str(backbone.path)),
                neck=dict(type="GlobalAveragePooling"),
                head=head,
            )
        )
