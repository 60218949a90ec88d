"""The sections of a training: how it steps, validates, saves, logs, and when its quantizers come on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Gt, Lt

from lbitcls.settings.base import Section
from lbitcls.settings.fields import (
    ITEMS,
    NUMBER,
    Component,
    Count,
    Doc,
    Exact,
    Factor,
    Index,
    Says,
    Switch,
    Text,
)
from lbitcls.utils.errors import suggest

Metric = Literal["accuracy", "precision", "recall", "f1_score", "confusion"]
RangeRule = Literal["minmax", "percentile", "mse"]
DType = Literal["bf16", "bfloat16", "fp16", "float16"]
Positive = Annotated[float, Gt(0), NUMBER]
PositiveOrInf = Annotated[float, Gt(0), Exact(NUMBER.prepare, infinite=True)]
EveryOrEnd = Literal[-1] | Count


@dataclass(frozen=True, kw_only=True)
class GradClip(Section):
    """Clipping of the gradient's norm."""

    PLACE: ClassVar[str] = "optimizer_config.grad_clip"

    max_norm: Annotated[PositiveOrInf, Doc("The largest norm of all gradients together.")]
    norm_type: Annotated[PositiveOrInf, Doc("The p of the p-norm; infinity: the largest gradient.")] = 2.0


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig(Section):
    """Gradient clipping and accumulation."""

    PLACE: ClassVar[str] = "optimizer_config"

    grad_clip: Annotated[GradClip | None, Doc("Clipping of the gradient's norm; None: none.")] = None
    cumulative_iters: Annotated[Count, Doc("Batches whose mean gradient makes one step.")] = 1


@dataclass(frozen=True, kw_only=True)
class ParamMults(Section):
    """Factors for the parameters that an entry of `custom_keys` names."""

    PLACE: ClassVar[str] = "optimizer.paramwise_cfg.custom_keys"

    lr_mult: Annotated[Factor | None, Doc("Factor on the learning rate; None: 1.")] = None
    decay_mult: Annotated[Factor | None, Doc("Factor on the weight decay; None: 1, of quantizers 0.")] = None


@dataclass(frozen=True, kw_only=True)
class ParamwiseConfig(Section):
    """Factors on learning rate and weight decay by the kind of parameter."""

    PLACE: ClassVar[str] = "optimizer.paramwise_cfg"

    norm_decay_mult: Annotated[Factor, Doc("On the weight decay of normalization layers.")] = 1.0
    bias_decay_mult: Annotated[Factor, Doc("On the weight decay of other biases.")] = 1.0
    bias_lr_mult: Annotated[Factor, Doc("On the learning rate of other biases.")] = 1.0
    dwconv_decay_mult: Annotated[Factor | None, Doc("On the weight decay of depthwise convolutions.")] = None
    custom_keys: Annotated[
        dict[str, ParamMults] | None, Doc("Factors by a part of a parameter's name, instead of the others.")
    ] = None


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig(Section):
    """How often a run saves, and how many checkpoints it keeps."""

    PLACE: ClassVar[str] = "checkpoint_config"

    interval: Annotated[
        EveryOrEnd, Doc("Epochs between two checkpoints (iterations without by_epoch); -1: only at the end.")
    ] = 1
    by_epoch: Annotated[Switch, Doc("Whether interval counts epochs; False: iterations, also in mid-epoch.")] = True
    max_keep_ckpts: Annotated[EveryOrEnd, Doc("How many checkpoints to keep; -1: all.")] = -1


@dataclass(frozen=True, kw_only=True)
class MetricOptions(Section):
    """Options of the metrics."""

    PLACE: ClassVar[str] = "evaluation.metric_options"

    topk: Annotated[
        Count | Annotated[tuple[Count, ...], ITEMS], Doc("The k of each accuracy top-k, as (1, 5) or 3.")
    ] = (1, 5)


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig(Section):
    """How often and by what a run validates, and which weights it keeps as the best."""

    PLACE: ClassVar[str] = "evaluation"

    interval: Annotated[Count, Doc("Epochs between two validations.")] = 1
    start: Annotated[Index, Doc("No validation before this epoch.")] = 0
    metric: Annotated[
        Metric | Annotated[tuple[Metric, ...], ITEMS], Doc("One or several metrics; accuracy is always among them.")
    ] = "accuracy"
    metric_options: Annotated[MetricOptions | None, Doc("Options of the metrics.")] = None
    save_best: Annotated[
        Text | None, Doc("The result that says which weights are best (loss: the lowest); None: none are kept.")
    ] = "top-1"
    reload_best: Annotated[Switch, Doc("Whether the model gets the best weights again when the run is complete.")] = (
        True
    )
    train: Annotated[
        Switch | Count | None,
        Says("True, False, or a number of images ≥ 1"),
        Doc("Whether to measure accuracy on the training set too, or on how many of its images."),
    ] = None

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The metrics, accuracy first."""
        given = (self.metric,) if isinstance(self.metric, str) else self.metric
        return tuple(dict.fromkeys(("accuracy", *given)))

    @property
    def topk(self) -> tuple[int, ...]:
        """The k of each accuracy top-k."""
        given = (self.metric_options or MetricOptions()).topk
        return (given,) if isinstance(given, int) else given

    @property
    def best_key(self) -> str | None:
        """The result that says which weights are best, the older spellings `auto` and `accuracy_top-1` put right."""
        if not self.save_best:
            return None
        return "top-1" if self.save_best == "auto" else self.save_best.removeprefix("accuracy_")

    def check(self) -> None:
        known = ["loss", *(name for name in self.metrics if name not in ("accuracy", "confusion"))]
        known += [f"top-{k}" for k in self.topk]
        if self.best_key is not None and self.best_key not in known:
            hint = suggest(self.best_key, known)
            raise ValueError(f"save_best: there is no result '{self.save_best}'{hint} Known: {', '.join(known)}.")


@dataclass(frozen=True, kw_only=True)
class CalibrationConfig(Section):
    """When and from how much data the quantizers take their first values."""

    PLACE: ClassVar[str] = "calibration"

    epoch: Annotated[Index, Doc("The epoch, from 0, at whose start the quantizers come on.")] = 0
    num_batches: Annotated[Count, Doc("Training batches that the first values are taken from.")] = 8
    method: Annotated[
        RangeRule | None, Doc("The rule that finds ranges in the data; None: each quantization method's own.")
    ] = None


@dataclass(frozen=True, kw_only=True)
class LogConfig(Section):
    """What a run reports, how often and where."""

    PLACE: ClassVar[str] = "log_config"

    interval: Annotated[
        Count | None, Doc("Iterations between two records; None: 100, or enough for ten records in a short epoch.")
    ] = None
    hooks: Annotated[
        Annotated[tuple[Component, ...], ITEMS] | None, Doc("Loggers, beside log.jsonl, which is always written.")
    ] = ({"type": "TextLoggerHook"},)
    pictures: Annotated[Switch, Doc("Whether a run ends with pictures in its work directory.")] = True


@dataclass(frozen=True, kw_only=True)
class Autocast(Section):
    """The type that forward passes compute in, and the scale of the loss for float16."""

    PLACE: ClassVar[str] = "amp"

    dtype: Annotated[DType | None, Doc("The type of autocast; None: bf16 of amp, fp16 of fp16.")] = None
    loss_scale: Annotated[
        Literal["dynamic"] | Positive,
        Says("'dynamic' or a number > 0"),
        Doc("Factor on the loss in float16, which keeps small gradients."),
    ] = "dynamic"


@dataclass(frozen=True, kw_only=True)
class EmaConfig(Section):
    """The exponential moving average of the weights, which is what is validated and saved."""

    PLACE: ClassVar[str] = "ema"

    decay: Annotated[float, Ge(0), Lt(1), NUMBER, Doc("How much of the average a step keeps, in [0, 1).")] = 0.999


@dataclass(frozen=True, kw_only=True)
class FeatureCacheConfig(Section):
    """The memory for the features of a frozen backbone."""

    PLACE: ClassVar[str] = "feature_cache"

    max_mib: Annotated[
        Positive, Doc("What the features of all data sets may take, in MiB; more are computed in each epoch.")
    ] = 1024.0


WorkflowStep = Annotated[tuple[Literal["train", "val"], Count], ITEMS]
"""`('train', 2)`: two epochs of training."""
