"""Draw what the quickstart shows, from a real run of it: the terminal, the curves and a labeled prediction.

    python docs/plot_screens.py [--out docs/screens]

The command runs in a pseudo-terminal, and the picture is its screen at the end. Times differ from run to run. The
top of docs/analysis.png is cut out beside them.
"""

from __future__ import annotations

import argparse
import getpass
import io
import os
import pty
import re
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image
from rich.console import CONSOLE_SVG_FORMAT, Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

from lbitcls.apis import inference_model, init_model, show_result
from lbitcls.datasets.digits import Digits

ROOT = Path(__file__).resolve().parent.parent
CONFIG = "configs/quickstart/digits_lsq_4w4f.py"
COLUMNS, ROWS = 100, 60
FIRST, LAST = 17, 21
"""Lines of a long output that the picture shows: its start, and its end."""
CONTROL = re.compile(r"\r\n|[\r\n]|\x1b\[([\d;?]*)([A-Za-z])|[^\r\n\x1b]+|\x1b")
FONT = re.compile(r"\s*@font-face \{\{.*?\}\}", re.DOTALL)


def output_of(command: list[str], folder: Path) -> str:
    """Return what a command writes to a terminal of `COLUMNS` columns.

    Raises:
        SystemExit: If the command fails.
    """
    ours, its = pty.openpty()
    size = {"COLUMNS": str(COLUMNS), "LINES": str(ROWS), "TERM": "xterm-256color"}
    env = {**os.environ, **size, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    process = subprocess.Popen(command, cwd=folder, env=env, stdin=its, stdout=its, stderr=its)
    os.close(its)
    read = b""
    try:
        while block := os.read(ours, 1 << 16):
            read += block
    except OSError:  # the end of a pseudo-terminal
        pass
    os.close(ours)
    text = read.decode("utf-8", "replace")
    if process.wait():
        raise SystemExit(f"{' '.join(command)} ended with exit code {process.returncode}:\n{text}")
    return text


def screen(text: str) -> list[str]:
    """Return the lines that a terminal shows at the end, with their colors; a line that was redrawn is there once.

    Example:
        >>> screen("a\\r\\n10 %\\r20 %\\r\\x1b[2Kdone\\nb\\n\\x1b[1A\\x1b[2Kc\\n")
        ['a', 'done', 'c']
    """
    lines, row, fresh = [""], 0, False
    for part in CONTROL.finditer(text):
        found, count, kind = part[0], part[1], part[2]
        if found in ("\n", "\r\n"):
            row, fresh = row + 1, False
            lines += [""] * (row + 1 - len(lines))
        elif found == "\r":
            fresh = True
        elif kind == "A":
            row = max(row - int(count or 1), 0)
        elif kind == "K":
            lines[row], fresh = "", False
        elif kind is None or kind == "m":
            lines[row], fresh = ("" if fresh else lines[row]) + found, False
    return [line for i, line in enumerate(lines) if line or i + 1 < len(lines)]


def drawing(title: str, lines: list[str]) -> str:
    """Return a terminal window with lines as SVG, in a font of the reader's system."""
    shown = lines if len(lines) <= FIRST + LAST else [*lines[:FIRST], "…", *lines[-LAST:]]
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    for line in shown:
        console.print(Text.from_ansi(line), overflow="fold")
    code = FONT.sub("", CONSOLE_SVG_FORMAT).replace("Fira Code", "Menlo, Consolas, DejaVu Sans Mono")
    svg = console.export_svg(title=title, theme=MONOKAI, code_format=code, unique_id="terminal")
    return "\n".join(line.rstrip() for line in svg.splitlines()) + "\n"


def smaller(source: Path, target: Path, width: int, rows: int | None = None) -> None:
    """Write an image, or its first `rows` pixel rows, with a width and at most 64 colors."""
    with Image.open(source) as whole:
        image = whole.crop((0, 0, whole.width, rows or whole.height))
        height = round(image.height * width / image.width)
        image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS).quantize(64).save(target, optimize=True)


def main() -> None:
    """Run the quickstart in a temporary folder and draw its pictures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "screens", metavar="DIR")
    out = parser.parse_args().out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command = [sys.executable, str(ROOT / "tools" / "train.py"), CONFIG, "--seed", "0"]
        output = output_of(command, folder).replace(f"{folder}/", "").replace(f"{ROOT}/", "…/")
        lines = screen(output.replace(f"{getpass.getuser()}@{socket.gethostname()}", "user@host"))
        title = f"lbitcls train {CONFIG}"
        (out / "terminal_train.svg").write_text(drawing(title, lines), encoding="utf-8")
        run = folder / "work_dirs" / Path(CONFIG).stem
        smaller(run / "results.png", out / "results.png", 900)
        photo = folder / "photo.jpg"
        Image.fromarray(Digits(split="test").images[0, 0].numpy()).resize((320, 320)).save(photo)
        model = init_model(str(ROOT / CONFIG), str(run / "model.onnx"))
        labeled = folder / "labeled.png"
        show_result(model, str(photo), inference_model(model, str(photo), topk=3), out_file=str(labeled))
        smaller(labeled, out / "prediction.png", 320)
    smaller(ROOT / "docs" / "analysis.png", out / "analysis.png", 900, rows=780)
    for path in sorted(out.iterdir()):
        print(f"{path}  {path.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
