"""The public packages, as a user's program sees them: real types for a checker, light imports, helpful misses."""

from __future__ import annotations

import importlib
import os
import pickle
import pkgutil
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from lbitcls.utils.lazy import exports

ROOT = Path(__file__).resolve().parent.parent
LAZY = sorted(
    ".".join(path.parent.relative_to(ROOT).parts)
    for path in (ROOT / "lbitcls").rglob("__init__.py")
    if "exports(__name__)" in path.read_text(encoding="utf-8")
)
NAMES = [(package, name) for package in LAZY for name in importlib.import_module(package).__all__]
NAMES.append(("lbitcls.core.hooks", "Hook"))  # not lazy
STARRED = [package for package in LAZY if package not in ("lbitcls.inference", "lbitcls.workflows")]  # apis has theirs

WRONG = {
    'init_model("a.py", checkpont="b.pth")': "call-arg",
    'init_model("a.py", "b.onnx", threads="two")': "arg-type",
    "show_result(model)": "call-arg",
    "inference_model(model, 3)": "call-overload",
    "show_result(model, 'a.jpg', results)": "arg-type",
    "train_classifier(3)": "arg-type",
    "export_checkpoint(cfg)": "call-arg",
    "export_checkpoint(cfg, 'a.pth', 'a.onnx', ExportOptions(opset=None))": "arg-type",
    "analyze_logs(3)": "arg-type",
    "init_model('a.py').clases": "attr-defined",
    "model_size('a.pth')": "arg-type",
    "Config(filname='a.py')": "call-arg",
    "build_dataloader(build_dataset({}), samples_per_gpu='32')": "arg-type",
    "load('a.onnx').predict()": "call-arg",
    "load_checkpoint('a.pth')": "call-arg",
    **{f"{package}.no_such_name": "attr-defined" for package in LAZY},
}
RIGHT = """
from collections.abc import Sequence

import torch

def names(model: Classifier) -> Sequence[str]:
    return model.CLASSES or ()

cfg = Config.fromfile("config.py")
summary = train_classifier(cfg, resume=True)
model = init_model(cfg, summary["checkpoint"], device=None)
results = inference_model(model, ["a.jpg", "b.jpg"], topk=3, batch_size=2)
names(model)
print(results[0]["topk"], inference_model(model, "a.jpg")["pred_class"])
show_result(model, "a.jpg", results[0], out_file="b.png")
data = build_dataset({"type": "Digits"})
loader = build_dataloader(data, samples_per_gpu=8)
network = build_classifier({"type": "ImageClassifier"})
calibrate(network, loader)
test_model(network, loader)
test_model(network, [(batch["img"], batch["gt_label"]) for batch in loader])
inference_model(network, "a.jpg")
calibrate(network, [torch.zeros(1, 3, 32, 32)])
visualize("confusion", cfg, model, tensorboard=True)
if isinstance(model, torch.nn.Module):
    test_model(model, loader)

classifiers: list[Classifier] = [ImageClassifier({}, {}), ExportedModel(load("a.onnx"))]
a_dataset: Dataset = data
a_loader: BatchLoader = loader
freezable: Freezable = ImageClassifier({}, {})
fixed: FixedFeatures = ImageClassifier({}, {})
stored: SizedInBits = IntegerBackbone()

class Announce(Hook):
    def after_epoch(self, runner: EpochRunner) -> None:
        validation = runner.find(EvaluationHook)
        print(validation.best if validation else {}, len(runner.loader.dataset))
"""


@pytest.fixture(scope="module")
def script() -> str:
    """A user's program: right uses, one wrong use a line, and the type of each public name."""
    lines = [f"import {package}" for package in dict(NAMES)]
    lines += [f"from {package} import *" for package in STARRED]
    lines += [
        "from lbitcls.workflows import analyze_logs, export_checkpoint, visualize",
        "from lbitcls.core.hooks import Hook",
        "from lbitcls.settings.export import ExportOptions",
        "from lbitcls.core.hooks.evaluation_hook import EvaluationHook",
        "from lbitcls.core.runner import EpochRunner",
        "from lbitcls.inference import ExportedModel",
        "from lbitcls.protocols import Classifier, Dataset, FixedFeatures, Freezable, BatchLoader, SizedInBits",
    ]
    lines += RIGHT.splitlines()
    return "\n".join([*lines, *WRONG, *(f"reveal_type({package}.{name})" for package, name in NAMES)])


@pytest.fixture(scope="module")
def found(script: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """What mypy says of each line of the program, with the settings and the cache of `make types`."""
    path = tmp_path_factory.mktemp("user") / "program.py"
    path.write_text(script, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--show-error-codes", "--no-error-summary", "--no-pretty", str(path)],
        cwd=ROOT,
        env={**os.environ, "MYPYPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    lines = script.splitlines()
    said: dict[str, list[str]] = {}
    for number, text in re.findall(rf"{re.escape(path.name)}:(\d+): (.*)", done.stdout):
        said.setdefault(lines[int(number) - 1], []).append(text)
    assert said, done.stdout + done.stderr
    return said


def test_every_public_name_has_its_real_type(found: dict[str, list[str]]) -> None:
    revealed = {name: " ".join(found.get(f"reveal_type({'.'.join(name)})", ["nothing"])) for name in NAMES}
    untyped = {
        name: text for name, text in revealed.items() if re.search(r'"Any"|-> Any"$|\*_args: Any|^nothing$', text)
    }
    assert not untyped
    assert all("def (" in text or "Overload(" in text for text in revealed.values()), revealed


@pytest.mark.parametrize(("line", "code"), WRONG.items())
def test_a_wrong_use_is_an_error(found: dict[str, list[str]], line: str, code: str) -> None:
    assert f"[{code}]" in " ".join(found.get(line, []))


def test_a_right_use_is_none(found: dict[str, list[str]]) -> None:
    assert not {line: said for line, said in found.items() if line not in WRONG and not line.startswith("reveal_type(")}


@pytest.mark.parametrize("package", LAZY)
def test_a_package_shows_its_names(package: str) -> None:
    module = importlib.import_module(package)
    names = {name for owner, name in NAMES if owner == package}
    assert names and names <= set(dir(module)) and sorted(names) == module.__all__
    space: dict[str, object] = {}
    exec(f"from {package} import *", space)
    assert names <= space.keys() and all(space[name] is getattr(module, name) for name in names)
    assert not names & {info.name for info in pkgutil.iter_modules(module.__path__)}  # either could hide the other


@pytest.mark.parametrize(("package", "name"), NAMES)
def test_a_public_name_travels_to_other_processes(package: str, name: str) -> None:
    value = getattr(importlib.import_module(package), name)
    assert pickle.loads(pickle.dumps(value)) is value


@pytest.mark.parametrize("package", LAZY)
def test_a_misspelt_name_gets_a_suggestion(package: str) -> None:
    module = importlib.import_module(package)
    name = module.__all__[0]
    with pytest.raises(
        AttributeError, match=f"^module '{package}' has no attribute '{name}x'. [Dd]id you mean '{name}'"
    ):
        getattr(module, f"{name}x")
    with pytest.raises(AttributeError, match="has no attribute 'quite_another_thing'\\.$"):
        module.quite_another_thing  # noqa: B018
    with pytest.raises(ImportError, match=f"{name}x"):
        exec(f"from {package} import {name}x")


def test_a_module_is_not_taken_for_a_name() -> None:
    code = (
        "import lbitcls.datasets, lbitcls.utils\n"
        "try: lbitcls.datasets.imagenet\n"
        "except AttributeError as error: print(error)\n"
        "from lbitcls.utils import jsontext\n"
        "print(lbitcls.utils.jsontext.__name__)\n"
        "print(hasattr(lbitcls.datasets, '__wrapped__'))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.splitlines() == [
        "'lbitcls.datasets.imagenet' is a module: import lbitcls.datasets.imagenet",
        "lbitcls.utils.jsontext",
        "False",
    ]


def test_a_package_without_its_source_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    bare = ModuleType("bare")
    monkeypatch.setitem(sys.modules, "bare", bare)
    with pytest.raises(ImportError, match="bare needs the source"):
        exports("bare")


def test_the_packages_import_nothing_heavy() -> None:
    code = (
        f"import sys, {', '.join(LAZY)}, lbitcls.protocols; print({{'torch', 'numpy', 'mmengine'}} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stdout + done.stderr
