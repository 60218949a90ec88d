"""Networks that torchvision publishes as integers (`torchvision.models.quantization`), as frozen feature extractors."""

from __future__ import annotations

import hashlib
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from lbitcls.models.backbones.torchvision_integers import layers_of, spelled_out
from lbitcls.registry import BACKBONES
from lbitcls.utils.errors import CheckpointError, ConfigError, DependencyError, suggest
from lbitcls.utils.published import SCHEME, fetch_weights

logger = logging.getLogger("lbitcls")

_SIZE = 224  # side of the image in the first run, which determines the channels


class _Network:
    """Quantized network shared by copies of the backbone, since it never changes."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __deepcopy__(self, memo: dict[int, Any]) -> _Network:
        return self


class _Widened(nn.Module):
    """Backbone that computes in float32, wrapped for a model that computes in float64."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, img: Tensor) -> tuple[Tensor, ...]:
        return tuple(feature.double() for feature in self.backbone.float()(img.float()))


class _Reached(Exception):
    """Carrier of the output of the layer at which the network is cut."""


@BACKBONES.register_module()
class TorchvisionQuantizedBackbone(nn.Module):
    """Network of `torchvision.models.quantization` up to a layer: image (N, 3, H, W) -> tuple of one feature.

    It has no parameters and no gradient, is always in eval mode and runs on the CPU. Checkpoints contain a digest of
    its weights, not the weights; loading one into another network logs a warning. PyTorch has announced the removal of
    the operators that it uses; `IntegerBackbone` does not depend on them.

    Args:
        name: Name without the prefix: `'resnet18'`, `'mobilenet_v2'`.
        out_layer: Name of the layer whose dequantized output is the feature; feature maps need the neck
            `GlobalAveragePooling`.
        pretrained: True for torchvision's published weights (needs a network connection once); a local file, the state
            dict of such a quantized network; False: random weights, always the same.

    Attributes:
        out_channels: Channels of the feature.

    Raises:
        ConfigError: torchvision has no such network, or the network no such layer.
        CheckpointError: The weights cannot be downloaded or read, or belong to another network.
        DependencyError: This version of torchvision or PyTorch no longer has quantized networks.
    """

    in_channels = 3
    in_checkpoints = False  # are its weights

    def __init__(self, name: str, out_layer: str = "avgpool", pretrained: bool | str = True) -> None:
        super().__init__()
        self.name = name
        self.out_layer = out_layer
        self._network = _Network(_build(name, pretrained))
        self._check_layer()
        digest = hashlib.sha256()
        for key, value in sorted(self._network.module.state_dict().items()):
            digest.update(f"{key} {_plain(value)!r}".encode() if not isinstance(value, Tensor) else _bytes(value))
        self._digest = digest.digest()
        feature = self(torch.zeros(1, 3, _SIZE, _SIZE))[-1]
        self.out_channels = (feature.shape[1],)

    @property
    def num_features(self) -> int:
        """Channels of the feature: the head's `in_channels`."""
        return self.out_channels[-1]

    @property
    def quantization(self) -> str:
        """Description of the quantization, for logs and tables."""
        return "torchvision W8A8"

    def size_bits(self) -> tuple[int, int]:
        """Return the bits of its weights and biases in float32, and as stored, with scales and zero points."""
        floats = integers = 0
        for _, layer in layers_of(self.spelled_out()):
            biases = 0 if layer.bias is None else layer.bias.numel()
            floats += 32 * (layer.codes.numel() + biases)
            integers += 8 * layer.codes.numel() + 32 * (biases + layer.scale.numel()) + 8 * layer.scale.numel()
        return floats, integers

    def spelled_out(self) -> nn.Module:
        """Return its integers in plain float operations, for export and for computing in float64."""
        with _undisturbed():
            return spelled_out(self._network.module, self.out_layer, torch.zeros(1, self.in_channels, _SIZE, _SIZE))

    def integer_layers(self) -> list[dict[str, str]]:
        """Return name (in the backbone) and kind of each layer with integer weights."""
        return [{"name": name, "kind": layer.kind} for name, layer in layers_of(self.spelled_out())]

    def computed_otherwise(self) -> nn.Module:
        """Return the same integers computed in floats, features as float64: the reference for an exported model.

        PyTorch's kernels accumulate integers; engines accumulate floats in some layers, and round slightly differently.
        """
        return _Widened(self.spelled_out())

    @torch.compiler.disable
    @torch.no_grad()
    def forward(self, img: Tensor) -> tuple[Tensor, ...]:
        network = self._network.module
        hook = network.get_submodule(self.out_layer).register_forward_hook(_reach)
        try:
            with torch.autocast("cpu", enabled=False), torch.autocast(img.device.type, enabled=False):
                network(img.float().cpu())
        except _Reached as reached:
            feature = reached.args[0]
        finally:
            hook.remove()
        return ((feature.dequantize() if feature.is_quantized else feature).to(img.device),)

    def get_extra_state(self) -> Tensor:
        """Return the identity of its weights: their SHA-256, uint8 (32,)."""
        return torch.tensor(list(self._digest), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        """Compare the weights with those that a checkpoint was trained with."""
        if bytes(state.tolist()) != self._digest:
            logger.warning("The head was trained on the features of other weights of the quantized %s.", self.name)

    def extra_repr(self) -> str:
        return f"{self.name!r}, out_layer={self.out_layer!r}"

    def _check_layer(self) -> None:
        layers = [key for key, _ in self._network.module.named_modules() if key]
        if self.out_layer not in layers:
            parts = ", ".join(key for key, _ in self._network.module.named_children())
            raise ConfigError(
                f"TorchvisionQuantizedBackbone: {self.name} has no layer '{self.out_layer}'"
                f"{suggest(self.out_layer, layers)} Its parts: {parts}."
            )


def _reach(module: nn.Module, args: Any, output: Any) -> NoReturn:
    raise _Reached(output)


def _plain(value: Any) -> Any:
    """Return as bytes a state dict's value that is not a tensor (packed weights and bias of a linear layer)."""
    return [_bytes(v) for v in value if isinstance(v, Tensor)] if isinstance(value, tuple) else value


def _bytes(value: Tensor) -> bytes:
    plain = value.int_repr() if value.is_quantized else value
    return plain.detach().contiguous().numpy().tobytes()


def _build(name: str, pretrained: bool | str) -> nn.Module:
    try:
        import torchvision.models.quantization as quantized

        known = [key.removeprefix("quantized_") for key in torchvision_names(quantized)]
    except ImportError as error:
        raise _gone(error) from error
    if name not in known:
        raise ConfigError(
            f"TorchvisionQuantizedBackbone: torchvision has no quantized '{name}'{suggest(str(name), known)} "
            f"Known: {', '.join(known)}."
        )
    if not isinstance(pretrained, bool | str):
        raise ConfigError(
            f"TorchvisionQuantizedBackbone: pretrained must be True, False or a file; got {pretrained!r}."
        )
    file = fetch_weights(f"{SCHEME}quantized_{name}") if pretrained is True else pretrained or None
    try:
        with _undisturbed():
            torch.manual_seed(0)
            network = getattr(quantized, name)(weights=None, quantize=True)
    except (RuntimeError, AttributeError, ImportError, NotImplementedError) as error:
        raise _gone(error) from error
    if file is not None:
        _load(network, str(file))
    return network.eval().requires_grad_(False)


def torchvision_names(module: Any) -> list[str]:
    """Return the names of the networks registered by torchvision's `module`."""
    from torchvision.models import list_models

    return list_models(module=module)


def _gone(error: Exception) -> DependencyError:
    import torchvision

    return DependencyError(
        f"TorchvisionQuantizedBackbone: quantized networks do not work with torch {torch.__version__} and torchvision "
        f"{torchvision.__version__} ({type(error).__name__}: {error}); use IntegerBackbone."
    )


def _load(network: nn.Module, file: str) -> None:
    try:
        with _undisturbed():
            state = torch.load(file, map_location="cpu", weights_only=True)
            network.load_state_dict(state)
    except Exception as error:  # torch raises many kinds on damaged files
        reason = str(error).strip().partition("\n")[0]
        raise CheckpointError(
            f"{file} cannot be read as the state dict of the quantized network ({type(error).__name__}: {reason})."
        ) from error


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Restore the generators and the engine that new layers are packed for, and silence PyTorch's warnings."""
    engine = torch.backends.quantized.engine
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.backends.quantized.engine = engine
