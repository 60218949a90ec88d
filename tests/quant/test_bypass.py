"""Quantized layers that a forward pass bypasses: PyTorch's fused kernels, weights that are read, unused layers."""

import copy
import logging
import pickle
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from lbitcls.core.evaluation import evaluate
from lbitcls.deploy import export_model
from lbitcls.quant import build_mtransformer, calibrate, model_size, set_quantization
from lbitcls.quant.bypass import Bypassed, noticing_once, watching
from lbitcls.quant.cost import plan_cost
from lbitcls.quant.methods import build_quant_layer
from lbitcls.utils.errors import ConfigError, DataError

WEIGHTS = dict(num_bit_w=2, quant_activation=False)
BOTH = dict(num_bit_w=4, num_bit_a=4)


def transformer(**options: Any) -> Any:
    policy = {kind: dict(type=f"LSQ{suffix}", **options) for kind, suffix in (("Conv2d", "Conv"), ("Linear", "Linear"))}
    return build_mtransformer(dict(type="ModelTransformer", quan_policy=policy))


ENCODERS: dict[str, Callable[[], nn.Module]] = {
    "norm first": lambda: nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True, norm_first=True),
    "norm last, gelu": lambda: nn.TransformerEncoderLayer(8, 2, 16, 0.0, "gelu", batch_first=True),
    "an activation module": lambda: nn.TransformerEncoderLayer(8, 2, 16, 0.0, nn.GELU(), batch_first=True),
    "stack": lambda: nn.TransformerEncoder(
        nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True, norm_first=True), 2, enable_nested_tensor=False
    ),
    "stack for nested tensors": lambda: nn.TransformerEncoder(
        nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True), 2
    ),
}


class Tokens(nn.Module):
    def __init__(self, encoder: nn.Module, masked: bool = False) -> None:
        super().__init__()
        self.encoder, self.masked = encoder, masked
        self.fc = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        mask = None
        if self.masked:  # which makes a stack use nested tensors
            mask = torch.zeros(x.shape[:2], dtype=torch.bool)
            mask[0, -2:] = True
        return self.fc(self.encoder(x, src_key_padding_mask=mask)[:, 0])


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kind", ENCODERS)
def test_fused_kernels_are_not_used_without_gradients_either(kind: str, masked: bool) -> None:
    x = torch.randn(4, 5, 8)
    model = transformer(**BOTH)(Tokens(ENCODERS[kind](), masked))
    calibrate(model, [x])
    for form in (model.eval(), copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        with torch.no_grad(), watching(form) as watch:
            without = form(x)
        assert watch.result() == Bypassed()
        torch.testing.assert_close(without, form(x).detach())
        for name, layer in form.named_modules():
            if name.endswith("linear1"):
                layer.weight_quantizer.scale.data.mul_(50)
        with torch.no_grad():
            assert not torch.allclose(form(x), without)


@torch.no_grad()
def test_other_models_keep_the_fused_kernel() -> None:
    transformer(**BOTH)(Tokens(ENCODERS["norm first"]()))
    other = Tokens(ENCODERS["norm first"]()).eval()
    with watching(other, {"linear1": other.encoder.linear1}) as watch:
        other(torch.randn(4, 5, 8))
    assert watch.result() == Bypassed(read=("linear1",)) and torch.backends.mha.get_fastpath_enabled()


def test_a_fused_kernel_is_seen_where_no_transformer_built_the_layer() -> None:
    model = Tokens(ENCODERS["norm first"]())
    model.encoder.linear2 = build_quant_layer(dict(type="LSQLinear", **WEIGHTS), model.encoder.linear2)
    with pytest.raises(ConfigError, match=r"reads the weight of encoder\.linear2 itself .*\['encoder\.linear2'\]"):
        calibrate(model.eval(), [torch.randn(4, 5, 8)])
    assert "forward" not in model.encoder.linear2.__dict__


READS: dict[str, Callable[[Tensor, nn.Module], Tensor]] = {
    "F.linear": lambda x, fc: F.linear(x, fc.weight),
    "matmul": lambda x, fc: x @ fc.weight.t(),
    "einsum": lambda x, fc: torch.einsum("ni,oi->no", x, fc.weight),
    ".data": lambda x, fc: F.linear(x, fc.weight.data),
    "detached view": lambda x, fc: F.linear(x, fc.weight.detach().view(8, 8)),
    "normalized": lambda x, fc: F.linear(x, F.normalize(fc.weight)),
    "keyword": lambda x, fc: F.linear(input=x, weight=fc.weight, bias=fc.bias),
    "in a list": lambda x, fc: x @ torch.cat([fc.weight[:4], fc.weight[4:]]),
    "float layer's forward": lambda x, fc: nn.functional.linear(x, dict(fc.named_parameters())["weight"]),
}
MENTIONS: dict[str, Callable[[Tensor, nn.Module], Tensor]] = {
    "shape": lambda x, fc: fc(x.view(-1, fc.weight.shape[1])),
    "dtype": lambda x, fc: fc(x.to(fc.weight.dtype).to(fc.weight.device)),
    "like": lambda x, fc: fc(x) + fc.weight.new_zeros(8) + torch.zeros_like(fc.weight)[0],
    "view": lambda x, fc: fc(x) + len(fc.weight.view(-1)) - len(fc.weight.t().detach()),
    "keyword": lambda x, fc: fc(input=x),
    "twice": lambda x, fc: fc(fc(x)),
}


class One(nn.Module):
    def __init__(self, use: Callable[[Tensor, nn.Module], Tensor]) -> None:
        super().__init__()
        self.conv, self.fc, self.use = nn.Conv2d(3, 8, 3), nn.Linear(8, 8), use

    def forward(self, x: Tensor) -> Tensor:
        return self.use(self.conv(x).mean((2, 3)), self.fc)


@pytest.mark.parametrize("options", [WEIGHTS, BOTH], ids=["weights", "both"])
@pytest.mark.parametrize("how", READS)
def test_a_weight_that_is_read_is_refused_by_name(how: str, options: dict[str, Any]) -> None:
    x, net = torch.randn(2, 3, 6, 6), One(READS[how])
    planner = transformer(**options)
    row = plan_cost(planner.plan(net), net, x[:1])[-1].row
    assert (row.name, row.quantized, row.num_bit_w) == ("fc", False, None) and "reads its weight itself" in row.rule
    model = planner(net)
    with pytest.raises(ConfigError, match=r"reads the weight of fc itself.*exclude_layers=\['fc'\]"):
        calibrate(model, [x])
    with pytest.raises(ConfigError, match="export: the model reads the weight of fc"):
        export_model(model, "never.onnx", input_shape=(3, 6, 6))
    assert model.training and "forward" not in model.fc.__dict__


@pytest.mark.parametrize("how", MENTIONS)
def test_a_weight_that_is_mentioned_is_not_read(how: str) -> None:
    model, x = transformer(**BOTH)(One(MENTIONS[how])), torch.randn(2, 3, 6, 6)
    calibrate(model, [x])
    with torch.no_grad(), watching(model.eval()) as watch:
        model(x)
    assert watch.result() == Bypassed()


class Classifier(nn.Module):
    """Network that uses each of its layers as specified: calls it, reads its weight, both, or neither."""

    def __init__(self, uses: list[str], in_training: str | None = None) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in uses)
        self.uses, self.in_training = uses, in_training

    def predict(self, img: Tensor) -> Tensor:
        for layer, use in zip(self.layers, self.uses, strict=True):
            use = self.in_training if self.training and self.in_training else use
            if use in ("call", "both"):
                img = layer(img)
            if use in ("read", "both"):
                img = img @ layer.weight
        return img

    forward = predict

    def loss(self, logits: Tensor, gt_label: Tensor) -> dict[str, Tensor]:
        return {"loss": F.cross_entropy(logits, gt_label)}


def expected(uses: list[str]) -> Bypassed:
    found = {use: tuple(f"layers.{i}" for i, u in enumerate(uses) if u == use) for use in ("read", "unused", "both")}
    return Bypassed(found["read"], found["unused"], found["both"])


@pytest.mark.parametrize("flat", [False, True])
def test_any_mixture_is_told_apart(flat: bool) -> None:
    """Also if all weights are slices of one block of memory, as in some wrappers."""
    draw = random.Random(5)
    for _ in range(40):
        uses = draw.choices(["call", "read", "both", "unused"], k=draw.randint(1, 6))
        model = transformer(**WEIGHTS)(Classifier(uses))
        if flat:
            memory = torch.randn(len(uses), 6, 6)
            for layer, slot in zip(model.layers, memory, strict=True):
                layer.weight.data = slot
        with torch.no_grad(), watching(model) as watch:
            model(torch.randn(2, 6))
        assert watch.result() == expected(uses)


def in_batches(model: nn.Module) -> list[dict[str, Tensor]]:
    return [dict(img=torch.randn(4, 6), gt_label=torch.arange(4)) for _ in range(3)]


def test_layers_that_eval_does_not_use_are_warned_of_once_and_count_as_float(caplog: Any) -> None:
    model = transformer(**WEIGHTS)(Classifier(["call", "unused", "call"], in_training="call"))
    calibrate(model.train(), [torch.randn(4, 6)])
    assert not caplog.records and not any(layer.bypassed for layer in model.layers)
    size = model_size(model)["quantized_kib"]
    for _ in range(2):
        evaluate(model, in_batches(model), torch.device("cpu"))
    [record] = caplog.records
    assert record.levelno == logging.WARNING and "validation: The forward pass does not use layers.1;" in record.message
    assert [layer.bypassed for layer in model.layers] == [False, True, False]
    assert model_size(model)["quantized_kib"] == pytest.approx(size + 36 * 30 / 8192)
    model.uses = ["call"] * 3
    evaluate(model, in_batches(model), torch.device("cpu"))
    assert not model.layers[1].bypassed and model_size(model)["quantized_kib"] == size and len(caplog.records) == 1
    assert "bypassed" not in model.layers[1].to_float().__dict__


def test_a_weight_that_only_eval_reads_is_warned_of(caplog: Any) -> None:
    model = transformer(**WEIGHTS)(Classifier(["call", "read"], in_training="call"))
    calibrate(model.train(), [torch.randn(4, 6)])
    set_quantization(model, False)
    evaluate(model, in_batches(model), torch.device("cpu"))
    assert not caplog.records  # a float phase: nothing is planned yet
    set_quantization(model, True)
    evaluate(model, in_batches(model), torch.device("cpu"))
    assert "reads the weight of layers.1 itself" in caplog.text and "exclude_layers=['layers.1']" in caplog.text
    assert model_size(model)["quantized_kib"] > 36 * 32 / 8192


@torch.no_grad()
def test_inference_watches_a_models_first_pass_alone(caplog: Any) -> None:
    model = transformer(**WEIGHTS)(Classifier(["call", "unused"])).eval()
    for _ in range(2):
        with noticing_once(model, "inference"):
            set_quantization(model, True)
            model.layers[0].weight_quantizer.initialize(model.layers[0].weight)
            model(torch.randn(2, 6))
    assert caplog.text.count("inference: The forward pass does not use layers.1") == 1


def test_features_of_frozen_layers_do_not_count_as_going_round(caplog: Any) -> None:
    model: Any = transformer(**WEIGHTS)(Classifier(["call", "call"]))
    calibrate(model, [torch.randn(4, 6)])
    model.predict_features = model.layers[1]
    batches = [dict(features=b["img"], gt_label=b["gt_label"]) for b in in_batches(model)]
    evaluate(model, batches, torch.device("cpu"))
    assert not caplog.records


def test_tied_layers_are_both_called_and_a_tied_embedding_is_told(caplog: Any) -> None:
    model = Classifier(["call", "call"])
    model.layers[1].weight = model.layers[0].weight
    calibrate(transformer(**BOTH)(model), [torch.randn(4, 6)])
    assert not caplog.records
    model = Classifier(["call", "both"])
    calibrate(transformer(**BOTH)(model), [torch.randn(4, 6)])
    assert "also reads the weight of layers.1 itself, in float" in caplog.text


def test_an_input_that_gets_no_data_stays_an_error() -> None:
    with pytest.raises(DataError, match=r"no data reached layers\.1\.input_quantizer"):
        calibrate(transformer(**BOTH)(Classifier(["call", "unused"])), [torch.randn(4, 6)])


@pytest.mark.parametrize("version", ["ShiftedWindowAttention", "ShiftedWindowAttentionV2"])
def test_torchvisions_window_attention_stays_float_and_says_so(version: str) -> None:
    kind = getattr(torchvision.models.swin_transformer, version)
    attention = kind(8, [4, 4], [2, 2], 2)
    model, x = nn.Sequential(attention, nn.Linear(8, 8)), torch.randn(1, 8, 8, 8)
    planner = transformer(**BOTH)
    rules = {row.name: row.rule for row in planner.plan(model) if not row.quantized}
    assert rules["0.qkv"] == rules["0.proj"] == f"{version} reads its weight itself"
    section = dict(layers_name=["0.qkv"], convert_type=[dict(type="LSQLinear", **BOTH)])
    special = build_mtransformer(dict(type="ModelTransformer", quan_policy={}, special_layers=section))
    with pytest.raises(ConfigError, match=rf"'0\.qkv' is not called: {version} reads its weight itself"):
        special.plan(model)
    planner(model)
    calibrate(model, [x])
    model(x).sum().backward()
    assert all(parameter.grad is not None for parameter in model[1].parameters())


def test_every_attention_of_torchvision_is_calibrated() -> None:
    """None of its unlisted blocks reads a layer's weight."""
    blocks = torchvision.models.maxvit, torchvision.models.vision_transformer
    encoder = blocks[1].EncoderBlock(2, 8, 16, 0.0, 0.0)
    attention = blocks[0].RelativePositionalMultiHeadAttention(8, 4, 4)
    for model, x in ((nn.Sequential(encoder), torch.randn(2, 4, 8)), (attention, torch.randn(1, 2, 4, 8))):
        calibrate(transformer(**BOTH)(model), [x])


def pruned(layer: nn.Module) -> None:
    prune.l1_unstructured(layer, "weight", 0.5)


@pytest.mark.parametrize(
    "change", [parametrizations.weight_norm, nn.utils.spectral_norm, pruned], ids=lambda function: function.__name__
)
def test_a_computed_weight_that_is_read_is_refused_by_name(change: Any) -> None:
    net, x = One(READS["F.linear"]), torch.randn(2, 3, 6, 6)
    change(net.fc)
    with pytest.raises(ConfigError, match=r"reads the weight of fc itself.*exclude_layers=\['fc'\]"):
        calibrate(transformer(**WEIGHTS)(net), [x])
    called = One(MENTIONS["keyword"])
    change(called.fc)
    model = transformer(**WEIGHTS)(called)
    calibrate(model, [x])
    with torch.no_grad(), watching(model.eval()) as watch:
        model(x)
    assert watch.result() == Bypassed()
