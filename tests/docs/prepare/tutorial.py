"""The tutorial."""

from __future__ import annotations

import functools
import json
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

from blocks import Page

from prepare.materials import QUICKSTART, RUN, quickstart_run

NO_PICTURES = "+log_config.pictures=false"
SHORT = f"total_epochs=3 calibration.epoch=1 kernels=plain {NO_PICTURES}"
"""The quickstart's training, in a second or two: it compiles nothing."""
SHORT_TWO = f"total_epochs=2 calibration.epoch=1 kernels=plain export=None {NO_PICTURES}"
"""The same for two processes."""

IMAGENET = "configs/LSQ/resnet50/config2_res50_lsq_2w2f.py"
ON_GPUS = f"torchrun --standalone --nproc_per_node 8 --no-python lbitcls train {IMAGENET} \\"
TORCHRUN = "torchrun --nnodes 2 --node_rank 0 --master_addr 10.0.0.1 --master_port 29500 --nproc_per_node 8 \\"


def trained_run(folder: Path) -> None:
    """`work_dirs/digits_lsq_4w4f` after a training of three epochs, the first in float; nothing is exported."""
    shutil.copytree(_trained(), folder / RUN)


@functools.cache
def _trained() -> Path:
    from blocks import ROOT

    from lbitcls.commands.main import main

    work_dir = Path(tempfile.mkdtemp(prefix="trained-"), "run")
    options = [*SHORT.split(), "export=None"]
    assert main(["train", str(ROOT / QUICKSTART), "--work-dir", str(work_dir), "--options", *options]) == 0
    return work_dir


def one_digit_three_ways(names: dict[str, Any], said: str) -> None:
    """The three lines, the steps and the command say the same of the picture."""
    result, label = names["result"], names["label"]
    assert result["pred_label"] == label
    assert abs(result["pred_score"] - names["scores"][0, label]) < 1e-6
    answers = re.findall(r"^digit\.png: (\d) (\d+\.\d) %", said, re.MULTILINE)
    assert len(answers) == 2 and {digit for digit, _ in answers} == {str(label)}
    integers = names["conv"].weight_quantizer.to_integer(names["conv"].weight)
    assert -8 <= integers.min() < integers.max() <= 7


def trained_resumed_and_tested(names: dict[str, Any], said: str) -> None:
    """The run wrote what the page lists; resuming found it complete; the test gave the run's own result."""
    run = Path("work_dirs/digits_lsq_2w2f")
    for name in ("latest.pth", "best_top-1.pth", "best_float_top-1.pth", "digits_lsq_2w2f.py", "log.jsonl", "tf_logs"):
        assert (run / name).exists(), name
    assert "is complete, with 2 of 2 epochs: nothing is trained" in said
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    tested = [float(value) for value in re.findall(r"^│ top-1 +│ (\d+\.\d+) ", said, re.MULTILINE)]
    assert tested == [round(summary[phase]["top1"], 4) for phase in ("quantized", "float")]
    assert Path("work_dirs/slower/latest.pth").is_file()


def analysed(names: dict[str, Any], said: str) -> None:
    """Pictures and report are there, and speak of the model's layers; the last plan has the layer at 8 bits."""
    assert all(Path(name).stat().st_size > 1000 for name in ("errors.png", "curves.png", "report.html"))
    assert names["best"]["mode"] == "val" and 0 < names["best"]["top-1"] <= 100
    assert {layer["name"] for layer in names["report"]["layers"]} >= {"backbone.layer1.0.conv2", "head.fc"}
    plans = re.findall(r"^backbone\.layer1\.0\.conv2 .*?(\d+)  (\d+)  (\S+) ", said, re.MULTILINE)
    assert plans[-1] == ("8", "8", "special_layers.layers_name[2]")


def own_quantizer(names: dict[str, Any], said: str) -> None:
    """It is on its grid, its model was trained, exported and tested, and the layer of its own was trained."""
    assert torch_equal_to_integers(names)
    assert Path("work_dirs/ternary/latest.pth").is_file()
    plan = re.search(r"^backbone\.layer1\.0\.conv1 .* TQTConv +4  4 ", said, re.MULTILINE)
    assert plan and "Verification on 200 images: passed" in said
    assert re.search(r"^│ top-1 +│ \d", said, re.MULTILINE)


def torch_equal_to_integers(names: dict[str, Any]) -> bool:
    quantizer, x, y = names["quantizer"], names["x"], names["y"]
    scale = quantizer.qparams().scale
    return bool((quantizer.to_integer(x) * scale == y).all()) and float(scale.log2()).is_integer()


def own_parts(names: dict[str, Any], said: str) -> None:
    """The model has learned the shapes, and the file says so of two of them."""
    summary = json.loads(Path("work_dirs/shapes_lsq_4w4f/summary.json").read_text(encoding="utf-8"))
    assert summary["quantized"]["top1"] > 80
    assert len(re.findall(r"scales: backbone\.convs\.0\.weight_quantizer \d\.\d+", said)) == 12
    assert "Verification on 120 images: passed" in said
    assert len(re.findall(r"^shapes/val/\w+\.\d\.png: (circle|square|triangle) ", said, re.MULTILINE)) == 2


def two_processes(names: dict[str, Any], said: str) -> None:
    """Both runs had two processes; the second went on with the first."""
    assert said.count("; cpu, 2 processes") == 2 and "Resuming from" in said
    assert said.strip().endswith("2")


PAGES = {
    "docs/tutorial/1_inference.md": Page(
        prepare=quickstart_run,
        not_run={f"lbitcls infer {IMAGENET} \\": "data"},
        check=one_digit_three_ways,
        slow=True,
    ),
    "docs/tutorial/2_train_and_evaluate.md": Page(
        words={
            "--seed 1": f"--seed 1 --options total_epochs=2 calibration.epoch=1 {NO_PICTURES}",
            "total_epochs=5": f"total_epochs=2 calibration.epoch=1 {NO_PICTURES}",
        },
        not_run={
            ON_GPUS: "gpu",
            f"torchrun --standalone --nproc_per_node 8 --no-python lbitcls test {IMAGENET} \\": "gpu",
        },
        check=trained_resumed_and_tested,
        slow=True,
    ),
    "docs/tutorial/3_analyse.md": Page(
        prepare=trained_run,
        not_run={"lbitcls compare photos configs/Float/resnet50/config32_res50_float_32w32f.py \\": "data"},
        check=analysed,
        slow=True,
    ),
    "docs/tutorial/4_quantizer.md": Page(
        words={
            "train digits_tqt_4w4f.py": f"train digits_tqt_4w4f.py --options {SHORT} export=None",
            "--work-dir work_dirs/ternary --options": f"--work-dir work_dirs/ternary --options {SHORT}",
        },
        check=own_quantizer,
        slow=True,
    ),
    "docs/tutorial/5_parts.md": Page(
        words={"train shapes_lsq_4w4f.py": f"train shapes_lsq_4w4f.py --options {NO_PICTURES}"},
        check=own_parts,
        slow=True,
    ),
    "docs/tutorial/6_distributed.md": Page(
        words={
            "--work-dir work_dirs/two --options": f"--work-dir work_dirs/two --options {SHORT_TWO}",
            "total_epochs=31": f"{SHORT_TWO} total_epochs=3",
        },
        not_run={
            ON_GPUS: "gpu",
            TORCHRUN: "machines",
            "srun --ntasks=16 --ntasks-per-node=8 --gres=gpu:8 \\": "machines",
        },
        check=two_processes,
        slow=True,
    ),
}
