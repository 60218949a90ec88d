"""Text of the config that `lbitcls init` writes: a transfer-learning recipe for a folder of images.

AdamW fine-tunes the pretrained weights at a learning rate of 0.001 for the new head and 0.00003 for the backbone;
BatchNorm keeps its published statistics and weights. SGD with momentum, at 0.0003 for MobileNetV2's weights, did well
for five epochs on ants and bees, then lost everything it had learned. For LSQ and EWGS, calibration picks the initial
ranges by least squared error, as in `configs/transfer/…_lsq_4w4f.py`.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lbitcls.registry import BACKBONES
from lbitcls.starter.quantization import Recipe
from lbitcls.utils.errors import ConfigError, suggest
from lbitcls.utils.jsontext import json_text

WIDTH = 120
_OWN: dict[str, dict[str, Any]] = {
    "mobilenet_v2": dict(type="MobileNetV2"),
    **{f"resnet{depth}": dict(type="ResNet", depth=depth) for depth in (18, 34, 50, 101, 152)},
    **{f"squeezenet{version}": dict(type="SqueezeNet", version=version) for version in ("1_0", "1_1")},
}


@dataclass(frozen=True)
class Network:
    """Facts about a backbone that a config needs.

    Attributes:
        section: Config section, without weights.
        channels: Channels of the last feature.
        first: Full name of the first layer.
        maps: True if the feature is a map, which a neck must average.
        norms: True if the backbone has BatchNorm.
    """

    section: dict[str, Any]
    channels: int
    first: str
    maps: bool
    norms: bool

    @property
    def squeezes(self) -> bool:
        """True if the classifier is a convolution (SqueezeNet)."""
        return self.section["type"] == "SqueezeNet"

    @property
    def takes_norm_cfg(self) -> bool:
        """True if the backbone accepts `norm_cfg`, which sets how its BatchNorm trains."""
        return self.section["type"] in ("MobileNetV2", "ResNet")


def find_network(name: str) -> Network:
    """Return the backbone that torchvision calls `name`; the package's own implementation if there is one.

    Raises:
        ConfigError: Torchvision has no such classifier, or it does not classify RGB images.
    """
    import torchvision
    from torch import nn
    from torchvision.models import list_models

    known = list_models(module=torchvision.models)
    if name not in known:
        raise ConfigError(
            f"--backbone: torchvision has no classifier '{name}'{suggest(name, known)} Known: {', '.join(known)}."
        )
    section = _OWN.get(name, dict(type="TorchvisionBackbone", name=name))
    backbone = BACKBONES.build(dict(section))
    layers = [(key, layer) for key, layer in backbone.named_modules() if isinstance(layer, (nn.Conv2d, nn.Linear))]
    norms = any(isinstance(layer, nn.BatchNorm2d) for layer in backbone.modules())
    return Network(section, backbone.num_features, f"backbone.{layers[0][0]}", name in _OWN, norms)


@dataclass(frozen=True)
class Plan:
    """Everything that the config depends on.

    Attributes:
        title: Name of the folder.
        commands: Commands that the config's docstring shows.
        facts: Sentences for the config's docstring.
        classes: Class names, in label order.
        network: Backbone.
        pretrained: Weights of the backbone: a file, `torchvision://NAME`, or None for random weights.
        quantize: Method and bits; None: the model stays float.
        data: Keys of each part's data set, without its pipeline.
        train_images: Number of training images.
        size: Side of the model's input images, in pixels.
        workers: Number of processes that load images.
        work_dir: Work directory of the run.
        exports: True if the packages that an export needs are installed.
        boards: True if TensorBoard is installed.
    """

    title: str
    commands: Sequence[str]
    facts: Sequence[str]
    classes: Sequence[str]
    network: Network
    pretrained: str | None
    quantize: Recipe | None
    data: dict[str, dict[str, Any]]
    train_images: int
    size: int
    workers: int
    work_dir: str
    exports: bool
    boards: bool

    @property
    def batch(self) -> int:
        """Batch size; smaller for small data sets, so that an epoch has several steps."""
        return 8 if self.train_images < 80 else 16 if self.train_images < 1000 else 32

    @property
    def float_epochs(self) -> int:
        """Epochs in float: about 6,000 images in all with pretrained weights, ten times as many without."""
        images, least, most = (6_000, 5, 30) if self.pretrained else (60_000, 10, 100)
        return min(max(round(images / self.train_images), least), most)

    @property
    def epochs(self) -> int:
        """Total epochs, in float and then quantized."""
        return self.float_epochs + (self.quantize.epochs(self.float_epochs) if self.quantize else 0)


def config_text(plan: Plan) -> str:
    """Return the formatted config."""
    sections = [
        _docstring(plan),
        f"classes = {_list(plan.classes)}",
        _model(plan),
        _pipelines(plan),
        _data(plan),
        *([_quantization(plan, plan.quantize)] if plan.quantize else []),
        _schedule(plan),
    ]
    return "\n\n".join(sections) + "\n"


def _docstring(plan: Plan) -> str:
    how = "fine-tuned from pretrained weights" if plan.pretrained else "trained from random weights"
    then = f", then quantized with {plan.quantize.title}" if plan.quantize else ""
    head = f"{plan.title}: {len(plan.classes)} classes, {plan.network.section['type']} {how}{then}."
    commands = "\n".join(f"    {command}" for command in plan.commands)
    text = f"{head}\n\n{commands}\n\n" + "\n".join(plan.facts) + "\n"
    return '"""' + _no_template(text.replace("\\", "\\\\").replace('"""', "'''")) + '"""'


def _model(plan: Plan) -> str:
    network = plan.network
    backbone = dict(network.section)
    if plan.pretrained:
        backbone["pretrained"] = plan.pretrained
        if network.norms:
            backbone["norm_eval"] = True  # few images give poor statistics, so the published ones stay
        if network.takes_norm_cfg:
            backbone["norm_cfg"] = dict(type="BN", requires_grad=False)
    lines = ['    type="ImageClassifier",', f"    backbone={_call(backbone, 4)},"]
    if network.maps and not network.squeezes:
        lines.append('    neck=dict(type="GlobalAveragePooling"),')
    kind = "ConvClsHead" if network.squeezes else "LinearClsHead"
    lines.append(f'    head=dict(type="{kind}", num_classes=len(classes), in_channels={network.channels}),')
    return "model = dict(\n" + "\n".join(lines) + "\n)"


def _pipelines(plan: Plan) -> str:
    resize = round(plan.size * 256 / 224)
    return f"""normalize = dict(type="Normalize", mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="RandomResizedCrop", size={plan.size}, scale=(0.35, 1.0)),
    dict(type="RandomFlip", flip_prob=0.5, direction="horizontal"),  # remove it if left and right matter, as in text
    dict(type="ColorJitter", brightness=0.2, contrast=0.2, saturation=0.2),
    normalize,
    dict(type="ImageToTensor", keys=["img"]),
    dict(type="ToTensor", keys=["gt_label"]),
    dict(type="Collect", keys=["img", "gt_label"]),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", size=({resize}, -1)),
    dict(type="CenterCrop", crop_size={plan.size}),
    normalize,
    dict(type="ImageToTensor", keys=["img"]),
    dict(type="Collect", keys=["img", "gt_label"]),
]"""


def _data(plan: Plan) -> str:
    lines = [
        f"    samples_per_gpu={plan.batch},  # batch size",
        f"    workers_per_gpu={plan.workers},  # processes that load images",
    ]
    for part, keys in plan.data.items():
        lines.append(f"    {part}=dict(")
        lines += [f"        {key}={_value(value)}," for key, value in {"type": "ImageFolder", **keys}.items()]
        pipeline = "train_pipeline" if part == "train" else "test_pipeline"
        lines += ["        classes=classes,", f"        pipeline={pipeline},", "    ),"]
    root = 'data_root = "{{ fileDirname }}"  # paths are relative to the folder of this config'
    return f"{root}\ndata = dict(\n" + "\n".join(lines) + '\n)\nevaluation = dict(interval=1, metric="accuracy")'


def _quantization(plan: Plan, recipe: Recipe) -> str:
    last = ("head.conv", "Conv") if plan.network.squeezes else ("head.fc", "Linear")
    rule = f', method="{recipe.method.calibration}"' if recipe.method.calibration else ""
    return f"""{recipe.section(plan.network.first, last, plan.network.norms)}
# The model trains in float for `epoch` epochs; then its quantizers are calibrated, and training continues quantized.
calibration = dict(epoch={plan.float_epochs}, num_batches={min(8, -(-plan.train_images // plan.batch))}{rule})
{_export(plan)}"""


def _export(plan: Plan) -> str:
    text = "export = dict(verify=True)"
    if plan.exports:
        return f"{text}  # at the end: a verified integer model, model.onnx, and float.onnx to compare it with"
    return f"# {text}  # exports an integer model at the end; it needs pip install lbitcls[deploy]"


def _schedule(plan: Plan) -> str:
    optimizer = ['type="SGD"', "lr=0.05", "momentum=0.9", "weight_decay=1e-4"]
    if plan.pretrained:
        parts = 'paramwise_cfg=dict(custom_keys={"backbone": dict(lr_mult=0.03)})'
        optimizer = ['type="AdamW"', "lr=0.001", "weight_decay=0.01", parts]
    lines = "".join(f"    {key},\n" for key in optimizer)
    steps = -(-plan.train_images // plan.batch)
    board = 'dict(type="TensorboardLoggerHook")'
    loggers = f'dict(type="TextLoggerHook"), {board}' if plan.boards else 'dict(type="TextLoggerHook")'
    missing = "" if plan.boards else f"\n# {board} needs pip install tensorboard."
    return f"""# To test the learning rate, with its curve: {plan.commands[0]} --find-lr
optimizer = dict(
{lines})
lr_config = dict(policy="CosineAnnealing", min_lr=0.0, by_epoch=False, warmup="linear", warmup_iters={min(steps, 500)})
total_epochs = {plan.epochs}
checkpoint_config = dict(interval=1, max_keep_ckpts=2)  # keeps the last two checkpoints, and the best one
log_config = dict(hooks=[{loggers}]){missing}
seed = 0
work_dir = {_value(plan.work_dir)}"""


def _value(value: Any) -> str:
    """Return a string, number, boolean or section as Python source with double quotes."""
    if isinstance(value, dict):
        return f"dict({', '.join(f'{key}={_value(inner)}' for key, inner in value.items())})"
    return _no_template(json_text(value, ensure_ascii=False)) if isinstance(value, str) else repr(value)


def _no_template(text: str) -> str:
    """Return a string literal's text without `{{`, which mmengine would replace by a variable's value."""
    return text.replace("{{", r"{\x7b")


def _call(section: dict[str, Any], indent: int) -> str:
    """Return `dict(…)`, on one line if it fits."""
    keys = [f"{key}={_value(value)}" for key, value in section.items()]
    line = f"dict({', '.join(keys)})"
    if indent + len("backbone=,") + len(line) <= WIDTH:
        return line
    return "dict(\n" + "".join(f"{' ' * (indent + 4)}{key},\n" for key in keys) + " " * indent + ")"


def _list(texts: Sequence[str]) -> str:
    line = f"[{', '.join(map(_value, texts))}]"
    if len("classes = ") + len(line) <= WIDTH:
        return line
    return "[\n" + "".join(f"    {_value(text)},\n" for text in texts) + "]"


def shell(*words: str) -> str:
    """Return a command as typed in a shell."""
    return shlex.join(words)
