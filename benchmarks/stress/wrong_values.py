"""Two configs that train in a second and set nearly every key between them, and wrong values for any place in them."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from typing import Any

Path_ = tuple[Any, ...]
NORMALIZE = dict(type="Normalize", mean=[0.305], std=[0.376], to_rgb=True)
LAST = [
    dict(type="ImageToTensor", keys=["img"]),
    dict(type="ToTensor", keys=["gt_label"]),
    dict(type="Collect", keys=["img", "gt_label"], meta_keys=()),
]
TEST = [NORMALIZE, dict(type="ImageToTensor", keys=["img"]), dict(type="Collect", keys=["img"])]


def digits(part: str, number: int, pipeline: list[Any]) -> dict[str, Any]:
    return dict(type="Digits", split=part, indices=list(range(number)), pipeline=pipeline)


QUANTIZED: dict[str, Any] = dict(
    model=dict(
        type="ImageClassifier",
        backbone=dict(
            type="ResNetCIFAROptionA", depth=8, in_channels=1, base_channels=4, frozen_stages=-1, norm_eval=False
        ),
        neck=dict(type="GlobalAveragePooling"),
        head=dict(
            type="LinearClsHead",
            num_classes=10,
            in_channels=16,
            loss=dict(type="CrossEntropyLoss", loss_weight=1.0, class_weight=[1.0] * 10),
            topk=(1, 5),
            dropout=0.1,
        ),
    ),
    data=dict(
        samples_per_gpu=16,
        workers_per_gpu=0,
        train=digits("train", 32, [dict(type="RandomCrop", size=8, padding=1), NORMALIZE, *LAST]),
        val=digits("test", 16, TEST),
        test=digits("test", 16, [dict(type="Resize", size=(8, -1)), dict(type="CenterCrop", crop_size=8), *TEST]),
    ),
    evaluation=dict(interval=1, metric="accuracy", metric_options=dict(topk=(1, 5)), save_best="top-1", start=0),
    quant_transformer=dict(
        type="mTransformerV2",
        quan_policy=dict(
            Conv2d=dict(type="LSQConv", num_bit_w=4, num_bit_a=4, per_channel=True, signed=None),
            Linear=dict(type="DSQLinear", num_bit_w=4, num_bit_a=4),
        ),
        special_layers=dict(
            layers_name=["backbone.conv1", "head.fc"],
            convert_type=[
                dict(type="PACTConv", num_bit_w=8, num_bit_a=8, bSetQ=True),
                dict(type="TorchQATLinear", num_bit_w=8, num_bit_a=8, quant_activation=True),
            ],
        ),
        exclude_layers=["backbone.layer1"],
        fold_bn=False,
    ),
    calibration=dict(epoch=0, num_batches=2, method="mse"),
    optimizer=dict(
        type="SGD",
        lr=0.1,
        momentum=0.9,
        weight_decay=5e-4,
        nesterov=True,
        paramwise_cfg=dict(norm_decay_mult=0.0, custom_keys={"head": dict(lr_mult=2.0, decay_mult=1.0)}),
    ),
    optimizer_config=dict(grad_clip=dict(max_norm=35, norm_type=2), cumulative_iters=1),
    lr_config=dict(
        policy="CosineAnnealing", min_lr=0.0, by_epoch=False, warmup="linear", warmup_iters=4, warmup_ratio=0.1
    ),
    total_epochs=1,
    checkpoint_config=dict(interval=1, by_epoch=True, max_keep_ckpts=2),
    log_config=dict(interval=10, hooks=[dict(type="TextLoggerHook")], pictures=False),
    kernels="plain",
    export=dict(verify=True, num_images=20, opset=21),
    num_threads=1,
    seed=0,
    work_dir="work",
    data_root=".",
)
FLOAT: dict[str, Any] = dict(
    model=dict(
        type="ImageClassifier",
        backbone=dict(type="LeNet5", num_classes=10),
        head=dict(type="ClsHead", loss=dict(type="LabelSmoothLoss", label_smooth_val=0.1, num_classes=10), topk=1),
        train_cfg=dict(augments=[dict(type="BatchMixup", alpha=0.2, num_classes=10, prob=0.5)]),
        pretrained=None,
    ),
    data=dict(
        samples_per_gpu=16,
        workers_per_gpu=0,
        drop_last=True,
        train=digits(
            "train",
            32,
            [
                dict(type="LoadImageFromFile", color_type="grayscale"),
                dict(type="RandomResizedCrop", size=32, scale=(0.5, 1.0), ratio=(0.8, 1.2), interpolation="bilinear"),
                dict(type="RandomFlip", flip_prob=0.5, direction="horizontal"),
                dict(type="v2.RandomRotation", degrees=10),
                dict(type="ColorJitter", brightness=0.2),
                dict(type="RandomErasing", erase_prob=0.5, min_area_ratio=0.02, mode="const", fill_color=0),
                NORMALIZE,
                *LAST,
            ],
        ),
        val=digits("test", 16, [dict(type="Pad", padding=12, pad_val=0, padding_mode="constant"), *TEST]),
    ),
    evaluation=dict(interval=1, metric=["accuracy", "f1_score"]),
    optimizer=dict(type="AdamW", lr=0.001, betas=(0.9, 0.99), eps=1e-8, amsgrad=False),
    optimizer_config=dict(grad_clip=None),
    lr_config=dict(policy="step", step=[1, 2], gamma=0.1),
    total_epochs=1,
    checkpoint_config=dict(interval=-1),
    log_config=dict(interval=1),
    log_level="INFO",
    load_from=None,
    resume_from=None,
    work_dir="work",
    workflow=[("train", 1), ("val", 1)],
    dist_params=dict(backend="gloo"),
    amp=dict(dtype="bf16"),
    seed=0,
    deterministic=False,
    cudnn_benchmark=False,
    find_unused_parameters=False,
    sycbn=False,
    cpu_only=True,
    device="cpu",
    num_threads=1,
    gpu_ids=None,
    custom_hooks=[
        dict(type="PreciseBNHook", num_batches=1, interval=1, priority="NORMAL"),
        dict(type="UnfreezeHook", epoch=1, layers=["backbone.features"], lr_mult=0.1),
    ],
    custom_imports=dict(imports=["json"], allow_failed_imports=False),
    compile=False,
    ema=dict(decay=0.9),
    feature_cache=None,
    channels_last=True,
)
FLOAT["total_epochs"] = 2
BASES = {"quantized": QUANTIZED, "float": FLOAT}
VALUES: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 7, 10**9, 10**30, -(10**30)),
    *(0.0, -0.5, 0.5, 1.5, 1e30, -1e30, math.nan, math.inf, -math.inf),
    *("", "x", "1e-3", "a.b", "../..", "\0", "\ud800", "{{ _base_ }}", "x" * 300, b"x"),
    *([], (), {}, [[]], [None], ["x"], [math.nan], [1, "x"], [-1], [10**30], {"x": 1}, {1: 2}),
    *({"type": "X"}, {"type": {"type": "X"}}, {"type": None}, {"type": 3}, [{"type": "X"}], [{}], {"type": []}),
]


def places(value: Any, above: Path_ = ()) -> Iterator[Path_]:
    """Yield the path of every value in a config, of lists the first three items'."""
    items: Any = value.items() if isinstance(value, dict) else enumerate(value[:8])
    for key, inner in items:
        yield (*above, key)
        if isinstance(inner, (dict, list, tuple)) and key != "indices":
            yield from places(inner, (*above, key))


def of(base: dict[str, Any], path: Path_) -> Any:
    value: Any = base
    for key in path:
        value = value[key]
    return value


def unshared(value: Any) -> Any:
    """Return a copy in which no part is two places at once, as `TEST` is."""
    if isinstance(value, dict):
        return {key: unshared(inner) for key, inner in value.items()}
    return type(value)(map(unshared, value)) if isinstance(value, (list, tuple)) else value


def put(sections: dict[str, Any], path: Path_, value: Any) -> dict[str, Any]:
    """Return the sections with another value at `path`; tuples on the way become lists."""
    changed = unshared(sections)
    owner: Any = changed
    for key in path[:-1]:
        if isinstance(owner[key], tuple):
            owner[key] = list(owner[key])
        owner = owner[key]
    owner[path[-1]] = value
    return changed


def mutant(number: int) -> tuple[str, dict[str, Any]]:
    """Return a config with a wrong value, and its place and value in words: a function of `number`."""
    draw = random.Random(number)
    name = draw.choice(sorted(BASES))
    sections = BASES[name]
    # Sections first, so that each is met as often as the long pipelines.
    section = draw.choice(sorted(sections))
    path = draw.choice([place for place in places(sections) if place[0] == section])
    old = of(sections, path)
    kind = draw.choice(["value"] * 8 + ["list", "dict", "gone", "text"])
    new = {"value": draw.choice(VALUES), "list": [old], "dict": {"a": old}, "text": str(old), "gone": None}[kind]
    if path == ("total_epochs",) and isinstance(new, (int, float)) and new > 1000:
        new = 0
    sections = put(sections, path, new)
    if kind == "gone":
        del of(sections, path[:-1])[path[-1]]
    said = f"{number}: {name} {'.'.join(map(str, path))} {kind} {ascii(new)[:60]}"
    return said, sections


def text_of(value: Any) -> str:
    """Return a value as Python, NaN and lone surrogates too."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key!a}: {text_of(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        text = "".join(f"{text_of(item)}, " for item in value)
        return f"[{text}]" if isinstance(value, list) else f"({text})"
    return f"float('{value}')" if isinstance(value, float) and not math.isfinite(value) else ascii(value)
