"""Command line: `lbitcls VERB …`; `tools/*.py` are shims over it.

Each module of this package registers its verb. No heavy package is imported before a verb runs, so `--help` answers
immediately.
"""

from __future__ import annotations

import argparse
import os
import pkgutil
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module

import lbitcls.commands
from lbitcls.commands.base import PURPOSES, VERBS
from lbitcls.commands.flags import check_flags, files_first
from lbitcls.commands.next_steps import say_config, say_next
from lbitcls.utils.errors import ConfigError, LbitclsError, TrainingError, suggest, visible
from lbitcls.utils.failures import explain
from lbitcls.utils.library import CONFIG_SUFFIXES
from lbitcls.utils.logging import discard_output
from lbitcls.utils.safe import safe_mode
from lbitcls.utils.temporary import ending_by_signals
from lbitcls.version import __version__

PLAIN = argparse.RawDescriptionHelpFormatter
FIRST_STEPS = """\
lbitcls trains image classifiers of 2 to 8 bits, from one config file.

Try it, without data of your own:
  lbitcls train configs/quickstart/digits_lsq_4w4f.py

Then write a config for a folder of photos, or choose one of the package's:
  lbitcls init PHOTOS
  lbitcls list configs

and train and export it:
  lbitcls train CONFIG
  lbitcls export CONFIG work_dirs/NAME/best_top-1.pth --out model.onnx

lbitcls --help lists all verbs, lbitcls VERB --help the options of one."""

for _module in pkgutil.iter_modules(lbitcls.commands.__path__):
    if _module.name != "main":
        import_module(f"lbitcls.commands.{_module.name}")


def main(argv: Sequence[str] | None = None, only: str | None = None) -> int:
    """Run a command and return its exit code.

    0: success; 2: a mistake in config or arguments; 71: the machine failed; 75: the time limit stopped training; 128 +
    the signal's number: stopped by a signal, or by a closed pipe (`| head`: SIGPIPE, without a message); 1: other
    errors.

    Args:
        argv: Arguments; None: `sys.argv[1:]`.
        only: Verb of a program that has only one (`tools/train.py`).
    """
    # Pillow warns of large images from half the size on that is refused with a message.
    warnings.filterwarnings("ignore", "Image size .* exceeds limit")
    try:
        args = _parse(sys.argv[1:] if argv is None else argv, only)
        with ending_by_signals(), safe_mode(getattr(args, "safe", False)):
            say_config(args)
            say_next(args.verb, args, args.run(args))
        sys.stdout.flush()  # else a closed pipe would be reported at exit, with a traceback
    except BrokenPipeError:
        discard_output()
        return 141
    except LbitclsError as error:
        _print_error(error)
        return error.exit_code
    except (OSError, MemoryError, RuntimeError) as error:
        if (told := explain(error)) is not None:
            _print_error(told)
            return told.exit_code
        if isinstance(error, OSError):
            where = f"{error.filename}: {error.strerror}" if error.filename else str(error)
            print(f"{type(error).__name__}: {visible(where)}", file=sys.stderr)
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
    """Parse the arguments; a verb's positional arguments may stand before, between and after its options.

    Raises:
        ConfigError: There is no such verb, or the verb has no such option.
    """
    name = only or (argv[0] if argv else "")
    if name not in VERBS:
        return _parse_without_verb(argv)
    given, program = (argv, None) if only else (argv[1:], f"lbitcls {name}")
    about, examples = VERBS[name].help, _examples(name)
    parser = argparse.ArgumentParser(program, description=about, epilog=examples, formatter_class=PLAIN)
    VERBS[name].add_arguments(parser)
    parser.set_defaults(run=VERBS[name].run, verb=name)
    with safe_mode("--safe" in given):
        check_flags(parser, given, name)
    return parser.parse_intermixed_args(files_first(parser, given))


def _parse_without_verb(argv: Sequence[str]) -> argparse.Namespace:
    """Answer `--help` and `--version`, explain the first steps, or raise `ConfigError` for an unknown verb."""
    if not argv:
        return argparse.Namespace(run=lambda _: print(FIRST_STEPS), verb="")
    if not argv[0].startswith("-"):
        if argv[0].endswith(CONFIG_SUFFIXES):
            raise ConfigError(f"the verb is missing before {argv[0]}. To train it: lbitcls train {' '.join(argv)}")
        raise ConfigError(f"there is no verb '{argv[0]}'{suggest(argv[0], VERBS)} lbitcls --help lists the verbs.")
    about = "Train and export image classifiers of 2 to 8 bits, from one config file."
    parser = argparse.ArgumentParser("lbitcls", description=about, epilog=_listed_verbs(), formatter_class=PLAIN)
    parser.add_argument("--version", action="version", version=f"lbitcls {__version__}")
    parser.add_argument("verb", metavar="VERB", help="one of the verbs below; lbitcls VERB --help shows its options")
    parser.parse_args(argv)
    parser.error("the verb comes first, its options after it.")


def _examples(name: str) -> str:
    """Return the examples at the end of a verb's help."""
    return "\n".join(["examples:", *(f"  {example}" for example in VERBS[name].examples)])


def _listed_verbs() -> str:
    """Return the verbs with their help texts, grouped by purpose."""
    lines = []
    for purpose in PURPOSES:
        lines += ["", f"{purpose}:"]
        lines += [f"  {name:<11} {entry.help}" for name, entry in VERBS.items() if entry.purpose == purpose]
    return "\n".join(lines[1:])


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
