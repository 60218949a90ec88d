"""Inference, the analysis report, deployment, benchmarks."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from blocks import Page

from prepare.materials import QUICKSTART, RUN, digit_images, photos, quickstart_run


def run_and_photos(folder: Path) -> None:
    quickstart_run(folder)
    photos(folder)


def predicted(names: dict[str, Any], said: str) -> None:
    assert names["result"]["pred_class"] in set("0123456789")
    assert Path("labeled.png").is_file() and len(names["results"]) == 2
    assert re.search(r"^photo\.jpg: \d \d+\.\d %$", said, re.MULTILINE)
    records = json.loads(Path("found.json").read_text(encoding="utf-8"))
    assert [record["path"] for record in records] == ["photos/a.jpg", "photos/b.png"]
    assert all(len(record["topk"]) == 3 for record in records)


def float_and_quantized(folder: Path) -> None:
    """The files that the page's Python names: a model in float and quantized, and images."""
    quickstart_run(folder)
    digit_images(folder / "images")
    config = (folder / QUICKSTART).read_text(encoding="utf-8")
    for name, checkpoint in (("float", "best_float_top-1.pth"), ("int", "best_top-1.pth")):
        (folder / f"{name}.py").write_text(config, encoding="utf-8")
        (folder / RUN / checkpoint).rename(folder / f"{name}.pth")


def compared(names: dict[str, Any], said: str) -> None:
    lines = said.splitlines()[-3:]
    assert all(re.fullmatch(r"\S+ [\d.e-]+ [\d.]+ [\d.e-]+", line) for line in lines), lines
    assert all(Path(f"{name}.{kind}").is_file() for name in ("report", "model_analysis") for kind in ("html", "json"))


def delivered(names: dict[str, Any], said: str) -> None:
    """The commands wrote what they name, the Python loaded it, the sections are a config's."""
    import torch

    from lbitcls.models import build_backbone, build_classifier
    from lbitcls.settings.sections import read_settings
    from lbitcls.utils.config import Config
    from lbitcls.utils.errors import LbitclsError
    from lbitcls.workflows.run_export import check_export

    for name in ("model", "small", "backbone"):
        assert Path(f"{name}.onnx").is_file() and Path(f"{name}.report.json").is_file()
    assert Path("small.onnx").stat().st_size < Path("model.onnx").stat().st_size
    assert names["logits"].shape == (3, 10) and "LSQ W4A4 ['0', " in said
    cfg = Config.fromfile(QUICKSTART)
    cfg.export = names["export"]
    check_export(read_settings(cfg))
    assert build_classifier(names["model"])(torch.zeros(2, 1, 8, 8), return_loss=False).shape == (2, 10)
    try:
        build_backbone(names["backbone"])
    except LbitclsError as error:  # all its keys are known
        assert "there is no checkpoint mobilenet_v2.pth" in str(error)
    else:
        raise AssertionError("mobilenet_v2.pth is not there")


BENCHMARKS = {
    f"python benchmarks/{command}": "figures"
    for command in (
        "qat_step.py --model resnet20 --gradients float32 bf16 int8 --rss --markdown --json qat_step.json",
        "qat_step.py --model mobilenet_v2 --keep-memory --repeats 9 --markdown --gradients float32 bf16 \\",
        "runner_overhead.py --json runner_overhead.json",
        "decode.py --json decode.json",
        "deployment.py --json deployment.json",
        "inference.py --rounds 9",
    )
}

WITH_DATA = {
    "python benchmarks/accuracy_cifar10.py --data-root FOLDER": "data",
    "python benchmarks/protocol_cifar10.py --data-root FOLDER": "data",
    "python benchmarks/runner_epoch.py --data-root FOLDER --json runner_epoch.json": "data",
}

PAGES = {
    "docs/inference.md": Page(prepare=run_and_photos, check=predicted, slow=True),
    "docs/analysis.md": Page(
        prepare=float_and_quantized,
        words={
            "IMAGES FLOAT_CONFIG INT_CONFIG FLOAT_CHECKPOINT INT_CHECKPOINT": "images float.py int.py float.pth int.pth"
        },
        not_run={"pip install lbitcls[analysis]": "install"},
        check=compared,
        slow=True,
    ),
    "docs/deployment.md": Page(
        prepare=quickstart_run,
        words={f"{RUN}/float.onnx": f"{RUN}/float.onnx --repeats 1 --batch 1"},
        check=delivered,
        slow=True,
    ),
    "docs/benchmarks.md": Page(
        words={f"benchmarks/{name}.py": f"benchmarks/{name}.py --rounds 1" for name in ("startup", "transform")}
        | {"--repeats 9": "--repeats 1 --batch 16", "--model resnet50": "--model resnet20 --looks 1"},
        not_run=BENCHMARKS | WITH_DATA | {"bash benchmarks/gpu_check.sh": "gpu"},
        slow=True,
    ),
}
