"""The shape of the code: which part may import which, what loads lazily, how long files and functions are."""

from __future__ import annotations

import ast
import functools
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "lbitcls"

COMMON = {"version", "registry", "utils", "protocols", "settings"}
PARTS = COMMON | {"core", "models", "datasets", "quant", "deploy", "analysis"}
ALLOWED = {
    "version": set(),
    "protocols": set(),
    "utils": {"version"},
    "settings": {"utils", "version"},
    "registry": {"utils"},
    "quant": COMMON,
    "models": COMMON,
    "datasets": COMMON,
    "core": COMMON | {"quant"},
    "deploy": COMMON | {"quant"},
    "analysis": COMMON | {"quant"},
    "assembly": PARTS,
    "inference": PARTS | {"assembly"},
    "tracking": PARTS | {"assembly"},
    "starter": PARTS | {"assembly"},
    "workflows": PARTS | {"assembly", "inference", "tracking"},
    "apis": PARTS | {"inference", "workflows"},
    "commands": COMMON | {"assembly", "inference", "starter", "tracking", "workflows"},
    "tools": {"commands"},
}
DEPLOY = {
    "runtime": set(),
    "passes": {"runtime"},
    "targets": {"runtime", "passes"},
    "verification": {"runtime", "passes", "targets"},
    "export": {"runtime", "passes", "targets", "verification"},
}
"""Arrows between the rooms of `deploy`: the judge of an exported model knows nothing of how it was made."""
SHARED_NAMES = {"__init__", "base", "builder"}
OPTIONAL = {
    "ai_edge_litert",
    "cv2",
    "datasets",
    "flatbuffers",
    "huggingface_hub",
    "jinja2",
    "matplotlib",
    "mlflow",
    "mmcv",
    "onnx",
    "onnxruntime",
    "openvino",
    "plotly",
    "qonnx",
    "safetensors",
    "selenium",
    "sklearn",
    "tensorboard",
    "timm",
    "torchmetrics",
    "tvm",
    "wandb",
}
TEXT = {".py", ".md", ".txt", ".toml", ".in", ".cfg", ".sh", ".yaml", ".yml", ".json", ".ipynb", ""}
# What is true only where the code was written: paths, package hosts, the numbers of the issues.
FORBIDDEN = re.compile(
    r"/root/|\b[Ii]ssue #?\d{1,3}\b"
    r"|\bTODO|\bFIXME|\bXXX\b"
)


def python_files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


@functools.cache
def tree_of(path: Path) -> ast.Module:
    """The syntax tree of a file; nothing here changes it."""
    return ast.parse(path.read_text(encoding="utf-8"))


def unit_of(path: Path) -> str:
    """The part a file belongs to: `lbitcls/core/runner.py` -> `core`, `tools/train.py` -> `tools`."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[1] if parts[0] == "lbitcls" else parts[0]


def imported_modules(path: Path, tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Every import of a file, inside functions too, as (line, absolute dotted name)."""
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def top_level_imports(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """The imports that run when a module is imported: not those in functions or for the type checker."""
    waiting: list[ast.AST] = list(tree.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting.extend(node.orelse)
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            waiting.extend(ast.iter_child_nodes(node))


def module_name(path: Path) -> str:
    """`lbitcls/core/runner.py` -> `lbitcls.core.runner`; a package by its own name."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_between(sources: dict[str, tuple[Path, ast.Module]]) -> dict[str, set[str]]:
    """The modules that each module imports, in functions and for the type checker too; a package for its names."""
    graph = {}
    for name, (path, tree) in sources.items():
        imported = {found for _, found in imported_modules(path, tree)}
        nearest = {found if found in sources else found.rpartition(".")[0] for found in imported}
        graph[name] = (nearest & sources.keys()) - {name}
    return graph


def circles(graph: dict[str, set[str]]) -> list[set[str]]:
    """The sets of modules that import each other, directly or by way of others: strongly connected components."""
    reached = {name: reachable(graph, name) for name in graph}
    found = {frozenset(other for other in reached[name] if name in reached[other]) for name in graph}
    return sorted((set(circle) for circle in found if circle), key=sorted)


def reachable(graph: dict[str, set[str]], start: str) -> set[str]:
    """What `start` imports, and what that imports, and so on; `start` itself where that leads back to it."""
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        new = graph[waiting.pop()] - seen
        seen |= new
        waiting.extend(new)
    return seen


def where(path: Path, line: int) -> str:
    return f"{path.relative_to(ROOT)}:{line}"


def test_every_part_of_the_package_has_its_arrows() -> None:
    parts = {p.stem for p in PACKAGE.iterdir() if p.suffix == ".py" or (p.is_dir() and any(p.glob("*.py")))}
    assert parts - {"__init__"} <= ALLOWED.keys()


def test_imports_follow_the_arrows() -> None:
    wrong = []
    for path in python_files("lbitcls", "tools"):
        unit = unit_of(path)
        allowed = ALLOWED.get(unit, {"version"}) | {unit}  # lbitcls/__init__.py: the version only
        for line, name in imported_modules(path, tree_of(path)):
            parts = name.split(".")
            target = parts[1] if len(parts) > 1 and parts[1] in ALLOWED else "version"
            if parts[0] == "lbitcls" and target not in allowed:
                wrong.append(f"{where(path, line)} imports {name}; {unit} may import {', '.join(sorted(allowed))}")
    assert not wrong, "\n".join(wrong)


def room_of(path: Path) -> str:
    """The room of `deploy` that a file belongs to: `deploy/runtime/engines/openvino.py` -> `runtime`."""
    return path.relative_to(PACKAGE / "deploy").parts[0]


def test_the_rooms_of_deploy_follow_their_arrows() -> None:
    rooms = {path.name for path in (PACKAGE / "deploy").iterdir() if any(path.glob("*.py"))}
    assert rooms == DEPLOY.keys()
    wrong = [
        f"{where(path, line)} imports {name}"
        for path in python_files(*(f"lbitcls/deploy/{room}" for room in DEPLOY))
        for line, name in imported_modules(path, tree_of(path))
        if name.startswith("lbitcls.deploy.") and name.split(".")[2] not in DEPLOY[room_of(path)] | {room_of(path)}
    ]
    assert not wrong, "\n".join(wrong)


def test_no_modules_import_each_other() -> None:
    files = {module_name(path): path for path in python_files("lbitcls")}
    graph = imports_between({name: (path, tree_of(path)) for name, path in files.items()})
    assert len(graph) > 150 and "lbitcls.utils.errors" in graph["lbitcls.registry"]
    assert not [sorted(circle) for circle in circles(graph)]


def test_a_circle_is_found_wherever_its_imports_are() -> None:
    texts = {
        "p": "",
        "p.a": "from __future__ import annotations\nfrom typing import TYPE_CHECKING\nif TYPE_CHECKING:\n import p.b",
        "p.b": "def f():\n    from p import c",
        "p.c": "from p.a import X",
        "p.d": "import p.a\nfrom p import e as g",
        "p.e": "from . import c",
    }
    trees = {name: (ROOT / f"{name.replace('.', '/')}.py", ast.parse(text)) for name, text in texts.items()}
    graph = imports_between(trees)
    assert circles(graph) == [{"p.a", "p.b", "p.c"}]


def test_no_two_files_have_one_name() -> None:
    # A command is named after its verb, an engine after its package.
    paths = [path for path in python_files("lbitcls") if path.parent.name not in ("commands", "engines")]
    names = [path.stem for path in paths if path.stem not in SHARED_NAMES]
    assert not {name for name in names if names.count(name) > 1}


def test_a_config_is_parsed_at_the_door() -> None:
    """Below `read_settings` functions take settings; these few handle configs as such."""
    takes = {
        str(path.relative_to(PACKAGE))
        for path in python_files("lbitcls")
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.arg) and node.annotation is not None
        if re.search(r"\bConfig\b", ast.unparse(node.annotation))
    }
    assert takes <= {"utils/config.py", "settings/sections.py", "inference/onnx_model.py"}


def test_optional_packages_are_imported_where_they_are_used() -> None:
    wrong = []
    for path in python_files("lbitcls", "tools"):
        for line, name in top_level_imports(tree_of(path)):
            if name.split(".")[0] in OPTIONAL or name.startswith("torch.utils.tensorboard"):
                wrong.append(f"{where(path, line)} imports {name} at its top")
    assert not wrong, "\n".join(wrong)


def test_only_configs_and_registry_know_mmengine() -> None:
    homes = {PACKAGE / "registry.py", *(PACKAGE / "utils").glob("config*.py")}
    wrong = [
        f"{where(path, line)} imports {name}"
        for path in python_files("lbitcls", "tools")
        for line, name in imported_modules(path, tree_of(path))
        if name.startswith("mmengine.runner") or (name.split(".")[0] == "mmengine" and path not in homes)
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "module",
    [
        "lbitcls",
        "lbitcls.commands.main",
        "lbitcls.registry",
        "lbitcls.utils.config",
        "lbitcls.inference.image_files",
        "lbitcls.inference.onnx_model",
    ],
)
def test_import_loads_no_torch(module: str) -> None:
    code = f"import sys, {module}; print({{'torch', 'torchvision', 'cv2', 'matplotlib'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "set()"


def test_files_are_short() -> None:
    files = python_files("lbitcls", "tools", "tests", "benchmarks", "configs")
    lengths = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    assert not {path: length for path, length in lengths.items() if length > 400}


def code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """The lines of a function from its `def` to its end, its docstring not counted."""
    first = function.body[0]
    documented = ast.get_docstring(function) is not None
    doc = (first.end_lineno or first.lineno) - first.lineno + 1 if documented else 0
    return (function.end_lineno or function.lineno) - function.lineno + 1 - doc


def test_median_function_is_short() -> None:
    sizes = [
        code_lines(node)
        for path in python_files("lbitcls", "tools")
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    assert statistics.median(sizes) < 15


def project_texts() -> list[Path]:
    folders = (".ci", ".github", "lbitcls", "tools", "tests", "configs", "docs", "benchmarks", "demo", "requirements")
    below = [path for folder in folders for path in (ROOT / folder).rglob("*")]
    files = [path for path in [*ROOT.iterdir(), *below] if path.is_file() and path.suffix in TEXT]
    return [path for path in files if "__pycache__" not in path.parts and path != Path(__file__).resolve()]


def test_nothing_names_the_place_where_it_was_written() -> None:
    found = [
        f"{where(path, number)}: {line.strip()[:120]}"
        for path in project_texts()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if FORBIDDEN.search(line)
    ]
    assert not found, "\n".join(found)
