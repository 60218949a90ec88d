"""The library of configs: names say what is inside, docstrings say how and whence, and each makes a training step."""

from __future__ import annotations

import ast
import copy
import functools
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lbitcls.core.optim import build_optimizer
from lbitcls.core.schedule import build_schedule
from lbitcls.datasets.pipelines import Compose
from lbitcls.models import build_classifier
from lbitcls.quant import build_mtransformer, calibrate, named_quantizers, quantizer_parameters
from lbitcls.quant.plan import PlanRow
from lbitcls.utils.checkpoint import load_checkpoint, save_checkpoint
from lbitcls.utils.config import Config
from lbitcls.utils.errors import ConfigError
from lbitcls.utils.library import config_library

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = ROOT / "configs"
TUTORIAL = [
    LIBRARY / "DSQ" / "resnet50" / name
    for name in ("config1_res50_dsq_m1_16_32w32f.py", "config2_res50_dsq_m1_16_2w2f.py")
]
CONFIGS = sorted(set(LIBRARY.glob("*/*/config*.py")) - set(TUTORIAL))
NAME = re.compile(
    r"config(?P<number>\d+)_(?P<token>[a-z\d]+)_(?P<method>[a-z\d]+)(_m\d+_(?P<images>\d+))?_(?P<w>\d+)w(?P<a>\d+)f"
)

# folder: token in names, title in docstrings, the backbone and what tells it from its family, data set
BACKBONES: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "resnet18": ("res18", "ResNet-18", dict(type="ResNet", depth=18), "ImageNet"),
    "resnet50": ("res50", "ResNet-50", dict(type="ResNet", depth=50), "ImageNet"),
    "mobilenetv2": ("mobilenetv2", "MobileNetV2", dict(type="MobileNetV2"), "ImageNet"),
    "resnet20": ("res20", "ResNet-20", dict(type="ResNetCIFAROptionA", depth=20), "CIFAR-10"),
    "vggsmall": ("vggsmall", "VGG-small", dict(type="VGGSmall"), "CIFAR-10"),
}
TITLES = {"Float": "float", "LSQPlus": "LSQ+", "TorchQAT": "PyTorch's QAT"}
FLOAT = (None, None)
ENDS = {"DoReFa": FLOAT, "PACT": FLOAT, "N2UQ": FLOAT, "APoT": (8, None), "UQ": (8, None)}
"""Bits of the first and last layer."""
FAST = (
    ("LSQ", "resnet20", 2),
    ("LSQPlus", "mobilenetv2", 4),
    ("DSQ", "resnet50", 2),
    ("DoReFa", "resnet18", 2),
    ("PACT", "vggsmall", 4),
    ("APoT", "resnet20", 3),
    ("UQ", "resnet20", 4),
    ("N2UQ", "resnet20", 4),
    ("TorchQAT", "resnet20", 8),
    ("Float", "resnet20", 32),
)


def parts(path: Path) -> tuple[str, str, int]:
    """Method, backbone and bits that a path says."""
    method, backbone = path.parts[-3:-1]
    return method, backbone, int(NAME.fullmatch(path.stem)["w"])


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@functools.cache
def read(path: Path) -> Config:
    """The config, read once; nothing here changes it."""
    return Config.fromfile(path)


def docstring(path: Path) -> str:
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""


@functools.cache
def float_model(backbone: str) -> nn.Module:
    """The backbone's classifier as the float config has it, built once."""
    return build_classifier(float_config(backbone).model, pretrained=False)


def float_config(backbone: str) -> Config:
    (path,) = (LIBRARY / "Float" / backbone).glob("*.py")
    return read(path)


def classifier(cfg: Config, backbone: str) -> nn.Module:
    """A classifier for `cfg`, whose section `model` is that of the backbone's float config."""
    common = float_config(backbone).model
    assert {**cfg.model.backbone, **common.backbone} == cfg.model.backbone
    assert {**cfg.model.head, **common.head} == cfg.model.head and cfg.model.get("neck") == common.get("neck")
    return copy.deepcopy(float_model(backbone))


def quantized_rows(cfg: Config, model: nn.Module) -> list[PlanRow]:
    """The plan's rows of convolutions and linear layers."""
    plan = build_mtransformer(cfg.quant_transformer).plan(model)
    return [row for row in plan if row.kind in ("Conv2d", "Linear")]


def test_the_tables_of_the_readme() -> None:
    text = (LIBRARY / "README.md").read_text(encoding="utf-8")
    header, *rows = re.findall(r"^\| (.+) \|$", text.partition("## Sources")[0], re.M)
    backbones = header.split(" | ")[1:]
    table = {row.split(" | ")[0]: row.split(" | ")[1:] for row in rows if "---" not in row}
    listed = {
        (method, backbone, int(bits))
        for method, cells in table.items()
        for backbone, cell in zip(backbones, cells)
        for bits in cell.split()
    }
    assert listed == {parts(path) for path in CONFIGS}
    assert len(CONFIGS) == len(listed)
    keys = set(re.findall(r"^\| \[(.+?)\] \|", text, re.M))
    used = {
        key.partition(",")[0] for path in CONFIGS for key in re.findall(r"\[(.+?)\]", " ".join(docstring(path).split()))
    }
    assert used <= keys and keys - used == {"tensorpack"}  # which says how the ends of DoReFa are


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_name(path: Path) -> None:
    method, backbone, bits = parts(path)
    found = NAME.fullmatch(path.stem)
    assert found is not None
    token, title, config, data = BACKBONES[backbone]
    assert (found["token"], found["method"]) == (token, method.lower())
    assert found["w"] == found["a"] == str(bits)
    cfg = read(path)
    assert {**cfg.model.backbone, **config} == cfg.model.backbone
    assert cfg.data.train.type.removesuffix("V1") == data.replace("-", "")
    assert found["images"] is None or cfg.data.samples_per_gpu == int(found["images"])
    shown = "float" if method == "Float" else f"{TITLES.get(method, method)} W{bits}A{bits}"
    assert docstring(path).startswith(f"{title} on {data}, {shown}")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_plan(path: Path) -> None:
    """The method and the bits of the name are those of every layer but the first and the last."""
    method, backbone, bits = parts(path)
    cfg = read(path)
    model = classifier(cfg, backbone)
    if method == "Float":
        assert cfg.get("quant_transformer") is None
        return
    first, *inner, last = quantized_rows(cfg, model)
    assert (first.shape[1], last.name) == (3, "head.fc")
    assert {(row.entry, row.num_bit_w, row.num_bit_a) for row in inner} == {(f"{method}Conv", bits, bits)}
    assert {(row.num_bit_w, row.num_bit_a) for row in (first, last)} == {ENDS.get(method, (8, 8))}


def test_the_tutorials_configs_are_as_it_writes_them() -> None:
    """The values of its text; the model, transformed, has a float input at its first layer alone."""
    full, low = map(read, TUTORIAL)
    entry = dict(num_bit_w=8, num_bit_a=8)
    assert low.quant_transformer == dict(
        type="mTransformerV2",
        quan_policy=dict(
            Conv2d=dict(type="DSQConv", num_bit_w=2, num_bit_a=2, bSetQ=True),
            Linear=dict(type="DSQLinear", num_bit_w=2, num_bit_a=2),
        ),
        special_layers=dict(
            layers_name=["backbone.conv1", "head.fc"],
            convert_type=[
                dict(type="DSQConv", **entry, bSetQ=True, quant_activation=False),
                dict(type="DSQLinear", **entry),
            ],
        ),
    )
    assert low.optimizer == dict(type="SGD", lr=0.001, momentum=0.9, weight_decay=0.0001)
    assert (low.data.samples_per_gpu, low.data.workers_per_gpu, low.lr_config.step) == (16, 3, [30, 60, 90])
    assert not hasattr(full, "quant_transformer")  # which the tutorial's code asks
    assert {**full.to_dict(), "quant_transformer": low.quant_transformer} == low.to_dict()
    rows = quantized_rows(low, classifier(low, "resnet50"))
    assert [(row.name, row.num_bit_w) for row in rows if row.num_bit_a is None] == [("backbone.conv1", 8)]
    assert {(row.num_bit_w, row.num_bit_a) for row in rows} == {(8, None), (2, 2), (8, 8)} and len(rows) == 54


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_docstring(path: Path) -> None:
    """Commands, the last of them with this config; accuracy with its source, or that there is none; time."""
    text = docstring(path)
    commands = re.findall(r"^    (.+)$", text, re.M)
    image_net = "ImageNet" in text.splitlines()[0]
    tool = r"(\./)?tools/dist_train\.sh" if image_net else r"python tools/train\.py"
    named = [re.match(rf"{tool} (\S+)", command) for command in commands]
    assert named and all(named)
    files = [found[found.lastindex] for found in named]
    assert files[-1] == name_of(path) and all((ROOT / file).is_file() for file in files)
    plain = " ".join(text.split())
    expected = re.search(r"Expected top-1: (.+?) Hyper-parameters: (.+?) Time: not measured\.", plain)
    assert expected is not None
    figures = re.findall(r"\d+\.\d+ %", expected[1])
    if figures:
        assert "[" in expected[1] and "not yet reproduced here" in expected[1]
    else:
        assert "no figure was found" in expected[1]
    start = read(path).get("load_from") or ""
    if start.startswith("work_dirs/"):
        assert [Path(file).stem for file in files[:-1]] == [Path(start).parent.name]


ORIGINAL = {"LSQ": "float input", "DSQ": "float input", "LSQPlus": "its ends are LSQ", "DoReFa": "its ends have 8-bit"}
"""How the layers at the ends differ from the original project's; APoT's and UQ's do not."""


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_deviations_from_the_original_are_named(path: Path) -> None:
    method, backbone, _ = parts(path)
    plain = " ".join(docstring(path).split())
    _, _, said = plain.partition("Deviates from the original: ")
    if method in (*ORIGINAL, "APoT", "UQ") and BACKBONES[backbone][3] == "ImageNet" and "[original]" in plain:
        own_schedule = "Hyper-parameters: the original's" not in plain
        assert ORIGINAL.get(method, "") in said and ("schedule" in said) == own_schedule


MATRIX = [pytest.param(path, id=path.stem, marks=() if parts(path) in FAST else pytest.mark.slow) for path in CONFIGS]


def test_a_fast_sample_has_each_method_and_backbone() -> None:
    found = [parts(path) for path in CONFIGS]
    assert set(FAST) <= set(found)
    for position in (0, 1):
        assert {sample[position] for sample in FAST} == {config[position] for config in found}


@pytest.mark.parametrize("path", MATRIX)
def test_build_transform_and_step(path: Path) -> None:
    """One step on two random images, by the config's optimizer at its schedule's first rate."""
    method, backbone, _ = parts(path)
    cfg = read(path)
    model = classifier(cfg, backbone).train()
    side = 64 if BACKBONES[backbone][3] == "ImageNet" else 32
    images, labels = torch.randn(2, 3, side, side), torch.tensor([1, 7])
    quantizers: list[Any] = []
    if method != "Float":
        model = build_mtransformer(cfg.quant_transformer)(model)
        calibrate(model, [images], "minmax")  # the search for the least error would take most of the time
        quantizers = [quantizer for _, quantizer in named_quantizers(model)]
        assert quantizers
    optimizer = build_optimizer(model, cfg.optimizer, quantizer_parameters(model))
    schedule = build_schedule(cfg.lr_config, epoch_len=100, max_epochs=cfg.total_epochs)
    for group in optimizer.param_groups:
        group["lr"] = schedule(group["initial_lr"], 0, 0)
        assert group["lr"] > 0
    assert 0 <= schedule(cfg.optimizer.lr, 100 * cfg.total_epochs - 1, cfg.total_epochs - 1) <= cfg.optimizer.lr
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    loss = model(images, gt_label=labels)["loss"] + sum(
        term for term in (quantizer.regularization() for quantizer in quantizers) if term is not None
    )
    loss.backward()
    optimizer.step()
    moved = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    assert loss.isfinite() and all(value.isfinite().all() for value in model.parameters())
    assert {name for name, value in before.items() if name.endswith("weight") and value.dim() > 1} <= moved
    assert model.eval()(images, return_loss=False).shape == (2, cfg.model.head.num_classes)


@pytest.mark.parametrize("name", ["imagenet", "cifar10"])
def test_pipelines(name: str) -> None:
    data = Config.fromfile(LIBRARY / "_base_" / "datasets" / f"{name}.py").data
    side = 224 if name == "imagenet" else 32
    for split in ("train", "val", "test"):
        steps = [step for step in data[split].pipeline if step["type"] != "LoadImageFromFile"]
        pixels = torch.randint(0, 255, (3, side, side + 20 * (side > 32)), dtype=torch.uint8)
        img = Compose(steps)({"img": pixels, "gt_label": 3})["img"]
        assert img.shape == (3, side, side) and img.dtype == torch.float32


def test_a_model_of_fewer_bits_starts_from_the_weights_of_one_with_more(tmp_path: Path) -> None:
    """What the configs rely on that start from the next higher width: weights are kept, grids of 3 bits are new."""
    four, three = (
        build_mtransformer(Config.fromfile(next((LIBRARY / "APoT/resnet20").glob(f"config{b}_*"))).quant_transformer)(
            copy.deepcopy(float_model("resnet20"))
        )
        for b in (4, 3)
    )
    images = torch.randn(2, 3, 32, 32)
    calibrate(four.train(), [images])
    torch.nn.init.normal_(four.backbone.conv1.weight)
    save_checkpoint(four, tmp_path / "four.pth")
    load_checkpoint(three, tmp_path / "four.pth")
    assert torch.equal(three.backbone.conv1.weight, four.backbone.conv1.weight)
    ends = ("backbone.conv1.", "head.fc.")  # 8 bits in both
    for name, quantizer in named_quantizers(three):
        assert quantizer.is_initialized == name.startswith(ends), name
    calibrate(three, [images])
    assert torch.isfinite(torch.from_numpy(three.eval()(images, return_loss=False))).all()


def test_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = CONFIGS[0]
    monkeypatch.chdir(tmp_path)
    assert config_library() == LIBRARY
    cfg = Config.fromfile(name_of(path))
    assert (cfg.filename, cfg.to_dict()) == (str(path), Config.fromfile(path).to_dict())
    with pytest.raises(ConfigError, match="there is no config file configs/LSQ/none.py"):
        Config.fromfile("configs/LSQ/none.py")
    missing = "thirdparty/configs/DSQ/res50/config2_res50_dsq_m1_16_2w2f.py"  # the tutorial's path
    with pytest.raises(ConfigError, match=f"{missing}. Did you mean {name_of(TUTORIAL[1])}, which comes with"):
        Config.fromfile(missing)
    own = tmp_path / name_of(path)
    own.parent.mkdir(parents=True)
    own.write_text("total_epochs = 3\n")
    assert Config.fromfile(name_of(path)).to_dict() == {"total_epochs": 3}


@pytest.mark.parametrize("suffix", ["py", "yaml", "json"])
def test_a_base_is_found_beside_the_config_then_in_the_library(suffix: str, tmp_path: Path) -> None:
    """An error names both places, and the nearest config."""
    base = "configs/quickstart/digits_lsq_4w4f.py"
    own = tmp_path / "a'b\"c {{ _base_.x }} é\\" / f"own.{suffix}"
    own.parent.mkdir()

    def write(named: str) -> Path:
        text = {"py": f"_base_ = [{named!r}]\nseed = 3\n", "json": f'{{"_base_": "{named}", "seed": 3}}'}
        own.write_text(text.get(suffix, f"_base_: {named}\nseed: 3\n"))
        return own

    cfg = Config.fromfile(write(base))
    assert (cfg.seed, cfg.total_epochs) == (3, Config.fromfile(ROOT / base).total_epochs)
    near = own.parent / base
    near.parent.mkdir(parents=True)
    near.write_text("total_epochs = 99\ndata_root = '{{ fileDirname }}'\n")
    cfg = Config.fromfile(own)
    assert (cfg.seed, cfg.total_epochs, cfg.data_root) == (3, 99, str(near.parent))
    with pytest.raises(ConfigError) as caught:
        Config.fromfile(write("configs/quickstart/digits_lsq_4w4.py"))
    message = str(caught.value)
    assert str(near.with_name("digits_lsq_4w4.py")) in message and f"Did you mean '{base}'?" in message
    assert str(LIBRARY / "quickstart" / "digits_lsq_4w4.py") in message
    with pytest.raises(ConfigError, match="but there is no file"):
        Config.fromfile(write("nowhere.py"))
