"""Every backbone: builds, runs forward and backward, keeps torchvision's names, freezes, reports mistakes."""

from __future__ import annotations

import copy
import pickle
from itertools import pairwise

import pytest
import torch
import torchvision
from torch import nn

from lbitcls.models import build_backbone, build_classifier
from lbitcls.registry import BACKBONES
from lbitcls.utils.errors import ConfigError, DataError

# config of the backbone, size of its image, shape of its last feature for one image
SMALL = {
    "ResNet-18": (dict(type="ResNet", depth=18), (3, 64), (512, 2, 2)),
    "ResNet-50": (dict(type="ResNet", depth=50, style="caffe"), (3, 64), (2048, 2, 2)),
    "ResNet_CIFAR": (dict(type="ResNet_CIFAR", depth=18, base_channels=16), (3, 32), (128, 4, 4)),
    "option A": (dict(type="ResNetCIFAROptionA", depth=20), (3, 32), (64, 8, 8)),
    "option A, digits": (dict(type="ResNetCIFAROptionA", depth=8, in_channels=1), (1, 8), (64, 2, 2)),
    "option B": (dict(type="ResNetCIFAROptionB", depth=20), (3, 32), (64, 8, 8)),
    "MobileNetV2": (dict(type="MobileNetV2"), (3, 64), (1280, 2, 2)),
    "MobileNetV2, narrow": (dict(type="MobileNetV2", widen_factor=0.5), (3, 64), (1280, 2, 2)),
    "VGG-11": (dict(type="VGG", depth=11), (3, 32), (512, 1, 1)),
    "VGG-13, BN": (dict(type="VGG", depth=13, norm_cfg=dict(type="BN")), (3, 32), (512, 1, 1)),
    "VGG-small": (dict(type="VGGSmall"), (3, 32), (8192,)),
    "LeNet5": (dict(type="LeNet5"), (1, 32), (120, 1, 1)),
    "LeNet5, logits": (dict(type="LeNet5", num_classes=10), (1, 28), (10,)),
    "SqueezeNet-1.0": (dict(type="SqueezeNet", version="1.0"), (3, 64), (512, 3, 3)),
    "SqueezeNet-1.1": (dict(type="SqueezeNet"), (3, 64), (512, 3, 3)),
    "timm": (dict(type="TimmBackbone", name="resnet10t"), (3, 64), (512,)),
    "timm, maps": (dict(type="TimmBackbone", name="resnet10t", out_indices=[3]), (3, 64), (256, 4, 4)),
    "ShuffleNetV2": (dict(type="TorchvisionBackbone", name="shufflenet_v2_x1_0"), (3, 64), (1024,)),
}


@pytest.mark.parametrize("config, image, feature", SMALL.values(), ids=SMALL.keys())
def test_forward_and_backward(config: dict, image: tuple[int, int], feature: tuple[int, ...]) -> None:
    backbone = build_backbone(config)
    channels, size = image
    assert backbone.in_channels == channels
    features = backbone(torch.rand(2, channels, size, size))
    assert [tuple(f.shape) for f in features] == [(2, *feature)]
    assert backbone.num_features == backbone.out_channels[-1] == feature[0]
    features[-1].square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in backbone.parameters())


@pytest.mark.parametrize("config, image, feature", SMALL.values(), ids=SMALL.keys())
def test_copies_and_memory_format(config: dict, image: tuple[int, int], feature: tuple[int, ...]) -> None:
    backbone = build_backbone(config).eval()
    img = torch.rand(2, image[0], image[1], image[1])
    expected = backbone(img)[-1]
    for other in (copy.deepcopy(backbone), pickle.loads(pickle.dumps(backbone))):
        assert torch.equal(other(img)[-1], expected)
    last = backbone.to(memory_format=torch.channels_last)(img.to(memory_format=torch.channels_last))[-1]
    torch.testing.assert_close(last, expected, rtol=1e-3, atol=1e-4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert backbone(img)[-1].isfinite().all()


def test_every_registered_backbone_is_tested() -> None:
    own = {name for name in BACKBONES.names() if BACKBONES.find(name).__module__.startswith("lbitcls.models.")}
    assert own - {"TorchvisionQuantizedBackbone"} == {config["type"] for config, _, _ in SMALL.values()}


def head_for(backbone: dict, features: int) -> dict:
    if backbone["type"] == "SqueezeNet":
        return dict(head=dict(type="ConvClsHead", num_classes=1000))
    if "num_classes" in backbone:
        return dict(head=dict(type="ClsHead"))
    neck = dict(type="GlobalAveragePooling")
    return dict(neck=neck, head=dict(type="LinearClsHead", num_classes=1000, in_channels=features))


SAME = [
    (dict(type="ResNet", depth=18), 512, "resnet18"),
    (dict(type="ResNet", depth=50), 2048, "resnet50"),
    (dict(type="MobileNetV2"), 1280, "mobilenet_v2"),
    (dict(type="SqueezeNet", version="1_0"), 512, "squeezenet1_0"),
    (dict(type="SqueezeNet", version="1_1"), 512, "squeezenet1_1"),
    (dict(type="TorchvisionBackbone", name="shufflenet_v2_x1_0"), 1024, "shufflenet_v2_x1_0"),
    (dict(type="TorchvisionBackbone", name="mobilenet_v3_small"), 1024, "mobilenet_v3_small"),
    (dict(type="TorchvisionBackbone", name="efficientnet_b0"), 1280, "efficientnet_b0"),
]
SAME_SLOW = [
    (dict(type="ResNet", depth=34), 512, "resnet34"),
    (dict(type="ResNet", depth=101), 2048, "resnet101"),
    (dict(type="ResNet", depth=152), 2048, "resnet152"),
    (dict(type="VGG", depth=13, num_classes=1000), 0, "vgg13"),
    (dict(type="VGG", depth=11, num_classes=1000, norm_cfg=dict(type="BN")), 0, "vgg11_bn"),
    (dict(type="TorchvisionBackbone", name="convnext_tiny"), 768, "convnext_tiny"),
    (dict(type="TorchvisionBackbone", name="swin_t"), 768, "swin_t"),
    (dict(type="TorchvisionBackbone", name="densenet121"), 1024, "densenet121"),
    (dict(type="TorchvisionBackbone", name="regnet_y_400mf"), 440, "regnet_y_400mf"),
]
ALL_SAME = [*SAME, *(pytest.param(*case, marks=pytest.mark.slow) for case in SAME_SLOW)]


@pytest.mark.parametrize("backbone, features, name", ALL_SAME)
def test_published_file_gives_torchvisions_logits(backbone: dict, features: int, name: str) -> None:
    published = torchvision.models.get_model(name, weights=None).eval()
    for parameter in published.parameters():  # biases and gains different from their initial values
        nn.init.normal_(parameter, std=0.05)
    model = build_classifier(dict(type="ImageClassifier", backbone=backbone, **head_for(backbone, features))).eval()
    model.load_state_dict(model.adapt_state_dict(published.state_dict()), strict=True)
    img = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(model.predict(img), published(img))


FAMILIES = (
    "alexnet convnext_small densenet169 efficientnet_b1 efficientnet_v2_s googlenet inception_v3 maxvit_t mnasnet0_5 "
    "mobilenet_v3_large regnet_x_400mf resnext50_32x4d shufflenet_v2_x0_5 swin_v2_t vgg11 vit_b_32 wide_resnet50_2"
)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES.split())
def test_one_of_each_family_of_torchvision(name: str) -> None:
    backbone = build_backbone(dict(type="TorchvisionBackbone", name=name)).eval()
    size = 224 if name.startswith(("vit", "maxvit")) else 96
    with torch.no_grad():
        assert backbone(torch.rand(1, 3, size, size))[-1].shape == (1, backbone.num_features)


@pytest.mark.parametrize(
    ("config", "shapes"),
    [
        (dict(type="ResNet", depth=18, out_indices=(0, 2, 3)), [(64, 16), (256, 4), (512, 2)]),
        (dict(type="ResNet", depth=18, num_stages=2, out_indices=[1]), [(128, 8)]),
        (dict(type="ResNet", depth=18, strides=(2, 1, 1, 1)), [(512, 8)]),
        (dict(type="ResNet_CIFAR", depth=18, out_indices=(0, 1)), [(64, 64), (128, 32)]),
        (dict(type="ResNetCIFAROptionA", depth=8, out_indices=(0, 1, 2)), [(16, 64), (32, 32), (64, 16)]),
        (
            dict(type="MobileNetV2", out_indices=range(8)),
            [(16, 32), (24, 16), (32, 8), (64, 4), (96, 4), (160, 2), (320, 2), (1280, 2)],
        ),
        (
            dict(type="VGG", depth=11, out_indices=(0, 1, 2, 3, 4)),
            [(64, 32), (128, 16), (256, 8), (512, 4), (512, 2)],
        ),
    ],
)
def test_out_indices(config: dict, shapes: list[tuple[int, int]]) -> None:
    backbone = build_backbone(config)
    features = backbone(torch.rand(2, 3, 64, 64))
    assert [(f.shape[1], f.shape[2]) for f in features] == shapes
    assert backbone.out_channels == tuple(channels for channels, _ in shapes)
    features[-1].mean().backward()
    assert all(p.grad is not None for p in backbone.parameters())  # every layer is trained


FROZEN = [
    (
        dict(type="ResNet", depth=18, frozen_stages=1),
        {"conv1", "bn1", "layer1"},
        {"layer2", "layer3", "layer4"},
    ),
    (
        dict(type="ResNetCIFAROptionA", depth=8, frozen_stages=0),
        {"conv1", "bn1"},
        {"layer1", "layer2", "layer3"},
    ),
    (
        dict(type="MobileNetV2", frozen_stages=2),
        {f"features.{i}" for i in range(4)},
        {f"features.{i}" for i in range(4, 19)},
    ),
    (
        dict(type="VGG", depth=11, frozen_stages=1, norm_cfg=dict(type="BN")),
        {"features.0", "features.1"},
        {"features.4", "features.5"},
    ),
]


@pytest.mark.parametrize("config, frozen, trained", FROZEN)
def test_frozen_stages(config: dict, frozen: set[str], trained: set[str]) -> None:
    backbone = build_backbone(config).train()
    for names, expected in ((frozen, False), (trained, True)):
        for name in names:
            module = backbone.get_submodule(name)
            assert all(p.requires_grad is expected for p in module.parameters())
            norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]
            assert all(norm.training is expected for norm in norms)
    statistics = {key: value.clone() for key, value in backbone.state_dict().items() if "running" in key}
    backbone(torch.rand(2, 3, 64, 64))[-1].mean().backward()
    for key, value in statistics.items():
        in_frozen = any(key.startswith(f"{name}.") for name in frozen)
        assert torch.equal(backbone.state_dict()[key], value) is in_frozen, key
    assert not any(m.training for m in backbone.eval().modules())


@pytest.mark.parametrize("config, image, feature", SMALL.values(), ids=SMALL.keys())
def test_every_family_freezes_its_stages(config: dict, image: tuple[int, int], feature: tuple[int, ...]) -> None:
    last = len(build_backbone(config).stages()) - 1
    backbone = build_backbone({**config, "frozen_stages": last, "norm_eval": True}).train()
    frozen = [backbone.get_submodule(name) for stage in backbone.stages() for name in stage]
    assert frozen and not any(p.requires_grad for module in frozen for p in module.parameters())
    assert not any(m.training for m in backbone.modules() if isinstance(m, nn.BatchNorm2d))
    with pytest.raises(ConfigError, match=rf"must be from -1 \(none\) to {last}"):
        build_backbone({**config, "frozen_stages": last + 1})
    half = build_backbone({**config, "frozen_stages": last // 2})
    kept = [half.get_submodule(name) for stage in half.stages()[: last // 2 + 1] for name in stage]
    assert not any(p.requires_grad for module in kept for p in module.parameters())
    assert any(p.requires_grad for p in half.parameters())


def test_norm_eval() -> None:
    for config in (
        dict(type="ResNet", depth=18, norm_eval=True),
        dict(type="TorchvisionBackbone", name="shufflenet_v2_x0_5", norm_eval=True),
    ):
        backbone = build_backbone(config).train()
        norms = [m for m in backbone.modules() if isinstance(m, nn.BatchNorm2d)]
        assert norms
        assert not any(norm.training for norm in norms)
        assert backbone.training
        assert all(p.requires_grad for p in backbone.parameters())


def test_norm_cfg() -> None:
    config = dict(type="ResNet", depth=18, norm_cfg=dict(type="BN", eps=1e-3, momentum=0.01, requires_grad=False))
    norms = [m for m in build_backbone(config).modules() if isinstance(m, nn.BatchNorm2d)]
    assert {(n.eps, n.momentum, n.weight.requires_grad) for n in norms} == {(1e-3, 0.01, False)}


def test_zero_init_residual() -> None:
    for depth, last in ((18, "bn2"), (50, "bn3")):
        backbone = build_backbone(dict(type="ResNet", depth=depth, zero_init_residual=True))
        assert backbone.get_submodule(f"layer3.1.{last}").weight.abs().max() == 0
        assert backbone.get_submodule("layer3.1.bn1").weight.min() == 1


def test_style() -> None:
    for style, first, second in (("pytorch", (1, 1), (2, 2)), ("caffe", (2, 2), (1, 1))):
        block = build_backbone(dict(type="ResNet", depth=50, style=style)).layer2[0]
        assert (block.conv1.stride, block.conv2.stride) == (first, second)
        assert block.downsample[0].stride == (2, 2)


def test_option_a_shortcut_by_hand() -> None:
    block = build_backbone(dict(type="ResNetCIFAROptionA", depth=8, base_channels=4)).layer2[0].eval()
    x = torch.rand(1, 4, 6, 6)
    shortcut = block.shortcut(x)
    assert shortcut.shape == (1, 8, 3, 3)
    assert torch.equal(shortcut[:, 2:6], x[:, :, ::2, ::2])
    assert shortcut[:, :2].abs().sum() + shortcut[:, 6:].abs().sum() == 0
    plain = nn.functional.relu(block.bn2(block.conv2(block.relu(block.bn1(block.conv1(x))))) + shortcut)
    torch.testing.assert_close(block(x), plain)


def test_option_b_shortcut_by_hand() -> None:
    """A 1x1 convolution of stride 2 with BatchNorm, in the first block of the second and third stage alone."""
    backbone = build_backbone(dict(type="ResNetCIFAROptionB", depth=14, base_channels=4)).eval()
    names = [name for name, module in backbone.named_modules() if name.endswith("downsample")]
    assert names == ["layer2.0.downsample", "layer3.0.downsample"]
    block, x = backbone.layer2[0], torch.rand(1, 4, 6, 6)
    conv, norm = block.downsample
    by_hand = torch.einsum("oc,nchw->nohw", conv.weight[:, :, 0, 0], x[:, :, ::2, ::2]) / (1 + norm.eps) ** 0.5
    torch.testing.assert_close(block.shortcut(x), by_hand)
    plain = nn.functional.relu(block.bn2(block.conv2(block.relu(block.bn1(block.conv1(x))))) + by_hand)
    torch.testing.assert_close(block(x), plain)
    assert backbone.layer1[0].shortcut(x) is x


@pytest.mark.parametrize(("depth", "millions"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.7)])
def test_option_a_has_the_papers_size(depth: int, millions: float) -> None:
    backbone = build_backbone(dict(type="ResNetCIFAROptionA", depth=depth))
    count = sum(p.numel() for p in backbone.parameters()) + 650  # plus the last layer
    assert abs(count / 1e6 - millions) < 0.035
    convolutions = [m for m in backbone.modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) + 1 == depth


def test_vgg_small_is_that_of_lq_nets() -> None:
    backbone = build_backbone(dict(type="VGGSmall"))
    kinds = {nn.Conv2d: "C", nn.BatchNorm2d: "B", nn.ReLU: "R", nn.MaxPool2d: "P"}
    assert "".join(kinds[type(layer)] for layer in backbone.features) == 3 * "CBRCPBR"
    convolutions = [layer for layer in backbone.features if isinstance(layer, nn.Conv2d)]
    assert [layer.out_channels for layer in convolutions] == [128, 128, 256, 256, 512, 512]
    assert all(layer.bias is None and layer.kernel_size == (3, 3) for layer in convolutions)
    assert backbone.get_submodule(backbone.layer_aliases["conv1"]) is convolutions[0]
    with pytest.raises(DataError, match="32x32 pixels; got 28x32"):
        backbone(torch.rand(1, 3, 28, 32))


def test_lenet_pads_mnist() -> None:
    backbone = build_backbone(dict(type="LeNet5", num_classes=10))
    img = torch.rand(2, 1, 28, 28)
    assert torch.equal(backbone(img)[0], backbone(nn.functional.pad(img, (2, 2, 2, 2)))[0])
    with pytest.raises(DataError, match="32x32 or 28x28 pixels; got 30x28"):
        backbone(torch.rand(1, 1, 30, 28))


def test_older_names_of_layers() -> None:
    backbone = build_backbone(dict(type="MobileNetV2"))
    for name in ("conv1", "conv1.conv"):
        assert backbone.get_submodule(backbone.layer_aliases[name]) is next(
            m for m in backbone.modules() if isinstance(m, nn.Conv2d)
        )


def test_stages_cover_the_network() -> None:
    for config in (
        dict(type="MobileNetV2"),
        dict(type="VGG", depth=16),
        dict(type="VGGSmall"),
        dict(type="ResNet", depth=18),
    ):
        backbone = build_backbone(config)
        names = [name for stage in backbone.stages() for name in stage]
        covered = {id(p) for name in names for p in backbone.get_submodule(name).parameters()}
        assert covered == {id(p) for p in backbone.parameters()}
        if config["type"] != "ResNet":
            positions = [int(name.split(".")[1]) for name in names]
            assert all(b == a + 1 for a, b in pairwise(positions))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (dict(type="ResNet", depth=20), "depth must be one of 18, 34, 50, 101, 152; got 20"),
        (dict(type="ResNet", depth=18, style="torch"), "style must be one of 'pytorch', 'caffe'"),
        (dict(type="ResNet", depth=18, num_stages=5), "num_stages must be one of 1, 2, 3, 4; got 5"),
        (dict(type="ResNet", depth=18, num_stages=2), r"out_indices must be integers from 0 to 1; got \(3,\)"),
        (dict(type="ResNet", depth=18, out_indices=()), "must be a tuple"),
        (dict(type="ResNet", depth=18, strides=(1, 2)), "strides"),
        (dict(type="ResNet", depth=18, frozen_stages=5), r"frozen_stages must be from -1 \(none\) to 4 .*got 5"),
        (dict(type="ResNet", depth=18, deep_stem=True), "deep_stem=True.*is not supported"),
        (dict(type="ResNet", depth=18, norm_cfg=dict(type="SyncBN")), "set sycbn=True"),
        (dict(type="ResNet", depth=18, norm_cfg=dict(typ="BN")), "Did you mean 'type'"),
        (dict(type="ResNetCIFAROptionA", depth=18), r"OptionA: depth must be 6n \+ 2"),
        (dict(type="ResNetCIFAROptionB", depth=18), r"OptionB: depth must be 6n \+ 2"),
        (dict(type="MobileNetV2", widen_factor=0), "above 0"),
        (dict(type="MobileNetV2", act_cfg=dict(type="HSwish")), "act_cfg.*is not supported"),
        (dict(type="MobileNetV2", out_indices=(8,)), "integers from 0 to 7"),
        (dict(type="VGG", depth=12), "depth must be one of 11, 13, 16, 19"),
        (dict(type="VGG", depth=11, num_classes=3, out_indices=(4,)), "returns only logits"),
        (dict(type="SqueezeNet", version="1_2"), "version must be one of '1_0', '1_1'"),
        (dict(type="TorchvisionBackbone", name="shufflenet_v2_x10"), "Did you mean 'shufflenet_v2_x1_0'"),
        (dict(type="TorchvisionBackbone", name="squeezenet1_1"), "use backbone=dict"),
        (dict(type="TimmBackbone", name="resnet10"), "Did you mean 'resnet10t'"),
        (dict(type="TimmBackbone", name="resnet10t", out_indices=[9]), "timm cannot build 'resnet10t'"),
    ],
)
def test_mistakes(config: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_backbone(config)
