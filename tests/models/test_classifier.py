"""The classifier's contract: losses, scores, logits, matching parts, and replaceable layers."""

from __future__ import annotations

import copy
import logging

import numpy as np
import pytest
import torch
from torch import nn

from lbitcls.models import build_classifier
from lbitcls.registry import BACKBONES
from lbitcls.utils.errors import CheckpointError, ConfigError, DataError


def small_config(num_classes: int = 10, **parts: object) -> dict:
    return dict(
        type="ImageClassifier",
        backbone=dict(type="ResNetCIFAROptionA", depth=8, in_channels=1, base_channels=8),
        neck=dict(type="GlobalAveragePooling"),
        head=dict(type="LinearClsHead", num_classes=num_classes, in_channels=32),
        **parts,
    )


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.rand(6, 1, 8, 8), torch.arange(6)


def test_config_of_the_tutorial() -> None:
    model = build_classifier(
        dict(
            type="ImageClassifier",
            backbone=dict(type="ResNet", depth=50, num_stages=4, out_indices=(3,), style="pytorch"),
            neck=dict(type="GlobalAveragePooling"),
            head=dict(
                type="LinearClsHead",
                num_classes=1000,
                in_channels=2048,
                loss=dict(type="CrossEntropyLoss", loss_weight=1.0),
                topk=(1, 5),
            ),
        )
    )
    names = dict(model.named_modules())
    assert isinstance(names["backbone.conv1"], nn.Conv2d)
    assert isinstance(names["head.fc"], nn.Linear)
    losses = model(torch.rand(2, 3, 32, 32), gt_label=torch.tensor([1, 999]))
    assert set(losses) == {"loss", "top-1", "top-5"}
    losses["loss"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_three_ways_to_call(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    img, label = batch
    model = build_classifier(small_config()).eval()
    losses = model(img, gt_label=label, return_loss=True, img_metas=[{}])
    assert all(value.dim() == 0 for value in losses.values())
    assert not losses["top-1"].requires_grad
    logits = model.predict(img)
    torch.testing.assert_close(losses["loss"], nn.functional.cross_entropy(logits, label))
    again = model.loss(logits, label)
    assert all(torch.equal(again[key], losses[key]) for key in losses)
    scores = model(return_loss=False, img=img, img_metas=None)
    assert isinstance(scores, np.ndarray)
    assert scores.shape == (6, 10)
    np.testing.assert_allclose(scores, logits.softmax(1).detach().numpy(), rtol=1e-6)


def test_plain_attributes() -> None:
    model = build_classifier(small_config())
    assert model.CLASSES is None
    assert model.cfg is None
    assert model.num_classes == 10
    model.CLASSES = ("a", "b")
    assert copy.deepcopy(model).CLASSES == ("a", "b")


def test_first_weights_are_reproducible() -> None:
    def weights() -> dict:
        torch.manual_seed(3)
        return build_classifier(small_config()).state_dict()

    first, second = weights(), weights()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_labels_are_needed_for_losses(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    with pytest.raises(DataError, match="give gt_label"):
        build_classifier(small_config())(batch[0])


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (1, 8, 8)])
def test_wrong_image_shape(shape: tuple[int, ...]) -> None:
    model = build_classifier(small_config())
    with pytest.raises(DataError, match=r"needs images \(N, 1, H, W\); got \("):
        model.predict(torch.rand(shape))


def test_head_of_other_channels() -> None:
    config = small_config()
    config["head"]["in_channels"] = 64
    with pytest.raises(ConfigError, match="has 32 channels; write in_channels=32"):
        build_classifier(config)


def test_head_without_neck_says_what_is_missing(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    config = small_config()
    del config["neck"]
    with pytest.raises(ConfigError, match="Add neck=dict"):
        build_classifier(config).predict(batch[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(backbone=dict(type="ResNet", deph=18)), "ResNet does not accept 'deph'. Did you mean 'depth'"),
        (dict(backbone=dict(type="Resnet", depth=18)), "Did you mean 'ResNet'"),
        (dict(nek=None), "Did you mean 'neck'"),
        (dict(train_cfg=dict(augment=dict())), "Did you mean 'augments'"),
        (dict(pretrained="https://example.org/resnet18.pth"), "neither a local file nor"),
        (dict(init_cfg=dict(type="Kaiming")), "must be dict"),
    ],
)
def test_mistakes_are_named(change: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_classifier({**small_config(), **change})


def test_config_is_not_changed() -> None:
    config = small_config()
    before = copy.deepcopy(config)
    build_classifier(config)
    assert config == before


def test_user_backbone_without_our_base_class(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 5, 3)

        def forward(self, img: torch.Tensor) -> torch.Tensor:
            return self.conv(img)

    BACKBONES.register_module("PlainForTest", module=Plain)
    try:
        config = small_config()
        config |= dict(
            backbone=dict(type="PlainForTest"), head=dict(type="LinearClsHead", num_classes=3, in_channels=5)
        )
        assert build_classifier(config).predict(batch[0]).shape == (6, 3)
    finally:
        BACKBONES.module_dict.pop("PlainForTest")


def test_compiles_as_one_graph(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    img, label = batch
    model = build_classifier(small_config())
    expected = copy.deepcopy(model)(img, gt_label=label)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    got = compiled(img, gt_label=label)
    got["loss"].backward()
    for key, value in expected.items():
        torch.testing.assert_close(got[key], value)


def test_autocast_loss_is_float32(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    img, label = batch
    model = build_classifier(small_config())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model.predict(img).dtype == torch.bfloat16
        losses = model(img, gt_label=label)
        assert model(img, return_loss=False).dtype == np.float32
    assert losses["loss"].dtype == torch.float32
    losses["loss"].backward()


def test_channels_last(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    img, _ = batch
    model = build_classifier(small_config()).eval()
    expected = model.predict(img)
    got = model.to(memory_format=torch.channels_last).predict(img.to(memory_format=torch.channels_last))
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)


class DoubledConv(nn.Conv2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


@pytest.mark.parametrize("path", ["backbone.conv1", "backbone.layer2.0.conv2"])
def test_layers_may_be_replaced(path: str, batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    img, label = batch
    model = build_classifier(small_config())
    before = model(img, gt_label=label)["loss"]
    layer = model.get_submodule(path)
    assert isinstance(layer, nn.Conv2d)
    other = DoubledConv(layer.in_channels, layer.out_channels, 3, layer.stride, 1, bias=False)
    model.set_submodule(path, other)
    model(img, gt_label=label)["loss"].backward()
    assert other.weight.grad is not None
    assert layer.weight.grad is None
    assert model(img, gt_label=label)["loss"] != before


def test_mixed_batches_only_in_training(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    img, label = batch
    model = build_classifier(small_config(train_cfg=dict(augments=dict(type="BatchMixup", alpha=0.5))))
    plain = build_classifier(small_config())
    plain.load_state_dict(model.state_dict())
    mixed = model.train()(img, gt_label=label)
    mixed["loss"].backward()
    assert mixed["loss"] != plain.train()(img, gt_label=label)["loss"]
    model.eval(), plain.load_state_dict(model.state_dict())
    assert torch.equal(model(img, gt_label=label)["loss"], plain.eval()(img, gt_label=label)["loss"])


def test_augments_compile_outside_the_graph(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    img, label = batch
    model = build_classifier(small_config(train_cfg=dict(augments=dict(type="CutMix"))))
    reference = copy.deepcopy(model)
    torch.manual_seed(5)
    expected = reference(img, gt_label=label)["loss"]
    torch.manual_seed(5)
    torch.testing.assert_close(torch.compile(model, backend="aot_eager")(img, gt_label=label)["loss"], expected)


def saved(model: nn.Module, folder: object) -> str:
    path = f"{folder}/weights.pth"
    torch.save(model.state_dict(), path)
    return path


def test_pretrained_whole_model(work_dir: object, caplog: pytest.LogCaptureFixture) -> None:
    source = build_classifier(small_config())
    path = saved(source, work_dir)
    for config in (dict(pretrained=path), dict(init_cfg=dict(type="Pretrained", checkpoint=path))):
        torch.manual_seed(1)
        model = build_classifier(small_config(**config))
        assert torch.equal(model.head.fc.weight, source.head.fc.weight)
        assert torch.equal(model.backbone.conv1.weight, source.backbone.conv1.weight)


@pytest.mark.parametrize("key", ["pretrained", "init_cfg"])
def test_pretrained_backbone_alone(key: str, work_dir: object) -> None:
    source = build_classifier(small_config())
    path = saved(source, work_dir)
    config = small_config(num_classes=3)
    config["backbone"][key] = (
        path if key == "pretrained" else dict(type="Pretrained", checkpoint=path, prefix="backbone.")
    )
    model = build_classifier(config)
    assert torch.equal(model.backbone.layer3[0].conv1.weight, source.backbone.layer3[0].conv1.weight)


def test_pretrained_missing_file(work_dir: object) -> None:
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        build_classifier(small_config(pretrained=f"{work_dir}/none.pth"))


def test_topk_above_the_classes_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="lbitcls"):
        model = build_classifier(small_config(num_classes=2))
        losses = model(torch.rand(4, 1, 8, 8), gt_label=torch.tensor([0, 1, 1, 0]))
    assert set(losses) == {"loss", "top-1"}
