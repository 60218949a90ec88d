"""Inference with an exported ResNet-18: the time to the first answer, and the speed from then on.

    python benchmarks/inference.py [--batch 1 16] [--threads 1] [--rounds 15] [--json F]

First answer: fresh processes of `tools/infer.py CONFIG model.onnx photo.jpg` take turns with others that only import
torch. Speed: `inference_model` on decoded images (RGB arrays, 256×341) against `Engine.predict` on the same images,
prepared beforehand; the two take turns, and a ratio is the median over the turns. With one engine thread the time is
processor time (of all threads), otherwise wall-clock time. The costs of decoding a photo and of preparing a decoded one
are listed as well. Weights are random, ranges calibrated on random images: speed does not depend on them. Needs the
extra `deploy`.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

PICTURES = 64
SHAPE = (3, 224, 224)
FIRST_AIM, SPEED_AIM = 3.0, 0.9
"""Most seconds to the first answer; least of the engine's own speed."""
CONFIG = """
model = dict(
    type='ImageClassifier',
    backbone=dict(type='ResNet', depth=18),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=1000, in_channels=512))
pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', size=(256, -1)),
    dict(type='CenterCrop', crop_size=224),
    dict(type='Normalize', mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375]),
    dict(type='ImageToTensor', keys=['img']),
    dict(type='Collect', keys=['img'])]
data = dict(test=dict(type='ImageNet', data_prefix='imagenet', pipeline=pipeline))
entry = dict(num_bit_w=8, num_bit_a=8, per_channel=True)
quant_transformer = dict(
    type='ModelTransformer',
    quan_policy=dict(Conv2d=dict(type='LSQConv', **entry), Linear=dict(type='LSQLinear', **entry)))
"""


def export_resnet18(folder: Path) -> None:
    """Write the config, and the files of the float and the quantized model."""
    import torch

    from lbitcls.deploy import export_model
    from lbitcls.models import build_classifier
    from lbitcls.quant import build_mtransformer, calibrate
    from lbitcls.utils import Config

    (folder / "config.py").write_text(CONFIG, encoding="utf-8")
    cfg = Config.fromfile(folder / "config.py")
    torch.manual_seed(0)
    model, images = build_classifier(cfg.model), torch.randn(8, *SHAPE)
    for norm in (m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)):
        norm.momentum = None  # the mean over all batches
    with torch.no_grad():
        model.train().predict(images)
    facts: dict[str, Any] = dict(input_shape=SHAPE, pipeline=cfg.data.test.pipeline, config=cfg.pretty_text)
    export_model(model.eval(), folder / "float.onnx", **facts)
    model = build_mtransformer(cfg.quant_transformer)(model).eval()
    calibrate(model, [images], "mse")
    export_model(model, folder / "W8A8.onnx", **facts)


def pictures() -> list[np.ndarray]:
    """Return photo-like images: smooth shapes with a little noise, like sensor noise."""
    rng, made = np.random.default_rng(0), []
    for _ in range(PICTURES):
        coarse = rng.integers(0, 256, (8, 11, 3), dtype=np.uint8)
        smooth = np.asarray(Image.fromarray(coarse).resize((341, 256), Image.Resampling.BICUBIC), dtype=np.int16)
        made.append(np.clip(smooth + rng.integers(-12, 13, smooth.shape), 0, 255).astype(np.uint8))
    return made


def seconds(work: Callable[[], object], clock: Callable[[], float] = time.process_time) -> float:
    began = clock()
    work()
    return clock() - began


def first_answer(folder: Path, rounds: int) -> dict[str, dict[str, float]]:
    """Return wall-clock and processor seconds of a process to its first answer, and of one that imports torch."""
    infer = [ROOT / "tools" / "infer.py", folder / "config.py", folder / "W8A8.onnx", folder / "photo.jpg"]
    commands = {"first": [sys.executable, *map(str, infer)], "torch": [sys.executable, "-c", "import torch"]}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    for _ in range(rounds):
        for name, command in commands.items():
            before, began = children_cpu(), time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            times[name].append((time.perf_counter() - began, children_cpu() - before))
    return {
        name: dict(zip(("clock", "cpu"), map(statistics.median, zip(*values, strict=True)), strict=True))
        for name, values in times.items()
    }


def children_cpu() -> float:
    """Return the processor seconds of all ended child processes."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def speeds(folder: Path, name: str, batch: int, threads: int, rounds: int) -> dict[str, Any]:
    """Return images per second of the engine and of inference, at one batch size."""
    from lbitcls.apis import inference_model, init_model

    model = init_model(folder / "config.py", folder / f"{name}.onnx", threads=threads)
    shown = pictures()
    prepared = np.stack([model.prepare(picture) for picture in shown])
    groups = [prepared[i : i + batch] for i in range(0, PICTURES, batch)]

    def by_engine() -> None:
        for group in groups:
            model.engine.predict(group)

    def by_inference() -> None:
        if batch == 1:
            for picture in shown:
                inference_model(model, picture)
        else:
            inference_model(model, shown, batch_size=batch)

    clock = time.process_time if threads == 1 else time.perf_counter
    turns = [(seconds(by_engine, clock), seconds(by_inference, clock)) for _ in range(rounds + 1)][1:]
    engine, inference = (statistics.median(column) for column in zip(*turns, strict=True))
    return dict(
        file=name,
        batch=batch,
        engine_per_s=PICTURES / engine,
        inference_per_s=PICTURES / inference,
        ratio=statistics.median(own / ours for own, ours in turns),
        prepare_ms=1000 / PICTURES * seconds(lambda: [model.prepare(picture) for picture in shown]),
    )


def decode_ms(folder: Path) -> float:
    """Return the milliseconds to decode a photo of 256×341 with Pillow, as files are read without PyTorch."""
    from lbitcls.datasets.pipelines.pillow import read_with_pillow

    path = str(folder / "photo.jpg")
    return 1000 * statistics.median(seconds(lambda: read_with_pillow(path, "rgb")) for _ in range(50))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--threads", type=int, default=1, help="number of engine threads")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path, help="JSON file to write the result to")
    args = parser.parse_args()
    from lbitcls.deploy.runtime.benchmark import cpu_name

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        export_resnet18(folder)
        Image.fromarray(pictures()[0]).save(folder / "photo.jpg", quality=90)
        start = first_answer(folder, min(args.rounds, 7))
        rows = [speeds(folder, f, b, args.threads, args.rounds) for f in ("float", "W8A8") for b in args.batch]
        decode = decode_ms(folder)
    clock = "processor" if args.threads == 1 else "wall-clock"
    print(f"{cpu_name()}, OpenVINO, {args.threads} thread(s), {args.rounds} rounds, speed in {clock} time")
    for name, said in (("first", f"first answer (aim: at most {FIRST_AIM} s)"), ("torch", "import torch alone")):
        print(f"{said}: {start[name]['clock']:.2f} s, {start[name]['cpu']:.2f} s of processor time")
    print(f"{'file':8}{'batch':>6}{'engine, /s':>12}{'inference, /s':>15}{'ratio':>7}{'aim':>6}{'prepare, ms':>13}")
    for row in rows:
        print(
            f"{row['file']:8}{row['batch']:6}{row['engine_per_s']:12.1f}{row['inference_per_s']:15.1f}"
            f"{row['ratio']:7.3f}{SPEED_AIM:6.2f}{row['prepare_ms']:13.2f}"
        )
    print(f"decoding such a photo takes another {decode:.2f} ms")
    if args.json:
        args.json.write_text(json.dumps(dict(first=start, rows=rows, decode_ms=decode), indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
