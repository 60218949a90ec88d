"""Small configs, and mutations of any value in them."""

from __future__ import annotations

import copy
import inspect
import math
import random
from collections.abc import Iterator
from typing import Any

from lbitcls import registry
from lbitcls.core.optim import optimizers
from lbitcls.quant.methods import LayerEntry
from lbitcls.utils.errors import shown

VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 3, 7, 32, 10**9, -(10**9), 2**63, 10**30, 10**400),
    *(0.0, 0.5, -0.5, 1.5, 1e-300, 1e308, -1e308, math.inf, -math.inf, math.nan),
    *(
        "",
        "x",
        "1e-3",
        "nan",
        "None",
        "é\n",
        "a" * 500,
        "cpu",
        "train",
        "../x",
        "torchvision://x",
        "v2.x",
        "v2.Normalize",
    ),
    *([], [1], [-1], [0, 0], [None], [[1]], ["x"], [1, 2, 3], [0.5, math.nan], [10**9, 10**9], (), range(3)),
    *({}, {"type": "x"}, {"type": None}, {"type": 3}, {"a": 1}, {1: 2}, {"type": {"type": "x"}}, {"": None}),
)
NORMALIZE = dict(type="Normalize", mean=[0.305], std=[0.376])


def _data(*steps: dict[str, Any], both: tuple[dict[str, Any], ...] = (NORMALIZE,)) -> dict[str, Any]:
    ends = [dict(type="ImageToTensor", keys=["img"]), dict(type="Collect", keys=["img", "gt_label"])]
    train = dict(type="Digits", split="train", pipeline=[*steps, *both, *ends])
    val = dict(type="Digits", split="test", indices=[*range(40)], pipeline=[*both, *ends])
    return dict(samples_per_gpu=8, workers_per_gpu=0, drop_last=False, train=train, val=val)


def _model(backbone: dict[str, Any], channels: int, **more: Any) -> dict[str, Any]:
    head = dict(
        type="LinearClsHead",
        num_classes=10,
        in_channels=channels,
        dropout=0.1,
        topk=(1, 5),
        loss=dict(type="CrossEntropyLoss", loss_weight=1.0, class_weight=None),
    )
    neck = dict(type="GlobalAveragePooling")
    return dict(type="ImageClassifier", backbone=backbone, neck=neck, head=head, **more)


def _quantized(method: str, **options: Any) -> dict[str, Any]:
    entry = dict(num_bit_w=4, num_bit_a=4, **options)
    return dict(
        type="mTransformerV2",
        quan_policy=dict(Conv2d=dict(type=f"{method}Conv", **entry), Linear=dict(type=f"{method}Linear", **entry)),
        special_layers=dict(
            layers_name=["backbone.conv1", "head.fc"],
            convert_type=[dict(type="LSQConv", num_bit_w=8, num_bit_a=8), None],
        ),
        exclude_layers=[],
        fold_bn=False,
        residual_bits=None,
    )


RESNET = dict(type="ResNetCIFAROptionA", depth=8, in_channels=1, base_channels=4)
RUN: dict[str, Any] = dict(
    optimizer=dict(type="SGD", lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True),
    lr_config=dict(policy="CosineAnnealing", min_lr=0.0, by_epoch=False, warmup="linear", warmup_iters=4),
    total_epochs=4,
    evaluation=dict(interval=1, metric="accuracy", metric_options=dict(topk=(1, 5)), save_best="top-1", train=None),
    checkpoint_config=dict(interval=1, by_epoch=True, max_keep_ckpts=2),
    log_config=dict(interval=10, hooks=[dict(type="TextLoggerHook")]),
    seed=0,
    device="cpu",
)
CONFIGS: dict[str, dict[str, Any]] = {
    "float": dict(model=_model(RESNET, 16), data=_data(dict(type="RandomCrop", size=8, padding=1)), **RUN),
    "lsq": dict(
        model=_model(RESNET, 16),
        data=_data(dict(type="RandomFlip", flip_prob=0.5)),
        quant_transformer=_quantized("LSQ"),
        calibration=dict(epoch=1, num_batches=8, method=None),
        kernels="plain",
        export=dict(verify=False, num_images=200, opset=21, pack=False, residual_bits=None, target="cpu"),
        **RUN,
    ),
    "features": dict(
        model=_model(dict(RESNET, frozen=True, frozen_stages=-1, norm_eval=False), 16),
        data=_data(),
        feature_cache=dict(max_mib=64),
        **{**RUN, "optimizer": dict(type="AdamW", lr=1e-3, betas=(0.9, 0.999), eps=1e-8, amsgrad=False)},
    ),
    "averaged": dict(
        model=_model(RESNET, 16, train_cfg=dict(augments=dict(type="BatchMixup", alpha=1.0, prob=0.5))),
        data=_data(dict(type="Resize", size=(8, 8), interpolation="bilinear"), dict(type="Pad", padding=1)),
        quant_transformer=_quantized("PACT", per_channel=True),
        calibration=dict(epoch=0, num_batches=2, method="mse"),
        ema=dict(decay=0.99),
        amp=dict(dtype="bf16", loss_scale="dynamic"),
        optimizer_config=dict(grad_clip=dict(max_norm=5.0, norm_type=2), cumulative_iters=2),
        workflow=[("train", 2), ("val", 1)],
        channels_last=True,
        **RUN,
    ),
    "hooks": dict(
        model=_model(RESNET, 16),
        data=_data(
            dict(type="ColorJitter", brightness=0.1, contrast=0.1),
            dict(type="RandomErasing", erase_prob=0.5, min_area_ratio=0.02, max_area_ratio=0.4, fill_color=[128]),
            dict(type="v2.RandomRotation", degrees=10),
        ),
        custom_hooks=[
            dict(type="PreciseBNHook", num_batches=2, interval=1, priority="NORMAL"),
            dict(type="UnfreezeHook", epoch=1, layers=["backbone"], lr_mult=0.5, reload_best=True),
        ],
        **{
            **RUN,
            "optimizer": dict(RUN["optimizer"], paramwise_cfg=dict(custom_keys=dict(fc=dict(lr_mult=2.0)))),
            "lr_config": dict(policy="step", step=[2, 3], gamma=0.1),
        },
    ),
}


STEPS: dict[str, list[dict[str, Any]]] = {
    "sizes": [
        dict(type="RandomResizedCrop", size=8, scale=(0.5, 1.0), ratio=(0.75, 1.33), interpolation="bilinear"),
        dict(type="Pad", size=(10, 10), pad_val=0, padding_mode="constant"),
        dict(type="CenterCrop", crop_size=9),
        dict(type="Fit", size=8),
    ],
    "colors": [
        dict(type="LoadImageFromFile", color_type="unchanged"),
        dict(type="RandomGrayscale", gray_prob=0.5),
        dict(type="AutoAugment", policy="cifar10"),
        dict(type="RandAugment", num_ops=2, magnitude=9, num_magnitude_bins=31),
    ],
}
METHOD_OPTIONS: dict[str, dict[str, Any]] = {
    "LSQPlus": dict(per_channel=True, signed=False),
    "DoReFa": dict(quant_activation=True, bSetQ=True),
    "APoT": dict(),
    "UQ": dict(),
    "DSQ": dict(),
    "TorchQAT": dict(narrow_range=False),
}
for _name, _options in METHOD_OPTIONS.items():
    _steps = STEPS["sizes" if _name in ("LSQPlus", "APoT", "DSQ") else "colors"]
    CONFIGS[_name] = dict(
        model=_model(RESNET, 16), data=_data(*_steps), quant_transformer=_quantized(_name, **_options), **RUN
    )
CONFIGS["mobilenet"] = dict(
    model=_model(dict(type="MobileNetV2", widen_factor=0.25, frozen_stages=1), 1280),
    data=_data(
        both=(dict(type="LoadImageFromFile", color_type="color"), dict(NORMALIZE, mean=[0.3] * 3, std=[0.4] * 3))
    ),
    **{**RUN, "evaluation": dict(interval=2, start=1, metric=["precision", "f1_score"], save_best="loss", train=20)},
)
CONFIGS["mobilenet"]["model"]["head"]["loss"] = dict(type="LabelSmoothLoss", label_smooth_val=0.1, mode="original")
CONFIGS["lenet"] = dict(
    model=dict(type="ImageClassifier", backbone=dict(type="LeNet5", num_classes=10), head=dict(type="ClsHead")),
    data=_data(both=(dict(type="Resize", size=(32, 32)), NORMALIZE)),
    quant_transformer=_quantized("LSQ") | {"special_layers": None, "fold_bn": True},
    **RUN,
)


def places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The place of each value in a config, at every depth."""
    if place:
        yield place
    keys = value.keys() if isinstance(value, dict) else range(min(len(value), 3)) if isinstance(value, list) else ()
    for key in keys:
        yield from places(value[key], (*place, key))


def arguments_by_type() -> dict[str, list[str]]:
    """The arguments of everything that a config names by its `type`."""
    found: dict[str, list[str]] = {}
    for known in {
        id(value): value for value in vars(registry).values() if isinstance(value, registry.Registry)
    }.values():
        for name in known.names():
            target = known.module_dict[name]
            if isinstance(target, LayerEntry):
                found[name] = ["num_bit_w", "num_bit_a", "bSetQ", *target.method.options()]
            elif target.__module__.startswith("lbitcls."):
                found[name] = list(inspect.signature(target).parameters)
    for name, kind in optimizers().items():
        found[name] = [key for key in inspect.signature(kind).parameters if key != "params"]
    return found


def mutate(config: dict[str, Any], draw: random.Random, arguments: dict[str, list[str]]) -> str:
    """Change something in `config` in place: a value, a key, its presence, an argument; what was done, in words.

    Args:
        config: changed in place.
        draw: decides.
        arguments: from `arguments_by_type`.
    """
    owners = [owner for owner in components(config) if arguments.get(str(owner["type"]))]
    if owners and draw.random() < 0.4:
        return mutate_argument(draw.choice(owners), draw, arguments)
    return mutate_value(config, draw, sorted(arguments))


def components(value: Any) -> Iterator[dict[str, Any]]:
    """Each dict with a `type`, at every depth."""
    if isinstance(value, dict):
        if isinstance(value.get("type"), str):
            yield value
        for inner in value.values():
            yield from components(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from components(inner)


def mutate_argument(owner: dict[str, Any], draw: random.Random, arguments: dict[str, list[str]]) -> str:
    """Set an argument of a component, whether the config gives it or not."""
    key = draw.choice(arguments[owner["type"]])
    owner[key] = copy.deepcopy(draw.choice(VALUES))
    return f"{owner['type']}.{key} = {shown(owner[key])}"


def mutate_value(config: dict[str, Any], draw: random.Random, names: list[str]) -> str:
    """Change a value of `config`, its key or its presence; `names` are types to put in the place of another."""
    place = draw.choice(list(places(config)))
    owner = config
    for key in place[:-1]:
        owner = owner[key]
    key, old = place[-1], owner[place[-1]]
    how = draw.random()
    if how < 0.08 and isinstance(owner, dict):
        del owner[key]
        return f"{place}: deleted"
    if how < 0.14 and isinstance(owner, dict):
        owner[draw.choice([f"{key}x", "type", "pretrained", "", "size", "init_cfg"])] = owner.pop(key)
        return f"{place}: renamed, {list(owner)}"
    if key == "type" and how < 0.6:
        new: Any = draw.choice(names)
    elif how < 0.22:
        new = draw.choice([[old], [old, old], {"type": old}, {"a": old}, str(old), (old,)])
    elif how < 0.32 and type(old) in (int, float):
        new = draw.choice([-old, old * 1000, old + 0.5, float(old), old + 1, old - 1])
    else:
        new = copy.deepcopy(draw.choice(VALUES))
    owner[key] = new
    return f"{place}: {shown(old)} -> {shown(new)}"
