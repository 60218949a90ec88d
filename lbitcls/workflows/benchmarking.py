"""Times exported models and prints a table: `lbitcls benchmark`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from lbitcls.deploy.runtime.benchmark import Comparison, Timing, time_models
from lbitcls.quant.plan import aligned
from lbitcls.utils.files import check_writable, write_whole
from lbitcls.utils.jsontext import json_text

HEADER = ("batch", "bits", "precision", "median ms", "90 % ms", "images/s", "ratio", "KiB", "file")


def benchmark_models(
    models: Sequence[str | Path],
    *,
    engine: str | None = None,
    threads: int | None = 2,
    batches: Sequence[int] = (1, 16),
    precision: str = "f32",
    bf16: bool = False,
    repeats: int = 30,
    out: str | Path | None = None,
) -> Comparison:
    """Time exported models side by side, and print a table.

    Args:
        models: Exported files; ratios are to the first that is known to be float, or else to the last.
        engine: Engine of all files; None: for each file the first that judges files of its target.
        threads: Number of threads of the engine; None: its own choice.
        batches: Batch sizes.
        precision: Type of non-integer operations: `f32` or `bf16`.
        bf16: True: time the baseline in bf16 too.
        repeats: Turns per file and batch size.
        out: JSON file for the results; None: the results are not written.

    Raises:
        LbitclsError: a file cannot be run, or an argument is wrong.
    """
    target = None if out is None else check_writable(out, "--json", *models)
    seen = time_models(
        models, engine=engine, threads=threads, batches=batches, precision=precision, bf16=bf16, repeats=repeats
    )
    threads_said = "default number of threads" if seen.threads is None else f"{seen.threads} threads"
    print(f"{seen.engine}, {threads_said}, {seen.cores} cores of {seen.cpu}")
    print("\n".join(aligned([HEADER, *(_row(timing) for timing in seen.timings)])))
    if seen.baseline is not None:
        print(f"Ratios are to {seen.baseline} in {precision}: below 1 is faster.")
    if bf16 and not any(timing.precision == "bf16" for timing in seen.timings):
        print("bf16 was not timed: there is no float file, or the engine or the CPU does not support it.")
    if target is not None:
        text = json_text(asdict(seen), indent=2) + "\n"
        write_whole(target, lambda path: path.write_text(text, encoding="utf-8"))
    return seen


def _row(timing: Timing) -> tuple[str, ...]:
    return (
        str(timing.batch),
        timing.bits,
        timing.precision,
        f"{timing.median_ms:.2f}",
        f"{timing.p90_ms:.2f}",
        f"{timing.images_per_second:.0f}",
        "" if timing.ratio is None else f"{timing.ratio:.3f}",
        f"{timing.size_kib:.0f}",
        timing.file,
    )
