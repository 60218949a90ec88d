"""Rules that reject a file, and the display of a verification."""

from __future__ import annotations

import json

import pytest

from lbitcls.deploy.verification.verdict import Comparison, Verification
from lbitcls.utils.logging import print_table


def found(
    images: int,
    untied: int | None,
    yardstick: float,
    mean: float,
    changed: int = 0,
    clear: int = 0,
    flipped: tuple[int, int] = (0, 0),
) -> Verification:
    """Return a verification of one engine, logits' standard deviation 10; `flipped` by float64 and by the engine."""
    rows = [
        Comparison(name, "float32", "logits", value, 1.0, 0.0, 100.0, number, other)
        for name, value, number, other in (("float64", yardstick, 0, flipped[0]), ("engine", mean, changed, flipped[1]))
    ]
    return Verification(images, untied, {"logits": 10.0}, (rows[0],), (rows[1],), (), None, {}, clear)


@pytest.mark.parametrize(
    "yardstick, mean, passes",
    [
        (0.1, 0.2, True),
        (0.1, 0.2001, False),
        (0.001, 0.01, True),  # a thousandth of the standard deviation, though ten times the yardstick
        (0.001, 0.0101, False),
        (0.0, 0.0, True),
        (0.1, float("nan"), False),
        (0.15, 0.2, True),  # a fiftieth of the standard deviation
        (0.15, 0.2001, False),
        (0.3, 0.375, True),  # 1.25 times a yardstick larger than that
        (0.3, 0.3751, False),
        (0.45, 0.5, True),  # a twentieth: no yardstick allows more
        (0.45, 0.5001, False),
    ],
)
def test_the_mean_difference_may_be_twice_the_yardstick_or_a_thousandth_of_the_deviation(
    yardstick: float, mean: float, passes: bool
) -> None:
    verification = found(100, 100, yardstick, mean)
    assert verification.passed is passes
    assert passes or "engine: logits differ by" in verification.reasons[0]


@pytest.mark.parametrize(
    "untied, changed, passes",
    [(90, 1, True), (90, 2, False), (1999, 2, False), (2000, 2, True), (10999, 10, True), (10999, 11, False)],
)
def test_one_image_or_one_in_a_thousand_may_change_its_class(untied: int, changed: int, passes: bool) -> None:
    verification = found(12000, untied, 0.1, 0.0, changed)
    assert verification.passed is passes
    assert passes or f"engine: {changed} of {untied} images without a tie change" in verification.reasons[0]


@pytest.mark.parametrize(
    "images, clear, yardstick, flipped, passes",
    [
        (100, 90, 0.5, 1, True),
        (100, 90, 0.5001, 0, False),  # more than 5 % of the standard deviation
        (100, 90, float("nan"), 0, False),
        (100, 90, 0.0, 2, False),
        (2000, 1200, 0.0, 6, True),  # 0.5 %
        (2000, 1199, 0.0, 6, False),
        (60, 60, 1.0, 60, True),  # too few images to judge: 10 %
        (60, 60, 1.0001, 0, False),
        (4, 4, 2.5, 0, True),
    ],
)
def test_a_yardstick_that_is_none_confirms_no_file(
    images: int, clear: int, yardstick: float, flipped: int, passes: bool
) -> None:
    """The file agrees with the model, but the model in float64 does not, so nothing is confirmed."""
    right = found(images, images, yardstick, 0.0, clear=clear, flipped=(flipped, 0))
    assert right.passed is passes
    assert passes or (
        right.reasons[0].startswith("float64: ")
        and "outputs cannot confirm any file" in right.reasons[0]
        and "lbitcls test CONFIG FILE" in right.reasons[0]
    )


@pytest.mark.parametrize("clear, flipped, passes", [(90, 1, True), (90, 2, False), (1200, 6, True), (1199, 6, False)])
def test_classes_of_images_that_are_clear_count_whatever_the_yardstick_is(
    clear: int, flipped: int, passes: bool
) -> None:
    """The yardstick's largest difference makes all images ties."""
    verification = found(12000, 0, 0.1, 0.1, clear=clear, flipped=(0, flipped))
    assert verification.passed is passes
    assert passes or f"engine: {flipped} of {clear} images change" in verification.reasons[0]


def test_fewer_than_100_images_do_not_confirm_a_file() -> None:
    few, enough = found(99, 99, 0.0, 0.4, 50), found(100, 99, 0.0, 0.4, 50)
    assert few.passed and not few.judged and few.reasons == ()
    assert few.warning is not None and "99 images are too few" in few.warning
    assert not enough.passed and enough.judged and len(enough.reasons) == 1 and enough.warning is None


@pytest.mark.parametrize(
    "images, yardstick, mean, passes",
    [
        (60, 0.01, 0.5, True),  # 5 % of the standard deviation
        (60, 0.01, 0.5001, False),
        (60, 0.2, 1.0, True),  # five times the yardstick
        (60, 0.2, 1.0001, False),
        (4, 0.0, 2.5, True),  # one image of four is off by a standard deviation
        (4, 0.0, 2.5001, False),
        (1, 0.0, float("nan"), False),
    ],
)
def test_a_gross_difference_is_rejected_on_few_images(images: int, yardstick: float, mean: float, passes: bool) -> None:
    verification = found(images, images, yardstick, mean)
    assert verification.passed is passes and not verification.judged
    assert passes or "engine: logits differ by" in verification.reasons[0]
    assert (verification.warning is not None) is passes


def test_the_report_is_plain_data_and_the_table_has_its_columns(capsys: pytest.CaptureFixture[str]) -> None:
    verification = found(100, 98, 0.1, 0.3)
    report = json.loads(json.dumps(verification.to_json()))
    assert report["passed"] is False and report["images"] == 100 and len(report["reasons"]) == 1
    assert report["rows"][0]["name"] == "engine" and report["yardstick"][0]["mean"] == 0.1
    assert all(len(row) == len(verification.columns) for row in verification.table())
    print_table("Verification", verification.columns, verification.table())
    assert "engine" in capsys.readouterr().out


@pytest.mark.parametrize("output", ["logits", "feature_0"])
def test_the_table_breaks_no_word_on_80_columns(
    output: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    ranked = (100.0, 1234) if output == "logits" else (None, None)
    rows = [Comparison("onnxruntime", "float32", output, 1.23e-08, 1.23e-08, 100.0, *ranked).cells()]
    columns = found(100, ranked[1], 0.1, 0.1).columns
    print_table("Verification", columns, rows)
    printed = capsys.readouterr().out
    assert all(word in printed for cell in (*columns, *rows[0]) for word in cell.split())


@pytest.mark.parametrize(
    "agreement, changed, said",
    [
        (100.0, 0, "Of 200 images, 0 changed their class; logits differ by at most 0.5, 5 % of their standard"),
        (99.0, 2, "Of 200 images, 2 changed their class; logits differ"),
        (98.5, 1, "Of 200 images, 3 changed their class, 2 of them with their two best logits almost equal; logits"),
        (None, None, "On 200 images, logits differ by at most 0.5, 5 % of their standard deviation (b)."),
    ],
)
def test_one_sentence_says_the_worst_of_the_engines(agreement: float | None, changed: int | None, said: str) -> None:
    """The integer reference, which is no engine, has no part in it."""
    rows = (
        Comparison("integer", "float32", "logits", 9.0, 9.0, 0.0, 0.0, 200),
        Comparison("a", "float32", "logits", 0.0, 0.1, 0.0, agreement, changed),
        Comparison("b", "float32", "logits", 0.0, 0.5, 0.0, None if agreement is None else 100.0, 0),
    )
    base = (Comparison("float64", "float32", "logits", 0.0, 0.0, 100.0),)
    verification = Verification(200, 199, {"logits": 10.0}, base, rows, (), None, {})
    assert verification.sentence.startswith(said)
    assert verification.to_json()["sentence"] == verification.sentence
    broken = Comparison("c", "float32", "logits", float("nan"), float("nan"), 0.0, agreement, changed)
    assert "at most nan" in Verification(200, 199, {"logits": 10.0}, base, (*rows, broken), (), None, {}).sentence
