"""Hooks: what happens between the iterations of a run. A hook of your own derives from `Hook`."""

from lbitcls.core.hooks.hook import Hook

__all__ = ["Hook"]
