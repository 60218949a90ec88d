"""Odd contents of checkpoints: entries of other types, shapes and sizes, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

WEIGHT = "head.fc.weight"
ODD: dict[str, Any] = {
    "text": "x",
    "none": None,
    "number": 3,
    "list": [1, 2],
    "sparse": torch.eye(3).to_sparse(),
    "meta": torch.empty(3, 3, device="meta"),
    "complex": torch.zeros(10, 32, dtype=torch.complex64),
    "integers": torch.zeros(10, 32, dtype=torch.int64),
    "wide": torch.zeros(1).expand(2**40),
    "empty": torch.zeros(0),
}
META: dict[str, list[Any]] = {
    "epoch": [None, "three", -1, 2.5, True, 2**70, [1], 10**5000],
    "iter": ["x", -3, None],
    "inner_iter": ["x", 2**64],
    "epoch_len": [None, "x", {}],
    "seed": ["x", -1, 2**64, {"a": 1}],
    "CLASSES": [7, "abc", [["a"]], [1.5], {"a": 1}, ["\ud800"], ["x" * 10**6]],
    "config": [7, b"x", "\ud800", "model = dict(", {"a": 1}],
    "run": [7, ["x"]],
    "kernels": [7, "nonsense"],
    "teacher": [7, "y" * 10**6],
    "phase": [7],
    "optimizer": [7, "Adam", "y" * 10**6],
    "x" * 10**6: [1],
}
STATES: list[tuple[str, Callable[[dict[str, Any]], Any]]] = [
    ("no optimizer", lambda c: c.pop("optimizer")),
    ("optimizer a list", lambda c: c.update(optimizer=[1])),
    ("no groups", lambda c: c["optimizer"].pop("param_groups")),
    ("groups a number", lambda c: c["optimizer"].update(param_groups=3)),
    ("a group less", lambda c: c["optimizer"]["param_groups"].pop()),
    ("no parameters", lambda c: c["optimizer"]["param_groups"][0].update(params=[])),
    ("no momentum", lambda c: c["optimizer"]["param_groups"][0].pop("momentum")),
    ("state a number", lambda c: c["optimizer"].update(state=3)),
    ("state of a parameter", lambda c: c["optimizer"]["state"].update({0: 3})),
    ("buffer a text", lambda c: c["optimizer"]["state"][0].update(momentum_buffer="x")),
    ("buffer's shape", lambda c: c["optimizer"]["state"][0].update(momentum_buffer=torch.zeros(2, 2))),
    ("buffer lost", lambda c: c["optimizer"]["state"][0].clear()),
    ("hooks a list", lambda c: c.update(hooks=[1])),
    ("a hook's state", lambda c: c["hooks"].update(dict.fromkeys(c["hooks"], 3))),
    ("a hook's key", lambda c: c["hooks"].update({name: {} for name in c["hooks"]})),
]


def nested(levels: int) -> list[Any]:
    outer: list[Any] = []
    for _ in range(levels):
        outer = [outer]
    return outer


def looped() -> dict[str, Any]:
    loop: dict[str, Any] = {}
    loop["state_dict"] = loop
    return loop


def mutations() -> dict[str, Callable[[dict[str, Any]], Any]]:
    """Ways to spoil the content of a checkpoint, by name."""

    def put(*place: Any) -> Callable[[dict[str, Any]], Any]:
        *path, key, value = place

        def change(content: dict[str, Any]) -> None:
            for name in path:
                content = content[name]
            content[key] = value

        return change

    found = {f"a weight {name}": put("state_dict", WEIGHT, value) for name, value in ODD.items()}
    found |= {f"more, {name}": put("state_dict", "more", value) for name, value in ODD.items()}
    found |= {f"meta {name}": put("meta", value) for name, value in ODD.items()}
    found |= {f"state_dict {name}": put("state_dict", value) for name, value in ODD.items()}
    for key, values in META.items():
        found |= {f"{key[:20]} {number}": put("meta", key, value) for number, value in enumerate(values)}
    for number, key in enumerate([7, None, (1, 2), "k" * 20_000_000, "a\nb\x1b[2J", "\ud800", "module." * 150]):
        found[f"key {number}"] = put("state_dict", key, torch.zeros(1))
        found[f"meta's key {number}"] = put("meta", key, 1)
        found[f"top key {number}"] = put(key, 1)
    found["flags"] = put("state_dict", "head.fc.input_quantizer.enabled", torch.ones(3))
    found["nested"] = put("meta", "more", nested(40))
    found["deeply nested"] = put("more", nested(200))
    found["looped"] = put("more", looped())
    found["looped weights"] = put("state_dict", looped())
    return found | dict(STATES)
