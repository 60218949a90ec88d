"""Execute the notebooks of `demo/` and write the copies with outputs that the site shows: `docs/notebooks/*.ipynb`.

    python docs/run_notebooks.py --data FOLDER --weights weights/squeezenet1_1.pth

Each runs in an empty folder. Outputs name no folder of this machine and no time of day, and pictures have a palette.
Settings that differ from the notebook's own are kept in its metadata; its page shows them.
"""

from __future__ import annotations

import argparse
import base64
import io
import os
import re
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "docs" / "notebooks"
TRANSFER = ("transfer_learning", "quantized_transfer_learning")
LIBRARY = Path(sysconfig.get_paths()["purelib"]).parent
ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
TIME_OF_DAY = re.compile(r"\b\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(?:[.,]\d+)?(?: - )?")
TORCH_LOG = re.compile(r"^[IW]\d{4} \d\d:\d\d:\d\d\.\d+ .*\n?", re.MULTILINE)  # times, process ids, folders of CUDA
LOG = re.compile(r"\b\d{8}_\d{6}(?=\.log\b)")
PNG = re.compile(r"(?<=data:image/png;base64,)[\w+/=]+")
WIDTH = 900  # pixels; wider pictures are scaled down
FRAME = re.compile(r"<iframe.*?src=\"([^\"]+)\"", re.DOTALL)
REPORT = """The report is a file, `{}`. [The analysis report](../docs/analysis.md) explains one like it:

![An analysis report](../docs/screens/analysis.png)"""


def main() -> None:
    """Execute the notebooks that the command line names."""
    names = sorted(path.stem for path in (ROOT / "demo").glob("*.ipynb"))
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"notebooks to execute (default: all of {names})")
    parser.add_argument("--data", type=Path, help="folder with the photos (default: LBITCLS_DATA, or fetched)")
    parser.add_argument("--weights", help="SqueezeNet's weights, a file relative to the photos (default: fetched)")
    parser.add_argument("--epochs", type=int, help="epochs of the runs on photos (default: the notebooks' own)")
    given = parser.parse_args()
    if unknown := {*given.names} - {*names}:
        parser.error(f"no notebook of that name: {sorted(unknown)}; there are {names}")
    if given.data:
        os.environ["LBITCLS_DATA"] = str(given.data.resolve())
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    OUT.mkdir(exist_ok=True)
    for name in given.names or names:
        settings = {"WEIGHTS": given.weights, "EPOCHS": given.epochs} if name in TRANSFER else {}
        notebook = execute(name, {key: value for key, value in settings.items() if value is not None})
        nbformat.write(notebook, OUT / f"{name}.ipynb")
        print(OUT / f"{name}.ipynb", f"{(OUT / f'{name}.ipynb').stat().st_size / 1000:.0f} kB")


def execute(name: str, settings: dict[str, Any]) -> Any:
    """Return a notebook with its outputs, executed in an empty folder with `settings` in place of its own."""
    notebook = nbformat.read(ROOT / "demo" / f"{name}.ipynb", as_version=4)
    (place,) = [i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", ())]
    lines = [f"{key} = {value!r}" for key, value in settings.items()]
    notebook.cells.insert(place + 1, nbformat.v4.new_code_cell("\n".join(lines)))
    with tempfile.TemporaryDirectory() as folder:
        names = {"XDG_CACHE_HOME": "cache", "IPYTHONDIR": "ipython", "JUPYTER_RUNTIME_DIR": "jupyter"}
        os.environ.update({key: str(Path(folder, value)) for key, value in names.items()})
        NotebookClient(notebook, timeout=None, resources={"metadata": {"path": folder}}).execute()
        del notebook.cells[place + 1]
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.outputs = joined([cleaned(output, folder) for output in cell.outputs])
                cell.execution_count = None
                cell.metadata.pop("execution", None)
    notebook.metadata = {**nbformat.read(ROOT / "demo" / f"{name}.ipynb", as_version=4).metadata}
    if lines:
        notebook.metadata["lbitcls"] = {"settings": lines}
    return notebook


def joined(outputs: list[Any]) -> list[Any]:
    """Return the outputs of a cell, with neighboring pieces of one stream as one and no empty ones."""
    found: list[Any] = []
    for output in outputs:
        if output.get("text") == "":
            continue
        if found and "text" in output and output.get("name") == found[-1].get("name"):
            found[-1].text += output.text
        else:
            found.append(output)
    return found


def cleaned(output: Any, folder: str) -> Any:
    """Return an output without traces of this machine, its pictures small."""
    if "text" in output:
        output.text = anonymous(output.text, folder)
    if output.output_type == "execute_result":
        output.execution_count = None
    data = output.get("data", {})
    frame = FRAME.search(data.get("text/html", ""))
    if frame:
        output.data = {"text/markdown": REPORT.format(frame[1])}
        return output
    for kind, value in data.items():
        data[kind] = small(value) if kind == "image/png" else anonymous(value, folder)
    return output


def anonymous(text: str, folder: str) -> str:
    """Return `text` without folders of this machine, times of day and colors of a terminal."""
    text = ANSI.sub("", text)
    data = os.environ.get("LBITCLS_DATA")
    for path, shown in ((folder, ""), (data, "data"), (LIBRARY, ""), (ROOT, ""), (Path.home(), "~")):
        if path:
            text = text.replace(f"{path}/", f"{shown}/" if shown else "").replace(str(path), shown or ".")
    text = LOG.sub("YYYYMMDD_HHMMSS", TIME_OF_DAY.sub("", TORCH_LOG.sub("", text)))
    return PNG.sub(lambda found: small(found[0]), text)


def small(png: str) -> str:
    """Return a picture of at most `WIDTH` pixels with at most 256 colors; both are base64."""
    picture = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    picture.thumbnail((WIDTH, 4 * WIDTH))
    file = io.BytesIO()
    picture.quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


if __name__ == "__main__":
    main()
