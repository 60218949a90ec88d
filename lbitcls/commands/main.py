"""Command line: `lbitcls VERB …`; `tools/*.py` are shims over it.

Each module of this package registers its verb. No heavy package is imported before a verb runs, so `--help` answers
immediately.
"""

from __future__ import annotations

import argparse
import os
import pkgutil
import sys
from collections.abc import Sequence
from importlib import import_module

import lbitcls.commands
from lbitcls.commands.base import PURPOSES, VERBS
from lbitcls.commands.next_steps import say_config, say_next
from lbitcls.utils.errors import ConfigError, LbitclsError, TrainingError
from lbitcls.utils.failures import explain
from lbitcls.utils.safe import safe_mode
from lbitcls.version import __version__

for _module in pkgutil.iter_modules(lbitcls.commands.__path__):
    if _module.name != "main":
        import_module(f"lbitcls.commands.{_module.name}")


def main(argv: Sequence[str] | None = None, only: str | None = None) -> int:
    """Run a command and return its exit code.

    0: success; 2: a mistake in config or arguments; 1: other errors; 128 + the signal's number: stopped by a signal.

    Args:
        argv: Arguments; None: `sys.argv[1:]`.
        only: Verb of a program that has only one (`tools/train.py`).
    """
    args = _parse(sys.argv[1:] if argv is None else argv, only)
    try:
        with safe_mode(getattr(args, "safe", False)):
            say_config(args)
            say_next(args.verb, args, args.run(args))
    except LbitclsError as error:
        _print_error(error)
        return error.exit_code
    except (OSError, MemoryError, RuntimeError) as error:
        if (told := explain(error)) is not None:
            _print_error(told)
        elif isinstance(error, OSError):
            where = f"{error.filename}: {error.strerror}" if error.filename else str(error)
            print(f"{type(error).__name__}: {where}", file=sys.stderr)
        elif _peer_is_gone(error):
            print(f"process {os.environ.get('RANK')}: another process ended; its message says why.", file=sys.stderr)
        else:
            raise
        return 1
    except KeyboardInterrupt:
        print("stopped.", file=sys.stderr)
        return 130
    return 0


def _parse(argv: Sequence[str], only: str | None) -> argparse.Namespace:
    """Parse the arguments; a verb's positional arguments may stand before, between and after its options."""
    if only is not None:
        return _with_verb(argparse.ArgumentParser(description=VERBS[only].help), only).parse_intermixed_args(argv)
    if argv and argv[0] in VERBS:
        parser = argparse.ArgumentParser(f"lbitcls {argv[0]}", description=VERBS[argv[0]].help)
        return _with_verb(parser, argv[0]).parse_intermixed_args(argv[1:])
    about = "Image classifiers of 2 to 8 bits, from one config file."
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("lbitcls", description=about, epilog=_listed_verbs(), formatter_class=plain)
    parser.add_argument("--version", action="version", version=f"lbitcls {__version__}")
    verbs = parser.add_subparsers(
        metavar="VERB", required=True, help="one of the verbs below; lbitcls VERB --help shows its options"
    )
    for name, entry in VERBS.items():
        of_verb = verbs.add_parser(name, description=entry.help)
        if name in argv:  # of the other verbs only the name is needed
            _with_verb(of_verb, name)
    return parser.parse_args(argv)


def _listed_verbs() -> str:
    """Return the verbs with their help texts, grouped by purpose."""
    lines = []
    for purpose in PURPOSES:
        lines += ["", f"{purpose}:"]
        lines += [f"  {name:<11} {entry.help}" for name, entry in VERBS.items() if entry.purpose == purpose]
    return "\n".join(lines[1:])


def _with_verb(parser: argparse.ArgumentParser, name: str) -> argparse.ArgumentParser:
    VERBS[name].add_arguments(parser)
    parser.set_defaults(run=VERBS[name].run, verb=name)
    return parser


def _print_error(error: LbitclsError) -> None:
    """Print an error once if all processes raise it, else with the process's number."""
    rank = os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or "0"
    if rank == "0":
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
    elif not isinstance(error, (ConfigError, TrainingError)):
        print(f"process {rank}: {type(error).__name__}: {error}", file=sys.stderr)


def _peer_is_gone(error: BaseException) -> bool:
    """Return True if a process group broke because another process ended."""
    if "torch" not in sys.modules:
        return False
    from lbitcls.utils.dist import lost_peer

    return lost_peer(error)


if __name__ == "__main__":
    sys.exit(main())
