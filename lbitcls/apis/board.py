"""Event files for TensorBoard: scalars, histograms, pictures, texts, and a line of the table of hyperparameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lbitcls.utils.errors import DependencyError

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class Board:
    """The event files of a run in one folder; nothing is there before the first entry.

    Steps are iterations of the run.

    Args:
        folder: where they go.
        start: what an earlier process wrote there for this step and later ones is no longer shown; None: all is.

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
        """PyTorch's writer; after `close` another one, of a further file."""
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self.folder), purge_step=self._start)
        return self._writer

    def add_scalars(self, values: Mapping[str, float], step: int) -> None:
        """Write numbers by name."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def add_histogram(self, name: str, start: float, width: float, counts: Sequence[int], step: int) -> None:
        """Write a histogram.

        Args:
            name: of it.
            start: lower border of the first bin.
            width: of each bin.
            counts: of the bins, not all 0; empty ones at the ends are left out.
            step: the iteration.
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
        for name, image in pictures.items():
            self.writer.add_image(name, image, step, dataformats="HWC")

    def add_text(self, name: str, text: str, step: int) -> None:
        """Write a text in Markdown."""
        self.writer.add_text(name, text, step)

    def add_hparams(
        self, values: Mapping[str, float | str], columns: Mapping[str, float | str], metrics: Sequence[str]
    ) -> None:
        """Begin the run's line in the table of hyperparameters, in this folder itself, so that it is one run.

        Only what is written first counts: neither the line nor the columns can be changed later.

        Args:
            values: of the run, by the name of the column.
            columns: any value of the type of each column. TensorBoard takes the columns of all runs from one of them.
            metrics: names of scalars, whose last values stand in the table.
        """
        from torch.utils.tensorboard.summary import hparams

        experiment = hparams(dict(columns), dict.fromkeys(metrics))[0]
        line = hparams(dict(values), {})[1]
        for summary in (experiment, line):
            self.writer.file_writer.add_summary(summary)  # `add_hparams` would make a folder, so a second run

    def end_hparams(self) -> None:
        """Mark the run's line as that of a complete run."""
        from torch.utils.tensorboard.summary import hparams

        self.writer.file_writer.add_summary(hparams({}, {})[2])

    def close(self) -> None:
        """Write what is pending, and end the file."""
        if self._writer is not None:
            self._writer.close()
            self._writer, self._start = None, None


def write_pictures(folder: str | Path, pictures: Mapping[str, np.ndarray], step: int = 0) -> None:
    """Write images, uint8 (H, W, 3), for TensorBoard into `folder`.

    Raises:
        DependencyError: TensorBoard is not installed.
    """
    board = Board(folder)
    board.add_pictures(pictures, step)
    board.close()


def require_tensorboard() -> None:
    """Raise `DependencyError` where TensorBoard is not installed."""
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError as error:
        raise DependencyError(
            f"TensorBoard's files need the package tensorboard: pip install tensorboard ({error})."
        ) from error
