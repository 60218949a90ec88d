"""Hooks: actions between the iterations of a run. Your own hooks derive from `Hook`."""

from lbitcls.core.hooks.hook import Hook

__all__ = ["Hook"]
