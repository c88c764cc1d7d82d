"""Shared by all tests: small threads, a cache of their own, and a folder of pictures."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image


@pytest.fixture(scope="session", autouse=True)
def _few_threads() -> None:
    torch.set_num_threads(2)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For what is so small that threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINYSSL_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def picture_folder(tmp_path: Path) -> Callable[..., Path]:
    """Makes a folder of class folders: bright and dark noise, told apart by any encoder."""

    def make(name: str = "pictures", per_class: int = 8, side: int = 40, mode: str = "RGB") -> Path:
        generator = np.random.default_rng(per_class)
        for label, low in (("dark", 0), ("bright", 128)):
            folder = tmp_path / name / label
            folder.mkdir(parents=True)
            for number in range(per_class):
                noise = generator.integers(low, low + 127, (side, side, 3), dtype=np.uint8)
                Image.fromarray(noise).convert(mode).save(folder / f"{number:03}.png")
        return tmp_path / name

    return make
