"""Quantizes a float checkpoint without training: the quantizers' initial values come from data."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from lbitcls.assembly.classes import check_names
from lbitcls.assembly.session import Session, load_data, make_model, open_session
from lbitcls.core.evaluation import evaluate
from lbitcls.protocols import BatchLoader
from lbitcls.settings.sections import ConfigLike, Settings, read_settings
from lbitcls.utils.checkpoint import load_checkpoint, save_checkpoint
from lbitcls.utils.errors import ConfigError
from lbitcls.utils.files import check_writable
from lbitcls.utils.logging import print_table, track
from lbitcls.utils.weights_file import digest_of
from lbitcls.workflows.reconstructing import reconstruct_model, reconstruction_settings


def calibrate_checkpoint(
    cfg: ConfigLike,
    checkpoint: str | Path,
    out: str | Path,
    *,
    num_images: int = 200,
    method: str | None = "mse",
    split: str | None = None,
    test: bool = True,
    data_root: str | None = None,
    rounding: str | None = None,
) -> dict[str, Any]:
    """Quantize the model of `cfg` with the float weights in `checkpoint`, and write a checkpoint that is ready to use.

    Args:
        cfg: Config with `quant_transformer`.
        checkpoint: Float weights of the model.
        out: File for the quantized checkpoint.
        num_images: Number of images from which the input ranges are computed, at least 1.
        method: Rule for the ranges: `mse`, `percentile`, `minmax`, or None: the quantization method's own rule.
        split: Part of `data` with the images, used unchanged; None: `calibration` if the config has it, else `train`
            with the pipeline of the test set.
        test: True: measure float and calibrated accuracy on the test set.
        data_root: Folder to search for relative data paths.
        rounding: Kind of rounding, `nearest`, `adaround` or `qdrop`, in place of `calibration.reconstruct.rounding`.
            Learned rounding saves each finished block beside `out`, in a file with the suffix `.progress`, and
            continues from there if it was interrupted.

    Returns:
        `{'float': {'top-1': …, …}, 'quantized': {…}}`, percent; empty without `test`.

    Raises:
        ConfigError: the config has no `quant_transformer`, `out` cannot be written, or a layer's rounding cannot be
            learned.
        CheckpointError: the weights do not fit, or are already quantized by other quantizers.
        DataError: the class order of the test set differs from the checkpoint's.
    """
    settings = read_settings(cfg)
    settings.require(("model", "data", "quant_transformer"), "calibration")
    if num_images < 1:
        raise ConfigError(f"--num-images must be an integer ≥ 1; got {num_images}.")
    out = check_writable(out, "--out", checkpoint, *filter(None, [settings.source.filename]))
    reconstruct = reconstruction_settings(settings, rounding)
    progress = check_writable(f"{out}.progress", "the progress of --out")
    from lbitcls.quant import calibrate, named_quantizers, set_quantization

    with open_session(settings) as session:
        images = calibration_images(settings, split, session, data_root)
        tested = settings.data.tested
        tests = load_data(settings, tested, "testing", session, data_root=data_root) if test else None
        test_set = None if tests is None else tests[0]
        model = make_model(
            settings, session, test_set, tested, pretrained=False, data_root=data_root, checkpoint=checkpoint
        )
        content = load_checkpoint(model, checkpoint, logger=session.logger)
        meta = content["meta"]
        if test_set is not None:
            check_names(meta.get("CLASSES"), f"the checkpoint {checkpoint}", test_set, tested, session.logger)
        model.to(session.device).eval()
        results = {}
        if tests is not None:
            set_quantization(model, False)
            results["float"] = _test(model, tests[1], session)
        set_quantization(model, True)  # the weights may come from a run's float phase
        total = sum(1 for _ in named_quantizers(model))
        chosen = first_images(images, num_images)
        if reconstruct is None:
            number = calibrate(model, chosen, method)
        else:
            held = [batch.to(session.device) for batch in chosen]
            seen = digest_of({str(i): batch for i, batch in enumerate(held)})
            key = (settings.text, digest_of(content["state_dict"]), seen)
            number = reconstruct_model(model, held, method, reconstruct, progress, key)
        used = min(num_images, len(images.dataset) - len(images.skipped)) if number else 0
        _say(number, total, used, checkpoint, session)
        if tests is not None:
            results["quantized"] = _test(model, tests[1], session)
        classes = meta.get("CLASSES") or getattr(model, "CLASSES", None)
        about = {"config": settings.text, "CLASSES": classes}
        known = meta.get("calibrated_on")
        about |= {"calibrated_on": used} if number else {} if known is None else {"calibrated_on": known}
        save_checkpoint(model, out, meta=about)
        if reconstruct is not None:
            progress.unlink(missing_ok=True)
    _report(results, out)
    return results


def _say(number: int, total: int, images: int, checkpoint: str | Path, session: Session) -> None:
    """Log how many quantizers were calibrated, and how many kept the values in the checkpoint."""
    if number:
        session.logger.info("Initialized %d quantizers from %d images.", number, images)
    if number < total:
        session.logger.warning(
            "%s is already quantized: %d of its %d quantizers have values and keep them%s. To compute new values, "
            "calibrate the float checkpoint that it was made from.",
            *(checkpoint, total - number, total, "" if number else "; nothing was calibrated, and --out is a copy"),
        )


def calibration_images(settings: Settings, split: str | None, session: Session, data_root: str | None) -> BatchLoader:
    """Return the loader of the calibration images."""
    data, section = settings.data, None
    if split is None and data.calibration is None:
        tested = data.test or data.val
        if tested is not None and data.train is not None:
            section = {**data.train, "pipeline": tested.get("pipeline", ())}  # augmentation would widen the ranges
        split = "train"
    split = split or "calibration"
    return load_data(settings, split, "calibration", session, data_root=data_root, section=section)[1]


def first_images(loader: BatchLoader, num_images: int) -> Iterator[torch.Tensor]:
    """Yield batches of the loader's first `num_images` images."""
    left = num_images
    for batch in loader:
        yield batch["img"][:left]
        left -= len(batch["img"])
        if left <= 0:
            return


def _test(model: torch.nn.Module, loader: BatchLoader, session: Session) -> dict[str, Any]:
    return evaluate(model, track(loader, len(loader), "testing", shown=True), session.device)


def _report(results: dict[str, Any], out: str | Path) -> None:
    rows = [(f"{phase} {name}", f"{value:.2f}") for phase, r in results.items() for name, value in r.items()]
    print_table("Calibration", ("", ""), [*rows, ("checkpoint", str(out))])
