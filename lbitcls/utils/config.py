"""Config files: mmengine's `Config` without its pitfalls.

A syntax error names its file; a file with imports is never mistaken for mmengine's "lazy" kind; `1e-3` in YAML is a
number, and nothing in YAML is executed; an option for a missing key, a misspelled section, or a section of another
framework is a `ConfigError` with a suggestion.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmengine.config import Config as _MMEngineConfig

from lbitcls.utils.config_files import MARK, existing, numbers, read_config
from lbitcls.utils.config_override import check_override, mergeable
from lbitcls.utils.config_text import format_config, plain_values, read_sections, with_lists
from lbitcls.utils.custom import import_custom
from lbitcls.utils.errors import ConfigError, nearest
from lbitcls.utils.files import write_whole
from lbitcls.utils.safe import read_yaml
from lbitcls.utils.shapes import check_texts

SECTIONS: dict[str, str] = {
    "model": "the classifier: backbone, neck, head",
    "data": "data sets, pipelines, batch size, workers",
    "data_root": "base folder of relative data paths",
    "evaluation": "validation interval and metric",
    "quant_transformer": "layers to quantize, and how",
    "calibration": "when to initialize the quantizers, and on how much data",
    "progressive": "bits that decrease during the run",
    "optimizer": "a torch optimizer by name",
    "optimizer_config": "gradient clipping and accumulation",
    "lr_config": "learning-rate policy and warmup",
    "total_epochs": "length of the run",
    "checkpoint_config": "how often to save, how many to keep",
    "log_config": "loggers and their interval",
    "log_level": "INFO, DEBUG, WARNING",
    "load_from": "weights to initialize from",
    "resume_from": "run to resume",
    "work_dir": "output folder of a run",
    "workflow": "order of train and val epochs",
    "dist_params": "backend of torch.distributed, and time limits",
    "parallel": "how processes share the model: ddp or fsdp",
    "fp16": "float16 autocast",
    "amp": "autocast and its type",
    "seed": "seed of everything random",
    "deterministic": "only deterministic kernels",
    "cudnn_benchmark": "let cuDNN choose kernels by timing",
    "find_unused_parameters": "DDP's option of this name",
    "sycbn": "BatchNorm statistics over all GPUs",
    "cpu_only": "train on the CPU",
    "device": "device to train on",
    "num_threads": "CPU threads per process",
    "gpu_ids": "GPUs to train on",
    "custom_hooks": "custom hooks",
    "custom_imports": "custom modules to import",
    "compile": "torch.compile the model",
    "kernels": "of quantizers: auto, plain, fused or integer",
    "not_finite": "what to do if the loss is not finite",
    "ema": "moving average of the weights",
    "distill": "a teacher whose outputs the model learns",
    "feature_cache": "cache the features of a frozen backbone",
    "channels_last": "memory format of images and convolutions",
    "export": "export the best weights as an integer model when the run is complete",
}

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
    "runner": "total_epochs (mmcls's dict(type='EpochBasedRunner', max_epochs=N) is accepted)",
}


class Config(_MMEngineConfig):
    """Config with its sections as attributes and keys (`cfg.model.backbone.depth`, `cfg['model']`).

    Example:
        >>> cfg = Config.fromfile("configs/quickstart/digits_lsq_4w4f.py")
        >>> cfg.merge_from_dict({"optimizer.lr": 0.01, "compile": True})
    """

    if TYPE_CHECKING:  # mmengine publishes no types

        def __init__(
            self,
            cfg_dict: Mapping[str, Any] | None = None,
            cfg_text: str | None = None,
            filename: str | Path | None = None,
        ) -> None: ...

    @staticmethod
    def fromfile(filename: str | Path, **kwargs: Any) -> Config:
        """Read a config file with its `_base_` files, check the section names, and import its `custom_imports`.

        The file is a `.py`, `.yaml`, `.yml` or `.json` file. A missing path that starts with `configs/` is searched for
        among the package's configs. A Python config is a program and is executed; in safe mode
        (`lbitcls.utils.safe`) it is refused, as are Python bases and `custom_imports`.

        Raises:
            ConfigError: The file is missing, cannot be read, or has a name close to a section's; a module of
                `custom_imports` is missing; it would run code in safe mode.
        """
        path = existing(Path(filename).expanduser())
        loaded = read_config(path, **kwargs)
        sections = _with_total_epochs(_values(numbers(loaded._cfg_dict, path)))
        cfg = Config(sections, cfg_text=loaded.text.replace(MARK, ""), filename=str(path))
        check_sections(cfg)
        import_custom(cfg.get("custom_imports"))
        return cfg

    @staticmethod
    def fromstring(cfg_str: str, file_format: str = ".py") -> Config:
        """Parse a config from text, such as a checkpoint's `meta['config']`. Nothing in it is executed.

        Raises:
            ConfigError: It contains more than `name = value` with plain values.
        """
        if file_format == ".py":
            return Config(read_sections(cfg_str), cfg_text=cfg_str)
        if file_format not in (".yaml", ".yml", ".json"):
            raise ConfigError(f"the format of a config's text must be .py, .yaml, .yml or .json; got {file_format!r}.")
        try:
            sections = json.loads(cfg_str) if file_format == ".json" else read_yaml(cfg_str)
            return Config(numbers(dict(sections), Path(f"text{file_format}")), cfg_text=cfg_str)
        except Exception as error:  # from either of two readers
            raise ConfigError(f"the text of this config cannot be read: {error}.") from error

    def merge_from_dict(self, options: Mapping[str, Any], allow_list_keys: bool = True) -> None:
        """Override values by dotted keys: `{'optimizer.lr': 0.01, 'data.train.pipeline.0.type': 'X'}`.

        A key must exist, so that a typo cannot pass; a leading `+` adds one to a section (`+optimizer.nesterov`). The
        framework's sections may be set even if the config lacks them. A helper variable cannot be overridden: the
        config's file has used its value already.

        Raises:
            ConfigError: A key does not exist (with the nearest one), nothing reads it, or a value cannot be set there.
        """
        for key in options:
            check_override(self._cfg_dict, key, SECTIONS)
        try:
            for key, value in options.items():
                super().merge_from_dict(dict([mergeable(self._cfg_dict, key.lstrip("+"), value)]), allow_list_keys)
        except (KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"the options {dict(options)} do not fit the config: {error}") from error
        check_sections(self)

    @property
    def pretty_text(self) -> str:
        """Return the config as Python text that reads back equal.

        Raises:
            ConfigError: A value cannot be written as text.
        """
        return format_config(self.to_dict())

    def dump(self, file: str | Path | None = None) -> str | None:
        """Write the config to `file` atomically, or return its text if `file` is None.

        In a `.yaml`, `.yml` or `.json` file, tuples, ranges and sets become lists.

        Raises:
            ConfigError: A value cannot be written as text.
        """
        text = self.pretty_text
        if file is None:
            return text
        path = Path(file)
        if path.suffix == ".py":
            write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
        else:
            _MMEngineConfig(with_lists(self.to_dict())).dump(path)
        return None


def parse_option(text: str) -> tuple[str, Any]:
    """Parse `"optimizer.lr=1e-3"` to `("optimizer.lr", 0.001)`: a Python literal, `true`/`false`/`none`, or a string.

    Raises:
        ConfigError: The text contains no `=`.
    """
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ConfigError(f"an option must be key=value, as in optimizer.lr=0.01; got '{text}'.")
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
    """Raise `ConfigError` for a top-level name that is nearly a section's, or is another framework's.

    Any other top-level name is the config's own helper variable.
    """
    check_texts(cfg._cfg_dict)
    for name in cfg._cfg_dict:
        if name in SECTIONS:
            continue
        if name in _FOREIGN:
            raise ConfigError(f"'{name}' is a section of mmengine's runner; use {_FOREIGN[name]} instead.")
        close = nearest(name, SECTIONS, cutoff=0.85)
        if close is not None:
            raise ConfigError(
                f"'{name}' is not a section of a config. Did you mean '{close}' ({SECTIONS[close]})? "
                "A helper variable needs a less similar name."
            )


def _values(sections: Any) -> Any:
    """Return `sections` as plain values, without helpers that are not, such as imported classes."""
    kept = {name: plain_values(value) for name, value in sections.items() if name in SECTIONS or _is_plain(value)}
    return type(sections)(kept)


def _is_plain(value: Any) -> bool:
    try:
        format_config({"helper": value})
    except ConfigError:
        return False
    return True


def _with_total_epochs(sections: Any) -> Any:
    """Replace mmcls's `runner = dict(type='EpochBasedRunner', max_epochs=N)` by `total_epochs = N`.

    Any other runner stays, and is refused with the sections of other frameworks.
    """
    runner = sections.get("runner")
    if not isinstance(runner, dict) or {**runner, "max_epochs": None} != dict(type="EpochBasedRunner", max_epochs=None):
        return sections
    epochs = runner.get("max_epochs")
    if sections.get("total_epochs") not in (None, epochs):
        raise ConfigError(
            f"runner.max_epochs={epochs} and total_epochs={sections['total_epochs']} contradict each other; "
            "give only one of them."
        )
    rest = {name: value for name, value in sections.items() if name != "runner"}
    return type(sections)({**rest, "total_epochs": epochs})
