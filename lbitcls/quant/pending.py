"""Tensors that delay batch normalization until it is known what follows, for training in integers.

An integer convolution returns a `Produced` tensor. When batch normalization receives it, the result is a `Pending` one:
a tensor with shape, history and memory, but the memory is not filled. Addition and ReLU continue it. An integer
convolution that receives it runs one kernel, normalization to codes, and keeps the input of the normalization only.
Anything else that is done with it fills the memory first: it receives an ordinary tensor with the right values.

    z = conv1(x)            Produced: values
    y = relu(bn(z))         Pending: a promise of clip(z · a + b, 0, ∞)
    conv2(y)                z → codes → integer product; y's memory is never touched
    y.mean(), print(y), …   fills y's memory

Two mechanisms see what is done with a tensor. `__torch_function__` receives each call of a PyTorch function by Python,
before autograd, and can continue a promise. `__torch_dispatch__` receives each operator below autograd, and so what the
first does not see, such as a view that `autograd.Function` creates of an argument that it returns.

A promise reads tensors later than its operation was called. They must not change in between, so these are tensors that
report what is done with them: a `Watched` tensor fills the promises that read it before anything that it does not know.
Others are copied.

The kernels' memory format is channels_last. Where PyTorch's layers would return an NCHW tensor, a `Watched` one moves
its values to such memory before anything that it does not know, so a model that calls `x.view(len(x), -1)` runs.

A promise that is continued goes on without the tensor that promised: its gradient is part of no sum, so asking for it
afterwards is an error.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_iter, tree_map

from lbitcls.quant.kernels.norm_autograd import Activation, Promise

_FILLING = threading.RLock()  # two threads may read one tensor


class Watched(torch.Tensor):
    """Tensor that fills promises that read it before it may change.

    Attributes:
        data_alias: Plain tensor with the same memory, without history.
        known: True while everything that was done with this tensor is known: no alias of it is elsewhere.
        nchw: True while the memory is channels_last, but PyTorch's layers would have returned an NCHW tensor.
    """

    data_alias: Tensor
    known: bool
    nchw: bool
    _readers: list[weakref.ref[Pending]]
    _hooks: Any

    @classmethod
    def wrap(cls, data: Tensor) -> Any:
        """Return `data`, without history, as a tensor of this class."""
        self = torch.Tensor._make_subclass(cls, data)
        self.data_alias, self.known, self.nchw = data, True, False
        self._readers, self._hooks = [], _saved_tensors_hooks()
        return self

    @classmethod
    def __torch_function__(
        cls, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunctionSubclass():
            if function in SHAPE_CHANGES:
                name = function.__name__
                raise RuntimeError(
                    f"{name} changes a tensor's shape in place, which results of layers that multiply integers do not "
                    f"support. Use {name.rstrip('_')}, which returns a new tensor."
                )
            if function in OF_MEMORY and args[0].nchw:
                return function(torch.empty(args[0].shape, device="meta"), *args[1:], **kwargs)
            if function in HARMLESS:
                return function(*args, **kwargs)
            if function in CONTINUATIONS and not torch.compiler.is_compiling():
                continued = CONTINUATIONS[function](*args, **kwargs)
                if continued is not NotImplemented:
                    return continued
            return _called(function, args, kwargs)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return _dispatched(function, args, kwargs or {})

    def settle(self) -> None:
        """Prepare for an operation that may do anything."""
        self.known = False
        self.fill_readers()
        if self.nchw:
            self._move_to_nchw()

    def _move_to_nchw(self) -> None:
        with _FILLING, torch.inference_mode(False), torch.no_grad(), torch._C.DisableTorchFunctionSubclass():
            if self.nchw:
                data = self.data_alias.clone(memory_format=torch.contiguous_format)
                self.use_memory_of(data)

    def use_memory_of(self, data: Tensor) -> None:
        """Replace the memory by that of a tensor; call this without `__torch_function__`."""
        self.data = self.data_alias = data
        self.nchw = False
        self.data_alias = self.detach()  # counts the changes in place of this tensor, for autograd

    def fill_readers(self) -> None:
        """Fill the promises that read this tensor."""
        readers, self._readers = self._readers, []
        for reference in readers:
            reader = reference()
            if reader is not None:
                reader.fill()

    def read_by(self, pending: Pending) -> None:
        """Register a promise that reads this tensor."""
        self._readers = [reference for reference in self._readers if reference() is not None]
        self._readers.append(weakref.ref(pending))

    def same_hooks(self) -> bool:
        """Return True if tensors are saved as when this one was made.

        A checkpointed function is run again, and must find its arguments in the state of the first time: tensors from
        outside of it are filled before they are used.
        """
        return self._hooks == _saved_tensors_hooks()


class Produced(Watched):
    """Result of an integer convolution, or of the pooling of an activation."""


class Pending(Watched):
    """Promise of an activation, until its memory is filled.

    Attributes:
        promise: The promise; None: the memory is filled.
        filled: Version of the memory when it was filled; empty before.
        continued: True if a layer, or another promise, goes on from the promise: gradients bypass this tensor.
    """

    promise: Promise | None
    filled: list[int]
    continued: bool

    @classmethod
    def wrap(cls, data: Tensor) -> Any:
        self = super().wrap(data)
        self.promise, self.filled, self.continued = None, [], False
        return self

    @staticmethod
    def of(promise: Promise, nchw: bool, target: Pending | None = None) -> Pending:
        """Return the tensor that a promise describes: a new one, or `target` with another promise and history.

        Args:
            promise: The promise.
            nchw: Whether PyTorch's function would have returned an NCHW tensor; a target keeps its own.
            target: Tensor that an operation in place changes.
        """
        y: Pending = Activation.apply(*promise.sources, promise, Pending.wrap, target)
        y.promise, y.continued = promise, False
        y.nchw = nchw if target is None else target.nchw
        for source in (promise.z, promise.shortcut):
            if isinstance(source, Watched):
                source.read_by(y)
        return y

    def settle(self) -> None:
        """Prepare for an operation that may do anything."""
        self.fill()
        super().settle()

    def fill(self) -> None:
        """Fill the memory."""
        with _FILLING:
            if self.promise is not None:
                with torch.no_grad():
                    self.promise.fill(self.data_alias)
                self.was_filled()

    def was_filled(self) -> None:
        """Record that the memory is filled."""
        self.promise = None
        self.filled.append(self.data_alias._version)


def plain(x: Tensor) -> Tensor:
    """Return `x` as an ordinary tensor with the same memory and history, to read."""
    if not isinstance(x, Watched):
        return x
    if torch.compiler.is_compiling():
        return _plain_uncompiled(x)
    if isinstance(x, Pending):
        x.fill()
    y: Tensor = _Plain.apply(x)
    return y


def values_of(x: Tensor) -> Tensor:
    """Return the values of `x`, without history; a promise stays one."""
    if not isinstance(x, Watched):
        return x.detach()
    if isinstance(x, Pending) and x.promise is not None:
        y = torch.empty_like(x.data_alias)
        x.promise.fill(y)
        return y
    return x.data_alias


@torch.compiler.disable
def _plain_uncompiled(x: Watched) -> Tensor:
    """Return what a compiled part of a model receives of an eager part."""
    x.settle()
    return plain(x)


class _Plain(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Watched) -> Tensor:
        return x.data_alias.detach()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


def is_nchw(x: Tensor) -> bool:
    """Return True if PyTorch's layers would see an NCHW tensor: its convolutions' rule, in which unclear strides are.

    Args:
        x: (N, C, H, W).
    """
    if isinstance(x, Watched):
        if x.nchw:
            return True
        x = x.data_alias
    (n, c, h, w), (of_n, of_c, of_h, of_w) = x.shape, x.stride()
    ordered = 0 < of_c <= of_c * c <= of_w <= of_w * w <= of_h <= of_h * h <= of_n
    return not ordered or min(n, c, h, w) == 0 or of_h * h == of_c


def _called(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return the result of a function that is not known, of tensors that are ready for it."""
    _check_gradients(function, args, kwargs)
    if torch.compiler.is_compiling():
        _settle_uncompiled(args, kwargs)
    else:
        _settle(args, kwargs)
    if function == Tensor.data.__set__ and isinstance(args[0], Watched):  # type: ignore[attr-defined]
        return args[0].use_memory_of(args[1])
    if function in OF_PLAIN_TENSORS:
        args = (plain(args[0]), *args[1:])
    return function(*args, **kwargs)


@torch.compiler.disable  # what a part of a model that is compiled alone calls where its graph breaks
def _dispatched(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    args, kwargs = tree_map(_settled_data, (args, kwargs))
    return function(*args, **kwargs)


def _settle(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    for given in tree_iter((args, kwargs)):
        if isinstance(given, Watched):
            given.settle()


_settle_uncompiled = torch.compiler.disable(_settle)


def _check_gradients(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Raise an error if a function returns or receives a gradient of which a part bypasses its tensor."""
    asked: Any = args[:1] if function in OF_GRADIENTS else ()
    if function is torch.autograd.grad:
        asked = args[1] if len(args) > 1 else kwargs["inputs"]
    for y in tree_iter(asked):
        if isinstance(y, Pending) and y.continued and not (function == _GRADIENT and y.grad is None):
            raise RuntimeError(
                f"The gradient of an activation of shape {tuple(y.shape)} is asked for after another layer or "
                "function has read the activation, whose part of the gradient bypasses it with kernels='integer'. Ask "
                "before: retain_grad() or register_hook() directly after the layer or function that returns the "
                "activation. Or use kernels='fused'."
            )


def _settled_data(x: Any) -> Any:
    if not isinstance(x, Watched):
        return x
    x.settle()
    return x.data_alias


def _saved_tensors_hooks() -> Any:
    """Return the hooks that tensors are saved with, or None."""
    return torch._C._autograd._top_saved_tensors_default_hooks(True)


def _is_image(x: Tensor) -> bool:
    return x.dtype is torch.float32 and x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)


CONTINUATIONS: dict[Any, Callable[..., Any]] = {}
"""PyTorch's function → function with its arguments that continues a promise (`continuations`)."""

_PROPERTIES = ("shape", "dtype", "device", "layout", "requires_grad", "is_leaf", "ndim", "is_cuda", "is_sparse")
_HOOKS: Any = Tensor._backward_hooks  # autograd assigns None where it replaces a history
_METHODS = ("dim", "ndimension", "size", "numel", "nelement", "element_size", "__len__")
OF_MEMORY = {Tensor.stride, Tensor.is_contiguous}
"""Functions that tell the order of the memory: as the next function that is not known will find it."""
HARMLESS = {
    _HOOKS.__set__,
    *(getattr(Tensor, name).__get__ for name in _PROPERTIES),
    *(getattr(Tensor, name) for name in _METHODS),
    *OF_MEMORY,
}
"""Functions that neither read a tensor's values nor return anything that shares its memory."""

_OWN = ("__reduce_ex__", "__repr__", "__deepcopy__", "__array__", "tolist", "numpy")
OF_PLAIN_TENSORS = {getattr(Tensor, name) for name in _OWN}
"""Functions that treat subclasses of tensors differently."""

_GRADIENT: Any = Tensor.grad.__get__  # type: ignore[union-attr]
OF_GRADIENTS = {_GRADIENT, Tensor.retain_grad, Tensor.register_hook}
"""Functions that ask for the gradient of their first argument."""

_CHANGES = ("squeeze_", "unsqueeze_", "transpose_", "t_", "swapaxes_", "swapdims_", "as_strided_", "resize_", "set_")
SHAPE_CHANGES = {getattr(Tensor, name) for name in _CHANGES}
"""Functions that change the shape of a tensor in place."""
