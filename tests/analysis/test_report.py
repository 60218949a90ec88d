"""Report: one self-contained page, plain JSON, true sentences."""

from __future__ import annotations

import html
import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lbitcls.analysis.advice import advise
from lbitcls.analysis.compare import compare_models
from lbitcls.analysis.findings import Analysis
from lbitcls.analysis.measures import OutputError
from lbitcls.analysis.report import check_target, report_data, write_report
from lbitcls.analysis.summary import describe
from lbitcls.utils.errors import ConfigError, DependencyError

sys.path.insert(0, str(Path(__file__).resolve().parent))

from networks import float_network, images, quantized

ABOUT = {"title": "4 bits <beside> float & more", "images": "photos/</script><script>alert(1)</script>"}


@pytest.fixture(scope="module")
def analysis() -> Analysis:
    model = float_network()
    return compare_models(quantized(model, per_channel=True), model, images(), torch.arange(12) % 5)


@pytest.fixture(scope="module")
def written(analysis: Analysis, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    """Return the page and the JSON figures."""
    page, figures = check_target(tmp_path_factory.mktemp("report") / "new" / "report.html", "--save-path")
    write_report(analysis, page, figures, ABOUT)
    assert sorted(path.name for path in page.parent.iterdir()) == ["report.html", "report.json"]
    return page.read_text(encoding="utf-8"), json.loads(figures.read_text(encoding="utf-8"))


def test_the_page_holds_the_same_figures(written: Any, analysis: Analysis) -> None:
    page, figures = written
    payload = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert payload is not None and json.loads(payload[1]) == figures
    assert figures == json.loads(json.dumps(report_data(analysis, ABOUT)))
    first = figures["layers"][0]
    assert first["weight"]["sqnr_db"] == pytest.approx(analysis.layers[0].weight.sqnr_db, rel=1e-5)
    assert first["scan"]["alone"]["kl"] == pytest.approx(analysis.layers[0].scan.alone.kl, rel=1e-5)
    assert sum(first["weight"]["grid"]["counts"]) == 4 * 27


def test_the_page_needs_nothing_else(written: Any) -> None:
    page, _ = written
    own = page.replace(re.search(r'<script type="text/plain" id="plotly">.*?</script>', page, re.DOTALL)[0], "")
    assert not re.search(r"https?://", own)
    assert not re.search(r"<(link|script|img)[^>]+(src|href)=.(?!data:)", own)
    assert page.count("plotly.js v") == 1 and len(page.encode()) < 8e6


def test_names_are_text(written: Any) -> None:
    page, _ = written
    assert "<title>4 bits &lt;beside&gt; float &amp; more</title>" in page
    assert "<script>alert" not in page
    assert html.escape(ABOUT["images"], quote=False) in page


def test_the_table_has_a_row_for_each_layer(written: Any, analysis: Analysis) -> None:
    page, _ = written
    assert len(re.findall(r'<tr data-layer="\d+">', page)) == len(analysis.layers)
    first = analysis.layers[0]
    assert f'data-value="{float(f"{first.scan.alone.kl:.6g}")}"' in page
    assert "Conv2d 4×3×3×3" in page and ">3/3<" in page


def test_what_is_not_finite_is_null(analysis: Analysis) -> None:
    assert analysis.error is not None
    broken = replace(analysis, error=replace(analysis.error, kl=float("inf")))
    assert report_data(broken, ABOUT)["error"]["kl"] is None


@pytest.mark.parametrize("what", ["float", "quantized"])
def test_pages_of_one_model(what: str, tmp_path: Path) -> None:
    model = float_network() if what == "float" else quantized(float_network(), bSetQ=False)
    page, figures = check_target(tmp_path / "one.htm", "--save-path")
    write_report(compare_models(model, None, images()), page, figures, {"title": "one"})
    text = page.read_text(encoding="utf-8")
    assert ("Key findings" in text) == ('id="costs"' in text) == (what == "quantized")
    assert ('id="work"' in text) == (what == "float")


def test_targets_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"a page to write, \*.html; got 'x.json'"):
        check_target("x.json", "--save-path")
    with pytest.raises(ConfigError, match="would replace a file"):
        check_target(tmp_path / "x.html", "--save-path", tmp_path / "x.json")
    (tmp_path / "y.json").mkdir()
    with pytest.raises(ConfigError, match="y.json is a folder"):
        check_target(tmp_path / "y.html", "--save-path")
    for package in ("plotly.offline", "jinja2"):
        with monkeypatch.context() as without:
            without.setitem(sys.modules, package, None)
            with pytest.raises(DependencyError, match=r"pip install lbitcls\[analysis\]"):
                check_target(tmp_path / "x.html", "--save-path")


# Sentences


def test_the_first_sentence_names_the_layer_that_costs_most(analysis: Analysis) -> None:
    first = describe(analysis)[0]
    top = analysis.ranked[0]
    assert top.scan is not None and analysis.everything is not None
    assert first.startswith(f"`{top.name}` is the most sensitive layer")
    total = sum(layer.scan.alone.kl for layer in analysis.ranked)
    assert f"{100 * top.scan.alone.kl / total:.0f} % of the sum over 3 layers" in first


def test_sentences_on_a_trained_model_follow_the_figures() -> None:
    model = float_network()
    both = quantized(model)
    with torch.no_grad():
        both.first.weight.mul_(1.02)
    analysis = compare_models(both, model, images(), torch.arange(12) % 5)
    top = analysis.ranked[0]
    scan = replace(top.scan, rank=1, alone=OutputError(0.2, 9.0, 0.25, 0.6))
    changed = replace(
        analysis,
        layers=(replace(top, scan=scan),),
        top1=0.5,
        error=OutputError(0.3, 9.0, 0.1),
        own_error=top.scan.alone,
    )
    said = " ".join(describe(changed))
    assert f"depends most on the quantizers of `{top.name}`: with them off, and all other layers as trained" in said
    assert "changes by 0.20 nats (KL divergence), with another class for 25 % of the images." in said
    assert "Top-1 rises from 50 % to 60 %: more bits may help there." in said and "Only its weight's off: " in said
    assert "After training, the output differs from the float model's by 0.30 nats, with another class for 10 %" in said
    assert "adapted" not in said and "quantized alone" not in said
    lower = replace(scan, alone=replace(scan.alone, top1=0.4))
    changed = replace(changed, layers=(replace(top, scan=lower),), own_error=OutputError(9.0, 0.0, 0.9))
    said = " ".join(describe(changed))
    assert "Top-1 falls from 50 % to 40 %: its weights have adapted to their grid." in said
    assert "With all quantizers off at once, the model predicts another class for 90 % of the images" in said


def test_a_check_up_is_a_section_of_the_page(tmp_path: Path) -> None:
    both = quantized(float_network())
    with torch.no_grad():
        both.second.input_quantizer.scale.mul_(1e-3)
    for model, expected in ((both, True), (float_network(), False)):
        page, figures = check_target(tmp_path / "ill.html", "--save-path")
        write_report(compare_models(model, None, images()), page, figures, {"title": "ill"})
        text, data = page.read_text(encoding="utf-8"), json.loads(figures.read_text(encoding="utf-8"))
        assert ("<h2>Check-up</h2>" in text) == expected
        assert ("The scale of the input quantizer of <code>second</code> collapsed" in text) == expected
    assert data["check_up"] is None


def test_gains_are_said_only_where_there_is_one(analysis: Analysis) -> None:
    top = analysis.ranked[0]
    assert top.scan is not None and analysis.everything is not None
    for share, said in ((0.4, "the divergence is 60 % lower"), (1.2, "in float gains nothing")):
        without = replace(analysis.everything, kl=share * analysis.everything.kl)
        layer = replace(top, scan=replace(top.scan, without=without))
        changed = replace(analysis, layers=tuple(layer if one is top else one for one in analysis.layers))
        assert said in describe(changed)[0]


def test_outliers_are_told_where_they_make_much_of_the_error(analysis: Analysis) -> None:
    top = analysis.ranked[0]
    assert top.scan is not None and top.weight.grid is not None
    weight = replace(top.weight, grid=replace(top.weight.grid, clipped=0.002, clipped_noise=0.4))
    scan = replace(top.scan, weight_alone=OutputError(1, 1, 1), input_alone=OutputError(0.1, 1, 1))
    layer = replace(top, weight=weight, scan=scan)
    changed = replace(analysis, layers=tuple(layer if one is top else one for one in analysis.layers))
    said = "0.2 % of the weights lie beyond the outermost levels and cause 40 % of the squared error"
    assert said in describe(changed)[0] and said not in describe(analysis)[0]


def test_idle_levels_clipping_and_float_layers_are_named() -> None:
    model = float_network()
    both = quantized(model)
    with torch.no_grad():
        both.fc.weight_quantizer.scale.mul_(60)
        both.second.input_quantizer.scale.mul_(0.05)
    analysis = compare_models(both, model, images())
    said = " ".join(describe(analysis))
    grid = analysis.layers[2].weight.grid
    assert grid is not None and f"weight of `fc` ({grid.levels_used} of 255)" in said
    assert "In `second`, " in said and "% of the inputs are clipped" in said
    left = quantized(model, bSetQ=False)
    assert "2 of 3 layers stay float" in " ".join(describe(compare_models(left, model, images())))


def test_nothing_is_said_of_a_float_model() -> None:
    assert describe(compare_models(float_network(), None, images())) == []


def test_a_network_of_one_layer_without_error() -> None:
    class One(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(108, 2, bias=False)

        def forward(self, img: torch.Tensor) -> torch.Tensor:
            return self.fc(img.flatten(1))

    model = One().eval()
    with torch.no_grad():
        model.fc.weight.zero_()
    analysis = compare_models(quantized(_with_unused(model)), None, images())
    assert "of any one layer off does not change the output" in describe(analysis)[0]
    assert analysis.layers[0].output is not None and analysis.layers[0].output.sqnr_db is None


def _with_unused(model: nn.Module) -> nn.Module:
    model.unused = nn.Linear(1, 1)
    return model


def test_the_advice_ranks_gain_per_size(analysis: Analysis) -> None:
    """Only layers below 8 bits whose bits matter; top-1 counts where labels are known, else the divergence."""

    def measured(kl: float, top1: float | None) -> OutputError:
        return OutputError(kl, None, 0.1, top1)

    def layer(name: str, shape: tuple[int, ...], bits: int, kl: float, top1: float | None) -> Any:
        scan = replace(analysis.ranked[0].scan, without=measured(kl, top1))
        return replace(analysis.ranked[0], name=name, shape=shape, num_bit_w=bits, scan=scan)

    def ranked(known: bool) -> list[Any]:
        layers = (
            layer("large", (64, 64, 3, 3), 4, 0.2, 0.9 if known else None),
            layer("small", (16, 16, 3, 3), 4, 0.9, 0.8 if known else None),
            layer("eight", (16, 16, 3, 3), 8, 0.1, 0.9 if known else None),
            layer("harmful", (16, 16, 3, 3), 2, 1.1, 0.6 if known else None),
            layer("idle", (16, 16, 3, 3), 2, 0.5, 0.7 if known else None),
        )
        return advise(replace(analysis, everything=measured(1.0, 0.7 if known else None), layers=layers))

    with_labels, without = ranked(True), ranked(False)
    assert [advice.name for advice in with_labels] == ["small", "large", "idle"]
    assert [advice.name for advice in without] == ["idle", "small", "large"] and without[0].top1 is None
    small = with_labels[0]
    assert small.kib == 16 * 16 * 9 * 4 / 8 / 1024 and small.top1 == pytest.approx(10)
    assert small.per_kib == pytest.approx(10 / small.kib)
    assert advise(replace(analysis, everything=None)) == []
