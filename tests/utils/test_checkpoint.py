"""Checkpoints are complete and plain, and mismatches are reported."""

from __future__ import annotations

import logging
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lbitcls.utils import load_checkpoint, save_checkpoint
from lbitcls.utils.checkpoint import compare, read_checkpoint
from lbitcls.utils.errors import CheckpointError
from lbitcls.version import __version__


class Net(nn.Module):
    CLASSES = ("ant", "bee")

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, width, 3)
        self.fc = nn.Linear(width, 2)


class Adapting(Net):
    def adapt_state_dict(self, state_dict: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return {name.removeprefix("module."): value for name, value in state_dict.items()}


def test_round_trip(tmp_path: Path) -> None:
    model, other = Net(), Net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    save_checkpoint(model, tmp_path / "a" / "x.pth", optimizer, meta={"epoch": 3}, extra={"n": 1})
    checkpoint = load_checkpoint(other, tmp_path / "a" / "x.pth")
    assert checkpoint["meta"] == {"lbitcls_version": __version__, "CLASSES": ("ant", "bee"), "epoch": 3}
    assert checkpoint["extra"] == {"n": 1} and "param_groups" in checkpoint["optimizer"]
    assert torch.equal(model.fc.weight, other.fc.weight)
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["x.pth"]


@pytest.mark.parametrize("wrap", [dict, lambda s: {"state_dict": s}, lambda s: {"model": s, "epoch": 3}])
def test_published_forms(tmp_path: Path, wrap: Any) -> None:
    model, other = Net(), Net()
    torch.save(wrap(model.state_dict()), tmp_path / "x.pth")
    assert load_checkpoint(other, tmp_path / "x.pth")["meta"] == {}
    assert torch.equal(model.conv.weight, other.conv.weight)


def test_names_are_adapted(tmp_path: Path) -> None:
    model, other = Net(), Adapting()
    torch.save({f"module.{name}": value for name, value in model.state_dict().items()}, tmp_path / "x.pth")
    load_checkpoint(other, tmp_path / "x.pth", strict=True)
    assert torch.equal(model.fc.bias, other.fc.bias)


def test_report_of_what_does_not_fit(tmp_path: Path, caplog: Any) -> None:
    state = Net(width=6).state_dict()
    state["other.weight"] = torch.zeros(1)
    del state["fc.bias"]
    state["conv.bias"] = torch.zeros(4)
    torch.save(state, tmp_path / "x.pth")
    with caplog.at_level(logging.INFO):
        load_checkpoint(Net(), tmp_path / "x.pth", logger=logging.getLogger("test"))
    assert ": 1 of 4 tensors" in caplog.text
    assert "missing: fc.bias" in caplog.text and "unexpected: other.weight" in caplog.text
    assert "conv.weight (6, 1, 3, 3) for (4, 1, 3, 3)" in caplog.text
    with pytest.raises(CheckpointError, match="does not match the model"):
        load_checkpoint(Net(), tmp_path / "x.pth", strict=True)


@pytest.mark.parametrize(
    ("on", "lost", "level"), [(False, "", "INFO"), (True, "", "WARNING"), (False, "fc.bias", "WARNING")]
)
def test_quantizers_that_are_off_may_be_left_out(on: bool, lost: str, level: str, tmp_path: Path, caplog: Any) -> None:
    state = Net().state_dict()
    quantizer = {"enabled": torch.tensor(on), "scale": torch.ones(1)}
    state.update({f"fc.input_quantizer.{name}": value for name, value in quantizer.items()})
    state.pop(lost, None)
    torch.save(state, tmp_path / "x.pth")
    with caplog.at_level("INFO"):
        load_checkpoint(Net(), tmp_path / "x.pth", logger=logging.getLogger("test"))
    (record,) = caplog.records
    assert record.levelname == level
    assert ("left out" in caplog.text) is (level == "INFO") is not ("unexpected" in caplog.text)


def test_nothing_fits(tmp_path: Path) -> None:
    torch.save(nn.Linear(3, 3).state_dict(), tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="nothing in"):
        load_checkpoint(Net(), tmp_path / "x.pth")


def test_unreadable_files(tmp_path: Path) -> None:
    path = tmp_path / "epoch_1.pth"
    with pytest.raises(CheckpointError, match="no checkpoint"):
        read_checkpoint(path)
    save_checkpoint(Net(), path)
    with pytest.raises(CheckpointError, match=r"Did you mean 'epoch_1\.pth'"):
        read_checkpoint(tmp_path / "epoch_l.pth")
    for damaged in (path.read_bytes()[:-100], b"", b"PK\x03\x04 something"):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="damaged"):
            read_checkpoint(path)


@pytest.mark.parametrize("content", [b"h\x54", b"h\x54\x00\x00", b"\x93\x41\x00" * 9, b"."])
def test_the_reason_is_a_sentence(tmp_path: Path, content: bytes) -> None:
    """Torch's own error may be a bare number, or pages of advice to trust the file."""
    path = tmp_path / "x.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as error:
        read_checkpoint(path)
    reason = str(error.value).partition("plain weights (")[2].partition("). The file is damaged")[0]
    assert re.fullmatch(r"\w+(: [A-Za-z].* .*[a-z0-9])?", reason), reason
    assert "weights_only" not in str(error.value) and "\x1b" not in str(error.value)


def test_code_is_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (tmp_path.joinpath("ran").touch, ())

    torch.save({"state_dict": {}, "evil": Evil()}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="plain weights"):
        read_checkpoint(tmp_path / "x.pth")
    assert not (tmp_path / "ran").exists()


def _packed(path: Path, pickled: bytes, method: int = zipfile.ZIP_STORED, **parts: bytes) -> Path:
    """Write a checkpoint with this pickle, and right checksums."""
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, part in {"data.pkl": pickled, "version": b"3", **parts}.items():
            archive.writestr(f"x/{name}", part)
    return path


@pytest.mark.parametrize("older", [False, True])
def test_a_few_bytes_that_would_fill_the_memory(older: bool, tmp_path: Path) -> None:
    """Of a hundred gigabytes, so that a reader that obeys fails in any case."""
    path, call = tmp_path / "x.pth", b"\x80\x02cbuiltins\nbytearray\n\x8a\x05\x00\xe8vH\x17\x85R."
    path.write_bytes(call) if older else _packed(path, call)
    with pytest.raises(CheckpointError, match="contains a bytearray"):
        read_checkpoint(path)


def test_a_checkpoint_that_unpacks_to_more_than_its_size(tmp_path: Path) -> None:
    path = _packed(tmp_path / "x.pth", b"\x80\x02}.", zipfile.ZIP_DEFLATED, more=bytes(2**20))
    for mmap in (False, True):
        with pytest.raises(CheckpointError, match=r"its parts have 1,048,5\d\d bytes, the file \d\d?\d?\d?,?\d\d\d"):
            read_checkpoint(path, mmap=mmap)


@pytest.mark.parametrize("content", [{"epoch": 3}, [1, 2], {}])
def test_no_weights_in_it(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="contains no weights"):
        read_checkpoint(tmp_path / "x.pth")


def test_an_exported_file_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"\x08\x0a")
    with pytest.raises(CheckpointError, match=r"model\.onnx is an exported model.*give the checkpoint \(\.pth\)"):
        read_checkpoint(tmp_path / "model.onnx")


def test_what_differs_where_one_network_is_quantized_otherwise() -> None:
    net = {"fc.weight": torch.zeros(2, 4)}
    lsq, other, axis = (
        {**net, f"fc.weight_quantizer.{name}": torch.zeros(size)}
        for name, size in (("scale", 1), ("a", 1), ("scale", 2))
    )
    for own, given, cause, remedy in (
        (net, net, "", ""),
        (net, {"fc.bias": torch.zeros(2)}, "", ""),
        (lsq, net, "it has float weights, but", "--options quant_transformer=none"),
        (net, lsq, "the config has no quant_transformer", "use the config that it was trained with"),
        (lsq, {**lsq, "fc.bias": torch.zeros(2)}, "", ""),
        (lsq, other, "quantizes other layers, or in another way", "use the config that it was trained with"),
        (lsq, axis, "quantizes other layers, or in another way", "use the config that it was trained with"),
    ):
        fit = compare(own, given)
        assert cause in fit.cause() and bool(fit.cause()) == bool(cause)
        assert remedy in fit.remedy() and bool(fit.remedy()) == bool(remedy)


@pytest.mark.parametrize("mmap", [False, True])
def test_files_of_older_pytorch_are_read(mmap: bool, tmp_path: Path) -> None:
    """Published weights are often in the format before PyTorch 1.6, which cannot be mapped into memory."""
    path = tmp_path / "old.pth"
    torch.save({"fc.weight": torch.arange(3.0)}, path, _use_new_zipfile_serialization=False)
    assert read_checkpoint(path, mmap=mmap)["state_dict"]["fc.weight"].tolist() == [0.0, 1.0, 2.0]
