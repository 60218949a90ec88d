"""Lines around a command's own output: the library config that it uses, and the commands to type next."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lbitcls.utils.files import is_exported
from lbitcls.utils.logging import interactive

Commands = list[list[str]]


def say_config(args: argparse.Namespace) -> None:
    """Print, to standard error, which of the package's configs is used for a path that does not exist here."""
    from lbitcls.utils.library import find_shipped

    given = Path(getattr(args, "config", None) or getattr(args, "model", None) or "")
    if _reports() and not given.exists() and (shipped := find_shipped(given)) is not None:
        print(f"Config: {shipped}, from the package's library.", file=sys.stderr)


def say_next(verb: str, args: argparse.Namespace, result: object) -> None:
    """Print the commands to type after `lbitcls VERB`; nothing after the last of the chain.

    Predictions are often piped to another program, so `infer` names the next command only on a terminal.
    """
    if verb not in _NEXT or not _reports() or (verb == "infer" and not interactive()):
        return
    if commands := _NEXT[verb](args, result):
        print("Next:", *(f"  lbitcls {shlex.join(command)}" for command in commands), sep="\n")


def _reports() -> bool:
    return (os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or "0") == "0"


def _after_train(args: argparse.Namespace, summary: Any) -> Commands:
    if args.find_lr:
        return [] if summary.suggestion is None else [["train", args.config, *_with_rate(args, summary.suggestion)]]
    if "integer" in summary:
        model = Path(summary["integer"]["file"])
        return [_infer(model), _benchmark(model)]
    checkpoint = Path(summary["checkpoint"])
    test = ["test", args.config, str(checkpoint), *_given(args)]
    return [test, *_after_model(args, args.config, checkpoint)] if "quantized" in summary else [test]


def _after_test(args: argparse.Namespace, _: Any) -> Commands:
    config, model = _files(args, args.folder)
    if model is None:
        return [["train", str(config), *_given(args)]]
    return _after_model(args, config, Path(model))


def _after_infer(args: argparse.Namespace, _: Any) -> Commands:
    config, model = _files(args, args.images)
    return _after_model(args, config, Path(str(model)))


def _files(args: argparse.Namespace, others: list[str]) -> tuple[str | None, str | None]:
    """Return the config and the model among the files of `test` or `infer`."""
    from lbitcls.inference.self_described import sort_arguments

    given = sort_arguments([args.model, *others], "")
    return given.config, given.model


def _after_model(args: argparse.Namespace, config: str | None, model: Path) -> Commands:
    if is_exported(model):
        return [_benchmark(model)]
    if config is None:  # an export needs it
        return []
    return [["export", config, str(model), "--out", str(model.with_name("model.onnx")), *_given(args)]]


def _after_export(args: argparse.Namespace, _: Any) -> Commands:
    if args.part == "backbone":
        return []
    model = Path(args.out)
    if model.is_dir():
        return [["demo", str(model)]]
    return [["test", args.config, str(model), *_given(args)], _benchmark(model)]


def _infer(model: Path) -> list[str]:
    return ["infer", str(model), "IMAGE"]


def _benchmark(model: Path) -> list[str]:
    """Return the command that times a model, with the float file beside it, if any, for the ratio."""
    base = model.with_name("float.onnx")
    return ["benchmark", str(model), *([str(base)] if base != model and base.is_file() else [])]


def _given(args: argparse.Namespace) -> list[str]:
    """Return the options that the next command needs, too: `--data-root` and `--options`."""
    root = getattr(args, "data_root", None)
    return [*(["--data-root", root] if root else []), *_options(args)]


def _with_rate(args: argparse.Namespace, rate: float) -> list[str]:
    """Return the options of a training run at the learning rate `rate`."""
    others = [option for option in args.options if not option.lstrip("+").startswith("optimizer.lr=")]
    root = ["--data-root", args.data_root] if args.data_root else []
    return [*root, "--options", *others, f"optimizer.lr={rate:.2g}"]


def _options(args: argparse.Namespace) -> list[str]:
    return ["--options", *args.options] if args.options else []


_NEXT: dict[str, Callable[[argparse.Namespace, Any], Commands]] = {
    "train": _after_train,
    "test": _after_test,
    "infer": _after_infer,
    "export": _after_export,
}
