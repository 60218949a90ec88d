"""The process in which a page's blocks run; it is given them as JSON. Stands alone: nothing is imported beforehand."""

import contextlib
import io
import json
import subprocess
import sys
import types
from pathlib import Path
from typing import Any


class Heard(io.StringIO):
    """Keeps what is written, and writes it to the standard output."""

    def write(self, text: str) -> int:
        sys.__stdout__.write(text)
        return super().write(text)

    def flush(self) -> None:
        sys.__stdout__.flush()


def run(block: dict[str, Any], path: str, names: dict[str, Any], heard: Heard) -> None:
    """Write the block's file, or run it; its line numbers are those of the page."""
    if block["target"]:
        target = Path(block["target"])
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(block["code"] + "\n", encoding="utf-8")
    elif block["language"] == "python":
        code = compile("\n" * (block["line"] - 1) + block["code"], path, "exec", dont_inherit=True)
        with contextlib.redirect_stdout(heard):
            exec(code, names)
    else:
        heard.flush()
        done = subprocess.run(["bash", "-euo", "pipefail", "-c", block["code"]], stdout=subprocess.PIPE, text=True)
        heard.write(done.stdout)
        if done.returncode:
            sys.exit(f"{path}, line {block['line']}: exit code {done.returncode}\n{block['code']}")


def main() -> None:
    task = json.loads(sys.stdin.read())
    module = types.ModuleType("__main__")  # classes of the page are found where they say they are
    sys.modules["__main__"] = module
    sys.path[0] = ""  # as in a session of Python: the current folder
    heard = Heard()
    for block in task["blocks"]:
        run(block, task["path"], module.__dict__, heard)
    if task["check"]:
        sys.path.insert(0, str(Path(__file__).parent))
        from pages import PAGES

        check = PAGES[task["page"]].check
        assert check is not None
        check(module.__dict__, heard.getvalue())


if __name__ == "__main__":
    main()
