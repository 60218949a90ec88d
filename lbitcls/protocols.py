"""Protocols: what the parts of the package need of each other's objects.

A part that takes a classifier, a data set or a loader names the protocol, and so knows the package that makes them no
more than a user's own class does. Nothing of the package is imported here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn


class Pipeline(Protocol):
    """The steps that make a sample (`lbitcls.datasets.pipelines.Compose`)."""

    @property
    def random_steps(self) -> Sequence[Any]:
        """Steps that make another image each time."""
        ...


class Dataset(Protocol):
    """A labelled set of images (`lbitcls.datasets.base.BaseDataset`)."""

    @property
    def labels(self) -> np.ndarray:
        """Class of each sample, int64 (N,)."""
        ...

    @property
    def CLASSES(self) -> tuple[str, ...] | None:
        """Names of the classes in order of their labels, or None when they are not known."""
        ...

    @property
    def pipeline(self) -> Pipeline:
        """The steps that make a sample."""
        ...

    def __len__(self) -> int: ...

    def describe(self, index: int) -> str:
        """Path or name of a sample."""
        ...

    def sample(self, seed: int, epoch: int, index: int) -> dict[str, Any]:
        """One sample, with `img` float32 (C, H, W) and `gt_label` int64 ()."""
        ...


class BatchLoader(Protocol):
    """Batches of a data set (`lbitcls.datasets.build_dataloader`); a batch has `img`, `gt_label` and `index`.

    The order and the augmentation of an epoch depend on its number alone.
    """

    @property
    def dataset(self) -> Dataset:
        """The data set whose samples are in the batches."""
        ...

    @property
    def batch_size(self) -> int:
        """Samples in a full batch."""
        ...

    @property
    def seed(self) -> int:
        """Seed of the order and the augmentation."""
        ...

    @property
    def skipped(self) -> Mapping[int, str]:
        """Message by position of every image that was left out so far."""
        ...

    def __len__(self) -> int:
        """Batches of an epoch."""
        ...

    def __iter__(self) -> Iterator[dict[str, Tensor]]: ...

    def iterate(self, epoch: int, start: int = 0) -> Iterator[dict[str, Tensor]]:
        """The batches of `epoch` from number `start` on."""
        ...

    def order(self, epoch: int) -> np.ndarray:
        """Positions of the samples in the order of `epoch`, int64."""
        ...

    def indices(self, epoch: int) -> list[np.ndarray]:
        """Positions of the samples of each batch of `epoch`, int64."""
        ...

    def read(self, epoch: int, numbers: Sequence[int]) -> Iterator[tuple[int, dict[str, Tensor]]]:
        """Some batches of `epoch`, each with its number; the others are not read."""
        ...


class Classifier(Protocol):
    """A model that names its classes, of PyTorch or exported: what `lbitcls.apis.init_model` returns.

    Attributes:
        CLASSES: names of the classes in order of their labels, or None when they are not known.
    """

    CLASSES: tuple[str, ...] | None

    @property
    def num_classes(self) -> int | None:
        """K, or None when it is not known."""
        ...

    @property
    def cfg(self) -> Any:
        """The config that the model was made from, or None."""
        ...


class Freezable(Protocol):
    """A model whose parts can be frozen by name (`lbitcls.models.freezing`)."""

    def freeze(self, name: str) -> None:
        """Freeze the submodule `name` with all that is in it."""
        ...

    def unfreeze(self, name: str) -> None:
        """Let the submodule `name` train again."""
        ...

    def is_frozen(self, name: str) -> bool:
        """Whether the submodule or parameter `name` is frozen."""
        ...


class FixedFeatures(Protocol):
    """A classifier whose head can be computed apart from what comes before it (`ImageClassifier`)."""

    @property
    def moving_parts(self) -> list[str]:
        """Names of the parts before the head that training changes."""
        ...

    def fixed_features(self, img: Tensor) -> Tensor:
        """What the head takes of images (N, C, H, W)."""
        ...

    def predict_features(self, features: Tensor) -> Tensor:
        """Logits (N, K) from what `fixed_features` gave."""
        ...


class SizedInBits(Protocol):
    """A part whose weights are not tensors of the model (`lbitcls.deploy.IntegerBackbone`)."""

    def size_bits(self) -> tuple[int, int]:
        """Its size in float and as it is stored, in bits."""
        ...


def predictor(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """The function from images (N, C, H, W) to logits (N, K): a classifier's `predict`, or else the module itself."""
    return getattr(model, "predict", model)


class RunHook(Protocol):
    """What the runner needs of a hook (`lbitcls.core.hooks.Hook`), whose events it calls by their names."""

    priority: int

    @property
    def name(self) -> str:
        """Key of the hook's state in a checkpoint."""
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
