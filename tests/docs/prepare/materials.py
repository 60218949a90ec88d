"""Data, pictures and checkpoints that pages speak of."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from pathlib import Path
from typing import Any

QUICKSTART = "configs/quickstart/digits_lsq_4w4f.py"
RUN = "work_dirs/digits_lsq_4w4f"


def quickstart_run(folder: Path) -> None:
    """`work_dirs/digits_lsq_4w4f` as `make quickstart` leaves it, but that nothing was trained."""
    shutil.copytree(_calibrated(), folder / RUN)


@functools.cache
def _calibrated() -> Path:
    """The files of a run whose model has random weights, running statistics of the digits, and grids.

    `best_float_top-1.pth` is of the float model, the others of the quantized one.
    """
    import torch
    from blocks import ROOT

    from lbitcls.datasets.digits import Digits
    from lbitcls.deploy import export_model
    from lbitcls.models import build_classifier
    from lbitcls.quant import build_mtransformer, calibrate, set_quantization
    from lbitcls.utils.checkpoint import save_checkpoint
    from lbitcls.utils.config import Config

    cfg = Config.fromfile(ROOT / QUICKSTART)
    torch.manual_seed(0)
    model = build_classifier(cfg.model).train()
    digits = Digits(split="train", pipeline=cfg.data.test.pipeline)
    images = torch.stack([digits[i]["img"] for i in range(100)])
    for _ in range(20):
        model.predict(images)  # running statistics
    folder = Path(tempfile.mkdtemp(prefix="quickstart-"))
    meta = {"CLASSES": digits.CLASSES, "config": cfg.pretty_text}
    save_checkpoint(model, folder / "best_float_top-1.pth", meta=meta)
    model = build_mtransformer(cfg.quant_transformer)(model.eval())
    calibrate(model, [images])
    for name in ("best_top-1.pth", "latest.pth"):
        save_checkpoint(model, folder / name, meta=meta)
    facts: dict[str, Any] = dict(classes=digits.CLASSES, pipeline=cfg.data.test.pipeline, config=cfg.pretty_text)
    export_model(model, folder / "model.onnx", input_shape=(1, 8, 8), **facts)
    set_quantization(model, False)
    export_model(model, folder / "float.onnx", input_shape=(1, 8, 8), **facts)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def write_image(path: Path, seed: int) -> None:
    """Noise, as an image of 40 × 30 pixels."""
    import numpy as np
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def photos(folder: Path) -> None:
    """`photo.jpg`, `other.png`, and two in `photos/`."""
    for seed, name in enumerate(("photo.jpg", "other.png", "photos/a.jpg", "photos/b.png")):
        write_image(folder / name, seed)


def image_folders(folder: Path, classes: tuple[str, ...] = ("ant", "bee")) -> None:
    """`train` and `val` with a folder of two images for each class."""
    for seed, name in enumerate(
        f"{part}/{kind}/{i}.jpg" for part in ("train", "val") for kind in classes for i in "12"
    ):
        write_image(folder / name, seed)


def digit_images(folder: Path, number: int = 4) -> None:
    """The first of the digits, as PNG files."""
    from PIL import Image

    from lbitcls.datasets.digits import Digits

    folder.mkdir(parents=True, exist_ok=True)
    digits = Digits(split="test")
    for index in range(number):
        Image.fromarray(digits.images[index, 0].numpy()).save(folder / f"{index}.png")
