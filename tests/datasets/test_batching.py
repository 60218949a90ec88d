"""Collation of samples."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lbitcls.datasets import collate, scatter
from lbitcls.utils.errors import DataError


def test_each_kind_of_value() -> None:
    samples = [
        {
            "img": torch.full((3, 2, 2), float(i)),
            "array": np.full(2, i),
            "gt_label": torch.tensor(i),
            "number": i,
            "share": i / 2,
            "scalar": np.int64(i),
            "img_metas": {"filename": str(i)},
        }
        for i in range(3)
    ]
    batch = collate(samples, samples_per_gpu=3)
    assert batch["img"].shape == (3, 3, 2, 2) and batch["img"].dtype == torch.float32
    assert batch["array"].tolist() == [[0, 0], [1, 1], [2, 2]]
    for key in ("gt_label", "number", "scalar"):
        assert batch[key].dtype == torch.int64 and batch[key].tolist() == [0, 1, 2]
    assert batch["share"].dtype == torch.float32
    assert batch["img_metas"] == [{"filename": "0"}, {"filename": "1"}, {"filename": "2"}]


def test_the_tutorials_call() -> None:
    assert collate([{"img": torch.zeros(3, 8, 8)}], samples_per_gpu=1)["img"].shape == (1, 3, 8, 8)


def test_different_sizes_and_no_samples() -> None:
    with pytest.raises(DataError, match=r"'img': \(3, 8, 8\), \(3, 8, 9\).*CenterCrop"):
        collate([{"img": torch.zeros(3, 8, 8)}, {"img": torch.zeros(3, 8, 9)}])
    with pytest.raises(DataError, match="at least one sample"):
        collate([])


def test_scatter_shares_a_batch_out_in_order() -> None:
    batch = collate([{"img": torch.full((1, 2, 2), float(i)), "gt_label": i, "name": str(i)} for i in range(5)])
    parts = scatter(batch, ["cpu", torch.device("cpu")])
    assert [part["gt_label"].tolist() for part in parts] == [[0, 1, 2], [3, 4]]
    assert [part["name"] for part in parts] == [["0", "1", "2"], ["3", "4"]]
    assert torch.equal(torch.cat([part["img"] for part in parts]), batch["img"])
    assert len(scatter(collate([{"gt_label": 1}]), ["cpu"] * 3)) == 1  # fewer samples than devices
    assert scatter(batch, ["meta"])[0]["img"].device.type == "meta"
    for devices, given in (([], batch), (["cpu"], {**batch, "name": ["a"]})):
        with pytest.raises(DataError, match="one length, and devices"):
            scatter(given, devices)
