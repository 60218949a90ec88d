"""The three tutorials as a person types them in (`typed/`): each output that they show has its counterpart."""

from __future__ import annotations

import json
import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from shutil import copyfile
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lbitcls.models import build_backbone
from lbitcls.utils import Config
from lbitcls.utils.errors import LbitclsError

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
DSQ = "configs/DSQ/resnet50"
SMALL = """\
backbone = dict(type="ResNet", depth=18, num_stages=1, out_indices=(0,), base_channels=16)
weights = "backbone.pth"
neck = dict(type="GlobalAveragePooling")
head = dict(type="LinearClsHead", num_classes={classes}, in_channels=16)
num_epochs = {epochs}
train_images = dict()
float_layers = []
kernels = "plain"
"""
SQUEEZENET = """\
backbone = dict(type="SqueezeNet", version="1_1")
weights = {weights!r}
neck = None
head = dict(type="ConvClsHead", num_classes={classes}, in_channels=512)
num_epochs = {epochs}
train_images = dict(indices=range(0, 50_000, 20))
float_layers = ["head.conv"]
kernels = "auto"
"""
SMALL_DSQ = """\
model.backbone.num_stages=1 model.backbone.out_indices=[0] +model.backbone.base_channels=8 model.head.in_channels=32
data.samples_per_gpu=8 data.workers_per_gpu=0 data.train.pipeline.1.size=64 log_config.interval=2 total_epochs=1
data.val.pipeline.1.size=72 data.val.pipeline.2.crop_size=64
data.test.pipeline.1.size=72 data.test.pipeline.2.crop_size=64 +kernels=plain +log_config.pictures=false
"""
CATS = ("tabby", "tiger cat", "Egyptian cat")  # whose fur machines tell apart differently after a short training
WEIGHTS = "weights/squeezenet1_1_caffe_fp16.pth"
STAMP = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} - lbitcls - INFO - "
TRAINING = (
    r"\tlr: 1\.000e-03, eta: (\d+ days?, )?\d+:\d\d:\d\d, time: \d+\.\d{3}, data_time: \d+\.\d{3}, memory: \d+, "
    r"loss: \d+\.\d{4}, (loss_quant: \d+\.\d{4}, )?top-1: \d+\.\d{4}, top-5: \d+\.\d{4}$"
)


def write_photos(folder: Path, classes: tuple[str, ...], each: int, size: tuple[int, int]) -> None:
    """`each` images in each class folder, the classes told apart by their brightness."""
    generator = np.random.default_rng(each)
    for label, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        low = 200 * label // len(classes)
        for i in range(each):
            pixels = generator.integers(low, low + 60, (*size, 3), np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.jpg")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder in which scripts run, and find data; with a cache of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LBITCLS_DATA", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def small(folder: Path, classes: int) -> None:
    """Settings of a network that nobody trained, with its weights."""
    (folder / "settings.py").write_text(SMALL.format(classes=classes, epochs=2))
    backbone = build_backbone(Config.fromfile(folder / "settings.py").backbone)
    torch.save(backbone.state_dict(), folder / "backbone.pth")


@pytest.fixture
def insects(folder: Path) -> Path:
    """Small photos of ants (dark) and bees (light)."""
    small(folder, 2)
    for split, each in (("train", 5), ("val", 3)):
        write_photos(folder / "hymenoptera_data" / split, ("ants", "bees"), each, (44, 52))
    return folder


def typed(name: str) -> dict[str, Any]:
    """Run a script of `typed/` here; its variables."""
    return runpy.run_path(str(HERE / "typed" / name), run_name="__main__")


def check_picture(path: Path, width: int = 100) -> None:
    with Image.open(path) as image:
        assert image.width > width and np.ptp(np.asarray(image.convert("L"))) > 100, path


def records(run: Path, mode: str) -> list[dict[str, Any]]:
    lines = (run / "log.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["mode"] == mode]


def check_epochs(run: Path, summary: dict[str, Any], epochs: int, images: dict[str, int]) -> None:
    """What `train_model` prints: loss and accuracy of both parts each epoch, the time, the best accuracy."""
    text = Path(summary["log"]).read_text()
    for mode in ("train_eval", "val"):
        found = re.findall(rf"Epoch\({mode}\) \[(\d+)\].*\tloss: (\d+\.\d{{4}}), top-1: (\d+\.\d{{4}})$", text, re.M)
        assert [int(epoch) for epoch, _, _ in found] == list(range(1, epochs + 1)), mode
        hits = [float(accuracy) / 100 * images["train" if mode == "train_eval" else mode] for _, _, accuracy in found]
        assert hits == pytest.approx([round(hit) for hit in hits], abs=0.01), "each image counts once"
    best = max(record["top-1"] for record in records(run, "val"))
    assert re.search(r"Training time: \d+:\d\d:\d\d$", text, re.M)
    phase = "quantized" if "quantized" in summary else "float"  # or the head's, behind an integer backbone
    assert re.search(rf"Best validation top-1 \(({phase}|integer backbone, \w+ head)\): {best:.4f} in epoch", text)
    assert f"Data: train {images['train']} images, val {images['val']} images; 2 classes: ants, bees" in text


def check_curve(run: Path, epochs: int, images: int) -> None:
    """The losses of batches are recorded often enough for a curve, against images seen."""
    seen = [record["images"] for record in records(run, "train")]
    assert seen == sorted(set(seen)) and seen[-1] == epochs * images


def check_transfer(folder: Path, names: dict[str, Any], said: str, epochs: int) -> None:
    sizes = names["dataset_sizes"]
    assert names["class_names"] == ("ants", "bees")
    for run, summary in (("finetune", names["tuned"]), ("features", names["fixed"])):
        check_epochs(folder / run, summary, epochs, sizes)
        check_curve(folder / run, epochs, sizes["train"])
        check_picture(folder / run / "results.png", 600)
        best = torch.load(summary["checkpoint"], weights_only=True)["meta"]
        assert best["top-1"] == max(record["top-1"] for record in records(folder / run, "val"))
    for picture in ("batch", "finetune", "features", "photo", "curves"):
        check_picture(folder / f"{picture}.png")
    frozen = names["model_conv"].backbone.state_dict()
    start = torch.load(names["features"].model.backbone.pretrained, weights_only=True)
    shared = frozen.keys() & start.keys()
    assert len(shared) > 10 and all(torch.equal(frozen[name], start[name]) for name in shared)
    assert re.search(r"^Predicted: (ants|bees)$", said, re.M)


def test_transfer_learning(insects: Path, capsys: Any) -> None:
    names = typed("transfer.py")
    check_transfer(insects, names, capsys.readouterr().out, 2)
    assert names["dataset_sizes"] == {"train": 10, "val": 6}


def check_cifar10(folder: Path, names: dict[str, Any], said: str, train: int, test: int) -> None:
    correct, total = names["results"]["correct"], names["results"]["total"]
    assert total == test and f"correct: {correct:,} / {total:,}\n" in said
    assert f"Accuracy of the model on the test images: {100 * correct / total} %\n" in said
    epochs = names["settings"].num_epochs
    batches = -(-train // 100)
    assert len(records(folder / "cifar10", "train")) == epochs * batches
    check_curve(folder / "cifar10", epochs, train)
    for picture in ("batch.png", "loss.png", "cifar10/results.png"):
        check_picture(folder / picture)


def test_cifar10(folder: Path, capsys: Any) -> None:
    small(folder, 10)
    classes = tuple(f"class{i}" for i in range(10))
    write_photos(folder / "cifar10_jpg" / "train", classes, 21, (32, 32))
    write_photos(folder / "cifar10_jpg" / "test", classes, 3, (32, 32))
    check_cifar10(folder, typed("cifar10.py"), capsys.readouterr().out, 210, 30)


def check_quantized(folder: Path, names: dict[str, Any], said: str, epochs: int, sizes: dict[str, int]) -> None:
    check_epochs(folder / "int8_features", names["trained_head"], epochs, sizes)
    check_epochs(folder / "qat", names["tuned"], epochs, sizes)
    assert "Verification" not in said
    found = re.search(r"^float: (\d+) KiB, quantized: (\d+) KiB$", said, re.M)
    assert found and int(found[2]) < 0.7 * int(found[1])
    integer, aware = names["integer"], names["aware"]
    assert f"top-1 with quantizers: {aware['top-1']:.2f} %, in integers: {integer['top-1']:.2f} %\n" in said
    assert integer["total"] == sizes["val"] and abs(integer["correct"] - aware["correct"]) <= 3
    for picture in ("batch", "part1", "part2"):
        check_picture(folder / f"{picture}.png")


def test_quantized_transfer_learning(insects: Path, capsys: Any) -> None:
    pytest.importorskip("openvino")
    names = typed("quantized.py")
    check_quantized(insects, names, capsys.readouterr().out, 2, {"train": 10, "val": 6})


def run_tool(name: str, *arguments: Any) -> None:
    """`python tools/NAME ARGUMENTS`, in this process."""
    given = sys.argv
    try:
        sys.argv = [f"tools/{name}", *map(str, arguments)]
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(ROOT / "tools" / name), run_name="__main__")
    finally:
        sys.argv = given
    assert ended.value.code == 0


def lines_after(said: str, stamp: str = STAMP) -> list[str]:
    """The lines of a log, without their stamps."""
    return [re.sub(stamp, "", line) for line in said.splitlines() if re.match(stamp, line)]


def check_log(work_dir: Path, epochs: int, first: str) -> None:
    """The lines that the tutorial shows."""
    lines = lines_after(next(work_dir.glob("*.log")).read_text())
    start, flow = (next(line for line in lines if line.startswith(word)) for word in ("Start running", "workflow"))
    assert re.fullmatch(rf"Start running, host: \S+, work_dir: {re.escape(str(work_dir))}", start)
    assert flow == f"workflow: [('train', 1)], max: {epochs} epochs"
    assert re.fullmatch(first + TRAINING, next(line for line in lines if line.startswith("Epoch [")))


def train_twice(folder: Path, data_root: Path, options: str) -> None:
    """The float partner of the tutorial's config, then its config, started from the float weights."""
    for name, work_dir, start in (
        ("config1_res50_dsq_m1_16_32w32f.py", "float", "none"),
        ("config2_res50_dsq_m1_16_2w2f.py", "dsq", "float/latest.pth"),
    ):
        where = ("--work-dir", work_dir, "--data-root", data_root)
        run_tool("train.py", f"{DSQ}/{name}", *where, "--options", f"load_from={start}", *options.split())


def test_classification(folder: Path, images: Path, capsys: Any) -> None:
    train_twice(folder, images, SMALL_DSQ)
    check_log(folder / "dsq", 1, r"Epoch \[1\]\[2/4\]")

    float_config, int_config = "float/config1_res50_dsq_m1_16_32w32f.py", "dsq/config2_res50_dsq_m1_16_2w2f.py"
    copyfile(ROOT / "docs" / "tutorial" / "test.jpg", folder / "test.jpg")
    (folder / "config.py").write_text(f"_base_ = {int_config!r}\nload_from = 'dsq/latest.pth'\n")
    capsys.readouterr()
    check_answer(typed("qquant.py"), capsys.readouterr().out)

    pair = (float_config, int_config, "float/latest.pth", "dsq/latest.pth")
    run_tool("model_analysis_tool.py", "test.jpg", *pair, "gpu:0", "./model_analysis.html")
    check_page(folder, {"backbone.conv1": (8, 32), "backbone.layer1.0.conv2": (2, 2), "head.fc": (8, 8)})

    (folder / "config.py").write_text(f"_base_ = {int_config!r}\nload_from = 'float/latest.pth'\n")
    with pytest.raises(LbitclsError, match="calibrate(.|\n)*checkpoint|checkpoint(.|\n)*calibrate"):
        typed("qquant.py")


def check_answer(names: dict[str, Any], said: str) -> str:
    """`print(result)` shows what was predicted; the name of its class."""
    result = names["result"]
    assert said.splitlines()[-1] == str(result) and result.keys() == {"pred_label", "pred_score", "pred_class"}
    scores = names["scores"]
    assert scores.shape == (1, 1000) and scores.sum() == pytest.approx(1, abs=1e-4)
    assert result["pred_label"] == scores.argmax() and 0 < result["pred_score"] <= 1
    return result["pred_class"]


def check_page(folder: Path, bits: dict[str, tuple[int, int]]) -> None:
    """The page is there, and the figures beside it are of these layers at these bits."""
    assert "<html" in (folder / "model_analysis.html").read_text()[:500]
    layers = json.loads((folder / "model_analysis.json").read_text())["layers"]
    found = {layer["name"]: (layer["num_bit_w"], layer["num_bit_a"]) for layer in layers}
    assert {name: found[name] for name in bits} == bits


@pytest.mark.usefixtures("forget_registrations")
def test_a_layer_of_ones_own(folder: Path, capsys: Any) -> None:
    (folder / "config.py").write_text(f"_base_ = '{ROOT}/{DSQ}/config2_res50_dsq_m1_16_2w2f.py'\n")
    names = typed("own_layer.py")
    model, kind = names["model"], names["DSQConvV2"]
    own = [name for name, layer in model.named_modules() if isinstance(layer, kind)]
    assert len(own) == 52 and "backbone.conv1" not in own
    layer = model.get_submodule(own[0])
    assert len(layer.quantize_(layer.weight, layer.num_bit_w).unique()) <= 7
    assert model.backbone.conv1.weight_quantizer.num_bits == 8 and model.backbone.conv1.input_quantizer is None
    assert layer(torch.rand(1, 64, 8, 8)).isfinite().all()


@pytest.fixture
def real(shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """`real(archive)`: an empty folder in which scripts run, where the real data has that archive."""

    def prepare(archive: str, classes: int, epochs: int) -> Path:
        needed = [shared_data / archive, shared_data / WEIGHTS]
        missing = [str(path) for path in needed if not path.is_file()]
        if missing:
            pytest.skip(f"no real data: {', '.join(missing)} is missing")
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("LBITCLS_DATA", str(shared_data))
        settings = SQUEEZENET.format(weights=str(needed[1]), classes=classes, epochs=epochs)
        (tmp_path / "settings.py").write_text(settings)
        return tmp_path

    return prepare


ANTS_AND_BEES = {"train": 244, "val": 153}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_transfer_learning_on_real_photos(real: Callable[..., Path], capsys: Any) -> None:
    folder = real("hymenoptera_256.tar.gz", 2, 1)
    names = typed("transfer.py")
    check_transfer(folder, names, capsys.readouterr().out, 1)
    assert names["dataset_sizes"] == ANTS_AND_BEES
    assert names["fixed"]["float"]["top1"] > 65


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_cifar10_on_real_images(real: Callable[..., Path], capsys: Any) -> None:
    folder = real("cifar10_jpg.tar.gz", 10, 1)
    names = typed("cifar10.py")
    check_cifar10(folder, names, capsys.readouterr().out, 2_500, 10_000)
    assert names["results"]["top-1"] > 15


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_quantized_transfer_learning_on_real_photos(real: Callable[..., Path], capsys: Any) -> None:
    pytest.importorskip("openvino")
    folder = real("hymenoptera_256.tar.gz", 2, 2)
    names = typed("quantized.py")
    check_quantized(folder, names, capsys.readouterr().out, 2, ANTS_AND_BEES)
    assert names["trained_head"]["quantized"]["top1"] > 70


REAL_DSQ = """
_base_ = {base!r}
model = dict(
    backbone=dict(_delete_=True, type="SqueezeNet", version="1_1"),
    neck=None,
    head=dict(_delete_=True, type="ConvClsHead", num_classes=1000, in_channels=512, topk=(1, 5)),
)
images = dict(type="ImageNet", data_prefix="imagenet1000_256", ann_file=None)
data = dict(
    train=dict(**images, indices=range(0, 1000, 8)),
    val=dict(**images, indices=range(1, 1000, 16)),
    test=dict(**images, indices=range(1, 1000, 16)),
    workers_per_gpu=0,
)
log_config = dict(interval=4, pictures=False)
total_epochs = 1
load_from = {weights!r}
"""
EIGHT_BITS = """
quant_transformer = dict(
    quan_policy=dict(Conv2d=dict(num_bit_w=8, num_bit_a=8)),
    special_layers=dict(layers_name=["backbone.features.0", "head.conv"],
        convert_type=[dict(type="DSQConv", num_bit_w=8, num_bit_a=8, bSetQ=True, quant_activation=False),
                      dict(type="DSQConv", num_bit_w=8, num_bit_a=8)]),
)
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_classification_of_a_real_photo(real: Callable[..., Path], shared_data: Path, capsys: Any) -> None:
    """SqueezeNet with DSQ at 8 bits knows the cat, after the tutorial's training on a few images."""
    folder = real("imagenet1000_256.tar.gz", 1000, 1)
    weights = str(shared_data / WEIGHTS)
    for name, base, more in (
        ("float", "config1_res50_dsq_m1_16_32w32f", ""),
        ("int", "config2_res50_dsq_m1_16_2w2f", EIGHT_BITS),
    ):
        (folder / f"{name}.py").write_text(REAL_DSQ.format(base=f"{ROOT}/{DSQ}/{base}.py", weights=weights) + more)
    run_tool("train.py", "int.py", "--work-dir", "work")
    check_log(folder / "work", 1, r"Epoch \[1\]\[4/8\]")
    copyfile(ROOT / "docs" / "tutorial" / "test.jpg", folder / "test.jpg")
    (folder / "config.py").write_text("_base_ = 'int.py'\nload_from = 'work/latest.pth'\n")
    capsys.readouterr()
    assert check_answer(typed("qquant.py"), capsys.readouterr().out) in CATS
    pair = ("float.py", "int.py", weights, "work/latest.pth")
    run_tool("model_analysis_tool.py", "test.jpg", *pair, "gpu:0", "./model_analysis.html")
    check_page(folder, {"backbone.features.0": (8, 32), "backbone.features.3.squeeze": (8, 8), "head.conv": (8, 8)})
