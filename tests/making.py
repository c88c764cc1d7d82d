"""Runs and pictures that several test files start from."""

import csv
import os
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

from tinyssl.encoder import create_encoder, widen
from tinyssl.pretraining import pretrain
from tinyssl.weights import save_encoder


@dataclass(frozen=True)
class FinishedDemo:
    """The demo after one epoch: its run, what it returned, and what it printed."""

    run: Path
    result: dict[str, Any]
    told: str


def make_run(
    folder: Path, name: str, rule: str = "crop", components: int = 16, **changes: Any
) -> Path:
    """A run of an encoder of components of all that there is; its batch norms have seen data."""
    folder.mkdir(parents=True)
    encoder = create_encoder(name, seed=0, **changes)
    seen = torch.rand(32, encoder.channels, 48, 48, generator=torch.Generator().manual_seed(0)) / 2
    seen[16:] += 0.5
    with torch.no_grad():
        for _ in range(20):
            encoder.train()(seen)
    pictures = (seen * 255).byte().permute(0, 2, 3, 1).numpy()
    wide = widen(encoder.eval(), "all", pictures, components, 0.25, "statistics", True)
    save_encoder(wide, folder, image_size=48, resize=rule)
    return folder


def untrained_run(
    folder: Path, name: str = "test_resnet", *, seed: int = 0, channels: int = 3, **extra: object
) -> Path:
    """A folder with an encoder of random weights, for 32 pixels; `extra` goes into its JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    encoder = create_encoder(name, seed=seed, channels=channels)
    save_encoder(encoder, folder, image_size=32, resize="crop", extra=extra)
    return folder


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV below its header, whatever bytes its names have."""
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        return list(csv.DictReader(file))


def make_pictures(folder: Path) -> Path:
    """Twelve blurred pictures of noise, all of other widths."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for number in range(12):
        noise = generator.integers(0, 256, (4, 4 + number % 5, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((60 + number, 50)).save(folder / f"{number:02}.png")
    return folder


def smooth_noise(size: int, channels: int) -> torch.Tensor:
    """(6, size, size, channels) uint8 pictures, unlike each other."""
    coarse = torch.rand(6, channels, 5, 5, generator=torch.Generator().manual_seed(1))
    smooth = torch.nn.functional.interpolate(coarse, size=size, mode="bilinear")
    return (255 * smooth).permute(0, 2, 3, 1).contiguous().byte()


class LikeGpu(TorchDispatchMode):
    """Refuses to index uint16, as torch does on a GPU and not on a CPU."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.index.Tensor and args[0].dtype == torch.uint16:
            raise NotImplementedError("\"index_cuda\" not implemented for 'UInt16'")
        return func(*args, **(kwargs or {}))


def precision_of_convolutions() -> str:
    """Of float32 on a GPU: tf32, or ieee."""
    cudnn: Any = torch.backends.cudnn
    if hasattr(cudnn, "conv"):
        return str(cudnn.conv.fp32_precision)
    return "tf32" if cudnn.allow_tf32 else "ieee"


HOSTILE = "<img src=x onerror=alert(1)>"
TINY = [
    "data.image_size=32", "augment.view_size=32", "head.hidden=16", "head.width=8",
    "optim.batch_size=8", "run.epochs=2", "run.log_every=2",
]  # fmt: skip


def make_hostile_run(folder: Path) -> None:
    """25 pictures of two classes and a broken file in `pictures/`, and a run on them, `run/`."""
    generator = np.random.default_rng(0)
    for label, low in (("<b>dark & {{7*7}}", 0), ("bright", 128)):
        (folder / "pictures" / label).mkdir(parents=True)
        for number in range(12):
            name = f"{HOSTILE}.png" if number == 3 else f"{number:02}.png"
            patches = generator.integers(low, low + 127, (4, 4, 3), dtype=np.uint8)
            Image.fromarray(patches).resize((40, 40)).save(folder / "pictures" / label / name)
    bright = folder / "pictures" / "bright"
    copy = bright / os.fsdecode(b"\xff<script>.png")
    copy.write_bytes((bright / "00.png").read_bytes())
    (folder / "pictures" / "broken.png").write_bytes(b"no picture")
    pretrain(folder / "pictures", out=folder / "run", overrides=TINY)


def label_points(methods: str = "linear scratch", labels: tuple[int, ...] = (2, 20)) -> list[Any]:
    """A label curve where every method gains with labels, and typiclust is ahead."""
    return [
        {
            "method": method, "select": select, "labels": count, "shots": count // 2, "draws": 5,
            "mean": 0.4 + count / 100 + 0.1 * (select == "typiclust") - 0.2 * (method == "scratch"),
            "half_width": 0.02,
        }
        for select, count, method in product(("random", "typiclust"), labels, methods.split())
    ]  # fmt: skip
