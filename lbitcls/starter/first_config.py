"""From a folder of images to a config that trains on it: `lbitcls init`."""

from __future__ import annotations

import os
import re
import statistics
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from lbitcls.starter.recipe import QUANTIZED, Plan, config_text, find_network, shell
from lbitcls.starter.survey import Image, Survey, printable, split_images, survey_folder
from lbitcls.utils.checkpoint import read_checkpoint
from lbitcls.utils.errors import CheckpointError, ConfigError, DataError, suggest
from lbitcls.utils.files import check_writable, write_whole
from lbitcls.utils.logging import print_table
from lbitcls.utils.published import SCHEME, fetch_weights, is_published

_SHOWN = 5  # of a kind of trouble
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
    """Look at a folder of images, say what is in it, and write a config that trains on it as it is.

    Where there is no `val`, images of each class are set aside, always the same ones, in list files beside the config.
    Lists are written too where images must be left out: unreadable ones, and those of `train` that are in `val`.

    Args:
        folder: holds a folder for each class, or `train`, `val` (and `test`) with such folders.
        backbone: torchvision's name of a network.
        quantize: `'lsq-4w4f'` or `'qat-8w8f'`: quantizers come on after the training in float.
        pretrained: weights to start from: a file, `torchvision://NAME`, or `'none'`. None: torchvision's for the
            backbone, or none, with a word on it, where they cannot be had.
        out: the config to write; None: the folder's name in the current folder.
        val: share of the images to validate with, where there is no `val`.
        workers: threads that read the images; None: one for each core.
        time_limit: seconds after which no more images are read.

    Returns:
        The config's path.

    Raises:
        ConfigError: a file is there already, or an argument is wrong.
        DataError: the folder is missing, or holds no classes of images.
        CheckpointError: the weights that were asked for cannot be had.
    """
    _check_arguments(quantize, val, workers)
    target = _target(folder, out)
    network = find_network(backbone)
    survey = survey_folder(folder, workers, time_limit)
    parts = _divided(survey, val)
    _report(survey, parts)
    weights = _weights(pretrained, backbone)
    data, lists = _data_sets(survey, parts, target)
    plan = Plan(
        title=survey.root.resolve().name,
        commands=_commands(target, quantize),
        facts=_facts(survey, parts, lists),
        classes=survey.classes,
        network=network,
        pretrained=weights,
        quantize=quantize,
        data=data,
        train_images=len(parts["train"]),
        size=_side(survey),
        workers=min(4, os.cpu_count() or 1),
        work_dir=f"work_dirs/{target.stem}",
    )
    for path, text in {**lists, target: config_text(plan)}.items():
        write_whole(path, partial(Path.write_text, data=text, encoding="utf-8"))
    print(f"\nWrote {', '.join(map(str, [target, *lists]))}. {plan.epochs} epochs. Next:\n  {plan.commands[0]}")
    return target


def _check_arguments(quantize: str | None, val: float, workers: int | None) -> None:
    if quantize is not None and quantize not in QUANTIZED:
        raise ConfigError(
            f"--quantize: there is no recipe '{quantize}'{suggest(quantize, QUANTIZED)} Known: {', '.join(QUANTIZED)}."
        )
    if not 0 < val < 1:
        raise ConfigError(f"--val is a share between 0 and 1; got {val}.")
    if workers is not None and workers < 1:
        raise ConfigError(f"--workers is a number from 1; got {workers}.")


def _target(folder: str | Path, out: str | Path | None) -> Path:
    """The config to write, which is not there yet; nor are its lists."""
    stem = re.sub(r"\W+", "_", Path(folder).expanduser().resolve().name).strip("_").lower() or "images"
    target = Path(out).expanduser() if out is not None else Path(f"{stem}.py")
    if target.suffix != ".py":
        raise ConfigError(f"--out names the config to write, a .py file; got '{target}'.")
    for path in (target, *(_list_file(target, part) for part in ("train", "val", "test"))):
        if path.exists():
            raise ConfigError(f"{path} is there already and is not overwritten; name another config with --out.")
    return check_writable(target, "--out")


def _list_file(target: Path, part: str) -> Path:
    return target.with_name(f"{target.stem}_{part}.txt")


def _divided(survey: Survey, share: float) -> dict[str, list[Image]]:
    """The usable images of each part; without `val` some of `train` are set aside."""
    usable = [image for image in survey.images if not image.error and image.kind in survey.classes]
    parts = {part: [image for image in usable if image.part == part] for part in survey.parts or ("train",)}
    elsewhere = {image.digest for part, images in parts.items() if part != "train" for image in images} - {""}
    parts["train"] = [image for image in parts["train"] if image.digest not in elsewhere]
    if not parts["train"]:
        raise DataError("every image of train/ is in val/ or test/ too, so none is left to train on.")
    if not parts.get("val"):
        train, val = split_images(parts["train"], share)
        parts = {"train": train, "val": val, **{part: parts[part] for part in ("test",) if parts.get(part)}}
    return parts


def _data_sets(
    survey: Survey, parts: dict[str, list[Image]], target: Path
) -> tuple[dict[str, dict[str, Any]], dict[Path, str]]:
    """The data set of each part, and the list files that they need, with their texts."""
    skip = {} if survey.checked == len(survey.images) else {"on_error": "skip"}
    whole = {
        part: [image for image in survey.images if image.part == part] == images and not survey.empty
        for part, images in parts.items()
    }
    data: dict[str, dict[str, Any]] = {}
    lists = {}
    for part, images in parts.items():
        if part in survey.parts and whole[part]:
            data[part] = {"data_prefix": _as_written(survey.parts[part]), **skip}
            continue
        file = _list_file(target, part)
        labels = {kind: label for label, kind in enumerate(survey.classes)}
        lists[file] = "".join(f"{image.name} {labels[image.kind]}\n" for image in images)
        data[part] = {"data_prefix": _as_written(survey.root), "ann_file": _as_written(file), **skip}
    return data, lists


def _as_written(path: Path) -> str:
    """The path from the current folder where it lies below it, else as it was given."""
    return os.path.relpath(path) if path.resolve().is_relative_to(Path.cwd()) else str(path)


def _weights(given: str | None, backbone: str) -> str | None:
    """What the backbone starts from; asked for and not to be had is an error, torchvision's missing ones a message."""
    if given == "none":
        return None
    if given is not None and not is_published(given):
        read_checkpoint(given)
        return given
    name = given or f"{SCHEME}{backbone}"
    try:
        fetch_weights(name)
    except (CheckpointError, ConfigError) as error:
        if given is not None:
            raise
        print(
            f"No pretrained weights: {error}\nThe config trains from random weights, which takes longer and is less "
            "accurate. With the weights in place, or a file of your own as --pretrained, remove the config and call "
            "init again."
        )
        return None
    return name


def _side(survey: Survey) -> int:
    """Side of the images that the model sees: 224, or 128 where most images are small."""
    sides = [min(image.size) for image in survey.images if image.size]
    return 224 if not sides or statistics.median(sides) >= 160 else 128


def _commands(target: Path, quantize: str | None) -> list[str]:
    config, folder = str(target), f"work_dirs/{target.stem}"
    commands = [shell("lbitcls", "train", config), shell("lbitcls", "visualize", "errors", config)]
    best = f"{folder}/best_top-1.pth"
    if quantize is None:
        return [*commands, shell("lbitcls", "test", config, best)]
    model = f"{folder}/model.onnx"
    return [
        *commands,
        shell("lbitcls", "export", config, best, "--out", model),
        shell("lbitcls", "test", config, model),
    ]


def _facts(survey: Survey, parts: dict[str, list[Image]], lists: dict[Path, str]) -> list[str]:
    numbers = ", ".join(f"{len(images):,} in {part}" for part, images in parts.items())
    facts = [f"Written by `lbitcls init`: {numbers}."]
    if lists:
        facts.append(f"The images are listed in {', '.join(path.name for path in lists)}.")
    if survey.checked < len(survey.images):
        facts.append("Not all images were read, so unreadable ones are left out in training (`on_error`).")
    return facts


# The report.


def _report(survey: Survey, parts: dict[str, list[Image]]) -> None:
    """Print the counts, and what the user should know of the images."""
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
    text = f"There is no val/: {len(parts['val']):,} images, some of each class, are set aside for validation."
    return text + (f" Not of {_some(alone)}, with one image each." if alone else "")


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
        f"Imbalance: '{most}' has {ratio:.1f} times the training images of '{least}' ({counts[most]:,} and "
        f"{counts[least]:,}). Collect more, or weight the classes: model.head.loss=dict(type='CrossEntropyLoss', "
        "class_weight=[…])."
    )


def _troubles(survey: Survey) -> list[str]:
    lines = []
    if survey.checked < len(survey.images):
        lines.append(f"Only {survey.checked:,} of {len(survey.images):,} images were read in the time (--time-limit).")
    if survey.empty:
        lines.append(f"Without images, left out: {_some(survey.empty)}.")
    unreadable = survey.unreadable()
    if unreadable:
        lines.append(f"Unreadable, left out: {len(unreadable):,}")
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
