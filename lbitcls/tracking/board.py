"""TensorBoard event files: scalars, histograms, images, texts, and a row in the table of hyperparameters."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from lbitcls.utils.errors import DependencyError

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class Board:
    """Event files of a run in one folder; no file is created before the first entry.

    Steps are iterations of the run.

    Args:
        folder: Folder for the event files.
        start: Step from which entries of an earlier process are hidden; None: all are shown.

    Raises:
        DependencyError: TensorBoard is not installed.
    """

    def __init__(self, folder: str | Path, start: int | None = None) -> None:
        require_tensorboard()
        self.folder = Path(folder)
        self._start = start
        self._writer: SummaryWriter | None = None

    @property
    def writer(self) -> SummaryWriter:
        """PyTorch's `SummaryWriter`; after `close` a new one, with a new file."""
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            _leave_out_repeated_errors()
            self._writer = SummaryWriter(str(self.folder), purge_step=self._start)
        return self._writer

    def add_scalars(self, values: Mapping[str, float], step: int) -> None:
        """Write scalars by name."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def add_histogram(self, name: str, start: float, width: float, counts: Sequence[int], step: int) -> None:
        """Write a histogram.

        Args:
            name: Name of the histogram.
            start: Lower edge of the first bin.
            width: Width of each bin.
            counts: Counts of the bins, not all 0; empty bins at the ends are left out.
            step: Iteration.
        """
        filled = np.flatnonzero(counts)
        first, last = int(filled[0]), int(filled[-1])
        chosen = np.asarray(counts[first : last + 1])
        borders = start + width * np.arange(first, last + 2)
        centres = (borders[:-1] + borders[1:]) / 2
        self.writer.add_histogram_raw(
            name,
            min=float(borders[0]),
            max=float(borders[-1]),
            num=int(chosen.sum()),
            sum=float(chosen @ centres),
            sum_squares=float(chosen @ centres**2),
            bucket_limits=borders[1:].tolist(),
            bucket_counts=chosen.tolist(),
            global_step=step,
        )

    def add_pictures(self, pictures: Mapping[str, np.ndarray], step: int) -> None:
        """Write images, uint8 (H, W, 3), by name."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        for name, image in pictures.items():
            height, width, channels = image.shape
            entry = Summary.Image(height=height, width=width, colorspace=channels, encoded_image_string=_encoded(image))
            self._add(Summary.Value(tag=name, image=entry), step)

    def add_text(self, name: str, text: str, step: int) -> None:
        """Write a text in Markdown."""
        self.writer.add_text(name, text, step)

    def add_hparams(
        self,
        values: Mapping[str, float | str],
        columns: Mapping[str, float | str],
        first: Collection[str],
        metrics: Sequence[str],
    ) -> None:
        """Start the run's row in the table of hyperparameters, in this same folder, so that it stays one run.

        Only the first entry counts: neither the row nor the columns can be changed later.

        Args:
            values: Values of the run, by column name.
            columns: An example value of each column's type. TensorBoard reads the columns of all runs from one run.
            first: Columns to show first; five are shown by default.
            metrics: Names of scalars whose last values appear in the table.
        """
        from tensorboard.plugins.hparams import api_pb2, plugin_data_pb2

        infos = [_column(name, value, name in first) for name, value in columns.items()]
        shown = [api_pb2.MetricInfo(name=api_pb2.MetricName(tag=name)) for name in metrics]
        line = plugin_data_pb2.SessionStartInfo(start_time_secs=time.time())
        for name, value in values.items():
            setattr(line.hparams[name], "string_value" if isinstance(value, str) else "number_value", value)
        self._add_hparams("EXPERIMENT", experiment=api_pb2.Experiment(hparam_infos=infos, metric_infos=shown))
        self._add_hparams("SESSION_START_INFO", session_start_info=line)

    def end_hparams(self) -> None:
        """Mark the run's row as complete."""
        from tensorboard.plugins.hparams import api_pb2, plugin_data_pb2

        end = plugin_data_pb2.SessionEndInfo(status=api_pb2.STATUS_SUCCESS, end_time_secs=time.time())
        self._add_hparams("SESSION_END_INFO", session_end_info=end)

    def _add_hparams(self, tag: str, **content: Any) -> None:
        """Write the entry of `SummaryWriter.add_hparams`; that function writes to a separate folder: a second run."""
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.plugins.hparams import metadata, plugin_data_pb2

        about = metadata.create_summary_metadata(plugin_data_pb2.HParamsPluginData(**content))
        self._add(Summary.Value(tag=getattr(metadata, f"{tag}_TAG"), metadata=about, tensor=metadata.NULL_TENSOR))

    def _add(self, value: Any, step: int | None = None) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        files: Any = self.writer.file_writer
        files.add_summary(Summary(value=[value]), step)

    def close(self) -> None:
        """Write pending entries and close the file."""
        if self._writer is not None:
            self._writer.close()
            self._writer, self._start = None, None


def _leave_out_repeated_errors() -> None:
    """Print no traceback of a failing disk in TensorBoard's thread: the next entry raises the same error."""
    if getattr(threading.excepthook, "leaves_out", False):
        return
    others: Any = threading.excepthook

    def report(found: threading.ExceptHookArgs) -> None:
        ours = type(found.thread).__module__.startswith("tensorboard.")
        if not (ours and isinstance(found.exc_value, OSError)):
            others(found)

    report.leaves_out = True  # type: ignore[attr-defined]
    threading.excepthook = report


def _encoded(image: np.ndarray) -> bytes:
    """Encode an image as PNG or JPEG, whichever is smaller: drawings stay sharp, and photos need little space."""
    buffers = {"PNG": io.BytesIO(), "JPEG": io.BytesIO()}
    for kind, buffer in buffers.items():
        Image.fromarray(image).save(buffer, kind, quality=90)
    return min((buffer.getvalue() for buffer in buffers.values()), key=len)


def _column(name: str, value: float | str, first: bool) -> Any:
    from tensorboard.plugins.hparams import api_pb2

    kind = api_pb2.DATA_TYPE_STRING if isinstance(value, str) else api_pb2.DATA_TYPE_FLOAT64
    info = api_pb2.HParamInfo(name=name, type=kind)
    if first and "differs" in info.DESCRIPTOR.fields_by_name:  # shows the column first; older versions lack this field
        info.differs = True
    return info


def write_pictures(folder: str | Path, pictures: Mapping[str, np.ndarray], step: int = 0) -> None:
    """Write images, uint8 (H, W, 3), for TensorBoard to `folder`.

    Raises:
        DependencyError: TensorBoard is not installed.
    """
    board = Board(folder)
    board.add_pictures(pictures, step)
    board.close()


def require_tensorboard() -> None:
    """Raise `DependencyError` if TensorBoard is not installed."""
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError as error:
        raise DependencyError(
            f"writing TensorBoard files needs the package tensorboard: pip install tensorboard ({error})."
        ) from error
