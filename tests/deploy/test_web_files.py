"""Pages without a browser: their steps, their files, what is refused, and the server."""

from __future__ import annotations

import json
import re
import urllib.request
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lbitcls.commands.main import main
from lbitcls.datasets.pipelines.decode import with_channels
from lbitcls.deploy import export_model
from lbitcls.deploy.runtime.metadata import ModelInfo, read_info
from lbitcls.deploy.runtime.page import npm
from lbitcls.deploy.runtime.page.page_files import write_page
from lbitcls.deploy.runtime.page.page_steps import page_steps
from lbitcls.deploy.runtime.page.server import serving
from lbitcls.utils.errors import CheckpointError, ConfigError, DependencyError, ResourceError
from lbitcls.workflows.demonstrating import demonstrate, page_of

NORMALIZE = dict(type="Normalize", mean=[0.5, 0.5, 0.5], std=[0.25, 0.25, 0.25])
TAIL = [dict(type="ImageToTensor", keys=["img"]), dict(type="Collect", keys=["img"])]


def kinds(pipeline: list[Any], shape: tuple[int, int, int]) -> list[str]:
    return [step["type"] for step in page_steps(pipeline, shape)[0]]


def test_steps_as_inference_chooses_them() -> None:
    usual = [dict(type="LoadImageFromFile"), dict(type="Resize", size=(8, -1)), dict(type="CenterCrop", crop_size=6)]
    assert kinds([*usual, NORMALIZE, *TAIL], (3, 6, 6)) == ["Resize", "CenterCrop", "Normalize"]
    assert kinds([NORMALIZE, *TAIL], (3, 6, 5)) == ["Fit", "Normalize"], "no step gives the model's size"
    assert kinds(TAIL, (1, 6, 5)) == ["Gray", "Fit", "Scale"]
    one = dict(type="Normalize", mean=[0.5], std=[0.25])
    gray = dict(type="LoadImageFromFile", color_type="grayscale")
    assert kinds([gray, dict(type="Resize", size=(6, 5)), one], (1, 6, 5)) == ["Gray", "Resize", "Normalize"]
    assert kinds([dict(type="Resize", size=(6, 5)), one], (1, 6, 5)) == ["Resize", "Normalize"]
    ignoring = dict(type="LoadImageFromFile", color_type="color_ignore_orientation")
    assert page_steps([ignoring, NORMALIZE], (3, 6, 5))[1] is False


def test_normalization_is_in_bytes_and_in_float32() -> None:
    steps, _ = page_steps([dict(type="Normalize", mean=[0.485] * 3, std=[0.229] * 3, to_rgb=False)], (3, 4, 4))
    assert steps[-1]["mean"] == [float(np.float32(0.485) * np.float32(255))] * 3 and steps[-1]["reversed"]
    steps, _ = page_steps([dict(type="Normalize", mean=[123.675], std=[58.395])], (1, 4, 4))
    assert steps[-1]["mean"] == [float(np.float32(123.675))] and not steps[-1]["reversed"]


def test_gray_bytes_stay_what_they_are_as_three_equal_channels() -> None:
    """A browser has no gray images; so the page reads a gray file as RGB, and converts it where the model is gray."""
    import torch

    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16)
    assert torch.equal(with_channels(levels.expand(3, 16, 16), 1), levels)


@pytest.mark.parametrize(
    ("step", "told"),
    [
        (dict(type="RandomFlip"), "RandomFlip(): the page has LoadImageFromFile, Resize"),
        (dict(type="v2.ToDtype", dtype="float32"), "v2.ToDtype(dtype='float32')"),
        (dict(type="Resize", size=8, interpolation="lanczos"), "interpolates bilinear, bicubic, nearest"),
        (dict(type="Resize", size=10**6), "each from 1 to 16384"),
        (dict(type="CenterCrop", crop_size=8, ratio=2), "unexpected keyword argument"),
        (dict(type="Normalize", mean=[0.5], std=[0]), "a std above 0"),
        ("a callable", "'a callable'"),
    ],
)
def test_refused_steps_are_named(step: Any, told: str) -> None:
    with pytest.raises(ConfigError, match="replace these steps of data.test.pipeline") as raised:
        page_steps([dict(type="LoadImageFromFile"), step, NORMALIZE], (3, 8, 8))
    assert told in str(raised.value)


def test_refused_pipelines() -> None:
    with pytest.raises(ConfigError, match="loads first, and normalizes last"):
        page_steps([NORMALIZE, dict(type="CenterCrop", crop_size=8)], (3, 8, 8))
    with pytest.raises(ConfigError, match="into 4×4; end its changes of size with CenterCrop"):
        page_steps([dict(type="CenterCrop", crop_size=4)], (3, 8, 8))
    with pytest.raises(ConfigError, match="1 or 3 channels"):
        page_steps([], (4, 8, 8))


@pytest.fixture
def page(write_onnx: Any, info: ModelInfo, tmp_path: Path) -> Path:
    """A page of a small model, which links its runtime."""
    info = replace(info, pipeline=[NORMALIZE], classes=["</script><b>ant</b>", "bee", "çat", "dog"])
    folder = tmp_path / "page"
    folder.mkdir()
    write_page(folder, write_onnx(info=info).read_bytes(), info, "cdn")
    return folder


class Tags(HTMLParser):
    """The tags of a page, with their attributes, and the text of its scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.inline = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.found and self.found[-1][0] in ("script", "style"):
            self.inline += data.strip()


def test_a_page_loads_only_its_own_files(page: Path) -> None:
    tags = Tags((page / "index.html").read_text("utf-8"))
    assert not tags.inline and not any(name.startswith("on") or name == "style" for _, a in tags.found for name in a)
    links = [
        a.get("src") or a.get("href") for t, a in tags.found if t in ("script", "link", "img") and (set(a) - {"id"})
    ]
    assert all((page / str(link)).is_file() for link in links if link)
    policy = next(str(a["content"]) for _, a in tags.found if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy and "unsafe-inline" not in policy and "'unsafe-eval'" not in policy
    assert policy.count("https://") == 1 and npm.CDN in policy, "the linked runtime alone"
    sources = "".join(path.read_text("utf-8") for path in page.glob("*.js"))
    assert not re.search(r"innerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|https?://", sources)


def test_the_description_comes_from_the_metadata(page: Path) -> None:
    told = json.loads((page / "model.json").read_text("utf-8"))
    info = read_info(page)
    assert info is not None and told["classes"] == info.classes and tuple(told["input"]) == info.input_shape
    assert told["size"] == (page / told["file"]).stat().st_size
    assert told["runtime"]["wasm"].startswith(npm.CDN) and told["runtime"]["integrity"]["wasm"].startswith("sha384-")


def test_a_missing_runtime_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(npm.VARIABLE, str(tmp_path / "a folder"))
    command = rf"mkdir -p '{tmp_path}/a folder' && npm pack onnxruntime-web@1\.30\.0 --pack-destination '{tmp_path}/a"
    with pytest.raises(DependencyError, match=command):
        npm.read_runtime()
    (tmp_path / "a folder").mkdir()
    npm.archive().write_bytes(b"another file")
    with pytest.raises(DependencyError, match=r"is not onnxruntime-web@1\.30\.0, or is damaged"):
        npm.read_runtime()


def test_an_export_is_refused_before_anything_is_written(make_resnet: Any, tmp_path: Path) -> None:
    model, out = make_resnet("LSQ"), tmp_path / "page"
    given: Any = dict(input_shape=(1, 8, 8), target="web", runtime="cdn")
    with pytest.raises(ConfigError, match="RandomFlip"):
        export_model(model, out, pipeline=[dict(type="RandomFlip")], **given)
    with pytest.raises(ConfigError, match="--part model"):
        export_model(model, out, part="backbone", **given)
    with pytest.raises(ConfigError, match="runtime must be one of 'copy', 'cdn'; got 'net'"):
        export_model(model, out, **{**given, "runtime": "net"})
    with pytest.raises(ConfigError, match="is for web pages, and cpu writes none"):
        export_model(model, out, **{**given, "target": "cpu"})
    assert not list(tmp_path.iterdir())


def test_the_server(page: Path) -> None:
    with serving(page) as url:
        assert url.startswith("http://127.0.0.1:")
        for name, kind in (("worker.js", "text/javascript"), ("model.json", "application/json")):
            with urllib.request.urlopen(url + name) as answer:
                assert answer.headers.get_content_type() == kind and answer.read() == (page / name).read_bytes()
                assert answer.headers["Cross-Origin-Embedder-Policy"] == "require-corp"
        port = int(url.rstrip("/").rpartition(":")[2])
        with pytest.raises(ResourceError, match=f"port {port} cannot be used"):
            demonstrate(page, port, browser=False)


def test_demo_of_what_is_no_page(page: Path, write_onnx: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with page_of(page) as folder:
        assert folder == page
    with pytest.raises(CheckpointError, match="lbitcls export CONFIG CHECKPOINT --target web"), page_of(write_onnx()):
        pass
    with pytest.raises(ConfigError, match="--port must be an integer from 0 to 65535; got 70000"):
        demonstrate(page, 70000, browser=False)
    (page / "index.html").unlink()
    assert main(["demo", str(page), "--no-browser"]) == 1
    assert "it lacks index.html" in capsys.readouterr().err
