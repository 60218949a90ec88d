"""Checkpoints: written atomically, read as plain data only, and matched to a model with a report.

A checkpoint is `{'meta': {'lbitcls_version', 'config', 'CLASSES', 'epoch', 'iter', …}, 'state_dict': …}`, plus the
entries needed to resume a run (`'optimizer'`, …). `state_dict` contains the weights that were validated. In a
`.safetensors` file it has the weights and what describes them, without the entries needed to resume.
"""

from __future__ import annotations

import logging
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import nn

from lbitcls.utils.checkpoint_content import check_sums, checked, listed, shown_name
from lbitcls.utils.errors import CheckpointError
from lbitcls.utils.files import is_exported, suggest_path, write_whole
from lbitcls.utils.logging import get_logger
from lbitcls.utils.published import fetch_weights, is_published
from lbitcls.utils.sharded_checkpoint import is_sharded, read_sharded
from lbitcls.utils.weights_file import is_weights_file, read_weights, weights_bytes
from lbitcls.version import __version__

_GRID = "_quantizer.grid"  # suffix of the tensor that describes a quantizer's grid; of any length, not in older files
_QUANTIZER = "_quantizer."  # in the name of every tensor that a quantized layer has in addition to the float layer's
_HEAD = "head."  # prefix of every tensor of a classifier's head


def save_checkpoint(
    model: nn.Module,
    path: str | Path,
    optimizer: torch.optim.Optimizer | None = None,
    meta: Mapping[str, Any] | None = None,
    **states: Any,
) -> None:
    """Write a checkpoint of `model` that is either complete or absent, whenever the process is killed.

    Args:
        model: Model whose `state_dict()` is saved; its `CLASSES` and `cfg`, if any, go into the metadata.
        path: File to write; its folder is created. With the suffix `.safetensors`, it has the weights and their
            metadata only.
        optimizer: Optimizer whose state is saved as `'optimizer'`.
        meta: Additional metadata: plain values and tensors only.
        states: Additional entries of the checkpoint, by name.

    Example:
        >>> save_checkpoint(model, "work_dirs/x/epoch_1.pth", meta={"epoch": 1})
    """
    write_checkpoint(checkpoint_content(model, optimizer, meta, **states), path)


def checkpoint_content(
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    meta: Mapping[str, Any] | None = None,
    **states: Any,
) -> dict[str, Any]:
    """Return the content of the checkpoint that `save_checkpoint` writes; its tensors share the model's memory."""
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
    return content


def write_checkpoint(content: dict[str, Any], path: str | Path) -> None:
    """Write the result of `checkpoint_content` to a file that is either complete or absent."""
    if is_weights_file(path):
        data = weights_bytes(content)
        write_whole(Path(path), lambda temporary: temporary.write_bytes(data))
    else:
        write_whole(Path(path), lambda temporary: _write(content, temporary))


def _write(content: dict[str, Any], path: Path) -> None:
    """Call `torch.save`, but raise the `OSError` of a full disk, which torch hides behind an error of its own."""
    with path.open("wb") as file:
        recorder = _Recorder(file)
        try:
            torch.save(content, recorder)  # type: ignore[arg-type]
        except RuntimeError:
            if recorder.error is not None:
                raise recorder.error from None
            raise


class _Recorder:
    """File for `torch.save` that keeps the error of a failed write."""

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
    """Return the checkpoint in `path`, with at least `'meta'` and `'state_dict'`; a bare state dict is wrapped.

    Only plain data is read (`weights_only`), so that an untrusted file cannot run code. With `mmap`, tensors are read
    on use, for callers that need only the metadata.

    `path` may also be a `.safetensors` file, the folder of a sharded checkpoint, of which `mmap` leaves out the
    distributed tensors, or the name of published weights, `torchvision://resnet18`.

    Raises:
        CheckpointError: The file is missing, damaged, not plain data, an exported model, or contains no weights.
    """
    path = fetch_weights(str(path)) if is_published(path) else Path(path).expanduser()
    if is_sharded(path):
        return checked(read_sharded(path, tensors=not mmap), path)
    if path.is_dir():
        inside = sorted(p.name for p in path.glob("*.pth"))
        hint = f"it contains {listed(inside)}" if inside else "it contains no .pth file"
        raise CheckpointError(f"{path} is a folder, not a checkpoint; {hint}.")
    if os.path.lexists(path) and not path.is_file():
        raise CheckpointError(f"{path} is not a regular file, nor a link to one; name a checkpoint.")
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint {path}{suggest_path(path)}")
    if is_exported(path):
        raise CheckpointError(
            f"{path} is an exported model, whose weights cannot be loaded into a model; give the checkpoint (.pth) "
            "that it was exported from. Exported models are for test, benchmark and visualize."
        )
    if is_weights_file(path):
        return checked(read_weights(path, map_location, check_sum=not mmap), path)
    check_sums(path, tensors=not mmap)
    try:
        mapped = mmap and zipfile.is_zipfile(path)  # files of PyTorch before 1.6 are none, many published ones too
        content = torch.load(path, map_location=map_location, weights_only=True, mmap=mapped)
    except Exception as error:  # torch raises many kinds on damaged files: RuntimeError, EOFError, KeyError, pickle's …
        raise CheckpointError(
            f"checkpoint {path} cannot be read as plain weights ({_reason(error)}). The file is damaged, not a "
            "checkpoint, or contains code or objects; save only its state_dict with torch.save."
        ) from error
    return checked(content, path)


def _reason(error: Exception) -> str:
    """Return torch's finding as one sentence, without its advice to trust the file; the type alone if there is none."""
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
    """Load the weights in `path` into `model`, report what did not match, and return the checkpoint.

    A published state dict is accepted if the model has `adapt_state_dict(state_dict)`, which maps its names to the
    model's. Values of quantizers with another grid (method, bits, sign, channels) are left out, unless `strict`; the
    model's quantizers are then initialized again.

    Args:
        model: Model to load the weights into.
        path: Checkpoint of this package, or a state dict, bare or under `'state_dict'` or `'model'`.
        map_location: Device to load to.
        strict: Raise unless the keys are the same, each with the model's shape and grid.
        logger: Logger for the matches and, as a warning, the mismatches; None: the package's.

    Raises:
        CheckpointError: The file cannot be read, nothing in it matches the model, or (`strict`) not everything does.
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
    """Load `state_dict`, read from `path`, as `load_checkpoint` does."""
    adapt: Any = getattr(model, "adapt_state_dict", None)
    if adapt is not None:
        state_dict = adapt(state_dict)
    fit = compare(model.state_dict(), state_dict, other_grids(model, state_dict))
    if not fit.matched:
        raise CheckpointError(f"nothing in {path} matches {type(model).__name__}:{fit.text()}")
    if strict and not fit.complete:
        raise CheckpointError(
            f"{path} does not match the model {type(model).__name__}:{fit.cause()}{fit.remedy()}{fit.text()}"
        )
    model.load_state_dict({name: state_dict[name] for name in fit.matched}, strict=False)
    logger = logger or get_logger()
    # Float weights have no quantizers, and weights for other classes another head; anything else deserves a warning.
    expected = fit.complete or fit.lacks_quantizers or fit.other_classes or fit.float_phase
    unforeseen = any(not name.startswith(_HEAD) for name in fit.anew) or (fit.untold and not strict)
    level = logging.INFO if expected and not unforeseen else logging.WARNING
    text = ("\n  the head starts from scratch: it has other classes" if fit.other_classes else "") + fit.text()
    if fit.float_phase:
        text = "\n  its quantizers, which are disabled, are left out"
    if fit.untold and not strict:
        text += (
            f"\n  the file does not record the method and bits of its {fit.untold} quantizers: their values are kept; "
            "if the config sets others, load only the float weights"
        )
    counts = len(fit.matched), len(model.state_dict())
    logger.log(level, "load checkpoint from %s: %d of %d tensors%s", path, *counts, text)


def other_grids(model: nn.Module, state_dict: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Return the model's quantizers whose grids differ from those in `state_dict`, by name, with the reason."""
    found = {}
    for name, module in model.named_modules():
        misfit: Any = getattr(module, "misfit", None)
        if name.endswith(_QUANTIZER[:-1]) and misfit is not None and (reason := misfit(state_dict, f"{name}.")):
            found[name] = reason
    return found


class Fit:
    """Result of matching a state dict to a model's: the names `matched`, `missing`, `unexpected`, `mismatched` (shape).

    None of these contains the tensors of the quantizers in `anew`, whose grids differ in the state dict. `untold` is
    the number of quantizers whose grid the state dict does not record.
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
        """True if nothing is missing (except BatchNorm's counters, as in old files), left over or of another shape."""
        return not (self._lacking() or self.unexpected or self.mismatched or self.anew)

    @property
    def lacks_quantizers(self) -> bool:
        """True if all of the quantizers' tensors are missing, and no others."""
        lacking = self._lacking()
        return bool(lacking) and not (self._quantized or self.unexpected) and all(_QUANTIZER in n for n in lacking)

    @property
    def other_classes(self) -> bool:
        """True if the head has another shape and nothing else is wrong, except that quantizers may be missing."""
        misfits = [*self.mismatched, *self.unexpected, *(n for n in self._lacking() if _QUANTIZER not in n)]
        return bool(self.mismatched) and all(name.startswith(_HEAD) for name in misfits)

    @property
    def float_phase(self) -> bool:
        """True if only disabled quantizers are left over: the weights were trained as float weights."""
        over = bool(self.unexpected) and all(_QUANTIZER in name for name in self.unexpected)
        return over and self._off and not (self._lacking() or self.mismatched or self.anew)

    def cause(self) -> str:
        """Return a line on how the two differ in what is quantized and how, or an empty string."""
        if self.lacks_quantizers:
            return "\n  it has float weights, but the config's quant_transformer quantizes the model"
        misfits = [*self.unexpected, *self._lacking(), *self.mismatched, *(f"{name}." for name in self.anew)]
        if not misfits or not all(_QUANTIZER in name for name in misfits):
            return ""
        if self._lacking() or self.mismatched or self.anew:
            return "\n  it is from a quantized model, but the config quantizes other layers, or in another way"
        return "\n  it is from a quantized model, but the config has no quant_transformer, or one for fewer layers"

    def remedy(self) -> str:
        """Return a line on what to do about `cause()`, for a command that does not change the weights, or ""."""
        if self.lacks_quantizers:
            return "\n  quantize it first (lbitcls calibrate), or use it as float: --options quant_transformer=none"
        return "\n  use the config that it was trained with, or its quant_transformer" if self.cause() else ""

    def _lacking(self) -> list[str]:
        return [name for name in self.missing if not name.endswith("num_batches_tracked")]

    def text(self) -> str:
        """Return one line for each kind of mismatch, or an empty string."""
        kinds = {"missing": self.missing, "unexpected": self.unexpected, "other shape or type": self.mismatched}
        lines = "".join(f"\n  {kind}: {listed(names)}" for kind, names in kinds.items() if names)
        lines += "".join(
            f"\n  quantizers to be initialized again ({reason}): "
            + listed([name for name, why in self.anew.items() if why == reason])
            for reason in dict.fromkeys(self.anew.values())
        )
        lost = [name for name in self.missing if _QUANTIZER in name] if self._quantized else []
        if lost:
            lines += f"\n  it is from a quantized model but lacks {len(lost)} quantizer tensors: {listed(lost)}"
        return lines


def compare(
    own: Mapping[str, torch.Tensor], given: Mapping[str, torch.Tensor], anew: Mapping[str, str] | None = None
) -> Fit:
    """Compare the state dict `given` with the model's `own`; `anew` is the result of `other_grids`."""
    return Fit(own, given, anew)


def _misfit(own: torch.Tensor, given: torch.Tensor) -> str:
    """Return how the shape or type of a tensor differs from the model's, or an empty string."""
    if own.shape != given.shape:
        return f"{tuple(given.shape)} for {tuple(own.shape)}"
    if own.is_floating_point() and not given.is_floating_point():
        return f"{str(given.dtype).removeprefix('torch.')} for {str(own.dtype).removeprefix('torch.')}"
    return ""
