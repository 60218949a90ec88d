"""Compares a quantized model with the float model on images, and writes an HTML report: `lbitcls compare`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from lbitcls.analysis.advice import advise, special_layers
from lbitcls.analysis.compare import compare_models
from lbitcls.analysis.findings import Analysis
from lbitcls.analysis.report import check_target, write_report
from lbitcls.analysis.summary import describe
from lbitcls.assembly.image_sizes import natural_size
from lbitcls.assembly.session import make_model, open_session
from lbitcls.datasets import build_dataloader
from lbitcls.datasets.base import FileDataset
from lbitcls.datasets.listing import images_of
from lbitcls.inference.preparation import Steps, fitting_steps, same_steps, test_steps
from lbitcls.inference.self_described import CHECKPOINTS
from lbitcls.settings.sections import Settings, read_settings
from lbitcls.utils.checkpoint import load_checkpoint, read_checkpoint
from lbitcls.utils.device import device_or_cpu
from lbitcls.utils.errors import CheckpointError, ConfigError, DataError
from lbitcls.utils.files import EXPORTED, suggest_path
from lbitcls.utils.logging import get_logger, interactive

ORDER = "IMAGES FLOAT_CONFIG INT_CONFIG FLOAT_CHECKPOINT INT_CHECKPOINT [DEVICE [PAGE]]"
PAGE = "model_analysis.html"
_FORMS = f"Give IMAGES WORK_DIR, or all files: {ORDER}, or for one model IMAGES CONFIG CHECKPOINT."
_BATCH = 32  # maximum batch size


@dataclass(frozen=True)
class _Side:
    """Model with the files that it was built from, and its class names if they are known."""

    model: nn.Module
    settings: Settings
    config: str
    checkpoint: str
    classes: Sequence[str] | None


def compare_checkpoints(
    images: str | Path,
    files: Sequence[str | Path],
    *,
    out: str | Path | None = None,
    num_images: int = 64,
    float_only: bool = False,
    device: str | None = None,
) -> Analysis:
    """Compare a quantized model with the float model, layer by layer; write an HTML page, and its numbers as JSON.

    Args:
        images: Image, or folder of images, subfolders included; if these are named after the classes, accuracy is
            measured too. The test pipeline of the (quantized) config prepares the images.
        files: WORK_DIR, a run's work directory, whose config and checkpoints are used; or FLOAT_CONFIG, INT_CONFIG,
            FLOAT_CHECKPOINT, INT_CHECKPOINT; or for one model CONFIG, CHECKPOINT: a
            quantized model is compared with itself without its quantizers. `device` and `out` may follow the four
            files, as in the original tool, where a GPU that this machine lacks is replaced by the CPU, with a warning.
        out: HTML page to write, `.html`; None: `model_analysis.html`, in WORK_DIR if that is given. The numbers go
            beside it, `.json`.
        num_images: Maximum number of images from a folder, in a shuffled order that is always the same.
        float_only: True: analyze one float model.
        device: Device of the models; None: the first GPU, or the CPU.

    Raises:
        ConfigError: other files than those above, two architectures, or a file that cannot be written.
        CheckpointError: a checkpoint cannot be read, is another model's, has other quantizers, or is in the other's
            place.
        DataError: there are no images.
        DependencyError: a package of the extra `analysis` is missing.
    """
    run = Path(files[0]).expanduser() if len(files) == 1 else None
    if run is not None:
        files, out = _files_of_run(run, float_only), out or run / PAGE
    files, device, out = _trailing(files, device, out)
    configs, checkpoints = _in_places(files, float_only)
    if num_images < 1:
        raise ConfigError(f"--num-images must be an integer ≥ 1; got {num_images}.")
    paths = find_images(images, num_images)
    page, figures = check_target(out, "--save-path", *configs, *checkpoints, *paths)
    sides = [
        _open(config, checkpoint, not float_only and place == len(configs) - 1, device)
        for place, (config, checkpoint) in enumerate(zip(configs, checkpoints, strict=True))
    ]
    _check_pipelines(sides)
    main = sides[-1]
    batches, labels = read_batches(paths, Path(images).expanduser(), main.settings, main.model, main.classes)
    analysis = compare_models(
        main.model,
        sides[0].model if len(sides) == 2 else None,
        [batch.to(next(main.model.parameters()).device) for batch in batches],
        labels,
        shown=interactive(),
    )
    about = _about(images, sides, float_only)
    if run is not None:
        about["title"] = run.resolve().name
    snippet = special_layers(advise(analysis), main.settings.quant_transformer or {})
    write_report(analysis, page, figures, about, snippet)
    print("\n".join(sentence.replace("`", "") for sentence in describe(analysis)))
    if snippet:
        print(f"More bits gain most for their size in these layers; paste into quant_transformer to try:\n{snippet}")
    get_logger().info("Wrote %s and %s", page, figures)
    return analysis


def _files_of_run(folder: Path, float_only: bool) -> list[str]:
    """Return the files to compare of a run: its config and its best checkpoints, of the float phase too if it has one.

    Raises:
        ConfigError: The folder is missing, or its config is missing or not the only one.
        CheckpointError: It has no checkpoint.
    """
    if not folder.is_dir():
        raise ConfigError(f"a single path after the images is a run's work directory; {folder} is no folder. {_FORMS}")
    configs = sorted(folder.glob("*.py"))
    if len(configs) != 1:
        found = ", ".join(path.name for path in configs) or "none"
        raise ConfigError(f"{folder} must contain the run's config as its only .py file; found {found}. {_FORMS}")
    float_phase = sorted(folder.glob("best_float_*.pth"))
    best = [path for path in sorted(folder.glob("best_*.pth")) if path not in float_phase]
    found_best = (float_phase if float_only and float_phase else best) or [folder / "latest.pth"]
    if not found_best[0].exists():
        raise CheckpointError(f"{folder} has no best_*.pth and no latest.pth. {_FORMS}")
    config, checkpoint = str(configs[0]), str(found_best[0])
    if float_only or not float_phase:
        return [config, checkpoint]
    return [config, config, str(float_phase[0]), checkpoint]


def _trailing(
    files: Sequence[str | Path], device: str | None, out: str | Path | None
) -> tuple[Sequence[str | Path], str | None, str | Path]:
    """Return the four files, and the device and page, which may follow the files or be given by name."""
    if len(files) in (5, 6):
        given = dict(zip(("device", "page"), map(str, files[4:]), strict=False))
        for name, other in (("device", device), ("page", out)):
            if name in given and other is not None:
                raise ConfigError(f"the {name} is given twice, as {given[name]} and as {other}; the order is {ORDER}.")
        files, device, out = files[:4], device_or_cpu(get_logger(), given["device"]), given.get("page", out)
    return files, device, out or PAGE


def _in_places(files: Sequence[str | Path], float_only: bool) -> tuple[list[str], list[str]]:
    """Return the configs and the checkpoints, equally many of each."""
    given = [str(file) for file in files]
    if float_only and len(given) != 2:
        raise ConfigError(
            f"--float-only needs one model: IMAGES CONFIG CHECKPOINT; got {len(given)} files after the images."
        )
    if len(given) not in (2, 4):
        raise ConfigError(
            f"the arguments must be {ORDER}, or for one model IMAGES CONFIG CHECKPOINT; got {len(given)} files after "
            "the images."
        )
    half = len(given) // 2
    configs, checkpoints = given[:half], given[half:]
    for path in configs:
        if Path(path).suffix.lower() in (*CHECKPOINTS, *EXPORTED):
            raise ConfigError(f"{path} is in the place of a config; the order is {ORDER}.")
    return configs, checkpoints


def _read(path: str, device: str | None, quantized: bool) -> Settings:
    """Return the settings of a config, without its quantization if the float model is wanted."""
    settings = read_settings(path)
    settings.require(("model", "data"), "an analysis")
    if quantized and not settings.quant_transformer:
        raise ConfigError(
            f"{path} has no quant_transformer, so its model is not quantized; give the quantized model's config, or "
            "--float-only to analyze one float model."
        )
    changes = ({} if quantized else {"quant_transformer": None}) | ({} if device is None else {"device": device})
    return settings.changed(**changes)


def _open(config: str, checkpoint: str, quantized: bool, device: str | None) -> _Side:
    """Build the model of a config with its weights, on its device."""
    settings = _read(config, device, quantized)
    with open_session(settings) as session:
        switches = _check_place(checkpoint, quantized)
        model = make_model(settings, replace(session, logger=_quiet()), pretrained=False, checkpoint=checkpoint)
        strict = quantized or not switches  # a checkpoint of a float phase has extra tensors, the quantizers'
        content = load_checkpoint(model, checkpoint, strict=strict, logger=session.logger)
        return _Side(model.to(session.device), settings, config, checkpoint, content["meta"].get("CLASSES"))


def _check_place(checkpoint: str, quantized: bool) -> list[bool]:
    """Return the quantizers' on/off states in a checkpoint; raise `CheckpointError` if it is in the other's place."""
    state = read_checkpoint(checkpoint)["state_dict"]
    switches = [bool(value) for name, value in state.items() if name.endswith("_quantizer.enabled")]
    if quantized and not any(switches):
        why = "its quantizers are off: it is from a run's float phase" if switches else "it has float weights"
        raise CheckpointError(
            f"{checkpoint} is in the place of a quantized checkpoint, but {why}. The order is {ORDER}; lbitcls "
            "calibrate quantizes a float checkpoint."
        )
    if not quantized and any(switches):
        raise CheckpointError(
            f"{checkpoint} is in the place of a float checkpoint, but is a quantized model's. The order is {ORDER}; to "
            "analyze one quantized model, give IMAGES CONFIG CHECKPOINT."
        )
    return switches


def _quiet() -> logging.Logger:
    """Return a logger for warnings only; the report already shows the transformer's plan."""
    logger = logging.getLogger("lbitcls.compare")
    logger.setLevel("WARNING")
    return logger


def _check_pipelines(sides: Sequence[_Side]) -> None:
    """Warn if the two configs prepare images differently."""
    first, last = (_test_steps(side.settings) for side in (sides[0], sides[-1]))
    if not same_steps(first, last):
        get_logger().warning(
            "The two configs prepare test images differently; both models use the test pipeline of %s.",
            sides[-1].config,
        )


def _test_steps(settings: Settings) -> Steps:
    """Return the steps of the config's test pipeline."""
    steps = test_steps(settings.source)
    if steps is None:
        raise ConfigError("an analysis needs the pipeline of data.test or data.val; the config has neither.")
    return steps


def find_images(path: str | Path, number: int) -> list[str]:
    """Return the image `path`, or at most `number` images of the folder, in a shuffled order.

    Raises:
        DataError: `path` is missing, or the folder has no images.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise DataError(f"there is no image or folder {path}{suggest_path(path)}")
    found = images_of(path)
    return [found[i] for i in np.random.default_rng(0).permutation(len(found))[:number]]


def read_batches(
    paths: Sequence[str], root: Path, settings: Settings, model: nn.Module, classes: Sequence[str] | None
) -> tuple[list[Tensor], Tensor | None]:
    """Return the images as the model's input, in batches, and their labels if their folders are named after classes.

    Unreadable images are left out, with a warning.

    Raises:
        DataError: no image can be read.
    """
    labels = [_label(Path(path), root, classes) for path in paths]
    dataset = FileDataset(paths, labels, _steps(settings, model), on_error="skip" if len(paths) > 1 else "raise")
    read = list(build_dataloader(dataset, min(settings.data.samples_per_gpu, _BATCH)))
    if not read:
        raise DataError(
            f"none of the {len(paths)} images can be read; the first: {next(iter(dataset.skipped.values()))}"
        )
    known = torch.cat([batch["gt_label"] for batch in read])
    return [batch["img"] for batch in read], known if bool((known >= 0).all()) else None


def _label(path: Path, root: Path, classes: Sequence[str] | None) -> int:
    """Return the class that a folder between `root` and the image is named after, innermost first; -1 if none."""
    if classes is None or not root.is_dir():
        return -1
    inside = path.relative_to(root).parts[:-1]
    return next((list(classes).index(name) for name in reversed(inside) if name in classes), -1)


def _steps(settings: Settings, model: nn.Module) -> Steps:
    """Return the test pipeline, completed for image files of any size and color mode."""
    channels = getattr(model.get_submodule("backbone"), "in_channels", None)
    return fitting_steps(_test_steps(settings), (channels, None, None), natural_size(settings.source))


def _names(sides: Sequence[_Side]) -> list[str]:
    """Return distinct names of the models: the configs' names, else the checkpoints', else the checkpoints' paths."""
    configs = [Path(side.config).stem for side in sides]
    checkpoints = [Path(side.checkpoint).name for side in sides]
    told = (names for names in (configs, checkpoints) if len(set(names)) == len(sides))
    return next(told, [side.checkpoint for side in sides])


def _about(images: str | Path, sides: Sequence[_Side], float_only: bool) -> dict[str, str]:
    """Return the page's title and its list of files."""
    title = " beside ".join(reversed(_names(sides)))
    said = ("float", "quantized")[: len(sides)] if float_only or len(sides) == 2 else ("quantized",)
    files = {
        f"{what} {kind}": path
        for what, side in zip(said, sides, strict=True)
        for kind, path in (("config", side.config), ("checkpoint", side.checkpoint))
    }
    return {"title": title, "images": str(images), **files}
