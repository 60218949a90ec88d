"""The camera of a page, in headless Chromium with cameras that are files, generated, or refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import IN_BROWSER  # type: ignore[import-not-found]
from PIL import Image

from lbitcls.datasets.digits import Digits
from lbitcls.deploy import export_model
from lbitcls.deploy.runtime.engines import onnxruntime_web
from lbitcls.deploy.runtime.engines.onnxruntime_web import ONNXRuntimeWebEngine
from lbitcls.inference import inference_model, init_model

pytestmark = IN_BROWSER

FAKE = "--use-fake-device-for-media-stream"
ALLOW, REFUSE = "--use-fake-ui-for-media-stream", "--use-fake-ui-for-media-stream=deny"
WIDTH, HEIGHT = 640, 480


@pytest.fixture(scope="module")
def page(make_resnet: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of an untrained model of the digits."""
    folder = tmp_path_factory.mktemp("site") / "page"
    steps = [dict(type="Normalize", mean=[0.305], std=[0.376])]
    classes = [f"digit {number}" for number in range(10)]
    export_model(make_resnet("LSQ"), folder, input_shape=(1, 8, 8), target="web", classes=classes, pipeline=steps)
    return folder


@pytest.fixture
def visit(page: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Function that opens the page in a browser with these flags; returns it when the camera can be started."""
    opened: list[ONNXRuntimeWebEngine] = []

    def show(*flags: str) -> Any:
        monkeypatch.setattr(onnxruntime_web, "_FLAGS", (*onnxruntime_web._FLAGS, *flags))
        opened.append(ONNXRuntimeWebEngine(page, 1, "f32"))
        browser = opened[-1].browser
        wait(browser, "!document.getElementById('camera').disabled")
        return browser

    yield show
    for engine in opened:
        engine.close()


def wait(browser: Any, condition: str) -> None:
    from selenium.webdriver.support.wait import WebDriverWait

    WebDriverWait(browser, 60).until(lambda b: b.execute_script(f"return {condition}"), condition)


def text(browser: Any, selector: str) -> str:
    return browser.execute_script(f"return document.querySelector('{selector}')?.textContent ?? ''")


def click(browser: Any, name: str) -> None:
    browser.find_element("id", name).click()


def as_frame(digit: np.ndarray) -> np.ndarray:
    """Return a gray frame (480, 640) whose largest center crop, resized to 8x8, is the digit."""
    frame = np.zeros((HEIGHT, WIDTH), np.uint8)
    frame[:, (WIDTH - HEIGHT) // 2 : (WIDTH + HEIGHT) // 2] = np.kron(digit, np.ones((60, 60), np.uint8))
    return frame


def write_video(path: Path, frame: np.ndarray) -> None:
    """Write a gray frame as a video whose luminance has the range of television, 16 to 235."""
    luminance = np.round(16 + frame * (219 / 255)).astype(np.uint8).tobytes()
    planes = luminance + bytes([128]) * (WIDTH * HEIGHT // 2)
    path.write_bytes(f"YUV4MPEG2 W{WIDTH} H{HEIGHT} F10:1 Ip A1:1\n".encode() + 2 * (b"FRAME\n" + planes))


def test_the_answer_to_a_frame_is_that_of_inference(page: Path, visit: Callable[..., Any], tmp_path: Path) -> None:
    model = init_model(None, page)
    frames = [as_frame(image) for image in Digits(split="test").images[:40, 0].numpy()]
    black = inference_model(model, np.zeros((HEIGHT, WIDTH), np.uint8))["pred_class"]
    found = inference_model(model, frames)
    clear = [0 if one["pred_class"] == black else one["pred_score"] for one in found]
    best = int(np.argmax(clear))
    assert clear[best] > 0.6, "a class that no page says by itself"
    Image.fromarray(frames[best]).save(tmp_path / "frame.png")
    expected = inference_model(model, str(tmp_path / "frame.png"))
    write_video(tmp_path / "frame.y4m", frames[best])

    browser = visit(FAKE, ALLOW, f"--use-file-for-fake-video-capture={tmp_path / 'frame.y4m'}")
    click(browser, "camera")
    wait(browser, "document.getElementById('source').textContent === 'Camera'")
    for source in ("Camera", "Photo"):
        wait(browser, f"document.getElementById('source').textContent === '{source}' && lbitcls.ready")
        wait(browser, "document.querySelectorAll('#bars li').length === 5")
        assert text(browser, "#label") == text(browser, "#bars li .name") == expected["pred_class"]
        percent = float(text(browser, "#bars li .percent").split()[0])
        assert percent == pytest.approx(100 * expected["pred_score"], abs=3), "television's range has fewer levels"
        if source == "Camera":
            assert browser.find_element("id", "turn").is_displayed() is False, "there is one camera"
            click(browser, "shoot")
    wait(browser, "!document.getElementById('video').srcObject")
    assert not browser.get_log("browser"), "no error, and nothing against the policy"


def test_turning_the_camera_shows_the_other_one(visit: Callable[..., Any]) -> None:
    browser = visit(f"{FAKE}=device-count=2", ALLOW)
    track = "document.getElementById('video').srcObject?.getVideoTracks()[0].getSettings().deviceId"
    click(browser, "camera")
    wait(browser, "document.getElementById('source').textContent === 'Camera'")
    seen = []
    for _ in range(3):
        wait(browser, f"!document.getElementById('turn').hidden && {track}")
        seen.append(browser.execute_script(f"return {track}"))
        click(browser, "turn")
        wait(browser, f"({track} ?? '{seen[-1]}') !== '{seen[-1]}'")
    assert seen[0] == seen[2] != seen[1]
    click(browser, "done")
    wait(browser, "!document.getElementById('video').srcObject")
    assert browser.execute_script("return document.body.dataset.mode") == "welcome"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((FAKE, REFUSE), "The camera is blocked. Allow this page to use it in the browser's settings, then try again."),
        ((f"{FAKE}=device-count=0", ALLOW), "This device has no camera. Choose a photo instead."),
    ],
)
def test_a_camera_that_cannot_be_used_is_explained(
    flags: tuple[str, ...], message: str, visit: Callable[..., Any]
) -> None:
    browser = visit(*flags)
    click(browser, "camera")
    wait(browser, "!document.getElementById('error').hidden")
    assert text(browser, "#error") == message
    assert browser.execute_script("return document.body.dataset.mode") == "welcome"
    assert browser.find_element("id", "choose").is_enabled()
