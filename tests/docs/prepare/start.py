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
    """A quantizer, a backbone, a data set and a target that do what their text says."""
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
    exported_for_the_target(names)


def exported_for_the_target(names: dict[str, Any]) -> None:
    """The recipe's target refuses a layer of few channels by its name, and one of 16 is exported and verified."""
    import pytest
    import torch
    from torch import nn

    from lbitcls.deploy import export_model
    from lbitcls.deploy.targets.base import find_target
    from lbitcls.deploy.verification.verify import verify
    from lbitcls.quant import build_mtransformer, calibrate
    from lbitcls.utils.errors import ConfigError

    assert isinstance(find_target("dsp"), names["SignalProcessor"])
    images = torch.randn(32, 3, 8, 8)
    policy = dict(Conv2d=dict(type="LSQConv", num_bit_w=4, num_bit_a=4))
    for channels in (8, 16):
        net = nn.Sequential(nn.Conv2d(3, channels, 3), nn.Flatten(), nn.Linear(36 * channels, 4))
        net = build_mtransformer(dict(type="ModelTransformer", quan_policy=policy))(net).eval()
        calibrate(net, [images])
        path = Path("dsp.onnx")
        if channels < 16:
            with pytest.raises(ConfigError, match="breaks the rules of dsp: .* has 8 channels; give it 16 or more"):
                export_model(net, path, input_shape=(3, 8, 8), target="dsp")
            assert not path.exists()
        else:
            report = export_model(net, path, input_shape=(3, 8, 8), target="dsp")
            assert report.info.target == "dsp" and report.info.layers[0]["container"] == "int8"
            found = verify(net, path, [images], threads=1)
            assert found.passed and "onnxruntime" in {row.name for row in found.rows}


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
