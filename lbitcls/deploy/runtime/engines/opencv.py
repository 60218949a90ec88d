"""OpenCV's `cv2.dnn`: runs the ONNX files of the target `cpu`, in float between QuantizeLinear and DequantizeLinear."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from lbitcls.deploy.runtime.engine import Engine
from lbitcls.deploy.runtime.metadata import read_onnx, require
from lbitcls.deploy.runtime.weighted import layers_of, refuse_packed
from lbitcls.registry import ENGINES

_INTEGER = ("ConvolutionInt8", "InnerProductInt8")
"""OpenCV's layers that multiply integers."""


@ENGINES.register_module(name="opencv")
class OpenCVEngine(Engine):
    """OpenCV 5, its classic engine; the number of threads is one of the whole process."""

    name = "opencv"
    targets = ("cpu",)
    package = "cv2"
    extra = "engines"

    def __init__(self, path: Path, threads: int | None, precision: str) -> None:
        super().__init__(path, threads, precision)
        cv2 = require("cv2", self.extra)
        self._model = read_onnx(path)
        refuse_packed(self._model, "OpenCV")
        if threads is not None:
            cv2.setNumThreads(threads)
        self._net, self._batch = self._read(), 0
        self._lock = Lock()

    @property
    def version(self) -> str:
        """Version of OpenCV; several packages contain it."""
        return str(require("cv2", self.extra).__version__)

    def _read(self) -> Any:
        cv2 = require("cv2", self.extra)
        # The new engine of 5.0 stops at a MaxPool of integers; the classic one computes it.
        return cv2.dnn.readNetFromONNX(str(self.path), engine=cv2.dnn.ENGINE_CLASSIC)

    def _run(self, images: np.ndarray) -> Sequence[np.ndarray]:
        with self._lock:
            if len(images) != self._batch:  # a net of 5.0 that has run gives a mean over one pixel a wrong shape then
                self._net, self._batch = self._read(), len(images)
            self._net.setInput(images)
            return [np.array(output) for output in self._net.forward(list(self.output_names))]

    def integer_counts(self) -> tuple[int, int]:
        """Return how many of OpenCV's layers multiply integers, by their types, and how many layers there are."""
        types = [self._net.getLayer(number).type for number in range(len(self._net.getLayerNames()))]
        return sum(kind in _INTEGER for kind in types), len(layers_of(self._model))
