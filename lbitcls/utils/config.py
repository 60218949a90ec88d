"""Config files: mmengine's `Config`, with its traps closed.

A syntax error names its file; a file with imports is never mistaken for mmengine's "lazy" kind; a number written as
`1e-3` in YAML is a number, and nothing in YAML is run; an option for a key that is not there, a section's name nearly
right, or a section of another framework is a `ConfigError` with a suggestion.
"""

from __future__ import annotations

import ast
import json
import re
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmengine.config import Config as _MMEngineConfig
from mmengine.config import ConfigDict
from mmengine.fileio import YamlHandler
from mmengine.fileio.handlers.registry_utils import file_handlers

from lbitcls.utils.custom import import_custom
from lbitcls.utils.errors import ConfigError, nearest, suggest
from lbitcls.utils.library import find_shipped
from lbitcls.utils.safe import plain_sections, read_yaml, refuse_code

SECTIONS: dict[str, str] = {
    "model": "the classifier: backbone, neck, head",
    "data": "data sets, pipelines, batch size, workers",
    "data_root": "where relative data paths start",
    "evaluation": "how often and by what to validate",
    "quant_transformer": "which layers become quantized, and how",
    "calibration": "when and from how much data the quantizers take their first values",
    "optimizer": "a torch optimizer by name",
    "optimizer_config": "gradient clipping and accumulation",
    "lr_config": "learning-rate policy and warm-up",
    "total_epochs": "length of the run",
    "checkpoint_config": "how often to save, how many to keep",
    "log_config": "loggers and their interval",
    "log_level": "INFO, DEBUG, WARNING",
    "load_from": "weights to start from",
    "resume_from": "a run to go on with",
    "work_dir": "where a run writes",
    "workflow": "order of train and val epochs",
    "dist_params": "backend of torch.distributed",
    "fp16": "float16 autocast",
    "amp": "autocast and its type",
    "seed": "seed of everything random",
    "deterministic": "only deterministic kernels",
    "cudnn_benchmark": "let cuDNN choose kernels by timing",
    "find_unused_parameters": "as DDP takes it",
    "sycbn": "BatchNorm statistics over all GPUs",
    "cpu_only": "train on the CPU",
    "device": "device to train on",
    "num_threads": "threads of a process on the CPU",
    "gpu_ids": "GPUs to train on",
    "custom_hooks": "hooks of your own",
    "custom_imports": "modules of your own to import",
    "compile": "torch.compile the model",
    "kernels": "of quantizers: auto, plain or fused",
    "ema": "average of the weights",
    "feature_cache": "keep the features of a frozen backbone",
    "channels_last": "memory format of images and convolutions",
    "export": "write the best weights as an integer model when the run is complete",
}

_DICTS = (  # sections that are a dict, or None
    *("model", "data", "evaluation", "quant_transformer", "calibration", "optimizer", "optimizer_config", "lr_config"),
    *("checkpoint_config", "log_config", "dist_params", "custom_imports", "export"),
)

_TEXTS = ("work_dir", "load_from", "resume_from", "device")

_FOREIGN: dict[str, str] = {
    "optim_wrapper": "optimizer and optimizer_config",
    "param_scheduler": "lr_config",
    "train_dataloader": "data.train, data.samples_per_gpu and data.workers_per_gpu",
    "val_dataloader": "data.val",
    "test_dataloader": "data.test",
    "val_evaluator": "evaluation",
    "test_evaluator": "evaluation",
    "default_hooks": "checkpoint_config, log_config and custom_hooks",
    "model_wrapper_cfg": "find_unused_parameters",
    "data_preprocessor": "Normalize in the pipelines of data",
    "train_cfg": "total_epochs, and evaluation.interval",
    "randomness": "seed and deterministic",
    "runner": "total_epochs (of mmcls's, dict(type='EpochBasedRunner', max_epochs=N) is understood)",
}

_FLOAT = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)[eE][+-]?\d+")


class Config(_MMEngineConfig):
    """A config: sections as attributes and keys (`cfg.model.backbone.depth`, `cfg['model']`).

    Example:
        >>> cfg = Config.fromfile("configs/quickstart/digits_lsq_4w4f.py")
        >>> cfg.merge_from_dict({"optimizer.lr": 0.01, "compile": True})
    """

    @staticmethod
    def fromfile(filename: str | Path, **kwargs: Any) -> Config:
        """Read a config file with its `_base_` files, check the sections' names, import its `custom_imports`.

        It is a `.py`, `.yaml`, `.yml` or `.json` file. A path that begins with `configs/` and is not there is looked
        for among the configs of the package. A Python config is a program, which is run; in safe mode
        (`lbitcls.utils.safe`) it is refused, as are such bases and `custom_imports`.

        Raises:
            ConfigError: the file is missing, cannot be read, or has a name that is nearly a section's; a module of
                `custom_imports` is not there; it would run code in safe mode.
        """
        path = _existing(Path(filename).expanduser())
        _check_syntax(path, ())
        try:
            with _guarded():
                loaded = _MMEngineConfig.fromfile(
                    str(path),
                    use_environment_variables=False,
                    lazy_import=False,
                    import_custom_modules=False,  # done below, with our search path and message
                    **kwargs,
                )
        except ConfigError:
            raise
        except Exception as error:  # a config is a program: whatever it raises is the user's to see, with its place
            raise ConfigError(
                f"config {path} cannot be read: {type(error).__name__}: {error}{_line(error, path)}"
            ) from error
        sections = _with_total_epochs(_numbers(loaded._cfg_dict, path))
        cfg = Config(sections, cfg_text=loaded.text, filename=str(path))
        check_sections(cfg)
        import_custom(cfg.get("custom_imports"))
        return cfg

    @staticmethod
    def fromstring(cfg_str: str, file_format: str = ".py") -> Config:
        """A config from its text, as a checkpoint keeps it in `meta['config']`. Nothing in it is run.

        Raises:
            ConfigError: it has more in it than `name = value` with plain values.
        """
        if file_format == ".py":
            return Config(plain_sections(cfg_str), cfg_text=cfg_str)
        if file_format not in (".yaml", ".yml", ".json"):
            raise ConfigError(f"the text of a config is .py, .yaml, .yml or .json; got {file_format!r}.")
        try:
            sections = json.loads(cfg_str) if file_format == ".json" else read_yaml(cfg_str)
            return Config(_numbers(dict(sections), Path(f"text{file_format}")), cfg_text=cfg_str)
        except Exception as error:  # of the kinds of two readers
            raise ConfigError(f"the text of this config cannot be read: {error}.") from error

    def merge_from_dict(self, options: Mapping[str, Any], allow_list_keys: bool = True) -> None:
        """Override values by dotted keys: `{'optimizer.lr': 0.01, 'data.train.pipeline.0.type': 'X'}`.

        A key must be there already, so that a typo cannot pass; a leading `+` adds one (`+optimizer.nesterov`).
        Sections of the framework may be set whether the config has them or not.

        Raises:
            ConfigError: a key is not there (with the nearest one), or a value cannot be put where it says.
        """
        for key in options:
            if not key.startswith("+"):
                _check_override(self._cfg_dict, key)
        try:
            for key, value in options.items():
                super().merge_from_dict(dict([_mergeable(self._cfg_dict, key.lstrip("+"), value)]), allow_list_keys)
        except (KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"the options {dict(options)} do not fit the config: {error}") from error
        check_sections(self)


def parse_option(text: str) -> tuple[str, Any]:
    """`"optimizer.lr=1e-3"` to `("optimizer.lr", 0.001)`: Python literals, `true`/`false`/`none`, else the text.

    Raises:
        ConfigError: there is no `=` in it.
    """
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ConfigError(f"an option is written key=value, as in optimizer.lr=0.01; got '{text}'.")
    words = {"true": True, "false": False, "none": None}
    if value.lower() in words:
        return key, words[value.lower()]
    try:
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        if "," in value and not value.startswith(("[", "(", "{")):
            return key, [parse_option(f"{key}={item}")[1] for item in value.split(",") if item]
        return key, value


def check_sections(cfg: Config) -> None:
    """Raise `ConfigError` for a top-level name that is nearly a section's, or another framework's, or for no dict.

    Any other name is the config's own helper variable.
    """
    for name in _DICTS:
        value = cfg._cfg_dict.get(name)
        if value and not isinstance(value, dict):
            raise ConfigError(f"{name} ({SECTIONS[name]}) is written {name} = dict(…); got {value!r}.")
    for name in _TEXTS:
        value = cfg._cfg_dict.get(name)
        if value and not isinstance(value, (str, Path)):
            raise ConfigError(f"{name} ({SECTIONS[name]}) is a text, {name} = '…'; got {value!r}.")
    for name in cfg._cfg_dict:
        if name in SECTIONS:
            continue
        if name in _FOREIGN:
            raise ConfigError(f"'{name}' is a section of mmengine's runner; here it is {_FOREIGN[name]}.")
        close = nearest(name, SECTIONS, cutoff=0.85)
        if close is not None:
            raise ConfigError(
                f"'{name}' is no section of a config; did you mean '{close}' ({SECTIONS[close]})? "
                "A helper variable needs a name less like it."
            )


def require_sections(cfg: Config, names: Iterable[str], purpose: str) -> None:
    """Raise `ConfigError` when the config lacks one of `names`, which `purpose` ("training") needs."""
    missing = [f"{name} ({SECTIONS[name]})" for name in names if cfg.get(name) is None]
    if missing:
        raise ConfigError(f"{purpose} needs {', '.join(missing)}; the config {cfg.filename or ''} has none.")


def _existing(path: Path) -> Path:
    if path.is_dir():
        raise ConfigError(f"{path} is a folder; a config is a .py, .yaml, .yml or .json file.")
    if not path.is_file():
        shipped = find_shipped(path)
        if shipped is not None:
            return shipped
        siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise ConfigError(f"there is no config file {path}{suggest(path.name, siblings)}")
    if path.suffix not in (".py", ".yaml", ".yml", ".json"):
        raise ConfigError(f"a config is a .py, .yaml, .yml or .json file; got {path}.")
    return path


def _check_syntax(path: Path, children: tuple[Path, ...]) -> None:
    """Parse a Python config and its bases for syntax alone, since mmengine's message does not name the file."""
    if path in children:
        raise ConfigError(f"config {path} is its own base: {' -> '.join(map(str, (*children, path)))}.")
    if path.suffix != ".py":
        return
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    except (SyntaxError, UnicodeDecodeError, ValueError) as error:
        line = getattr(error, "lineno", None)
        raise ConfigError(f"config {path} is not Python: {error}" + (f" (line {line})." if line else ".")) from error
    for base in _bases(tree):
        base_path = path.parent / base
        if not base.startswith(("http:", "https:")) and "::" not in base:
            if not base_path.is_file():
                raise ConfigError(f"config {path} has the base '{base}', but there is no file {base_path}.")
            _check_syntax(base_path.resolve(), (*children, path.resolve()))


class _PlainYaml(YamlHandler):
    """mmengine's reader of YAML makes any object of Python that the file names, which runs code; this one does not."""

    def load_from_fileobj(self, file: Any, **kwargs: Any) -> Any:
        return read_yaml(file)


_READING = threading.RLock()


@contextmanager
def _guarded() -> Iterator[None]:
    """Let mmengine read YAML by `read_yaml`, and Python not at all in safe mode, in a config and in all its bases."""
    read_file = _MMEngineConfig._file2dict

    def read(filename: str, *args: Any, **kwargs: Any) -> Any:
        if str(filename).endswith(".py"):
            refuse_code(f"the Python config {filename}")
        return read_file(filename, *args, **kwargs)

    with _READING:
        handlers = {suffix: file_handlers[suffix] for suffix in ("yaml", "yml")}
        file_handlers.update(dict.fromkeys(handlers, _PlainYaml()))
        _MMEngineConfig._file2dict = staticmethod(read)
        try:
            yield
        finally:
            _MMEngineConfig._file2dict = staticmethod(read_file)
            file_handlers.update(handlers)


def _bases(tree: ast.Module) -> list[str]:
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "_base_":
            try:
                value = ast.literal_eval(node.value)
            except ValueError:
                return []
            return [value] if isinstance(value, str) else list(value)
    return []


def _line(error: BaseException, path: Path) -> str:
    """` (line 7)` when the config's own code raised `error`."""
    lines = []
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename.endswith(path.name):
            lines.append(trace.tb_lineno)
        trace = trace.tb_next
    return f" (line {lines[-1]})" if lines else ""


def _numbers(value: Any, path: Path) -> Any:
    """YAML 1.1 reads `1e-3` as a string: in YAML and JSON files a string that is a float is one."""
    if path.suffix == ".py":
        return value
    if isinstance(value, dict):
        return type(value)({key: _numbers(item, path) for key, item in value.items()})
    if isinstance(value, list):
        return [_numbers(item, path) for item in value]
    if isinstance(value, str) and _FLOAT.fullmatch(value):
        return float(value)
    return value


def _with_total_epochs(sections: Any) -> Any:
    """mmcls's `runner = dict(type='EpochBasedRunner', max_epochs=N)` becomes `total_epochs = N`.

    Any other runner stays, and is refused with the sections of other frameworks.
    """
    runner = sections.get("runner")
    if not isinstance(runner, dict) or {**runner, "max_epochs": None} != dict(type="EpochBasedRunner", max_epochs=None):
        return sections
    epochs = runner.get("max_epochs")
    if sections.get("total_epochs") not in (None, epochs):
        raise ConfigError(
            f"runner.max_epochs={epochs} and total_epochs={sections['total_epochs']} contradict each other; "
            "give one of them."
        )
    rest = {name: value for name, value in sections.items() if name != "runner"}
    return type(sections)({**rest, "total_epochs": epochs})


def _mergeable(root: ConfigDict, dotted: str, value: Any) -> tuple[str, Any]:
    """An override in the form that mmengine merges, which puts no plain value into a list and no dict over None.

    An item of a list, `a.b.1=x`, becomes `a.b=[…, x, …]`; a dict in the place of None replaces it.
    """
    parent, _, last = dotted.rpartition(".")
    node: Any = root
    for part in parent.split(".") if parent else ():
        if isinstance(node, (list, tuple)) and part.isdigit() and int(part) < len(node):
            node = node[int(part)]
        else:
            node = node.get(part) if isinstance(node, dict) else node
    if node is None:
        return _mergeable(root, parent, {last: value})
    if isinstance(node, dict) and isinstance(value, dict) and last in node and node[last] is None:
        return dotted, {**value, "_delete_": True}
    if isinstance(node, (list, tuple)) and last.isdigit() and int(last) < len(node) and not isinstance(value, dict):
        return _mergeable(root, parent, [*node[: int(last)], value, *node[int(last) + 1 :]])
    return dotted, value


def _check_override(root: ConfigDict, dotted: str) -> None:
    """Raise unless every part of `dotted` exists, or the section it names is a known one that the config lacks."""
    node: Any = root
    parts = dotted.split(".")
    if parts[0] not in root and parts[0] in SECTIONS:
        return
    for depth, part in enumerate(parts):
        known = [str(i) for i in range(len(node))] if isinstance(node, (list, tuple)) else list(node or ())
        if depth == 0:
            known += SECTIONS
        if isinstance(node, (list, tuple)) and part not in known:
            raise ConfigError(
                f"the option '{dotted}': '{'.'.join(parts[:depth])}' is a list of {len(node)}, whose items are "
                f"numbered from 0; it has no item '{part}'. To make it longer give the whole list."
            )
        if part not in known:
            full = ".".join((*parts[:depth], part))
            hint = suggest(part, known)
            raise ConfigError(
                f"the option '{dotted}' overrides a key that is not there: '{full}'{hint} "
                f"To add a new key write +{dotted}=…"
            )
        node = node[int(part)] if isinstance(node, (list, tuple)) else node.get(part)
        if depth + 1 < len(parts) and not isinstance(node, (dict, list, tuple)):
            if depth == 0 and node is None:
                return
            raise ConfigError(
                f"the option '{dotted}' goes into '{'.'.join(parts[: depth + 1])}', which is the value {node!r}; "
                "only a dict or a list has keys."
            )
