"""What the tests of TensorBoard share: a quantized run with the hook, and how its event files are read back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lbitcls.utils import Config

LAYERS = ["backbone.conv1", "backbone.conv2", "head.fc"]
QUANT = dict(
    quant_transformer=dict(
        type="mTransformerV2",
        quan_policy=dict(
            Conv2d=dict(type="LSQConv", num_bit_w=3, num_bit_a=4),
            Linear=dict(type="LSQLinear", num_bit_w=8, num_bit_a=8),
        ),
    ),
    calibration=dict(epoch=1, num_batches=2),
)
KEYS = ["model.head.dropout", "data.train.pipeline.0.type", "quant_transformer.quan_policy.Conv2d.num_bit_w"]
EVERY = dict(type="TensorboardLoggerHook", interval=1)


def board(**options: Any) -> dict[str, Any]:
    """A section `log_config` with the hook alone."""
    return dict(interval=5, hooks=[{**EVERY, **options}], pictures=False)


def read(cfg: Config) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = Path(cfg.work_dir) / "tf_logs"
    assert all(path.is_file() for path in folder.iterdir()), "a folder would be a second run"
    events = EventAccumulator(str(folder), size_guidance=dict(scalars=0, histograms=0, images=0, tensors=0))
    return events.Reload()


def steps(events: Any, tag: str, kind: str = "Scalars") -> list[int]:
    return [event.step for event in getattr(events, kind)(tag)]


def last(events: Any, tag: str) -> float:
    return events.Scalars(tag)[-1].value


def table(events: Any, name: str) -> Any:
    """What an entry of the table of hyperparameters holds."""
    from tensorboard.plugins.hparams import metadata

    parse = getattr(metadata, f"parse_{name}_plugin_data")
    return parse(events.summary_metadata[getattr(metadata, f"{name.upper()}_TAG")].plugin_data.content)


def line(events: Any) -> dict[str, float | str]:
    found = table(events, "session_start_info").hparams
    return {name: getattr(value, value.WhichOneof("kind")) for name, value in found.items()}
