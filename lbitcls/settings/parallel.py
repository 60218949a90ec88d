"""Section `parallel`: the model on several processes, whole in each or distributed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import MinLen

from lbitcls.settings.base import Section
from lbitcls.settings.fields import ITEMS, Doc, Says, Text

_HOOKS = ("UnfreezeHook", "FreezeOscillationsHook", "DampenOscillationsHook", "QuantStatsHook")


@dataclass(frozen=True, kw_only=True)
class ParallelConfig(Section):
    """Model on several processes: whole in each, or distributed."""

    PLACE: ClassVar[str] = "parallel"

    kind: Annotated[
        Literal["ddp", "fsdp"],
        Doc("ddp: each process has the whole model. fsdp: each keeps a part of its weights and of the optimizer."),
    ] = "ddp"
    wrap: Annotated[
        Annotated[tuple[Text, ...], MinLen(1), ITEMS] | None,
        Says("a list of names"),
        Doc("Of fsdp: classes or names of modules to gather one after the other; None: the backbone's blocks."),
    ] = None

    def check(self) -> None:
        """Raise `ValueError` for an option of the other kind."""
        if self.wrap is not None and self.kind != "fsdp":
            raise ValueError(f"wrap needs kind='fsdp'; got kind='{self.kind}'. Leave wrap out.")


def fsdp_obstacle(settings: Any) -> str | None:
    """Return what in `settings` (`Settings`) does not work with distributed parameters, as a message; None: nothing."""
    found = next(_obstacles(settings), None)
    return None if found is None else f"parallel.kind='fsdp' does not work with {found}; remove one of the two."


def _obstacles(settings: Any) -> Iterator[str]:
    for name in ("compile", "channels_last", "feature_cache", "progressive"):
        if getattr(settings, name):
            yield name
    if settings.quant_transformer and settings.quant_transformer.get("fold_bn"):
        yield "quant_transformer.fold_bn"
    for asked, default in ((settings.amp, "bf16"), (settings.fp16, "fp16")):
        if asked is not None and not (asked.dtype or default).startswith("b"):
            yield "float16, whose loss scale needs whole gradients (amp='bf16' works)"
    if settings.not_finite.action == "rewind":
        yield "not_finite='rewind'"
    for entry in settings.custom_hooks:
        if entry.get("type") in _HOOKS:
            yield f"{entry['type']}, which reads whole weights"
    for entry in settings.log_config.hooks or ():
        if entry.get("type") == "TensorboardLoggerHook" and _inspects(entry):
            yield "TensorboardLoggerHook's inspection of layers (layers=[] and images=0 switch it off)"


def _inspects(hook: Mapping[str, Any]) -> bool:
    return hook.get("images") != 0 or hook.get("layers") != []
