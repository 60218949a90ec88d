"""Checkpoints: damaged files, odd contents, pickles that call or count, zip archives that lie."""

from __future__ import annotations

import copy
import io
import pickle
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lbitcls.core.optim import StateError, build_optimizer, load_optimizer
from lbitcls.inference.self_described import describe
from lbitcls.models import build_classifier
from lbitcls.quant import build_mtransformer
from lbitcls.utils.checkpoint import load_weights, read_checkpoint, save_checkpoint
from lbitcls.utils.errors import CheckpointError
from stress.damage import damaged
from stress.names import odd_name
from stress.odd_checkpoints import mutations
from stress.verdicts import Kind

MODEL = dict(
    type="ImageClassifier",
    backbone=dict(type="ResNetCIFAROptionA", depth=8, in_channels=1, base_channels=8),
    neck=dict(type="GlobalAveragePooling"),
    head=dict(type="LinearClsHead", num_classes=10, in_channels=32),
)
POLICY = {"Conv2d": dict(type="LSQConv", num_bit_w=4, num_bit_a=4)}
_CALLS: tuple[tuple[str, str, tuple[Any, ...]], ...] = (
    *(("os", "system", ("touch ../../secrets/x",)), ("builtins", "eval", ("1",)), ("builtins", "exec", ("1",))),
    *(("posix", "system", ("id",)), ("subprocess", "Popen", (["id"],)), ("builtins", "open", ("x", "w"))),
    *(("builtins", "getattr", ("x", "y")), ("shutil", "rmtree", ("x",)), ("importlib", "import_module", ("os",))),
    *(("builtins", "bytearray", (10**11,)), ("builtins", "bytearray", (2**31,)), ("builtins", "set", ([1],))),
    *(("collections", "Counter", ("x" * 99,)), ("_codecs", "encode", ("x" * 99, "utf-7"))),
    *(("_codecs", "encode", ("x", "rot13")), ("collections", "OrderedDict", ([1],)), ("torch", "Size", ([2**62],))),
    *(("torch", "FloatTensor", (2**36,)), ("torch", "Tensor", (2**36,)), ("torch", "ByteTensor", (2**33,))),
    *(("torch", "FloatStorage", (2**36,)), ("torch.storage", "UntypedStorage", (2**36,))),
    *(("torch", "device", ("cuda:99",)), ("torch", "load", ("x",)), ("torch.hub", "load", ("x", "y"))),
    *(("torch._utils", "_rebuild_meta_tensor_no_storage", (torch.float32, (2**40,), (1,), False)),),
    *(("torch._utils", "_rebuild_sparse_tensor", (torch.sparse_coo, ())), ("builtins", "complex", (1, 2))),
    *(("torch.nn.parameter", "Parameter", (3,)), ("torch.serialization", "_get_layout", ("torch.strided",))),
)
"""Functions that a pickle asks for, allowed and not, with arguments that call, open or allocate."""


class _Call:
    def __init__(self, module: str, name: str, given: tuple[Any, ...]) -> None:
        self.given = module, name, given


class _Pickler(pickle._Pickler):  # type: ignore[name-defined]
    """Writes a `_Call` as a call of a function that need not exist here."""

    def save(self, obj: Any, save_persistent_id: bool = True) -> None:
        if not isinstance(obj, _Call):
            super().save(obj, save_persistent_id)
            return
        module, name, given = obj.given
        self.write(pickle.GLOBAL + f"{module}\n{name}\n".encode())
        super().save(given)
        self.write(pickle.REDUCE)


def pickled(value: Any) -> bytes:
    buffer = io.BytesIO()
    _Pickler(buffer, protocol=2).dump(value)
    return buffer.getvalue()


def packed(parts: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    """Return a zip archive as `torch.save` writes it, with right checksums."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, part in parts.items():
            archive.writestr(name, part)
    return buffer.getvalue()


def parts_of(content: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


class Checkpoints(Kind):
    """A checkpoint per case, as every command reads it, and loaded into a model and an optimizer."""

    name = "checkpoints"
    count = 5_000
    most_mib = 128

    def prepare(self, folder: Path) -> None:
        torch.manual_seed(0)
        self.model = build_mtransformer(dict(type="ModelTransformer", quan_policy=POLICY))(build_classifier(MODEL))
        self.optimizer = dict(type="SGD", lr=0.1, momentum=0.9)
        optimizer = build_optimizer(self.model, self.optimizer)
        for parameter in self.model.parameters():  # without autograd, which forbids forks afterwards
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        meta = {"epoch": 1, "iter": 5, "CLASSES": tuple("0123456789"), "config": "model = dict(type='ImageClassifier')"}
        save_checkpoint(self.model, folder / "x.pth", optimizer, meta, hooks={"LogHook": {}})
        self.whole = (folder / "x.pth").read_bytes()
        self.content = torch.load(folder / "x.pth", weights_only=True)
        self.parts, self.mutations = parts_of(self.whole), mutations()
        self.pickle = next(name for name in self.parts if name.endswith("/data.pkl"))
        legacy = io.BytesIO()
        torch.save(self.content, legacy, _use_new_zipfile_serialization=False)
        self.legacy = legacy.getvalue()
        self.ways: tuple[Callable[[random.Random], tuple[str, bytes]], ...] = (
            *(self._damaged, self._odd, self._odd, self._program, self._program),
            *(self._called, self._named, self._lied, self._lied, self._older),
        )

    def draw(self, number: int, folder: Path) -> str:
        draw = random.Random(f"checkpoint {number}")
        way = draw.choice(self.ways)
        said, content = way(draw)
        (folder / "x.pth").write_bytes(content)
        return f"{way.__name__} {said}"

    def read(self, number: int, folder: Path) -> object:
        path = folder / "x.pth"
        if number % 4 == 0:
            return describe(path)
        found = read_checkpoint(path)
        load_weights(self.model, found["state_dict"], path, strict=number % 2 == 0)
        if "optimizer" in found:
            self._resume(found["optimizer"])
        return found

    def _resume(self, state: Any) -> None:
        """Load the optimizer's state, as the runner does, which names the file."""
        try:
            load_optimizer(build_optimizer(self.model, self.optimizer), state)
        except StateError as error:
            raise CheckpointError(str(error)) from error

    def _damaged(self, draw: random.Random) -> tuple[str, bytes]:
        return damaged(self.whole, draw, [self.whole, self.legacy])

    def _older(self, draw: random.Random) -> tuple[str, bytes]:
        """Damage the format before zip: a row of pickles and the values, without checksums."""
        return damaged(self.legacy, draw, [self.whole, self.legacy])

    def _odd(self, draw: random.Random) -> tuple[str, bytes]:
        content, names = copy.deepcopy(self.content), sorted(self.mutations)
        name = draw.choice([name for name in names if "key 3" not in name])  # 20 MB of name: tested once
        self.mutations[name](content)
        buffer = io.BytesIO()
        torch.save(content, buffer)
        return name[:40], buffer.getvalue()

    def _program(self, draw: random.Random) -> tuple[str, bytes]:
        """Damage the pickle, with right checksums."""
        said, changed = damaged(self.parts[self.pickle], draw, [self.parts[self.pickle]])
        return said, packed({**self.parts, self.pickle: changed})

    def _called(self, draw: random.Random) -> tuple[str, bytes]:
        call = _Call(*draw.choice(_CALLS))
        place = draw.choice(("meta", "state_dict", "more", "whole"))
        value = call if place == "whole" else {"meta": {}, "state_dict": {}, place: {"a": call}}
        return f"{place} {call.given!r:.100}", packed({"x/data.pkl": pickled(value), "x/version": b"3"})

    def _named(self, draw: random.Random) -> tuple[str, bytes]:
        names = [odd_name(draw) for _ in range(3)]
        content = copy.copy(self.content)
        content["meta"] = {**content["meta"], "CLASSES": tuple(names), names[0]: names[1]}
        content["state_dict"] = {**content["state_dict"], names[2]: torch.zeros(1)}
        buffer = io.BytesIO()
        torch.save(content, buffer)
        return ascii(names)[:200], buffer.getvalue()

    def _lied(self, draw: random.Random) -> tuple[str, bytes]:
        """Parts of the archive swapped, gone, of other sizes, compressed, or of names that lead elsewhere."""
        parts, names = dict(self.parts), list(self.parts)
        name, way = draw.choice(names), draw.choice(("gone", "empty", "swapped", "bomb", "grown", "moved", "more"))
        method = zipfile.ZIP_STORED
        if way == "gone":
            del parts[name]
        elif way in ("empty", "grown", "swapped"):
            parts[name] = {"empty": b"", "grown": parts[name] * 3, "swapped": parts[draw.choice(names)]}[way]
        elif way == "bomb":
            parts[name], method = bytes(draw.choice((2**20, 2**25))), zipfile.ZIP_DEFLATED
        elif way == "moved":
            parts[draw.choice(("../../x", "/etc/x", "/", "x\0y", "é"))] = parts.pop(name)
        else:
            parts[f"x/{odd_name(draw)}".encode("utf-8", "replace").decode()[:60000]] = draw.randbytes(100)
        return f"{way} {name}", packed(parts, method)
