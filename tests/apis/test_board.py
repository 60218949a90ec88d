"""Event files, read back with TensorBoard's own reader."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lbitcls.tracking.board import Board, write_pictures
from lbitcls.utils.errors import DependencyError


def read(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance=dict(scalars=0, histograms=0, images=0, tensors=0))
    return events.Reload()


def test_histograms(tmp_path: Path) -> None:
    board = Board(tmp_path)
    board.add_histogram("h", -1.0, 0.5, [0, 3, 0, 1, 0], 7)
    board.close()
    (event,) = read(tmp_path).Histograms("h")
    assert event.step == 7
    value = event.histogram_value
    assert (value.min, value.max, value.num) == (-0.5, 1.0, 4)
    assert value.bucket_limit == [0.0, 0.5, 1.0] and value.bucket == [3, 0, 1]
    assert value.sum == pytest.approx(3 * -0.25 + 0.75) and value.sum_squares == pytest.approx(3 * 0.0625 + 0.5625)


def test_a_process_that_goes_on_replaces_what_came_after_its_start(tmp_path: Path) -> None:
    for start, steps in ((0, (1, 2, 3)), (3, (3, 4))):
        board = Board(tmp_path, start)
        for step in steps:
            board.add_scalars({"x": 10 * start + step}, step)
        board.close()
    assert [(event.step, event.value) for event in read(tmp_path).Scalars("x")] == [(1, 1), (2, 2), (3, 33), (4, 34)]


def test_closed_and_gone_on_with(tmp_path: Path) -> None:
    """Pictures that come later hide nothing of the run."""
    board = Board(tmp_path, 0)
    board.add_scalars({"x": 1.0}, 5)
    board.close()
    board.add_scalars({"y": 2.0}, 5)
    board.close()
    write_pictures(tmp_path, {"picture": np.zeros((4, 5, 3), np.uint8)})
    events = read(tmp_path)
    assert [event.value for tag in ("x", "y") for event in events.Scalars(tag)] == [1.0, 2.0]
    (image,) = events.Images("picture")
    assert (image.height, image.width) == (4, 5)


def test_nothing_is_there_before_the_first_entry(tmp_path: Path) -> None:
    Board(tmp_path / "logs", 0).close()
    assert not (tmp_path / "logs").exists()


def test_without_tensorboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(DependencyError, match="pip install tensorboard"):
        Board(tmp_path)
    with pytest.raises(DependencyError, match="pip install tensorboard"):
        write_pictures(tmp_path, {})


@pytest.mark.parametrize(("kind", "error"), [("drawing", 0), ("photo", 12)])
def test_pictures_take_little_room(kind: str, error: int, tmp_path: Path) -> None:
    image = np.full((80, 100, 3), 255, np.uint8)
    image[20:40, 30:60] = (220, 38, 38)
    if kind == "photo":
        waves = np.sin(np.arange(80)[:, None, None] / 9) + np.cos(np.arange(100)[:, None] / 7 + np.arange(3))
        grain = np.random.default_rng(0).normal(0, 4, (80, 100, 3))
        image = (128 + 50 * waves + grain).clip(0, 255).astype(np.uint8)
    write_pictures(tmp_path, {"x": image}, 3)
    (event,) = read(tmp_path).Images("x")
    stored = Image.open(io.BytesIO(event.encoded_image_string))
    assert stored.format == {"drawing": "PNG", "photo": "JPEG"}[kind] and event.step == 3
    assert np.abs(np.asarray(stored, dtype=int) - image).mean() <= error
    assert len(event.encoded_image_string) < image.nbytes / 2
