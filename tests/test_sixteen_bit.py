"""16-bit and many-channel pictures keep their precision from the file to the network's input."""

import csv
from pathlib import Path
from typing import Any

import killing
import numpy as np
import pytest
import torch
import zoo
from PIL import Image

from tinyssl.build import augment_from
from tinyssl.config import load_recipe
from tinyssl.loader import generator_for
from tinyssl.model import load
from tinyssl.pretraining import pretrain
from tinyssl.run import to_unit
from tinyssl.sources import read_pictures, with_sources
from tinyssl.weights import load_encoder

SETTINGS = [s.replace("image_size=16", "image_size=20") for s in killing.QUICK]


def low_byte_apart(folder: Path, kind: str) -> Path:
    """Two pictures that are equal in the high byte everywhere."""
    folder.mkdir()
    high = zoo.noise(20, 20, 1)[..., 0].astype(np.uint16) * np.uint16(256)
    for number, low in enumerate((0x10, 0x11)):
        values = high + np.uint16(low)
        if kind == "png":
            Image.fromarray(values).save(folder / f"{number}.png")
        elif kind == "big-endian tif":
            Image.fromarray(values.astype(">u2")).save(folder / f"{number}.tif")
        else:
            data = zoo.tiff(np.stack([values] * 2, axis=2), planes=True, deflate=True)
            (folder / f"{number}.tif").write_bytes(data)
    return folder


@pytest.mark.parametrize("kind", ["png", "big-endian tif", "two channels"])
def test_the_low_byte_reaches_the_networks_input(kind: str, tmp_path: Path) -> None:
    channels = 2 if kind == "two channels" else 1
    settings = [*SETTINGS, f"data.channels={channels}"]
    data = low_byte_apart(tmp_path / "data", kind)
    recipe = with_sources(load_recipe("mobilenetv3-small", settings), data)
    raw = torch.from_numpy(np.array(read_pictures(recipe).array))
    whole = to_unit(raw)
    torch.testing.assert_close(whole[1] - whole[0], torch.full_like(whole[0], 1 / 65535))
    augment = augment_from(recipe)
    views = [augment(raw[row : row + 1], generator_for(0, 0, stream=1)) for row in (0, 1)]
    assert views[0].shape[1] == channels
    assert not torch.equal(views[0], views[1])


@pytest.mark.parametrize(("channels", "dtype"), [(2, np.uint16), (4, np.uint8), (4, np.uint16)])
def test_many_channels_train_and_embed(channels: int, dtype: Any, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    files = [data / f"{number}.tif" for number in range(6)]
    for number, path in enumerate(files):
        values = np.roll(zoo.noise(24, 24, channels, dtype), number, axis=0)
        path.write_bytes(zoo.tiff(values, planes=number % 2 == 0))
    run = pretrain(data, out=tmp_path / "run", overrides=[*SETTINGS, f"data.channels={channels}"])
    with (run / "results.csv").open(newline="") as file:
        assert all(0 <= float(row["retrieval"]) <= 1 for row in csv.DictReader(file))
    encoder, description = load_encoder(run)
    assert (encoder.channels, description["dtype"]) == (channels, np.dtype(dtype).name)
    assert np.isfinite(load(run).embed(files)).all()


def test_statistics_are_those_of_the_training_pictures(tmp_path: Path) -> None:
    for part, low in (("train", 0), ("others", 200)):
        (tmp_path / part).mkdir()
        for number in range(6):
            values = (zoo.noise(20, 20 + number) // 6 + low).astype(np.uint8)
            Image.fromarray(values).save(tmp_path / part / f"{number}.png")
    run = pretrain(tmp_path / "train", out=tmp_path / "run", overrides=SETTINGS)
    recipe = with_sources(load_recipe(run / "recipe.yaml"), tmp_path / "train")
    mean, std = read_pictures(recipe).statistics()
    encoder, description = load_encoder(run)
    assert encoder.mean.tolist() == pytest.approx(mean)
    assert encoder.std.tolist() == pytest.approx(std)
    assert description["mean"] == pytest.approx(mean)
