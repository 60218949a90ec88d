"""JPEG files to normalized training images, images per second in one process: lbitcls against plain torchvision.

    python benchmarks/decode.py [--images N] [--rounds N] [--json FILE] [--data-root FOLDER]

Both decode, apply a RandomResizedCrop(224), flip randomly and normalize to float32. Plain torchvision uses its fastest
functions: `decode_jpeg` and v2 transforms on uint8 tensors. lbitcls uses `ds[(epoch, index)]` of an `ImageFolder`, with
seeding and label. The two take turns, block of images by block, on one thread; the ratio is the median over the rounds.
The images are `imagenet1000_256` if a data root has it, else JPEG files written here.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from lbitcls.datasets import build_dataset
from lbitcls.datasets.listing import images_below
from lbitcls.datasets.root import locate, search_roots

MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
PIPELINE = [
    dict(type="LoadImageFromFile", color_type="color_ignore_orientation"),  # as decode_jpeg by itself
    dict(type="RandomResizedCrop", size=224),
    dict(type="RandomFlip", flip_prob=0.5),
    dict(type="Normalize", mean=MEAN, std=STD),
    dict(type="Collect", keys=["img", "gt_label"]),
]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=200, help="number of files read per round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, help="JSON file to write the result to")
    parser.add_argument("--data-root", help="folder with imagenet1000_256 or its archive")
    return parser.parse_args()


def write_jpegs(folder: Path, count: int) -> None:
    """Write photo-like images, 341×256: smooth shapes with a little noise, like sensor noise."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for number in range(count):
        coarse = rng.integers(0, 256, (8, 11, 3), dtype=np.uint8)
        smooth = np.asarray(Image.fromarray(coarse).resize((341, 256), Image.Resampling.BICUBIC), dtype=np.int16)
        noisy = np.clip(smooth + rng.integers(-12, 13, smooth.shape), 0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(folder / f"{number:05d}.jpg", quality=90)


def plain_torchvision() -> Callable[[str], torch.Tensor]:
    from torchvision.io import decode_jpeg, read_file
    from torchvision.transforms import v2

    transform = v2.Compose(
        [
            v2.RandomResizedCrop(224, antialias=True),
            v2.RandomHorizontalFlip(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([m / 255 for m in MEAN], [s / 255 for s in STD]),
        ]
    )
    return lambda path: transform(decode_jpeg(read_file(path), mode="RGB"))


def seconds(function: Callable[[int], object], count: int) -> float:
    start = time.perf_counter()
    for index in range(count):
        function(index)
    return time.perf_counter() - start


def measure(folder: Path, images: int, rounds: int) -> dict[str, float | int | str]:
    paths = images_below(folder)[:images]
    classes = [str(label) for label in range(len(images_below(folder)))]
    dataset = build_dataset(
        dict(type="ImageNet", data_prefix=str(folder.absolute()), classes=classes, pipeline=PIPELINE)
    )
    plain = plain_torchvision()
    draws = itertools.count()  # every call is another draw of the augmentation

    def from_dataset(index: int) -> torch.Tensor:
        return dataset[(next(draws), index)]["img"]

    def from_torchvision(index: int) -> torch.Tensor:
        return plain(paths[index])

    plain_times, our_times = [], []
    for _ in range(rounds + 1):
        plain_times.append(seconds(from_torchvision, len(paths)))
        our_times.append(seconds(from_dataset, len(paths)))
    del plain_times[0], our_times[0]  # the warm-up
    return {
        "images": len(paths),
        "plain_images_per_s": round(len(paths) / statistics.median(plain_times), 1),
        "ours_images_per_s": round(len(paths) / statistics.median(our_times), 1),
        "ratio": round(statistics.median(p / o for p, o in zip(plain_times, our_times, strict=True)), 3),
    }


def main() -> None:
    args = parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message=".*(capabilities of TorchVision|TorchCodec)", category=DeprecationWarning)
    found = locate("imagenet1000_256", search_roots(args.data_root))
    with tempfile.TemporaryDirectory() as temporary:
        folder = found or Path(temporary)
        if found is None:
            write_jpegs(folder, args.images)
        result = measure(folder, args.images, args.rounds)
    result["source"] = "imagenet1000_256" if found else "written here"
    print(f"{result['images']} JPEG files ({result['source']}), one thread, {args.rounds} rounds")
    print(f"plain torchvision  {result['plain_images_per_s']:8} images/s")
    print(f"lbitcls            {result['ours_images_per_s']:8} images/s")
    print(f"ratio              {result['ratio']:8}   (aim: at least 1.0)")
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
