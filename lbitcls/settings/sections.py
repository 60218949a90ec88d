"""`Settings`: a whole config, each section parsed."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Le

from lbitcls.settings.base import Section
from lbitcls.settings.export import ExportSection
from lbitcls.settings.fields import (
    INTEGER,
    ITEMS,
    Component,
    Count,
    Doc,
    Index,
    Says,
    Shorthand,
    Switch,
    Text,
)
from lbitcls.settings.learning_rate import LrConfig
from lbitcls.settings.parse import parse
from lbitcls.settings.training_sections import (
    Autocast,
    CalibrationConfig,
    CheckpointConfig,
    EmaConfig,
    EvaluationConfig,
    FeatureCacheConfig,
    LogConfig,
    OptimizerConfig,
    WorkflowStep,
)
from lbitcls.utils.config import SECTIONS, Config
from lbitcls.utils.config_text import format_config
from lbitcls.utils.errors import ConfigError

SPLITS = ("train", "val", "test", "calibration")
Dataset = Annotated[Component | None, Says("a dict(type='…', pipeline=[…], …)")]
Items = Annotated[tuple[Component, ...], ITEMS]
_WORKFLOW = Says("a list with 'train', such as [('train', 1)] or [('train', 2), ('val', 1)]")
Epochs = Annotated[int, INTEGER, Ge(1), Le(10**6)]
Seed = Annotated[int, INTEGER, Ge(0), Le(2**63 - 1)]
Threads = Annotated[int, INTEGER, Ge(1), Le(4096)]
_DEFAULTS = ("fp16", "feature_cache")  # an empty dict means the section with its defaults
_NUMBERS = ("seed", "total_epochs", "num_threads")  # 0 has a meaning, or is wrong; elsewhere it is a switch that is off


@dataclass(frozen=True, kw_only=True)
class DataConfig(Section):
    """Data sets, batch size, workers."""

    PLACE: ClassVar[str] = "data"

    samples_per_gpu: Annotated[Count, Doc("Images in a batch of each process.")] = 32
    workers_per_gpu: Annotated[
        int, INTEGER, Ge(0), Le(1024), Doc("Processes that read and augment; 0: none beside the one that trains.")
    ] = 0
    drop_last: Annotated[Switch, Doc("Whether to leave out a last training batch that is not full.")] = False
    train: Annotated[Dataset, Doc("The data set to train on.")] = None
    val: Annotated[Dataset, Doc("The data set to validate on.")] = None
    test: Annotated[Dataset, Doc("The data set to test on; None: data.val.")] = None
    calibration: Annotated[Dataset, Doc("The data set to calibrate on; None: data.train.")] = None

    def dataset(self, split: str) -> Component | None:
        """The section of the data set `split`; None where there is none."""
        return getattr(self, split, None) if split in SPLITS else None

    @property
    def tested(self) -> str:
        """The split to test on: `test`, or `val` where that is missing."""
        return "test" if self.test is not None else "val"


@dataclass(frozen=True, kw_only=True)
class DistParams(Section):
    """Several processes."""

    PLACE: ClassVar[str] = "dist_params"

    backend: Annotated[Text | None, Doc("Backend of torch.distributed, nccl or gloo; None: as the device needs.")] = (
        None
    )


@dataclass(frozen=True, kw_only=True)
class CustomImports(Section):
    """Modules of the user's own."""

    PLACE: ClassVar[str] = "custom_imports"

    imports: Annotated[Text | Annotated[tuple[Text, ...], ITEMS] | None, Doc("Names of modules to import.")] = None
    allow_failed_imports: Annotated[Switch, Doc("Whether a module may be missing.")] = False


@dataclass(frozen=True, kw_only=True)
class Settings(Section):
    """A config, parsed: each section with its defaults; components of registries are dicts with `type`."""

    model: Annotated[Component, Doc("The classifier: backbone, neck, head.")] = field(default_factory=dict)
    data: Annotated[DataConfig, Doc("Data sets, batch size, workers.")] = field(default_factory=DataConfig)
    data_root: Annotated[
        Text | Annotated[tuple[Text | None, ...], ITEMS] | None,
        Says("a folder, '…', or a list of them"),
        Doc("Folders below which relative data paths are looked for first."),
    ] = None
    evaluation: Annotated[EvaluationConfig | None, Doc("How often and by what to validate.")] = None
    quant_transformer: Annotated[Component | None, Doc("Which layers become quantized, and how.")] = None
    calibration: Annotated[
        CalibrationConfig | None, Doc("When and from how much data the quantizers take their first values.")
    ] = None
    optimizer: Annotated[Component, Doc("An optimizer of torch.optim by its name, with its arguments.")] = field(
        default_factory=dict
    )
    optimizer_config: Annotated[OptimizerConfig, Doc("Gradient clipping and accumulation.")] = field(
        default_factory=OptimizerConfig
    )
    lr_config: Annotated[LrConfig | None, Doc("Policy of the learning rate, and its warm-up; None: a fixed rate.")] = (
        None
    )
    total_epochs: Annotated[Epochs | None, Doc("Length of the run in epochs.")] = None
    checkpoint_config: Annotated[
        CheckpointConfig, Doc("How often to save, and how many to keep; None in a config: only at the end.")
    ] = field(default_factory=CheckpointConfig)
    log_config: Annotated[LogConfig, Doc("Loggers and their interval.")] = field(default_factory=LogConfig)
    log_level: Annotated[Text | Index, Doc("The least level of messages: DEBUG, INFO, WARNING, ERROR.")] = "INFO"
    load_from: Annotated[Text | None, Doc("Weights to start from: a file or a published name.")] = None
    resume_from: Annotated[Text | None, Doc("A checkpoint of a run to resume.")] = None
    work_dir: Annotated[Text | None, Doc("The folder of the run; None: work_dirs/ and the config's name.")] = None
    workflow: Annotated[
        Annotated[tuple[WorkflowStep, ...], ITEMS],
        _WORKFLOW,
        Doc("Order of train and val epochs."),
    ] = (("train", 1),)
    dist_params: Annotated[DistParams, Doc("Backend of torch.distributed.")] = field(default_factory=DistParams)
    fp16: Annotated[Autocast | None, Shorthand(text="dtype"), Doc("The older way to write amp with float16.")] = None
    amp: Annotated[Autocast | None, Shorthand(text="dtype"), Doc("Autocast: True, a type, or its options.")] = None
    seed: Annotated[Seed | None, Doc("Seed of everything random; None: drawn and logged.")] = None
    deterministic: Annotated[Switch, Doc("Only kernels that give the same bits each time.")] = False
    cudnn_benchmark: Annotated[Switch, Doc("Let cuDNN choose kernels by timing.")] = False
    find_unused_parameters: Annotated[Switch, Doc("As DistributedDataParallel takes it.")] = False
    sycbn: Annotated[Switch, Doc("BatchNorm statistics over all GPUs.")] = False
    cpu_only: Annotated[Switch, Doc("Train on the CPU, whatever device says.")] = False
    device: Annotated[Text | None, Doc("Device: cpu, cuda, cuda:1; None: the first GPU, or the CPU.")] = None
    num_threads: Annotated[Threads | None, Doc("Threads of each process on the CPU; None: PyTorch's choice.")] = None
    gpu_ids: Annotated[
        Annotated[tuple[Index, ...], ITEMS] | None,
        Says("a list of integers ≥ 0"),
        Doc("Numbers of the GPUs, one for each process of a node."),
    ] = None
    custom_hooks: Annotated[Items, Doc("Hooks of your own.")] = ()
    custom_imports: Annotated[CustomImports, Doc("Modules of your own to import.")] = field(
        default_factory=CustomImports
    )
    compile: Annotated[Switch, Doc("torch.compile the model.")] = False
    kernels: Annotated[Literal["auto", "plain", "fused"], Doc("Kernels of quantizers.")] = "auto"
    ema: Annotated[EmaConfig | None, Shorthand(), Doc("Exponential moving average of the weights.")] = None
    feature_cache: Annotated[
        FeatureCacheConfig | None, Shorthand(), Doc("Keep the features of a frozen backbone in memory.")
    ] = None
    channels_last: Annotated[Switch, Doc("channels_last as memory format of images and convolutions.")] = False
    export: Annotated[
        ExportSection | None, Doc("Write the best weights as an integer model when the run is complete.")
    ] = None

    @property
    def source(self) -> Config:
        """The config that it was read from, as logs, checkpoints and `model.cfg` have it."""
        return self.__dict__["_source"]

    @property
    def text(self) -> str:
        """The config as Python text that reads back equal."""
        return self.source.pretty_text

    @property
    def epochs(self) -> int:
        """`total_epochs`; 0 where it is not given."""
        return self.total_epochs or 0

    @property
    def roots(self) -> list[str | None]:
        """The folders of `data_root`."""
        return list(self.data_root) if isinstance(self.data_root, tuple) else [self.data_root]

    @property
    def run_folder(self) -> Path:
        """`work_dir`, or `work_dirs/` and the config's name."""
        stem = Path(self.source.filename).stem if self.source.filename else "run"
        return Path(self.work_dir or Path("work_dirs") / stem).expanduser()

    def changed(self, **sections: Any) -> Settings:
        """A copy with other values of sections, in `source` too."""
        config = copy.deepcopy(self.source)
        config.merge_from_dict(sections)
        return _of(config)

    def check(self) -> None:
        if not any(mode == "train" for mode, _ in self.workflow):
            raise ValueError(f"workflow must be {_WORKFLOW.text}; got {list(self.workflow)!r}.")

    def require(self, names: Iterable[str], purpose: str) -> None:
        """Raise `ConfigError` when a section of `names`, which `purpose` ("training") needs, is not given."""
        missing = [f"{name} ({SECTIONS[name]})" for name in names if getattr(self, name) in (None, {}, DataConfig())]
        if missing:
            config = self.source.filename or ""
            raise ConfigError(f"{purpose} needs {', '.join(missing)}; the config {config} has none.")


def read_settings(cfg: ConfigLike) -> Settings:
    """Parse a config: the one door between configs and the code that they set.

    Args:
        cfg: a config, the path of its file, a mapping of sections; or settings, which come back as they are.

    Raises:
        ConfigError: values are wrong; the message names all of them, one a line.

    Example:
        >>> read_settings({"evaluation": {"interval": 2}}).evaluation.interval
        2
    """
    if isinstance(cfg, Settings):
        return cfg
    return _of(as_config(cfg))


def as_config(cfg: ConfigLike) -> Config:
    """The config that a path, a mapping or settings stand for."""
    if isinstance(cfg, Settings):
        return cfg.source
    if isinstance(cfg, (str, os.PathLike)):
        return Config.fromfile(os.fspath(cfg))
    return cfg if isinstance(cfg, Config) else Config(dict(cfg))


def _of(config: Config) -> Settings:
    try:
        format_config(config.to_dict())  # what is none of a config's values has its own message
    except RecursionError:
        raise ConfigError("a value of the config contains itself, or is nested too deeply.") from None
    settings: Settings = parse(Settings, given_sections(dict(config)))
    object.__setattr__(settings, "_source", config)
    return settings


def given_sections(sections: Mapping[str, Any]) -> dict[str, Any]:
    """The sections among the names of a config, without those that are None, False or empty: they are not wanted.

    `checkpoint_config = None` has a meaning of its own.
    """
    known = {name: value for name, value in sections.items() if name in SECTIONS}
    if known.get("checkpoint_config", {}) is None:
        known["checkpoint_config"] = {"interval": -1}
    return {name: value for name, value in known.items() if _wanted(name, value)}


def _wanted(name: str, value: Any) -> bool:
    if value is None or value is False:
        return value is False and name in _NUMBERS
    return name in _NUMBERS or bool(value) or (value == {} and name in _DEFAULTS)


ConfigLike = Config | Settings | Mapping[str, Any] | str | os.PathLike[str]
"""What public functions take as a config."""
