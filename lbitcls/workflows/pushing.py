"""Pushes a run or its files to the Hugging Face Hub, with a model card: `lbitcls push`.

Weights are pushed as safetensors. Their config, and `config.json`, lack what concerns only the machine that trained.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lbitcls.core.run_files import checkpoints
from lbitcls.inference.self_described import CHECKPOINTS, describe
from lbitcls.settings.sections import ConfigLike, as_config
from lbitcls.tracking.model_card import CardFacts, model_card
from lbitcls.tracking.run_reading import REPORT, SUMMARY, RunRow, planned, read_row
from lbitcls.utils.checkpoint import read_checkpoint, write_checkpoint
from lbitcls.utils.config import Config
from lbitcls.utils.errors import CheckpointError, ConfigError, LbitclsError
from lbitcls.utils.files import EXPORTED, MODEL_OF_FOLDER, check_folder, suggest_path, write_whole
from lbitcls.utils.folders import write_folder
from lbitcls.utils.hub import check_repo, hub_error, open_hub
from lbitcls.utils.jsontext import json_text
from lbitcls.utils.weights_file import SUFFIX, require_safetensors

CARD, CONFIG = "README.md", "config.json"
_OF_MACHINE = (
    *("work_dir", "resume_from", "load_from", "data_root", "device", "gpu_ids", "cpu_only", "num_threads"),
    "log_config",  # addresses of servers, accounts
)
_KINDS = (*CHECKPOINTS, *EXPORTED)


def push_model(
    paths: Sequence[str | Path],
    repo: str,
    *,
    private: bool = False,
    license: str | None = None,
    out: str | Path | None = None,
) -> str:
    """Push a run, or files, to the hub with a model card, in one commit; print what was pushed.

    Of a run: its best checkpoint, the exported model and its report.

    Args:
        paths: Work directory, or checkpoints and exported models.
        repo: `owner/name`; it is created if it does not exist.
        private: True: a repository that is created is private.
        license: License of the weights, as the hub names it (`'apache-2.0'`).
        out: New folder to write instead, without a network; None: push.

    Returns:
        Address of the commit, or the folder.

    Raises:
        ConfigError: `paths` are neither, `repo` has another form, or it is public although `private` was asked for.
        CheckpointError: A file cannot be read, or the hub rejects the files.
        DependencyError: An extra is missing.
    """
    repo = check_repo(repo)
    require_safetensors()
    if out is not None:
        folder = check_folder(out, "--out")
        if folder.exists():
            raise ConfigError(f"--out {folder} exists; name a new folder.")
        write_folder(folder, lambda stage: _collect(paths, stage, repo, license))
        print(f"wrote {_listed(folder)} to {folder}")
        return str(folder)
    client = open_hub()
    with TemporaryDirectory() as name:
        _collect(paths, Path(name), repo, license)
        place = _upload(client, Path(name), repo, private)
        print(f"pushed {_listed(Path(name))} to {place}")
    return place


def _listed(folder: Path) -> str:
    return ", ".join(sorted(path.name for path in folder.iterdir()))


def _upload(client: Any, folder: Path, repo: str, private: bool) -> str:
    try:
        client.create_repo(repo, private=private, exist_ok=True)
        if private and client.model_info(repo).private is False:  # it existed
            raise ConfigError(f"hf://{repo} is public; make it private on the hub first, or leave out --private.")
        done = client.upload_folder(repo_id=repo, folder_path=folder, commit_message="Model from lbitcls")
    except LbitclsError:
        raise
    except Exception as error:  # of the hub's client, or of its connection
        raise hub_error(f"hf://{repo}", error) from error
    return str(done.commit_url)


def _collect(paths: Sequence[str | Path], stage: Path, repo: str, license: str | None) -> None:
    """Write the files, `config.json` and the card to the folder `stage`."""
    run, files = _files_of(paths)
    row = None if run is None else read_row(run)
    config: Config | None = None
    classes: Sequence[str] = ()
    certificates: list[str] = []
    for path in files:
        name = _name(path, files)
        found = describe(path)
        config, classes = config or _public(found.config), classes or found.classes or ()
        if path.suffix.lower() in CHECKPOINTS:
            _put_weights(path, stage / name)
        else:
            shutil.copyfile(path, stage / name)
            certificates += _put_report(path, stage, name)
    if config is not None:
        config.dump(stage / CONFIG)
    sizes = {path.name: path.stat().st_size for path in sorted(stage.iterdir())}
    sections = {} if config is None else config.to_dict()
    facts = CardFacts(
        repo=repo,
        files=sizes,
        config=sections,
        classes=classes,
        row=row or _row_of(sections),
        certificates=certificates,
        license=license,
    )
    text = model_card(facts)
    write_whole(stage / CARD, lambda path: path.write_text(text, encoding="utf-8"))


def _files_of(paths: Sequence[str | Path]) -> tuple[Path | None, list[Path]]:
    """Return the run, if `paths` is one, and the files to push.

    Raises:
        ConfigError: A path is missing, or is neither a run nor a model.
    """
    given = [Path(path).expanduser() for path in paths]
    for path in given:
        if not path.exists():
            raise ConfigError(f"there is no run or model {path}{suggest_path(path)}")
    folders = [path for path in given if path.is_dir()]
    if folders and len(given) > 1:
        raise ConfigError(f"push needs one run, or files; got {', '.join(map(str, given))}.")
    if folders:
        return folders[0], _files_of_run(folders[0])
    for path in given:
        if path.suffix.lower() not in _KINDS:
            raise ConfigError(f"push needs a work directory, or files {', '.join(_KINDS)}; got {path}.")
    return None, given


def _files_of_run(run: Path) -> list[Path]:
    """Return the best checkpoint of a run, as its summary names it, and its exported model."""
    try:
        best = run / Path(json.loads((run / SUMMARY).read_text(encoding="utf-8"))["checkpoint"]).name
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        best = next((path for path in sorted(run.glob("best_*.pth")) if not path.name.startswith("best_float")), run)
    found = [path for path in [best, *checkpoints(run)] if path.is_file()][:1]
    found += [path for path in (run / MODEL_OF_FOLDER,) if path.is_file()]
    if not found:
        raise ConfigError(f"{run} has neither a checkpoint nor {MODEL_OF_FOLDER}; name a work directory, or files.")
    return found


def _name(path: Path, files: Sequence[Path]) -> str:
    """Return a file's name on the hub: `model` with its suffix, unless several would have that name."""
    suffix = _pushed_suffix(path)
    alike = [one.stem for one in files if _pushed_suffix(one) == suffix]
    if alike.count(path.stem) > 1:
        raise ConfigError(f"two of the files would be named {path.stem}{suffix}; rename one of them.")
    return f"model{suffix}" if len(alike) == 1 else f"{path.stem}{suffix}"


def _pushed_suffix(path: Path) -> str:
    return SUFFIX if path.suffix.lower() in CHECKPOINTS else path.suffix.lower()


def _put_weights(path: Path, target: Path) -> None:
    content = read_checkpoint(path)
    text = content["meta"].get("config")
    config = None if not text else _public(Config.fromstring(text))
    meta = {**content["meta"], "config": None if config is None else config.pretty_text}
    write_checkpoint({"meta": meta, "state_dict": content["state_dict"]}, target)


def _put_report(path: Path, stage: Path, name: str) -> list[str]:
    """Copy an exported model's report, without paths of this machine; return the sentences of its certificates."""
    source = path.with_name(f"{path.stem if path.suffix == '.onnx' else path.name}{REPORT}")
    if not source.is_file():
        return []
    try:
        report = json.loads(source.read_text(encoding="utf-8"))
        report["export"]["path"] = name
        verification = report.get("verification") or {}
        for entry in verification.get("certificates") or []:
            entry["file"] = name
        found = [_sentence(name, entry) for entry in verification.get("certificates") or []]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"the report {source} is damaged ({type(error).__name__}); export the model again."
        ) from error
    target = stage / f"{Path(name).stem if name.endswith('.onnx') else name}{REPORT}"
    text = json_text(report, indent=2, ensure_ascii=False) + "\n"
    write_whole(target, lambda path: path.write_text(text, encoding="utf-8"))
    return found


def _sentence(name: str, entry: dict[str, Any]) -> str:
    from lbitcls.deploy.verification.certificate import Certificate

    found = Certificate(**entry)
    verdict = {True: "passed", False: "REJECTED", None: "not judged"}[found.passed]
    return f"{name}, {verdict} on {found.date}: {found.sentence}"


def _public(config: ConfigLike | None) -> Config | None:
    """Return a config without what concerns only the machine that trained."""
    if config is None:
        return None
    return Config({name: value for name, value in as_config(config).to_dict().items() if name not in _OF_MACHINE})


def _row_of(config: Mapping[str, Any]) -> RunRow | None:
    """Return method and bits as a config plans them, for files without a run."""
    if not config:
        return None
    method, bits = planned(config)
    return RunRow(name="", path="", state="", method=method, bits=bits)
