"""Signals and losses that are not finite, in one process (several: tests/apis/test_distributed.py)."""

from __future__ import annotations

import signal

import pytest
import torch

from lbitcls.core.guard import Guard, Interrupted


def test_signal_is_noted_and_handlers_are_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Guard() as guard:
        guard.raise_if_signalled()
        signal.raise_signal(signal.SIGTERM)
        assert guard.agree() == (0, signal.SIGTERM)
        with pytest.raises(Interrupted) as caught:
            guard.raise_if_signalled()
    assert caught.value.exit_code == 143
    assert signal.getsignal(signal.SIGTERM) is before


def test_second_ctrl_c_acts_as_usual() -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    try:
        with Guard() as guard:
            signal.raise_signal(signal.SIGINT)
            assert guard.signalled == signal.SIGINT
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_first_bad_loss_is_named() -> None:
    guard = Guard()
    for iteration, value in enumerate([1.0, float("nan"), float("inf"), 1.0]):
        guard.watch(iteration, torch.tensor(value))
    assert guard.agree() == (2, 0)


def test_losses_of_a_device_are_looked_at_before_saving() -> None:
    guard = Guard()
    guard._losses += [(0, torch.tensor(1.0)), (1, torch.tensor(float("nan")))]  # as a GPU's losses wait
    assert guard.agree() == (0, 0)
    assert guard.agree(now=True) == (2, 0)
