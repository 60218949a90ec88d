"""Pulls a model from the Hugging Face Hub into a folder: `lbitcls pull`.

Only plain data is pulled: weights, exported models, JSON, YAML, text. Python files stay where they are, so that nothing
that a stranger wrote is executed later by mistake. Every weights file is read and checked before the folder appears.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from lbitcls.inference.self_described import CHECKPOINTS
from lbitcls.utils.checkpoint import read_checkpoint
from lbitcls.utils.errors import CheckpointError, ConfigError
from lbitcls.utils.files import check_folder, is_exported
from lbitcls.utils.folders import write_folder
from lbitcls.utils.hub import check_repo, fetch_file, list_files


def pull_model(
    repo: str, out: str | Path | None = None, *, revision: str | None = None, files: list[str] | None = None
) -> list[Path]:
    """Download a model's files into a new folder, and print their names and sizes.

    Args:
        repo: `owner/name`.
        out: New folder; None: named like the model, in the current folder.
        revision: Branch, tag or commit; None: the newest.
        files: Names of the files; None: all that are plain data.

    Returns:
        Paths of the files, models first.

    Raises:
        ConfigError: `repo` has another form, or the folder exists.
        CheckpointError: The hub has no such model or file, or a file is damaged.
        DependencyError: An extra is missing.
    """
    repo = check_repo(repo)
    folder = check_folder(out or repo.partition("/")[2], "--out")
    if folder.exists():
        raise ConfigError(f"--out {folder} exists; name a new folder.")
    sizes = list_files(repo, revision)
    names = list(sizes) if files is None else files
    if not names:
        raise CheckpointError(f"hf://{repo} has no weights and no exported model: only plain data is pulled.")
    write_folder(folder, lambda stage: _fetch(stage, repo, names, revision))
    found = sorted((folder / name for name in names), key=lambda path: (not _is_model(path), str(path)))
    for path in found:
        print(f"{path}  {path.stat().st_size / 1024:,.1f} KiB")
    return found


def _fetch(stage: Path, repo: str, names: list[str], revision: str | None) -> None:
    for name in names:
        source, target = fetch_file(repo, name, revision), stage / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        if target.suffix.lower() in CHECKPOINTS:
            read_checkpoint(target)


def _is_model(path: Path) -> bool:
    return path.suffix.lower() in CHECKPOINTS or is_exported(path)
