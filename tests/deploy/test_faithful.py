"""The exported model is the trained one: its predictions in both engines equal the trained model's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lbitcls.datasets.digits import Digits
from lbitcls.deploy.export.onnx import export_model
from lbitcls.deploy.runtime.engine import load
from lbitcls.deploy.targets.cpu import CPU
from lbitcls.deploy.verification.verify import verify
from lbitcls.quant import build_mtransformer


def as_pytorch_trains(model: nn.Module) -> nn.Module:
    """Return a config as by `get_default_qat_qconfig('x86')`: 8 bits, inputs 0-127, ConvBn folded, per-channel."""
    options = dict(num_bit_w=8, num_bit_a=8, per_channel=True, reduce_range=True)
    policy = dict(Conv2d=dict(type="TorchQATConv", **options), Linear=dict(type="TorchQATLinear", **options))
    return build_mtransformer(dict(type="ModelTransformer", quan_policy=policy, fold_bn=True))(model)


def test_the_published_conv_bn_relu(tmp_path: Path) -> None:
    """https://github.com/pytorch/pytorch/issues/143497: trained with PyTorch's QAT, its ONNX file differed."""
    torch.manual_seed(42)
    model = nn.Sequential(nn.Conv2d(3, 1, 1), nn.BatchNorm2d(1), nn.ReLU())
    model = as_pytorch_trains(model).train()
    image = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        model(image)
        expected = model.eval()(image).numpy()
    assert model[0].folded_norm and expected.max() > 0
    export_model(model, tmp_path / "model.onnx", input_shape=(3, 224, 224))
    for engine in CPU.engines:
        given = load(tmp_path / "model.onnx", engine, threads=1).predict(image.numpy())
        np.testing.assert_allclose(given, expected, rtol=0, atol=1e-6 * expected.max())


def trained_on_digits() -> nn.Module:
    """Three Conv-BN-ReLU blocks and a classifier, trained for three epochs, in 8 bits from the first iteration."""
    layers: list[nn.Module] = []
    for channels, width, stride in ((1, 16, 1), (16, 32, 2), (32, 32, 2)):
        layers += [nn.Conv2d(channels, width, 3, stride, 1), nn.BatchNorm2d(width), nn.ReLU()]
    model = as_pytorch_trains(nn.Sequential(*layers, nn.Flatten(), nn.Linear(128, 10))).train()
    images, labels = images_and_labels("train")
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    for _ in range(3):
        for batch in torch.randperm(len(images)).split(64):
            loss = F.cross_entropy(model(images[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval()


def images_and_labels(split: str) -> tuple[Tensor, Tensor]:
    dataset = Digits(split=split, pipeline=[dict(type="Normalize", mean=[0.305], std=[0.376])])
    samples = [dataset[i] for i in range(len(dataset))]
    return torch.stack([s["img"] for s in samples]), torch.stack([s["gt_label"] for s in samples])


def test_conv_bn_relu_trained_on_digits_predicts_the_same(tmp_path: Path) -> None:
    model, (images, labels) = trained_on_digits(), images_and_labels("test")
    with torch.no_grad():
        expected = model(images).argmax(1).numpy()
    assert (expected == labels.numpy()).mean() > 0.93
    export_model(model, tmp_path / "model.onnx", input_shape=(1, 8, 8))
    for engine in CPU.engines:
        given = load(tmp_path / "model.onnx", engine, threads=1).predict(images.numpy())
        assert isinstance(given, np.ndarray) and np.array_equal(given.argmax(1), expected)
    verification = verify(model, tmp_path / "model.onnx", images.split(120), threads=1)
    assert verification.passed and verification.float_layers == {}
