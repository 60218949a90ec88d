"""Integer models against the float model, on the same engine, and against NNCF's: time, size, export.

    python benchmarks/deployment.py [--models resnet18 mobilenet_v2] [--batch 1 16] [--threads 2] [--json F]

OpenVINO runs every file in float32 precision; the float model also runs in bfloat16. The files of a model take turns, a
tenth of a second each. Weights are random, and ranges are calibrated on random images, by the rule of
`tools/calibrate.py`: speed depends on whether a skip connection fits on the grid of a layer. Needs the extra `deploy`;
with `nncf` (`pip install -r requirements/benchmarks.txt`), NNCF quantizes the float models as well. `--nodes` counts
the operations that OpenVINO executes in each file.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lbitcls.deploy.export.onnx import export_model
from lbitcls.deploy.export.residuals import carry_residuals
from lbitcls.deploy.runtime.benchmark import cpu_name, time_engines
from lbitcls.deploy.runtime.engine import Engine, load
from lbitcls.deploy.runtime.engines.openvino import OpenVINOEngine
from lbitcls.deploy.verification.placement import executed_operations, integer_layers
from lbitcls.models import build_classifier
from lbitcls.quant import build_mtransformer, calibrate

SHAPE = (3, 224, 224)
MODELS: dict[str, dict[str, Any]] = {
    "resnet18": dict(backbone=dict(type="ResNet", depth=18), channels=512, first="backbone.conv1"),
    "mobilenet_v2": dict(backbone=dict(type="MobileNetV2"), channels=1280, first="backbone.features.0.0"),
    "squeezenet": dict(backbone=dict(type="SqueezeNet"), channels=512, first="backbone.features.0", head="ConvClsHead"),
    "resnet50": dict(backbone=dict(type="ResNet", depth=50), channels=2048, first="backbone.conv1"),
}
VARIANTS = {
    "resnet18": ("W8A8", "W4A4", "W4A4 packed", "W8A8 residuals", "W4A4 residuals", "W8A8 sums", "W4A4 sums"),
    "mobilenet_v2": ("W8A8", "W8A8 sums"),
    "squeezenet": ("W8A8",),
    "resnet50": ("W8A8", "W8A8 residuals", "W8A8 sums", "W4A4 sums"),
}
"""Bits of most layers (first and last: 8); `packed`: 4-bit weights; `residuals`: skip connections in 8 bits by the
export; `sums`: both operands of additions in 8 bits, as trained with `residual_bits=8`."""
AIMS = {"resnet18": {1: 0.35, 16: 0.35}, "mobilenet_v2": {1: 0.55, 16: 0.40}}
"""Most of the float model's time, by batch size."""
NNCF_AIMS = {"residuals": 1.05, "sums": 1.0, "": 1.25}
"""Most of the time of NNCF's model, by the ending of a variant's name."""
SIZE_AIM, PACKED_AIM, EXPORT_AIM = 0.27, 0.15, 20.0
"""Most of the float file's size, and of the seconds of a ResNet-18's export."""


@dataclass(frozen=True)
class File:
    """Exported file.

    Attributes:
        name: Name of the variant, or `NNCF`.
        path: Path of the file; `.xml` is OpenVINO's own format.
        size: Size relative to the float file.
        seconds: Seconds of the export, including the calibration of residuals.
        convolutions: Number of convolutions that run in integers, and their total.
    """

    name: str
    path: Path
    size: float
    seconds: float
    convolutions: str


class NNCFEngine(OpenVINOEngine):
    """Engine for a file in OpenVINO's format, with the input images of the ONNX file `source`."""

    def __init__(self, path: Path, source: Path, threads: int) -> None:
        super().__init__(source, threads, "f32")
        self.path, self.info = path, None
        self._model = self._core.read_model(str(path))


def float_model(name: str, images: Tensor) -> nn.Module:
    """Return a classifier of 1,000 classes with random weights and matching statistics."""
    torch.manual_seed(0)
    kind = MODELS[name].get("head", "LinearClsHead")
    neck = dict(neck=dict(type="GlobalAveragePooling")) if kind == "LinearClsHead" else {}
    head = dict(type=kind, num_classes=1000, in_channels=MODELS[name]["channels"])
    model = build_classifier(
        dict(
            type="ImageClassifier",
            backbone=MODELS[name]["backbone"],
            head=head,
            **neck,
        )
    )
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.momentum = None  # the mean over all batches
    with torch.no_grad():
        model.train().predict(images)
    return model.eval()


def quantized(name: str, model: nn.Module, bits: int, images: Tensor, sums: bool = False) -> nn.Module:
    """Return a copy with LSQ's grids, per-channel weights, first and last layers at 8 bits; `sums`: additions too."""

    def entry(kind: str, bits: int) -> dict[str, Any]:
        return dict(type=f"LSQ{kind}", num_bit_w=bits, num_bit_a=bits, per_channel=True)

    last = "head.conv" if MODELS[name].get("head") == "ConvClsHead" else "head.fc"
    section = dict(
        type="ModelTransformer",
        residual_bits=8 if sums else None,
        quan_policy=dict(Conv2d=entry("Conv", bits), Linear=entry("Linear", bits)),
        special_layers=dict(
            layers_name=[MODELS[name]["first"], last],
            convert_type=[entry("Conv", 8), entry("Conv" if last == "head.conv" else "Linear", 8)],
        ),
    )
    model = build_mtransformer(section)(copy.deepcopy(model)).eval()
    calibrate(model, [images], "mse")
    return model


def export_all(name: str, folder: Path) -> list[File]:
    """Export the float file first, then the variants."""
    images = torch.randn(8, *SHAPE, generator=torch.Generator().manual_seed(1))
    model = float_model(name, images)
    base = export_model(model, folder / f"{name}.onnx", input_shape=SHAPE)
    files = [File("float", base.path, 1.0, base.seconds, "")]
    made: dict[tuple[int, bool], nn.Module] = {}
    for variant in VARIANTS[name]:
        kind = int(variant[1]), variant.endswith("sums")
        if kind not in made:
            made[kind] = quantized(name, model, kind[0], images, kind[1])
        files.append(export(variant, made[kind], images, folder / f"{name} {variant}.onnx", base.size))
    return files


def export(variant: str, model: nn.Module, images: Tensor, path: Path, float_size: int) -> File:
    """Export one variant."""
    began = time.perf_counter()
    if "residuals" in variant:
        model, _ = carry_residuals(model, [images])
    report = export_model(model, path, input_shape=SHAPE, pack="packed" in variant)
    seconds = time.perf_counter() - began
    convolutions = integer_layers(path)["convolutions"]
    counted = f"{convolutions['integer']} of {convolutions['total']}"
    return File(variant, path, report.size / float_size, seconds, counted)


def nncf_file(source: Path) -> File:
    """Quantize a float file with NNCF's post-training quantization, with default settings."""
    import nncf
    import openvino

    images = [torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(i)).numpy() for i in range(32)]
    began = time.perf_counter()
    model = nncf.quantize(openvino.Core().read_model(str(source)), nncf.Dataset(images), subset_size=len(images))
    path = source.with_suffix(".nncf.xml")
    openvino.save_model(model, str(path), compress_to_fp16=False)
    seconds = time.perf_counter() - began
    size = sum(part.stat().st_size for part in (path, path.with_suffix(".bin"))) / source.stat().st_size
    precisions = [op["runtimePrecision"] for op in executed_operations(path) if op["layerType"] == "Convolution"]
    counted = f"{sum(precision in ('u8', 'i8') for precision in precisions)} of {len(precisions)}"
    return File("NNCF", path, size, seconds, counted)


def measure(name: str, files: list[File], args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a row for each batch size and file."""
    rows: list[dict[str, Any]] = []
    for batch in args.batch:
        base, *others = files
        engines: dict[str, Engine] = {base.name: load(base.path, threads=args.threads)}
        if OpenVINOEngine.supports("bf16"):
            engines["float, bf16"] = load(base.path, threads=args.threads, precision="bf16")
        for file in others:
            foreign = file.path.suffix == ".xml"
            engines[file.name] = (
                NNCFEngine(file.path, base.path, args.threads) if foreign else load(file.path, threads=args.threads)
            )
        timings = dict(zip(engines, time_engines(list(engines.values()), engines[base.name], batch, args.repeats)))
        rows += [
            dict(
                model=name,
                batch=batch,
                variant=variant,
                milliseconds=timing.median_ms,
                to_float=timing.ratio,
                to_nncf=timing.median_ms / timings["NNCF"].median_ms if "NNCF" in timings else None,
                **aims(name, variant, batch),
            )
            for variant, timing in timings.items()
        ]
    return rows


def aims(name: str, variant: str, batch: int) -> dict[str, float | None]:
    """Return the upper limits of a variant's ratios."""
    if variant not in VARIANTS[name]:
        return dict(aim=None, nncf_aim=None)
    most = next(aim for ending, aim in NNCF_AIMS.items() if variant.endswith(ending))
    return dict(aim=AIMS.get(name, {}).get(batch), nncf_aim=most)


def show(rows: list[dict[str, Any]], files: dict[str, list[File]]) -> None:
    """Print both tables."""
    print(f"{'model':14}{'batch':>6}  {'variant':16}{'ms':>9}{'to float':>10}{'aim':>6}{'to NNCF':>9}{'aim':>6}")
    for row in rows:
        to_nncf, nncf_aim = row["to_nncf"], row["nncf_aim"] if row["to_nncf"] else None
        print(
            f"{row['model']:14}{row['batch']:6}  {row['variant']:16}{row['milliseconds']:9.2f}{row['to_float']:10.3f}"
            f"{number(row['aim'], 6)}{number(to_nncf, 9)}{number(nncf_aim, 6)}"
        )
    print(f"\n{'model':14}{'variant':16}{'size to float':>14}{'aim':>6}{'export, s':>11}{'aim':>6}  convolutions")
    for name, exported in files.items():
        for file in exported[1:]:
            ours = file.name != "NNCF"
            most = (PACKED_AIM if "packed" in file.name else SIZE_AIM) if ours else None
            longest = EXPORT_AIM if ours and name == "resnet18" else None
            print(
                f"{name:14}{file.name:16}{file.size:14.3f}{number(most, 6)}{file.seconds:11.1f}{number(longest, 6)}  "
                f"{file.convolutions} in integers"
            )


def show_nodes(name: str, files: list[File]) -> None:
    """Print how many operations of each kind and precision OpenVINO executes in a file, besides its constants."""
    for file in files:
        kinds = Counter(f"{op['layerType']} {op['runtimePrecision']}" for op in executed_operations(file.path))
        listed = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()) if not kind.startswith("Const"))
        print(f"{name}, {file.name}: {listed}")


def number(value: float | None, width: int) -> str:
    """Return a number with two decimals, or as many spaces for None."""
    return " " * width if value is None else f"{value:{width}.2f}"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=sorted(MODELS), default=list(MODELS))
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=30, help="turns per file and batch size")
    parser.add_argument("--nodes", action="store_true", help="list the other operations that are executed")
    parser.add_argument("--json", type=Path, help="JSON file to write the result to")
    args = parser.parse_args()
    files: dict[str, list[File]] = {}
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in args.models:
            files[name] = export_all(name, Path(folder))
            if find_spec("nncf") is not None:
                files[name].append(nncf_file(files[name][0].path))
            if args.nodes:
                show_nodes(name, files[name])
            rows += measure(name, files[name], args)
    packages = [package for package in ("torch", "openvino", "nncf") if find_spec(package)]
    versions = {package: version(package) for package in packages}
    print(f"{cpu_name()}, {args.threads} threads, {', '.join(f'{name} {v}' for name, v in versions.items())}")
    show(rows, files)
    if "nncf" not in versions:
        print("\nNNCF was not compared: it is not installed (pip install -r requirements/benchmarks.txt).")
    if args.json:
        listed = {name: [asdict(file) for file in exported] for name, exported in files.items()}
        result = dict(cpu=cpu_name(), versions=versions, arguments=vars(args), files=listed, rows=rows)
        args.json.write_text(json.dumps(result, default=str, indent=2))


if __name__ == "__main__":
    main()
