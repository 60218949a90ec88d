"""A run whose layers multiply integers goes on, bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
from test_resume import QUANT, content, end, same_run

from lbitcls.apis import train_classifier
from lbitcls.quant.kernels import machine, selection


@pytest.mark.slow
@pytest.mark.parametrize("amp", [None, "bf16"])
def test_a_resumed_run_in_integers_is_bit_identical(make_config: Any, compiler: None, amp: str | None) -> None:
    """The checkpoint says that layers multiplied integers; the resumed run does so, whatever its config selects."""
    if machine.find_obstacle():
        pytest.skip("this machine multiplies no 8-bit integers")
    sections = dict(QUANT, amp=amp, checkpoint_config=dict(interval=7, by_epoch=False))
    whole, ended = (make_config(name, **sections, kernels="integer") for name in ("whole", "ended"))
    with selection.restored_kernels():
        train_classifier(whole)
        end(ended, "after_iter", 17)
        selection.select_kernels("plain")
        ended.kernels = "auto"
        train_classifier(ended, resume=True)
        assert selection.active_kind() == content(ended.work_dir)["meta"]["kernels"] == "integer"
    same_run(whole, ended)
