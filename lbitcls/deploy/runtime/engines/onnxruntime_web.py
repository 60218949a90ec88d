"""ONNX Runtime for WebAssembly in headless Chromium: the engine of pages, which it opens as a visitor does."""

from __future__ import annotations

import base64
import os
import shutil
import weakref
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from lbitcls.deploy.runtime.engine import Description, Engine
from lbitcls.deploy.runtime.metadata import model_file, require
from lbitcls.deploy.runtime.page.page_files import check_page
from lbitcls.deploy.runtime.page.server import serving
from lbitcls.registry import ENGINES
from lbitcls.utils.errors import CheckpointError, DependencyError

_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_FLAGS = (
    *("--headless=new", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync", "--mute-audio"),
    *("--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"),
)
_SECONDS = 300  # for a call, such as a batch of a large model on one thread
_MOST_BYTES = 2**24  # of images in one call

_CALL = """
const [given, done] = [[...arguments].slice(0, -1), arguments[arguments.length - 1]];
const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
const text = (array) => {
  const parts = [];
  const all = new Uint8Array(array.buffer, array.byteOffset, array.byteLength);
  for (let at = 0; at < all.length; at += 32768) parts.push(String.fromCharCode(...all.subarray(at, at + 32768)));
  return btoa(parts.join(""));
};
const call = async () => { BODY };
call().then((value) => done({ value }), (error) => done({ error: String(error.message ?? error) }));
"""
_OPEN = _CALL.replace("BODY", "const { threads } = await lbitcls.ready; return { threads };")
_RUN = _CALL.replace(
    "BODY",
    """
  const { outputs } = await lbitcls.run(new Float32Array(bytes(given[0]).buffer), given[1]);
  return outputs.map(({ data, shape }) => ({ data: text(data), shape }));
""",
)
_CLASSIFY = _CALL.replace(
    "BODY",
    """
  const { logits, prepare, network } = await lbitcls.classify(new Blob([bytes(given[0])]));
  return { logits: text(logits), prepare, network };
""",
)

_PREPARE = _CALL.replace("BODY", "return text(await lbitcls.prepare(new Blob([bytes(given[0])])));")


@ENGINES.register_module(name="onnxruntime-web")
class ONNXRuntimeWebEngine(Engine):
    """ONNX Runtime for WebAssembly, in the page of an exported folder, in headless Chromium.

    Attributes:
        browser: Selenium's driver of the browser that shows the page.
        page_threads: Number of threads that the page uses.
        milliseconds: Times in ms of the images that `classify` saw last, preparation and network: float (N, 2).
    """

    name = "onnxruntime-web"
    package = "selenium"
    extra = "web"
    suffixes = ("",)

    def __init__(self, path: Path, threads: int | None, precision: str) -> None:
        super().__init__(path, threads, precision)
        self.milliseconds = np.zeros((0, 2))
        self._lock = Lock()
        with ExitStack() as stack:
            url = stack.enter_context(serving(path))
            self.browser = open_browser()
            stack.callback(self.browser.quit)
            self.browser.get(f"{url}?threads={threads}" if threads else url)
            self.page_threads = self._call(_OPEN)["threads"]
            self._close = weakref.finalize(self, stack.pop_all().close)

    @property
    def version(self) -> str:
        """Version of the runtime in the page, and of the browser."""
        runtime = self.browser.execute_async_script(
            "lbitcls.ready.then(({ description }) => arguments[0](description.runtime.version));"
        )
        return f"{runtime} in Chromium {self.browser.capabilities['browserVersion'].partition('.')[0]}"

    def close(self) -> None:
        """End the browser and the server; the end of the process does so too."""
        self._close()

    @classmethod
    def check_installed(cls) -> None:
        """Raise `DependencyError` if selenium, Chromium or its driver is missing."""
        super().check_installed()
        _programs()

    def classify(self, paths: Iterable[str | Path]) -> np.ndarray:
        """Return the logits, float32 (N, K), of image files, which the page itself decodes and prepares.

        Raises:
            CheckpointError: The page cannot read an image.
        """
        rows, times = [], []
        for path in paths:
            found = self._call(_CLASSIFY, _text(path))
            rows.append(np.frombuffer(base64.b64decode(found["logits"]), np.float32))
            times.append((found["prepare"], found["network"]))
        self.milliseconds = np.array(times).reshape(-1, 2)
        return np.stack(rows)

    def prepare(self, path: str | Path) -> np.ndarray:
        """Return the input, float32 (C, H, W), that the page makes of an image file.

        Raises:
            CheckpointError: The page cannot read the image.
        """
        values = np.frombuffer(base64.b64decode(self._call(_PREPARE, _text(path))), np.float32)
        return values.reshape([size or -1 for size in self.input_shape])

    def _describe(self, path: Path) -> Description:
        check_page(path)
        return super()._describe(model_file(path))

    def _run(self, images: np.ndarray) -> Sequence[np.ndarray]:
        most = max(1, _MOST_BYTES // images[0].nbytes)
        parts = [self._outputs(images[start : start + most]) for start in range(0, len(images), most)]
        return [np.concatenate(part) for part in zip(*parts, strict=True)]

    def _outputs(self, images: np.ndarray) -> list[np.ndarray]:
        found = self._call(_RUN, base64.b64encode(images.tobytes()).decode(), list(images.shape))
        return [np.frombuffer(base64.b64decode(one["data"]), np.float32).reshape(one["shape"]) for one in found]

    def _call(self, script: str, *given: Any) -> Any:
        """Return what a script of the page returns.

        Raises:
            CheckpointError: It raises an error.
        """
        with self._lock:
            answer = self.browser.execute_async_script(script, *given)
        if "error" in answer:
            raise CheckpointError(f"the page in {self.path} cannot run: {answer['error']}")
        return answer["value"]


def _text(path: str | Path) -> str:
    return base64.b64encode(Path(path).read_bytes()).decode()


def _programs() -> tuple[str, str]:
    """Return the paths of Chromium and its driver; raise `DependencyError` if one is missing."""
    browser = next(filter(None, map(shutil.which, _BROWSERS)), None)
    driver = shutil.which("chromedriver")
    if browser is None or driver is None:
        raise DependencyError(
            "the engine onnxruntime-web needs Chromium and its driver: apt-get install --no-install-recommends "
            "chromium chromium-driver (Debian)."
        )
    return browser, driver


def open_browser() -> Any:
    """Start headless Chromium.

    Raises:
        DependencyError: Chromium or its driver is missing.
    """
    browser, driver = _programs()
    webdriver = require("selenium.webdriver", "web")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in (*_FLAGS, *(["--no-sandbox"] if os.geteuid() == 0 else [])):  # Chromium's sandbox refuses root
        options.add_argument(flag)
    started = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    started.set_script_timeout(_SECONDS)
    return started
