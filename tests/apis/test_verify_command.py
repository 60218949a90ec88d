"""`lbitcls verify`: certificates of exported models on images of your own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from PIL import Image

from lbitcls.commands.main import main
from lbitcls.datasets.digits import Digits


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for index, image in enumerate(Digits(split="test").images[:130, 0].numpy()):
        Image.fromarray(image).save(folder / f"{index:03d}.png")
    return folder


def certificates(path: Path) -> dict[tuple[str, str], dict[str, Any]]:
    return {(Path(one["file"]).name, one["engine"]): one for one in json.loads(path.read_text())}


def test_against_the_checkpoint(delivered: Any, pictures: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "certificates.json"
    given = ["--checkpoint", str(delivered.checkpoint), "--config", str(delivered.config), "--num-images", "120"]
    assert main(["verify", str(delivered.exported), "--images", str(pictures), *given, "--json", str(out)]) == 0
    found = certificates(out)
    assert set(found) == {("model.onnx", "openvino"), ("model.onnx", "onnxruntime")}
    for one in found.values():
        assert one["images"] == 120 and one["passed"] and one["agreement"] >= 99
        assert one["largest"] < 0.05 * one["deviation"] and one["milliseconds"] > 0
        assert one["size"] == delivered.exported.stat().st_size and "PyTorch" in one["reference"]
    assert found["model.onnx", "openvino"]["integer"] == found["model.onnx", "openvino"]["layers"] > 0
    assert "the same class for" in capsys.readouterr().out


def test_a_changed_file_fails_and_still_gets_its_certificates(
    delivered: Any, pictures: Path, tmp_path: Path, capsys: Any
) -> None:
    model = onnx.load(delivered.exported)
    largest = max(model.graph.initializer, key=lambda tensor: np.prod(tensor.dims))
    codes = numpy_helper.to_array(largest)
    largest.CopyFrom(numpy_helper.from_array(np.flip(codes, 0).copy(), largest.name))
    del model.metadata_props[[entry.key for entry in model.metadata_props].index("lbitcls_sha256")]
    onnx.save(model, tmp_path / "other.onnx")
    out = tmp_path / "certificates.json"
    files = [str(delivered.exported), str(tmp_path / "other.onnx")]
    assert main(["verify", *files, "--images", str(pictures), "--json", str(out)]) == 1
    found = certificates(out)
    assert (
        found["model.onnx", "onnxruntime"]["passed"]
        and "model.onnx in openvino" in found["model.onnx", "onnxruntime"]["reference"]
    )
    assert not found["other.onnx", "openvino"]["passed"] and not found["other.onnx", "onnxruntime"]["passed"]
    assert "do not agree" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--engine", "openvino"], "nothing to be compared with; give the checkpoint"),
        (["--engine", "openvin"], "no engine named 'openvin'"),
        (["--num-images", "0"], "--num-images must be at least 1"),
        (["--engine", "litert"], "none of litert opens"),
        (["--checkpoint", "model.pte"], "--checkpoint must be a checkpoint (.pth)"),
    ],
)
def test_mistakes(delivered: Any, pictures: Path, arguments: list[str], message: str, capsys: Any) -> None:
    assert main(["verify", str(delivered.exported), "--images", str(pictures), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_files_of_one_name_are_told_apart(delivered: Any, pictures: Path, tmp_path: Path) -> None:
    """A file that differs is found, whatever the name of the others, in either order."""
    other = tmp_path / "b" / delivered.exported.name
    other.parent.mkdir()
    model = onnx.load(delivered.exported)
    weights = max(model.graph.initializer, key=lambda tensor: np.prod(tensor.dims))
    weights.CopyFrom(numpy_helper.from_array(np.flip(numpy_helper.to_array(weights), 0).copy(), weights.name))
    del model.metadata_props[[entry.key for entry in model.metadata_props].index("lbitcls_sha256")]
    onnx.save(model, other)
    same = tmp_path / "c" / delivered.exported.name
    same.parent.mkdir()
    same.write_bytes(delivered.exported.read_bytes())
    out, engine = tmp_path / "out.json", ["--engine", "onnxruntime"]
    files = [str(delivered.exported), str(other), str(same)]
    assert main(["verify", *files, "--images", str(pictures), "--json", str(out), *engine]) == 1
    passed = {one["file"]: one["passed"] for one in json.loads(out.read_text())}
    assert passed == {str(other): False, str(same): True}
    assert main(["verify", files[0], files[0], "--images", str(pictures), *engine]) == 2


def test_nothing_that_it_reads_is_overwritten(delivered: Any, pictures: Path, tmp_path: Path, capsys: Any) -> None:
    model, image = tmp_path / "model.onnx", tmp_path / "image.png"
    model.write_bytes(delivered.exported.read_bytes())
    image.write_bytes(next(pictures.iterdir()).read_bytes())
    for out in (model, image):
        before = out.read_bytes()
        given = ["--images", str(image), "--checkpoint", str(delivered.checkpoint), "--config", str(delivered.config)]
        assert main(["verify", str(model), *given, "--json", str(out)]) == 2
        assert out.read_bytes() == before and "would replace a file" in capsys.readouterr().err


def test_too_few_images_confirm_nothing(delivered: Any, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    given = ["--num-images", "20", "--json", str(out)]
    assert main(["verify", str(delivered.exported), "--images", str(pictures), *given]) == 0
    assert [one["passed"] for one in json.loads(out.read_text())] == [None]
