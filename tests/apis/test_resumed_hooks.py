"""Hooks of a resumed run: each gets back its own state, also if a config has several of one kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from test_resume import content, end, same_run

from lbitcls.apis import train_classifier
from lbitcls.commands.main import main
from lbitcls.utils.errors import ConfigError

COUNTS = [dict(type="Count", by=by) for by in (1, 10, 100)]


def totals(folder: Path | str) -> dict[str, int]:
    """The states of the counting hooks in the last checkpoint, by key."""
    states = content(folder)["hooks"]
    return {key: state["total"] for key, state in states.items() if "total" in state}


def test_hooks_of_one_kind_resume_their_own_states(make_config: Any) -> None:
    sections = dict(custom_hooks=COUNTS, checkpoint_config=dict(interval=7, by_epoch=False))
    whole, ended = make_config("whole", **sections), make_config("ended", **sections)
    train_classifier(whole)
    end(ended, "after_iter", 17)
    train_classifier(ended, resume=True)
    same_run(whole, ended)
    assert totals(whole.work_dir) == {"Count": 24, "Count-2": 240, "Count-3": 2400}


def test_a_state_without_its_hook_is_told(make_config: Any, capsys: Any) -> None:
    train_classifier(make_config(custom_hooks=COUNTS))
    train_classifier(make_config(custom_hooks=COUNTS[:1], total_epochs=3), resume=True)
    told = "The run was saved with Count-2, Count-3 and resumes without: its results will differ."
    assert told in capsys.readouterr().out
    train_classifier(make_config(custom_hooks=COUNTS[:2], total_epochs=4), resume=True)
    assert "resumes without" not in capsys.readouterr().out
    assert totals(make_config().work_dir) == {"Count": 48, "Count-2": 120}


@pytest.mark.parametrize("kind", ["FreezeOscillationsHook", "DampenOscillationsHook"])
def test_two_hooks_that_act_on_the_same_weights_are_refused(write_config: Any, kind: str, capsys: Any) -> None:
    convolution = dict(type="LSQConv", num_bit_w=4, num_bit_a=4)
    sections = dict(
        quant_transformer=dict(type="mTransformerV2", quan_policy=dict(Conv2d=convolution)),
        custom_hooks=[dict(type=kind), dict(type="Count", by=1), dict(type=kind)],
        kernels="plain",
    )
    path = write_config(**sections)
    assert main(["check", str(path)]) == 2
    assert f"custom_hooks has several {kind}s, which would act on the same weights" in capsys.readouterr().err
    with pytest.raises(ConfigError, match=f"several {kind}s"):
        train_classifier(path)
