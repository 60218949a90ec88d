"""Part `networks`: random networks, trained until their classes separate, quantized, exported, and run by two engines.

A case is drawn by its number: a backbone with its parameters, methods and bits of its layers, skip connections in 8
bits or not, options of the export. Its model is trained for seconds on easy images, saved, built again from its config
and checkpoint, and exported for `cpu`. It agrees if `verify`, the rule of certificates, passes OpenVINO and ONNX
Runtime; it is refused if the package says, before it writes anything, which layer or option it does not take and what
to do instead.
"""

from __future__ import annotations

import argparse
import random
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lbitcls.deploy.export.onnx import export_model
from lbitcls.deploy.export.residuals import carry_residuals
from lbitcls.deploy.targets import cpu
from lbitcls.deploy.verification.verify import verify
from lbitcls.models import build_classifier
from lbitcls.quant import build_mtransformer, calibrate, regularization, select_kernels
from lbitcls.utils.checkpoint import load_checkpoint, save_checkpoint
from lbitcls.utils.errors import LbitclsError
from stress.drawn_models import FAMILIES, classifier
from stress.judge import judge
from stress.ties import explained_by_ties
from stress.verdicts import Kind, Loss, NotJudged, Result

METHODS = ("LSQ", "LSQPlus", "PACT", "DSQ", "UQ", "DoReFa", "TorchQAT", "EWGS", "N2UQ")
SUFFIXES = {"Conv2d": "Conv", "Linear": "Linear", "Conv1d": "Conv1d", "ConvTranspose2d": "ConvTranspose2d"}
ACCURACY = 0.8
"""Share of held-out images that a trained network classifies."""
MOST_UNJUDGED = 0.15
"""Share of the cases that may stay without a verdict: not trained, or too sensitive to rounding."""
HEAD = (
    "| networks | cases | agree | refused | not judged | losses | slowest, s | most MiB | s |\n"
    "|---|--:|--:|--:|--:|--:|--:|--:|--:|"
)
COUNTS = dict(residual=50, mobile=20, plain=25, library=20, graph=85)
_NAMES = dict(
    residual="residual networks",
    mobile="MobileNetV2",
    plain="LeNet, VGG, SqueezeNet",
    library="torchvision and timm",
    graph="random graphs",
)
_BITS = (2, 3, 4, 4, 4, 5, 6, 7, 8, 8, 8)
_REMEDY = re.compile(
    r"\b(use|train|leave|set|remove|choose|export|give|pass|omit|replace|exclude|quantize|make|write|put)\b", re.I
)
_ROUNDING = "the model itself gives different results in float32 and in float64"


@dataclass(frozen=True)
class Case:
    """Drawn network.

    Attributes:
        model: Config of the classifier.
        quant: Config of its quantization.
        shape: (C, H, W) of an image.
        classes: Number of classes.
        export: Options of `export_model`.
        residuals: True: 8-bit skip connections are added after training.
        times: Time of each container of signed inputs in ms, which an export would measure.
    """

    model: dict[str, Any]
    quant: dict[str, Any]
    shape: tuple[int, int, int]
    classes: int
    export: dict[str, Any]
    residuals: bool
    times: dict[str, float]


def draw_case(family: str, number: int) -> Case:
    """Return the case of a family with this number."""
    draw = random.Random(f"network {family} {number}")
    torch.manual_seed(number)
    classes = draw.choice((2, 3, 4, 6))
    backbone, shape = FAMILIES[family](draw, number, classes)
    model = classifier(backbone, classes, draw)
    built = build_classifier(model)
    layers = {n: type(m).__name__ for n, m in built.named_modules() if type(m).__name__ in SUFFIXES}
    quant = _quantization(draw, layers)
    if any(hasattr(module, "readers") for module in built.modules()) and draw.random() < 0.4:
        quant["residual_bits"] = 8
    opset = draw.choice((17, 18, 20, 21, 21, 21))
    export = dict(opset=opset, pack=opset == 21 and draw.random() < 0.5)
    residuals = "residual_bits" not in quant and family != "plain" and draw.random() < 0.25
    times = dict(zip(("int8", "uint8"), draw.choice(((1.0, 2.0), (2.0, 1.0)))))
    return Case(model, quant, shape, classes, export, residuals, times)


def _quantization(draw: random.Random, layers: dict[str, str]) -> dict[str, Any]:
    """Return a section `quant_transformer` for the layers, which are given by name with their kinds."""
    method = draw.choice(METHODS)
    bits, own = (draw.choice(_BITS), draw.choice(_BITS)), dict(per_channel=draw.random() < 0.4)
    policy = {kind: _entry(method, suffix, *bits, **own) for kind, suffix in SUFFIXES.items()}
    special: dict[str, Any] = {}
    if draw.random() < 0.6:
        eight = draw.choice((method, "LSQ", "TorchQAT"))
        special = {name: _entry(eight, SUFFIXES[layers[name]], 8, 8) for name in (next(iter(layers)), list(layers)[-1])}
    inner = [name for name in layers if name not in special]
    for name in draw.sample(inner, min(len(inner), draw.choice((0, 0, 1, 2, 3)))):
        other = _entry(draw.choice(METHODS), SUFFIXES[layers[name]], draw.choice(_BITS), draw.choice(_BITS))
        special[name] = draw.choice((None, other, other | dict(quant_activation=False)))
    excluded = [name for name in inner if name not in special and draw.random() < draw.choice((0, 0, 0.1))]
    chosen = dict(layers_name=list(special), convert_type=list(special.values()))
    fold = draw.random() < 0.2
    return dict(
        type="ModelTransformer", quan_policy=policy, special_layers=chosen, exclude_layers=excluded, fold_bn=fold
    )


def _entry(method: str, suffix: str, weight: int, given: int, **options: Any) -> dict[str, Any]:
    return dict(type=f"{method}{suffix}", num_bit_w=weight, num_bit_a=given, **options)


def batch_of(case: Case, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return images, float32 (N, C, H, W), around a smooth prototype of each class, and their classes (N,)."""
    generator = torch.Generator().manual_seed(0)
    small = torch.randn(case.classes, case.shape[0], 4, 4, generator=generator)
    prototypes = F.interpolate(small, case.shape[1:], mode="bilinear")
    generator.manual_seed(seed)
    labels = torch.randint(0, case.classes, (count,), generator=generator)
    return prototypes[labels] + 0.4 * torch.randn(count, *case.shape, generator=generator), labels


def trained(case: Case) -> nn.Module:
    """Return the model of a case, trained in float and then with its quantizers, in eval mode.

    Raises:
        NotJudged: It classifies too few held-out images.
    """
    data, held_out = batch_of(case, 512, 1), batch_of(case, 200, 2)
    model: Any = build_classifier(case.model)
    _train(model, data, 30, 1e-2)
    model = build_mtransformer(case.quant)(model)
    calibrate(model, [data[0][:128]])
    for rate in (3e-3, 3e-3, 3e-3, 1e-2, 1e-2):
        _train(model, data, 20, rate)
        with torch.no_grad():
            accuracy = float((model.eval().predict(held_out[0]).argmax(1) == held_out[1]).float().mean())
        if accuracy > 0.95:
            break
    if accuracy <= ACCURACY:
        raise NotJudged(f"not trained: {accuracy:.0%}")
    return model


def _train(model: nn.Module, data: tuple[Tensor, Tensor], steps: int, rate: float) -> None:
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), rate)
    for step in range(steps):
        chosen = (torch.arange(32) + 32 * step) % len(data[1])
        loss = model(data[0][chosen], data[1][chosen])["loss"] + regularization(model)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()


def rebuilt(case: Case, model: nn.Module, images: Tensor, folder: Path) -> nn.Module:
    """Return the model as a command builds it from its config and checkpoint."""
    save_checkpoint(model, folder / "x.pth")
    again: Any = build_mtransformer(case.quant)(build_classifier(case.model))
    load_checkpoint(again, folder / "x.pth", strict=True)
    with torch.no_grad():
        if not torch.equal(again.eval().predict(images), model.predict(images)):  # type: ignore[operator]
            raise AssertionError("the model is another one after its checkpoint was saved and loaded")
    return again


class Networks(Kind):
    """A network of one family per case."""

    most_mib = 4000  # attention over a thousand tokens takes 2,000
    seconds = 600  # a case takes about 7; on a busy machine, many times that

    def __init__(self, family: str) -> None:
        self.family, self.name, self.count = family, _NAMES[family], COUNTS[family]

    def prepare(self, folder: Path) -> None:
        select_kernels("plain")  # compiling takes longer than training
        for package in ("onnxscript", "onnxruntime", "openvino", "torch.onnx", "torchvision", "timm"):
            __import__(package)

    def draw(self, number: int, folder: Path) -> str:
        self.case = draw_case(self.family, number)
        case, policy = self.case, self.case.quant["quan_policy"]["Conv2d"]
        more = {key: value for key, value in case.quant.items() if key not in ("type", "quan_policy")}
        return f"{case.model} {case.shape} {policy} {more} {case.export} residuals={case.residuals} {case.times}"

    def read(self, number: int, folder: Path) -> object:
        torch.manual_seed(number)
        case, images = self.case, batch_of(self.case, 128, 3)[0]
        model = rebuilt(case, trained(case), images, folder)
        path = folder / "x.onnx"
        try:
            exported = self._exported(model, path, images)
        except LbitclsError as error:
            check_refusal(str(error), model, path)
            raise
        found = verify(exported, path, images.split(32), threads=1)
        if not found.passed:
            if any(_ROUNDING in reason for reason in found.reasons):
                raise NotJudged("the model itself depends on rounding")
            if explained_by_ties(found, exported, images):
                raise NotJudged("values next to a tie, which engines round to either side")
            raise AssertionError("; ".join(found.reasons))
        if found.cannot_run:
            raise AssertionError(f"engines that cannot run it: {found.cannot_run}")
        return found

    def _exported(self, model: nn.Module, path: Path, images: Tensor) -> nn.Module:
        """Write the file, and return the model that it was made from."""
        if self.case.residuals:
            try:
                model, _ = carry_residuals(model, [images])
            except LbitclsError as error:
                if "no skip connections" not in str(error):
                    raise
        with patch.object(cpu, "_latencies", return_value=self.case.times):  # what is faster differs from run to run
            export_model(model, path, input_shape=self.case.shape, **self.case.export)
        return model


def check_refusal(message: str, model: nn.Module, path: Path) -> None:
    """Raise `AssertionError` unless a message names a layer or an option and a remedy, and nothing was written."""
    if path.exists():
        raise AssertionError(f"a file was written before this refusal: {message}")
    if not _REMEDY.search(message):
        raise AssertionError(f"a refusal that does not say what to do: {message}")
    layers = [name for name, module in model.named_modules() if name and not any(True for _ in module.children())]
    if not any(name in message for name in (*layers, "opset")):
        raise AssertionError(f"a refusal that names neither a layer nor an option: {message}")


def run(args: argparse.Namespace) -> list[Result]:
    """Run the cases of all families.

    Args:
        args: Options of the command line: `scale`, `workers`, `seed`, `kinds` (names of families), and `cases`, numbers
            of cases to run instead.
    """
    results = []
    with tempfile.TemporaryDirectory(prefix="lbitcls-stress-") as name:
        for family in (family for family in FAMILIES if not args.kinds or family in args.kinds):
            kind, folder = Networks(family), Path(name) / family
            folder.mkdir()
            kind.prepare(folder)
            start = args.seed * 10**6
            numbers = args.cases or range(start, start + max(1, round(kind.count * args.scale)))
            results.append(judge(kind, numbers, folder / "cases", args.workers))
            print(line(results[-1]), flush=True)
    total, left_out = sum(result.total for result in results), sum(result.unjudged for result in results)
    if left_out > max(3, MOST_UNJUDGED * total):
        results[-1].losses.append(Loss(-1, "all cases", f"{left_out} of {total} cases are not judged"))
    return results


def line(result: Result) -> str:
    """Return a result as a row of the table."""
    cells = (
        *(result.name, f"{result.total:,}", f"{result.accepted:,}", f"{result.refused:,}", result.unjudged),
        *(len(result.losses), f"{result.slowest:.1f}", f"{result.mib:.0f}", f"{result.seconds:.0f}"),
    )
    return f"| {' | '.join(map(str, cells))} |"
