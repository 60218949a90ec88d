"""Checkpoints: written whole or not at all, read as plain data only, fitted to a model with a report.

A checkpoint is `{'meta': {'lbitcls_version', 'config', 'CLASSES', 'epoch', 'iter', …}, 'state_dict': …}`, with what
a run needs to go on (`'optimizer'`, …) beside it. `state_dict` holds the weights that were validated.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import nn

from lbitcls.utils.checkpoint_content import check_sums, checked, listed, shown_name
from lbitcls.utils.errors import CheckpointError, suggest
from lbitcls.utils.files import write_whole
from lbitcls.utils.logging import get_logger
from lbitcls.utils.published import fetch_weights, is_published
from lbitcls.version import __version__

_GRID = "_quantizer.grid"  # ends the name of what tells a quantizer's grid: of any length, and not in older files
_QUANTIZER = "_quantizer."  # in the name of every tensor that a quantized layer has beside the float layer's
_HEAD = "head."  # begins the name of every tensor of a classifier's head


def save_checkpoint(
    model: nn.Module,
    path: str | Path,
    optimizer: torch.optim.Optimizer | None = None,
    meta: Mapping[str, Any] | None = None,
    **states: Any,
) -> None:
    """Write a checkpoint of `model` that is either complete or not there, whenever the process is killed.

    Args:
        model: its `state_dict()` is saved; `CLASSES` and `cfg` go to the meta data when the model has them.
        path: file to write; its folder is made.
        optimizer: its state is saved as `'optimizer'`.
        meta: further meta data: plain values and tensors only.
        states: further entries of the checkpoint, by name.

    Example:
        >>> save_checkpoint(model, "work_dirs/x/epoch_1.pth", meta={"epoch": 1})
    """
    known: dict[str, Any] = {"lbitcls_version": __version__}
    classes: Any = getattr(model, "CLASSES", None)
    if classes is not None:
        known["CLASSES"] = tuple(classes)
    cfg: Any = getattr(model, "cfg", None)
    if hasattr(cfg, "pretty_text"):
        known["config"] = cfg.pretty_text
    content = {"meta": {**known, **(meta or {})}, "state_dict": model.state_dict(), **states}
    if optimizer is not None:
        content["optimizer"] = optimizer.state_dict()
    write_whole(Path(path), lambda temporary: _write(content, temporary))


def _write(content: dict[str, Any], path: Path) -> None:
    """`torch.save`, but a full disk is the `OSError` that it is; torch tells of its own state after it instead."""
    with path.open("wb") as file:
        recorder = _Recorder(file)
        try:
            torch.save(content, recorder)  # type: ignore[arg-type]
        except RuntimeError:
            if recorder.error is not None:
                raise recorder.error from None
            raise


class _Recorder:
    """A file for `torch.save` that keeps the error of a write that failed."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = self.error or error
            raise

    def flush(self) -> None:
        self._file.flush()


def read_checkpoint(path: str | Path, map_location: str | torch.device = "cpu", mmap: bool = False) -> dict[str, Any]:
    """The checkpoint in `path`, with at least `'meta'` and `'state_dict'`; a bare state dict is wrapped so.

    Only plain data is read (`weights_only`), so that a file from elsewhere can run no code. With `mmap`
    tensors are read when they are used: for the meta data alone.

    `path` may also name published weights, `torchvision://resnet18`.

    Raises:
        CheckpointError: the file is missing, damaged, not plain data, an exported one, or holds no weights.
    """
    path = fetch_weights(str(path)) if is_published(path) else Path(path).expanduser()
    if path.is_dir():
        inside = sorted(p.name for p in path.glob("*.pth"))
        hint = f"it holds {listed(inside)}" if inside else "it holds no .pth file"
        raise CheckpointError(f"{path} is a folder, not a checkpoint; {hint}.")
    if os.path.lexists(path) and not path.is_file():
        raise CheckpointError(f"{path} is no regular file, or a link to none; name a checkpoint.")
    if not path.is_file():
        names = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise CheckpointError(f"there is no checkpoint {path}{suggest(path.name, names)}")
    if path.suffix.lower() == ".onnx":
        raise CheckpointError(
            f"{path} is an exported file, whose weights cannot be loaded into a model; give the checkpoint (.pth) that "
            "it was exported from. Exported files are for test, benchmark and visualize."
        )
    check_sums(path, tensors=not mmap)
    try:
        content = torch.load(path, map_location=map_location, weights_only=True, mmap=mmap)
    except Exception as error:  # torch raises what the damage leads to: RuntimeError, EOFError, KeyError, pickle's …
        raise CheckpointError(
            f"checkpoint {path} cannot be read as plain weights ({_reason(error)}). The file is damaged, or no "
            "checkpoint, or holds code or objects; save its state_dict alone with torch.save."
        ) from error
    return checked(content, path)


def _reason(error: Exception) -> str:
    """What torch found, in a sentence, without its advice to trust the file; a bare number or name says nothing."""
    text = str(error).rpartition("WeightsUnpickler error: ")[2].strip()
    sentence = text.partition("\n")[0].partition(". ")[0].rstrip(".: ")
    return f"{type(error).__name__}: {shown_name(sentence)}" if " " in sentence else type(error).__name__


def load_checkpoint(
    model: nn.Module,
    path: str | Path,
    map_location: str | torch.device = "cpu",
    strict: bool = False,
    logger: logging.Logger | None = None,
) -> dict[str, Any]:
    """Load the weights in `path` into `model` and report what did not fit; the checkpoint is returned.

    A published state dict fits when the model has `adapt_state_dict(state_dict)`, which gives it our names. The values
    of quantizers with another grid (method, bits, sign, channels) are left out, unless `strict`: those of the model
    take first values anew.

    Args:
        model: takes the weights.
        path: a checkpoint of ours, or a state dict, bare or under `'state_dict'` or `'model'`.
        map_location: device to read to.
        strict: raise unless every key is there with its shape and its grid, and no other.
        logger: told what fitted and, as a warning, what did not; None: the package's.

    Raises:
        CheckpointError: the file cannot be read, nothing in it fits the model, or (`strict`) not everything does.
    """
    checkpoint = read_checkpoint(path, map_location)
    load_weights(model, checkpoint["state_dict"], path, strict, logger)
    return checkpoint


def load_weights(
    model: nn.Module,
    state_dict: Mapping[str, torch.Tensor],
    path: str | Path,
    strict: bool = False,
    logger: logging.Logger | None = None,
) -> None:
    """Load `state_dict`, which was read from `path`, as `load_checkpoint` does."""
    adapt: Any = getattr(model, "adapt_state_dict", None)
    if adapt is not None:
        state_dict = adapt(state_dict)
    fit = compare(model.state_dict(), state_dict, other_grids(model, state_dict))
    if not fit.matched:
        raise CheckpointError(f"nothing in {path} fits {type(model).__name__}:{fit.text()}")
    if strict and not fit.complete:
        raise CheckpointError(
            f"{path} is of another model than {type(model).__name__}:{fit.cause()}{fit.remedy()}{fit.text()}"
        )
    model.load_state_dict({name: state_dict[name] for name in fit.matched}, strict=False)
    logger = logger or get_logger()
    # Weights before quantization have no quantizers, those of other classes another head; all else should be seen.
    expected = fit.complete or fit.lacks_quantizers or fit.other_classes or fit.float_phase
    unforeseen = any(not name.startswith(_HEAD) for name in fit.anew) or (fit.untold and not strict)
    level = logging.INFO if expected and not unforeseen else logging.WARNING
    text = ("\n  the head starts anew: it has other classes" if fit.other_classes else "") + fit.text()
    if fit.float_phase:
        text = "\n  its quantizers, which are off, are left out"
    if fit.untold and not strict:
        text += (
            f"\n  the file does not say which method and bits its {fit.untold} quantizers have: their values are kept; "
            "where the config has others, load the weights alone"
        )
    counts = len(fit.matched), len(model.state_dict())
    logger.log(level, "load checkpoint from %s: %d of %d tensors%s", path, *counts, text)


def other_grids(model: nn.Module, state_dict: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """The quantizers of `model` for whose grids the values in `state_dict` are not, by name, with the reason."""
    found = {}
    for name, module in model.named_modules():
        misfit: Any = getattr(module, "misfit", None)
        if name.endswith(_QUANTIZER[:-1]) and misfit is not None and (reason := misfit(state_dict, f"{name}.")):
            found[name] = reason
    return found


class Fit:
    """How a state dict fits a model's: the names `matched`, `missing`, `unexpected`, and `mismatched` (of shape).

    Those of the quantizers in `anew`, whose grids are others in the state dict, are in none of these. `untold` is the
    number of quantizers of which it does not say the grid.
    """

    def __init__(
        self,
        own: Mapping[str, torch.Tensor],
        given: Mapping[str, torch.Tensor],
        anew: Mapping[str, str] | None = None,
    ) -> None:
        self.anew = dict(anew or {})
        held = {name: _misfit(own[name], given[name]) for name in own if name in given and not self._is_anew(name)}
        self.matched = [name for name, misfit in held.items() if not misfit or name.endswith(_GRID)]
        self.missing = [n for n in own if n not in given and not n.endswith(_GRID) and not self._is_anew(n)]
        self.unexpected = [name for name in given if name not in own and not self._is_anew(name)]
        self.mismatched = [f"{n} {misfit}" for n, misfit in held.items() if misfit and not n.endswith(_GRID)]
        switches = {name: bool(value) for name, value in given.items() if name.endswith(f"{_QUANTIZER}enabled")}
        self._off = bool(switches) and not any(switches.values())
        self._quantized = any(_QUANTIZER in name for name in given)
        told = (f"{name.rpartition('.')[0]}.grid" in given for name, on in switches.items() if on and name in own)
        self.untold = sum(not one for one in told)

    def _is_anew(self, name: str) -> bool:
        return name.rpartition(".")[0] in self.anew

    @property
    def complete(self) -> bool:
        """Nothing is missing, left over or of another shape (BatchNorm's counters, which old files lack, aside)."""
        return not (self._lacking() or self.unexpected or self.mismatched or self.anew)

    @property
    def lacks_quantizers(self) -> bool:
        """The quantizers' tensors are missing, all of them, and no others."""
        lacking = self._lacking()
        return bool(lacking) and not (self._quantized or self.unexpected) and all(_QUANTIZER in n for n in lacking)

    @property
    def other_classes(self) -> bool:
        """The head is of another shape; else nothing is amiss, but for quantizers that may be missing."""
        misfits = [*self.mismatched, *self.unexpected, *(n for n in self._lacking() if _QUANTIZER not in n)]
        return bool(self.mismatched) and all(name.startswith(_HEAD) for name in misfits)

    @property
    def float_phase(self) -> bool:
        """Nothing but quantizers is left over, and those are off: the weights were trained as float ones."""
        over = bool(self.unexpected) and all(_QUANTIZER in name for name in self.unexpected)
        return over and self._off and not (self._lacking() or self.mismatched or self.anew)

    def cause(self) -> str:
        """A line that says so where the two differ in what is quantized, and how, or nothing."""
        if self.lacks_quantizers:
            return "\n  it has float weights, and the config's quant_transformer quantizes the model"
        misfits = [*self.unexpected, *self._lacking(), *self.mismatched, *(f"{name}." for name in self.anew)]
        if not misfits or not all(_QUANTIZER in name for name in misfits):
            return ""
        if self._lacking() or self.mismatched or self.anew:
            return "\n  it is of a quantized model, and the config quantizes other layers, or in another way"
        return "\n  it is of a quantized model, and the config has no quant_transformer, or one for fewer layers"

    def remedy(self) -> str:
        """A line on what to do about `cause()`, for a command that takes the weights as they are, or nothing."""
        if self.lacks_quantizers:
            return "\n  quantize it first (lbitcls calibrate), or take it as float: --options quant_transformer=none"
        return "\n  give the config that it was trained with, or its quant_transformer" if self.cause() else ""

    def _lacking(self) -> list[str]:
        return [name for name in self.missing if not name.endswith("num_batches_tracked")]

    def text(self) -> str:
        """One line for each kind of misfit, or nothing."""
        kinds = {"missing": self.missing, "unexpected": self.unexpected, "other shape or type": self.mismatched}
        lines = "".join(f"\n  {kind}: {listed(names)}" for kind, names in kinds.items() if names)
        lines += "".join(
            f"\n  quantizers that take first values anew ({reason}): "
            + listed([name for name, why in self.anew.items() if why == reason])
            for reason in dict.fromkeys(self.anew.values())
        )
        lost = [name for name in self.missing if _QUANTIZER in name] if self._quantized else []
        if lost:
            lines += f"\n  it is of a quantized model that lacks {len(lost)} tensors of quantizers: {listed(lost)}"
        return lines


def compare(
    own: Mapping[str, torch.Tensor], given: Mapping[str, torch.Tensor], anew: Mapping[str, str] | None = None
) -> Fit:
    """Compare the state dict `given` with the model's `own`; `anew`: as `other_grids` finds them."""
    return Fit(own, given, anew)


def _misfit(own: torch.Tensor, given: torch.Tensor) -> str:
    """In what a tensor is not of the kind that is wanted, or nothing."""
    if own.shape != given.shape:
        return f"{tuple(given.shape)} for {tuple(own.shape)}"
    if own.is_floating_point() and not given.is_floating_point():
        return f"{str(given.dtype).removeprefix('torch.')} for {str(own.dtype).removeprefix('torch.')}"
    return ""
