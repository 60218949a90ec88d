"""Calibration with learned rounding, saved block by block and resumed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lbitcls.settings.reconstruction import ReconstructConfig
from lbitcls.settings.sections import Settings
from lbitcls.settings.training_sections import CalibrationConfig
from lbitcls.utils.checkpoint import load_weights, read_checkpoint, save_checkpoint
from lbitcls.utils.errors import ConfigError, LbitclsError
from lbitcls.utils.logging import get_logger, track


def reconstruction_settings(settings: Settings, rounding: str | None) -> ReconstructConfig | None:
    """Return the options of `calibration.reconstruct` with the kind `rounding`; None: calibration alone.

    Raises:
        ConfigError: The kind is unknown.
    """
    section = settings.calibration or CalibrationConfig()
    if rounding is None:
        return section.reconstruct
    given = {} if section.reconstruct is None else {**vars(section.reconstruct)}
    found: ReconstructConfig = ReconstructConfig(**{**given, "rounding": rounding})
    return None if rounding == "nearest" and section.reconstruct is None else found


def reconstruct_model(
    model: nn.Module,
    batches: Sequence[Tensor],
    method: str | None,
    settings: ReconstructConfig,
    progress: Path,
    key: Sequence[Any],
) -> int:
    """Calibrate and reconstruct a float model in place, and return the number of its quantizers.

    Args:
        model: Transformed model with float weights, in eval.
        batches: Calibration images (N, C, H, W), on the model's device.
        method: Rule for the ranges; None: the quantization method's own.
        settings: Options of reconstruction.
        progress: File to save the model to after each unit, and to resume from.
        key: Everything else that the result depends on (config, weights, images); a file with another is not resumed.

    Raises:
        ConfigError: There are no images, quantizers have values already, or a layer's rounding cannot be learned.
    """
    from lbitcls.quant import calibrate, named_quantizers, uninitialized
    from lbitcls.quant.reconstruction.equalization import equalize
    from lbitcls.quant.reconstruction.reconstruct import Reconstruction

    total = sum(1 for quantizer in named_quantizers(model) if quantizer[1].needs_data)
    if not batches or len(uninitialized(model)) < total:
        needed = "images" if not batches else "a float checkpoint, whose weights are not rounded yet"
        raise ConfigError(f"calibration.reconstruct needs {needed}.")
    logger = get_logger()
    if settings.equalize:
        logger.info("Equalized the channels of %d layers.", len(equalize(model, batches[0])))
    work = Reconstruction(model, batches, settings)
    calibrate(model, batches, method)
    meta = {"reconstruction": repr((*key, method, settings))}
    done = _resume(model, progress, meta["reconstruction"])
    for number in track(range(done, len(work.units)), len(work.units) - done, settings.rounding, shown=True):
        work.advance(number)
        save_checkpoint(model, progress, meta={**meta, "units": number + 1})
        logger.info("Reconstructed %s (%d of %d).", work.units[number].name, number + 1, len(work.units))
    return sum(1 for _ in named_quantizers(model))


def _resume(model: nn.Module, progress: Path, key: str) -> int:
    """Load the model saved with the same key, and return the number of its finished units; 0 if there is none."""
    if not progress.exists():
        return 0
    try:
        content = read_checkpoint(progress)
        meta = content["meta"]
        if meta.get("reconstruction") != key:
            get_logger().warning("%s is of another calibration; starting from scratch.", progress)
            return 0
        load_weights(model, content["state_dict"], progress, strict=True)
    except LbitclsError as error:
        get_logger().warning("%s cannot be resumed, starting from scratch: %s", progress, error)
        return 0
    get_logger().info("Resuming from %s: %d units are done.", progress, meta["units"])
    return int(meta["units"])
