"""Evaluation of a model as `test` and `infer` run it: the module itself, in eval mode, no gradients, on its device.

A copy may behave differently (a hook in it may still use the original's modules), and reading a layer's weight without
a forward pass may return one that is not used. So everything that is exported is compared with this evaluation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as global_hooks

from lbitcls.protocols import predictor
from lbitcls.quant.bypass import refuse_read, watching
from lbitcls.quant.calibration import quantizing
from lbitcls.quant.layers import HOOKS, QuantLayer
from lbitcls.quant.quantizer import is_active
from lbitcls.utils.errors import ConfigError, LbitclsError, reason_of

Outputs = tuple[Tensor, ...]
Evaluation = Callable[[Tensor], Outputs]
_CLOSE = 1e-5  # of the largest weight: devices add in different orders
_OTHER = 0.25  # of the standard deviation of an output


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put the model in eval mode, without gradients, inside the context; then restore the mode of every module."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def evaluation(model: nn.Module, part: str = "model", dtype: torch.dtype = torch.float32) -> Evaluation:
    """Return a function from images to a model's outputs on the CPU; call it inside `evaluating` or in eval mode.

    Args:
        model: Classifier, or any module that accepts an image.
        part: `model` or `backbone`: the part that runs.
        dtype: Data type of the part's input images.
    """
    run: Any = getattr(model, "backbone", model) if part == "backbone" else predictor(model)
    device = next((tensor.device for tensor in model.parameters()), torch.device("cpu"))
    return lambda images: tuple(output.cpu() for output in as_tuple(run(images.to(device, dtype))))


def as_tuple(outputs: Any) -> tuple[Any, ...]:
    """Return one output or several as a tuple."""
    return tuple(outputs) if isinstance(outputs, (tuple, list)) else (outputs,)


def check_called(model: nn.Module, input_shape: tuple[int, int, int], part: str = "model") -> None:
    """Raise `ConfigError` for quantized layers whose weight the model reads in eval mode without calling the layer.

    Args:
        model: Model; runs on two images in float, so its quantizers need not be initialized.
        input_shape: (C, H, W) of an image.
        part: `model` or `backbone`: the part that runs.
    """
    with evaluating(model), torch.random.fork_rng(), quantizing(model), watching(model) as watch:
        _run(model, torch.zeros(2, *input_shape), part)
    refuse_read(watch.result(), "export")


def _run(model: nn.Module, images: Tensor, part: str) -> Outputs:
    """Return the outputs; raise `ConfigError` if the model does not accept such images."""
    try:
        return evaluation(model, part)(images)
    except LbitclsError:
        raise
    except Exception as error:  # anything that the model's code raises
        raise ConfigError(
            f"{type(model).__name__} does not run on images {tuple(images.shape)}: {reason_of(error)}"
        ) from error


def check_weights_in_use(
    model: nn.Module, plain: nn.Module, input_shape: tuple[int, int, int], part: str = "model"
) -> None:
    """Check that the quantized layers, and the whole model, compute with the weights that would be exported.

    Args:
        model: Model; runs on three batches of two images.
        plain: The model's `plain_copy`, whose layers are exported.
        input_shape: (C, H, W) of an image.
        part: `model` or `backbone`: the part that runs.

    Raises:
        ConfigError: A layer or the model computes with something else, or the model does not accept such images.
    """
    outputs: list[Outputs] = []
    seen: dict[str, list[Tensor]] = {}
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, QuantLayer)}
    generator = torch.Generator().manual_seed(0)
    with ExitStack() as stack:
        stack.enter_context(evaluating(model))
        for name, layer in layers.items():
            hook = layer.register_forward_pre_hook(lambda m, _, n=name: seen.setdefault(n, []).append(_weight(m)))
            stack.callback(hook.remove)
        noise = torch.randn(2, *input_shape, generator=generator)
        for images in (torch.zeros(2, *input_shape), noise, noise):
            outputs.append(_run(model, images, part))
    for name, weights in seen.items():
        exported = _weight(plain.get_submodule(name))
        limit = _CLOSE * float(exported.abs().max())
        if not all(torch.allclose(weight, exported, rtol=0, atol=limit) for weight in weights):
            raise ConfigError(
                f"'{name}' computes with another weight than its own: {_suspects(layers[name])} it during the forward "
                "pass, and the exported model would have the old one. Compute it with torch.nn.utils.parametrize "
                "(register_parametrization(layer, 'weight', …)), or write the result into the layer before the export."
            )
    with torch.no_grad():
        copied = _run(plain, noise, part)
    # A model that does not agree with itself is a different fault, which verification finds.
    if _agree(outputs[1], outputs[2]) and not _agree(copied, outputs[2]):
        raise ConfigError(
            f"the export copies {type(model).__name__}, and the copy gives different outputs: a hook or a function in "
            "it refers to a module of the original. Let it use the module and the tensors that it receives."
        )


def check_lowered(plain: nn.Module, lowered: nn.Module, input_shape: tuple[int, int, int], part: str = "model") -> None:
    """Raise `ConfigError` if a hook behaves differently once the model's layers are lowered.

    Args:
        plain: Model; runs twice on two images.
        lowered: The same model with lowered layers.
        input_shape: (C, H, W) of an image.
        part: `model` or `backbone`: the part that runs.
    """
    if not _has_hooks(plain):
        return
    noise = torch.randn(2, *input_shape, generator=torch.Generator().manual_seed(0))
    with evaluating(plain), evaluating(lowered):
        expected, again, given = (_run(model, noise, part) for model in (plain, plain, lowered))
    if _agree(again, expected) and not _agree(given, expected):
        raise ConfigError(
            f"{type(plain).__name__} gives different outputs with its layers lowered for export: a hook changes "
            "quantizers, or uses something that only a quantized layer has. Move its work into a module, or into a "
            "hook of the layer itself."
        )


def _has_hooks(model: nn.Module) -> bool:
    """Return True if a module of `model` has a hook, or if a global hook is registered."""
    if global_hooks._global_forward_hooks or global_hooks._global_forward_pre_hooks:
        return True
    return any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def _agree(given: Outputs, expected: Outputs) -> bool:
    """Return True if all outputs agree, up to effects of devices and rounding on a few images; NaN always agrees."""
    pairs = zip(given, expected, strict=True)
    return not any((a - b).abs().mean() > _OTHER * b.std() + _CLOSE * b.abs().max() for a, b in pairs)


def _weight(layer: Any) -> Tensor:
    weight = layer.weight_to_quantize() if is_active(layer.weight_quantizer) else layer.weight
    return weight.detach().float().cpu().clone()


def _suspects(layer: nn.Module) -> str:
    """Return the likely cause of a changed weight, as subject and verb of a sentence."""
    hooks = [hook for name in HOOKS if name.endswith("_hooks") for hook in getattr(layer, name).values()]
    names = [getattr(hook, "__qualname__", type(hook).__qualname__) for hook in hooks]
    return f"a hook ({', '.join(names)}) changes" if names else "a module around it, or its hook, changes"
