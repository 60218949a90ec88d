"""A loss that is not finite: the post-mortem of a run that stops, skipped steps, rewinds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from test_resume import QUANT, content, end, records, same, same_run

from lbitcls.apis import train_classifier
from lbitcls.utils.config import Config
from lbitcls.utils.errors import ConfigError, TrainingError


def spoiled(at: list[int], **more: Any) -> list[dict[str, Any]]:
    return [dict(type="SpoilImages", at=at, **more)]


def post_mortem(cfg: Config) -> dict[str, Any]:
    return torch.load(Path(cfg.work_dir) / "not_finite.pth", weights_only=True)


@pytest.mark.parametrize("quantized", [False, True])
def test_the_layer_is_named(make_config: Any, quantized: bool) -> None:
    """With the scales of its quantizers; the file has the batch and the weights before the step."""
    sections = QUANT if quantized else {}
    cfg = make_config(custom_hooks=[dict(type="Overflow", at=15)], **sections)
    with pytest.raises(TrainingError, match="the loss is not finite in epoch 2, iteration 4") as caught:
        train_classifier(cfg)
    kind = "QuantConv2d" if quantized else "Conv2d"
    assert f"that of backbone.conv2 ({kind}), its input is finite" in str(caught.value)
    assert ("scales: weight 1e+38, input" in str(caught.value)) is quantized
    found = post_mortem(cfg)
    assert found["meta"]["iter"] == 15 and found["batch"]["img"].shape == (128, 1, 8, 8)
    assert found["finding"]["layer"] == "backbone.conv2" and len(found["finding"]["samples"]) == 128
    weight = found["state_dict"]["backbone.conv2.weight"]
    assert weight.isfinite().all() and weight.max() > 1e38, "those of the failed forward pass"
    assert found["finding"]["samples"][0] == f"Digits train[{found['batch']['index'][0].item()}]"


def test_images_are_named_and_the_next_run_moves_the_file(make_config: Any) -> None:
    cfg = make_config(custom_hooks=spoiled([3]), total_epochs=1)
    with pytest.raises(
        TrainingError, match=r"The image of .* is not finite\. The batch and the model are in"
    ) as caught:
        train_classifier(cfg)
    assert len(post_mortem(cfg)["finding"]["images"]) == 1
    assert post_mortem(cfg)["finding"]["images"][0] in str(caught.value)
    train_classifier(make_config(total_epochs=1))
    assert (Path(cfg.work_dir) / "earlier_1" / "not_finite.pth").exists()


def test_weights_that_were_not_finite_are_told(make_config: Any) -> None:
    with pytest.raises(
        TrainingError, match=r"The weights were not finite before .* \(first: backbone\.conv1\.weight\)"
    ):
        train_classifier(make_config(custom_hooks=[dict(type="Poison", at=15)]))


@pytest.mark.parametrize("setting", [{}, dict(QUANT, ema=dict(decay=0.9), optimizer_config=dict(cumulative_iters=2))])
def test_a_skipped_step_changes_nothing(make_config: Any, setting: dict[str, Any], capsys: Any) -> None:
    """Not the statistics of BatchNorm either; it is counted, and a resumed run is the same."""
    sections = dict(
        setting,
        not_finite="skip",
        checkpoint_config=dict(interval=1, by_epoch=False),
        custom_hooks=spoiled([8, 15, 18]),
    )
    whole, ended = make_config("whole", **sections), make_config("ended", **sections)
    train_classifier(whole)
    said = capsys.readouterr().out
    assert "Skipped the step of epoch 2, iteration 4" in said and "(3 of at most 20)" in said
    lines = records(whole.work_dir)
    assert [line.get("skipped") for line in lines if line["mode"] == "train"] == [None, 1, 1, 2, 3, 3]
    assert all(line["loss"] is not None for line in lines)
    size = setting.get("optimizer_config", {}).get("cumulative_iters", 1)
    before, after = (content(whole.work_dir, f"iter_{16 // size * size - n}.pth") for n in (size, 0))
    same(before["optimizer"]["state"], after["optimizer"]["state"])
    same(before["state_dict"], after["state_dict"])
    assert after["hooks"]["NotFiniteHook"]["skipped"] == 2
    end(ended, "after_iter", 17)
    train_classifier(ended, resume=True)
    same_run(whole, ended)


def test_too_many_skipped_steps_stop_the_run(make_config: Any) -> None:
    for options, at in (
        (dict(max_in_a_row=2), [3, 4, 5]),
        (dict(max_skipped=2), [3, 5, 14]),
        (dict(max_skipped=0), [3]),
    ):
        cfg = make_config(not_finite=dict(action="skip", **options), custom_hooks=spoiled(at))
        with pytest.raises(TrainingError, match=r"after \d skipped steps .* The image of .* is not finite") as caught:
            train_classifier(cfg)
        place = f"in epoch {at[-1] // 12 + 1}, iteration {at[-1] % 12 + 1}, after {len(at) - 1} skipped"
        assert place in str(caught.value) and post_mortem(cfg)["meta"]["iter"] == at[-1]


def test_a_gradient_that_is_not_finite_is_skipped(make_config: Any) -> None:
    """The loss is finite: only the gradient's norm tells."""
    cfg = make_config(not_finite="skip", custom_hooks=[dict(type="SpoilGradient", at=4)], total_epochs=1)
    train_classifier(cfg)
    assert records(cfg.work_dir)[-2]["skipped"] == 1


def test_rewind(make_config: Any, capsys: Any) -> None:
    """The batches from the checkpoint to the bad one are left out, over the end of an epoch and a calibration too."""
    save = dict(by_iter=5, interval=-1)
    sections = dict(QUANT, checkpoint_config=save, not_finite="rewind", custom_hooks=spoiled([8, 13, 19]))
    whole, ended = make_config("whole", **sections), make_config("ended", **sections)
    train_classifier(whole)
    said = capsys.readouterr().out
    assert said.count("Rewinding to the last checkpoint") == 3 and "epoch 1, iteration 9" in said
    last = records(whole.work_dir)[-2]
    assert last["rewinds"] == 3 and last["iter"] == 12 and last["loss"] is not None
    assert content(whole.work_dir)["meta"]["iter"] == 24
    end(ended, "after_iter", 17)
    train_classifier(ended, resume=True)
    same_run(whole, ended)


def test_rewinds_are_bounded_and_need_a_checkpoint(make_config: Any) -> None:
    with pytest.raises(TrainingError, match=r"in epoch 1, iteration 3; there is no checkpoint to rewind to"):
        train_classifier(make_config("none", not_finite="rewind", custom_hooks=spoiled([2])))
    options = dict(action="rewind", max_rewinds=1)
    cfg = make_config(not_finite=options, custom_hooks=spoiled([13, 15]))
    with pytest.raises(TrainingError, match=r"iteration 4, after 1 rewinds .* The batch and the model are in"):
        train_classifier(cfg)
    summary = json.loads((Path(cfg.work_dir) / "heartbeat.json").read_text())
    assert summary["state"] == "failed" and post_mortem(cfg)["meta"]["iter"] == 15


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("ignore", r"not_finite\.action must be one of 'stop', 'skip', 'rewind'; got 'ignore'"),
        (dict(max_skipped=3), "max_skipped=3 is for the action 'skip'; action is 'stop'"),
        (dict(action="skip", max_rewinds=1), "max_rewinds=1 is for the action 'rewind'"),
    ],
)
def test_wrong_settings(make_config: Any, value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        train_classifier(make_config(not_finite=value))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_processes_agree(make_config: Any, tmp_path: Path) -> None:
    """A bad batch of one process: both skip the step, and rewind; a stop names the layer of the other process."""
    from test_distributed import finish, launch

    last = dict(type="Fingerprint")
    for action in ("skip", "rewind", "stop"):
        hooks = [*spoiled([13 if action == "rewind" else 8, 15], only_rank=1), last]
        cfg = make_config(action, not_finite=action, custom_hooks=hooks)
        cfg.data.samples_per_gpu = 64
        cfg.dump(tmp_path / "tiny.py")
        code, output, errors = finish(launch(tmp_path / "tiny.py"), 150)
        if action == "stop":
            assert code != 0 and errors.count("iteration 9 (iteration 9 of the run)") == 1
            assert errors.count("The image of ") == 1 and "not_finite_rank_1.pth" in errors
            continue
        assert output.count("Rewinding to the last checkpoint") == 2 * (action == "rewind")
        assert code == 0, errors[-3000:]
        assert ("Skipped the step of epoch 2, iteration 4" in output) is (action == "skip")
        first, second = (torch.load(f"{cfg.work_dir}/rank_{rank}.pt") for rank in (0, 1))
        names = [name for name in first if "running" not in name]
        assert [first[name] for name in names] == [second[name] for name in names]
