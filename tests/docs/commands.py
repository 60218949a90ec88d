"""Commands that cannot be run here: that their program, arguments and files exist, at least."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import re
import shlex
from collections.abc import Iterator

from blocks import ROOT, Block

from lbitcls.commands.main import VERBS, _parse
from lbitcls.utils.errors import ConfigError

OTHERS = (".", "apt-get", "cd", "export", "git", "jupyter", "ssh", "tensorboard", "uv")
"""Programs of others, whose arguments are not looked at."""


def check_block(block: Block) -> None:
    """Raise AssertionError for a command that is not known, or would not take its arguments."""
    if block.language == "python":
        check_python(block.code)
    else:
        for command in split_commands(block.code):
            check_command(command)


def check_python(code: str) -> None:
    """It parses, and what it imports from the package is there."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and str(node.module).partition(".")[0] == "lbitcls":
            module = importlib.import_module(str(node.module))
            missing = [alias.name for alias in node.names if not hasattr(module, alias.name)]
            assert not missing, f"{node.module} has no {missing}"


def split_commands(code: str) -> Iterator[list[str]]:
    """The words of each command of a script, without the variables that are set before it."""
    for line in code.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        command: list[str] = []
        for word in [*lexer, ";"]:
            if word in (";", "&&", "||", "|", "&"):
                if command:
                    yield command
                command = []
            elif command or not re.match(r"\w+=", word):
                command.append(word)


def check_command(command: list[str]) -> None:
    """The program is known, it takes these arguments, and the configs among them exist."""
    program, *arguments = command
    for word in arguments:
        if re.match(r"configs/.*\.py$", word):
            assert (ROOT / word).is_file(), f"{word} is not there"
    script = next(
        (i for i, word in enumerate(command) if re.search(r"\.(py|sh)$", word) and "config" not in word), None
    )
    if "lbitcls" in command and program in ("lbitcls", "torchrun", "srun"):
        verb, *arguments = command[command.index("lbitcls") + 1 :]
        parses(verb, arguments)
    elif script is not None and program != "git":
        check_script(command[script].removeprefix("./"), command[script + 1 :])
    elif program == "make":
        targets = re.findall(r"^\.PHONY: (\S+)", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        assert {word for word in arguments if "=" not in word} <= set(targets), command
    elif re.search(r"pip install", " ".join(command)):
        check_requirements(command)
    else:
        assert program in OTHERS, f"commands.py knows no program {program}: {shlex.join(command)}"


def check_script(script: str, arguments: list[str]) -> None:
    """A script of the repository, with options that it or a script beside it that it imports has."""
    text = (ROOT / script).read_text(encoding="utf-8")
    beside = [(ROOT / script).with_name(f"{name}.py") for name in re.findall(r"^from (\w+) import", text, re.MULTILINE)]
    text += "".join(file.read_text(encoding="utf-8") for file in beside if file.exists())
    distributed = re.fullmatch(r"tools/dist_(train|test)\.sh", script)
    verb = re.search(r'main\(only="(\w+)"\)', text)
    if distributed:
        number = 1 if distributed[1] == "train" else 2
        assert arguments[number].isdigit(), f"{script}: {arguments[number]} is no number of processes"
        parses(distributed[1], [*arguments[:number], *arguments[number + 1 :]])
    elif script == "tools/slurm_train.sh":
        assert arguments[3].isdigit(), f"{script}: {arguments[3]} is no number of processes"
        parses("train", [arguments[2], *arguments[4:]])
    elif verb:
        parses(verb[1], arguments)
    else:
        unknown = [word for word in arguments if word.startswith("--") and f'"{word.partition("=")[0]}"' not in text]
        assert not unknown, f"{script} has no {unknown}"


def parses(verb: str, arguments: list[str]) -> None:
    """The parser of a verb takes the arguments."""
    assert verb in VERBS, f"there is no verb {verb}"
    try:
        _parse(arguments, only=verb)
    except (ConfigError, SystemExit) as error:
        raise AssertionError(f"lbitcls {verb} does not take {shlex.join(arguments)}") from error


def check_requirements(command: list[str]) -> None:
    """`pip install -r FILE`, `lbitcls[EXTRA]`: there is such a file, and such an extra."""
    extras = set(importlib.metadata.metadata("lbitcls").get_all("Provides-Extra", []))
    for word in command:
        if word.endswith(".txt"):
            assert (ROOT / word).is_file(), f"{word} is not there"
        for named in re.findall(r"\[([\w,-]+)\]", word):
            assert set(named.split(",")) <= extras, word
