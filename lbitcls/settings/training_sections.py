"""Sections of a training run: optimizer step, validation, checkpoints, logs, and calibration of the quantizers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, get_args

from annotated_types import Ge, Gt, Le, Lt, MinLen

from lbitcls.settings.base import Section
from lbitcls.settings.fields import (
    INTEGER,
    ITEMS,
    NUMBER,
    Component,
    Count,
    Doc,
    Exact,
    Factor,
    Index,
    Says,
    Shorthand,
    Switch,
    Text,
    Unset,
)
from lbitcls.settings.learning_rate import LrConfig
from lbitcls.settings.reconstruction import ReconstructConfig
from lbitcls.utils.errors import suggest

Metric = Literal["accuracy", "precision", "recall", "f1_score", "confusion"]
RangeRule = Literal["minmax", "percentile", "mse"]
Gradients = Literal["float32", "bf16", "int8"]
DType = Literal["bf16", "bfloat16", "fp16", "float16"]
Positive = Annotated[float, Gt(0), NUMBER]
PositiveOrInf = Annotated[float, Gt(0), Exact(NUMBER.prepare, infinite=True)]
EveryOrEnd = Literal[-1] | Count
Bits = Annotated[int, Ge(1), Le(8)]


@dataclass(frozen=True, kw_only=True)
class GradClip(Section):
    """Clipping of the gradient norm."""

    PLACE: ClassVar[str] = "optimizer_config.grad_clip"

    max_norm: Annotated[PositiveOrInf, Doc("Maximum norm of all gradients together.")]
    norm_type: Annotated[PositiveOrInf, Doc("Order p of the p-norm; infinity: the largest absolute gradient.")] = 2.0


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig(Section):
    """Gradient clipping and accumulation."""

    PLACE: ClassVar[str] = "optimizer_config"

    grad_clip: Annotated[GradClip | None, Doc("Clipping of the gradient norm; None: no clipping.")] = None
    cumulative_iters: Annotated[Count, Doc("Number of batches whose mean gradient makes one optimizer step.")] = 1


@dataclass(frozen=True, kw_only=True)
class ParamMults(Section):
    """Factors for the parameters that a key of `custom_keys` matches."""

    PLACE: ClassVar[str] = "optimizer.paramwise_cfg.custom_keys"

    lr_mult: Annotated[Factor | None, Doc("Factor on the learning rate; None: 1.")] = None
    decay_mult: Annotated[Factor | None, Doc("Factor on the weight decay; None: 1, for quantizers 0.")] = None


@dataclass(frozen=True, kw_only=True)
class QuantizerParams(Section):
    """Optimizer settings of the parameters that quantizers learn (scales, clips, offsets)."""

    PLACE: ClassVar[str] = "optimizer.paramwise_cfg.quantizers"

    lr_mult: Annotated[Factor | None, Doc("Factor on the learning rate; None: 1.")] = None
    decay_mult: Annotated[Factor | None, Doc("Factor on the weight decay; None: 0.")] = None
    optimizer: Annotated[
        Component | None,
        Doc(
            "Optimizer of their own, as in optimizer, with its own lr; its weight_decay is 0 unless given. None: that "
            "of the other parameters."
        ),
    ] = None
    lr_config: Annotated[
        LrConfig | None, Doc("Policy and warmup of their learning rate, as in lr_config; None: lr_config.")
    ] = None

    def check(self) -> None:
        if self.optimizer is not None and not (self.lr_mult is None and self.decay_mult is None):
            raise ValueError(
                "an optimizer of their own has its own lr and weight_decay: leave out lr_mult, decay_mult."
            )
        if self.optimizer is not None and "paramwise_cfg" in self.optimizer:
            raise ValueError("optimizer accepts no paramwise_cfg; use custom_keys of optimizer.paramwise_cfg.")


@dataclass(frozen=True, kw_only=True)
class ParamwiseConfig(Section):
    """Factors on learning rate and weight decay by the kind of parameter."""

    PLACE: ClassVar[str] = "optimizer.paramwise_cfg"

    norm_decay_mult: Annotated[Factor, Doc("Factor on the weight decay of normalization layers.")] = 1.0
    bias_decay_mult: Annotated[Factor, Doc("Factor on the weight decay of other biases.")] = 1.0
    bias_lr_mult: Annotated[Factor, Doc("Factor on the learning rate of other biases.")] = 1.0
    dwconv_decay_mult: Annotated[
        Factor | None, Doc("Factor on the weight decay of depthwise convolutions; None: no separate factor.")
    ] = None
    custom_keys: Annotated[
        dict[str, ParamMults] | None, Doc("Factors for parameters whose names contain a key, instead of the others.")
    ] = None
    decay_by_bits: Annotated[
        dict[Bits, Factor] | None,
        Says("a dict(…) of the weight decay by bits from 1 to 8, such as {2: 3e-5, 4: 1e-4}"),
        Doc(
            "Weight decay of quantized weights by their bits, instead of optimizer.weight_decay and the factors "
            "above, such as {2: 3e-5, 3: 1e-4}; other bits keep those. custom_keys take precedence."
        ),
    ] = None
    quantizers: Annotated[
        QuantizerParams | None, Doc("Settings of the parameters that quantizers learn; custom_keys take precedence.")
    ] = None


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig(Section):
    """Interval of checkpoints, and the number to keep."""

    PLACE: ClassVar[str] = "checkpoint_config"

    interval: Annotated[
        EveryOrEnd, Doc("Epochs (iterations without by_epoch) between two checkpoints; -1: only at the end.")
    ] = 1
    by_epoch: Annotated[Switch, Doc("Measure interval in epochs; False: in iterations, also mid-epoch.")] = True
    by_iter: Annotated[Count | None, Doc("Iterations between two checkpoints in addition to those of interval.")] = None
    minutes: Annotated[
        Positive | None, Doc("Minutes after which an iteration is saved, counted from the last checkpoint.")
    ] = None
    max_keep_ckpts: Annotated[
        EveryOrEnd, Doc("Number of checkpoints to keep; -1: all of interval, and the last 2 of by_iter and minutes.")
    ] = -1
    background: Annotated[
        Switch, Doc("Write from a copy of the state while training continues; False: training waits for the file.")
    ] = True

    def check(self) -> None:
        """Raise `ValueError` for two numbers of iterations."""
        if self.by_iter is not None and not self.by_epoch:
            raise ValueError("by_iter adds to an interval in epochs: leave out by_epoch=False, or by_iter.")


@dataclass(frozen=True, kw_only=True)
class MetricOptions(Section):
    """Options of the metrics."""

    PLACE: ClassVar[str] = "evaluation.metric_options"

    topk: Annotated[
        Count | Annotated[tuple[Count, ...], MinLen(1), ITEMS],
        Doc("Values of k for top-k accuracy, such as (1, 5) or 3."),
    ] = (1, 5)


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig(Section):
    """Validation interval and metrics, and the rule for the best weights."""

    PLACE: ClassVar[str] = "evaluation"

    interval: Annotated[Count, Doc("Epochs between two validations.")] = 1
    start: Annotated[Index, Doc("No regular validation before this epoch.")] = 0
    metric: Annotated[
        Metric | Annotated[tuple[Metric, ...], ITEMS], Doc("One or several metrics; accuracy is always included.")
    ] = "accuracy"
    metric_options: Annotated[MetricOptions | None, Doc("Options of the metrics.")] = None
    save_best: Annotated[
        Text | None,
        Unset(False, None),
        Doc("Result that decides which weights are best (loss: the lowest); None: keep no best weights."),
    ] = "top-1"
    reload_best: Annotated[Switch, Doc("Load the best weights into the model when the run is complete.")] = True
    train: Annotated[
        Annotated[bool, INTEGER] | Count | None,
        Says("True, False, or a number of images ≥ 1"),
        Doc("Measure accuracy on the training set too: True, or the number of its images to use."),
    ] = None

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Metrics, accuracy first."""
        given = (self.metric,) if isinstance(self.metric, str) else self.metric
        return tuple(dict.fromkeys(("accuracy", *given)))

    @property
    def topk(self) -> tuple[int, ...]:
        """Values of k for top-k accuracy."""
        given = (self.metric_options or MetricOptions()).topk
        return (given,) if isinstance(given, int) else given

    @property
    def best_key(self) -> str | None:
        """Result that decides which weights are best; older spellings (`auto`, `accuracy_top-1`) are converted."""
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
    """When to initialize the quantizers, and on how much data."""

    PLACE: ClassVar[str] = "calibration"

    epoch: Annotated[Index, Doc("Epoch (from 0) at whose start the quantizers are switched on.")] = 0
    num_batches: Annotated[Count, Doc("Number of training batches from which the quantizers are initialized.")] = 8
    method: Annotated[
        RangeRule | None, Doc("Rule that finds ranges in these batches; None: each quantization method's own.")
    ] = None
    reload_best: Annotated[
        Switch, Doc("Continue with the best weights of the float epochs before it, instead of their last ones.")
    ] = False
    reconstruct: Annotated[
        ReconstructConfig | None,
        Shorthand(true=False, text="rounding"),
        Doc("Of `lbitcls calibrate`: learn the rounding of the weights; a kind of rounding, or a dict of options."),
    ] = None


@dataclass(frozen=True, kw_only=True)
class LogConfig(Section):
    """Loggers, their interval, and the figures of a run."""

    PLACE: ClassVar[str] = "log_config"

    interval: Annotated[
        Count | None,
        Doc("Iterations between two records; None: 100, or fewer in a short epoch, for at least ten records."),
    ] = None
    hooks: Annotated[
        Annotated[tuple[Component, ...], ITEMS] | None,
        Doc("Loggers in addition to log.jsonl, which is always written."),
    ] = ({"type": "TextLoggerHook"},)
    pictures: Annotated[Switch, Doc("Draw figures in the work directory at the end of a run.")] = True


@dataclass(frozen=True, kw_only=True)
class Autocast(Section):
    """Data type of forward passes, and the loss scale for float16."""

    PLACE: ClassVar[str] = "amp"

    dtype: Annotated[DType | None, Doc("Data type of autocast; None: bf16 for amp, fp16 for fp16.")] = None
    loss_scale: Annotated[
        Literal["dynamic"] | Positive,
        Says("'dynamic' or a number > 0"),
        Doc("Factor on the loss in float16, which preserves small gradients."),
    ] = "dynamic"


@dataclass(frozen=True, kw_only=True)
class EmaConfig(Section):
    """Average of the weights over training, which a run validates and saves."""

    PLACE: ClassVar[str] = "ema"

    kind: Annotated[
        Literal["ema", "swa"], Doc("ema: exponential moving average; swa: equal average (stochastic weight averaging).")
    ] = "ema"
    decay: Annotated[
        float, Ge(0), Lt(1), NUMBER, Doc("Of kind ema: fraction of the average that each step keeps, in [0, 1).")
    ] = 0.999
    start: Annotated[Index, Doc("Of kind swa: first epoch (from 0) whose weights are averaged.")] = 0
    interval: Annotated[
        Count | None,
        Doc("Of kind swa: optimizer steps between two averaged weights; None: the last step of each epoch."),
    ] = None
    bn_batches: Annotated[
        Index | None,
        Doc(
            "Number of training batches from which BatchNorm's statistics are estimated after each epoch, for "
            "validation and checkpoints; 0: those of the weights in training. None: 0 for ema, 100 for swa."
        ),
    ] = None

    @property
    def norm_batches(self) -> int:
        """Number of batches for BatchNorm's statistics; 0: they are copied."""
        if self.bn_batches is not None:
            return self.bn_batches
        return 100 if self.kind == "swa" else 0

    def check(self) -> None:
        """Raise `ValueError` for an option of the other kind."""
        foreign = ("decay",) if self.kind == "swa" else ("start", "interval")
        for name in foreign:
            value = getattr(self, name)
            if value != getattr(type(self), name):
                raise ValueError(f"{name}={value} is for the other kind; kind is '{self.kind}'. Remove it.")


@dataclass(frozen=True)
class KernelsName(Shorthand):
    """Short form of `kernels`: a name that the log and `select_kernels` use, `integer` or `integer-int8`."""

    true: bool = False
    text: str | None = "kind"

    def expand(self, value: Any) -> Any:
        """Return the section in full; any other value unchanged."""
        kind, dash, gradients = value.partition("-") if isinstance(value, str) else ("", "", "")
        return {"kind": kind, "gradients": gradients} if dash else super().expand(value)

    def _of_text(self, schema: Any, handler: Any) -> dict[str, Any]:
        kinds = super()._of_text(schema, handler)
        return {**kinds, "enum": [*kinds["enum"], *(f"integer-{name}" for name in get_args(Gradients))]}


@dataclass(frozen=True, kw_only=True)
class KernelsConfig(Section):
    """Kernels of quantizers and quantized layers."""

    PLACE: ClassVar[str] = "kernels"

    kind: Annotated[
        Literal["auto", "plain", "fused", "integer"],
        Doc(
            "plain (PyTorch's operators), fused (compiled), integer (fused, and layers multiply integers in training, "
            "on a CPU), or auto: integer where the CPU multiplies integers exactly and faster than floats (not with "
            "compile or amp), else fused, or plain without a compiler."
        ),
    ] = "auto"
    gradients: Annotated[
        Gradients,
        Doc("Type in which the products of the backward pass of integer kernels run."),
    ] = "float32"

    def check(self) -> None:
        """Raise `ValueError` for gradients in fewer bits without integer kernels."""
        if self.gradients != "float32" and self.kind != "integer":
            raise ValueError(f"gradients='{self.gradients}' needs kind='integer'; got kind='{self.kind}'.")


@dataclass(frozen=True, kw_only=True)
class FeatureCacheConfig(Section):
    """Memory for the features of a frozen backbone."""

    PLACE: ClassVar[str] = "feature_cache"

    max_mib: Annotated[
        Positive, Doc("Memory limit for the features of all data sets, in MiB; the rest are recomputed in each epoch.")
    ] = 1024.0
    pipeline: Annotated[
        Annotated[tuple[Component, ...], MinLen(1), ITEMS] | None,
        Says("a list of steps, each a dict(type='…', …)"),
        Doc("Pipeline of the training images while the backbone is frozen; None: that of data.train."),
    ] = None


WorkflowStep = Annotated[tuple[Literal["train", "val"], Count], ITEMS]
"""`('train', 2)`: two epochs of training."""
