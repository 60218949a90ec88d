"""Exported model as a classifier: predictions for images, without PyTorch."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lbitcls.assembly.image_sizes import natural_size
from lbitcls.deploy.runtime.engine import Engine, load
from lbitcls.deploy.runtime.metadata import model_file
from lbitcls.inference.preparation import Prepare, Steps, preparation, same_steps, test_steps
from lbitcls.utils.errors import CheckpointError, ConfigError
from lbitcls.utils.logging import get_logger

if TYPE_CHECKING:
    from lbitcls.utils.config import Config


class ExportedModel:
    """Exported model, run by an engine on the CPU.

    Args:
        engine: Engine that has loaded the exported file.
        cfg: Config that the model was exported with; None: the metadata in the file suffice.

    Attributes:
        engine: Engine as given.
        CLASSES: Class names; None until they are known.

    Raises:
        CheckpointError: The model outputs features, not classes.
        ConfigError: Neither the file nor the config defines how images are prepared.
    """

    def __init__(self, engine: Engine, cfg: Config | None = None) -> None:
        check_part(engine)
        self.engine = engine
        self._cfg = cfg
        info = engine.info
        self.CLASSES = tuple(info.classes) if info is not None and info.classes is not None else None
        natural = natural_size(cfg) if None in engine.input_shape else None
        self.prepare: Prepare = preparation(self._steps(), engine.input_shape, natural)

    def __repr__(self) -> str:
        info = self.engine.info
        kind = "" if info is None else f", {info.quantization}, {info.num_classes} classes"
        return f"ExportedModel({self.engine.path}{kind}, {self.engine.name})"

    @cached_property
    def cfg(self) -> Config | None:
        """Config as given, or else the one recorded in the file; None if there is neither."""
        return self._cfg if self._cfg is not None else self._recorded_cfg

    @property
    def num_classes(self) -> int | None:
        """Number of classes K, as recorded in the file; None if lbitcls did not write it."""
        return self.engine.info.num_classes if self.engine.info is not None else None

    def scores(self, images: np.ndarray) -> np.ndarray:
        """Return softmax scores, float32 (N, K), for images (N, C, H, W) from `prepare`."""
        logits = self.logits(images)
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        return powers / powers.sum(axis=1, keepdims=True)

    def logits(self, images: np.ndarray) -> np.ndarray:
        """Return logits, float32 (N, K), for images (N, C, H, W) from `prepare`."""
        fixed = self.engine.fixed_batch
        if fixed is None or len(images) == fixed:
            return logits_of(self.engine, images)
        padded = np.concatenate([images, np.repeat(images[-1:], -len(images) % fixed, axis=0)])
        parts = [logits_of(self.engine, padded[i : i + fixed]) for i in range(0, len(padded), fixed)]
        return np.concatenate(parts)[: len(images)]

    def _steps(self) -> Steps:
        """Return the config's test pipeline, or the file's if the two are equal or there is no config."""
        given, info = test_steps(self._cfg), self.engine.info
        recorded = info.pipeline if info is not None else []
        if given is None and not recorded:
            raise ConfigError(
                f"{self.engine.path} does not record how to prepare images; give a config with a pipeline in data.test "
                "or data.val."
            )
        if given is None:
            return recorded
        if not recorded or same_steps(given, recorded):
            return given
        if same_steps(given, test_steps(self._recorded_cfg)):
            return recorded  # the same pipeline, written out step by step
        get_logger().warning(
            "%s was exported with a test pipeline other than the config's; using the config's.", self.engine.path
        )
        return given

    @cached_property
    def _recorded_cfg(self) -> Config | None:
        text = self.engine.info.config if self.engine.info is not None else ""
        if not text:
            return None
        from lbitcls.utils.config import Config

        return Config.fromstring(text)


def open_engine(path: str | Path, engine: str | None = None, threads: int | None = None) -> Engine:
    """Open an exported model for predictions: by default, a page's ONNX file rather than the page in a browser.

    Raises:
        CheckpointError: The engine cannot run the file.
        ConfigError: The engine is unknown.
    """
    return load(model_file(Path(path).expanduser()) if engine is None else path, engine, threads)


def open_exported(
    path: str | Path, cfg: Config | None = None, engine: str | None = None, threads: int | None = None
) -> ExportedModel:
    """Open the exported model `path` for predictions.

    Raises:
        CheckpointError: The engine cannot run the file, or the model outputs features.
        ConfigError: The engine is unknown, or nothing defines how images are prepared.
    """
    return ExportedModel(open_engine(path, engine, threads), cfg)


def check_part(engine: Engine) -> None:
    """Raise `CheckpointError` if an exported model outputs features."""
    if engine.info is not None and engine.info.part != "model":
        raise CheckpointError(
            f"{engine.path} is a backbone: it returns features and has no classes; export with --part model."
        )


def logits_of(engine: Engine, images: np.ndarray) -> np.ndarray:
    """Return the logits (N, K) of an exported classifier.

    Raises:
        CheckpointError: The output is something else.
    """
    logits = engine.predict(images)
    if isinstance(logits, tuple) or logits.ndim != 2 or len(logits) != len(images):
        shapes = [array.shape for array in (logits if isinstance(logits, tuple) else (logits,))]
        raise CheckpointError(
            f"{engine.path} returns {shapes} for {len(images)} images, not logits (N, K): it is not a classifier."
        )
    return logits
