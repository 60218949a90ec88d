"""Reconstruction of a quantized model, unit by unit, so that it imitates the float model on a few images.

Each unit learns from what reaches it when all units before it are quantized as they will be, with their errors.
Labels are not used. After a unit is done, the caller can save the model and later continue with the next one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from lbitcls.quant.calibration import set_quantization, uninitialized
from lbitcls.quant.computed_weights import copy_model, has_computed_weights
from lbitcls.quant.layers import QuantConv2d, QuantLayer
from lbitcls.quant.reconstruction.block_rounding import learn_block
from lbitcls.quant.reconstruction.layer_rounding import learn_layer
from lbitcls.quant.reconstruction.moments import SUPPORTED, Moments, moments_of, rows_of
from lbitcls.quant.reconstruction.rounding import Roundings, require_uniform
from lbitcls.quant.reconstruction.unit_inputs import Cache, cache_unit, input_of
from lbitcls.quant.reconstruction.units import Unit, find_units
from lbitcls.settings.reconstruction import ReconstructConfig
from lbitcls.utils.errors import ConfigError
from lbitcls.utils.logging import get_logger

CHUNK = 20
"""Images that a unit computes at once while its layers are measured."""


class Reconstruction:
    """Reconstruction of `model`, in place.

    Args:
        model: Transformed model with float weights, in eval; calibrate its quantizers before the first `advance`.
        batches: Calibration images (N, C, H, W), on the model's device, all in memory.
        settings: Options of reconstruction.

    Attributes:
        units: Units, in order.

    Raises:
        ConfigError: Weights are computed by hooks, have no even grid, or belong to a layer that is called twice.

    Example:
        >>> from lbitcls.quant import build_mtransformer, calibrate
        >>> model, batches = build_mtransformer(cfg.quant_transformer)(model).eval(), [torch.rand(8, 1, 8, 8)]
        >>> work = Reconstruction(model, batches, ReconstructConfig(rounding="adaround", iterations=10))
        >>> calibrate(model, batches)
        16
        >>> for number in range(len(work.units)):
        ...     work.advance(number)
    """

    def __init__(self, model: nn.Module, batches: Sequence[Tensor], settings: ReconstructConfig) -> None:
        if has_computed_weights(model):
            raise ConfigError(
                "calibration.reconstruct needs weights that are parameters; PyTorch's weight_norm, spectral_norm, "
                "prune or a parametrization computes some of this model's. Remove it from the layers first."
            )
        self.model, self.batches, self.settings = model, batches, settings
        self.units = find_units(model, batches[0][:1])
        self.teacher = copy_model(model)
        set_quantization(self.teacher, False)

    def advance(self, number: int) -> None:
        """Reconstruct the unit with this number; those before it are done.

        Raises:
            ConfigError: A quantizer has no values yet, or a layer's levels are not even.
        """
        if waiting := uninitialized(self.model):
            raise ConfigError(f"reconstruction needs initialized quantizers; calibrate the model first ({waiting[0]}).")
        unit = self.units[number]
        for name in unit.layers:
            require_uniform(name, self._layer(name))
        limit = self.settings.max_mib
        cache = cache_unit(self.model, self.teacher, unit.name, self.batches, limit)
        if self.settings.rounding == "qdrop":
            self._learn_block(unit, cache, number)
        for position, name in enumerate(unit.layers):
            self._finish_layer(unit, name, cache, seed=self.settings.seed + 1000 * number + position)

    def _learn_block(self, unit: Unit, cache: Cache, number: int) -> None:
        layers = [self._layer(name) for name in unit.layers]
        module = self.model.get_submodule(unit.name)
        steps = learn_block(module, layers, cache, self.settings, self.settings.seed + number)
        for layer, found in zip(layers, steps, strict=True):
            Roundings(layer).settle(layer, found)

    def _finish_layer(self, unit: Unit, name: str, cache: Cache, seed: int) -> None:
        """Round the layer by AdaRound if asked, then correct its mean error."""
        layer, settings = self._layer(name), self.settings
        if not isinstance(layer, SUPPORTED):
            text = (
                "%s: its weights are rounded to nearest; AdaRound and bias correction know Conv1d, Conv2d and Linear."
            )
            get_logger().warning(text, name)
            return
        shift = self._shift_of(unit, name) if settings.correct_bias else None
        if shift is None and settings.rounding != "adaround":
            return
        moments = self._moments(unit, name, cache, seed)
        if settings.rounding == "adaround":
            steps = learn_layer(layer, moments if shift is None else moments.centered(), settings)
            Roundings(layer).settle(layer, steps)
        if shift is not None:
            roundings = Roundings(layer)
            weight = rows_of(layer, roundings.nearest() * roundings.scale).double()
            shift(_in_output(layer, moments.mean_errors(weight).flatten()))

    def _layer(self, name: str) -> QuantLayer:
        layer = self.model.get_submodule(name)
        assert isinstance(layer, QuantLayer)  # `find_units` returns only such names
        return layer

    def _moments(self, unit: Unit, name: str, cache: Cache, seed: int) -> Moments:
        layer, teacher = self._layer(name), self.teacher.get_submodule(name)
        assert isinstance(teacher, QuantLayer)  # the teacher is a copy
        ours, theirs = self.model.get_submodule(unit.name), self.teacher.get_submodule(unit.name)
        quantizer = layer.input_quantizer

        def read(x: Tensor) -> Tensor:
            reached = input_of(ours, layer, x)
            return reached if quantizer is None else quantizer(reached)

        pairs = ((read(x), input_of(theirs, teacher, y)) for x, y in cache.batches(CHUNK))
        return moments_of(layer, teacher.weight_to_quantize().detach(), pairs, len(cache.plain), seed)

    def _shift_of(self, unit: Unit, name: str) -> Callable[[Tensor], None] | None:
        """Return the function that removes a mean error (O,) from the layer's output; None if it has no bias."""
        bias = getattr(self._layer(name), "bias", None)
        if bias is not None:
            return lambda error: _add(bias, -error)
        mean = getattr(self.model.get_submodule(unit.norms[name]), "running_mean", None) if name in unit.norms else None
        return None if mean is None else lambda error: _add(mean, error)


@torch.no_grad()
def _add(tensor: Tensor, change: Tensor) -> None:
    tensor.add_(change.to(tensor.dtype))


def _in_output(layer: QuantLayer, error: Tensor) -> Tensor:
    """Return an error of the weight's product as the layer's output has it, which divides by the folded factor."""
    factor = layer.fold_factor() if isinstance(layer, QuantConv2d) else None
    return error if factor is None else error / factor
