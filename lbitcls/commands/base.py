"""Shared parts of the commands: the registry of verbs, common options, and the config with its overrides."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from lbitcls.utils.errors import ConfigError
from lbitcls.utils.files import is_exported

if TYPE_CHECKING:
    from lbitcls.settings.base import Section
    from lbitcls.utils.config import Config

T = TypeVar("T", bound="Section")
Run = Callable[[argparse.Namespace], object]

PURPOSES = START, TRAIN, SHIP, LOOK = "prepare", "train and test", "export and use", "inspect runs and predictions"
"""Purposes of the verbs, in the order in which the help lists them."""


@dataclass(frozen=True)
class ShortForm:
    """Flag that overrides one key of the config."""

    key: str
    type: type[int] | type[float]
    help: str


SHORT_FORMS = {
    "epochs": ShortForm("total_epochs", int, "length of the run in epochs"),
    "batch-size": ShortForm("data.samples_per_gpu", int, "batch size of each process"),
    "lr": ShortForm("optimizer.lr", float, "learning rate"),
    "workers": ShortForm("data.workers_per_gpu", int, "data loading processes per training process"),
}
"""Short forms of often changed keys, by flag."""


@dataclass(frozen=True)
class Verb:
    """Command: its one-line help, two examples, its purpose, its options, and the function that runs it."""

    help: str
    examples: list[str]
    purpose: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Run


VERBS: dict[str, Verb] = {}


def verb(name: str, add_arguments: Callable[[argparse.ArgumentParser], None], purpose: str) -> Callable[[Run], Run]:
    """Register the decorated function as `lbitcls name`.

    The first line of the function's docstring is the help, and the lines that begin with `lbitcls` are its examples.
    """

    def register(run: Run) -> Run:
        lines = [line.strip() for line in (run.__doc__ or "").strip().splitlines()]
        examples = [line for line in lines if line.startswith("lbitcls ")]
        VERBS[name] = Verb(lines[0], examples, purpose, add_arguments, run)
        return run

    return register


def read_config(args: argparse.Namespace, recorded: str | None = None) -> Config:
    """Return the config, with `--options`, the short forms of its keys, and `--device` merged in.

    Args:
        args: Parsed arguments.
        recorded: Model whose file records the config; None: read `args.config`.

    Raises:
        ConfigError: An option names no key of the config, or contradicts a short form.
    """
    from lbitcls.inference.self_described import recorded_config
    from lbitcls.utils.config import Config, parse_option

    cfg = recorded_config(recorded) if recorded else Config.fromfile(args.config)
    options = dict(parse_option(option) for option in args.options)
    cfg.merge_from_dict(options)
    for flag in getattr(args, "short_forms", ()):
        value, key = getattr(args, flag.replace("-", "_")), SHORT_FORMS[flag].key
        if value is None:
            continue
        if key in options and options[key] != value:
            raise ConfigError(f"--{flag} {value} and --options {key}={options[key]} contradict each other; give one.")
        if flag == "lr" and "lr" not in (cfg.get("optimizer") or {}):
            raise ConfigError(
                f"--lr {value} changes {key}, but the optimizer of {cfg.filename} sets no lr. "
                f"To add it, write --options +{key}={value}"
            )
        cfg.merge_from_dict({f"+{key}": value})
    if getattr(args, "device", None) is not None:
        cfg.merge_from_dict({"device": args.device})
    return cfg


def model_config(args: argparse.Namespace, config: str | None, model: str | None) -> Config | None:
    """Return the config of a model, with the options merged in.

    Args:
        args: Parsed arguments.
        config: Config file; None: the one that the model's file records.
        model: Exported model or checkpoint; None: the config alone is used.

    Returns:
        Config; None if none is given and no option changes the recorded one.

    Raises:
        ConfigError: As for `read_config`.
        CheckpointError: An option changes the recorded config, and the file is missing or records none.
    """
    if config is not None or model is None:
        args.config = config
        return read_config(args)
    given = [getattr(args, flag.replace("-", "_")) for flag in getattr(args, "short_forms", ())]
    device = args.device
    if is_exported(model):
        if device not in (None, "auto", "cpu"):
            raise ConfigError(f"an exported model runs on the CPU; remove --device {device}.")
        device = None
    if args.options or device is not None or any(value is not None for value in given):
        return read_config(args, model)
    return None


def short_forms(parser: argparse.ArgumentParser, *flags: str) -> None:
    """Add short forms of the config's keys, such as `--epochs`, which `read_config` merges in.

    Args:
        parser: Parser of a verb with a config.
        flags: Names in `SHORT_FORMS`.
    """
    for flag in flags:
        short = SHORT_FORMS[flag]
        metavar = "N" if short.type is int else "X"
        parser.add_argument(f"--{flag}", type=short.type, metavar=metavar, help=f"{short.help} ({short.key})")
    parser.set_defaults(short_forms=flags)


def common_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that training and testing share."""
    add = parser.add_argument
    add("--device", metavar="NAME", help="auto, cpu, cuda, cuda:N or gpu:N")
    add("--data-root", metavar="DIR", help="folder to search for relative data paths")
    option_arguments(parser)
    add("--launcher", choices=("none", "pytorch", "slurm"), default="none", help="launcher that started the processes")
    add("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)  # older launchers pass it


def engine_arguments(parser: argparse.ArgumentParser, threads: int | None = None) -> None:
    """Add the options of the engine that runs `.onnx` files."""
    add = parser.add_argument
    add(
        "--engine",
        metavar="NAME",
        help="engine for an exported model: openvino, onnxruntime, … (default: the first of its target)",
    )
    said = "the engine's choice" if threads is None else threads
    add("--threads", type=int, default=threads, metavar="N", help=f"number of engine threads (default: {said})")


def option_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that override the config, and `--safe`."""
    parser.add_argument(
        "--options",
        "--cfg-options",  # the name in mmcls
        nargs="+",
        action="extend",
        default=[],
        metavar="K=V",
        help="override config values: optimizer.lr=0.01",
    )
    safe_argument(parser)


def field_arguments(parser: argparse.ArgumentParser, kind: type[Section]) -> None:
    """Add an option for each field of a settings class, with the field's name, type, default and documentation."""
    from lbitcls.settings.parse import doc_of, is_number, section_fields

    for name, hint in section_fields(kind).items():
        default, flag = getattr(kind, name), f"--{name.replace('_', '-')}"
        text = doc_of(hint).removesuffix(".")
        said = (text if text[1:2].isupper() else text[0].lower() + text[1:]).replace("%", "%%")
        if default is False:
            parser.add_argument(flag, action="store_true", help=said)
            continue
        number = is_number(hint)
        said += "" if default is None else f" (default: {default})"
        metavar = "N" if number else "NAME"
        parser.add_argument(flag, type=int if number else str, default=default, metavar=metavar, help=said)


def given_fields(args: argparse.Namespace, kind: type[T]) -> T:
    """Build the settings from a command's options.

    Raises:
        ConfigError: a value is out of range; the message names the option.
    """
    from lbitcls.settings.parse import section_fields

    return kind(**{name: getattr(args, name) for name in section_fields(kind)})


def safe_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--safe`, which every command that reads a config has."""
    parser.add_argument("--safe", action="store_true", help="reject a config that runs code (also LBITCLS_SAFE=1)")
