"""A page in headless Chromium, compared with `lbitcls infer` on the same image files.

    python benchmarks/web.py PAGE IMAGES [--every N] [--threads 1] [--json F]

`PAGE` is a folder that `lbitcls export --target web` wrote, `IMAGES` a folder of image files. It counts

- files: the images whose class differs between the page, which decodes and prepares the files itself, and
  `lbitcls infer` on the page's ONNX file (with ONNX Runtime on the CPU);
- network: the same for equal inputs, those of `lbitcls infer`, and how the logits differ;
- decoder: how the pixels differ from those of `LoadImageFromFile`;
- preparation: how the prepared inputs differ, in levels of 255, from those of the training pipeline.

It also measures the folder, the times of an image and the time from opening the page to the first answer, on the
loopback address. Needs the extras `deploy` and `web`, Chromium and its driver.
"""

from __future__ import annotations

import argparse
import base64
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from lbitcls.datasets.listing import images_of
from lbitcls.datasets.pipelines.decode import read_image
from lbitcls.deploy.runtime.engine import load
from lbitcls.deploy.runtime.engines.onnxruntime_web import ONNXRuntimeWebEngine
from lbitcls.inference.preparation import preparation

FIRST = """
const done = arguments[1];
const bytes = Uint8Array.from(atob(arguments[0]), (letter) => letter.charCodeAt(0));
lbitcls.ready.then(async () => {
  await lbitcls.classify(new Blob([bytes]));
  done(performance.now());
});
"""
DECODE = """
const done = arguments[1];
const bytes = Uint8Array.from(atob(arguments[0]), (letter) => letter.charCodeAt(0));
import(new URL("files.js", document.baseURI)).then(async ({ readFile }) => {
  const { data, height, width } = await readFile(new Blob([bytes]), true);
  const parts = [];
  for (let at = 0; at < data.length; at += 32768) parts.push(String.fromCharCode(...data.subarray(at, at + 32768)));
  done([btoa(parts.join("")), height, width]);
});
"""


def encoded(path: Path) -> str:
    """Return a file's bytes in base64."""
    return base64.b64encode(path.read_bytes()).decode()


def decoded(engine: ONNXRuntimeWebEngine, path: Path) -> np.ndarray:
    """Return the pixels of an image file, uint8 (H, W, 3), as the page decodes it."""
    text, height, width = engine.browser.execute_async_script(DECODE, encoded(path))
    return np.frombuffer(base64.b64decode(text), np.uint8).reshape(height, width, 3)


def differences(found: list[np.ndarray]) -> dict[str, Any]:
    """Return how often, and by how much, values differ from zero."""
    values = np.concatenate([np.abs(one).ravel() for one in found])
    whole = sum(not one.any() for one in found)
    counts = {"images": len(found), "equal images": whole, "differing values %": 100 * float((values > 0).mean())}
    return {**counts, "mean": float(values.mean()), "largest": float(values.max())}


def classes(ours: np.ndarray, theirs: np.ndarray) -> dict[str, Any]:
    """Return how two sets of logits (N, K) differ, and the images with another best class."""
    gap = np.abs(ours - theirs)
    same = ours.argmax(1) == theirs.argmax(1)
    top = np.sort(theirs, axis=1)
    margins = (top[:, -1] - top[:, -2])[~same]
    return {
        "images": len(ours),
        "same class %": 100 * float(same.mean()),
        "changed": int((~same).sum()),
        "largest margin of a changed image": float(margins.max()) if len(margins) else None,
        "differing logits %": 100 * float((gap > 0).mean()),
        "mean": float(gap.mean()),
        "largest": float(gap.max()),
        "deviation": float(theirs.std()),
    }


def main() -> None:
    """Compare a page with `lbitcls infer`."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("page", type=Path, metavar="PAGE")
    parser.add_argument("images", type=Path, metavar="IMAGES")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="use every N-th image")
    parser.add_argument("--threads", type=int, default=1, metavar="N")
    parser.add_argument("--json", type=Path, metavar="F")
    args = parser.parse_args()
    files = [Path(path) for path in images_of(args.images)][:: args.every]
    start = time.perf_counter()
    page = load(args.page, "onnxruntime-web", args.threads)
    assert isinstance(page, ONNXRuntimeWebEngine) and page.info is not None
    first = page.browser.execute_async_script(FIRST, encoded(files[0]))
    native = load(args.page / "model.onnx", "onnxruntime", args.threads)
    light = preparation(page.info.pipeline, page.input_shape)
    trained = preparation(page.info.pipeline, page.input_shape, light=False)
    std = 255 * np.float32(1)
    for step in page.info.pipeline:
        if step["type"] == "Normalize":
            unit = 1 if max(*step["mean"], *step["std"]) > 1 else 255
            std = np.array(step["std"], np.float32).reshape(-1, 1, 1) * unit
    ours = page.classify(files)
    times = page.milliseconds
    inputs = [light(str(path)) for path in files]
    theirs = np.concatenate([native.predict(one[None]) for one in inputs])
    same_input = np.concatenate([page.predict(one[None]) for one in inputs])
    some = files[:: max(1, len(files) // 200)]
    pixels = [decoded(page, path).astype(int) - read_image(str(path)).permute(1, 2, 0).numpy() for path in some]
    levels = [np.rint((page.prepare(path) - trained(str(path))) * std) for path in some]
    result = {
        "page": args.page.name,
        "engine": page.version,
        "threads": page.page_threads,
        "files": classes(ours, theirs),
        "network": classes(same_input, theirs),
        "decoder": differences(pixels),
        "preparation": differences(levels),
        "folder MiB": sum(path.stat().st_size for path in args.page.rglob("*") if path.is_file()) / 2**20,
        "model KiB": (args.page / "model.onnx").stat().st_size / 1024,
        "first answer ms": first,
        "preparation ms (median)": float(np.median(times[:, 0])),
        "network ms (median)": float(np.median(times[:, 1])),
        "network ms (lowest)": float(times[:, 1].min()),
        "seconds": time.perf_counter() - start,
    }
    text = json.dumps(result, indent=2)
    print(text)
    if args.json:
        args.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
