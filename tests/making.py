"""Runs and pictures that several test files start from."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from tinyssl.encoder import create_encoder
from tinyssl.weights import save_encoder


def make_run(folder: Path, name: str, rule: str = "crop", **changes: Any) -> Path:
    """A run of an encoder whose batch norms have seen some data, so that features differ."""
    folder.mkdir(parents=True)
    encoder = create_encoder(name, seed=0, **changes)
    seen = torch.rand(32, encoder.channels, 48, 48, generator=torch.Generator().manual_seed(0)) / 2
    seen[16:] += 0.5
    with torch.no_grad():
        for _ in range(20):
            encoder.train()(seen)
    save_encoder(encoder.eval(), folder, image_size=48, resize=rule)
    return folder


def make_pictures(folder: Path) -> Path:
    """Twelve blurred pictures of noise, all of other widths."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for number in range(12):
        noise = generator.integers(0, 256, (4, 4 + number % 5, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((60 + number, 50)).save(folder / f"{number:02}.png")
    return folder
