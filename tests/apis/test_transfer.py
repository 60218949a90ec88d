"""Transfer learning: frozen backbones, the feature cache, unfreezing, and the best weights at the end."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from lbitcls.apis import train_classifier
from lbitcls.assembly.session import open_session
from lbitcls.core.runner import EpochRunner
from lbitcls.settings.sections import read_settings
from lbitcls.utils.config import Config
from lbitcls.utils.env import seed_everything
from lbitcls.utils.errors import ConfigError
from lbitcls.workflows.training import build_runner

MakeConfig = Any


def frozen(make_config: MakeConfig, work: str, **keys: Any) -> Config:
    options = {"model.backbone.frozen": True, "log_config.pictures": False, **keys.pop("options", {})}
    return make_config(work, options=options, **keys)


def latest(cfg: Config, name: str = "latest.pth") -> dict[str, Any]:
    checkpoint = torch.load(Path(cfg.work_dir) / name, weights_only=True)
    del checkpoint["meta"]
    return checkpoint


def assert_same(a: Any, b: Any) -> None:
    """Equal in every bit."""
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list):
        assert len(a) == len(b)
        for pair in zip(a, b):
            assert_same(*pair)
    else:
        assert a == b


def results(cfg: Config) -> list[dict[str, Any]]:
    lines = (Path(cfg.work_dir) / "log.jsonl").read_text().splitlines()
    clock = ("time", "data_time", "eta", "memory")
    return [{k: v for k, v in json.loads(line).items() if k not in clock} for line in lines]


def log_text(cfg: Config) -> str:
    return "".join(path.read_text() for path in sorted(Path(cfg.work_dir).glob("*.log")))


CACHED = [
    {},
    dict(ema=dict(decay=0.9)),
    dict(amp="bf16"),
    dict(channels_last=True, optimizer_config=dict(cumulative_iters=3)),
]


@pytest.mark.parametrize("sections", CACHED, ids=["plain", "ema", "bf16", "channels_last"])
def test_the_cache_changes_nothing(make_config: MakeConfig, sections: dict[str, Any]) -> None:
    plain, cached = (frozen(make_config, name, total_epochs=3, **sections) for name in ("plain", "cached"))
    cached.feature_cache = True
    train_classifier(plain)
    train_classifier(cached)
    assert_same(latest(plain), latest(cached))
    assert results(plain) == results(cached)
    text = log_text(cached)
    assert "Keeping the features of 1437 images" in text and "Keeping the features of 360 images" in text
    assert "depend on its batch" not in text


def count_forwards(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Filled with the number of images of each batch that the backbone sees."""
    import tiny_parts

    seen: list[int] = []
    original = tiny_parts.TinyNet.forward

    def forward(self: Any, img: torch.Tensor) -> Any:
        seen.append(len(img))
        return original(self, img)

    monkeypatch.setattr(tiny_parts.TinyNet, "forward", forward)
    return seen


def test_each_image_goes_through_the_backbone_once(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = count_forwards(monkeypatch)
    train_classifier(frozen(make_config, "cached", total_epochs=4, feature_cache=True))
    tried = 128 // 2 * 2  # half of the first batch of each set again
    assert sum(seen) == 1437 + 360 + tried


def test_a_cached_run_goes_on_bit_identical(make_config: MakeConfig) -> None:
    from tiny_parts import Ended

    whole = frozen(make_config, "whole", total_epochs=3, feature_cache=True)
    train_classifier(whole)
    hooks = [dict(type="EndAt", event="after_iter", at=17)]
    cut = frozen(
        make_config,
        "cut",
        total_epochs=3,
        feature_cache=True,
        custom_hooks=hooks,
        checkpoint_config=dict(by_epoch=False, interval=5),
    )
    with pytest.raises(Ended):
        train_classifier(cut)
    cut.custom_hooks = []
    train_classifier(cut, resume=True)
    assert_same(latest(whole)["state_dict"], latest(cut)["state_dict"])
    assert_same(latest(whole)["optimizer"], latest(cut)["optimizer"])


def test_too_large_a_cache_is_none(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = count_forwards(monkeypatch)
    cfg = frozen(make_config, "small", feature_cache=dict(max_mib=0.01))
    train_classifier(cfg)
    assert "more than max_mib=0.01: they are computed in every epoch" in log_text(cfg)
    assert sum(seen) >= 2 * (1437 + 360)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model.backbone.frozen": False}, r"set model.backbone.frozen=True \(backbone.conv1 trains\)"),
        (
            {"data.train.pipeline": [dict(type="RandomFlip"), dict(type="v2.Resize", size=8)]},
            r"the pipeline of data.train has random steps: RandomFlip\(flip_prob=0.5",
        ),
        ({"model.train_cfg": dict(augments=dict(type="CutMix"))}, "cannot be combined with model.train_cfg.augments"),
        ({"compile": True}, "cannot be combined with compile"),
        ({"feature_cache": dict(max_mb=5)}, "Did you mean 'max_mib'"),
        ({"feature_cache": dict(max_mib=0)}, r"feature_cache\.max_mib must be a number > 0; got"),
        ({"feature_cache": "yes"}, r"feature_cache must be True or a dict\(…\); got 'yes'"),
    ],
)
def test_where_the_cache_is_refused(make_config: MakeConfig, options: dict[str, Any], message: str) -> None:
    cfg = frozen(make_config, "refused", options={"feature_cache": True, **options})
    with pytest.raises(ConfigError, match=message):
        train_classifier(cfg)


@pytest.mark.parametrize(
    ("options", "epochs", "said"),
    [
        (
            {},
            2,
            [r"feature_cache=True would save most of the [\d.]+ s per epoch in the remaining 1\."],
        ),
        (
            {"data.train.pipeline": [dict(type="RandomFlip"), dict(type="v2.Resize", size=8)]},
            2,
            [r"would save .*, which needs the same images in every epoch: data.train has RandomFlip\(flip_prob=0.5"],
        ),
        ({}, 1, []),
        ({"model.backbone.frozen": False}, 2, []),
        ({"feature_cache": True}, 2, []),
    ],
    ids=["fixed images", "random images", "one epoch", "nothing frozen", "cache on"],
)
def test_what_the_cache_would_save_is_said(
    make_config: MakeConfig, options: dict[str, Any], epochs: int, said: list[str]
) -> None:
    cfg = frozen(make_config, "told", options=options, total_epochs=epochs)
    train_classifier(cfg)
    text = log_text(cfg)
    assert text.count("would save") == len(said) and all(re.search(pattern, text) for pattern in said)


def unfreezing(make_config: MakeConfig, work: str, **keys: Any) -> Config:
    hooks = [
        dict(type="UnfreezeHook", epoch=1, layers=["backbone.conv2", "backbone.bn2"], lr_mult=0.5),
        dict(type="UnfreezeHook", epoch=2, layers="backbone", lr_mult=0.1),
    ]
    more = keys.pop("custom_hooks", [])
    options = {"log_config.pictures": False}
    return make_config(work, options=options, total_epochs=3, custom_hooks=[*hooks, *more], **keys)


def test_the_head_first_then_part_after_part(make_config: MakeConfig) -> None:
    cfg = unfreezing(make_config, "parts", feature_cache=True)
    start = Config({**cfg._cfg_dict.to_dict(), "work_dir": cfg.work_dir + "_start"})
    with open_session(read_settings(start)) as session:
        runner = build_runner(start, Path(start.work_dir), session, run="start")
        first = {name: value.clone() for name, value in runner.module.state_dict().items()}
    rates = {
        name: group["initial_lr"]
        for group in runner.step.optimizer.param_groups
        for name, parameter in runner.module.named_parameters()
        if any(parameter is p for p in group["params"])
    }
    assert rates["head.fc.weight"] == pytest.approx(0.1)
    assert rates["backbone.conv2.weight"] == rates["backbone.bn2.bias"] == pytest.approx(0.05)
    assert rates["backbone.conv1.weight"] == pytest.approx(0.01)
    train_classifier(cfg)
    states = [latest(cfg, f"epoch_{epoch}.pth")["state_dict"] for epoch in (1, 2, 3)]

    def changed(before: dict[str, Any], after: dict[str, Any]) -> set[str]:
        return {name.rpartition(".")[0] for name in before if not torch.equal(before[name], after[name])}

    assert changed(states[0], states[1]) == {"head.fc", "backbone.conv2", "backbone.bn2"}
    assert changed(states[1], states[2]) == {"head.fc", *(f"backbone.{n}" for n in ("conv1", "bn1", "conv2", "bn2"))}
    backbone = {name: value for name, value in first.items() if name.startswith("backbone")}
    shapes = {name: value.shape for name, value in states[0].items() if name.startswith("backbone")}
    assert {name: value.shape for name, value in backbone.items()} == shapes
    assert states[0]["backbone.bn1.num_batches_tracked"] == 0 and states[2]["backbone.bn1.num_batches_tracked"] == 12
    text = log_text(cfg)
    assert "Epoch 2: Training backbone.conv2, backbone.bn2 as well, at 0.5 of the learning rate" in text
    assert "Dropping the features, because the backbone trains from now on" in text


def test_unfreezing_goes_on_bit_identical(make_config: MakeConfig) -> None:
    from tiny_parts import Ended

    whole = unfreezing(make_config, "whole")
    train_classifier(whole)
    for at in (17, 31):  # in the second and third epoch
        cut = unfreezing(
            make_config,
            f"cut{at}",
            custom_hooks=[dict(type="EndAt", event="after_iter", at=at)],
            checkpoint_config=dict(by_epoch=False, interval=5),
        )
        with pytest.raises(Ended):
            train_classifier(cut)
        cut.custom_hooks = cut.custom_hooks[:-1]
        train_classifier(cut, resume=True)
        assert_same(latest(whole)["state_dict"], latest(cut)["state_dict"])
        assert_same(latest(whole)["optimizer"], latest(cut)["optimizer"])


def test_unfreezing_with_delayed_quantization(make_config: MakeConfig) -> None:
    policy = dict(Conv2d=dict(type="LSQConv", num_bit_w=4, num_bit_a=4))
    quant = dict(
        quant_transformer=dict(type="mTransformerV2", quan_policy=policy), calibration=dict(epoch=1), kernels="plain"
    )
    hooks = [dict(type="UnfreezeHook", epoch=2, layers=["backbone"])]
    cfg = make_config("quantized", options={"log_config.pictures": False}, total_epochs=3, custom_hooks=hooks, **quant)
    train_classifier(cfg)
    states = [latest(cfg, f"epoch_{epoch}.pth")["state_dict"] for epoch in (1, 2, 3)]
    scale = next(name for name in states[0] if name.endswith("conv2.weight_quantizer.scale"))
    assert not torch.equal(states[0][scale], states[1][scale])  # from the calibration
    assert not torch.equal(states[1][scale], states[2][scale])  # learned
    assert torch.equal(states[0]["backbone.conv2.weight"], states[1]["backbone.conv2.weight"])


@pytest.mark.parametrize(
    ("hook", "message"),
    [
        (dict(epoch=0), "epoch must be an integer ≥ 1"),
        (dict(epoch=2), "epoch=2, but the run has only 2 epochs"),
        (dict(epoch=1, layers=["bakbone"]), "'bakbone' matches no part of the model. Did you mean 'backbone'"),
        (dict(epoch=1, layers=[]), "needs layers"),
        (dict(epoch=1, lr_mult="much"), "lr_mult must be a number"),
        (dict(epoch=1, layer=["backbone"]), "Did you mean 'layers'"),
    ],
)
def test_mistakes_of_unfreezing(make_config: MakeConfig, hook: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        train_classifier(make_config("wrong", custom_hooks=[dict(type="UnfreezeHook", **hook)]))


def run(cfg: Config) -> EpochRunner:
    with open_session(read_settings(cfg), log_file=Path(cfg.work_dir) / "run.log") as session:
        seed_everything(cfg.seed)
        runner = build_runner(cfg, Path(cfg.work_dir), session, run="best")
        runner.run()
    return runner


@pytest.mark.parametrize("ema", [None, dict(decay=0.5)], ids=["plain", "ema"])
def test_the_best_weights_are_reloaded(make_config: MakeConfig, ema: Any) -> None:
    lr_config = dict(policy="step", step=[2], gamma=30.0)  # the last epoch spoils what the first two learned
    cfg = make_config("best", total_epochs=3, lr_config=lr_config, ema=ema, options={"log_config.pictures": False})
    runner = run(cfg)
    last, best = latest(cfg)["state_dict"], latest(cfg, "best_top-1.pth")["state_dict"]
    assert not torch.equal(last["head.fc.weight"], best["head.fc.weight"])
    assert_same(dict(runner.eval_model.state_dict()), best)
    top1, epoch = max((record["top-1"], -record["epoch"]) for record in results(cfg) if record["mode"] == "val")
    assert f"Reloaded the best weights: top-1 {top1:.4f}, epoch {-epoch}, " in log_text(cfg)
    cfg.total_epochs = 4
    train_classifier(cfg, resume=True)  # goes on from the last weights, not from the best
    straight = make_config(
        "straight", total_epochs=4, lr_config=lr_config, ema=ema, options={"log_config.pictures": False}
    )
    train_classifier(straight)
    assert_same(latest(cfg)["state_dict"], latest(straight)["state_dict"])


def test_the_last_weights_may_stay(make_config: MakeConfig) -> None:
    evaluation = dict(reload_best=False)
    cfg = make_config("last", lr_config=dict(policy="step", step=[1], gamma=30.0), evaluation=evaluation)
    runner = run(cfg)
    assert_same(dict(runner.module.state_dict()), latest(cfg)["state_dict"])
    assert "Reloaded" not in log_text(cfg)


@pytest.mark.parametrize("meanwhile", [False, True])
def test_a_best_file_that_is_gone_is_said(
    meanwhile: bool, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the run goes on, or while it does."""
    cfg = make_config("gone", options={"log_config.pictures": False})
    train_classifier(cfg)
    (Path(cfg.work_dir) / "best_top-1.pth").unlink()
    if meanwhile:
        monkeypatch.setattr("lbitcls.core.hooks.evaluation_hook._is_there", lambda *_: True)
    summary = train_classifier(cfg, resume=True)
    gone = "The best float weights so far"
    kept = "Kept the last epoch's weights instead of the best"
    assert (gone in log_text(cfg), kept in log_text(cfg)) == (not meanwhile, meanwhile)
    assert meanwhile or summary["checkpoint"].endswith("latest.pth")


def test_weights_are_found_below_the_data_root(make_config: MakeConfig, tmp_path: Path) -> None:
    source = make_config("source", total_epochs=1, options={"log_config.pictures": False})
    train_classifier(source)
    folder = tmp_path / "root" / "weights"
    folder.mkdir(parents=True)
    (Path(source.work_dir) / "latest.pth").rename(folder / "net.pth")
    cfg = frozen(make_config, "from_file", total_epochs=1, options={"model.pretrained": "weights/net.pth"})
    train_classifier(cfg, data_root=str(tmp_path / "root"))
    states = [torch.load(path, weights_only=True) for path in (folder / "net.pth", f"{cfg.work_dir}/latest.pth")]
    before, after = (state["state_dict"]["backbone.conv1.weight"] for state in states)
    assert torch.equal(before, after)
    assert cfg.model.pretrained == "weights/net.pth"  # the config stays as it was written


def test_the_shape_that_published_weights_take(make_config: MakeConfig) -> None:
    from lbitcls.workflows.planning import image_shape

    model = torch.nn.Sequential()
    model.backbone = torch.nn.Identity()
    cfg = make_config("shape")
    cfg.data.test.pipeline = [dict(type="PretrainedPreprocessing", weights="torchvision://mobilenet_v2")]
    assert image_shape(read_settings(cfg), model) == (3, 224, 224)
