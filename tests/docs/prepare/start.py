"""The README, the first page of the site, and the recipes of CONTRIBUTING."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from blocks import Page

from prepare.materials import image_folders, photos, quickstart_run


def readme(folder: Path) -> None:
    quickstart_run(folder)
    photos(folder)
    image_folders(folder / "my_images")


def labelled_and_scored(names: dict[str, Any], said: str) -> None:
    assert names["result"]["pred_class"] in set("0123456789") and len(names["result"]["topk"]) == 5
    assert names["scores"].shape == (1, 10)


def recipes(names: dict[str, Any], said: str) -> None:
    """A quantizer, a backbone and a data set that do what their text says."""
    import torch
    from torch import nn

    from lbitcls.datasets import build_dataset
    from lbitcls.models import build_backbone
    from lbitcls.quant import build_quant_layer

    layer = build_quant_layer(dict(type="PowerOfTwoConv", num_bit_w=4, num_bit_a=4), nn.Conv2d(8, 8, 3))
    layer(torch.rand(2, 8, 6, 6)).sum().backward()
    assert isinstance(layer.weight_quantizer, names["PowerOfTwo"])
    step = layer.weight_quantizer.qparams().scale
    assert torch.equal(torch.log2(step), torch.log2(step).round())
    assert layer.weight_quantizer.scale.grad.abs() > 0
    backbone = build_backbone(dict(type="TwoConvs", width=64))
    assert isinstance(backbone, names["TwoConvs"])
    assert backbone(torch.rand(2, 3, 32, 32))[-1].shape == (2, 64, 8, 8)
    pipeline = [dict(type="LoadImageFromFile"), dict(type="ImageToTensor", keys=["img"])]
    pets = build_dataset(dict(type="CatsAndDogs", data_prefix="pets", pipeline=pipeline), data_root=Path.cwd())
    assert isinstance(pets, names["CatsAndDogs"])
    assert pets.labels.tolist() == [0, 0, 1]
    assert pets[2]["img"].shape == (3, 30, 40)


def pets(folder: Path) -> None:
    from prepare.materials import write_image

    for seed, name in enumerate(("cat.0.jpg", "dog.0.jpg", "cat.1.jpg")):
        write_image(folder / "pets" / name, seed)


PAGES = {
    "README.md": Page(
        prepare=readme,
        check=labelled_and_scored,
        not_run={"make quickstart": "install", "make test": "install"},
        slow=True,
    ),
    "docs/index.md": Page(not_run={"make quickstart": "install"}),
    "CONTRIBUTING.md": Page(
        prepare=pets,
        check=recipes,
        not_run={"make setup          # .venv with the tested versions (constraints.txt)": "install"},
        slow=True,
    ),
}
