"""Protocols that describe the objects exchanged between parts of the package.

A part that accepts a classifier, a data set or a data loader names the protocol, so it depends on no particular
implementation, and a user's own class works too. This module imports nothing from the package.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn


class Pipeline(Protocol):
    """Steps that produce a sample (`lbitcls.datasets.pipelines.Compose`)."""

    @property
    def random_steps(self) -> Sequence[Any]:
        """Steps that produce a different image each time."""
        ...


class Dataset(Protocol):
    """Labeled set of images (`lbitcls.datasets.base.BaseDataset`)."""

    @property
    def labels(self) -> np.ndarray:
        """Label of each sample, int64 (N,)."""
        ...

    @property
    def CLASSES(self) -> tuple[str, ...] | None:
        """Class names in label order; None if unknown."""
        ...

    @property
    def pipeline(self) -> Pipeline:
        """Steps that produce a sample."""
        ...

    def __len__(self) -> int: ...

    def describe(self, index: int) -> str:
        """Return the path or name of a sample."""
        ...

    def sample(self, seed: int, epoch: int, index: int) -> dict[str, Any]:
        """Return one sample, with `img` float32 (C, H, W) and `gt_label` int64 ()."""
        ...


class BatchLoader(Protocol):
    """Data loader (`lbitcls.datasets.build_dataloader`) of batches with `img`, `gt_label` and `index`.

    The order and the augmentation of an epoch depend only on its number.
    """

    @property
    def dataset(self) -> Dataset:
        """Data set that the batches are read from."""
        ...

    @property
    def batch_size(self) -> int:
        """Number of samples in a full batch."""
        ...

    @property
    def seed(self) -> int:
        """Seed of the order and the augmentation."""
        ...

    @property
    def skipped(self) -> Mapping[int, str]:
        """Messages about the images left out so far, by position."""
        ...

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        ...

    def __iter__(self) -> Iterator[dict[str, Tensor]]: ...

    def iterate(self, epoch: int, start: int = 0) -> Iterator[dict[str, Tensor]]:
        """Yield the batches of `epoch`, starting at number `start`."""
        ...

    def begin(self, epoch: int, samples: int) -> int:
        """Enter `epoch` after `samples` samples of all ranks; return the number of the next batch."""
        ...

    def samples_before(self, epoch: int, number: int) -> int:
        """Return the number of samples of all ranks before batch `number` of `epoch`."""
        ...

    def share(self, epoch: int, number: int) -> tuple[int, int]:
        """Return the number of samples in batch `number` of `epoch`, on this rank and on all."""
        ...

    def order(self, epoch: int) -> np.ndarray:
        """Return the positions of the samples in the order of `epoch`, int64."""
        ...

    def indices(self, epoch: int) -> list[np.ndarray]:
        """Return the positions of the samples in each batch of `epoch`, int64."""
        ...

    def read(self, epoch: int, numbers: Sequence[int]) -> Iterator[tuple[int, dict[str, Tensor]]]:
        """Yield some batches of `epoch`, each with its number; the others are not read."""
        ...


class Classifier(Protocol):
    """PyTorch model or exported model with class names, as `lbitcls.apis.init_model` returns it.

    Attributes:
        CLASSES: Class names in label order; None if unknown.
    """

    CLASSES: tuple[str, ...] | None

    @property
    def num_classes(self) -> int | None:
        """Number of classes K; None if unknown."""
        ...

    @property
    def cfg(self) -> Any:
        """Config that the model was built from, or None."""
        ...


class Freezable(Protocol):
    """Model whose parts can be frozen by name (`lbitcls.models.freezing`)."""

    def freeze(self, name: str) -> None:
        """Freeze the submodule `name` including its contents."""
        ...

    def unfreeze(self, name: str) -> None:
        """Unfreeze the submodule `name`, so that it trains again."""
        ...

    def is_frozen(self, name: str) -> bool:
        """Return True if the submodule or parameter `name` is frozen."""
        ...


class FixedFeatures(Protocol):
    """Classifier whose head can be computed separately from the parts before it (`ImageClassifier`)."""

    @property
    def moving_parts(self) -> list[str]:
        """Names of the parts before the head that training changes."""
        ...

    def fixed_features(self, img: Tensor) -> Tensor:
        """Return the head's input for images (N, C, H, W)."""
        ...

    def predict_features(self, features: Tensor) -> Tensor:
        """Return logits (N, K) for the output of `fixed_features`."""
        ...


class SizedInBits(Protocol):
    """Part whose weights are not tensors of the model (`lbitcls.deploy.IntegerBackbone`)."""

    def size_bits(self) -> tuple[int, int]:
        """Return its sizes in float and as stored, in bits."""
        ...


def predictor(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return the function from images (N, C, H, W) to logits (N, K): `model.predict`, or else the model itself."""
    return getattr(model, "predict", model)


class RunHook(Protocol):
    """Part of a hook (`lbitcls.core.hooks.Hook`) that the runner uses; the runner calls its events by name."""

    priority: int

    @property
    def name(self) -> str:
        """Key of the hook's state in a checkpoint, numbered if several hooks have it."""
        ...

    def on_record(self, runner: Any, record: dict[str, Any]) -> None:
        """Receive a record of results."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return the state that the hook needs to resume a run."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        ...


@runtime_checkable
class Addition(Protocol):
    """Module that adds a block's own result and its skip connection (`lbitcls.models.backbones.additions.Add`).

    Attributes:
        readers: Names, in the block, of the layers that read the block's input.
        of_input: True if the skip connection is the block's input, False if it is a tensor of its own.
    """

    readers: tuple[str, ...]
    of_input: bool

    def enter(self, x: Tensor) -> Tensor:
        """Return the block's input as all its layers and the addition receive it."""
        ...

    def __call__(self, own: Tensor, skip: Tensor) -> Tensor: ...
