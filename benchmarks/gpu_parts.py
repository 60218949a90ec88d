"""Checks of `gpu_check.sh`, each run by name in a process of its own.

    python benchmarks/gpu_parts.py NAME --device cuda --work FOLDER [--data-root FOLDER]

A check writes its result to FOLDER/NAME.json. The exit code is 77 if the check is skipped, other than 0 if it failed.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
QUICKSTART = ROOT / "configs/quickstart/digits_lsq_4w4f.py"
MNIST = ROOT / "configs/mnist/lenet5_lsq_4w4f.py"
OLDEST, NEWEST = (2, 11), (2, 15)
SKIPPED = 77
LEAST_ACCURACY = 80.0  # percent, of a few epochs on the digits


class Skipped(Exception):
    """Reason why a check cannot run here."""


@dataclass(frozen=True)
class Place:
    """Device, work folder, and folder with data, or None."""

    device: str
    work: Path
    data_root: Path | None

    @property
    def on_gpu(self) -> bool:
        """True on a GPU."""
        return self.device != "cpu"


def config(place: Place, name: str, base: Path = QUICKSTART, **sections: Any) -> Any:
    """Return a short run of a shipped config: 6 epochs, quantized from the third on."""
    from lbitcls.utils.config import Config

    cfg = Config.fromfile(base)
    given = dict(
        work_dir=str(place.work / f"run_{name}"),
        device=place.device,
        total_epochs=6,
        calibration=dict(epoch=3, num_batches=4),
        lr_config=dict(policy="CosineAnnealing", min_lr=0.0, by_epoch=False, warmup="linear", warmup_iters=10),
        kernels="auto" if place.on_gpu else "plain",
        export=None,
        log_config=dict(interval=10, hooks=[dict(type="TextLoggerHook")], pictures=False),
    )
    return Config({**cfg._cfg_dict, **given, **sections})


def trained(cfg: Any, phase: str = "quantized", least: float = LEAST_ACCURACY, **options: Any) -> float:
    """Train, and return the best top-1 of the phase; it must reach `least`."""
    from lbitcls.apis import train_classifier

    found = train_classifier(cfg, **options)[phase]["top1"]
    assert found >= least, f"top-1 {found:.1f} %; expected at least {least:.0f} %"
    return found


def environment(place: Place) -> str:
    """Check the versions of torch and the presence of the device."""
    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    assert OLDEST <= version <= NEWEST, f"torch must be 2.11 to 2.15; got {torch.__version__}"
    missing = [name for name in ("mmengine", "pydantic", "torchvision") if importlib.util.find_spec(name) is None]
    assert not missing, f"{', '.join(missing)} missing: pip install -r requirements/runtime.txt, or --wheels FOLDER"
    if not place.on_gpu:
        return f"torch {torch.__version__}, CPU"
    assert torch.cuda.is_available(), f"torch {torch.__version__} finds no GPU; use --device cpu"
    assert importlib.util.find_spec("triton"), "Triton is missing: pip install triton"
    device = torch.device(place.device)
    return f"torch {torch.__version__}, CUDA {torch.version.cuda}, {torch.cuda.get_device_name(device)}"


def train(place: Place) -> str:
    """Train in float, then quantized."""
    return f"top-1 {trained(config(place, 'train')):.1f} %"


def resume(place: Place) -> str:
    """Interrupt a deterministic run by SIGTERM and resume it; compare with an uninterrupted one."""
    from lbitcls.apis import train_classifier
    from lbitcls.core.guard import Interrupted

    register_stop()
    options = dict(deterministic=True, ema=dict(decay=0.9))
    whole = config(place, "whole", **options)
    ended = config(place, "ended", custom_hooks=[dict(type="StopAt", at=100)], **options)
    train_classifier(whole)
    with contextlib.suppress(Interrupted):
        train_classifier(ended)
        raise AssertionError("the signal did not end the run")
    train_classifier(config(place, "ended", **options), resume=True)
    states = [torch.load(Path(cfg.work_dir, "latest.pth"), weights_only=True) for cfg in (whole, ended)]
    assert states[0]["meta"]["iter"] == states[1]["meta"]["iter"], "the resumed run has another length"
    different = list(differences(*(dict(model=s["state_dict"], optimizer=s["optimizer"]) for s in states)))
    assert not different, f"{len(different)} tensors differ, {different[0]}"
    return "bit-identical (deterministic=True)"


def register_stop() -> None:
    """Register a hook that sends SIGTERM to its own process."""
    from lbitcls.core.hooks import Hook
    from lbitcls.registry import HOOKS

    @HOOKS.register_module()
    class StopAt(Hook):
        """Hook that interrupts the run after an iteration."""

        def __init__(self, at: int) -> None:
            self.at = at

        def after_iter(self, runner: Any) -> None:
            if runner.iter == self.at:
                os.kill(os.getpid(), signal.SIGTERM)


def differences(a: Any, b: Any, where: str = "") -> Iterator[str]:
    """Yield the tensors that differ between two states, with the largest difference."""
    if isinstance(a, torch.Tensor):
        if not torch.equal(a, b):
            yield f"{where[1:]} by {(a.double() - b.double()).abs().max().item():.1e}"
    elif isinstance(a, (dict, list, tuple)):
        assert len(a) == len(b), f"{where[1:]} has another length"
        for key in a if isinstance(a, dict) else range(len(a)):
            yield from differences(a[key], b[key], f"{where}.{key}")


def test(place: Place) -> str:
    """Validate the trained checkpoint on the device and on the CPU."""
    from lbitcls.apis import test_classifier

    cfg, cpu = config(place, "train"), config(place, "train", num_threads=1)
    cpu.device = "cpu"
    file = Path(cfg.work_dir, "latest.pth")
    assert file.is_file(), "no checkpoint: the check 'train' failed or did not run"
    a, b = (test_classifier(c, file)["top-1"] for c in (cfg, cpu))
    assert abs(a - b) <= 1.0, f"top-1 {a:.2f} % on {place.device}, {b:.2f} % on the CPU"
    return f"top-1 {a:.2f} % on {place.device}, {b:.2f} % on the CPU"


def export(place: Place) -> str:
    """Export the trained checkpoint as an integer model, and verify it."""
    from lbitcls.commands.main import main

    missing = [n for n in ("onnx", "onnxscript", "onnxruntime", "openvino") if importlib.util.find_spec(n) is None]
    if missing:
        raise Skipped(f"needs {', '.join(missing)} (requirements/deploy.txt)")
    cfg = config(place, "train")
    checkpoint = Path(cfg.work_dir, "latest.pth")
    assert checkpoint.is_file(), "no checkpoint: the check 'train' failed or did not run"
    file = place.work / "digits.py"
    cfg.dump(file)
    code = main(["export", str(file), str(checkpoint), "--out", str(place.work / "digits.onnx"), "--verify"])
    assert code == 0, f"lbitcls export --verify: exit code {code}"
    return "verified in the engines of the CPU target"


def bf16(place: Place) -> str:
    """Train under bfloat16 autocast."""
    return f"top-1 {trained(config(place, 'bf16', amp='bf16', channels_last=True)):.1f} %"


def fp16(place: Place) -> str:
    """Train under float16 autocast with a dynamic loss scale (bfloat16 on a CPU)."""
    return f"top-1 {trained(config(place, 'fp16', amp='fp16', channels_last=True)):.1f} %"


def kernels(place: Place) -> str:
    """Compare fused kernels with plain ones, for every method: values and gradients."""
    from lbitcls.quant.methods import METHODS
    from lbitcls.registry import QUANT_LAYERS

    QUANT_LAYERS.names()  # imports every method
    chosen = list(METHODS) if place.on_gpu else ["LSQ"]
    shares = {name: compared(name, torch.device(place.device)) for name in chosen}
    worst = max(shares, key=lambda name: shares[name])
    assert shares[worst] <= 1e-3, f"{worst}: {100 * shares[worst]:.3f} % of the values differ"
    values = "equal values" if shares[worst] == 0 else f"{worst}: {100 * shares[worst]:.4f} % of the values differ"
    return f"{len(chosen)} methods, {values}"


def compared(method: str, device: torch.device) -> float:
    """Return the share of values that differ between fused and plain kernels; gradients must agree."""
    from lbitcls.quant import select_kernels
    from lbitcls.quant.methods import METHODS

    worst = 0.0
    for role, channels in (("input", None), ("weight", 32)):
        torch.manual_seed(0)
        quantizer = getattr(METHODS[method], role)(4, role=role, num_channels=channels).to(device)
        data = torch.randn(32, 4096, device=device)
        grad = torch.randn_like(data)
        quantizer.initialize(data)
        results = []
        for kind in ("plain", "fused"):
            select_kernels(kind, device)
            quantizer.zero_grad()
            x = data.clone().requires_grad_(True)
            y = quantizer(x)
            y.backward(grad)
            results.append((y.detach(), [x.grad, *(p.grad for p in quantizer.parameters())]))
        (plain, expected), (fused, found) = results
        worst = max(worst, (plain != fused).double().mean().item())
        for a, b in zip(expected, found, strict=True):
            assert a is not None and b is not None, f"{method}, {role}: a gradient is missing"
            off = (a - b).abs() > 1e-3 * a.abs().amax() + 1e-6
            assert off.double().mean() <= 1e-3, f"{method}, {role}: the gradients differ"
    return worst


def compiled(place: Place) -> str:
    """Train with compile=True, quantized from the start."""
    sections = dict(compile=True, calibration=dict(epoch=0, num_batches=4), total_epochs=4)
    if not place.on_gpu:  # a CPU compiles for minutes
        sections["model"] = small_model()
    return f"top-1 {trained(config(place, 'compile', **sections), least=LEAST_ACCURACY if place.on_gpu else 20):.1f} %"


def small_model() -> dict[str, Any]:
    """Return a classifier's config with three convolutions, which compiles in seconds."""
    return dict(
        type="ImageClassifier",
        backbone=dict(type="ResNetCIFAROptionA", depth=8, in_channels=1, base_channels=32, out_indices=(0,)),
        neck=dict(type="GlobalAveragePooling"),
        head=dict(type="LinearClsHead", num_classes=10, in_channels=32, topk=(1,)),
    )


def ddp(place: Place) -> str:
    """Compare three steps of a model wrapped by DDP, on one rank, with those of the model alone."""
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    device = torch.device("cuda", torch.device(place.device).index or 0) if place.on_gpu else torch.device("cpu")
    if place.on_gpu:
        torch.cuda.set_device(device)
    backend = "nccl" if place.on_gpu else "gloo"
    dist.init_process_group(backend)
    try:
        alone = steps(device, lambda model: model)
        ids = [device.index] if place.on_gpu else None
        wrapped = steps(device, lambda model: DistributedDataParallel(model, device_ids=ids))
    finally:
        dist.destroy_process_group()
    worst = max(float((a - b).abs().max()) for a, b in zip(alone, wrapped, strict=True))
    assert worst <= 1e-5, f"the weights differ by {worst:.1e} from those without DDP"
    return f"{backend}, weights within {worst:.0e}"


def steps(device: torch.device, wrap: Callable[[torch.nn.Module], torch.nn.Module]) -> list[torch.Tensor]:
    """Return the parameters after three optimizer steps of a quantized model."""
    from lbitcls.core.step import OptimizerStep
    from lbitcls.models import build_classifier
    from lbitcls.quant import build_mtransformer, calibrate, regularization, select_kernels
    from lbitcls.utils.config import Config

    select_kernels("plain", device)
    torch.manual_seed(0)
    cfg = Config.fromfile(QUICKSTART)
    model = build_mtransformer(cfg.quant_transformer)(build_classifier(cfg.model)).to(device).train()
    images, labels = torch.randn(64, 1, 8, 8).to(device), torch.arange(64, device=device) % 10
    calibrate(model, [images])
    wrapped = wrap(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.01, 0.9)
    step = OptimizerStep(optimizer, device, penalty=lambda: regularization(model))
    for index in range(3):
        step(wrapped, dict(img=images, gt_label=labels), index, 3)
    return [p.detach().clone() for p in model.parameters()]


def torchrun(place: Place) -> str:
    """Train with tools/dist_train.sh on one rank."""
    cfg = config(place, "torchrun", dist_params=dict(backend="nccl"))
    file = place.work / "torchrun.py"
    cfg.dump(file)
    call = [str(ROOT / "tools/dist_train.sh"), str(file), "1"]
    done = subprocess.run(call, env={**os.environ, "PYTHON": sys.executable}, check=False)
    assert done.returncode == 0, f"tools/dist_train.sh: exit code {done.returncode}"
    found = json.loads(Path(cfg.work_dir, "summary.json").read_text())["quantized"]["top1"]
    return f"top-1 {found:.1f} %"


def images(place: Place) -> str:
    """Train an epoch on MNIST, read and augmented by worker processes."""
    cfg = config(place, "images", MNIST, total_epochs=1, calibration=dict(epoch=0, num_batches=4))
    cfg.data.update(samples_per_gpu=256, workers_per_gpu=2)
    cfg.data.train.pipeline.insert(0, dict(type="v2.RandomRotation", degrees=5))  # has no batch form
    return f"top-1 {trained(cfg, least=90, data_root=str(place.data_root)):.1f} % after one epoch"


def step(place: Place) -> str:
    """Measure a step of LSQ ResNet-18 against float (on a CPU of ResNet-8, with 8 images)."""
    file = place.work / "step_rows.json"
    size = [] if place.on_gpu else ["--small", "--batch", "8", "--size", "16", "--repeats", "3"]
    call = [sys.executable, str(ROOT / "benchmarks/gpu_step.py"), "--device", place.device, "--json", str(file), *size]
    done = subprocess.run(call, check=False)
    assert done.returncode == 0, f"gpu_step.py: exit code {done.returncode}"
    rows = {row["variant"]: row for row in json.loads(file.read_text())["rows"]}
    parts = []
    for kind in ("compiled", "eager"):
        found = rows[f"LSQ {kind}"]
        memory = "" if found["memory"] is None else f", {found['memory']:.2f} of its peak memory"
        parts.append(f"{kind} {found['milliseconds']:.1f} ms, {found['time']:.2f} of float {kind}{memory}")
    return "; ".join(parts)


PARTS: dict[str, Callable[[Place], str]] = {
    **{f.__name__: f for f in (environment, train, resume, test, export, bf16, fp16, kernels, ddp, torchrun, images)},
    "compile": compiled,
    "step": step,
}


def main() -> int:
    """Run one check, write its result, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=sorted(PARTS))
    parser.add_argument("--device", required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--data-root", type=Path)
    args = parser.parse_args()
    code = 0
    try:
        result = PARTS[args.name](Place(args.device, args.work, args.data_root))
    except Skipped as reason:
        result, code = str(reason), SKIPPED
    except AssertionError as fault:
        result, code = str(fault), 1
    (args.work / f"{args.name}.json").write_text(json.dumps(dict(result=result)))
    return code


if __name__ == "__main__":
    sys.exit(main())
