"""What is in pictures: of a checkpoint and of an exported file, for pictures of every kind."""

from __future__ import annotations

import gc
import json
import logging
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from calls import ROOT, Delivered
from PIL import Image

from lbitcls.apis import inference_model, init_model, show_result, show_result_pyplot
from lbitcls.datasets.digits import Digits
from lbitcls.deploy import export_model
from lbitcls.inference.onnx_model import ExportedModel
from lbitcls.models import build_classifier
from lbitcls.utils import Config, save_checkpoint
from lbitcls.utils.errors import CheckpointError, ConfigError, DataError
from lbitcls.utils.logging import get_logger

PHOTO = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
RGB = [dict(type="Normalize", mean=[0.5] * 3, std=[0.5] * 3)]


def one_conv(classes: int, channels: int = 3) -> dict[str, Any]:
    return dict(
        type="ImageClassifier",
        backbone=dict(type="ResNetCIFAROptionA", depth=8, in_channels=channels, base_channels=4),
        neck=dict(type="GlobalAveragePooling"),
        head=dict(type="LinearClsHead", num_classes=classes, in_channels=16, topk=(1,)),
    )


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.fixture(params=["checkpoint", "exported"])
def model(request: pytest.FixtureRequest, delivered: Delivered) -> Any:
    return init_model(delivered.config, getattr(delivered, request.param))


@pytest.fixture
def digits() -> Digits:
    return Digits(split="test")


def test_a_model_says_what_it_is(model: Any) -> None:
    assert model.CLASSES == tuple(f"digit {number}" for number in range(10))
    assert isinstance(model.cfg, Config) and model.cfg.data.test.type == "Digits"
    result = inference_model(model, PHOTO)
    assert sorted(result) == ["pred_class", "pred_label", "pred_score"]
    assert result["pred_class"] == f"digit {result['pred_label']}"
    assert type(result["pred_label"]) is int and type(result["pred_score"]) is float
    assert json.loads(json.dumps(result)) == result


def test_topk(model: Any) -> None:
    result = inference_model(model, PHOTO, topk=3)
    entries = result.pop("topk")
    assert entries[0] == result and len({entry["pred_label"] for entry in entries}) == 3
    scores = [entry["pred_score"] for entry in inference_model(model, PHOTO, topk=99)["topk"]]
    assert len(scores) == 10 and scores == sorted(scores, reverse=True) and sum(scores) == pytest.approx(1, abs=1e-5)
    for wrong in (0, -1, 1.5):
        with pytest.raises(ConfigError, match="topk must be an integer ≥ 1"):
            inference_model(model, PHOTO, topk=wrong)
    with pytest.raises(ConfigError, match="batch_size must be an integer ≥ 1; got 0"):
        inference_model(model, [PHOTO], batch_size=0)


def test_the_test_set_is_predicted_as_the_classifier_does(model: Any, delivered: Delivered, digits: Digits) -> None:
    classifier = init_model(delivered.config, delivered.checkpoint)
    prepared = Digits(split="test", pipeline=classifier.cfg.data.test.pipeline)
    expected = classifier.scores(torch.stack([prepared[i]["img"] for i in range(100)]))
    found = inference_model(model, [digits.images[i, 0].numpy() for i in range(100)], topk=10, batch_size=16)
    scores = np.zeros_like(expected)
    for row, result in zip(scores, found, strict=True):
        row[[entry["pred_label"] for entry in result["topk"]]] = [entry["pred_score"] for entry in result["topk"]]
    off = np.abs(scores - expected).max(1) > 1e-4
    assert off.sum() <= 12  # of a file, values next to a rounding tie may fall on its other side


def test_one_by_one_and_in_batches(model: Any) -> None:
    pictures = [PHOTO, Image.fromarray(PHOTO), PHOTO[::2], PHOTO[..., 0], PHOTO[:1, :1]]
    alone = [inference_model(model, picture) for picture in pictures]
    for size in (1, 2, 32):
        together = inference_model(model, tuple(pictures), batch_size=size)
        assert [result["pred_label"] for result in together] == [result["pred_label"] for result in alone]
        for one, other in zip(together, alone, strict=True):
            assert one["pred_score"] == pytest.approx(other["pred_score"], abs=1e-3)
    assert alone[0] == alone[1] and inference_model(model, []) == []


def saved(folder: Path, name: str, mode: str = "RGB", **options: Any) -> Path:
    image = Image.fromarray(PHOTO) if mode != "I;16" else Image.fromarray(PHOTO[..., 0].astype(np.uint16) * 257)
    (image if mode == "I;16" else image.convert(mode)).save(folder / name, **options)
    return folder / name


def test_pictures_of_every_kind(model: Any, tmp_path: Path) -> None:
    """The same picture in many forms; what changes no pixel changes no score."""
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(np.rot90(PHOTO)).save(tmp_path / "turned.png", exif=turned)
    colour = inference_model(model, PHOTO)
    gray = inference_model(model, np.asarray(Image.fromarray(PHOTO).convert("L")))
    alpha = np.dstack([PHOTO, np.full(PHOTO.shape[:2], 90, np.uint8)])
    for form in (saved(tmp_path, "a.png"), str(saved(tmp_path, "a.bmp")), tmp_path / "turned.png", alpha):
        assert inference_model(model, form) == colour, form
    with Image.open(tmp_path / "turned.png") as opened:
        assert inference_model(model, opened) == colour
    for form in (saved(tmp_path, "g.png", "L"), saved(tmp_path, "ga.png", "LA")):
        assert inference_model(model, form) == gray, form
    for name, mode in (("c.jpg", "CMYK"), ("p.png", "P"), ("rgba.png", "RGBA"), ("16.png", "I;16"), ("b.gif", "1")):
        assert 0 < inference_model(model, saved(tmp_path, name, mode))["pred_score"] <= 1
    Image.new("L", (1, 1), 7).save(tmp_path / "1.png")
    assert 0 < inference_model(model, tmp_path / "1.png")["pred_score"] <= 1


def test_pictures_that_cannot_be_used(model: Any, tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("no image")
    Image.new("F", (8, 8)).save(tmp_path / "float.tiff")
    for picture, message in (
        (tmp_path / "missing.jpg", r"missing\.jpg: no such file"),
        (tmp_path / "text.jpg", r"text\.jpg: cannot read this image \(8 bytes\)"),
        (tmp_path / "float.tiff", "pixels of 32 bits"),
        (tmp_path, r": cannot read this image: not a regular file but a folder"),
        (PHOTO.astype(np.float32), r"an image must be a uint8 array .* got ndarray float32 \(40, 60, 3\)"),
        (PHOTO[None], "an image must be a uint8 array"),
        (PHOTO[:0], "an image must have 1 or 3 channels"),
        (7, "got int"),
        (None, "got NoneType"),
    ):
        with pytest.raises(DataError, match=message):
            inference_model(model, picture)
        with pytest.raises(DataError, match=f"image 1 of 2: .*{message}"):
            inference_model(model, [PHOTO, picture])


def test_an_exported_file_needs_no_torch_and_no_config(delivered: Delivered, tmp_path: Path) -> None:
    saved(tmp_path, "photo.jpg")
    code = f"""
import sys
from lbitcls.apis import inference_model, init_model, show_result
for config in (None, {str(delivered.config)!r}):
    model = init_model(config, {str(delivered.exported)!r}, threads=1)
    result = inference_model(model, ["photo.jpg", "photo.jpg"], topk=2)[0]
show_result(model, "photo.jpg", result, "labelled.png")
print(result["pred_class"][:5], model.cfg.data.test.type, {{"torch", "torchvision"}} & set(sys.modules))
"""
    environment = {"PYTHONPATH": str(ROOT), "PATH": "", "OMP_NUM_THREADS": "1", "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, env=environment, check=False
    )
    assert (done.returncode, done.stdout) == (0, "digit Digits set()\n"), done.stderr
    assert (tmp_path / "labelled.png").is_file()


def test_both_engines(delivered: Delivered) -> None:
    model = init_model(None, delivered.exported, engine="onnxruntime", threads=1)
    assert isinstance(model, ExportedModel) and model.engine.name == "onnxruntime"
    assert repr(model) == f"ExportedModel({delivered.exported}, LSQ W4A4, 10 classes, onnxruntime)"
    expected = inference_model(init_model(None, delivered.exported), PHOTO)
    assert inference_model(model, PHOTO)["pred_score"] == pytest.approx(expected["pred_score"], abs=1e-4)


def test_a_gpu_in_a_notebook_means_the_cpu_where_there_is_none(
    delivered: Delivered, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    warned: list[str] = []
    monkeypatch.setattr(get_logger(), "warning", lambda message, *values: warned.append(message % values))
    model = init_model(delivered.config, delivered.checkpoint, device="cuda:0")
    assert next(model.parameters()).device.type == "cpu"
    assert warned == ["Running on the CPU instead of cuda:0: this machine has no GPU."]
    cfg = Config.fromfile(delivered.config)
    cfg.device = "cuda:0"
    with pytest.raises(ConfigError, match="cuda:0 is requested, but this machine has no GPU"):
        init_model(cfg, delivered.checkpoint, device=None)


def test_arguments_that_do_not_suit_the_model(delivered: Delivered, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"an exported model runs on the CPU; remove device='cuda'"):
        init_model(None, delivered.exported, "cuda")
    with pytest.raises(ConfigError, match=r"engine and threads need an exported model"):
        init_model(delivered.config, delivered.checkpoint, engine="openvino")
    with pytest.raises(ConfigError, match="engine and threads need an exported model"):
        init_model(None, delivered.checkpoint, threads=2)
    with pytest.raises(ConfigError, match="a device must be"):
        init_model(delivered.config, delivered.checkpoint, "tpu")
    with pytest.raises(CheckpointError, match=r"there is no ONNX file .*. Did you mean 'model\.onnx'"):
        init_model(None, delivered.exported.with_name("mode.onnx"))
    cfg = Config.fromfile(delivered.config)
    with pytest.raises(ConfigError, match=r"inference needs model \(the classifier"):
        init_model(dict(data=cfg.data), delivered.checkpoint)
    del cfg.data["test"], cfg.data["val"]
    with pytest.raises(ConfigError, match=r"inference needs model\.cfg, a config with data\.test or data\.val"):
        inference_model(init_model(cfg, delivered.checkpoint), PHOTO)
    with pytest.raises(ConfigError, match=r"inference needs model\.cfg"):
        inference_model(build_classifier(one_conv(3)), PHOTO)


@pytest.mark.parametrize("form", ["checkpoint", "exported"])
def test_names_that_nobody_gave(form: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for classes, expected, warned in ((7, ("0", "1", "2"), 0), (1000, ("tench", "goldfish", "great white shark"), 1)):
        cfg = Config(dict(model=one_conv(classes), data=dict(test=dict(type="CIFAR10", pipeline=RGB))))
        classifier = build_classifier(cfg.model).eval()
        path = tmp_path / ("model.pth" if form == "checkpoint" else "model.onnx")
        if form == "checkpoint":
            save_checkpoint(classifier, path)
        else:
            export_model(classifier, path, input_shape=(3, 32, 32), pipeline=RGB)
        caplog.clear()
        model = init_model(cfg, path)
        found = inference_model(model, [PHOTO, PHOTO])
        assert model.CLASSES[:3] == expected and len(model.CLASSES) == classes
        assert found[0]["pred_class"] == model.CLASSES[found[0]["pred_label"]]
        said = ["The model does not name its 1,000 classes; using ImageNet's names."]
        assert warnings(caplog) == said * warned


def test_without_a_checkpoint(caplog: pytest.LogCaptureFixture) -> None:
    cfg = dict(model=one_conv(4), data=dict(val=dict(type="CIFAR10", pipeline=RGB)))
    model = init_model(cfg)
    assert warnings(caplog) == ["No checkpoint: Using the initial weights of the config's model."]
    assert not model.training and model.CLASSES == ("0", "1", "2", "3")
    assert inference_model(model, PHOTO)["pred_label"] in range(4)


def test_a_classifier_stays_as_it_was(delivered: Delivered) -> None:
    """Its mode, its running statistics; and it can be forgotten."""
    model = init_model(delivered.config, delivered.checkpoint)
    expected = inference_model(model, PHOTO)
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert inference_model(model, PHOTO) == expected and model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    forgotten = weakref.ref(model)
    del model
    gc.collect()
    assert forgotten() is None


def test_another_pipeline_in_the_config_counts(delivered: Delivered) -> None:
    model = init_model(delivered.config, delivered.checkpoint)
    before = inference_model(model, PHOTO)
    model.cfg.data.test.pipeline[0].mean = [0.9]
    assert inference_model(model, PHOTO) != before


def test_the_pipelines_of_config_and_file(delivered: Delivered, caplog: pytest.LogCaptureFixture) -> None:
    cfg = Config.fromfile(delivered.config)
    cfg.data.test.pipeline[0].mean = [0.9]
    init_model(delivered.config, delivered.exported)
    assert not warnings(caplog)
    other = init_model(cfg, delivered.exported)
    (said,) = warnings(caplog)
    assert said.endswith("was exported with a test pipeline other than the config's; using the config's.")
    assert inference_model(other, PHOTO) != inference_model(init_model(None, delivered.exported), PHOTO)


def test_preprocessing_by_name_is_written_out_in_a_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """So that neither torchvision nor a config is needed to know what it is."""
    from lbitcls.workflows.exporting import export_checkpoint

    steps = [dict(type="LoadImageFromFile"), dict(type="PretrainedPreprocessing", weights="torchvision://resnet18")]
    test = dict(type="ImageFolder", data_prefix="none", pipeline=steps)
    cfg = Config(dict(model=one_conv(3), data=dict(test=test)))
    save_checkpoint(build_classifier(cfg.model), tmp_path / "model.pth")
    export_checkpoint(cfg, tmp_path / "model.pth", tmp_path / "model.onnx")
    by_itself = init_model(None, tmp_path / "model.onnx")
    kinds = [step["type"] for step in by_itself.engine.info.pipeline]
    assert kinds == ["LoadImageFromFile", "Resize", "CenterCrop", "Normalize"]
    with_config = init_model(cfg, tmp_path / "model.onnx")
    assert not warnings(caplog)
    assert type(with_config.prepare).__name__ == type(by_itself.prepare).__name__ == "LightPipeline"
    assert inference_model(with_config, PHOTO) == inference_model(by_itself, PHOTO)


def test_files_that_lbitcls_did_not_write(tmp_path: Path) -> None:
    """They may have one batch size, and say neither their classes nor their preprocessing."""
    import onnx

    torch.manual_seed(0)
    export_model(build_classifier(one_conv(5)).eval(), tmp_path / "model.onnx", input_shape=(3, 16, 16))
    proto = onnx.load(tmp_path / "model.onnx")
    del proto.metadata_props[:]
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 2
    onnx.save(proto, tmp_path / "foreign.onnx")
    with pytest.raises(ConfigError, match=r"foreign\.onnx does not record how to prepare images; give a config"):
        init_model(None, tmp_path / "foreign.onnx")
    cfg = dict(data=dict(val=dict(type="CIFAR10", pipeline=RGB)))
    model = init_model(cfg, tmp_path / "foreign.onnx")
    assert model.CLASSES is None
    found = inference_model(model, [PHOTO, PHOTO[::2], PHOTO], topk=5)
    assert found[0] == found[2] and model.CLASSES == ("0", "1", "2", "3", "4")
    cfg["data"]["val"]["pipeline"] = [*RGB, dict(type="v2.Identity")]
    free = init_model(cfg, tmp_path / "model.onnx")  # by PyTorch's steps
    for one, other in zip(inference_model(free, [PHOTO, PHOTO[::2]], topk=5), found):
        assert one["pred_label"] == other["pred_label"]


def test_a_backbone_has_no_classes(tmp_path: Path) -> None:
    export_model(build_classifier(one_conv(5)).eval(), tmp_path / "b.onnx", input_shape=(3, 16, 16), part="backbone")
    with pytest.raises(CheckpointError, match=r"b\.onnx is a backbone: it returns features"):
        init_model(None, tmp_path / "b.onnx")


def test_a_labelled_picture(model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = inference_model(model, PHOTO, topk=3)
    labelled = show_result(model, PHOTO, result, out_file=tmp_path / "deep" / "labelled.png")
    with Image.open(tmp_path / "deep" / "labelled.png") as written:
        assert np.array_equal(np.asarray(written.convert("RGB")), labelled)
    assert labelled.dtype == np.uint8 and labelled.shape[2] == 3 and min(labelled.shape[:2]) > 200
    assert show_result(model, PHOTO, inference_model(model, PHOTO)).shape[0] < labelled.shape[0]
    with pytest.raises(ConfigError, match=r"got '.*labelled\.txt'"):
        show_result(model, PHOTO, result, tmp_path / "labelled.txt")
    with pytest.raises(DataError, match="no such file"):
        show_result(model, tmp_path / "missing.png", result)
    from matplotlib import pyplot

    shown = []
    monkeypatch.setattr(pyplot, "show", lambda: shown.append(pyplot.gcf().axes[0].images[0].get_array()))
    show_result_pyplot(model, PHOTO, result)
    assert np.array_equal(shown[0], labelled) and not pyplot.get_fignums()
