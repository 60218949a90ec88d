"""Freezing of a model's parts by name: no gradients, normalization and dropout in eval mode, until unfrozen."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TypeVar

from torch import nn

from lbitcls.utils.errors import ConfigError, suggest

Self = TypeVar("Self", bound="FreezableModule")


class FreezableModule(nn.Module):
    """Module whose parts can be frozen: their parameters get no gradient and they stay in eval mode.

    Frozen parts are identified by name, so layers that replace others later stay frozen, and so do their quantizers.
    A part's own rules still apply: `unfreeze` does not train a parameter that did not train before.
    """

    def __init__(self) -> None:
        super().__init__()
        self._frozen: dict[str, bool] = {}  # True if frozen; the longest name that contains a part's applies
        self._held: set[str] = set()  # parameters that would otherwise train

    def freeze(self, name: str) -> None:
        """Freeze the submodule `name` with everything in it."""
        self._mark(name, True)
        self.hold_frozen()

    def unfreeze(self, name: str) -> None:
        """Let the submodule `name`, with everything in it, train as it did before it was frozen."""
        self._mark(name, False)
        for key, parameter in self.named_parameters():
            if key in self._held and not self.is_frozen(key):
                parameter.requires_grad_(True)
                self._held.remove(key)

    def is_frozen(self, name: str) -> bool:
        """Return True if the submodule or parameter `name` is frozen."""
        while name not in self._frozen and name:
            name = name.rpartition(".")[0]
        return self._frozen.get(name, False)

    def hold_frozen(self) -> None:
        """Disable the gradients of frozen parts again, after something else (enabling quantizers) has enabled them."""
        for key, parameter in self.named_parameters():
            if parameter.requires_grad and self.is_frozen(key):
                parameter.requires_grad_(False)
                self._held.add(key)

    def train(self: Self, mode: bool = True) -> Self:
        """Set the mode; frozen parts stay in eval mode."""
        super().train(mode)
        if mode and self._frozen:
            for name, module in self.named_modules():
                if self.is_frozen(name):
                    module.training = False
        return self

    def find_parts(self, patterns: list[str], place: str) -> list[str]:
        """Return the names of the submodules that match `patterns`: full names, or with `*`, `?` and `[…]`.

        A submodule inside another match is left out.

        Args:
            patterns: Patterns of the names.
            place: Place of the patterns in the config, for messages.

        Raises:
            ConfigError: A pattern matches nothing.
        """
        names = [name for name, _ in self.named_modules() if name]
        found: list[str] = []
        for pattern in patterns:
            matching = [name for name in names if fnmatchcase(name, pattern)]
            if not matching:
                raise ConfigError(f"{place}: '{pattern}' matches no part of the model{suggest(pattern, names)}")
            found += matching
        return [name for name in dict.fromkeys(found) if not any(name.startswith(f"{other}.") for other in found)]

    def _mark(self, name: str, frozen: bool) -> None:
        self._frozen = {key: value for key, value in self._frozen.items() if not f"{key}.".startswith(f"{name}.")}
        self._frozen[name] = frozen
