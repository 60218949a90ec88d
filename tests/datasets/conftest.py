"""Fixtures of the data tests: a separate cache, no data roots except a test's own, small photos."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _alone(_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(_cache))
    monkeypatch.delenv("LBITCLS_DATA", raising=False)
    monkeypatch.chdir(tmp_path)


def photo(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Return a smooth color image, uint8 (height, width, 3)."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """`photos/{cat,dog,eel}`, each with 4 JPEG files of different sizes."""
    for label, name in enumerate(("cat", "dog", "eel")):
        folder = tmp_path / "photos" / name
        folder.mkdir(parents=True)
        for number in range(4):
            image = Image.fromarray(photo(30 + 3 * number, 40 + label, seed=10 * label + number))
            image.save(folder / f"{number}.jpg", quality=95)
    return tmp_path / "photos"
