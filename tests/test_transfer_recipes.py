"""Every recipe of configs/transfer, from the command line to the exported model, on a tiny folder of ants and bees."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from lbitcls.commands.main import main
from lbitcls.quant.layers import QuantLayer
from lbitcls.utils.config import Config
from lbitcls.utils.published import find_weights

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "configs" / "transfer"
WEIGHTS = {
    "mobilenet_v2": "weights/mobilenet_v2_tf2_int8deq_flipw.pth",
    "squeezenet1_1": "weights/squeezenet1_1_caffe_fp16.pth",
    "resnet18": "torchvision://resnet18",
}
RECIPES = ("features", "finetune", "int8_features", "qat", "lsq_4w4f")
FAST = {("squeezenet1_1", "features"), ("squeezenet1_1", "lsq_4w4f")}
MATRIX = [
    pytest.param(backbone, recipe, marks=() if (backbone, recipe) in FAST else pytest.mark.slow)
    for backbone in WEIGHTS
    for recipe in RECIPES
]
SIZES = {  # of the images, by the steps of a pipeline that set it
    "Resize": ("size", "(72,-1)"),
    "CenterCrop": ("crop_size", "64"),
    "RandomCrop": ("size", "64"),
    "RandomResizedCrop": ("size", "64"),
}
Recipe = Callable[..., Path]


@pytest.fixture(scope="module")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`hymenoptera_data` with dark ants and bright bees, and weights of networks that never learned."""
    root = tmp_path_factory.mktemp("root")
    generator = np.random.default_rng(0)
    for part, number in (("train", 6), ("val", 4)):
        for level, kind in enumerate(("ants", "bees")):
            folder = root / "hymenoptera_data" / part / kind
            folder.mkdir(parents=True)
            for i in range(number):
                pixels = generator.integers(120 * level, 120 * level + 130, (80, 90, 3), np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.jpg")
    (root / "weights").mkdir()
    (root / "hub" / "checkpoints").mkdir(parents=True)
    torch.manual_seed(0)
    for name, place in WEIGHTS.items():
        state = torchvision.models.get_model(name, weights=None).state_dict()
        published = "://" in place
        file = root / "hub/checkpoints" / Path(find_weights(place).url).name if published else root / place
        torch.save(state, file)
    return root


@pytest.fixture
def run(data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """`run('mobilenet_v2_qat')`: trains a recipe for an epoch in an empty folder; its work directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(data_root))

    def train(name: str, *options: str) -> Path:
        config = FOLDER / f"{name}.py"
        short = ["total_epochs=1", "log_config.pictures=false", "kernels=plain", *sizes(config), *options]
        assert main(["train", str(config), "--data-root", str(data_root), "--options", *short]) == 0
        return tmp_path / "work_dirs" / name

    return train


def sizes(config: Path) -> list[str]:
    """The options that make the images of a recipe small."""
    cfg = Config.fromfile(config)
    places = {f"data.{part}.pipeline": cfg.data[part].pipeline for part in ("train", "val")}
    if cfg.model.backbone.type == "IntegerBackbone":
        places["model.backbone.calibration.data.pipeline"] = cfg.model.backbone.calibration.data.pipeline
    return [
        f"{place}.{i}.{SIZES[step['type']][0]}={SIZES[step['type']][1]}"
        for place, steps in places.items()
        for i, step in enumerate(steps)
        if step["type"] in SIZES
    ]


def saved(work_dir: Path) -> dict[str, Any]:
    return torch.load(work_dir / "latest.pth", weights_only=True)["state_dict"]


def published(backbone: str, data_root: Path) -> dict[str, torch.Tensor]:
    place = WEIGHTS[backbone]
    file = next((data_root / "hub/checkpoints").iterdir()) if "://" in place else data_root / place
    return torch.load(file, weights_only=True)


def unchanged(backbone: str, work_dir: Path, data_root: Path) -> list[bool]:
    """Whether each convolution of the backbone is as published."""
    state = saved(work_dir)
    names = {name: f"backbone.{name}" for name, value in published(backbone, data_root).items() if value.dim() == 4}
    return [
        torch.equal(published(backbone, data_root)[name], state[own]) for name, own in names.items() if own in state
    ]


@pytest.mark.parametrize(("backbone", "recipe"), MATRIX)
def test_recipe(backbone: str, recipe: str, run: Recipe, data_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = f"{backbone}_{recipe}"
    if recipe in ("qat", "lsq_4w4f"):
        run(f"{backbone}_finetune")  # what they start from, where they look for it
        quantized(name, run(name), data_root)
        return
    work_dir = run(name)
    if recipe == "int8_features":
        assert not any(key.startswith("backbone") and value.dim() == 4 for key, value in saved(work_dir).items())
        files = list((work_dir.parent.parent / "cache/lbitcls/backbones").glob("*.onnx"))
        assert len(files) == 1
        written = files[0].stat().st_mtime_ns
        run(name, "total_epochs=2")
        assert files[0].stat().st_mtime_ns == written  # taken from the cache
        return
    same = unchanged(backbone, work_dir, data_root)
    assert same and (all(same) if recipe == "features" else not any(same))
    if recipe == "features":
        assert "Keeping the features of 12 images" in capsys.readouterr().out


def quantized(name: str, work_dir: Path, data_root: Path) -> None:
    """The exported model of a run exists after `export`, and `test` reads it."""
    config, model, results = FOLDER / f"{name}.py", work_dir / "model.onnx", work_dir / "results.json"
    common = ["--data-root", str(data_root)]
    options = ["--options", *sizes(config)]
    assert main(["export", str(config), str(work_dir / "latest.pth"), "--out", str(model), *common, *options]) == 0
    arguments = [str(config), str(model), "--out", str(results), "--threads", "1", *common, *options]
    assert main(["test", *arguments]) == 0
    fake = [json.loads(line) for line in (work_dir / "log.jsonl").read_text().splitlines()][-1]
    assert json.loads(results.read_text())["loss"] == pytest.approx(fake["loss"], rel=0.02)


@pytest.mark.parametrize("recipe", ["qat", "lsq_4w4f"])
@pytest.mark.parametrize("backbone", list(WEIGHTS))
def test_what_is_quantized(backbone: str, recipe: str) -> None:
    """Every layer; at 4 bits the first and the last have 8."""
    from lbitcls.models import build_classifier
    from lbitcls.quant import build_mtransformer

    cfg = Config.fromfile(FOLDER / f"{backbone}_{recipe}.py")
    model = build_classifier(cfg.model, pretrained=False)
    rows = [row for row in build_mtransformer(cfg.quant_transformer).plan(model) if row.num_bit_w]
    layers = [layer for layer in model.modules() if isinstance(layer, (torch.nn.Conv2d, torch.nn.Linear))]
    assert len(rows) == len(layers)
    inner = 8 if recipe == "qat" else 4
    bits = [(row.num_bit_w, row.num_bit_a) for row in rows]
    assert bits[0] == bits[-1] == (8, 8) and set(bits[1:-1]) == {(inner, inner)}
    build_mtransformer(cfg.quant_transformer)(model)
    folded = [layer for layer in model.modules() if isinstance(layer, QuantLayer) and getattr(layer, "folded_norm", ())]
    assert bool(folded) == (recipe == "qat" and backbone != "squeezenet1_1")


TUTORIAL = FOLDER / "tutorial"
STEPS = {  # of the training images, and the settings of each tutorial
    "finetune": ("RandomResizedCrop", dict(type="SGD", lr=0.001, momentum=0.9), dict(step=7, gamma=0.1), 4, 25),
    "features": ("RandomResizedCrop", dict(type="SGD", lr=0.001, momentum=0.9), dict(step=7, gamma=0.1), 4, 25),
    "int8_features": ("RandomCrop", dict(type="SGD", lr=0.01, momentum=0.9), dict(step=7, gamma=0.1), 16, 25),
    "qat": (
        "RandomCrop",
        dict(type="SGD", lr=0.001, momentum=0.9, weight_decay=0.1),
        dict(step=5, gamma=0.3),
        16,
        25,
    ),
    "cifar10": ("Pad", dict(type="Adam", lr=0.001), None, 100, 5),
}


@pytest.mark.parametrize("recipe", list(STEPS))
@pytest.mark.parametrize("backbone", list(WEIGHTS))
def test_the_tutorials_settings(backbone: str, recipe: str) -> None:
    """What the tutorials say, in the configs that follow them; with features that random crops keep from the cache."""
    from lbitcls.models import build_classifier
    from lbitcls.quant import build_mtransformer

    cfg = Config.fromfile(TUTORIAL / f"{backbone}_tutorial_{recipe}.py")
    step, optimizer, schedule, images, epochs = STEPS[recipe]
    assert step in [entry.type for entry in cfg.data.train.pipeline]
    assert dict(cfg.optimizer) == optimizer and cfg.total_epochs == epochs and cfg.data.samples_per_gpu == images
    assert cfg.get("lr_config") == (None if schedule is None else dict(policy="step", **schedule))
    assert not cfg.get("feature_cache") and not cfg.get("load_from")
    if recipe == "int8_features":
        kind = "TorchvisionQuantizedBackbone" if backbone == "resnet18" else "IntegerBackbone"
        assert cfg.model.head.dropout == 0.5 and cfg.model.backbone.type == kind
        return
    assert bool(cfg.model.backbone.get("frozen")) == (recipe in ("features", "cifar10"))
    if recipe == "qat":
        model = build_classifier(cfg.model, pretrained=False)
        rows = [row for row in build_mtransformer(cfg.quant_transformer).plan(model) if row.num_bit_w]
        layers = [m for m in model.modules() if isinstance(m, (torch.nn.Conv2d, torch.nn.Linear))]
        assert len(rows) == len(layers) - 1 and not any(row.name.startswith("head") for row in rows)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["finetune", "features", "int8_features", "qat"])
def test_a_tutorials_recipe_runs(recipe: str, run: Recipe, data_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = f"squeezenet1_1_tutorial_{recipe}"
    work_dir = run(f"tutorial/{name}", "total_epochs=2").parent.parent / name
    if recipe == "features":
        assert "the same images in every epoch: data.train has RandomResizedCrop" in capsys.readouterr().out
    if recipe in ("qat", "int8_features"):
        quantized(f"tutorial/{name}", work_dir, data_root)
