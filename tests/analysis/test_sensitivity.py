"""Errors of single layers: the measured ones by hand, the estimated ones by explicit derivatives in float64."""

import torch
from torch import nn

from lbitcls.analysis.sensitivity import errors_alone
from lbitcls.quant import build_mtransformer, calibrate

SECTION = dict(
    type="ModelTransformer",
    quan_policy=dict(
        Conv2d=dict(type="LSQConv", num_bit_w=3, num_bit_a=3, per_channel=True),
        Linear=dict(type="LSQLinear", num_bit_w=3, num_bit_a=3),
    ),
)


class Small(nn.Module):
    """Convolution with BatchNorm, in-place ReLU, linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 6, 3, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.relu = nn.ReLU(inplace=True)
        self.fc = nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.relu(self.norm(self.conv(x))).mean((2, 3)))


def network(**section: object) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    model = Small().double()
    images = torch.randn(6, 2, 8, 8, dtype=torch.float64)
    model.norm.running_var.uniform_(0.5, 2.0)
    model = build_mtransformer({**SECTION, **section})(model).eval()
    calibrate(model, [images], "mse")
    return model, images


def test_measured_errors_are_those_of_one_layer() -> None:
    model, images = network()
    found = errors_alone(model, ["conv", "fc"], [images[:4], images[4:]])

    def logits(*on: str) -> torch.Tensor:
        for name in ("conv", "fc"):
            for quantizer in (getattr(model, name).weight_quantizer, getattr(model, name).input_quantizer):
                quantizer.enable(name in on)
        return model(images).detach().float().double()

    p = logits().log_softmax(1)
    for name in ("conv", "fc"):
        q = logits(name).log_softmax(1)
        torch.testing.assert_close(found[name], (p.exp() * (p - q)).sum(1).mean().item())


def test_estimated_errors_are_second_derivatives_times_squared_changes() -> None:
    for fold in (False, True):
        model, images = network(fold_bn=fold)
        before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
        found = errors_alone(model, ["conv", "fc"], [images], "fisher")
        assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == before
        assert all(parameter.grad is None for parameter in model.parameters())
        torch.testing.assert_close(found, by_hand(model, images), rtol=1e-5, atol=0)


def by_hand(model: nn.Module, images: torch.Tensor) -> dict[str, float]:
    """The same by functional calls: F_ii from the gradient of each image's log-likelihood."""
    conv, fc, norm, draw = model.conv, model.fc, model.norm, torch.Generator().manual_seed(0)
    found = {"conv": 0.0, "fc": 0.0}
    for image in images.split(1):
        x, w, v = (t.detach().clone().requires_grad_() for t in (image, conv.weight, fc.weight))
        y = torch.nn.functional.conv2d(x, w)
        z = torch.relu(nn.functional.batch_norm(y, norm.running_mean, norm.running_var, norm.weight, norm.bias))
        z = z.mean((2, 3))
        z.retain_grad()
        log_p = nn.functional.linear(z, v, fc.bias).float().log_softmax(1)
        log_p[0, int(torch.multinomial(log_p.detach().exp(), 1, generator=draw))].backward()
        factor = (norm.weight * torch.rsqrt(norm.running_var + norm.eps)).view(-1, 1, 1, 1) if conv.folded_norm else 1.0
        with torch.no_grad():
            changed = conv.weight_quantizer(w * factor) / factor - w
            found["conv"] += (w.grad * changed).square().sum().item()
            found["conv"] += (x.grad * (conv.input_quantizer(x) - x)).square().sum().item()
            found["fc"] += (v.grad * (fc.weight_quantizer(v) - v)).square().sum().item()
            found["fc"] += (z.grad * (fc.input_quantizer(z) - z)).square().sum().item()
    return {name: value / (2 * len(images)) for name, value in found.items()}


def test_the_estimate_approaches_the_measured_error_where_changes_are_small() -> None:
    """At 8 bits, over many images, KL and its expansion agree within a factor."""
    torch.manual_seed(1)
    model = Small().double()
    images = torch.randn(64, 2, 8, 8, dtype=torch.float64)
    entry = dict(num_bit_w=8, num_bit_a=32)
    policy = dict(Conv2d=dict(type="LSQConv", **entry), Linear=dict(type="LSQLinear", **entry))
    model = build_mtransformer(dict(type="ModelTransformer", quan_policy=policy))(model).eval()
    calibrate(model, [images], "minmax")
    measured = errors_alone(model, ["conv", "fc"], [images])
    estimated = errors_alone(model, ["conv", "fc"], [images], "fisher")
    assert all(0.2 < estimated[name] / measured[name] < 5 for name in measured), (measured, estimated)
