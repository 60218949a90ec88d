"""The phases of the config that `lbitcls init` writes, and that its run is at least as good as its head phase."""

from __future__ import annotations

import json
import os
import tarfile
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lbitcls.commands.main import main
from lbitcls.starter import first_config
from lbitcls.starter.quantization import find_recipe
from lbitcls.starter.recipe import Plan, find_network
from lbitcls.utils import Config

DATA = Path(os.environ.get("LBITCLS_DATA") or Path(__file__).resolve().parents[2].parent / "shared/data")
WEIGHTS = "weights/squeezenet1_1_caffe_fp16.pth"


def plan(images: int, **given: Any) -> Plan:
    usual: dict[str, Any] = dict(
        title="p",
        commands=(),
        facts=(),
        classes=("a", "b"),
        network=find_network("mobilenet_v2"),
        pretrained="w.pth",
        quantize=None,
        data={},
        train_images=images,
        size=224,
        workers=0,
        work_dir="w",
        exports=False,
        boards=False,
    )
    return Plan(**{**usual, **given})


def test_more_images_mean_fewer_epochs_and_more_iterations() -> None:
    plans = [plan(images) for images in (50, 250, 1_000, 4_000, 20_000, 100_000)]
    for small, large in pairwise(plans):
        assert small.head_epochs >= large.head_epochs and small.whole_epochs >= large.whole_epochs >= 5
        assert small.whole_epochs * small.train_images < large.whole_epochs * large.train_images
    assert [p.whole_epochs for p in plans] == [30, 25, 13, 6, 5, 5]
    assert all(p.head_epochs * p.steps >= 280 for p in plans)


def test_features_that_do_not_fit_are_not_cached() -> None:
    squeezenet = find_network("squeezenet1_1")
    assert plan(244, network=squeezenet).cached and not plan(4_000, network=squeezenet).cached
    assert plan(4_000, network=squeezenet).head_epochs == 3 and plan(90_000).cached


def test_phases_follow_each_other() -> None:
    quantized = plan(1_000, quantize=find_recipe("lsq-4w4f"))
    assert quantized.epochs == quantized.head_epochs + 2 * quantized.whole_epochs
    scratch = replace(quantized, pretrained=None)
    assert scratch.head_epochs == 0 and scratch.whole_epochs == 60


@pytest.mark.parametrize("quantize", [None, "int4"])
@pytest.mark.parametrize("pretrained", ["w.pth", "none"])
def test_the_config_has_the_phases(quantize: str | None, pretrained: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(first_config, "read_checkpoint", lambda path: {})
    for number, kind in enumerate("ab"):
        Path("p", kind).mkdir(parents=True)
        for i in range(3):
            Image.fromarray(np.full((20, 22, 3), 10 * i + number, np.uint8)).save(f"p/{kind}/{i}.png")
    path = first_config.init_config("p", quantize=quantize, pretrained=pretrained)
    cfg, text = Config.fromfile(path), path.read_text()
    probed = pretrained != "none"
    hooks = cfg.get("custom_hooks") or []
    assert [(hook["layers"], hook["reload_best"]) for hook in hooks] == [(["backbone"], True)] * probed
    assert ("feature_cache" in cfg) == probed
    starts = [hook["epoch"] for hook in hooks] + ([cfg.calibration.epoch] if quantize else [])
    assert list(cfg.lr_config.get("restarts", [])) == starts == sorted(starts)
    assert not starts or starts[-1] < cfg.total_epochs
    assert not quantize or cfg.calibration.reload_best
    assert "lbitcls train p.py --find-lr\n" in text
    assert ("--find-lr --resume --find-lr-epoch" in text) == probed
    if probed:
        assert f"--find-lr-epoch {starts[0]}\n" in text
        assert cfg.feature_cache.pipeline == cfg.test_pipeline != cfg.train_pipeline


@pytest.mark.slow
def test_at_least_as_good_as_the_head_phase(tmp_path: Path, monkeypatch: Any) -> None:
    """On CIFAR-10 images: better than the best epoch of the head alone, or equal; the head has learned the classes."""
    archive = DATA / "cifar10_jpg.tar.gz"
    if not archive.exists() or not (DATA / WEIGHTS).exists():
        pytest.skip(f"needs {archive} and {WEIGHTS}")
    monkeypatch.chdir(tmp_path)
    left = {
        (part, kind): number for part, number in (("train", 12), ("test", 8)) for kind in ("airplane", "frog", "ship")
    }
    with tarfile.open(archive) as tar:
        for member in tar:
            key = tuple(member.name.split("/")[1:3])
            if left.get(key) and member.isfile():  # type: ignore[call-overload]
                left[key] -= 1  # type: ignore[index]
                file = Path("photos", "val" if key[0] == "test" else "train", *member.name.split("/")[2:])
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(tar.extractfile(member).read())  # type: ignore[union-attr]
            if not any(left.values()):
                break
    weights = str((DATA / WEIGHTS).resolve())
    assert main(["init", "photos", "--backbone", "squeezenet1_1", "--pretrained", weights]) == 0
    head = Config.fromfile("photos.py").custom_hooks[0]["epoch"]
    shorter = [f"total_epochs={head + 2}", "data.workers_per_gpu=0", "num_threads=1", "+log_config.pictures=False"]
    assert main(["train", "photos.py", "--options", *shorter]) == 0
    records = map(json.loads, Path("work_dirs/photos/log.jsonl").read_text().splitlines())
    val = {record["epoch"]: record["top-1"] for record in records if record["mode"] == "val"}
    summary = json.loads(Path("work_dirs/photos/summary.json").read_text())
    assert len(val) == head + 2
    best = max(val.values())
    assert best >= max(val[epoch] for epoch in range(1, head + 1)) > 60
    assert summary["float"]["top1"] == pytest.approx(best)
