"""Writes a config that trains on a folder of images: `lbitcls init`."""

from __future__ import annotations

import os
import re
import statistics
from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lbitcls.starter.quantization import Recipe, find_recipe
from lbitcls.starter.recipe import Plan, config_text, find_network, shell
from lbitcls.starter.survey import Image, Survey, printable, split_images, survey_folder
from lbitcls.utils.checkpoint import read_checkpoint
from lbitcls.utils.errors import CheckpointError, ConfigError, DataError
from lbitcls.utils.files import check_writable, write_whole
from lbitcls.utils.logging import print_table
from lbitcls.utils.published import SCHEME, fetch_weights, is_published

_SHOWN = 5  # examples of each kind of problem
_ROWS = 40  # classes in the table
_IMBALANCE = 3.0


def init_config(
    folder: str | Path,
    *,
    backbone: str = "mobilenet_v2",
    quantize: str | None = None,
    pretrained: str | None = None,
    out: str | Path | None = None,
    val: float = 0.2,
    workers: int | None = None,
    time_limit: float = 120.0,
) -> Path:
    """Survey a folder of images, report what it contains, and write a config that trains on it unchanged.

    Without a `val` folder, some images of each class, always the same ones, are held out for validation; list files
    beside the config name them. Lists also leave out unreadable images and images of `train` that are in `val` too.

    Args:
        folder: Folder with a subfolder per class, or with `train`, `val` (and `test`) that have such subfolders.
        backbone: torchvision's name of the network.
        quantize: `METHOD-NwMf`, such as `'lsq-4w4f'`: quantizes the model after training in float, weights with N
            bits and inputs with M, by one of the methods lsq, lsqplus, dsq, dorefa, pact, apot, uq, ewgs, n2uq, qat;
            `'int8'` means `qat-8w8f`, `'int4'` `lsq-4w4f`. None: stays float.
        pretrained: Weights to initialize from: a file, `torchvision://NAME`, or `'none'`. None: torchvision's weights
            for the backbone; if these are unavailable, random weights and a message.
        out: Path of the config; None: named after the folder, in the current folder.
        val: Validation fraction, used if there is no `val` folder; between 0 and 1.
        workers: Number of threads that read the images; None: one per core.
        time_limit: Seconds after which no more images are read.

    Returns:
        Path of the config.

    Raises:
        ConfigError: A file to write already exists, or an argument is wrong.
        DataError: The folder is missing, or contains no classes of images.
        CheckpointError: The weights in `pretrained` are unavailable.
    """
    _check_arguments(val, workers)
    recipe = find_recipe(quantize) if quantize is not None else None
    target = _target(folder, out)
    network = find_network(backbone)
    survey = survey_folder(folder, workers, time_limit)
    parts = _divided(survey, val)
    _report(survey, parts)
    weights = _weights(pretrained, backbone, target)
    data, lists = _data_sets(survey, parts, target)
    exports = all(map(installed, ("onnx", "onnxscript", "onnxruntime", "openvino")))
    plan = Plan(
        title=survey.root.resolve().name,
        commands=_commands(target, recipe, exports),
        facts=_facts(survey, parts, lists),
        classes=survey.classes,
        network=network,
        pretrained=weights,
        quantize=recipe,
        data=data,
        train_images=len(parts["train"]),
        size=_side(survey),
        workers=min(4, os.cpu_count() or 1),
        work_dir=f"work_dirs/{target.stem}",
        exports=exports,
        boards=installed("tensorboard"),
    )
    for path, text in {**lists, target: config_text(plan)}.items():
        write_whole(path, partial(Path.write_text, data=text, encoding="utf-8"))
    print(
        f"\nWrote {', '.join(map(str, [target, *lists]))}. The config trains for {plan.epochs} epochs.\nNext:\n"
        f"  {plan.commands[0]}"
    )
    return target


def installed(package: str) -> bool:
    """Return True if an optional package can be imported."""
    return find_spec(package) is not None


def _check_arguments(val: float, workers: int | None) -> None:
    if not 0 < val < 1:
        raise ConfigError(f"--val must be a fraction between 0 and 1; got {val}.")
    if workers is not None and workers < 1:
        raise ConfigError(f"--workers must be an integer ≥ 1; got {workers}.")


def _target(folder: str | Path, out: str | Path | None) -> Path:
    """Return the path of the config; raise `ConfigError` if it or one of its lists already exists."""
    stem = re.sub(r"\W+", "_", Path(folder).expanduser().resolve().name).strip("_").lower() or "images"
    target = Path(out).expanduser() if out is not None else Path(f"{stem}.py")
    if target.suffix != ".py":
        raise ConfigError(f"--out must be a .py file, the config to write; got '{target}'.")
    for path in (target, *(_list_file(target, part) for part in ("train", "val", "test"))):
        if path.exists():
            raise ConfigError(f"{path} already exists and is not overwritten; name another config with --out.")
    return check_writable(target, "--out")


def _list_file(target: Path, part: str) -> Path:
    return target.with_name(f"{target.stem}_{part}.txt")


def _divided(survey: Survey, share: float) -> dict[str, list[Image]]:
    """Return the usable images of each part; without `val`, hold out some of `train`."""
    usable = [image for image in survey.images if not image.error and image.kind in survey.classes]
    parts = {part: [image for image in usable if image.part == part] for part in survey.parts or ("train",)}
    elsewhere = {image.digest for part, images in parts.items() if part != "train" for image in images} - {""}
    parts["train"] = [image for image in parts["train"] if image.digest not in elsewhere]
    if not parts["train"]:
        raise DataError("every image in train/ is also in val/ or test/, so none is left to train on.")
    if not parts.get("val"):
        train, val = split_images(parts["train"], share)
        parts = {"train": train, "val": val, **{part: parts[part] for part in ("test",) if parts.get(part)}}
    return parts


def _data_sets(
    survey: Survey, parts: dict[str, list[Image]], target: Path
) -> tuple[dict[str, dict[str, Any]], dict[Path, str]]:
    """Return each part's data set, and the content of the list files that the parts need."""
    skip = {} if survey.checked == len(survey.images) else {"on_error": "skip"}
    whole = {
        part: [image for image in survey.images if image.part == part] == images and not survey.empty
        for part, images in parts.items()
    }
    data: dict[str, dict[str, Any]] = {}
    lists = {}
    for part, images in parts.items():
        if part in survey.parts and whole[part]:
            data[part] = {"data_prefix": _as_written(survey.parts[part], target), **skip}
            continue
        file = _list_file(target, part)
        labels = {kind: label for label, kind in enumerate(survey.classes)}
        lists[file] = "".join(f"{image.name} {labels[image.kind]}\n" for image in images)
        data[part] = {"data_prefix": _as_written(survey.root, target), "ann_file": file.name, **skip}
    return data, lists


def _as_written(path: Path, target: Path) -> str:
    """Return the path relative to the config's folder; unchanged if it is absolute and not below that folder."""
    named, folder = Path(os.path.abspath(path)), Path(os.path.abspath(target.parent))
    if named.is_relative_to(folder):
        return named.relative_to(folder).as_posix()
    return str(path) if path.is_absolute() else os.path.relpath(path.resolve(), target.parent.resolve())


def _weights(given: str | None, backbone: str, target: Path) -> str | None:
    """Return the weights to initialize from; unavailable: an error if the user named them, else a message."""
    if given == "none":
        return None
    if given is not None and not is_published(given):
        read_checkpoint(given)
        return _as_written(Path(given).expanduser(), target)
    name = given or f"{SCHEME}{backbone}"
    try:
        fetch_weights(name)
    except (CheckpointError, ConfigError) as error:
        if given is not None:
            raise
        print(
            f"No pretrained weights: {error}\nThe config trains from random weights, which takes longer and is less "
            "accurate. Once the weights are available, or with a file of your own as --pretrained, delete the config "
            "and run init again."
        )
        return None
    return name


def _side(survey: Survey) -> int:
    """Return the side of the model's input images in pixels: 224, or 128 if most images are small."""
    sides = [min(image.size) for image in survey.images if image.size]
    return 224 if not sides or statistics.median(sides) >= 160 else 128


def _commands(target: Path, recipe: Recipe | None, exports: bool) -> list[str]:
    config, folder = str(target), f"work_dirs/{target.stem}"
    commands = [shell("lbitcls", "train", config), shell("lbitcls", "visualize", "errors", config)]
    best, model = f"{folder}/best_top-1.pth", f"{folder}/model.onnx"
    if recipe is None:
        return [*commands, shell("lbitcls", "test", config, best)]
    if not exports:
        commands.append(shell("lbitcls", "export", config, best, "--out", model))
    benchmark = [shell("lbitcls", "benchmark", model, f"{folder}/float.onnx")] if exports else []
    return [*commands, shell("lbitcls", "test", config, model), *benchmark]


def _facts(survey: Survey, parts: dict[str, list[Image]], lists: dict[Path, str]) -> list[str]:
    numbers = ", ".join(f"{len(images):,} in {part}" for part, images in parts.items())
    facts = [f"Written by `lbitcls init`. Images: {numbers}."]
    if lists:
        facts.append(f"Image lists: {', '.join(path.name for path in lists)}.")
    if survey.checked < len(survey.images):
        facts.append("Not every image was checked; training skips those that it cannot read (`on_error`).")
    return facts


# The report.


def _report(survey: Survey, parts: dict[str, list[Image]]) -> None:
    """Print the counts, and what the user should know about the images."""
    rows = [
        (kind, *(f"{sum(image.kind == kind for image in images):,}" for images in parts.values()))
        for kind in survey.classes[:_ROWS]
    ]
    rest = len(survey.classes) - _ROWS
    total = (f"all {len(survey.classes)} classes", *(f"{len(images):,}" for images in parts.values()))
    more = [(f"… and {rest} more", *([""] * len(parts)))] if rest > 0 else []
    print_table(f"Images in {survey.root}", ("class", *parts), [*rows, *more, total])
    for line in (_made_split(survey, parts), _sizes(survey), _imbalance(survey, parts), *_troubles(survey)):
        if line:
            print(line)


def _made_split(survey: Survey, parts: dict[str, list[Image]]) -> str:
    if "val" in survey.parts:
        return ""
    alone = [kind for kind in survey.classes if not any(image.kind == kind for image in parts["val"])]
    text = f"There is no val/: {len(parts['val']):,} images, some of each class, are held out for validation."
    return text + (f" Classes with one image are used for training only: {_some(alone)}." if alone else "")


def _sizes(survey: Survey) -> str:
    sizes = [image.size for image in survey.images if image.size]
    if not sizes:
        return ""
    widths, heights = zip(*sizes, strict=True)
    return (
        f"Sizes: {min(widths)} to {max(widths)} pixels wide (median {statistics.median(widths):.0f}), {min(heights)} "
        f"to {max(heights)} high (median {statistics.median(heights):.0f})."
    )


def _imbalance(survey: Survey, parts: dict[str, list[Image]]) -> str:
    counts = {kind: sum(image.kind == kind for image in parts["train"]) for kind in survey.classes}
    most, least = max(counts, key=counts.__getitem__), min(counts, key=counts.__getitem__)
    ratio = counts[most] / max(counts[least], 1)
    if ratio < _IMBALANCE:
        return ""
    return (
        f"Imbalance: '{most}' has {ratio:.1f} times as many training images as '{least}' ({counts[most]:,} and "
        f"{counts[least]:,}). Collect more images of the rare classes, or weight the loss: "
        "model.head.loss=dict(type='CrossEntropyLoss', class_weight=[…])."
    )


def _troubles(survey: Survey) -> list[str]:
    lines = []
    if survey.checked < len(survey.images):
        lines.append(f"Only {survey.checked:,} of {len(survey.images):,} images were read within --time-limit.")
    if survey.empty:
        lines.append(f"Class folders without images, left out: {_some(survey.empty)}.")
    unreadable = survey.unreadable()
    if unreadable:
        lines.append(f"Unreadable images, left out: {len(unreadable):,}")
        lines += [f"  {printable(image.name)}: {image.error}" for image in unreadable[:_SHOWN]]
        lines += [f"  … and {len(unreadable) - _SHOWN:,} more"] * (len(unreadable) > _SHOWN)
    twins = survey.twins()
    for title, found in (
        ("The same image in two classes", [g for g in twins if len({image.kind for image in g}) > 1]),
        ("The same image in two parts (left out of training)", [g for g in twins if _parts_of(g) > 1]),
        ("The same image twice", [g for g in twins if _parts_of(g) == 1 and len({i.kind for i in g}) == 1]),
    ):
        if found:
            lines.append(f"{title}: {len(found):,}")
            lines += ["  " + " = ".join(image.name for image in group[:3]) for group in found[:_SHOWN]]
    return lines


def _parts_of(group: Sequence[Image]) -> int:
    return len({image.part for image in group})


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
