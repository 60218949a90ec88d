"""Post-mortem of a loss that is not finite: the batch, the model, and the first layer whose output is not finite.

The layer is found by a second forward pass of the same batch, with the weights and the random numbers of the first.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_iter

from lbitcls.quant.quantizer import Quantizer
from lbitcls.utils.checkpoint import checkpoint_content, write_checkpoint
from lbitcls.utils.dist import rank

if TYPE_CHECKING:
    from lbitcls.core.runner import EpochRunner
    from lbitcls.core.step import Batch


@dataclass
class Finding:
    """Place where a forward pass stops being finite.

    Attributes:
        samples: Names of the batch's samples.
        images: Names of those whose image is not finite.
        weights: Names of the parameters that are not finite.
        layer: Name of the first layer whose output is not finite; "" if there is none.
        kind: Class of that layer.
        input_finite: True if its input is finite.
        scales: Least and largest scale of its quantizers, by their names.
    """

    samples: list[str] = field(default_factory=list)
    images: list[str] = field(default_factory=list)
    weights: list[str] = field(default_factory=list)
    layer: str = ""
    kind: str = ""
    input_finite: bool = True
    scales: dict[str, list[float]] = field(default_factory=dict)

    @property
    def sentence(self) -> str:
        """Sentence for messages."""
        if self.images:
            return f"The image of {self.images[0]} is not finite."
        if self.weights:
            return f"The weights were not finite before that iteration (first: {self.weights[0]})."
        if not self.layer:
            return "The outputs of all layers are finite, so the loss function or a penalty is not."
        scales = [f"{name.removesuffix('_quantizer')} {_range(*found)}" for name, found in self.scales.items()]
        told = f"; scales: {', '.join(scales)}" if scales else ""
        source = "finite" if self.input_finite else "not finite either"
        return (
            f"The first output that is not finite is that of {self.layer} ({self.kind}), its input is {source}{told}."
        )


def write_post_mortem(runner: EpochRunner, batch: Batch) -> str:
    """Examine the forward pass of `batch` and write `not_finite.pth` to the work directory.

    The file contains a checkpoint's `meta` and `state_dict`, the `batch` and, as `finding`, the fields of `Finding`;
    ranks other than 0 add their number to its name.

    Args:
        runner: Runner at the iteration of the batch; its weights are those before the step.
        batch: Batch on the model's device.

    Returns:
        The finding and the file, as sentences for the error message.
    """
    finding = examine(runner, batch)
    name = f"not_finite_rank_{rank()}.pth" if rank() else "not_finite.pth"
    path = runner.work_dir / name
    return f"{finding.sentence} {_written(runner, batch, finding, path)}"


def _written(runner: EpochRunner, batch: Batch, finding: Finding, path: Path) -> str:
    content = checkpoint_content(runner.module, meta=runner.position())
    content |= {"batch": {key: value.cpu() for key, value in batch.items()}, "finding": asdict(finding)}
    try:
        write_checkpoint(content, path)
    except OSError as error:
        return f"The batch and the model could not be written to {path}: {error.strerror}."
    return f"The batch and the model are in {path}."


def examine(runner: EpochRunner, batch: Batch) -> Finding:
    """Run the forward pass of `batch` again and return where it stops being finite; the model's buffers are kept."""
    names = _names(runner, batch)
    images = batch["features" if "features" in batch else "img"]
    finite = images.isfinite().flatten(1).all(1).tolist()
    finding = Finding(
        samples=names,
        images=[name for name, good in zip(names, finite, strict=False) if not good],
        weights=[name for name, weight in runner.module.named_parameters() if not weight.isfinite().all()],
    )
    buffers = [(buffer, buffer.clone()) for buffer in runner.module.buffers()]
    model = runner.model.module if isinstance(runner.model, DistributedDataParallel) else runner.model
    runner.seed_iteration()
    with _looking(runner.module, finding), torch.compiler.set_stance("force_eager"):
        runner.step.forward(model, batch)
    with torch.no_grad():
        for buffer, kept in buffers:
            buffer.copy_(kept)
    return finding


def _names(runner: EpochRunner, batch: Batch) -> list[str]:
    if "index" not in batch:
        return []
    describe = getattr(getattr(runner.loader, "dataset", None), "describe", str)
    return [describe(index) for index in batch["index"].tolist()]


@contextlib.contextmanager
def _looking(module: nn.Module, finding: Finding) -> Iterator[None]:
    """Note the first layer that returns a value which is not finite: inner ones return before those around them."""

    def look(name: str, layer: nn.Module, inputs: Any, output: Any) -> None:
        if not finding.layer and not _is_finite(output):
            owner, _, _ = name.rpartition(".")
            if isinstance(layer, Quantizer) and owner:
                name, layer = owner, module.get_submodule(owner)
            finding.layer, finding.kind = name, type(layer).__name__
            finding.input_finite = _is_finite(inputs)
            finding.scales = _scales(layer)

    hooks = [
        layer.register_forward_hook(lambda layer, inputs, output, name=name: look(name, layer, inputs, output))
        for name, layer in module.named_modules()
        if name
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _is_finite(values: Any) -> bool:
    with torch.no_grad():
        tensors = [value for value in tree_iter(values) if isinstance(value, Tensor) and value.is_floating_point()]
        return all(bool(tensor.isfinite().all()) for tensor in tensors)


@torch.no_grad()
def _scales(layer: nn.Module) -> dict[str, list[float]]:
    """Return the least and the largest scale of each quantizer of a layer that is on."""
    found = {}
    for name, quantizer in layer.named_children():
        if isinstance(quantizer, Quantizer) and quantizer.is_enabled and quantizer.is_initialized:
            weight: Any = getattr(layer, "weight", None)
            sample = weight if name == "weight_quantizer" and weight is not None else torch.zeros(1, 1, 1, 1)
            scale = quantizer.grid(sample.to(quantizer.low.device))[0]
            found[name] = [scale.min().item(), scale.max().item()]
    return found


def _range(least: float, most: float) -> str:
    return f"{least:.3g}" if least == most or least != least else f"{least:.3g} to {most:.3g}"
