"""Time until tinyssl reaches the k-NN score that lightly's SimCLR has at the end of its budget.

Both train on the same picture files, with the same view size, batch and backbone. Scores are
leave-one-out balanced accuracies on the same pictures; the time to measure them is not counted.
"""

import csv
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.benchmarks.epochs import sample, tinyssl_run
from tests.benchmarks.peers import Peer, quiet
from tests.benchmarks.step import cached_size
from tinyssl import pretrain
from tinyssl.backbones import resolve_name
from tinyssl.config import load_recipe
from tinyssl.data import load_pictures
from tinyssl.encoder import create_encoder, embed_pictures
from tinyssl.labels import write_csv
from tinyssl.scoring import knn_loo_score

K = 10  # as in the k-NN curve of run.watch_labels


def measure(
    paths: list[Path],
    names: list[str],
    *,
    recipe: str,
    size: int,
    batch: int,
    epochs: int,
    seeds: int,
    device: str,
) -> dict[str, Any]:
    """A row for each seed: SimCLR's score and seconds, and tinyssl's seconds to that score.

    Args:
        paths: of pictures.
        names: their classes.
        recipe: tinyssl's.
        size: pixels a side of the views.
        batch: pictures a step.
        epochs: SimCLR's budget; tinyssl runs four times as many, which took less time.
        seeds: number of seeds.
        device: cpu or cuda.

    Returns:
        `rows`; `seconds` is None if the score was not reached.
    """
    quiet()
    backbone = resolve_name(load_recipe(recipe).encoder.name)
    rows = []
    for seed in range(seeds):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            pictures = sorted(sample(paths, len(paths), folder / "pictures").iterdir())
            simclr = _simclr(pictures, names, backbone, size, batch, epochs, seed, device)
            curve = _curve(pictures, names, folder, recipe, size, batch, 4 * epochs, seed, device)
        reached = [point["seconds"] for point in curve if point["knn"] >= simclr["knn"]]
        rows.append(
            {"seed": seed, "simclr": simclr, "seconds": min(reached, default=None), "curve": curve}
        )
    return {"epochs": epochs, "size": size, "batch": batch, "pictures": len(paths), "rows": rows}


def _simclr(
    pictures: list[Path],
    names: list[str],
    backbone: str,
    size: int,
    batch: int,
    epochs: int,
    seed: int,
    device: str,
) -> dict[str, float]:
    torch.manual_seed(seed)
    bf16 = device == "cuda" and torch.cuda.is_bf16_supported()
    peer = Peer("simclr", pictures[0].parent, backbone, size, batch, device, bf16)
    seconds = sum(peer.epoch()[0] for _ in range(epochs))
    encoder = create_encoder(backbone)
    encoder.backbone.load_state_dict(peer.model[0].state_dict())
    array = load_pictures(pictures, size=cached_size(size), rule="crop", channels=3).array
    score = knn_loo_score(embed_pictures(encoder, array), _numbers(names), k=K)
    return {"knn": score, "seconds": seconds}


def _curve(
    pictures: list[Path],
    names: list[str],
    folder: Path,
    recipe: str,
    size: int,
    batch: int,
    epochs: int,
    seed: int,
    device: str,
) -> list[dict[str, float]]:
    """Seconds and score after every epoch.

    They include what precedes the first step, measured on an identical run: decoding into an empty
    cache, the network, near pictures and the bank's initial rows.
    """
    write_csv(folder / "labels.csv", pictures, names)
    settings = [
        f"run.seed={seed}", f"run.device={device}", f"optim.batch_size={batch}",
        f"augment.view_size={size}", "data.channels=3", f"data.cache_dir={folder / 'cache'}",
        f"run.watch_labels={folder / 'labels.csv'}", "run.watch_every=1",
        f"run.epochs={epochs}", f"data.image_size={cached_size(size)}",
        # The features of SimCLR's encoder.
        "encoder.levels=1", "encoder.components=0", "encoder.descriptors=false",
    ]  # fmt: skip
    start = time.perf_counter()
    twin = tinyssl_run(folder / "pictures", folder / "twin", recipe, settings)
    twin._find_near()
    twin._start_bank()
    before = time.perf_counter() - start
    run = pretrain(folder / "pictures", recipe, folder / "run", overrides=settings)
    with (run / "results.csv").open(newline="") as file:
        return [
            {"seconds": before + float(row["time"]), "knn": float(row["knn"])}
            for row in csv.DictReader(file)
        ]


def _numbers(names: list[str]) -> np.ndarray[Any, Any]:
    return np.unique(names, return_inverse=True)[1]
