"""Freezing parts of a model by name: no gradients, normalization and dropout in eval mode, until they are unfrozen."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TypeVar

from torch import nn

from lbitcls.utils.errors import ConfigError, suggest

Self = TypeVar("Self", bound="FreezableModule")


class FreezableModule(nn.Module):
    """A module whose parts can be frozen: their parameters take no gradient and they stay in eval mode.

    What is frozen goes by names, so that it holds for layers that replace others later, and for the quantizers in them.
    A part keeps the rules of its own: `unfreeze` lets no parameter train that did not before.
    """

    def __init__(self) -> None:
        super().__init__()
        self._frozen: dict[str, bool] = {}  # by the longest name that contains a part's: whether it is frozen
        self._held: set[str] = set()  # parameters that would train

    def freeze(self, name: str) -> None:
        """Freeze the submodule `name` with all that is in it."""
        self._mark(name, True)
        self.hold_frozen()

    def unfreeze(self, name: str) -> None:
        """Let the submodule `name`, with all that is in it, train as it did before it was frozen."""
        self._mark(name, False)
        for key, parameter in self.named_parameters():
            if key in self._held and not self.is_frozen(key):
                parameter.requires_grad_(True)
                self._held.remove(key)

    def is_frozen(self, name: str) -> bool:
        """Whether the submodule or parameter `name` is frozen."""
        while name not in self._frozen and name:
            name = name.rpartition(".")[0]
        return self._frozen.get(name, False)

    def hold_frozen(self) -> None:
        """Take the gradients from what is frozen again, after something else (switching quantizers on) gave them."""
        for key, parameter in self.named_parameters():
            if parameter.requires_grad and self.is_frozen(key):
                parameter.requires_grad_(False)
                self._held.add(key)

    def train(self: Self, mode: bool = True) -> Self:
        """Set the mode; what is frozen stays in eval mode."""
        super().train(mode)
        if mode and self._frozen:
            for name, module in self.named_modules():
                if self.is_frozen(name):
                    module.training = False
        return self

    def find_parts(self, patterns: list[str], place: str) -> list[str]:
        """Names of the submodules that `patterns` name: full names, or with `*`, `?` and `[…]` in them.

        A submodule inside another of them is left out.

        Args:
            patterns: of the names.
            place: where in the config they stand, for messages.

        Raises:
            ConfigError: a pattern matches none.
        """
        names = [name for name, _ in self.named_modules() if name]
        found: list[str] = []
        for pattern in patterns:
            matching = [name for name in names if fnmatchcase(name, pattern)]
            if not matching:
                raise ConfigError(f"{place}: '{pattern}' names no part of the model{suggest(pattern, names)}")
            found += matching
        return [name for name in dict.fromkeys(found) if not any(name.startswith(f"{other}.") for other in found)]

    def _mark(self, name: str, frozen: bool) -> None:
        self._frozen = {key: value for key, value in self._frozen.items() if not f"{key}.".startswith(f"{name}.")}
        self._frozen[name] = frozen
