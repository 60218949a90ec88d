"""Sharded checkpoints: written by a process group (here of one process), read without."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from lbitcls.core.run_files import newest_checkpoint
from lbitcls.utils.checkpoint import read_checkpoint, write_checkpoint
from lbitcls.utils.errors import CheckpointError
from lbitcls.utils.logging import get_logger
from lbitcls.utils.sharded_checkpoint import INDEX, PLAIN, remove_checkpoint, write_sharded


@pytest.fixture
def content() -> Iterator[dict[str, Any]]:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        parts = [distribute_tensor(torch.randn(4, 3), mesh, [Shard(0)]) for _ in range(2)]
        yield {
            "meta": {"epoch": 2},
            "state_dict": {"fc.weight": parts[0], "mean": torch.ones(3)},
            "optimizer": {"state": {0: {"momentum_buffer": parts[1]}}, "param_groups": [{"params": [0]}]},
        }
    finally:
        dist.destroy_process_group()


def test_everything_comes_back(content: dict[str, Any], tmp_path: Path) -> None:
    """Also where an older one had the name."""
    path = tmp_path / "epoch_2.sharded"
    for _ in range(2):
        write_sharded(content, path, write_checkpoint)
    assert os.listdir(tmp_path) == [path.name]
    found = read_checkpoint(path)
    assert found["meta"] == {"epoch": 2} and torch.equal(found["state_dict"]["mean"], torch.ones(3))
    assert torch.equal(found["state_dict"]["fc.weight"], content["state_dict"]["fc.weight"].full_tensor())
    saved = found["optimizer"]["state"][0]["momentum_buffer"]
    assert torch.equal(saved, content["optimizer"]["state"][0]["momentum_buffer"].full_tensor())
    assert "fc.weight" not in read_checkpoint(path, mmap=True)["state_dict"]
    remove_checkpoint(path)
    assert not os.listdir(tmp_path)


class _Code:
    def __reduce__(self) -> Any:
        return os.system, ("touch ran",)


def test_an_index_cannot_run_code(content: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "epoch_2.sharded"
    write_sharded(content, path, write_checkpoint)
    monkeypatch.chdir(tmp_path)
    (path / INDEX).write_bytes(pickle.dumps(_Code()))
    with pytest.raises(CheckpointError, match=r"cannot be read \(UnpicklingError: its index contains .*system"):
        read_checkpoint(path)
    assert not (tmp_path / "ran").exists()


def test_an_entry_that_pytorch_would_unpickle_is_refused(content: dict[str, Any], tmp_path: Path) -> None:
    """`torch.distributed.checkpoint` reads entries of bytes without `weights_only`."""
    from torch.distributed.checkpoint.metadata import BytesStorageMetadata

    path = tmp_path / "epoch_2.sharded"
    write_sharded(content, path, write_checkpoint)
    index = pickle.loads((path / INDEX).read_bytes())
    for name, entry in index.state_dict_metadata.items():
        disguised = BytesStorageMetadata()
        vars(disguised).update(size=entry.size, properties=entry.properties)
        index.state_dict_metadata[name] = disguised
    (path / INDEX).write_bytes(pickle.dumps(index))
    with pytest.raises(CheckpointError, match="its index contains .*BytesStorageMetadata"):
        read_checkpoint(path)


def test_a_damaged_one_falls_back_to_the_one_before(content: dict[str, Any], tmp_path: Path) -> None:
    for number in (1, 2):
        write_sharded(content, tmp_path / f"epoch_{number}.sharded", write_checkpoint)
        os.utime(tmp_path / f"epoch_{number}.sharded", (number, number))
    next(tmp_path.glob("epoch_2.sharded/*.distcp")).unlink()
    found = newest_checkpoint(tmp_path, get_logger())
    assert found is not None and found[0].name == "epoch_1.sharded"
    (tmp_path / "epoch_1.sharded" / PLAIN).write_bytes(b"no checkpoint")
    with pytest.raises(CheckpointError, match="cannot resume from any of the 2 checkpoints"):
        newest_checkpoint(tmp_path, get_logger())


def test_a_full_disk_leaves_the_older_one(content: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "epoch_2.sharded"
    write_sharded(content, path, write_checkpoint)

    def fail(rest: dict[str, Any], file: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_sharded({**content, "meta": {"epoch": 3}}, path, fail)
    assert os.listdir(tmp_path) == [path.name] and read_checkpoint(path)["meta"]["epoch"] == 2
