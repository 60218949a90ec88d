"""A GPU that does not exist: PyTorch's fake tensors of device `cuda`, which have shapes and devices but no values.

Operators refuse fake tensors on different devices, as real ones do. `fake_gpu` refuses more: any operator whose result
is on the CPU (a GPU accepts constants of shape () from there, at the cost of a copy), and whatever waits for the GPU.
Autograd's engine needs a real GPU, so `backward` calls the nodes of the graph itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

GPU = torch.device("cuda", 0)
_READS = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.is_nonzero.default)


class StrayTensorError(RuntimeError):
    """An operator's result is on the CPU."""


class WaitsForGPUError(RuntimeError):
    """The CPU reads a value from the GPU, and waits for it."""


class _Guard(TorchDispatchMode):
    def __init__(self, strict: bool, answers: bool) -> None:
        super().__init__()
        self.strict, self.answers = strict, answers

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _READS:
            if args[0].device.type == "cuda" and not self.answers:
                raise WaitsForGPUError(f"{func} reads a value of shape {tuple(args[0].shape)} from the GPU")
            if isinstance(args[0], Tensor):
                return _plausible(args[0].dtype)
        result = func(*args, **(kwargs or {}))
        if self.strict:
            for tensor in tree_leaves(result):
                if isinstance(tensor, Tensor) and tensor.device.type != "cuda":
                    raise StrayTensorError(f"{func} returns a tensor of shape {tuple(tensor.shape)} on the CPU")
        return result


def _plausible(dtype: torch.dtype) -> bool | int | float:
    """Return the value that a read yields: true, or one."""
    return True if dtype is torch.bool else 1.0 if dtype.is_floating_point else 1


@contextmanager
def fake_gpu(*, strict: bool = True, answers: bool = False) -> Iterator[None]:
    """Compute with fake tensors.

    Args:
        strict: Raise `StrayTensorError` if an operator's result is on the CPU.
        answers: Let reads of values return true or one, instead of raising `WaitsForGPUError`.
    """
    with FakeTensorMode(allow_non_fake_inputs=False), _Guard(strict, answers):
        yield


def move(model: nn.Module) -> nn.Module:
    """Move all tensors of a module to the fake GPU; their values are lost, what Python knows of them is kept."""
    return model._apply(lambda t: torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=GPU))


def backward(loss: Tensor) -> None:
    """Compute the gradients of all parameters, like `loss.backward()`."""
    root = loss.grad_fn
    assert root is not None, "the loss has no gradient"
    arrived: dict[Any, dict[int, Tensor]] = {root: {0: torch.ones_like(loss)}}
    with torch.no_grad():
        for node in _ordered(root):
            received = arrived.pop(node, {})
            if hasattr(node, "variable"):
                if received:
                    parameter = node.variable
                    parameter.grad = received[0] if parameter.grad is None else parameter.grad + received[0]
                continue
            for (target, slot), grad in _results(node, received):
                slots = arrived.setdefault(target, {})
                slots[slot] = slots[slot] + grad if slot in slots else grad


def _ordered(root: Any) -> list[Any]:
    """Return the nodes of a graph, each before those that it passes gradients to."""
    done: set[Any] = set()
    order: list[Any] = []
    waiting = [(root, False)]
    while waiting:
        node, finished = waiting.pop()
        if finished:
            order.append(node)
        elif node not in done:
            done.add(node)
            waiting.append((node, True))
            waiting.extend((target, False) for target, _ in node.next_functions if target is not None)
    return order[::-1]


def _results(node: Any, received: dict[int, Tensor]) -> list[tuple[tuple[Any, int], Tensor]]:
    """Return the gradients that a node passes on, each with the node and the number of the output it is for."""
    edges = node.next_functions
    if isinstance(node, torch.autograd.function.BackwardCFunction):
        results = node.apply(*(received[i] for i in range(len(received))))
        results = results if isinstance(results, tuple) else (results,)
        results = [grad for grad, needed in zip(results, node.needs_input_grad, strict=True) if needed]
        edges = [edge for edge in edges if edge[0] is not None]
    else:
        results = node(*(received.get(i) for i in range(len(node._input_metadata))))
        results = results if isinstance(results, tuple) else (results,)
    return [
        (edge, _fitted(grad, *edge))
        for edge, grad in zip(edges, results, strict=True)
        if edge[0] is not None and grad is not None
    ]


def _fitted(grad: Tensor, target: Any, slot: int) -> Tensor:
    """Return a gradient, summed over broadcast axes and in the dtype of the tensor it is for, as the engine does."""
    expected = target._input_metadata[slot]
    assert grad.device == expected.device, f"a gradient on {grad.device} for a tensor on {expected.device}"
    return grad.sum_to_size(expected.shape).to(expected.dtype)
