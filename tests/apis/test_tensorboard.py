"""A run as TensorBoard shows it, read back with TensorBoard's own reader."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lbitcls.apis import tensorboard as module
from lbitcls.apis import train_classifier
from lbitcls.apis.hparams import COLUMNS, FIRST
from lbitcls.apis.session import Session, make_model
from lbitcls.apis.tensorboard import TensorboardLoggerHook, chosen_layers
from lbitcls.core.hooks.work_dir import PICTURES
from lbitcls.models import build_classifier
from lbitcls.quant import build_mtransformer
from lbitcls.utils import Config, load_checkpoint
from lbitcls.utils.dist import Place
from lbitcls.utils.errors import ConfigError
from lbitcls.utils.logging import get_logger

LAYERS = ["backbone.conv1", "backbone.conv2", "head.fc"]
QUANT = dict(
    quant_transformer=dict(
        type="mTransformerV2",
        quan_policy=dict(
            Conv2d=dict(type="LSQConv", num_bit_w=3, num_bit_a=4),
            Linear=dict(type="LSQLinear", num_bit_w=8, num_bit_a=8),
        ),
    ),
    calibration=dict(epoch=1, num_batches=2),
)
KEYS = ["model.head.dropout", "data.train.pipeline.0.type", "quant_transformer.quan_policy.Conv2d.num_bit_w"]
EVERY = dict(type="TensorboardLoggerHook", interval=1)


def board(**options: Any) -> dict[str, Any]:
    """A section `log_config` with the hook alone."""
    return dict(interval=5, hooks=[{**EVERY, **options}], pictures=False)


def read(cfg: Config) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = Path(cfg.work_dir) / "tf_logs"
    assert all(path.is_file() for path in folder.iterdir()), "a folder would be a second run"
    events = EventAccumulator(str(folder), size_guidance=dict(scalars=0, histograms=0, images=0, tensors=0))
    return events.Reload()


def steps(events: Any, tag: str, kind: str = "Scalars") -> list[int]:
    return [event.step for event in getattr(events, kind)(tag)]


def last(events: Any, tag: str) -> float:
    return events.Scalars(tag)[-1].value


def table(events: Any, name: str) -> Any:
    """What an entry of the table of hyperparameters holds."""
    from tensorboard.plugins.hparams import metadata

    parse = getattr(metadata, f"parse_{name}_plugin_data")
    return parse(events.summary_metadata[getattr(metadata, f"{name.upper()}_TAG")].plugin_data.content)


def line(events: Any) -> dict[str, float | str]:
    found = table(events, "session_start_info").hparams
    return {name: getattr(value, value.WhichOneof("kind")) for name, value in found.items()}


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
    levels = torch.arange(int(codes.min()), int(codes.max()) + 1)
    assert torch.allclose((edges[1:] + edges[:-1]) / 2, quantizer.qparams().dequantize(levels), atol=1e-6)
    assert value.bucket == [int((codes == level).sum()) for level in levels]


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
    assert len({image.size for image in images}) == 1 and min(images[0].size) > 300
    assert len({image.tobytes() for image in images}) == 3


# What a run must not feel.


def everything(value: Any, name: str = "") -> dict[str, Any]:
    """The leaves of a checkpoint by their place."""
    if isinstance(value, dict):
        pairs = value.items()
    elif isinstance(value, (list, tuple)):
        pairs = enumerate(value)
    else:
        return {name: value}
    return {place: leaf for key, part in pairs for place, leaf in everything(part, f"{name}.{key}").items()}


def content(cfg: Config) -> dict[str, Any]:
    checkpoint = torch.load(Path(cfg.work_dir) / "latest.pth", weights_only=True)
    return {k: v for k, v in everything(checkpoint).items() if k not in (".meta.config", ".meta.run")}


def check_equal(one: Config, other: Config) -> None:
    first, second = content(one), content(other)
    assert first.keys() == second.keys()
    for name, value in first.items():
        same = torch.equal(value, second[name]) if isinstance(value, torch.Tensor) else value == second[name]
        assert same, name


CASES: dict[str, dict[str, Any]] = {
    "ema, folded": dict(
        ema=dict(decay=0.9), quant_transformer={**QUANT["quant_transformer"], "fold_bn": True}, total_epochs=2
    ),
    "bf16, observers": dict(
        amp="bf16",
        calibration=dict(epoch=0, num_batches=1),
        quant_transformer=dict(
            type="mTransformerV2", quan_policy=dict(Conv2d=dict(type="TorchQATConv", num_bit_w=4, num_bit_a=4))
        ),
        total_epochs=2,
    ),
    "workers": dict(workers=2, total_epochs=2),
}


@pytest.mark.parametrize("case", CASES)
def test_a_run_is_the_same_with_and_without(case: str, make_config: Any) -> None:
    sections = {**QUANT, **CASES[case]}
    plain, watched = (make_config(work, **sections) for work in ("plain", "watched"))
    watched.log_config = board(layers=["backbone"])
    for cfg in (plain, watched):
        train_classifier(cfg)
    check_equal(plain, watched)
    assert steps(read(watched), "input_sqnr_db/backbone.conv2")[-1] == 24


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
def test_a_compiled_run_is_the_same_with_and_without(make_config: Any) -> None:
    plain, watched = (make_config(work, compile=True, kernels="fused", **QUANT) for work in ("plain", "watched"))
    watched.log_config = board()
    for cfg in (plain, watched):
        train_classifier(cfg)
    check_equal(plain, watched)
    assert steps(read(watched), "input_sqnr_db/head.fc") == [24]


def test_other_ranks_write_nothing(make_config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "is_main", lambda: False)
    monkeypatch.setattr("lbitcls.core.hooks.log.is_main", lambda: False)
    cfg = make_config(log_config=board(), total_epochs=1)
    train_classifier(cfg)
    assert not (Path(cfg.work_dir) / "tf_logs").exists()


# Runs that stop and go on.


def test_a_run_that_goes_on_has_one_line_and_no_gap(make_config: Any) -> None:
    from tiny_parts import Ended

    cfg = make_config(log_config=board(), total_epochs=3, custom_hooks=[dict(type="EndAt", event="after_iter", at=30)])
    with pytest.raises(Ended):
        train_classifier(cfg)
    events = read(cfg)
    assert line(events)["epochs"] == 3 and "_hparams_/session_end_info" not in events.summary_metadata
    assert steps(events, "best/top-1") == [12, 24] and steps(events, "train/loss")[-1] == 29
    cfg.custom_hooks = []
    summary = train_classifier(cfg, resume=True)
    events = read(cfg)
    assert steps(events, "train/loss") == [5, 10, 12, 17, 22, 24, 29, 34, 36]
    assert steps(events, "best/top-1") == steps(events, "predictions/val", "Images") == [12, 24, 36]
    assert steps(events, "weight/head.fc/float", "Histograms") == [12, 24, 36]
    assert last(events, "best/top-1") == pytest.approx(summary["float"]["top1"])
    assert table(events, "session_end_info").status == 1
    assert line(events)["method"] == "float" and line(events)["weight_bits"] == 32


def test_a_finished_run_that_is_asked_to_go_on_stays_as_it_is(make_config: Any) -> None:
    cfg = make_config(log_config=board(), total_epochs=1)
    train_classifier(cfg)
    before = {path: path.read_bytes() for path in (Path(cfg.work_dir) / "tf_logs").iterdir()}
    train_classifier(cfg, resume=True)
    assert before == {path: path.read_bytes() for path in (Path(cfg.work_dir) / "tf_logs").iterdir()}


# How much there is.


@pytest.mark.parametrize(("looks", "epochs"), [(2, [3, 5]), (20, [1, 2, 3, 4, 5])])
def test_looks_are_few_whatever_the_length(
    looks: int, epochs: list[int], make_config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOOKS", looks)
    cfg = make_config(log_config=board(interval=None, predictions=False), total_epochs=5)
    train_classifier(cfg)
    assert steps(read(cfg), "input/head.fc/float", "Histograms") == [12 * epoch for epoch in epochs]


def test_less_is_written_where_less_is_asked_for(make_config: Any) -> None:
    options = [dict(histograms=False), dict(layers=["head"], images=0), dict(layers=[])]
    hooks = [{**EVERY, **given, "log_dir": f"logs_{place}"} for place, given in enumerate(options)]
    cfg = make_config(total_epochs=1, **{**QUANT, "calibration": dict(epoch=0)})
    folder = Path(cfg.work_dir)
    for hook in hooks:
        hook["log_dir"] = str(folder / hook["log_dir"] / "tf_logs")
    cfg.log_config = dict(interval=5, hooks=hooks, pictures=False)
    train_classifier(cfg)
    tags = [read(Config(dict(work_dir=str(folder / f"logs_{place}")))).Tags() for place in range(3)]
    assert [bool(tag["histograms"]) for tag in tags] == [False, True, False]
    assert [bool(tag["images"]) for tag in tags] == [True, False, True]
    assert sorted(tags[1]["histograms"]) == ["weight/head.fc/float", "weight/head.fc/quantized"]
    assert "weight_sqnr_db/head.fc" in tags[0]["scalars"] and "input_sqnr_db/head.fc" not in tags[1]["scalars"]
    assert not [name for name in tags[2]["scalars"] if "head.fc" in name]


def test_without_validation_training_images_are_looked_at(make_config: Any) -> None:
    cfg = make_config(log_config=board(), total_epochs=1)
    train_classifier(cfg, validate=False)
    events = read(cfg)
    assert events.Tags()["images"] == ["predictions/train"] and "best/top-1" not in events.Tags()["scalars"]
    assert next(info.name.tag for info in table(events, "experiment").metric_infos) == "train/loss"


def test_a_failing_look_ends_no_run(make_config: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def fail(*args: Any) -> None:
        raise RuntimeError("no light")

    monkeypatch.setattr(module, "take_snapshot", fail)
    cfg = make_config(log_config=board())
    train_classifier(cfg)
    assert capsys.readouterr().out.count("not looked at any more: RuntimeError: no light") == 1
    assert steps(read(cfg), "val/top-1") == [12, 24]


# What a config may say.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(interval=0), "interval is an int from 1; got 0"),
        (dict(images=-1), "images is an int from 0"),
        (dict(histograms=3), "histograms is True or False; got 3"),
        (dict(layers=3), r"layers is written as a list, \[…\]; got 3"),
        (dict(log_dir=3), "log_dir is a folder"),
        (dict(hparams="optimizer.lr"), "hparams is written as a list"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"TensorboardLoggerHook: {message}"):
        TensorboardLoggerHook(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(layers=["*.conv1", "backbone.conv3"]), "'backbone.conv3' names no .*did you mean 'backbone.conv2'?"),
        (dict(hparams=["optimizer.lrr"]), "'optimizer.lrr', which the config does not have: 'lrr'; did you mean 'lr'?"),
        (dict(hparams=["data.train.pipeline.7"]), r"'data.train.pipeline.7', which the config does not have: '7'\."),
    ],
)
def test_names_that_match_nothing(options: dict[str, Any], message: str, make_config: Any) -> None:
    cfg = make_config(log_config=board(**options))
    with pytest.raises(ConfigError, match=message):
        train_classifier(cfg)
    assert not (Path(cfg.work_dir) / "tf_logs").exists()


@pytest.mark.parametrize(
    ("patterns", "chosen"),
    [
        (["*"], LAYERS),
        (["backbone"], LAYERS[:2]),
        (["head.fc", "*.conv1"], [LAYERS[0], LAYERS[2]]),
        (["backbone.conv[12]"], LAYERS[:2]),
        ([], []),
    ],
)
def test_names_of_layers(patterns: list[str], chosen: list[str], make_config: Any) -> None:
    session = Session(Place(), torch.device("cpu"), get_logger())
    import tiny_parts  # noqa: F401

    assert chosen_layers(make_model(make_config(**QUANT), session), patterns) == chosen
