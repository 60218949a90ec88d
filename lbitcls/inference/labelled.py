"""Folder of labeled images with a CSV file of the predictions (`lbitcls infer --out`)."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lbitcls.inference.api import show_result
from lbitcls.protocols import Classifier
from lbitcls.utils.errors import ConfigError
from lbitcls.utils.files import check_folder, write_out

TABLE = "predictions.csv"


class LabelledFolder:
    """Folder that gets a labeled image, `.png`, for each image, and `predictions.csv`.

    Args:
        path: Folder to write; it must be new or empty, so that nothing in it is replaced.

    Raises:
        ConfigError: The folder is not empty or cannot be written.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = check_folder(path, "--out")
        if self.path.exists() and any(self.path.iterdir()):
            raise ConfigError(f"--out needs a new or an empty folder; {self.path} is not empty. Name another folder.")
        self._taken: set[str] = set()
        self._rows: list[dict[str, Any]] = []

    def add(self, model: Classifier, record: dict[str, Any]) -> None:
        """Write the labeled image of a record of `infer_files`; one with an error gets only its row of the table."""
        row = {"path": record["path"]}
        if "error" in record:
            row["error"] = record["error"]
        else:
            row["labeled"] = self._new_name(Path(record["path"]))
            for place, entry in enumerate(record.get("topk") or [record], 1):
                number = "" if place == 1 else f"_{place}"
                row |= {f"class{number}": entry["pred_class"], f"score{number}": f"{entry['pred_score']:.6f}"}
            self.path.mkdir(parents=True, exist_ok=True)
            show_result(model, record["path"], record, self.path / row["labeled"])
        self._rows.append(row)

    def _new_name(self, image: Path) -> str:
        """Return a file name that no image before has: `cat.png`, `cat_2.png`, …."""
        stem = image.stem.encode("utf-8", errors="backslashreplace").decode()
        name, number = f"{stem}.png", 1
        while name.casefold() in self._taken:  # file systems may ignore case
            number += 1
            name = f"{stem}_{number}.png"
        self._taken.add(name.casefold())
        return name

    def finish(self) -> Path:
        """Write the table, one row per image in order, and return its path."""
        columns = dict.fromkeys(column for row in self._rows for column in row)
        order: Sequence[str] = [*(name for name in columns if name != "error"), *(n for n in columns if n == "error")]
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, order)
        writer.writeheader()
        writer.writerows(self._rows)
        self.path.mkdir(parents=True, exist_ok=True)
        write_out(self.path / TABLE, text.getvalue().encode("utf-8", errors="backslashreplace"))
        return self.path / TABLE
