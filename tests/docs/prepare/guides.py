"""Getting started, and coming from elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from blocks import Page

from prepare.materials import write_image

SHORT = "total_epochs=2 calibration.epoch=1 kernels=plain +log_config.pictures=false"


def flowers(folder: Path) -> None:
    """Twelve photos of two classes."""
    for seed in range(12):
        write_image(folder / "flowers" / ("rose", "tulip")[seed % 2] / f"{seed}.jpg", seed)


def imagenet(folder: Path) -> None:
    """Three images of two classes to train on, two to validate, as ImageNet's folders and lists have them."""
    for seed, name in enumerate(("train/n1/0.jpg", "train/n1/1.jpg", "train/n2/2.jpg", "val/a.jpg", "val/b.jpg")):
        write_image(folder / "imagenet" / name, seed)
    (folder / "imagenet" / "meta").mkdir()
    (folder / "imagenet" / "meta" / "val.txt").write_text("a.jpg 0\nb.jpg 1\n", encoding="utf-8")


def old_config_trained(names: dict[str, Any], said: str) -> None:
    """The old config trained an epoch at the bits that it asks for, and both kinds of checkpoint were read."""
    (log,) = Path("work_dirs/old").glob("*.log")
    lines = [line.split() for line in log.read_text(encoding="utf-8").splitlines()]
    entries = {
        line[0]: line[3:8] for line in lines if line and line[0] in ("backbone.conv1", "backbone.layer4.2.conv3")
    }
    assert entries["backbone.conv1"] == ["TorchQATConv", "8", "bits", "float", "special_layers.layers_name[0]"]
    assert entries["backbone.layer4.2.conv3"][:3] == ["LSQConv", "4", "bits"]
    record = json.loads(Path("work_dirs/old/log.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert record["mode"] == "train" and record["epoch"] == 1 and record["loss"] > 0
    assert "torchvision.pth True\nmmcls.pth True\n" in said


def started(names: dict[str, Any], said: str) -> None:
    """Both ways to an integer model ended with a file that was verified or named, and the photo got a label."""
    assert names["result"]["pred_class"] in set("0123456789") and len(names["result"]["topk"]) == 3
    for name in ("digits.onnx", "digits.report.json", "flowers.onnx", "work_dirs/flowers/best_top-1.pth"):
        assert Path(name).is_file(), name
    assert "Verification on 200 images: passed" in said
    report = json.loads(Path("flowers.report.json").read_text(encoding="utf-8"))
    assert report


PAGES = {
    "docs/getting_started.md": Page(
        prepare=flowers,
        words={
            "train configs/quickstart/digits_lsq_4w4f.py": "train configs/quickstart/digits_lsq_4w4f.py --options "
            "total_epochs=3 calibration.epoch=2 export.verify=false +log_config.pictures=false",
            "init flowers": "init flowers --backbone squeezenet1_1 --pretrained none",
            "train flowers.py": f"train flowers.py --options {SHORT} data.workers_per_gpu=0",
        },
        not_run={"make quickstart": "install", "pip install '.[deploy,analysis]'": "install", "uv venv": "install"},
        check=started,
        slow=True,
    ),
    "docs/reconstruction.md": Page(not_run={"CONFIG=configs/calibration/mobilenet_v2_4w8f_adaround.py": "data"}),
    "docs/hub.md": Page(not_run={"from lbitcls.apis import inference_model, init_model": "network"}),
    "docs/migration.md": Page(
        prepare=imagenet,
        words={"total_epochs=1": "total_epochs=1 +log_config.pictures=false +evaluation.save_best=None"},
        check=old_config_trained,
        slow=True,
    ),
}
