"""Exports a checkpoint for a target, with integer weights, and compares the two models on real images."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lbitcls.assembly.session import Session, load_data, make_model, open_session
from lbitcls.deploy.export.composed import refuse_residuals
from lbitcls.deploy.export.onnx import ExportReport, export_model
from lbitcls.deploy.export.onnx import check_options as check_file_options
from lbitcls.deploy.export.residuals import carry_residuals, residual_bits
from lbitcls.deploy.runtime.engine import find_engine, first_reason
from lbitcls.deploy.runtime.metadata import model_file, require
from lbitcls.deploy.targets.base import Target, find_target
from lbitcls.deploy.verification.placement import integer_layers
from lbitcls.deploy.verification.verdict import FEWEST_IMAGES, LEGEND
from lbitcls.registry import TARGETS
from lbitcls.settings.export import ExportOptions
from lbitcls.settings.parse import parse
from lbitcls.settings.sections import ConfigLike, DataConfig, Settings, read_settings
from lbitcls.utils.checkpoint import load_checkpoint
from lbitcls.utils.errors import ConfigError, LbitclsError
from lbitcls.utils.files import check_writable, write_whole
from lbitcls.utils.folders import move_folder
from lbitcls.utils.jsontext import json_text
from lbitcls.utils.logging import print_table
from lbitcls.utils.temporary import new_temporary_folder
from lbitcls.workflows.calibrating import calibration_images, first_images
from lbitcls.workflows.planning import image_shape

RANGE_IMAGES = 64
"""Number of images from which ranges are computed that training did not give: of skip connections, for example."""


class RejectedError(LbitclsError):
    """Error for an exported file that does not compute what was trained."""


def export_checkpoint(
    cfg: ConfigLike,
    checkpoint: str | Path,
    out: str | Path,
    options: ExportOptions | None = None,
    *,
    data_root: str | None = None,
    details: bool = False,
    **given: Any,
) -> ExportReport:
    """Write the model of `cfg` with the weights in `checkpoint` for a target, and print a summary of it.

    Writes a report beside it, `model.report.json` for `model.onnx`.

    Args:
        cfg: Config that the checkpoint was trained with.
        checkpoint: Checkpoint of this model, quantized or float.
        out: File to write, with the target's suffix (`.onnx`), or a folder; for a symbolic link, what it points to.
        options: Options of the export; None: those in `given`.
        data_root: Folder to search for relative data paths.
        details: True: print the whole table of a verification that passed, too.
        given: Fields of `ExportOptions` by name, which override those of `options`: `verify=True, pack=True`.

    Raises:
        ConfigError: an argument is wrong, `out` cannot be written, or a layer cannot be expressed in ONNX or run by
            the target.
        CheckpointError: the weights do not fit, or were trained with other quantizers.
        DependencyError: an engine that `verify` needs is missing.
        RejectedError: the file is not faithful; it and its report are named `model.rejected`, and older files stay.
    """
    settings = read_settings(cfg)
    settings.require(("model", "data"), "an export")
    options = parse(ExportOptions, {**vars(options or ExportOptions()), **given}, ExportOptions.PLACE)
    check_options(options)
    out = _check_out(out, find_target(options.target))
    with open_session(settings) as session, _draft(out) as draft:
        model = make_model(settings, session, pretrained=False, data_root=data_root, checkpoint=checkpoint)
        meta = load_checkpoint(model, checkpoint, strict=True, logger=session.logger)["meta"]
        batches = _verification_images(settings, session, options.num_images, data_root) if options.verify else []
        model, residuals = _with_residuals(model.eval(), settings, session, options, data_root)
        report = export_model(
            model,
            draft,
            input_shape=_input_shape(settings, model, session, data_root),
            opset=options.opset,
            part=options.part,
            pack=options.pack,
            target=options.target,
            runtime=options.runtime,
            classes=meta.get("CLASSES") or getattr(model, "CLASSES", None),
            pipeline=json.loads(json_text(_pipeline(settings.data))),
            config=settings.text,
            batches=_range_images(settings, session, options, data_root),
        )
        report, layers = _in_integers(report)
        _print(replace(report, path=out), layers)
        result = _verify(model, draft, out, batches, details) if options.verify else None
        rejected = result is not None and not result["passed"]
        report = replace(report, path=_rejected(out) if rejected else out)
        record = {"export": report.to_json(), "residuals": residuals, "layers": layers, "verification": result}
        _put(draft, report.path)
        write_whole(_report_path(report.path), lambda path: path.write_text(_text(record), "utf-8"))
        if result is not None and rejected:
            reasons = "".join(f"\n  {reason}" for reason in result["reasons"])
            raise RejectedError(
                f"the exported model does not compute what was trained; it is named {report.path}:{reasons}"
            )
    return report


@contextmanager
def _draft(out: Path) -> Iterator[Path]:
    """Yield the path of the unverified file or folder, of the same name, in a temporary folder above `out`."""
    with new_temporary_folder(next(above for above in out.parents if above.exists())) as folder:
        yield folder / out.name


def _put(draft: Path, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    move_folder(draft, path) if draft.is_dir() else draft.replace(path)


def check_options(options: ExportOptions) -> None:
    """Raise the errors that an export with these options would raise, before anything is built."""
    target = check_file_options(options.opset, options.part, options.pack, options.target, options.runtime)
    for package in target.packages:
        require(package, target.extra)
    for engine in map(find_engine, target.engines if options.verify else ()):
        engine.check_installed()


def _check_out(out: str | Path, target: Target) -> Path:
    """Return the file or folder to write; for a link its target, so that draft and report are written beside that."""
    out = Path(out).expanduser()
    if target.suffix == "":
        return _check_out_folder(out, target)
    if out.suffix != target.suffix or out.is_dir():
        article = "an" if target.suffix == ".onnx" else "a"
        others = [name for name in TARGETS.names() if find_target(name).suffix == out.suffix != target.suffix]
        hint = f" For {out.suffix}, use --target {' or '.join(others)}." if others and out.suffix else ""
        raise ConfigError(
            f"--out must be {article} {target.suffix} file, such as model{target.suffix}; got '{out}'.{hint}"
        )
    if out.is_symlink():
        out = Path(os.path.realpath(out))
    for path in (out, _report_path(out)):
        check_writable(path, "--out")
    return out


def _check_out_folder(out: Path, target: Target) -> Path:
    """Return the folder to write, after a check that replacing it loses nothing else."""
    if out.is_symlink():
        out = Path(os.path.realpath(out))
    _check_replaceable(out, target)
    _check_replaceable(_rejected(out), target)
    check_writable(_report_path(out), "--out")
    return out


def _check_replaceable(folder: Path, target: Target) -> None:
    here = Path.cwd()
    if folder.resolve() in (here, *here.parents):
        raise ConfigError(f"--out {folder} is the current folder, or contains it; name a new one.")
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--out must be a folder for {target.name}; {folder} is a file.")
    if folder.is_dir() and (others := target.foreign(folder)):
        raise ConfigError(
            f"--out {folder} would be replaced as a whole, and contains {others[0]}, which no export wrote; name a new "
            "folder."
        )


def _rejected(out: Path) -> Path:
    return out.with_name(f"{out.stem}.rejected{out.suffix}")


def _report_path(model: Path) -> Path:
    """Return the report's path: `model.report.json` for `model.onnx`, `model.tflite.report.json` for `model.tflite`."""
    return model.with_name(f"{model.stem if model.suffix == '.onnx' else model.name}.report.json")


def _in_integers(report: ExportReport) -> tuple[ExportReport, dict[str, Any] | None]:
    """Return the report and the layers that OpenVINO runs in integers; if it cannot run the file, note the reason.

    None without OpenVINO, or if it does not judge files of the target.
    """
    file, judges = model_file(report.path), report.info.engines or ()
    if "openvino" not in judges or find_spec("openvino") is None or "openvino" in report.cannot_run:
        return report, None
    try:
        return report, integer_layers(file)
    except RuntimeError as error:  # OpenVINO's: it has no kernel for an operation
        return replace(report, cannot_run={**report.cannot_run, "openvino": first_reason(error)}), None


def _pipeline(data: DataConfig) -> list[Any]:
    section = data.test or data.val or {}
    from lbitcls.datasets.pipelines.pretrained import written_out

    return [dict(step) for step in written_out(section.get("pipeline") or [])]


def _input_shape(settings: Settings, model: nn.Module, session: Session, data_root: str | None) -> tuple[int, int, int]:
    """Return the image shape (C, H, W) from the pipeline, else from the first image."""
    try:
        return image_shape(settings, model)
    except ConfigError:
        dataset, _ = load_data(settings, _tested(settings.data), "an export", session, data_root=data_root)
        channels, height, width = dataset[0]["img"].shape
        return channels, height, width


def _tested(data: DataConfig) -> str:
    return "val" if data.val is not None else "test"


def _verification_images(
    settings: Settings, session: Session, number: int, data_root: str | None
) -> Iterable[torch.Tensor]:
    """Return batches of `number` images of the validation set; if it has too few to judge, of the training set too."""
    data, split = settings.data, _tested(settings.data)
    dataset, loader = load_data(settings, split, "verification", session, data_root=data_root)
    batches = first_images(loader, number)
    missing = min(number, FEWEST_IMAGES) - len(dataset)
    if missing <= 0 or data.train is None:
        return batches
    tested: dict[str, Any] = data.val or data.test or {}
    section = {**data.train, "pipeline": tested.get("pipeline", ())}
    whole = settings.changed(data={"drop_last": False})
    try:
        images, more = load_data(whole, "train", "verification", session, data_root=data_root, section=section)
    except LbitclsError as error:  # the training set may be elsewhere; the file can be exported all the same
        session.logger.warning("data.%s has only %d images, and data.train adds none: %s", split, len(dataset), error)
        return batches
    session.logger.info(
        "Verification needs %d images and data.%s has %d: adding %d from data.train, with the pipeline of data.%s.",
        *(FEWEST_IMAGES, split, len(dataset), min(missing, len(images)), split),
    )
    return chain(batches, first_images(more, missing))


def _range_images(
    settings: Settings, session: Session, options: ExportOptions, data_root: str | None
) -> Iterable[torch.Tensor]:
    """Return the images for the ranges that the target needs beyond those of training."""
    if not find_target(options.target).needs_images:
        return ()
    return first_images(calibration_images(settings, None, session, data_root), RANGE_IMAGES)


def _with_residuals(
    model: nn.Module, settings: Settings, session: Session, options: ExportOptions, data_root: str | None
) -> tuple[nn.Module, dict[str, str]]:
    """Return the model to export, with 8-bit skip connections if wanted, and a note on each of these."""
    bits = options.residual_bits
    if bits is None or bits == residual_bits(model):  # trained with them
        return model, {}
    refuse_residuals(model)
    images = first_images(calibration_images(settings, None, session, data_root), RANGE_IMAGES)
    return carry_residuals(model, images, bits, signed=find_target(options.target).signed_residuals)


def _verify(model: nn.Module, draft: Path, out: Path, batches: Iterable[torch.Tensor], details: bool) -> dict[str, Any]:
    """Verify the draft and print the verdict; return it as plain data, with the path that the draft will get."""
    from lbitcls.deploy.verification.verify import verify

    found = verify(model, draft, batches)
    final = _rejected(out) if not found.passed else out
    found = replace(found, certificates=tuple(replace(one, file=str(final)) for one in found.certificates))
    verdict = "REJECTED" if not found.passed else "passed" if found.judged else "not judged"
    print(f"Verification on {found.images} images: {verdict}\n{found.sentence}")
    for certificate in found.certificates:
        print(certificate.sentence)
    if details or not found.passed:
        print_table("Differences", found.columns, found.table())
        print(LEGEND)
    for engine, reason in found.cannot_run.items():
        print(f"{engine} does not judge the file, because it cannot run it: {reason}")
    if found.warning is not None:
        print(found.warning)
    return found.to_json()


def _print(report: ExportReport, layers: dict[str, Any] | None) -> None:
    info = report.info
    containers = sorted({layer["container"] for layer in info.layers if layer["container"]})
    rows = [
        ("file", report.path),
        ("method", f"{info.quantization}, {len(info.layers) or 'no'} quantized layers"),
        ("input type", ", ".join(containers) or "float32"),
        ("size", f"{report.size / 1024:.0f} KiB, {report.size / report.float_size:.3f} of float"),
    ]
    if any(layer["packed"] for layer in info.layers):
        rows.append(("size in int8", f"{report.unpacked_size / 1024:.0f} KiB"))
    if report.container_ms:
        measured = ", ".join(f"{name} {ms} ms" for name, ms in report.container_ms.items())
        rows.append(("signed inputs measured", measured))
    rows += [(f"not for {engine}", reason) for engine, reason in report.cannot_run.items()]
    for kind, counts in (layers or {}).items():
        rows.append((f"{kind} in integers", f"{counts['integer']} of {counts['total']}"))
        rows += [(f"  float: {name}", reason) for name, reason in _shown(counts["float"], info.is_float).items()]
    rows += [(f"  int8: {name}", reason) for name, reason in report.not_packed.items()]
    print_table("Export", ("", ""), [*rows, ("seconds", f"{report.seconds:.1f}")])


def _shown(layers: dict[str, str], is_float: bool) -> dict[str, str]:
    """Return the layers that fell back to float; none for a float model."""
    return {} if is_float else layers


def _text(record: dict[str, Any]) -> str:
    return json_text(record, indent=2, ensure_ascii=False) + "\n"
