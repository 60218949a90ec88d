"""Pages in real headless Chromium: their logits, their preparation of images, and what a visitor sees."""

from __future__ import annotations

import base64
import json
import shutil
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from browser import IN_BROWSER  # type: ignore[import-not-found]
from PIL import Image
from torch import Tensor

from lbitcls.deploy import export_model, load
from lbitcls.deploy.runtime.engines import onnxruntime_web
from lbitcls.deploy.runtime.engines.onnxruntime_web import ONNXRuntimeWebEngine
from lbitcls.deploy.runtime.metadata import ModelInfo, read_info
from lbitcls.deploy.runtime.page import npm
from lbitcls.deploy.runtime.page import server as page_server
from lbitcls.deploy.runtime.page.page_files import write_page
from lbitcls.deploy.runtime.page.page_steps import page_steps
from lbitcls.inference.preparation import preparation
from lbitcls.utils.errors import CheckpointError

pytestmark = IN_BROWSER

NAMES = ["<img src=x onerror=alert(1)>", *map(str, range(1, 10))]
PREPARE = """
const done = arguments[3];
const bytes = Uint8Array.from(atob(arguments[0]), (letter) => letter.charCodeAt(0));
Promise.all(["files.js", "pixels.js"].map((name) => import(new URL(name, document.baseURI)))).then(
  async ([{ readFile }, { prepare }]) => {
    const values = prepare(await readFile(new Blob([bytes]), arguments[2]), arguments[1]);
    done(Array.from(values));
  },
).catch((error) => done(String(error)));
"""


@pytest.fixture(scope="module")
def page(make_resnet: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of an untrained model of the digits."""
    folder = tmp_path_factory.mktemp("site") / "page"
    steps = [dict(type="Normalize", mean=[0.305], std=[0.376])]
    export_model(
        make_resnet("LSQ"), folder, input_shape=(1, 8, 8), target="web", classes=NAMES, pipeline=steps, pack=True
    )
    return folder


@pytest.fixture(scope="module")
def engine(page: Path) -> Iterator[ONNXRuntimeWebEngine]:
    opened = load(page, threads=1)
    assert isinstance(opened, ONNXRuntimeWebEngine)
    yield opened
    opened.close()


def test_logits_are_those_of_the_cpu(engine: ONNXRuntimeWebEngine, page: Path, digits: Tensor) -> None:
    """Bit by bit: packed weights of 4 bits, many images at once and one at a time."""
    native = load(page / "model.onnx", "onnxruntime", threads=1)
    images = digits[:64].numpy()
    logits = engine.predict(images)
    assert np.array_equal(logits, native.predict(images))
    assert np.array_equal(logits[:2], np.concatenate([engine.predict(images[i : i + 1]) for i in range(2)]))
    assert engine.info == read_info(page) and engine.version.startswith(f"{npm.VERSION} in Chromium ")


def test_a_class_of_a_file_is_that_of_inference(engine: ONNXRuntimeWebEngine, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    files = [tmp_path / f"{i}.png" for i in range(4)]
    for file in files:
        Image.fromarray(rng.integers(0, 256, (50, 31, 3), dtype=np.uint8)).save(file)
    assert engine.info is not None
    prepare = preparation(engine.info.pipeline, engine.input_shape, light=False)
    inputs = np.stack([prepare(file) for file in files])
    assert np.array_equal(engine.classify(files), engine.predict(inputs))
    assert engine.milliseconds.shape == (4, 2) and (engine.milliseconds >= 0).all()
    (tmp_path / "text.jpg").write_text("no image")
    with pytest.raises(CheckpointError, match="Use a JPEG, PNG, WebP, GIF or BMP file"):
        engine.classify([tmp_path / "text.jpg"])


def photo(kind: str, size: tuple[int, int], path: Path) -> Path:
    """Write an image of smooth colors with noise, as photos have, and return its path."""
    rng = np.random.default_rng(size[0])
    smooth = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    noisy = np.clip(np.asarray(smooth, int) + rng.integers(-20, 20, (size[1], size[0], 3)), 0, 255)
    image = Image.fromarray(noisy.astype(np.uint8))
    if kind.startswith("gray"):
        image = image.convert("L")
    exif = Image.Exif()
    if kind.startswith("turned"):
        exif[274] = 6
    path = path / f"{kind}.{'jpg' if kind.endswith('jpeg') else kind.rpartition('-')[2]}"
    image.save(path, exif=exif, quality=90)
    return path


CROP = [dict(type="Resize", size=(40, -1)), dict(type="CenterCrop", crop_size=32)]
IMAGENET = dict(type="Normalize", mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])
AS_STORED = dict(type="LoadImageFromFile", color_type="color_ignore_orientation")
CASES = [
    ("color-jpeg", (90, 70), [*CROP, IMAGENET], (3, 32, 32)),
    ("gray-jpeg", (70, 90), [*CROP, {**IMAGENET, "to_rgb": False}], (3, 32, 32)),
    ("turned-jpeg", (90, 61), [*CROP, IMAGENET], (3, 32, 32)),
    (
        "turned-jpeg",
        (90, 61),
        [AS_STORED, *CROP],
        (3, 32, 32),
    ),
    (
        "turned-png",
        (64, 41),
        [AS_STORED, *CROP],
        (3, 32, 32),
    ),
    ("color-png", (33, 20), [dict(type="Resize", size=(57, 31), interpolation="bicubic")], (3, 57, 31)),
    ("color-png", (33, 20), [dict(type="Resize", size=(8, 50), interpolation="nearest")], (3, 8, 50)),
    ("color-bmp", (20, 20), [dict(type="CenterCrop", crop_size=(16, 28)), IMAGENET], (3, 16, 28)),
    ("gray-png", (28, 28), [dict(type="Normalize", mean=[0.13], std=[0.31])], (1, 28, 28)),
    ("color-webp", (90, 33), [dict(type="Normalize", mean=[0.13], std=[0.31])], (1, 28, 28)),
]


@pytest.mark.parametrize(("kind", "size", "steps", "shape"), CASES)
def test_preparation_is_the_pipelines(
    kind: str, size: tuple[int, int], steps: list[Any], shape: Any, engine: ONNXRuntimeWebEngine, tmp_path: Path
) -> None:
    path = photo(kind, size, tmp_path)
    given = steps if steps[0]["type"] == "LoadImageFromFile" else [dict(type="LoadImageFromFile"), *steps]
    expected = preparation(given, shape, light=False)(path)
    ours, upright = page_steps(given, shape)
    encoded = base64.b64encode(path.read_bytes()).decode()
    found = engine.browser.execute_async_script(PREPARE, encoded, ours, upright)
    assert not isinstance(found, str), found
    assert np.array_equal(np.float32(found).reshape(shape), expected)


def test_limits(engine: ONNXRuntimeWebEngine, tmp_path: Path) -> None:
    """A small file that claims to be huge is refused by its header, before it is decoded."""
    header = bytearray(photo("color-png", (20, 20), tmp_path).read_bytes())
    header[16:24] = (60000).to_bytes(4, "big") * 2
    (tmp_path / "huge.png").write_bytes(header)
    with pytest.raises(CheckpointError, match="3600 million pixels; the page reads up to 67 million"):
        engine.classify([tmp_path / "huge.png"])


@pytest.fixture
def visit(page: Path) -> Iterator[Callable[..., Any]]:
    """Function that opens a page in a sub-path of a plain server, without a network, and returns the browser."""
    from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

    class Quiet(SimpleHTTPRequestHandler):
        extensions_map = {**SimpleHTTPRequestHandler.extensions_map, ".mjs": "text/javascript"}

        def __init__(self, *args: Any) -> None:
            super().__init__(*args, directory=str(page.parent))

        def log_message(self, *args: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    browser = onnxruntime_web.open_browser()

    def show(folder: Path = page) -> Any:
        browser.get(f"http://127.0.0.1:{server.server_port}/{folder.name}/")
        return browser

    yield show
    browser.quit()
    server.shutdown()
    server.server_close()


def wait(browser: Any, condition: str) -> None:
    from selenium.webdriver.support.wait import WebDriverWait

    WebDriverWait(browser, 60).until(lambda b: b.execute_script(f"return {condition}"), condition)


def texts(browser: Any, selector: str) -> list[str]:
    return browser.execute_script(f"return [...document.querySelectorAll('{selector}')].map((e) => e.textContent)")


def test_a_visit(visit: Callable[..., Any], tmp_path: Path) -> None:
    browser = visit()
    wait(browser, "!document.getElementById('choose').disabled")
    assert browser.execute_script("return crossOriginIsolated") is False, "as on GitHub Pages"
    choose = browser.find_element("id", "files")
    images = [photo("color-png", (20 + i, 30), tmp_path).rename(tmp_path / f"<b>{i}.png") for i in range(3)]
    (tmp_path / "notes.txt").write_text("text")
    choose.send_keys("\n".join(map(str, [*images, tmp_path / "notes.txt"])))
    wait(browser, "!document.getElementById('error').hidden")
    assert texts(browser, "#error") == [
        "notes.txt: This is not an image that the page can read. Use a JPEG, PNG, WebP, GIF or BMP file."
    ]
    assert len(texts(browser, "#grid button")) == 3 and texts(browser, "#source") == ["<b>0.png"]
    assert set(texts(browser, "#grid .name")) <= set(NAMES) and len(texts(browser, "#bars li")) == 5
    browser.find_elements("css selector", "#grid button")[2].click()
    assert texts(browser, "#source") == ["<b>2.png"]
    assert "LSQ W4A4 · 10 classes" in texts(browser, "#facts")[0] and npm.VERSION in texts(browser, "#facts")[0]
    browser.find_element("id", "theme").click()
    browser.refresh()
    assert browser.execute_script("return document.documentElement.dataset.theme") == "dark"
    assert not browser.get_log("browser"), "no error, and nothing against the policy"
    assert not browser.execute_script(
        "return performance.getEntriesByType('resource').filter((e) => !e.name.startsWith(location.origin)).length"
    )


def test_drawing_pasting_dropping(visit: Callable[..., Any]) -> None:
    browser = visit()
    wait(browser, "!document.getElementById('draw').disabled && !document.getElementById('draw').hidden")
    browser.find_element("id", "draw").click()
    assert texts(browser, "#bars li") == []
    browser.find_element("id", "pad").send_keys("\ue015" * 5)  # the arrow key down
    wait(browser, "document.querySelectorAll('#bars li').length === 5")
    browser.find_element("id", "done").click()
    assert browser.execute_script("return document.body.dataset.mode") == "welcome"
    browser.execute_async_script(
        """
        const done = arguments[0];
        const canvas = Object.assign(document.createElement("canvas"), { width: 40, height: 30 });
        canvas.toBlob((blob) => {
          const data = new DataTransfer();
          data.items.add(new File([blob], "a.png", { type: "image/png" }));
          const options = { bubbles: true, cancelable: true };
          dispatchEvent(new DragEvent("dragenter", { ...options, dataTransfer: data }));
          const dragging = document.body.classList.contains("dragging");
          dispatchEvent(new DragEvent("drop", { ...options, dataTransfer: data }));
          dispatchEvent(new ClipboardEvent("paste", { ...options, clipboardData: data }));
          done(dragging && !document.body.classList.contains("dragging"));
        });
        """
    )
    wait(browser, "[...document.querySelectorAll('#grid .percent')].filter((e) => e.textContent).length === 2")


def test_a_folder_that_lacks_a_file_says_so(visit: Callable[..., Any], page: Path) -> None:
    broken = page.parent / "broken"
    shutil.copytree(page, broken)
    (broken / "model.onnx").unlink()
    browser = visit(broken)
    wait(browser, "!document.getElementById('error').hidden")
    assert "The server does not have model.onnx. Publish the folder again." in texts(browser, "#error")[0]


@pytest.mark.skipif(not shutil.which("openssl"), reason="no openssl for a certificate")
@pytest.mark.parametrize("changed", [False, True])
def test_a_linked_runtime_is_checked(
    changed: bool, page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The content delivery network is a server of this machine; a byte that it changes stops the page."""
    info = read_info(page)
    assert isinstance(info, ModelInfo)
    folder, files = tmp_path / "page", tmp_path / "network"
    folder.mkdir()
    write_page(folder, (page / "model.onnx").read_bytes(), info, "cdn")
    target = files / npm.CDN.removeprefix("https://cdn.jsdelivr.net/")
    target.mkdir(parents=True)
    for name, content in npm.read_runtime().items():
        (target / name).write_bytes(content + b" " * (changed and name == npm.SCRIPT))
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=cdn.jsdelivr.net -keyout key -out cert"
    subprocess.run(command.split(), cwd=tmp_path, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert", tmp_path / "key")
    monkeypatch.setitem(page_server._HEADERS, "Access-Control-Allow-Origin", "*")
    server = page_server.open_server(files)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    flags = (f"--host-resolver-rules=MAP cdn.jsdelivr.net:443 127.0.0.1:{server.server_port}",)
    monkeypatch.setattr(onnxruntime_web, "_FLAGS", (*onnxruntime_web._FLAGS, *flags, "--ignore-certificate-errors"))
    try:
        if changed:
            with pytest.raises(CheckpointError, match="Failed to fetch"):
                load(folder, threads=1)
        else:
            engine = load(folder, threads=1)
            assert engine.predict(torch.zeros(1, 1, 8, 8).numpy()).shape == (1, 10)
            assert isinstance(engine, ONNXRuntimeWebEngine)
            engine.close()
            assert json.loads((folder / "model.json").read_text("utf-8"))["runtime"]["script"].startswith("https://")
    finally:
        server.shutdown()
        server.server_close()
