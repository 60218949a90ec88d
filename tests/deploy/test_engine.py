"""Engines: equal outputs, any batch size, no PyTorch, and messages for mistakes."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lbitcls.deploy import load
from lbitcls.deploy.runtime.engines.openvino import _FIXED_BATCH_SIZES, openvino_core
from lbitcls.deploy.runtime.metadata import ModelInfo
from lbitcls.deploy.targets.cpu import CPU
from lbitcls.utils.errors import CheckpointError, ConfigError, DataError, DependencyError

pytestmark = pytest.mark.parametrize("engine", CPU.engines)


def images(number: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((number, 3, 6, 5), dtype=np.float32)


def test_predict(engine: str, write_onnx: Any, info: ModelInfo, small_logits: Any) -> None:
    opened = load(write_onnx(info=info), engine=engine, threads=1)
    assert opened.info == info
    assert (opened.name, opened.precision, opened.threads) == (engine, "f32", 1)
    assert opened.input_shape == (3, 6, 5) and opened.output_names == ("logits",)
    logits = opened.predict(images(7))
    assert isinstance(logits, np.ndarray) and logits.dtype == np.float32
    np.testing.assert_allclose(logits, small_logits(images(7)), atol=1e-4)


def test_batch_sizes_are_free_and_do_not_pile_up(engine: str, write_onnx: Any, small_logits: Any) -> None:
    opened = load(write_onnx(), engine=engine, threads=1)
    for number in [*range(1, 3 * _FIXED_BATCH_SIZES), 1, 2]:
        np.testing.assert_allclose(opened.predict(images(number)), small_logits(images(number)), atol=1e-4)
    assert len(getattr(opened, "_requests", ())) <= _FIXED_BATCH_SIZES + 1


def test_outputs_are_the_callers(engine: str, write_onnx: Any) -> None:
    """A later call changes neither an earlier result nor the images."""
    opened = load(write_onnx(), engine=engine, threads=1)
    given = images(2)
    first = opened.predict(given)
    kept = np.array(first)
    opened.predict(images(2, seed=1))
    np.testing.assert_array_equal(first, kept)
    np.testing.assert_array_equal(given, images(2))


def test_arrays_of_any_layout(engine: str, write_onnx: Any, small_logits: Any) -> None:
    opened = load(write_onnx(), engine=engine, threads=1)
    strided = np.asfortranarray(images(3))
    frozen = images(3)
    frozen.flags.writeable = False
    for given in (strided, frozen, images(6)[::2]):
        np.testing.assert_allclose(opened.predict(given), small_logits(given), atol=1e-4)


def test_several_outputs_are_a_tuple(engine: str, write_onnx: Any, small_logits: Any) -> None:
    opened = load(write_onnx(outputs=2), engine=engine, threads=1)
    assert opened.output_names == ("feature_0", "feature_1")
    first, second = opened.predict(images(2))
    np.testing.assert_allclose(first, small_logits(images(2)), atol=1e-4)
    np.testing.assert_allclose(second, 2 * first, rtol=1e-6)


def test_threads_may_share_an_engine(engine: str, write_onnx: Any, small_logits: Any) -> None:
    opened = load(write_onnx(), engine=engine, threads=1)
    wrong: list[Any] = []

    def work(seed: int) -> None:
        try:
            for number in (1, 5, 9, 13, 17, 21):
                given = images(number, seed)
                np.testing.assert_allclose(opened.predict(given), small_logits(given), atol=1e-4)
        except BaseException as error:
            wrong.append(error)

    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def test_signals_after_engines_came_and_went(engine: str, write_onnx: Any, repo_root: Path) -> None:
    """OpenVINO gives the thread a signal stack, which must not be freed memory."""
    code = f"""
import gc, os, signal
import numpy as np
from lbitcls.deploy import load
images = np.zeros((1, 3, 6, 5), np.float32)
first, second = (load({str(write_onnx())!r}, engine={engine!r}, threads=1) for _ in range(2))
first.predict(images), second.predict(images)
for name in ("first", "second"):
    del globals()[name]
    gc.collect()
signal.signal(signal.SIGCHLD, lambda *given: print("lives"))
os.kill(os.getpid(), signal.SIGCHLD)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=repo_root, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "lives\n"), done.stderr


def test_no_torch(engine: str, write_onnx: Any, info: ModelInfo, repo_root: Path) -> None:
    code = (
        "import sys, numpy; from lbitcls.deploy import load;"
        f"engine = load({str(write_onnx(info=info))!r}, engine={engine!r}, threads=1);"
        "print(engine.predict(numpy.zeros((2, 3, 6, 5), numpy.float32)).shape, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=repo_root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "(2, 4) False"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.zeros((3, 6, 5), np.float32), r"expects images \(N, 3, 6, 5\); got \(3, 6, 5\)"),
        (np.zeros((2, 1, 6, 5), np.float32), r"got \(2, 1, 6, 5\)"),
        (np.zeros((0, 3, 6, 5), np.float32), r"got \(0, 3, 6, 5\)"),
        (np.zeros((2, 3, 6, 5), np.uint8), "expects float32 images from the test pipeline; got uint8"),
        (np.zeros((2, 3, 6, 5)), "got float64"),
        ([[1.0]], "a NumPy array; got list"),
    ],
)
def test_wrong_images(engine: str, write_onnx: Any, given: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load(write_onnx(), engine=engine, threads=1).predict(given)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_images_that_are_not_finite(engine: str, value: float, write_onnx: Any) -> None:
    opened = load(write_onnx(), engine=engine, threads=1)
    given = images(5)
    given[[2, 4], 1, 3, 0] = value
    with pytest.raises(DataError, match=r"model\.onnx expects finite values, but images\[2\] contains NaN or infinite"):
        opened.predict(given)
    assert np.shape(opened.predict(given[:2])) == (2, 4)


def test_a_fixed_batch_size_is_kept_to(engine: str, write_onnx: Any) -> None:
    opened = load(write_onnx(batch=2), engine=engine, threads=1)
    assert opened.predict(images(2)).shape == (2, 4)
    with pytest.raises(DataError, match=r"\(2, 3, 6, 5\); got \(3, 3, 6, 5\)"):
        opened.predict(images(3))


def test_a_free_image_size_stays_free(engine: str, write_onnx: Any) -> None:
    opened = load(write_onnx(shape=["N", 3, "H", "W"]), engine=engine, threads=1)
    assert opened.input_shape == (3, None, None)
    for side in (4, 9):
        assert opened.predict(np.ones((2, 3, side, side), np.float32)).shape == (2, 4)


def test_mistakes(engine: str, write_onnx: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_onnx()
    with pytest.raises(ConfigError, match="no engine named 'openvin'. Did you mean 'openvino'"):
        load(path, engine="openvin")
    with pytest.raises(ConfigError, match="no precision 'fp32'. Did you mean 'f32'"):
        load(path, engine=engine, precision="fp32")
    for threads in (0, True, 1025):
        with pytest.raises(ConfigError, match="threads must be an integer from 1 to 1024"):
            load(path, engine=engine, threads=threads)
    with pytest.raises(CheckpointError, match=r"Did you mean 'model\.onnx'"):
        load(tmp_path / "mode.onnx", engine=engine)
    (tmp_path / "weights.pth").write_bytes(b"PK\x03\x04 something else")
    with pytest.raises(CheckpointError, match=r"weights\.pth"):
        load(tmp_path / "weights.pth", engine=engine)
    with pytest.raises(CheckpointError, match="is not an image model"):
        load(write_onnx("flat.onnx", shape=["N", 30]), engine=engine)
    monkeypatch.setitem(sys.modules, engine, None)
    with pytest.raises(DependencyError, match=rf"{engine} is required.*pip install lbitcls\[deploy\]"):
        load(path, engine=engine)


def test_a_graph_that_the_engine_does_not_take(engine: str, write_onnx: Any, capfd: Any) -> None:
    import onnx

    path = write_onnx()
    model = onnx.load(path)
    model.graph.node[0].op_type = "NoSuchOperation"
    onnx.save(model, path)
    with pytest.raises(CheckpointError, match=f"{engine} cannot run"):
        load(path, engine=engine, threads=1).predict(images(1))
    assert capfd.readouterr().err == "", "the engine says nothing beside our message"


def test_images_of_another_kind_than_float32(engine: str, write_onnx: Any) -> None:
    import onnx

    path = write_onnx()
    model = onnx.load(path)
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.UINT8
    onnx.save(model, path)
    with pytest.raises(CheckpointError, match="expects uint8 images"):
        load(path, engine=engine, threads=1)


def test_a_batch_that_the_graph_does_not_take(engine: str, write_onnx: Any, capfd: Any) -> None:
    """N is free, but a Reshape inside assumes one image."""
    import onnx

    path = write_onnx()
    model = onnx.load(path)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1, 4]), "one_image"))
    model.graph.node[3].CopyFrom(onnx.helper.make_node("Reshape", ["mean", "one_image"], ["logits"]))
    onnx.save(model, path)
    opened = load(path, engine=engine, threads=1)
    assert np.shape(opened.predict(images(1))) == (1, 4)
    with pytest.raises(CheckpointError, match=rf"{engine} cannot run model\.onnx on images \(3, 3, 6, 5\)"):
        opened.predict(images(3))
    assert capfd.readouterr().err == "", "the engine says nothing beside our message"


def test_bfloat16(engine: str, write_onnx: Any, small_logits: Any) -> None:
    """Only OpenVINO supports it, and only on CPUs that do."""
    if engine == "onnxruntime":
        with pytest.raises(ConfigError, match="engine='openvino'"):
            load(write_onnx(), engine=engine, precision="bf16")
        return

    if "BF16" not in openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        with pytest.raises(ConfigError, match="does not support bf16"):
            load(write_onnx(), precision="bf16")
        return
    logits = load(write_onnx(), threads=1, precision="bf16").predict(images(4))
    assert isinstance(logits, np.ndarray) and logits.dtype == np.float32
    np.testing.assert_allclose(logits, small_logits(images(4)), atol=0.5)
