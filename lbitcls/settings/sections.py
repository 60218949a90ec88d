"""`Settings`: a config with every section parsed."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, ClassVar

from annotated_types import Ge, Le

from lbitcls.settings.base import Section
from lbitcls.settings.distill import DistillConfig
from lbitcls.settings.export import ExportSection
from lbitcls.settings.fields import (
    DEVICE,
    INTEGER,
    ITEMS,
    Component,
    Count,
    Doc,
    Factor,
    Index,
    OptIn,
    Says,
    Shorthand,
    Switch,
    Text,
    Unset,
    copied,
)
from lbitcls.settings.learning_rate import LrConfig
from lbitcls.settings.not_finite import NotFiniteConfig
from lbitcls.settings.parallel import ParallelConfig, fsdp_obstacle
from lbitcls.settings.parse import TOO_DEEP, parse
from lbitcls.settings.progressive import ProgressiveConfig
from lbitcls.settings.training_sections import (
    Autocast,
    CalibrationConfig,
    CheckpointConfig,
    EmaConfig,
    EvaluationConfig,
    FeatureCacheConfig,
    KernelsConfig,
    KernelsName,
    LogConfig,
    OptimizerConfig,
    Positive,
    WorkflowStep,
)
from lbitcls.utils.config import SECTIONS, Config
from lbitcls.utils.config_text import format_config
from lbitcls.utils.errors import ConfigError, shown

SPLITS = ("train", "val", "test", "calibration")
Dataset = Annotated[Component | None, Says("a dict(type='…', pipeline=[…], …)")]
Items = Annotated[tuple[Component, ...], ITEMS]
_WORKFLOW = Says("a list with 'train', such as [('train', 1)] or [('train', 2), ('val', 1)]")
Epochs = Annotated[int, INTEGER, Ge(1), Le(10**6)]
Seed = Annotated[int, INTEGER, Ge(0), Le(2**63 - 1)]
Threads = Annotated[int, INTEGER, Ge(1), Le(4096)]
_DEFAULTS = ("fp16", "feature_cache")  # an empty dict selects the defaults
NUMBERS = ("seed", "total_epochs", "num_threads")
"""Sections that False or an empty value does not switch off: it is an error."""
LISTS = ("data_root", "workflow", "gpu_ids", "custom_hooks")
"""Sections that an empty list switches off; in others it is an error."""


@dataclass(frozen=True, kw_only=True)
class DataConfig(Section):
    """Data sets, batch size, workers."""

    PLACE: ClassVar[str] = "data"

    samples_per_gpu: Annotated[Count, Doc("Batch size of each process, in images.")] = 32
    workers_per_gpu: Annotated[
        int,
        INTEGER,
        Ge(0),
        Le(1024),
        Doc("Data loading processes per training process; 0: it loads the images itself."),
    ] = 0
    drop_last: Annotated[OptIn, Doc("Drop the last training batch of an epoch if it is not full.")] = False
    train: Annotated[Dataset, Doc("Data set to train on.")] = None
    val: Annotated[Dataset, Doc("Data set to validate on.")] = None
    test: Annotated[Dataset, Doc("Data set to test on; None: data.val.")] = None
    calibration: Annotated[Dataset, Doc("Data set to calibrate on; None: data.train.")] = None

    def dataset(self, split: str) -> Component | None:
        """Return the section of the data set `split`; None if there is none."""
        return getattr(self, split, None) if split in SPLITS else None

    @property
    def tested(self) -> str:
        """Split to test on: `test`, or `val` if that is missing."""
        return "test" if self.test is not None else "val"


@dataclass(frozen=True, kw_only=True)
class DistParams(Section):
    """Distributed training."""

    PLACE: ClassVar[str] = "dist_params"

    backend: Annotated[
        Text | None,
        Unset(False, None),
        Doc("Backend of torch.distributed, nccl or gloo; None: chosen for the device."),
    ] = None
    timeout: Annotated[
        Positive | None, Doc("Seconds that a collective waits for the other processes; None: a day.")
    ] = None
    hang_after: Annotated[
        Factor,
        Doc("Seconds without processor time after which a process counts as hanging, which ends the run; 0: never."),
    ] = 40.0


@dataclass(frozen=True, kw_only=True)
class CustomImports(Section):
    """User's own modules."""

    PLACE: ClassVar[str] = "custom_imports"

    imports: Annotated[
        Text | Annotated[tuple[Text, ...], ITEMS] | None, Unset(False, None), Doc("Names of modules to import.")
    ] = None
    allow_failed_imports: Annotated[OptIn, Doc("Continue if a module cannot be imported.")] = False


@dataclass(frozen=True, kw_only=True)
class Settings(Section):
    """Parsed config: each section with its defaults; registry components are dicts with `type`."""

    model: Annotated[Component, Doc("Classifier: backbone, neck, head.")] = field(default_factory=dict)
    data: Annotated[DataConfig, Doc("Data sets, batch size, workers.")] = field(default_factory=DataConfig)
    data_root: Annotated[
        Text | Annotated[tuple[Text | None, ...], ITEMS] | None,
        Says("a folder, '…', or a list of them"),
        Doc("Folder or folders that are searched first for relative data paths."),
    ] = None
    evaluation: Annotated[
        EvaluationConfig | None, Doc("Validation interval and metrics, and the rule for the best weights.")
    ] = None
    quant_transformer: Annotated[Component | None, Doc("Layers to quantize, and how; None: a float model.")] = None
    calibration: Annotated[
        CalibrationConfig | None, Doc("When to initialize the quantizers, and on how much data.")
    ] = None
    progressive: Annotated[
        ProgressiveConfig | None, Doc("Bits that decrease during the run; None: those of quant_transformer throughout.")
    ] = None
    optimizer: Annotated[Component, Doc("Optimizer of torch.optim by name, with its arguments.")] = field(
        default_factory=dict
    )
    optimizer_config: Annotated[OptimizerConfig, Doc("Gradient clipping and accumulation.")] = field(
        default_factory=OptimizerConfig
    )
    not_finite: Annotated[
        NotFiniteConfig,
        Shorthand(true=False, text="action"),
        Doc("Reaction to a loss that is not finite: an action, or a dict of options."),
    ] = field(default_factory=NotFiniteConfig)
    lr_config: Annotated[LrConfig | None, Doc("Learning rate policy and warmup; None: a constant learning rate.")] = (
        None
    )
    total_epochs: Annotated[Epochs | None, Doc("Length of the run in epochs.")] = None
    checkpoint_config: Annotated[
        CheckpointConfig, Doc("Interval of checkpoints and number to keep; None in a config: save only at the end.")
    ] = field(default_factory=CheckpointConfig)
    log_config: Annotated[LogConfig, Doc("Loggers, their interval, and the figures of a run.")] = field(
        default_factory=LogConfig
    )
    log_level: Annotated[Text | Index, Doc("Lowest level of logged messages: DEBUG, INFO, WARNING, ERROR.")] = "INFO"
    load_from: Annotated[Text | None, Doc("Weights to initialize from: a checkpoint file or a published name.")] = None
    resume_from: Annotated[Text | None, Doc("Checkpoint to resume, unless `--resume` finds a newer one.")] = None
    work_dir: Annotated[Text | None, Doc("Work directory of the run; None: work_dirs/ plus the config's name.")] = None
    workflow: Annotated[
        Annotated[tuple[WorkflowStep, ...], ITEMS],
        _WORKFLOW,
        Doc("Order of training and validation epochs, each as (mode, number of epochs)."),
    ] = (("train", 1),)
    dist_params: Annotated[DistParams, Doc("Backend of torch.distributed, and time limits.")] = field(
        default_factory=DistParams
    )
    parallel: Annotated[
        ParallelConfig,
        Shorthand(true=False, text="kind"),
        Doc("Model on several processes: whole in each (ddp) or distributed (fsdp)."),
    ] = field(default_factory=ParallelConfig)
    fp16: Annotated[
        Autocast | None, Shorthand(text="dtype"), Doc("Older spelling of amp, with float16 by default.")
    ] = None
    amp: Annotated[
        Autocast | None,
        Shorthand(text="dtype"),
        Doc("Mixed precision by autocast: True, a data type, or a dict of options."),
    ] = None
    seed: Annotated[Seed | None, Doc("Random seed of the run; None: drawn at random and logged.")] = None
    deterministic: Annotated[Switch, Doc("Use only kernels that give bit-identical results each time.")] = False
    cudnn_benchmark: Annotated[Switch, Doc("Let cuDNN choose its kernels by timing them.")] = False
    find_unused_parameters: Annotated[
        Switch, Doc("DistributedDataParallel's option: allow parameters without a gradient.")
    ] = False
    sycbn: Annotated[Switch, Doc("Compute BatchNorm statistics over all GPUs.")] = False
    cpu_only: Annotated[Switch, Doc("Train on the CPU, regardless of device.")] = False
    device: Annotated[
        Annotated[str, DEVICE] | None,
        Says("'auto', 'cpu', 'cuda', 'cuda:N' or N, the index of a GPU"),
        Doc("Device to run on, such as cpu, cuda or cuda:1; None or auto: the first GPU, or else the CPU."),
    ] = None
    num_threads: Annotated[Threads | None, Doc("CPU threads per process; None: PyTorch's choice.")] = None
    gpu_ids: Annotated[
        Annotated[tuple[Index, ...], ITEMS] | None,
        Says("a list of integers ≥ 0, such as [0]"),
        Doc("Indices of the GPUs to use, one per process of a node."),
    ] = None
    custom_hooks: Annotated[Items, Doc("Hooks of your own, added to those of every run.")] = ()
    custom_imports: Annotated[CustomImports, Doc("Modules of your own to import.")] = field(
        default_factory=CustomImports
    )
    compile: Annotated[Switch, Doc("Compile the model with torch.compile.")] = False
    kernels: Annotated[
        KernelsConfig,
        KernelsName(),
        Doc("Kernels of quantizers and quantized layers: a kind, or a dict of options."),
    ] = field(default_factory=KernelsConfig)
    distill: Annotated[DistillConfig | None, Doc("Teacher whose outputs the model learns; None: labels only.")] = None
    ema: Annotated[EmaConfig | None, Shorthand(), Doc("Average of the weights: True, or a dict of options.")] = None
    feature_cache: Annotated[
        FeatureCacheConfig | None,
        Shorthand(),
        Doc("Keep the features of a frozen backbone in memory: True, or a dict of options."),
    ] = None
    channels_last: Annotated[Switch, Doc("Use the memory format channels_last for images and convolutions.")] = False
    export: Annotated[
        ExportSection | None, Doc("Export of the best weights when the run is complete; None: no export.")
    ] = None

    @property
    def source(self) -> Config:
        """Config that it was parsed from, as stored in logs, checkpoints and `model.cfg`."""
        if "_source" not in self.__dict__:  # made without a config
            object.__setattr__(self, "_source", Config(_given(self, Settings())))
        return self.__dict__["_source"]

    @property
    def text(self) -> str:
        """Config as Python text, which reads back as an equal config."""
        return self.source.pretty_text

    @property
    def epochs(self) -> int:
        """`total_epochs`; 0 if not given."""
        return self.total_epochs or 0

    @property
    def roots(self) -> list[str | None]:
        """Folders of `data_root`."""
        return list(self.data_root) if isinstance(self.data_root, tuple) else [self.data_root]

    @property
    def run_folder(self) -> Path:
        """`work_dir`, or `work_dirs/` plus the config's name."""
        stem = Path(self.source.filename).stem if self.source.filename else "run"
        try:
            return Path(self.work_dir or Path("work_dirs") / stem).expanduser()
        except RuntimeError as error:  # ~nobody
            raise ConfigError(f"work_dir must be a folder; got {self.work_dir!r}: {error}") from None

    def changed(self, **sections: Any) -> Settings:
        """Return a copy with other section values, also in `source`."""
        config = copy.deepcopy(self.source)
        config.merge_from_dict(sections)
        return _of(config)

    def check(self) -> None:
        if not any(mode == "train" for mode, _ in self.workflow):
            raise ValueError(f"workflow must be {_WORKFLOW.text}; got {list(self.workflow)!r}.")
        if self.distill is not None and self.feature_cache is not None:
            raise ValueError("distill needs images for the teacher, which feature_cache replaces; remove one of them.")
        if self.parallel.kind == "fsdp" and (obstacle := fsdp_obstacle(self)):
            raise ValueError(obstacle)

    def require(self, names: Iterable[str], purpose: str) -> None:
        """Raise `ConfigError` if a section in `names`, which `purpose` ("training") needs, is missing."""
        missing = [name for name in names if getattr(self, name) in (None, {}, DataConfig())]
        if missing:
            raise ConfigError(lacking(missing, purpose, self.source))


def lacking(names: Iterable[str], purpose: str, config: Config) -> str:
    """Return the message that sections which `purpose` ("training") needs are missing in a config."""
    needed = ", ".join(f"{name} ({SECTIONS[name]})" for name in names)
    place = f"the config {config.filename}" if config.filename else "the config"
    return f"{purpose} needs {needed}; {place} has none."


def read_settings(cfg: ConfigLike) -> Settings:
    """Parse a config into settings: the only entry from configs to the code that they control.

    Args:
        cfg: Config, path of its file, or mapping of sections; or settings, which are returned unchanged.

    Raises:
        ConfigError: Values are wrong; the message names all of them, one per line.

    Example:
        >>> read_settings({"evaluation": {"interval": 2}}).evaluation.interval
        2
    """
    if isinstance(cfg, Settings):
        return cfg
    return _of(as_config(cfg))


def as_config(cfg: ConfigLike) -> Config:
    """Return the config for a path, a mapping or settings."""
    if isinstance(cfg, Settings):
        return cfg.source
    if isinstance(cfg, (str, os.PathLike)):
        return Config.fromfile(os.fspath(cfg))
    if not isinstance(cfg, (Config, Mapping)):
        raise ConfigError(f"a config must be the path of its file, a dict(…) or a Config; got {shown(cfg)}.")
    try:
        return cfg if isinstance(cfg, Config) else Config(dict(cfg))
    except RecursionError:
        raise ConfigError(TOO_DEEP) from None


def _given(section: Section, defaults: Section | None = None) -> dict[str, Any]:
    """Return a section as a config writes it: what is set, and with `defaults` only what differs from them."""
    items = fields(section)  # type: ignore[arg-type]
    values = {item.name: getattr(section, item.name) for item in items}
    known = {item.name: item.default for item in items}
    return {
        name: _written(list(value) if isinstance(value, tuple) else value)
        for name, value in values.items()
        if (value is not None or known[name] is not None) and (defaults is None or value != getattr(defaults, name))
    }


def _written(value: Any) -> Any:
    """Return a copy of a config's value in which settings objects are dicts."""
    return copied(value, lambda item: _given(item) if isinstance(item, Section) else item)


def _of(config: Config) -> Settings:
    source = copy.copy(config)
    try:
        for name, value in config.items():
            source[name] = _written(value)
        format_config(source.to_dict())  # a value that no config can contain has its own message
    except RecursionError:
        raise ConfigError(TOO_DEEP) from None
    settings: Settings = parse(Settings, given_sections(dict(source)))
    object.__setattr__(settings, "_source", source)
    return settings


def given_sections(sections: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sections among a config's names, without those that are switched off (None, False or empty; not 0).

    An empty list stays where no list is expected.

    `checkpoint_config = None` means: save only at the end.
    """
    known = {name: value for name, value in sections.items() if name in SECTIONS}
    if known.get("checkpoint_config", {}) is None:
        known["checkpoint_config"] = {"interval": -1}
    return {name: value for name, value in known.items() if _wanted(name, value)}


def _wanted(name: str, value: Any) -> bool:
    if value is None:
        return False
    if isinstance(value, (list, tuple)) and name not in LISTS:
        return True
    number = isinstance(value, (int, float)) and value is not False
    return name in NUMBERS or number or bool(value) or (value == {} and name in _DEFAULTS)


ConfigLike = Config | Settings | Mapping[str, Any] | str | os.PathLike[str]
"""Type of config that public functions accept."""
