"""Check-up of a quantized model, and the bits that a float model can take: `lbitcls doctor`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lbitcls.analysis.illnesses import SEVERITIES, Finding, diagnose
from lbitcls.analysis.layer_bits import BITS, BUDGET, BitsReport, LayerBits, try_bits
from lbitcls.analysis.vital_signs import VitalSigns, take_signs
from lbitcls.assembly.session import Session, load_data, make_model, open_session
from lbitcls.quant.layers import ENTRY_SUFFIXES
from lbitcls.quant.plan import aligned
from lbitcls.quant.transformer import build_mtransformer
from lbitcls.settings.sections import ConfigLike, Settings, read_settings
from lbitcls.tracking.step_watch import StepWatch
from lbitcls.utils.checkpoint import load_checkpoint, read_checkpoint
from lbitcls.utils.errors import CheckpointError, ConfigError, DataError
from lbitcls.utils.files import check_writable, write_whole
from lbitcls.utils.jsontext import json_text, with_nulls
from lbitcls.utils.logging import interactive
from lbitcls.version import __version__
from lbitcls.workflows.comparing import find_images, read_batches

LSQ = {
    "type": "ModelTransformer",
    "quan_policy": {
        kind: {"type": f"LSQ{suffix}", "num_bit_w": 8, "num_bit_a": 8} for kind, suffix in ENTRY_SUFFIXES.items()
    },
}
"""Transformer of a float model whose config has none."""


def examine_checkpoint(
    cfg: ConfigLike,
    checkpoint: str | Path,
    images: str | Path | None = None,
    *,
    out: str | Path | None = None,
    num_images: int = 64,
    data_root: str | None = None,
) -> list[Finding]:
    """Examine a quantized model on a few images, and print what is ill, worst first.

    Args:
        cfg: Config of the quantized model.
        checkpoint: Its checkpoint. If the run had a `QuantStatsHook`, the oscillations that it watched count too.
        images: Image or folder of images; None: images of `data.test`, or else `data.val`.
        out: JSON file for the findings and the measures of each layer.
        num_images: Maximum number of images, at least 1.
        data_root: Folder to search for relative data paths.

    Returns:
        The findings; an empty list for a healthy model.

    Raises:
        ConfigError: The config has no `quant_transformer`, or a file cannot be written.
        CheckpointError: The checkpoint cannot be read, or is a float model's.
        DataError: There are no images.
    """
    settings = _settings(cfg, num_images)
    if not settings.quant_transformer:
        raise ConfigError(
            "the config has no quant_transformer, so there is nothing to examine; give the quantized model's config, "
            "or --bits to learn which bits the float model can take."
        )
    target = _target(out, settings, checkpoint)
    if not any(_switches(checkpoint)):
        raise CheckpointError(
            f"{checkpoint} must be a quantized model's checkpoint; it has float weights. lbitcls calibrate quantizes "
            "them, and --bits tells which bits they can take."
        )
    with open_session(settings) as session:
        model, classes = _open(settings, checkpoint, session, data_root)
        batches, _ = _read(settings, images, num_images, model, classes, session, data_root)
        signs = take_signs(model, batches, _watched(checkpoint))
    findings = diagnose(signs)
    number = sum(len(batch) for batch in batches)
    print("\n".join(check_up_lines(findings, signs, number)))
    if target is not None:
        about = {"lbitcls_version": __version__, "checkpoint": str(checkpoint), "images": number}
        _write(target, {**about, "findings": [asdict(finding) for finding in findings], **asdict(signs)})
    return findings


def recommend_bits(
    cfg: ConfigLike,
    checkpoint: str | Path,
    images: str | Path | None = None,
    *,
    out: str | Path | None = None,
    num_images: int = 64,
    data_root: str | None = None,
) -> BitsReport:
    """Print which bits each layer of a trained float model can take without training, and why.

    Args:
        cfg: Config of the model. The entries of its `quant_transformer` define the method of each layer; without one,
            it is LSQ per tensor.
        checkpoint: Float weights.
        images: Image or folder of images, as for `examine_checkpoint`.
        out: JSON file for all results.
        num_images: Maximum number of images, at least 1; the model runs 7 times per layer over them.
        data_root: Folder to search for relative data paths.

    Raises:
        ConfigError: A file cannot be written, or the config is wrong.
        CheckpointError: The checkpoint cannot be read, or is a quantized model's.
        DataError: There are no images.
    """
    settings = _settings(cfg, num_images)
    target = _target(out, settings, checkpoint)
    if any(_switches(checkpoint)):
        raise CheckpointError(
            f"--bits needs a checkpoint with float weights; {checkpoint} is a quantized model's. Give the float one, "
            "or leave --bits out for a check-up."
        )
    with open_session(settings) as session:
        section = settings.quant_transformer or LSQ
        model, classes = _open(settings.changed(quant_transformer=None), checkpoint, session, data_root)
        plan = build_mtransformer(section).plan(model)
        batches, labels = _read(settings, images, num_images, model, classes, session, data_root)
        report = try_bits(model, plan, batches, labels, shown=interactive())
    print("\n".join(bits_lines(report)))
    if target is not None:
        _write(target, {"lbitcls_version": __version__, "checkpoint": str(checkpoint), **asdict(report)})
    return report


def check_up_lines(findings: Sequence[Finding], signs: VitalSigns, images: int) -> list[str]:
    """Return the findings as lines of text, worst first."""
    layers = len({grid.layer for grid in signs.grids})
    what = f"{layers} quantized layers on {images} image{'s' if images != 1 else ''}"
    if not findings:
        return [f"No illness found in {what}."]
    lines = [f"{len(findings)} finding{'s' if len(findings) != 1 else ''} in {what}, worst first:"]
    for finding in findings:
        lines += ["", f"{SEVERITIES[finding.severity]}: {finding.illness}, {finding.layer} ({finding.part})"]
        lines += [f"  {finding.sentence.replace('`', '')}", f"  Remedy: {finding.remedy}"]
    return lines


def bits_lines(report: BitsReport) -> list[str]:
    """Return the table of all trials, a line per layer with the reason, and the totals."""
    header = ("layer", "kind", "parameters", *(f"{bits} bits" for bits in BITS), "take")
    rows = [header, *(_cells(layer) for layer in report.layers)]
    width = max(len(layer.name) for layer in report.layers)
    together, top1 = report.together, ""
    if report.float_top1 is not None and together.top1 is not None:
        top1 = f", top-1 {100 * together.top1:.1f} % (float {100 * report.float_top1:.1f} %)"
    return [
        f"Each layer alone at these bits, on {report.images} images: SQNR of its output in dB, and images with the "
        "float model's class",
        *aligned(rows),
        "",
        *(f"{layer.name:<{width}}  {layer.bits} bits: {layer.why}" for layer in report.layers),
        "",
        f"All layers at these bits, without training: {report.mean_bits:.1f} bits per parameter, the float model's "
        f"class for {100 * (1 - together.changed):.1f} % of the images, divergence {together.kl:.2g} nats (of each "
        f"layer alone at most {report.limit:.2g}, in sum {BUDGET}){top1}.",
    ]


def _cells(layer: LayerBits) -> tuple[str, ...]:
    trials = [
        f"{'–' if t.sqnr_db is None else format(t.sqnr_db, '.0f')} {100 * (1 - t.error.changed):.0f}%"
        for t in layer.trials
    ]
    return layer.name, layer.kind, f"{layer.parameters:,}", *trials, str(layer.bits)


def _settings(cfg: ConfigLike, num_images: int) -> Settings:
    settings = read_settings(cfg)
    settings.require(("model", "data"), "a check-up")
    if num_images < 1:
        raise ConfigError(f"--num-images must be an integer ≥ 1; got {num_images}.")
    return settings


def _target(out: str | Path | None, settings: Settings, checkpoint: str | Path) -> Path | None:
    """Return the JSON file to write, after a check that it replaces nothing that is read; None: there is none."""
    config = [] if settings.source.filename is None else [settings.source.filename]
    return None if out is None else check_writable(out, "--json", checkpoint, *config)


def _switches(checkpoint: str | Path) -> list[bool]:
    """Return the on/off states of a checkpoint's quantizers; empty for a float model's."""
    state = read_checkpoint(checkpoint)["state_dict"]
    return [bool(value) for name, value in state.items() if name.endswith("_quantizer.enabled")]


def _watched(checkpoint: str | Path) -> Mapping[str, float]:
    """Return the shares of oscillating weights that the run's `QuantStatsHook` watched; empty without one."""
    state = (read_checkpoint(checkpoint).get("hooks") or {}).get("QuantStatsHook")
    if state is None:
        return {}
    watch = StepWatch()
    watch.load_state_dict(state)
    return watch.oscillating()


def _open(
    settings: Settings, checkpoint: str | Path, session: Session, data_root: str | None
) -> tuple[nn.Module, Sequence[str] | None]:
    """Return the model with its weights, on its device, and its class names if they are known."""
    model = make_model(settings, session, pretrained=False, data_root=data_root, checkpoint=checkpoint)
    strict = bool(settings.quant_transformer)  # a checkpoint of a float phase has extra tensors, the quantizers'
    content = load_checkpoint(model, checkpoint, strict=strict, logger=session.logger)
    return model.to(session.device).eval(), content["meta"].get("CLASSES")


def _read(
    settings: Settings,
    images: str | Path | None,
    number: int,
    model: nn.Module,
    classes: Sequence[str] | None,
    session: Session,
    data_root: str | None,
) -> tuple[list[Tensor], Tensor | None]:
    """Return the images in batches on the model's device, and their labels on the CPU if they are known."""
    if images is not None:
        batches, labels = read_batches(find_images(images, number), Path(images).expanduser(), settings, model, classes)
    else:
        loader = load_data(settings, settings.data.tested, "a check-up", session, data_root=data_root, number=number)[1]
        read: list[dict[str, Any]] = list(loader)
        if not read:
            raise DataError(f"none of the images of data.{settings.data.tested} can be read.")
        batches, labels = [batch["img"] for batch in read], torch.cat([batch["gt_label"] for batch in read])
    return [batch.to(session.device) for batch in batches], labels


def _write(path: Path, content: dict[str, Any]) -> None:
    text = json_text(with_nulls(content), indent=1, ensure_ascii=False) + "\n"
    write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    print(f"wrote {path}")
