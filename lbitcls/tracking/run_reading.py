"""Facts about a run, read from the files in its work directory, whether it is complete or not."""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lbitcls.analysis.curves import LOG, Run, measure_time, read_run
from lbitcls.settings.sections import given_sections
from lbitcls.utils.config import Config
from lbitcls.utils.errors import CheckpointError, ConfigError, DataError, LbitclsError, suggest
from lbitcls.utils.files import read_lines
from lbitcls.utils.jsontext import json_text
from lbitcls.utils.lock import is_running
from lbitcls.utils.logging import get_logger

SUMMARY, REPORT = "summary.json", ".report.json"
_MARKS = (LOG, SUMMARY)  # files that only a work directory has; one without a record yet has a text log
_TEXT_LOG = re.compile(r"\d{8}_\d{6}\.log")
_FREE = ("seed", "work_dir", "resume_from", "log_level")  # sections in which two runs of one experiment may differ
_FLOAT = "float"


@dataclass(frozen=True, kw_only=True)
class RunRow:
    """Result of a run; None for what its files do not tell.

    Attributes:
        name: Name of the run: its folder's, or its path if several folders have the same name.
        path: Work directory, or the log if only that was given.
        state: `'complete'`, or how far the run came: `'running, epoch 3 of 30'`, `'stopped, epoch 3 of 30'`.
        method: Quantization method, `'LSQ'`; `'float'` without quantized layers.
        bits: Bits of most quantized layers, `'W4A4'`; `'float'` without quantized layers.
        seed: Seed of the run.
        float_top1: Best validation accuracy of the float phase, in percent.
        quantized_top1: Best validation accuracy of the quantized phase, in percent.
        exported_top1: Validation accuracy of the exported model, in percent.
        size_kib: Size of the model with each weight at its number of bits, in KiB.
        exported_kib: Size of the exported file in KiB.
        epoch: Epoch of the best weights of the last phase.
        minutes: Duration of the run; of one that was resumed or is not complete, of its logged iterations.
        recipe: Config without its seed, as text; None: unknown.
    """

    name: str
    path: str
    state: str
    method: str | None = None
    bits: str | None = None
    seed: int | None = None
    float_top1: float | None = None
    quantized_top1: float | None = None
    exported_top1: float | None = None
    size_kib: float | None = None
    exported_kib: float | None = None
    epoch: int | None = None
    minutes: float | None = None
    recipe: str | None = None

    @property
    def gap(self) -> float | None:
        """Quantized minus float accuracy, in percentage points; below 0: quantization costs accuracy."""
        if self.quantized_top1 is None or self.float_top1 is None:
            return None
        return self.quantized_top1 - self.float_top1

    @property
    def complete(self) -> bool:
        """True if the run trained all of its epochs."""
        return self.state == "complete"


def find_runs(paths: Sequence[str | Path]) -> list[Path]:
    """Return the runs that `paths` name: work directories and logs, and all work directories below other folders.

    Raises:
        DataError: A path is no run, and no folder that contains runs.
    """
    found: list[Path] = []
    for given in paths:
        path = Path(given).expanduser()
        below = [path] if path.is_file() or _is_run(path) else sorted(_runs_below(path))
        if not below:
            raise DataError(_no_run(path))
        found += below
    return found


def _is_run(folder: Path) -> bool:
    if not folder.is_dir():
        return False
    return any((folder / name).is_file() for name in _MARKS) or any(map(_TEXT_LOG.fullmatch, _names(folder)))


def _names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def _runs_below(folder: Path) -> Iterator[Path]:
    """Yield the work directories below a folder; what lies within one belongs to it."""
    if not folder.is_dir():
        return
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink() and not path.name.startswith("."):
            if _is_run(path):
                yield path
            else:
                yield from _runs_below(path)


def _no_run(path: Path) -> str:
    wanted = f"expected a work directory, which has a {LOG}, a folder with work directories, or such a log"
    if path.is_dir():
        return f"{path} is no run, and no run is below it; {wanted}."
    names = _names(path.parent) if path.parent.is_dir() else []
    return f"there is no run {path}; {wanted}{suggest(path.name, names)}"


def read_log(path: Path) -> Run | None:
    """Return the records of a run, or None if it has none yet."""
    try:
        return read_run(path)
    except DataError:
        if path.is_file():
            raise
        return None


def read_row(path: Path, name: str | None = None) -> RunRow:
    """Read the result of the run in a work directory, or of the run whose log is `path`.

    Args:
        path: Path from `find_runs`.
        name: Name of the run; None: its folder's.

    Raises:
        DataError: `path` is a file that is not a log.
    """
    log = read_log(path)
    folder = path.parent if path.name == LOG else path if path.is_dir() else None
    summary = {} if folder is None else _read_json(folder / SUMMARY)
    config = None if folder is None else _config_of(folder)
    state = _state(log, summary, config, folder is not None and is_running(folder))
    if state != "complete":
        summary = {}  # of an earlier part of the run, if there is one
    before, after = _phases(log, summary, config)
    last = after if after != (None, None) else before
    method, bits = _quantization(summary, config)
    file, kib = _exported(folder, summary)
    seed = _number(summary, "seed")
    seed = _number(config or {}, "seed") if seed is None else seed
    return RunRow(
        name=name or (folder or path.parent).resolve().name,
        path=str(path),
        state=state,
        method=method,
        bits=bits,
        seed=None if seed is None else int(seed),
        float_top1=before[0],
        quantized_top1=after[0],
        exported_top1=file,
        size_kib=_number(summary, "model_size", "quantized_kib"),
        exported_kib=kib,
        epoch=last[1],
        minutes=_minutes(log, summary),
        recipe=_recipe(config),
    )


def _read_json(path: Path) -> dict[str, Any]:
    """Return the dict in a JSON file, empty if the file is missing; one that is damaged counts as missing."""
    try:
        content = json.loads("\n".join(read_lines(path)))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        get_logger().warning("Ignoring %s, which cannot be read: %s", path, error)
        return {}
    return content if isinstance(content, dict) else {}


def _number(values: Any, *keys: str) -> float | None:
    """Return the number under nested keys, or None if there is none."""
    for key in keys:
        values = values.get(key) if isinstance(values, Mapping) else None
    return values if isinstance(values, (int, float)) and not isinstance(values, bool) else None


def _config_of(folder: Path) -> dict[str, Any] | None:
    """Return the config's sections, from the newest config in the folder, else from the newest checkpoint.

    Both are read as plain values; nothing is executed.
    """
    for path in sorted(folder.glob("*.py"), key=lambda path: path.stat().st_mtime_ns, reverse=True):
        with contextlib.suppress(OSError, UnicodeDecodeError, ConfigError):
            sections = Config.fromstring("\n".join(read_lines(path))).to_dict()
            if "model" in sections:
                return sections
    from lbitcls.core.run_files import checkpoints  # imports PyTorch, which the table needs for nothing else
    from lbitcls.utils.checkpoint import read_checkpoint

    for path in checkpoints(folder):
        with contextlib.suppress(CheckpointError, ConfigError):
            text = read_checkpoint(path, mmap=True)["meta"].get("config")
            return Config.fromstring(text).to_dict() if text else None
    return None


def _recipe(config: Mapping[str, Any] | None) -> str | None:
    """Return a config without the sections that may differ between repetitions, as text to compare."""
    if config is None:
        return None
    kept = {name: value for name, value in given_sections(config).items() if name not in _FREE}
    return json_text(kept, sort_keys=True, default=str)


def _state(log: Run | None, summary: Mapping[str, Any], config: Mapping[str, Any] | None, running: bool) -> str:
    done = 0 if log is None else max((r["epoch"] for r in log.records if r["mode"] in ("val", "train_eval")), default=0)
    begun = done if log is None else max(r["epoch"] for r in log.records)
    covered = _number(summary, "epochs")
    if summary and not running and (covered is None or covered >= begun):
        return "complete"
    total = _number(config or {}, "total_epochs")
    where = f"epoch {begun}" + ("" if total is None else f" of {total}") if begun else "no epoch"
    return f"{'running' if running else 'stopped'}, {where}"


Best = tuple[float | None, int | None]  # top-1 in percent, and its epoch


def _phases(log: Run | None, summary: Mapping[str, Any], config: Mapping[str, Any] | None) -> tuple[Best, Best]:
    """Return the best results of the float and of the quantized phase."""
    validated = {} if log is None else {r["epoch"]: r.get("top-1") for r in log.records if r["mode"] == "val"}
    if summary:
        before, after = (_told(summary, phase, validated) for phase in (_FLOAT, "quantized"))
        return before, after
    if config is None:
        return (None, None), (None, None)  # nothing tells the phases apart
    float_epochs = _number(config, "calibration", "epoch") or 0 if config.get("quant_transformer") else math.inf
    return (
        _best({epoch: value for epoch, value in validated.items() if epoch <= float_epochs}),
        _best({epoch: value for epoch, value in validated.items() if epoch > float_epochs}),
    )


def _told(summary: Mapping[str, Any], phase: str, validated: Mapping[int, Any]) -> Best:
    """Return the top-1 of a phase's best weights, from the log if they were chosen by another metric."""
    epoch, top1 = _number(summary, phase, "epoch"), _number(summary, phase, "top1")
    if epoch is None:
        return top1, None
    return validated.get(int(epoch)) if top1 is None else top1, int(epoch)


def _best(validated: Mapping[int, Any]) -> Best:
    known = {epoch: value for epoch, value in validated.items() if isinstance(value, (int, float))}
    if not known:
        return None, None
    epoch = max(known, key=lambda epoch: (known[epoch], -epoch))
    return known[epoch], epoch


def _quantization(summary: Mapping[str, Any], config: Mapping[str, Any] | None) -> tuple[str | None, str | None]:
    """Return method and bits: as the run recorded them, else as its config plans them."""
    told = summary.get("quantization")
    if isinstance(told, Mapping):
        mostly = f"W{told.get('weight_bits')}A{told.get('input_bits')}"
        bits = str(told.get("bits"))
        return str(told.get("method")), mostly if mostly in bits else bits
    return (None, None) if config is None else planned(config)


def planned(config: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """Return method and bits of the first kind of layer that a config quantizes."""
    transformer, backbone = config.get("quant_transformer"), (config.get("model") or {}).get("backbone") or {}
    if not transformer:
        return (None, None) if backbone.get("type") == "IntegerBackbone" else (_FLOAT, _FLOAT)
    policy = transformer.get("quan_policy")
    if not policy:
        return None, None
    from lbitcls.quant.methods import LayerEntry, find_entry

    try:
        entry, options = find_entry(next(iter(policy.values())))
        if not isinstance(entry, LayerEntry):
            return None, None
        settings = entry.settings(options)
    except LbitclsError:
        return None, None
    return entry.method.name, f"W{settings.weight_bits or 32}A{settings.input_bits or 32}"


def _exported(folder: Path | None, summary: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """Return the exported model's top-1 in percent, and the size of its file in KiB."""
    size = _number(summary, "integer", "size_kib")
    if size is None and folder is not None:
        files = [path.with_name(path.name.removesuffix(REPORT) + ".onnx") for path in folder.glob(f"*{REPORT}")]
        kept = [path for path in files if path.is_file() and not path.stem.endswith(".rejected")]
        newest = max(kept, key=lambda path: path.stat().st_mtime_ns, default=None)
        size = None if newest is None else newest.stat().st_size / 1024
    return _number(summary, "integer", "top1"), size


def _minutes(log: Run | None, summary: Mapping[str, Any]) -> float | None:
    seconds = _number(summary, "seconds")
    if seconds is None and log is not None:
        with contextlib.suppress(DataError):  # nothing was trained
            timing = measure_time(log)
            seconds = timing.mean * timing.iterations
    return None if seconds is None else seconds / 60
