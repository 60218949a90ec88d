"""Section `distill`: a teacher, and how its outputs enter the loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from annotated_types import MinLen

from lbitcls.settings.base import Section
from lbitcls.settings.fields import ITEMS, Doc, Factor, Says, Text
from lbitcls.settings.training_sections import Positive

TEMPERATURE = 4.0
"""Temperature of `kl` if none is set; it and the two default weights are those of KD in Tian et al.'s code
(arXiv:1910.10699)."""


@dataclass(frozen=True, kw_only=True)
class TeacherConfig(Section):
    """Trained classifier that the model learns from: a checkpoint, or an exported model."""

    PLACE: ClassVar[str] = "distill.teacher"

    checkpoint: Annotated[Text | None, Doc("Checkpoint of the teacher, float or quantized.")] = None
    config: Annotated[
        Text | None, Doc("Config that the checkpoint belongs to; None: the one that the checkpoint records.")
    ] = None
    model: Annotated[
        Text | None, Doc("Exported model instead of a checkpoint: an ONNX file, which gives logits only.")
    ] = None

    def check(self) -> None:
        """Raise `ValueError` unless exactly one file has the teacher's weights."""
        if bool(self.checkpoint) == bool(self.model):
            given = "both" if self.model else "neither"
            raise ValueError(f"the section accepts either checkpoint or model; got {given}.")
        if self.model and self.config is not None:
            raise ValueError(f"config is for a checkpoint; {self.model} records its own. Leave config out.")

    @property
    def file(self) -> str:
        """File with the teacher's weights."""
        return self.checkpoint or self.model or ""


@dataclass(frozen=True, kw_only=True)
class DistillConfig(Section):
    """Knowledge distillation: a teacher's outputs in the loss."""

    PLACE: ClassVar[str] = "distill"

    teacher: Annotated[TeacherConfig, Doc("The trained classifier to learn from.")]
    loss: Annotated[
        Literal["kl", "mse", "feature"],
        Doc("kl: divergence of the softened predictions; mse: of the logits; feature: of the outputs of modules."),
    ] = "kl"
    temperature: Annotated[
        Positive | None, Doc("Divisor of the logits that softens the predictions of kl; None: 4 (Tian et al.).")
    ] = None
    weight: Annotated[Positive, Doc("Factor on the loss against the teacher; 0.9: Tian et al.")] = 0.9
    label_weight: Annotated[
        Factor, Doc("Factor on the loss against the labels; 0: learn from the teacher alone (SQAKD).")
    ] = 0.1
    modules: Annotated[
        Annotated[tuple[Text, ...], MinLen(1), ITEMS] | Annotated[dict[str, Text], MinLen(1)] | None,
        Says("a list of names, or a dict of them"),
        Doc("Modules that feature compares: names in both models, or a dict from the model's names to the teacher's."),
    ] = None

    def check(self) -> None:
        """Raise `ValueError` for keys that do not fit the loss."""
        if self.temperature is not None and self.loss != "kl":
            raise ValueError(f"temperature needs loss='kl'; got loss='{self.loss}'. Leave temperature out.")
        if (self.modules is not None) != (self.loss == "feature"):
            raise ValueError(
                "loss='feature' needs modules, the names of the modules to compare, such as ['backbone.layer3']."
                if self.loss == "feature"
                else f"modules needs loss='feature'; got loss='{self.loss}'. Leave modules out."
            )
        if self.loss == "feature" and self.teacher.model:
            raise ValueError(
                f"loss='feature' needs a checkpoint as its teacher; {self.teacher.model} gives logits only."
            )
        if self.pairs and not self.label_weight and not any(name.startswith("head") for name in self.pairs):
            raise ValueError("label_weight=0 trains no head; raise it, or add a layer of the head to modules.")

    @property
    def pairs(self) -> dict[str, str]:
        """Names of the teacher's modules by the model's names; empty without `modules`."""
        return dict(self.modules) if isinstance(self.modules, Mapping) else {name: name for name in self.modules or ()}
