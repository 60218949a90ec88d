"""Random networks: drawn by a seed, trained until their classes separate, quantized, exported, and compared."""

from __future__ import annotations

import copy
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
from layouts import ENDINGS
from structures import ONNX_RUNTIME_ONLY, STRUCTURES
from torch import Tensor, nn

from lbitcls.deploy.export.onnx import export_model
from lbitcls.deploy.export.residuals import carry_residuals
from lbitcls.deploy.runtime.engine import load
from lbitcls.deploy.targets import cpu
from lbitcls.quant import build_mtransformer, calibrate
from lbitcls.utils.errors import ConfigError

CLASSES = 4
METHODS = ("LSQ", "LSQ", "LSQPlus", "DSQ", "EWGS", "PACT", "DoReFa", "UQ", "APoT", "TorchQAT")
BITS = ((8, 8), (8, 8), (4, 4), (4, 4), (4, 8), (8, 4), (3, 3), (6, 5), (2, 4), (2, 2))
SUFFIXES = {"Conv2d": "Conv", "Linear": "Linear", "Conv1d": "Conv1d", "ConvTranspose2d": "ConvTranspose2d"}
ACCURACY = 0.9
"""What each network reaches on what it was trained with."""
Batch = tuple[Tensor, Tensor]


@dataclass
class Network:
    """Drawn network, with its quantization and export options."""

    seed: int
    structures: list[str]
    shape: tuple[int, int, int]
    model: nn.Module
    method: str
    bits: tuple[int, int]
    options: dict[str, Any]
    fold_bn: bool
    float_layers: float
    export: dict[str, Any] = field(default_factory=dict)
    residuals: bool = False
    container: str = "uint8"

    def __str__(self) -> str:
        return (
            f"seed {self.seed}: {'-'.join(self.structures)} on {self.shape}, {self.method} {self.bits} {self.options} "
            f"fold_bn={self.fold_bn} float={self.float_layers} {self.export} residuals={self.residuals} "
            f"{self.container}"
        )


def draw_network(seed: int) -> Network:
    """Return the network of a seed; structures take turns, so that 50 consecutive seeds contain each at least twice."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    shape = draw.choice([(3, 8, 8), (3, 8, 6), (3, 6, 8), (1, 9, 8)])
    width = draw.choice([8, 6, shape[1], shape[2], 12])
    names = [list(STRUCTURES)[seed % len(STRUCTURES)], *draw.sample(list(STRUCTURES), draw.choice([0, 1, 1, 2]))]
    draw.shuffle(names)
    parts: list[nn.Module] = [nn.Sequential(nn.Conv2d(shape[0], width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())]
    last = list(ENDINGS)[(seed // 3) % len(ENDINGS)]
    for name in names:
        parts.append(STRUCTURES[name](draw, *_shape_after(parts, shape)))
    c, h, w = _shape_after(parts, shape)
    model = nn.Sequential(*parts, ENDINGS[last](draw, c, h, w, CLASSES))
    method, bits, target = draw.choice(METHODS), draw.choice(BITS), draw.choice(["cpu", "cpu", "cpu", "tensorrt"])
    options: dict[str, Any] = dict(per_channel=draw.random() < 0.4)
    if any(isinstance(m, nn.ConvTranspose2d) and m.groups > 1 for m in model.modules()):
        options = dict(per_channel=False)
    if method == "APoT":
        bits, options["quant_activation"] = (min(bits[0], 6), bits[1]), False
    if target == "tensorrt":
        method = method if method in ("LSQ", "EWGS", "PACT", "UQ") else "LSQ"
        options["signed"] = True
    opset = draw.choice([17, 18, 19, 20, 21, 21])
    export = dict(opset=opset, target=target, pack=opset == 21 and target == "cpu" and draw.random() < 0.7)
    fold_bn, residuals = draw.random() < 0.25, draw.random() < 0.3
    floats, container = draw.choice([0, 0, 0.3]), draw.choice(["int8", "uint8"])
    names = [*names, last]
    return Network(
        seed, names, shape, model, method, bits, options, fold_bn, floats, export, residuals, container
    )  # fmt: skip


def _shape_after(parts: list[nn.Module], shape: tuple[int, int, int]) -> tuple[int, int, int]:
    with torch.no_grad():
        return tuple(nn.Sequential(*parts).train()(torch.zeros(2, *shape)).shape[1:])


def batch_of(network: Network, number: int, seed: int) -> Batch:
    """Return images around a prototype of each class, and their classes."""
    prototypes = torch.randn(CLASSES, *network.shape, generator=torch.Generator().manual_seed(network.seed + 1000))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, CLASSES, (number,), generator=generator)
    noise = torch.randn(number, *network.shape, generator=generator)
    return prototypes[labels] + 0.35 * noise, labels


def trained(network: Network) -> tuple[nn.Module, float]:
    """Return the network, trained in float and then quantized, in eval mode, and its training accuracy."""
    draw = random.Random(network.seed + 1)
    data = batch_of(network, 256, 1)
    model = copy.deepcopy(network.model)
    for norm in _norms(model):
        nn.init.uniform_(norm.weight, -1.0, 1.5)
    _train(model, data, 40, 1e-2)
    policy = {
        kind: dict(
            type=f"{network.method}{suffix}", num_bit_w=network.bits[0], num_bit_a=network.bits[1], **network.options
        )
        for kind, suffix in SUFFIXES.items()
    }
    layers = [name for name, module in model.named_modules() if type(module).__name__ in SUFFIXES]
    floats = [name for name in layers[:-1] if draw.random() < network.float_layers]
    cfg = dict(type="ModelTransformer", quan_policy=policy, fold_bn=network.fold_bn, exclude_layers=floats)
    model = build_mtransformer(cfg)(model)
    calibrate(model, [data[0]])
    for learning_rate in (3e-3, 3e-3, 3e-3, 1e-2, 1e-2):
        _train(model, data, 30, learning_rate)
        with torch.no_grad():
            accuracy = float((model.eval()(data[0]).argmax(1) == data[1]).float().mean())
        if accuracy > 0.98:
            break
    return model.eval(), accuracy


def _norms(model: nn.Module) -> list[Any]:
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    return [norm for norm in norms if norm.weight is not None]


def _train(model: nn.Module, data: Batch, steps: int, learning_rate: float) -> None:
    """Train with Adam; one channel of each BatchNorm but the last keeps γ = 0."""
    model.train()
    optimizer, norms = torch.optim.Adam(model.parameters(), learning_rate), _norms(model)[:-1]
    for step in range(steps):
        chosen = torch.arange(64) + 64 * step
        images, labels = (values[chosen % len(values)] for values in data)
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        with torch.no_grad():
            for norm in norms:
                norm.weight[0] = 0


@dataclass
class Outcome:
    """Outcome for one network.

    Attributes:
        accuracy: Training accuracy.
        refused: Message of a refusal.
        faults: Faults, one line per engine.
        decided: True if float32 and float64 agree closely enough to judge the engines by single images.
    """

    accuracy: float = 0.0
    refused: str = ""
    faults: list[str] = field(default_factory=list)
    decided: bool = True


def run(network: Network, folder: Path, engines: tuple[str, ...] = ("onnxruntime", "openvino")) -> Outcome:
    """Train, export and compare; any exception but a refusal to export by a `ConfigError` propagates."""
    model, accuracy = trained(network)
    images = torch.cat([batch_of(network, 96, 2)[0], 0.7 * batch_of(network, 32, 3)[0]])
    if network.residuals:
        try:
            model, _ = carry_residuals(model, [images], signed=True if network.export["target"] == "tensorrt" else None)
        except ConfigError as error:
            if "no skip connections" not in str(error):
                raise
    path = folder / f"{network.seed}.onnx"
    times = {name: 1.0 if name == network.container else 2.0 for name in ("int8", "uint8")}
    try:
        with patch.object(cpu, "_latencies", return_value=times):  # the faster one differs from run to run
            export_model(model, path, input_shape=network.shape, **network.export)
    except ConfigError as error:
        return Outcome(accuracy, refused=str(error))
    if network.export["target"] == "tensorrt" or ONNX_RUNTIME_ONLY.intersection(network.structures):
        engines = ("onnxruntime",)
    with torch.no_grad():
        single = model(images).numpy().astype(np.float64)
        double = copy.deepcopy(model).double()(images.double()).numpy()
    outcome = Outcome(accuracy, decided=_differing(double, single, single.std()) <= len(images) // 8)
    if len(set(single.argmax(1))) < CLASSES:
        outcome.faults.append(f"the model predicts {len(set(single.argmax(1)))} classes of {CLASSES}")
    for engine in engines:
        loaded = load(path, engine, threads=1)
        given = np.concatenate([loaded.predict(part) for part in np.split(images.numpy(), [5, 69])])
        fault = compare(given.astype(np.float64), single, double)
        if fault:
            outcome.faults.append(f"{engine}: {fault}")
    return outcome


def _differing(given: np.ndarray, expected: np.ndarray, deviation: float) -> int:
    """Return the number of images whose logits differ visibly: a value in some layer fell on a tie's other side."""
    return int((np.abs(given - expected).max(1) > 1e-4 * deviation).sum())


def compare(given: np.ndarray, single: np.ndarray, double: np.ndarray) -> str:
    """Return the fault of an engine's logits, compared with the model in float32 and float64; '' if there is none.

    Rounding ties fall to either side depending on the order of additions, so a few images may differ: twice as many as
    differ between float32 and float64, plus one in 16.
    """
    deviation, number = single.std(), len(single)
    if not np.isfinite(given).all():
        return "not finite"
    differing = min(_differing(given, expected, deviation) for expected in (single, double))
    allowed = 2 * _differing(double, single, deviation) + number // 16
    mean = min(np.abs(given - expected).mean() for expected in (single, double)) / deviation
    bound = 0.01 + 2 * np.abs(double - single).mean() / deviation
    top = np.sort(single, 1)
    clear = top[:, -1] - top[:, -2] > 0.5 * deviation
    changed = int((given.argmax(1) != single.argmax(1))[clear].sum())
    text = (
        f"{differing} of {number} images differ ({allowed} may), by {mean:.2g} deviations on average ({bound:.2g} "
        f"may), {changed} change class clearly"
    )
    return text if differing > allowed or mean > bound or changed > number // 64 else ""
