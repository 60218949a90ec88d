"""Names of ImageNet's classes."""

from __future__ import annotations

import subprocess
import sys

from torchvision.models import ResNet18_Weights

from lbitcls.datasets.names import imagenet_classes


def test_they_are_torchvisions() -> None:
    assert list(imagenet_classes()) == ResNet18_Weights.DEFAULT.meta["categories"]


def test_they_come_without_torch() -> None:
    code = "import sys; from lbitcls.datasets.names import imagenet_classes as n; print(n()[1], 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "goldfish False\n"
