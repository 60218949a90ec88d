"""The notebooks: what they name exists, they hold no outputs, and they run from top to bottom."""

from __future__ import annotations

import ast
import base64
import dataclasses
import importlib
import io
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
import torch
from PIL import Image

from lbitcls.settings.export import ExportOptions
from lbitcls.utils.errors import CheckpointError, DataError

ROOT = Path(__file__).resolve().parent.parent.parent
NOTEBOOKS = sorted((ROOT / "demo").glob("*.ipynb"))
CONFIGS = ROOT / "configs" / "transfer"
EXPORT_OPTIONS = {field.name for field in dataclasses.fields(ExportOptions)}
TRANSFER = ["transfer_learning", "quantized_transfer_learning"]
WEIGHTS = "weights/squeezenet1_1_caffe_fp16.pth"
EXECUTE = """
import sys, nbformat, nbclient
notebook = nbformat.read(sys.argv[1], as_version=4)
nbformat.write(nbclient.NotebookClient(notebook, timeout=600).execute(), sys.argv[1])
"""


def code_cells(path: Path) -> list[Any]:
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def test_all_are_there() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["classification", "quantized_transfer_learning", "transfer_learning"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_valid_and_holds_no_outputs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.cells[0].cell_type == "markdown" and notebook.cells[0].source.startswith("# ")
    for cell in code_cells(path):
        assert not cell.outputs and cell.execution_count is None, f"strip the outputs of {path.name}"
    assert notebook.metadata.keys() == {"kernelspec", "language_info"}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_a_notebook_names_exists(path: Path) -> None:
    """Every import, every keyword of a function of the package, every config."""
    tree = ast.parse("\n".join(cell.source for cell in code_cells(path)), path.name)
    imported: dict[str, Any] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            imported |= {alias.asname or alias.name: found(str(node.module), alias.name) for alias in node.names}
    assert {"train_classifier", "visualize", "analyze_logs", "Config"} <= imported.keys()
    for call in calls(tree):
        called = imported.get(name_of(call))
        if hasattr(called, "__code__"):
            known = called.__code__.co_varnames[: called.__code__.co_argcount + called.__code__.co_kwonlyargcount]
            options = EXPORT_OPTIONS if name_of(call) == "export_checkpoint" else set()
            assert {keyword.arg for keyword in call.keywords} <= {*known} | options, f"{name_of(call)} in {path.name}"
    texts = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    named = [text for text in texts if text.startswith("configs/")]
    assert named and all((ROOT / text).exists() for text in named), "they are found from any folder"


def found(module: str, name: str) -> Any:
    """What `from module import name` gives."""
    known = importlib.import_module(module)
    return getattr(known, name) if hasattr(known, name) else importlib.import_module(f"{module}.{name}")


@pytest.mark.parametrize("name", TRANSFER)
def test_the_recipes_of_transfer_learning_exist(name: str) -> None:
    cells = code_cells(ROOT / "demo" / f"{name}.ipynb")
    tree = ast.parse("\n".join(cell.source for cell in cells))
    asked = [call.args[0] for call in calls(tree) if name_of(call) == "recipe"]
    recipes = [argument.value for argument in asked if isinstance(argument, ast.Constant)]
    assert len(recipes) >= 2
    for recipe in (*recipes, "qat", "lsq_4w4f"):
        assert (CONFIGS / f"squeezenet1_1_{recipe}.py").is_file()


def fetching(name: str) -> tuple[dict[str, Any], str]:
    """A notebook's parameters as shipped, and the one cell that uses the network."""
    settings, *others = [cell.source for cell in code_cells(ROOT / "demo" / f"{name}.ipynb")]
    names: dict[str, Any] = {}
    exec(settings, names)
    (cell,) = [source for source in others if "DOWNLOAD" in source or "fetch_weights" in source]
    return names, cell


@pytest.mark.parametrize("name", TRANSFER)
def test_one_cell_fetches_photos_and_weights_with_checksums(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names, cell = fetching(name)
    fetched: dict[str, Any] = {}

    def download(url: str, path: str, checksum: str | None, progress: bool) -> None:
        fetched[url] = checksum
        if url.endswith(".zip"):
            photos_archive(Path(path))
        else:
            Path(path).write_bytes(b"weights")

    at_home(tmp_path, monkeypatch, download)
    exec(cell, names)
    assert all(url.startswith("https://download.pytorch.org/") and checksum for url, checksum in fetched.items())
    assert len(fetched) == 2
    fetched.clear()
    exec(cell, names)
    assert not fetched, "what is there is not fetched again"


@pytest.mark.parametrize("name", TRANSFER)
def test_without_a_network_a_notebook_says_what_to_put_where(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names, cell = fetching(name)

    def offline(*arguments: Any, **options: Any) -> None:
        raise OSError("no network")

    at_home(tmp_path, monkeypatch, offline)
    with pytest.raises(DataError, match=r"_data\.zip into data failed: no network\. .* put a copy of the archive"):
        exec(cell, names)
    photos_archive(Path("data", "hymenoptera_data.zip"))
    with pytest.raises(CheckpointError, match=rf"put a copy of squeezenet1_1-\w+\.pth from https.* into {tmp_path}"):
        exec(cell, names)


def at_home(folder: Path, monkeypatch: pytest.MonkeyPatch, download: Any) -> None:
    """In an empty folder, with empty caches and without `LBITCLS_DATA`."""
    monkeypatch.chdir(folder)
    monkeypatch.delenv("LBITCLS_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(folder / "torch"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)


def photos_archive(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for kind in ("ants", "bees"):
            archive.writestr(f"hymenoptera_data/train/{kind}/1.jpg", b"")


def calls(tree: ast.AST) -> list[ast.Call]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call)]


def name_of(call: ast.Call) -> str:
    return call.func.id if isinstance(call.func, ast.Name) else ""


def test_a_labelled_photo_takes_four_lines() -> None:
    (cell,) = [
        c.source for c in code_cells(ROOT / "demo" / "classification.ipynb") if c.source.count("show_result") == 2
    ]
    assert len([line for line in cell.splitlines() if line]) == 4
    assert [name_of(call) for call in calls(ast.parse(cell))] == [
        "init_model",
        "inference_model",
        "show_result_pyplot",
    ]


def test_the_commands_of_the_tutorial_exist() -> None:
    cells = nbformat.read(ROOT / "demo" / "classification.ipynb", as_version=4).cells
    text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    named = set(re.findall(r"\btools/\w+\.\w+", text))
    assert named == {"tools/dist_train.sh", "tools/train.py"} and all((ROOT / tool).is_file() for tool in named)
    links = re.findall(r"\]\((?!https?:)([^)]+)\)", text)
    assert len(links) > 5 and all((ROOT / "demo" / link).is_file() for link in links)


@pytest.fixture
def tiny_data(tmp_path: Path) -> Path:
    """Photos of ants (dark) and bees (light), and weights of SqueezeNet that nobody trained."""
    generator = np.random.default_rng(0)
    for part, number in (("train", 6), ("val", 4)):
        for label, kind in enumerate(("ants", "bees")):
            folder = tmp_path / "data" / "hymenoptera_data" / part / kind
            folder.mkdir(parents=True)
            for i in range(number):
                pixels = generator.integers(110 * label, 110 * label + 100, (60, 80, 3), np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.jpg")
    from torchvision.models import squeezenet1_1

    weights = tmp_path / "data" / WEIGHTS
    weights.parent.mkdir()
    torch.save(squeezenet1_1().state_dict(), weights)
    return tmp_path / "data"


def execute(path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, **parameters: Any) -> Any:
    """The notebook after it ran in `folder`; `parameters` are set after the cell with that tag.

    It is run by a process of its own: sockets of one client, freed late, disturbed the next one's in the same process.
    """
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    monkeypatch.setenv("IPYTHONDIR", str(folder / "ipython"))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(folder / "jupyter"))
    notebook = nbformat.read(path, as_version=4)
    tagged = [i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", ())]
    settings = "\n".join(f"{name} = {value!r}" for name, value in parameters.items())
    notebook.cells.insert(tagged[0] + 1, nbformat.v4.new_code_cell(settings))
    copy = folder / path.name
    nbformat.write(notebook, copy)
    subprocess.run([sys.executable, "-c", EXECUTE, copy.name], cwd=folder, check=True)
    return nbformat.read(copy, as_version=4)


def shown(notebook: Any) -> tuple[list[Image.Image], str]:
    """The pictures that a notebook shows, and all its text."""
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    data = [output.data["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    text = "".join(output.get("text", "") or output.get("data", {}).get("text/plain", "") for output in outputs)
    return [Image.open(io.BytesIO(base64.b64decode(png))) for png in data], text


def assert_drawn(pictures: list[Image.Image], number: int) -> None:
    assert len(pictures) == number
    for picture in pictures:
        assert min(picture.size) > 150 and len(picture.convert("L").getcolors(256) or []) > 20


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_classification(tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = dict(EPOCHS=2, FLOAT_EPOCHS=1, TUNE_EPOCHS=1, WEIGHTS=str(tiny_data / WEIGHTS))
    notebook = execute(ROOT / "demo" / "classification.ipynb", tmp_path, monkeypatch, **given)
    pictures, text = shown(notebook)
    assert_drawn(pictures, 8)
    assert "The output depends most on the quantizers of" in text and "backbone.layer1.0.conv1" in text
    assert re.search(r"backbone\.layer3\.0\.conv2\.weight_quantizer +scale 2\^-\d+\n", text)
    work = tmp_path / "work_dirs" / "classification"
    files = ("photo.jpg", "lsq_4w4f/model.onnx", "analysis.html", "analysis.json", "parity/best_top-1.pth")
    assert all((work / name).is_file() for name in files)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_transfer_learning(tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = dict(DATA_ROOT=str(tiny_data), DOWNLOAD=False, WEIGHTS=WEIGHTS, EPOCHS=2, CONFIGS=str(CONFIGS))
    notebook = execute(ROOT / "demo" / "transfer_learning.ipynb", tmp_path, monkeypatch, **given)
    pictures, text = shown(notebook)
    assert_drawn(pictures, 6)
    assert "train {'ants': 6, 'bees': 6}" in text and "val {'ants': 4, 'bees': 4}" in text
    assert "time per iteration" in text and text.count("top-1") >= 4
    work = tmp_path / "work_dirs" / "transfer_learning"
    for run in ("features", "finetune"):
        assert f"{run}/best_top-1.pth" in text and (work / run / "results.png").is_file()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_quantized_transfer_learning(tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = dict(DATA_ROOT=str(tiny_data), DOWNLOAD=False, WEIGHTS=WEIGHTS, EPOCHS=1, CONFIGS=str(CONFIGS))
    given |= dict(QUANTIZED_EPOCHS=1)  # of qat; `test_transfer_recipes.py` trains and exports lsq_4w4f, too
    notebook = execute(ROOT / "demo" / "quantized_transfer_learning.ipynb", tmp_path, monkeypatch, **given)
    pictures, text = shown(notebook)
    assert_drawn(pictures, 3)
    assert (tmp_path / "work_dirs" / "quantized_transfer_learning" / "qat" / "model.onnx").is_file()
    last = [line.split() for line in text.splitlines()[-2:]]
    assert [line[0] for line in last] == ["float", "integers"]
    assert float(last[1][3]) < 0.5 * float(last[0][3])  # KiB
