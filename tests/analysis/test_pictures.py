"""Content of the figures: captions, frames, the interesting part of a large confusion matrix."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lbitcls.analysis.confusion import LARGEST, draw_confusion, worst_classes
from lbitcls.analysis.figures import RED, can_draw, check_path, pixels, rendered, save, shorten
from lbitcls.analysis.pictures import Prediction, class_name, draw_batch, draw_predictions, draw_result
from lbitcls.utils.errors import ConfigError

NAMES = ["ant", "蜂", "5$ no_te$", "a class with a name that is far too long"]


BEE = class_name(NAMES, 1)  # on a machine without a suitable font, the class's number


def captions(figure: Any) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def test_batch(tmp_path: Path) -> None:
    images = [np.full((6, 9, 3), 0.5), np.zeros((8, 8)), np.full((4, 4, 3), 2.0), np.ones((5, 5))]
    figure = draw_batch(images, [0, 1, 2, 3], NAMES, "a title")
    said = captions(figure)
    assert said[:3] == ["ant", BEE, "5$ no_te$"] and said[3].startswith("a class") and "…" in said[3]
    with Image.open(save(figure, tmp_path / "deep" / "batch.png")) as written:  # math and missing glyphs do not fail
        assert written.size[0] > 300
    assert figure._repr_png_()[:4] == b"\x89PNG"


def test_wrong_predictions_are_marked() -> None:
    predictions = [Prediction(7, 0, 0, 0.934, 0.934), Prediction(3, 1, 0, 0.8, 0.001)]
    figure = draw_predictions([np.zeros((4, 4))] * 2, predictions, NAMES)
    assert captions(figure) == ["✓ ant, 93 %", "✗ ant, 80 %", f"true: {BEE}, <1 %"]
    framed = [axes.spines["top"].get_visible() and axes.spines["top"].get_edgecolor()[0] > 0.8 for axes in figure.axes]
    assert framed == [False, True] and RED.startswith("#dc")
    assert captions(draw_predictions([np.zeros((4, 4))], predictions[:1])) == ["✓ 0, 93 %"]
    assert captions(draw_predictions([], [])) == []


@pytest.mark.parametrize("number", [1, 5, 13, 24])
def test_cells_do_not_overlap(number: int) -> None:
    figure = draw_batch([np.zeros((4, 4))] * number, range(number))
    boxes = [axes.get_position() for axes in figure.axes]
    assert len(boxes) == number and all(b.x0 >= 0 and b.x1 <= 1 and b.y0 >= 0 and b.y1 <= 1 for b in boxes)
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_a_name_that_no_font_has() -> None:
    """Boxes could not distinguish classes."""
    assert can_draw("Bienen & Wespen, éß") and not can_draw("bee \U000f0000")
    names = ["a", "b\U000f0000", "c\U000f0000"]
    assert [class_name(names, label) for label in range(4)] == ["a", "class 1", "class 2", "3"]


def matrix(classes: int) -> np.ndarray:
    return np.diag(np.full(classes, 10))


@pytest.mark.parametrize("classes", [2, 12, 30])
def test_small_confusion_matrix_shows_everything(classes: int, tmp_path: Path) -> None:
    counts = matrix(classes)
    counts[0, 1] = 3
    figure = draw_confusion(counts, [f"class {i}" for i in range(classes)], "validation")
    assert sorted(captions(figure)) == sorted(["10"] * classes + ["3"])
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == [f"class {i}" for i in range(classes)]
    assert f"{10 * classes} of {10 * classes + 3} correct" in figure.get_suptitle()
    assert pixels(save(figure, tmp_path / "c.png")).shape[2] == 3


def test_large_confusion_matrix_shows_the_worst_block() -> None:
    counts = matrix(200)
    counts[150, 7], counts[7, 150], counts[60, 61] = 4, 3, 9
    assert worst_classes(counts, LARGEST) == [7, 60, 61, 150]
    assert worst_classes(counts, 3) == [60, 61]
    assert worst_classes(matrix(50), 3) == [0, 1, 2]
    figure = draw_confusion(counts)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["7", "60", "61", "150"]
    assert "the 4 most confused of 200 classes" in figure.get_suptitle()


def test_a_class_without_images() -> None:
    counts = matrix(3)
    counts[2] = 0
    assert sorted(captions(draw_confusion(counts))) == ["10", "10"]


def test_names_and_formats(tmp_path: Path) -> None:
    assert shorten("Labrador retriever", 10) == "Labrad…ver" and shorten("ant", 10) == "ant"
    with pytest.raises(ConfigError, match=r"\*\.png"):
        check_path("picture.txt")
    with pytest.raises(ConfigError):
        check_path(tmp_path)


@pytest.mark.parametrize("size", [(8, 8), (300, 200), (90, 1200), (1, 5000), (4000, 3000)])
def test_a_labelled_picture(size: tuple[int, int]) -> None:
    image = np.full((*size, 3), (200, 30, 30), np.uint8)
    figure = draw_result(image, [("bee", 0.9), (120 * "long ", 0.0001)])
    said = captions(figure)
    assert said[:2] == ["bee", "90 %"] and "…" in said[2] and said[3] == "<1 %"
    picture, text = (axes.get_position() for axes in figure.axes)
    assert text.y1 <= picture.y0 and 0 <= picture.x0 and picture.x1 <= 1 and picture.y1 <= 1
    drawn = rendered(figure)
    assert 300 < max(drawn.shape) < 1100 and (drawn == (200, 30, 30)).all(axis=2).any()
    wide, high = (length * side for length, side in zip((picture.width, picture.height), figure.get_size_inches()))
    if min(size) * 50 > max(size):
        assert wide / high == pytest.approx(size[1] / size[0])
