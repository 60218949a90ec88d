"""The tutorial's config and script do what the tutorial says."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from lbitcls.commands.main import main

LINE = re.compile(
    r"Epoch \[1\]\[2/4\]\tlr: \d\.\d{3}e-\d\d, eta: (\d+ days?, )?\d+:\d\d:\d\d, time: \d+\.\d{3}, "
    r"data_time: \d+\.\d{3}, memory: \d+, loss: \d+\.\d{4}, top-1: \d+\.\d{4}, top-5: \d+\.\d{4}\n"
)

SCRIPT = """
import sys

import numpy as np
import torch

from lbitcls.datasets import ImageNet, collate
from lbitcls.datasets.pipelines import Compose
from lbitcls.models import build_classifier
from lbitcls.quant import build_mtransformer
from lbitcls.utils import Config, load_checkpoint

config, path = sys.argv[1:]
cfg = Config.fromfile(config)
model = build_classifier(cfg.model)
transformer = build_mtransformer(cfg.quant_transformer)
model = transformer(model, logger=None)
checkpoint = load_checkpoint(model, path, map_location='cpu')
if 'CLASSES' in checkpoint['meta']:
    CLASSES = checkpoint['meta']['CLASSES']
else:
    CLASSES = ImageNet.CLASSES
model.CLASSES = CLASSES
model.cfg = cfg
model.to('cpu')
model.eval()

test_pipeline = Compose(cfg.data.test.pipeline)
data = dict(img_info=dict(filename='test.jpg'), img_prefix=None)
data = test_pipeline(data)
data = collate([data], samples_per_gpu=1)
with torch.no_grad():
    scores = model(return_loss=False, **data)
pred_score = np.max(scores, axis=1)[0]
pred_label = np.argmax(scores, axis=1)[0]
print(f'{scores.shape} {pred_score:.6f} {pred_label} {model.CLASSES[pred_label]}')
"""


def test_config_makes_a_training_step(tutorial: Path) -> None:
    from lbitcls.core.optim import build_optimizer
    from lbitcls.models import build_classifier
    from lbitcls.quant import build_mtransformer, named_quantizers, quantizer_parameters
    from lbitcls.utils import Config

    cfg = Config.fromfile(tutorial)
    model = build_mtransformer(cfg.quant_transformer)(build_classifier(cfg.model))
    bits = {name: quantizer.num_bits for name, quantizer in named_quantizers(model)}
    eight = [name for name in bits if name.startswith(("backbone.conv1.", "head.fc."))]
    assert len(bits) == 2 * 54 and len(eight) == 4
    assert all(number == (8 if name in eight else 2) for name, number in bits.items())
    optimizer = build_optimizer(model, cfg.optimizer, quantizer_parameters(model))
    losses = model(torch.rand(2, 3, 64, 64), gt_label=torch.tensor([7, 999]), return_loss=True)
    losses["loss"].backward()
    assert losses["loss"].isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer.step()
    changed = [name for name, p in model.named_parameters() if not torch.equal(p, before[name])]
    assert {"backbone.conv1.weight", "backbone.layer4.2.conv3.weight", "head.fc.weight"} <= set(changed)
    assert any("quantizer" in name for name in changed)


def test_work_directory(trained: tuple[Path, Path]) -> None:
    _, work = trained
    names = {path.name for path in work.iterdir()}
    assert {"latest.pth", "epoch_1.pth", "best_top-1.pth", "config2_res18_lsq_2w2f.py", "log.jsonl"} <= names
    assert list(work.glob("**/events.out.tfevents.*"))
    from lbitcls.utils import Config

    resolved = Config.fromfile(work / "config2_res18_lsq_2w2f.py")
    assert (resolved.model.backbone.depth, resolved.model.head.num_classes) == (18, 1000)


def test_logs(trained: tuple[Path, Path]) -> None:
    _, work = trained
    text = next(work.glob("*.log")).read_text()
    opening = text[: text.index("Epoch [1]")]
    for word in ("host", "work_dir: ", "workflow: [('train', 1)], max: 1 epochs", "Environment", "Quantization plan"):
        assert word in opening
    assert LINE.search(text)
    assert "Training time" in text.splitlines()[-2] and "Best validation top-1" in text.splitlines()[-1]
    records = [json.loads(line) for line in (work / "log.jsonl").read_text().splitlines()]
    train, val = ([r for r in records if r["mode"] == mode] for mode in ("train", "val"))
    keys = {"mode", "epoch", "iter", "lr", "time", "data_time", "memory", "loss", "top-1", "top-5"}
    assert [(r["epoch"], r["iter"]) for r in train] == [(1, 2), (1, 4)] and all(keys <= r.keys() for r in train)
    assert [set(r) for r in val] == [{"mode", "epoch", "iter", "images", "loss", "top-1", "top-5"}]


def test_checkpoint_layout(trained: tuple[Path, Path]) -> None:
    from lbitcls import __version__
    from lbitcls.datasets import ImageNet
    from lbitcls.utils import Config

    checkpoint = torch.load(trained[1] / "epoch_1.pth", weights_only=True)
    meta = checkpoint["meta"]
    assert {"meta", "state_dict", "optimizer"} <= checkpoint.keys()
    assert (meta["lbitcls_version"], meta["epoch"], meta["iter"]) == (__version__, 1, 4)
    assert meta["CLASSES"] == ImageNet.CLASSES and len(ImageNet.CLASSES) == 1000
    assert Config.fromstring(meta["config"]).quant_transformer == Config.fromfile(trained[0]).quant_transformer
    assert {"backbone.conv1.weight", "head.fc.weight"} <= checkpoint["state_dict"].keys()


def test_script(trained: tuple[Path, Path], images: Path, tmp_path: Path, run_python: Any) -> None:
    config, work = trained
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "test.jpg").write_bytes((images / "val" / "n2" / "2.jpg").read_bytes())
    done = run_python(tmp_path / "script.py", config, work / "latest.pth", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = tmp_path / "rows.jsonl"
    test = [str(config), str(work / "latest.pth"), "--predictions", str(rows), "--data-root", str(images)]
    assert main(["test", *test]) == 0
    row = next(json.loads(line) for line in rows.read_text().splitlines() if "n2/2.jpg" in line)
    shape, score, label, _ = re.fullmatch(r"(\(.*\)) (\S+) (\d+) (.+)\n", done.stdout).groups()
    assert (shape, int(label)) == ("(1, 1000)", row["prediction"])
    assert float(score) == pytest.approx(max(row["scores"]), abs=1e-5)


def test_public_names() -> None:
    import lbitcls
    from lbitcls.datasets import ImageNet, build_dataloader, build_dataset, collate
    from lbitcls.datasets.pipelines import Compose
    from lbitcls.models import build_backbone, build_classifier, build_head, build_loss, build_neck
    from lbitcls.quant import build_mtransformer, build_quant_layer, calibrate
    from lbitcls.utils import Config, load_checkpoint, save_checkpoint

    assert re.match(r"\d+\.\d+", lbitcls.__version__)
    names = [ImageNet, build_dataloader, build_dataset, collate, Compose, build_mtransformer, build_quant_layer]
    assert all(map(callable, [*names, build_classifier, calibrate, load_checkpoint, save_checkpoint]))
    assert all(map(callable, [Config.fromfile, Config.merge_from_dict, Config.dump]))
    features = build_backbone(dict(type="ResNet", depth=18, base_channels=8))(torch.rand(2, 3, 32, 32))
    logits = build_head(dict(type="LinearClsHead", num_classes=4, in_channels=64))(
        build_neck(dict(type="GlobalAveragePooling"))(features)
    )
    assert logits.shape == (2, 4)
    assert build_loss(dict(type="CrossEntropyLoss", loss_weight=2.0))(logits, torch.tensor([0, 3])).dim() == 0


def test_quant_layer_and_its_quantizers() -> None:
    from lbitcls.quant import build_quant_layer

    conv = nn.Conv2d(8, 8, 3)
    layer = build_quant_layer(dict(type="LSQConv", num_bit_w=4, num_bit_a=4), conv)
    assert layer(torch.rand(2, 8, 6, 6)).shape == (2, 8, 4, 4)
    assert layer.weight is conv.weight
    assert len(layer.weight_quantizer(layer.weight).unique()) <= 16
    assert len(layer.input_quantizer(torch.rand(2, 8, 6, 6)).unique()) <= 16


def test_transformed_classifier(trained: tuple[Path, Path], images: Path) -> None:
    from lbitcls.datasets import build_dataloader, build_dataset
    from lbitcls.models import build_classifier
    from lbitcls.quant import build_mtransformer, calibrate
    from lbitcls.utils import Config, load_checkpoint, save_checkpoint

    cfg = Config.fromfile(trained[0])
    model = build_classifier(cfg.model)
    transformer = build_mtransformer(cfg.quant_transformer)
    rows = {row.name: row for row in transformer.plan(model)}
    assert type(model.backbone.conv1) is nn.Conv2d
    conv1, inner, norm = (rows[f"backbone.{name}"] for name in ("conv1", "layer1.0.conv1", "bn1"))
    assert (conv1.num_bit_w, inner.num_bit_w, norm.quantized) == (8, 2, False)
    assert transformer(model, logger=None) is model
    loader = build_dataloader(build_dataset(cfg.data.val, data_root=images), 4)
    assert calibrate(model, loader) == 2 * 21
    img, label = torch.rand(3, 3, 32, 32), torch.tensor([0, 1, 2])
    losses = model(img, gt_label=label, return_loss=True)
    assert {"loss", "top-1", "top-5"} <= losses.keys()
    assert all(isinstance(value, torch.Tensor) and value.dim() == 0 for value in losses.values())
    model.eval()
    scores, logits = model(img, return_loss=False), model.predict(img)
    assert isinstance(scores, np.ndarray) and scores.shape == (3, 1000)
    np.testing.assert_allclose(scores, logits.detach().softmax(1).numpy(), rtol=1e-5)
    save_checkpoint(model, images / "mine.pth", meta={"epoch": 3})
    other = transformer(build_classifier(cfg.model)).eval()
    checkpoint = load_checkpoint(other, images / "mine.pth", map_location="cpu")
    assert checkpoint["meta"]["epoch"] == 3
    assert torch.equal(other.predict(img), logits)


def test_one_training_from_python_yaml_and_json(images: Path, small: str, tmp_path: Path, capsys: Any) -> None:
    from lbitcls.utils import Config

    (tmp_path / "one.py").write_text(small)
    plain = json.loads(json.dumps(Config.fromfile(tmp_path / "one.py").to_dict()))
    (tmp_path / "one.json").write_text(json.dumps(plain))
    text = yaml.safe_dump(plain)
    assert "lr: 0.01\n" in text
    (tmp_path / "one.yaml").write_text(text.replace("lr: 0.01\n", "lr: 1e-2\n"))
    states = []
    for name in ("one.py", "one.yaml", "one.json"):
        work = tmp_path / f"work_{name}"
        assert main(["train", str(tmp_path / name), "--work-dir", str(work), "--data-root", str(images)]) == 0
        assert (work / "one.py").is_file()  # the resolved config is Python, whatever it was written in
        states.append(torch.load(work / "latest.pth", weights_only=True)["state_dict"])
    for state in states[1:]:
        assert state.keys() == states[0].keys()
        assert all(torch.equal(value, states[0][name]) for name, value in state.items())
    assert capsys.readouterr().err == ""


def test_overrides_of_items_and_of_none(tutorial: Path) -> None:
    from lbitcls.utils import Config

    cfg = Config.fromfile(tutorial)
    names = "quant_transformer.special_layers.layers_name"
    cfg.merge_from_dict({f"{names}.1": "neck", "model.head.topk.1": 3, "optimizer_config.grad_clip": dict(max_norm=5)})
    assert cfg.quant_transformer.special_layers.layers_name == ["backbone.conv1", "neck"]
    assert tuple(cfg.model.head.topk) == (1, 3) and cfg.optimizer_config.grad_clip == dict(max_norm=5)
    cfg.merge_from_dict({"data.train.pipeline.1.size": 160, "workflow.0.1": 2})
    assert cfg.data.train.pipeline[1] == dict(type="RandomResizedCrop", size=160)
    assert list(cfg.workflow[0]) == ["train", 2]


def test_list_file_from_windows(images: Path, tmp_path: Path) -> None:
    from lbitcls.datasets import build_dataset

    (tmp_path / "my list.txt").write_bytes(b"\xef\xbb\xbfn0/0.jpg 0\r\nn3/3.jpg 3\r\n\r\n")
    cfg = dict(type="ImageNetV1", data_prefix="val", ann_file=str(tmp_path / "my list.txt"), pipeline=[])
    dataset = build_dataset(cfg, data_root=images)
    assert dataset.labels.tolist() == [0, 3] and dataset[0]["img"].shape == (3, 44, 52)
