"""Integer backbone in an exported model: its unchanged integers, the head behind it, the engines' results."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from lbitcls.commands.main import main
from lbitcls.deploy import export_model, load
from lbitcls.deploy.export import composed
from lbitcls.deploy.export.integer_backbone import IntegerBackbone
from lbitcls.deploy.passes.graph import Graph, weights_of
from lbitcls.deploy.runtime.metadata import SEAL
from lbitcls.deploy.verification.verify import verify
from lbitcls.models import build_backbone, build_classifier
from lbitcls.quant import build_mtransformer, calibrate, model_size
from lbitcls.utils.config import Config
from lbitcls.utils.errors import CheckpointError, ConfigError

FLOAT = dict(type="ResNetCIFAROptionA", depth=8, in_channels=1, base_channels=8, out_indices=(1, 2))
NORMALIZE = dict(type="Normalize", mean=[0.305], std=[0.376])
W8A8 = dict(num_bit_w=8, num_bit_a=8)


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    patch = pytest.MonkeyPatch()
    patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    yield
    patch.undo()


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A backbone with random weights whose BatchNorm saw the digits, to be calibrated on them."""
    torch.manual_seed(0)
    backbone = build_backbone(FLOAT).train()
    images = dict(type="Digits", split="train", pipeline=[NORMALIZE])
    for _ in range(20):
        backbone(torch.randn(64, 1, 8, 8))
    file = tmp_path_factory.mktemp("weights") / "backbone.pth"
    torch.save(backbone.state_dict(), file)
    calibration = dict(data=images, num_images=50)
    return dict(type="IntegerBackbone", from_float=FLOAT, checkpoint=str(file), calibration=calibration)


@pytest.fixture(scope="module")
def file(recipe: dict[str, Any]) -> Path:
    """The backbone's own file."""
    return build_backbone(recipe).path


def classifier(backbone: dict[str, Any], channels: int = 32, classes: int = 10) -> Any:
    torch.manual_seed(1)
    head = dict(type="LinearClsHead", num_classes=classes, in_channels=channels)
    neck = dict(type="GlobalAveragePooling")
    model = build_classifier(dict(type="ImageClassifier", backbone=backbone, neck=neck, head=head))
    nn.init.normal_(model.head.fc.weight)
    return model.eval()


def constants(path: Path) -> Counter[bytes]:
    """Return each constant with more than one number, by type, shape and bytes."""
    tensors = [numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer]
    return Counter(f"{a.dtype}{a.shape}".encode() + a.tobytes() for a in tensors if a.size > 1)


def kinds(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load(path).graph.node]


def test_the_graph_of_a_file_is_carried_over_as_it_is(file: Path, digits: Tensor, tmp_path: Path) -> None:
    model = classifier(dict(type="IntegerBackbone", model=str(file)))
    report = export_model(model, tmp_path / "model.onnx", input_shape=(1, 8, 8))
    assert not constants(file) - constants(report.path)
    inner, whole = kinds(file), kinds(report.path)
    assert whole[: len(inner)] == inner and "Gemm" in whole[len(inner) :]
    own = model.backbone.info
    assert report.info.layers == own.layers and report.info.quantization == own.quantization == "LSQ W8A8"
    assert not report.info.is_float and report.info.num_classes == 10
    assert {entry.domain for entry in onnx.load(report.path).opset_import} == {""}
    logits = load(report.path, threads=1).predict(digits.numpy())
    with torch.no_grad():
        np.testing.assert_allclose(logits, model.predict(digits), atol=1e-4, rtol=1e-4)
    found = verify(model, report.path, [digits])
    assert found.judged and found.passed, found.reasons
    assert found.largest_accumulator is None


def test_a_file_that_computes_otherwise_is_rejected(file: Path, digits: Tensor, tmp_path: Path) -> None:
    """Verification compares with the model as `test` runs it, so it finds a wrong scale in the backbone."""
    model = classifier(dict(type="IntegerBackbone", model=str(file)))
    path = export_model(model, tmp_path / "model.onnx", input_shape=(1, 8, 8)).path
    graph = Graph(onnx.load(path))
    weight = weights_of(graph)[2]
    scale = graph.array(weight.input[1])
    assert scale is not None
    weight.input[1] = graph.add_constant("changed", scale * np.float32(1.02))
    changed = graph.save()
    del changed.metadata_props[[entry.key for entry in changed.metadata_props].index(SEAL)]  # changed on purpose
    onnx.save(changed, path)
    assert not verify(model, path, [digits]).passed


def test_a_head_quantized_after_calibration(file: Path, digits: Tensor, tmp_path: Path) -> None:
    model = classifier(dict(type="IntegerBackbone", model=str(file)))
    policy = dict(Linear=dict(type="LSQLinear", per_channel=True, **W8A8))
    model = build_mtransformer(dict(type="ModelTransformer", quan_policy=policy))(model).eval()
    calibrate(model, [digits])
    report = export_model(model, tmp_path / "model.onnx", input_shape=(1, 8, 8))
    assert report.info.layers[-1]["name"] == "head.fc" and report.info.layers[-1]["weight_bits"] == 8
    assert not constants(file) - constants(report.path)
    found = verify(model, report.path, [digits])
    assert found.passed, found.reasons
    assert [row.name for row in found.rows] == ["integer", "openvino", "onnxruntime"]


def test_its_size_counts_the_backbone(recipe: dict[str, Any], file: Path) -> None:
    real = model_size(build_backbone(FLOAT))
    size = model_size(build_backbone(dict(type="IntegerBackbone", model=str(file))))
    assert size["float_kib"] == pytest.approx(real["float_kib"], rel=0.05)  # BatchNorm is in the scales
    assert size["quantized_kib"] < 0.35 * size["float_kib"]


def test_what_does_not_fit_the_file(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = classifier(dict(type="IntegerBackbone", model=str(file)))
    for keys, message in (
        (dict(opset=17), "has opset 21, above the requested 17; export the backbone again with opset 17"),
        (dict(input_shape=(1, 9, 9)), r"expects images \(1, 8, 8\), but the test pipeline returns \(1, 9, 9\)"),
        (dict(target="tensorrt"), "exported for cpu, not for tensorrt"),
    ):
        with pytest.raises(ConfigError, match=message):
            export_model(model, tmp_path / "model.onnx", **{"input_shape": (1, 8, 8), **keys})
    with pytest.raises(ConfigError, match="residual_bits quantizes float skip connections"):
        composed.refuse_residuals(model)
    monkeypatch.setattr(model.backbone, "digest", bytes(32))
    with pytest.raises(CheckpointError, match="has changed since the model was built"):
        export_model(model, tmp_path / "model.onnx", input_shape=(1, 8, 8))
    assert not (tmp_path / "model.onnx").exists()


@pytest.mark.parametrize("opset", [17, pytest.param(19, marks=pytest.mark.slow)])
def test_the_whole_file_has_the_opset_of_the_backbones(opset: int, digits: Tensor, tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = classifier(dict(FLOAT), channels=32)
    source = build_mtransformer(dict(type="ModelTransformer", quan_policy=dict(Conv2d=dict(type="LSQConv", **W8A8))))(
        source
    ).eval()
    calibrate(source, [digits])
    backbone = tmp_path / "backbone.onnx"
    export_model(source, backbone, input_shape=(1, 8, 8), opset=opset, part="backbone")
    report = export_model(
        classifier(dict(type="IntegerBackbone", model=str(backbone))), tmp_path / "model.onnx", input_shape=(1, 8, 8)
    )
    assert report.opset == opset == onnx.load(report.path).opset_import[0].version
    assert load(report.path, "onnxruntime").predict(digits.numpy()).shape == (len(digits), 10)


def test_from_the_command_line(recipe: dict[str, Any], repo_root: Path, tmp_path: Path, capsys: Any) -> None:
    """Train a head, export it with `--verify`, test the exported model; an engine runs it without PyTorch."""
    data = dict(type="Digits", pipeline=[NORMALIZE])
    head = dict(type="LinearClsHead", num_classes=10, in_channels=32, topk=(1,))
    neck = dict(type="GlobalAveragePooling")
    cfg = Config(
        dict(
            model=dict(type="ImageClassifier", backbone=recipe, neck=neck, head=head),
            data=dict(samples_per_gpu=64, train=dict(data, split="train"), val=dict(data, split="test")),
            optimizer=dict(type="Adam", lr=0.05),
            total_epochs=1,
            seed=0,
            work_dir=str(tmp_path / "work"),
        )
    )
    cfg.dump(tmp_path / "head.py")
    assert main(["train", str(tmp_path / "head.py")]) == 0
    shown = capsys.readouterr().out
    (log,) = (tmp_path / "work").glob("*.log")
    summary = json.loads((tmp_path / "work" / "summary.json").read_text())
    assert summary["integer_backbone"] == "LSQ W8A8" and "float" not in summary
    assert "integer, LSQ W8A8" in shown and "(integer backbone, float head)" in log.read_text()
    assert summary["model_size"]["float_kib"] > 70 > 30 > summary["model_size"]["quantized_kib"]
    checkpoint, model = summary["checkpoint"], str(tmp_path / "model.onnx")
    command = ["export", str(tmp_path / "head.py"), checkpoint, "--out", model, "--verify", "--num-images", "120"]
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "LSQ W8A8" in shown and "120 images: passed" in shown
    out = tmp_path / "test.json"
    assert main(["test", str(tmp_path / "head.py"), model, "--out", str(out)]) == 0
    assert json.loads(out.read_text())["top-1"] == pytest.approx(summary["quantized"]["top1"], abs=0.3)
    code = (
        "import sys; sys.modules['torch'] = None;"
        "import numpy as np; from lbitcls.deploy.runtime.engine import load;"
        "print(load(sys.argv[1]).predict(np.zeros((2, 1, 8, 8), np.float32)).shape)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, model], cwd=repo_root, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout.strip() == "(2, 10)", done.stderr


# torchvision's quantized networks: calibrated and converted here, as no weights of theirs are published.

NETWORKS = {
    "shufflenet_v2_x0_5": ("conv5", 1024),
    "mobilenet_v2": ("features", 1280),
    "resnet18": ("avgpool", 512),
    "mobilenet_v3_large": ("avgpool", 960),
}


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """`converted('resnet18')`: file with the state dict of a quantized network calibrated on random images."""
    import torchvision.models.quantization as quantized
    from torch.ao import quantization

    folder = tmp_path_factory.mktemp("quantized")

    @torch.no_grad()
    def convert(name: str) -> Path:
        path = folder / f"{name}.pth"
        if not path.exists():
            torch.manual_seed(0)
            images = torch.rand(16, 3, 64, 64)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                network = getattr(quantized, name)(weights=None, quantize=False).train()
                network(images)  # statistics that fit
                network.eval().fuse_model(is_qat=False)
                network.qconfig = quantization.get_default_qconfig("x86")
                quantization.prepare(network, inplace=True)
                network(images)
                quantization.convert(network, inplace=True)
                torch.save(network.state_dict(), path)
        return path

    return convert


def quantized_classifier(name: str, state: Path, cut: tuple[str, int] | None = None) -> Any:
    layer, channels = cut or NETWORKS[name]
    backbone = dict(type="TorchvisionQuantizedBackbone", name=name, out_layer=layer, pretrained=str(state))
    return classifier(backbone, channels, 2)


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
@pytest.mark.parametrize(
    ("name", "cut"),
    [("mobilenet_v2", ("features.4", 32)), *(pytest.param(n, None, marks=pytest.mark.slow) for n in NETWORKS)],
)
def test_published_integers_are_carried_over(
    name: str, cut: tuple[str, int] | None, converted: Any, tmp_path: Path
) -> None:
    """All integers and scales of weights and all grids are kept, and results equal those of PyTorch's kernels."""
    model = quantized_classifier(name, converted(name), cut)
    path = export_model(model, tmp_path / "model.onnx", input_shape=(3, 32, 32)).path
    network = model.backbone._network.module
    graph = Graph(onnx.load(path))
    written = {w.input[0]: (graph.array(w.input[0]), graph.array(w.input[1])) for w in weights_of(graph)}
    assert len(written) > 10
    for key, (codes, scale) in written.items():
        weight = network.get_submodule(key.removeprefix("backbone.").removesuffix(".codes")).weight()
        assert codes is not None and codes.dtype == np.int8 and np.array_equal(codes, weight.int_repr().numpy())
        assert np.array_equal(scale, weight.q_per_channel_scales().float().numpy())
    grids = {
        (np.float32(module.scale).item(), int(module.zero_point))
        for module in network.modules()
        if "quantized" in type(module).__module__ and hasattr(module, "zero_point")
    }
    nodes = [node for node in graph.nodes if node.op_type == "QuantizeLinear"]
    found = {(float(graph.array(n.input[1])), int(graph.array(n.input[2]))) for n in nodes}  # type: ignore[arg-type]
    assert all(graph.array(n.input[2]).dtype == np.uint8 for n in nodes)  # type: ignore[union-attr]
    assert len(found - grids) <= len(found) // 10  # grids of operations that are not modules: averages, gates
    result = verify(model, path, [torch.rand(100, 3, 32, 32)])
    assert result.judged and result.passed, result.reasons


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
@pytest.mark.slow
def test_sums_of_tensors_on_grids(converted: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenVINO omits a quantization before a sum unless something keeps it; the exported model keeps it."""
    backbone = dict(type="TorchvisionQuantizedBackbone", name="mobilenet_v2", out_layer="features.3")
    model = classifier(dict(backbone, pretrained=str(converted("mobilenet_v2"))), 24, 2)
    images = torch.rand(4, 3, 32, 32)
    expected = model.backbone(images)[0].numpy()

    def off() -> float:
        path = export_model(model, tmp_path / "model.onnx", input_shape=(3, 32, 32), part="backbone").path
        given = load(path, threads=1).predict(images.numpy())
        return float((np.abs(np.subtract(given, expected)) > 1e-3 * expected.std()).mean())

    assert off() < 0.01
    for guard in ("guard_grids", "guard_sums"):
        monkeypatch.setattr(f"lbitcls.deploy.targets.cpu.{guard}", lambda graph: None)
    if off() < 0.1:
        pytest.fail("OpenVINO keeps the quantization by itself now: drop the guards")


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
def test_a_quantized_network_with_an_operation_of_no_form(converted: Any, tmp_path: Path) -> None:
    model = quantized_classifier("mobilenet_v2", converted("mobilenet_v2"), ("features.2", 24))
    with pytest.raises(ConfigError, match="have zero points, which tensorrt does not support"):
        export_model(model, tmp_path / "model.onnx", input_shape=(3, 32, 32), target="tensorrt")

    class Unknown(nn.Identity):
        __module__ = "torch.ao.nn.quantized.modules.unknown"

    model.backbone._network.module.features[1].conv[2] = Unknown()
    with pytest.raises(ConfigError, match=r"cannot be exported: features.1.conv.2 \(Unknown\)"):
        export_model(model, tmp_path / "model.onnx", input_shape=(3, 32, 32))


def test_other_models_have_nothing_to_carry() -> None:
    carried = composed.carry_backbone(classifier(dict(FLOAT)), (1, 8, 8), 19, "cpu")
    assert carried == composed.Carried(19) and not isinstance(carried.backbone, IntegerBackbone)
