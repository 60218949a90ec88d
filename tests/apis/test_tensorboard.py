"""What TensorBoard shows of a run, read back with TensorBoard's own reader."""

from __future__ import annotations

import io
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lbitcls.apis import train_classifier
from lbitcls.core.hooks.work_dir import PICTURES
from lbitcls.models import build_classifier
from lbitcls.quant import build_mtransformer
from lbitcls.tracking import tensorboard as module
from lbitcls.tracking.hparams import COLUMNS, FIRST
from lbitcls.utils import Config, load_checkpoint

sys.path.insert(0, str(Path(__file__).resolve().parent))

from event_files import KEYS, LAYERS, QUANT, board, last, line, read, steps, table


@pytest.fixture(scope="module")
def run(tiny_sections: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run of three epochs, float in the first: its config, its summary, its events."""
    sections = {**tiny_sections, **QUANT, "total_epochs": 3, "work_dir": str(tmp_path_factory.mktemp("board"))}
    logs = {**board(hparams=KEYS, images=12), "pictures": True}
    cfg = Config({**sections, "log_config": logs, "kernels": "plain"})
    summary = train_classifier(cfg)
    return cfg, summary, read(cfg)


def model_after(cfg: Config, file: str) -> Any:
    """The model of a checkpoint of the run, in eval mode."""
    model = build_mtransformer(cfg.quant_transformer)(build_classifier(cfg.model))
    load_checkpoint(model, str(Path(cfg.work_dir) / file))
    return model.eval()


def test_scalars_are_those_of_the_log(run: Any) -> None:
    cfg, _, events = run
    records = [json.loads(text) for text in (Path(cfg.work_dir) / "log.jsonl").read_text().splitlines()]
    for mode in ("train", "val"):
        expected = [record["loss"] for record in records if record["mode"] == mode]
        assert [event.value for event in events.Scalars(f"{mode}/loss")] == pytest.approx(expected)
    assert steps(events, "train/loss") == [5, 10, 12, 17, 22, 24, 29, 34, 36]
    assert steps(events, "val/top-1") == [12, 24, 36]


def test_the_config_is_there_as_text(run: Any) -> None:
    cfg, _, events = run
    (event,) = events.Tensors("config/text_summary")
    (text,) = event.tensor_proto.string_val
    code = re.fullmatch(r"```python\n(.*)\n```", text.decode(), re.DOTALL)
    assert Config.fromstring(code[1]).optimizer.lr == 0.1 and code[1] == cfg.pretty_text


def test_a_line_in_the_table_of_hyperparameters(run: Any) -> None:
    from tensorboard.plugins.hparams.api_pb2 import DATA_TYPE_STRING

    _, _, events = run
    assert line(events) == {
        "backbone": "TinyNet",
        "dataset": "Digits",
        "method": "LSQ",
        "bits": "W3A4 (2), W8A8 (1)",
        "weight_bits": 3,
        "input_bits": 4,
        "calibration_epoch": 1,
        "epochs": 3,
        "batch_size": 128,
        "optimizer": "SGD",
        "lr": 0.1,
        "lr_policy": "CosineAnnealing",
        "momentum": 0.9,
        "weight_decay": 1e-4,
        "precision": "float32",
        "kernels": "plain",
        "seed": 3,
        "model.head.dropout": 0.1,
        "data.train.pipeline.0.type": "Normalize",
        "quant_transformer.quan_policy.Conv2d.num_bit_w": 3,
    }
    infos = table(events, "experiment").hparam_infos
    assert [info.name for info in infos] == [*COLUMNS, *KEYS]
    assert {info.name for info in infos if info.differs} == {*FIRST, *KEYS}
    assert {info.name for info in infos if info.type == DATA_TYPE_STRING} >= {"bits", "method", "precision"}


def test_the_table_has_the_final_metrics(run: Any) -> None:
    from tensorboard.plugins.hparams.api_pb2 import STATUS_SUCCESS

    _, summary, events = run
    metrics = [info.name.tag for info in table(events, "experiment").metric_infos]
    assert metrics[:5] == ["best/top-1", "best/float_top-1", "val/top-1", "val/top-5", "val/loss"]
    assert set(metrics) - set(events.Tags()["scalars"]) == {"integer/top-1", "integer/size_kib"}, "no export here"
    assert last(events, "best/top-1") == pytest.approx(summary["quantized"]["top1"])
    assert last(events, "best/float_top-1") == pytest.approx(summary["float"]["top1"])
    assert last(events, "size/quantized_kib") == pytest.approx(summary["model_size"]["quantized_kib"])
    assert table(events, "session_end_info").status == STATUS_SUCCESS


def test_figures_of_the_quantizers(run: Any) -> None:
    cfg, _, events = run
    model = model_after(cfg, "epoch_3.pth")
    for name in LAYERS:
        layer = model.get_submodule(name)
        weight, quantizer = layer.weight.detach(), layer.weight_quantizer
        codes, rounded = quantizer.to_integer(weight), quantizer(weight).detach()
        noise = (weight - rounded).square().sum()
        assert last(events, f"weight_scale/{name}") == pytest.approx(quantizer.qparams().scale.item())
        assert last(events, f"weight_levels_used/{name}") == len(codes.unique())
        assert last(events, f"weight_sqnr_db/{name}") == pytest.approx(
            10 * torch.log10(weight.square().sum() / noise).item(), abs=1e-3
        )
        beyond = (weight / quantizer.qparams().scale < quantizer.quant_min) | (
            weight / quantizer.qparams().scale > quantizer.quant_max
        )
        assert last(events, f"weight_clipped/{name}") == pytest.approx(beyond.double().mean().item(), abs=1e-3)
        for figure in ("scale", "clipped", "levels_used", "sqnr_db"):
            for role in ("weight", "input"):
                assert steps(events, f"{role}_{figure}/{name}") == [24, 36], "none while the run is float"
        assert last(events, f"input_scale/{name}") == pytest.approx(layer.input_quantizer.qparams().scale.item())
        assert last(events, f"input_levels_used/{name}") <= 2**layer.input_quantizer.num_bits


def test_histograms_before_and_after_quantization(run: Any) -> None:
    cfg, _, events = run
    model = model_after(cfg, "epoch_3.pth")
    tags = {
        f"{role}/{name}/{kind}" for role in ("weight", "input") for name in LAYERS for kind in ("float", "quantized")
    }
    assert set(events.Tags()["histograms"]) == tags
    for name in LAYERS:
        assert steps(events, f"weight/{name}/float", "Histograms") == [12, 24, 36]
        assert steps(events, f"input/{name}/quantized", "Histograms") == [24, 36]
        layer = model.get_submodule(name)
        counted = events.Histograms(f"weight/{name}/float")[-1].histogram_value
        assert counted.num == layer.weight.numel()
        edges = [counted.min, *counted.bucket_limit]
        expected, _ = np.histogram(layer.weight.detach().numpy(), edges)
        assert np.abs(expected - counted.bucket).sum() <= 4, "values at a border may fall on either side"


@pytest.mark.parametrize("name", LAYERS)
def test_the_quantized_histogram_lies_on_the_grid(run: Any, name: str) -> None:
    cfg, _, events = run
    layer = model_after(cfg, "epoch_3.pth").get_submodule(name)
    quantizer = layer.weight_quantizer
    codes = quantizer.to_integer(layer.weight.detach()).flatten()
    value = events.Histograms(f"weight/{name}/quantized")[-1].histogram_value
    edges = torch.tensor([value.min, *value.bucket_limit])
    assert value.num == codes.numel()
    if name == "head.fc":  # 8 bits: several levels in a bin
        assert len(edges) <= 97 and edges[0] <= quantizer(layer.weight).min() + 1e-3
        return
    centres, counts = (edges[1:] + edges[:-1]) / 2, torch.tensor(value.bucket)
    levels, expected = codes.unique(return_counts=True)
    assert torch.allclose(centres[counts > 0], quantizer.qparams().dequantize(levels), atol=1e-6)
    assert torch.equal(counts[counts > 0].long(), expected)
    assert (edges.diff() < quantizer.qparams().scale / 3).all(), "a comb"


def test_levels_that_do_not_occur_and_zero_points_have_their_place() -> None:
    from lbitcls.analysis.tensors import watch_weight
    from lbitcls.quant.quantizers.apot import APoT
    from lbitcls.quant.quantizers.lsq_plus import LSQPlus

    x = torch.linspace(-0.4, 2.0, 500)
    for quantizer in (APoT(4, role="input", signed=True), LSQPlus(3, role="input")):
        quantizer.initialize(x)
        start, width, counts = module._histograms(watch_weight(quantizer, x, None))["quantized"]
        values, expected = quantizer(x).unique(return_counts=True)
        places = [round((value - start) / width - 0.5) for value in values.tolist()]
        assert [counts[place] for place in places] == expected.tolist() and sum(counts) == 500


def test_predictions_and_pictures(run: Any) -> None:
    _, _, events = run
    tags = sorted(["predictions/val", *(f"pictures/{Path(name).stem}" for name in PICTURES)])
    assert sorted(events.Tags()["images"]) == tags
    assert steps(events, "predictions/val", "Images") == [12, 24, 36]
    images = [Image.open(io.BytesIO(event.encoded_image_string)) for event in events.Images("predictions/val")]
    assert len({image.size for image in images}) == 1 and min(images[0].size) > 600, "12 images, 4 in a row"
    assert len({image.tobytes() for image in images}) == 3
