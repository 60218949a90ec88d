"""Model transformer: its plan, the order of its rules, and its errors for mistakes."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lbitcls.quant import build_mtransformer
from lbitcls.quant.calibration import calibrate
from lbitcls.quant.layers import QuantConv2d, QuantLinear
from lbitcls.registry import QUANT_LAYERS
from lbitcls.utils.errors import ConfigError


class Net(nn.Module):
    """A small network with a convolution used twice, attention, and older names for its stem."""

    layer_aliases = {"conv1": "stem", "conv1.conv": "stem"}

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.body = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 1))
        self.again = self.body[2]
        self.attention = nn.MultiheadAttention(4, 2)
        self.fc = nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.again(self.body(self.norm(self.stem(x)).relu()).relu())
        tokens = x.flatten(2).permute(2, 0, 1)
        return self.fc(self.attention(tokens, tokens, tokens)[0].mean(0))


class Model(nn.Module):
    """A model with a backbone, as a classifier has."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Net()

    def forward(self, x: Tensor) -> Tensor:
        return self.backbone(x)


CONV = dict(type="LSQConv", num_bit_w=4, num_bit_a=4)
LINEAR = dict(type="LSQLinear", num_bit_w=4, num_bit_a=4)


def transformer(**kwargs: Any) -> Any:
    return build_mtransformer(dict(type="mTransformerV2", quan_policy=dict(Conv2d=CONV, Linear=LINEAR)) | kwargs)


def test_rules_apply_in_order_excluded_special_policy() -> None:
    model = Model()
    special = dict(layers_name=["backbone.stem"], convert_type=[dict(CONV, num_bit_w=8)])
    plan = transformer(special_layers=special, exclude_layers=["backbone.fc"]).plan(model)
    rows = {row.name: row for row in plan}
    assert (rows["backbone.stem"].num_bit_w, rows["backbone.stem"].rule) == (
        8,
        "special_layers.layers_name[0]",
    )
    assert (rows["backbone.body.0"].num_bit_w, rows["backbone.body.0"].rule) == (4, "quan_policy.Conv2d")
    assert (rows["backbone.fc"].quantized, rows["backbone.fc"].rule) == (False, "exclude_layers[0]")
    assert type(model.backbone.stem) is nn.Conv2d  # planning changes nothing
    assert "attention" in rows["backbone.attention"].rule and "subclass" in rows["backbone.attention.out_proj"].rule


def test_layers_are_swapped_with_the_same_parameters_and_shared_ones_stay_shared() -> None:
    model = Model()
    weights = dict(model.named_parameters())
    transformer()(model)
    assert type(model.backbone.stem) is QuantConv2d and type(model.backbone.fc) is QuantLinear
    assert model.backbone.again is model.backbone.body[2]
    assert all(dict(model.named_parameters())[name] is p for name, p in weights.items())
    x = torch.randn(2, 3, 8, 8)
    calibrate(model, [x])
    model(x).sum().backward()
    assert model.backbone.stem.weight_quantizer.scale.grad is not None


def test_to_float_gives_the_float_layer_back() -> None:
    model, x = Model(), torch.randn(2, 3, 8, 8)
    stem = copy.deepcopy(model.backbone.stem)
    transformer()(model)
    back = model.backbone.stem.to_float()
    assert type(back) is nn.Conv2d and torch.equal(back(x), stem(x)) and list(back.state_dict()) == ["weight"]


def test_an_exclusion_of_a_module_covers_what_is_in_it() -> None:
    model = transformer(exclude_layers=["backbone.body"])(Model())
    assert type(model.backbone.body[0]) is nn.Conv2d and type(model.backbone.stem) is QuantConv2d


@pytest.mark.parametrize("name", ["backbone.conv1", "backbone.conv1.conv"])
def test_a_module_may_declare_older_names(name: str) -> None:
    special = dict(layers_name=[name], convert_type=[None])
    model = transformer(special_layers=special)(Model())
    assert type(model.backbone.stem) is nn.Conv2d


def test_float_entries_leave_a_layer_as_it_is() -> None:
    policy = dict(Conv2d=dict(CONV, bSetQ=False), Linear=dict(LINEAR, num_bit_w=32, num_bit_a=32))
    plan = transformer(quan_policy=policy).plan(Model())
    assert not plan.quantized and "leaves it float" in plan.table()


def test_weights_only_and_older_keys() -> None:
    policy = dict(Conv2d=dict(type="LSQConv2d", nbits_w=3, quant_activation=False))
    model = transformer(quan_policy=policy)(Model())
    assert model.backbone.stem.weight_quantizer.num_bits == 3 and model.backbone.stem.input_quantizer is None


MISTAKES = [
    (
        dict(special_layers=dict(layers_name=["backbone.stem", "backbone.fc1"], convert_type=[CONV, LINEAR])),
        "special_layers.layers_name[1] = 'backbone.fc1' names no layer of Model. Did you mean 'backbone.fc'?",
    ),
    (
        dict(exclude_layers=["backbone.bodi"]),
        "exclude_layers[0] = 'backbone.bodi' names no layer of Model. Did you",
    ),
    (
        dict(special_layers=dict(layers_name=["backbone.fc"], convert_type=[])),
        "1 layers_name and 0 convert_type",
    ),
    (dict(special_layers=dict(layer_names=[])), "does not accept 'layer_names'. Did you mean 'layers_name'"),
    (
        dict(special_layers=dict(layers_name=["backbone.norm"], convert_type=[CONV])),
        "is a BatchNorm2d, which cannot",
    ),
    (
        dict(special_layers=dict(layers_name=["backbone.fc"], convert_type=[CONV])),
        "replaces a Conv2d, not a Linear",
    ),
    (
        dict(special_layers=dict(layers_name=["backbone.stem", "backbone.conv1"], convert_type=[CONV, CONV])),
        "names 'backbone.stem' a second time",
    ),
    (
        dict(
            special_layers=dict(layers_name=["backbone.fc"], convert_type=[LINEAR]),
            exclude_layers=["backbone.fc"],
        ),
        "in both special_layers and exclude_layers",
    ),
    (dict(quan_policy=dict(Conv3d=CONV)), "'Conv3d' is not a kind of layer"),
    (dict(quan_policy=dict(Conv2d=dict(type="LSQCnov"))), "named 'LSQCnov'. Did you mean 'LSQConv'"),
    (
        dict(quan_policy=dict(Conv2d=dict(CONV, num_bits_w=4))),
        "does not accept 'num_bits_w'. Did you mean 'num_bit_w'",
    ),
    (dict(quan_policy=dict(Conv2d=dict(CONV, num_bit_w=1))), "bits must be an integer from 2 to 8"),
    (dict(quan_policy=dict(Conv2d=dict(CONV, bit_w=4))), "sets 'num_bit_w' twice"),
    (dict(quan_policy=dict(Conv2d=dict(type="LSQConv", num_bit_a=4))), "needs 'num_bit_w'"),
    (dict(quan_policy=dict(Conv2d="LSQConv")), "must be a dict(type='LSQConv'"),
    (
        dict(quan_policy=dict(Conv1d=dict(type="LSQConv1d", num_bit_w=4, num_bit_a=4))),
        "match no layer of Model",
    ),
    (dict(quan_polcy=dict()), "does not accept 'quan_polcy'. Did you mean 'quan_policy'"),
]


@pytest.mark.parametrize("kwargs, message", MISTAKES, ids=[message for _, message in MISTAKES])
def test_mistakes_are_answered_before_anything_changes(kwargs: dict, message: str) -> None:
    model = Model()
    with pytest.raises(ConfigError) as error:
        transformer(**kwargs)(model)
    assert message in str(error.value)
    assert not any(isinstance(m, (QuantConv2d, QuantLinear)) for m in model.modules())


def test_a_model_transformed_already_is_refused() -> None:
    model = transformer()(Model())
    with pytest.raises(ConfigError, match="is it already quantized"):
        transformer()(model)


def test_a_users_own_class_is_built_from_the_float_layers_arguments() -> None:
    @QUANT_LAYERS.register_module(name="DoublingConv", force=True)
    class DoublingConv(nn.Conv2d):
        def __init__(
            self, in_channels: int, out_channels: int, kernel_size: int, times: int = 2, **kwargs: Any
        ) -> None:
            super().__init__(in_channels, out_channels, kernel_size, **kwargs)
            self.times = times

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * self.times

    model, x = Model(), torch.randn(1, 3, 8, 8)
    expected = model.backbone.stem(x) * 3
    transformer(quan_policy=dict(Conv2d=dict(type="DoublingConv", times=3)))(model)
    assert type(model.backbone.stem) is DoublingConv and model.backbone.stem.padding == (1, 1)
    torch.testing.assert_close(model.backbone.stem(x), expected)


def test_folding_quantizes_the_weight_as_it_is_after_folding() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, bias=False))
    model[1].weight.data.uniform_(-2, 2)
    model[1].weight.data[0] = 0
    model[1].running_var.uniform_(0.1, 3)
    model[1].running_mean.normal_()
    float_keys, x = list(model.state_dict()), torch.rand(4, 3, 8, 8)
    expected = copy.deepcopy(model).eval()(x)
    policy = dict(Conv2d=dict(type="TorchQATConv", num_bit_w=8, num_bit_a=32, per_channel=True))
    transformer(quan_policy=policy, fold_bn=True)(model)
    assert set(float_keys) <= set(model.state_dict()) and not model[3].folded_norm
    calibrate(model.eval(), [x])
    folded = model[0].weight * (model[1].weight / (model[1].running_var + model[1].eps).sqrt()).view(-1, 1, 1, 1)
    scale = folded[1:].abs().amax((1, 2, 3)) / 127.5
    torch.testing.assert_close(model[0].weight_quantizer.qparams().scale[1:], scale)
    torch.testing.assert_close(model(x), expected, atol=0.05, rtol=0.05)
    copied = copy.deepcopy(model)
    assert copied[0].folded_norm[0] is copied[1]  # a copy folds its own norm
    model.train()(x).square().sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(
    "layer, x",
    [
        (nn.Conv1d(3, 4, 3, stride=2), torch.randn(2, 3, 9)),
        (nn.ConvTranspose2d(3, 4, 3, stride=2, output_padding=1), torch.randn(2, 3, 5, 5)),
        (nn.Linear(3, 4), torch.randn(2, 7, 3)),
        (nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect", groups=2), torch.randn(2, 4, 6, 6)),
    ],
    ids=lambda v: type(v).__name__,
)
def test_every_kind_of_layer_computes_on_its_quantized_tensors(layer: nn.Module, x: Tensor) -> None:
    float_layer = copy.deepcopy(layer)
    kind = type(layer).__name__
    suffix = {"Conv2d": "Conv"}.get(kind, kind)
    entry = dict(type=f"LSQ{suffix}", num_bit_w=4, num_bit_a=4, per_channel=True)
    quantized = transformer(quan_policy={kind: entry})(nn.Sequential(layer))[0]
    calibrate(quantized, [x])
    float_layer.weight.data.copy_(quantized.weight_quantizer(quantized.weight))
    assert torch.equal(quantized(x), float_layer(quantized.input_quantizer(x)))
    assert quantized.weight_quantizer.scale.numel() == 4
