"""Export options of `lbitcls export`, `export_checkpoint` and the section `export` of a config."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Le

from lbitcls.settings.base import Section
from lbitcls.settings.fields import INTEGER, Count, Doc, Switch, Text


@dataclass(frozen=True, kw_only=True)
class ExportSection(Section):
    """Export of the best weights when a run is complete."""

    PLACE: ClassVar[str] = "export"

    verify: Annotated[Switch, Doc("Compare the exported model with the original in the target's engines.")] = False
    num_images: Annotated[Count, Doc("Number of images to compare on; a verdict needs at least 100.")] = 200
    opset: Annotated[int, INTEGER, Ge(17), Le(21), Doc("ONNX operator set version, 17 to 21.")] = 21
    pack: Annotated[Switch, Doc("Store weights of 4 bits or fewer in 4 bits.")] = False
    residual_bits: Annotated[Literal[8] | None, Doc("8: carry skip connections in 8 bits instead of float.")] = None
    target: Annotated[Text, Doc("Target: cpu, web, executorch, litert, tensorrt, qonnx, or your own.")] = "cpu"


@dataclass(frozen=True, kw_only=True)
class ExportOptions(ExportSection):
    """Export of a checkpoint."""

    PLACE: ClassVar[str] = "--"

    part: Annotated[Literal["model", "backbone"], Doc("Part to export: model, or backbone for its features.")] = "model"
    runtime: Annotated[
        Literal["copy", "cdn"], Doc("Runtime of a web page: copy into its folder, or cdn to link it.")
    ] = "copy"
