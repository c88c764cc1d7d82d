"""tinyssl and methods of lightly on picture files, in the same wall-clock time and own loops.

    python -m tests.benchmarks.quality.own_loop elpv xsdd --data sets --costs study --out own-loop \
        --methods simclr

In the study all methods share tinyssl's pictures in memory and its batched views, and only the
method differs. Here the others read, decode and augment as in lightly's documentation
(`LightlyDataset`, its SimCLR transform with one worker per core), for as long as `tinyssl pretrain`
takes from files with an empty cache. They keep the recipe's initial weights and features, views of
the same size and crops, and the rates that the study chose for them (tuned.json). Nothing else may
run on its cores; `own_table` makes a table of the results in --out.
"""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from tests.benchmarks.machine import machine
from tests.benchmarks.peers import loader, quiet
from tests.benchmarks.quality.peers import PEERS
from tinyssl import pretrain
from tinyssl.budget import views_for
from tinyssl.build import build_encoder
from tinyssl.config import Recipe, load_recipe
from tinyssl.data import Pictures, load_pictures
from tinyssl.encoder import Encoder, embed_pictures, widen
from tinyssl.files import write_text
from tinyssl.labeled_split import LabeledSplit, read_split
from tinyssl.schedule import warmup_cosine
from tinyssl.scoring import evaluate_features
from tinyssl.train import clip_gradients, parameter_groups
from tinyssl.weights import load_encoder

_RATES = 1000  # learning rates over a run; a tenth of them is the warm-up, as in the study


def ours(folder: Path, recipe: str, settings: list[str]) -> tuple[Encoder, dict[str, float]]:
    """A run from files with an empty cache: its one-level encoder, its seconds and epochs."""
    with TemporaryDirectory() as name:
        out = Path(name)
        plain = ["encoder.levels=1", "encoder.components=0", "encoder.descriptors=false"]
        quiet = ["run.watch_every=0", "run.device=cpu"]  # as for the others
        given = [*settings, *plain, *quiet, f"data.cache_dir={out}"]
        start = time.perf_counter()
        run = pretrain(folder, recipe, out / "run", overrides=given)
        seconds = time.perf_counter() - start
        encoder, _ = load_encoder(run)
        epochs = load_recipe(run).run.epochs
    return encoder, {"seconds": seconds, "epochs": float(epochs)}


def theirs(
    method: str, folder: Path, start: Encoder, recipe: Recipe, settings: dict[str, Any],
    seconds: float,
) -> tuple[Encoder, dict[str, float]]:  # fmt: skip
    """Trains a method of lightly for `seconds`; warm-up and cosine of the rate go by the clock."""
    torch.manual_seed(recipe.run.seed)
    head = recipe.head
    model = PEERS[method](start, head.hidden, head.width, settings).train()
    model.to(memory_format=torch.channels_last)
    batch = recipe.optim.batch_size
    peak = float(settings["lr"]) * batch / 256
    groups = parameter_groups(model, recipe.optim.weight_decay)
    optimizer = torch.optim.SGD(groups, lr=peak, momentum=0.9, fused=True)
    seen, begun = 0, time.perf_counter()
    rates = warmup_cosine(_RATES, _RATES // 10, peak)
    batches = loader(folder, _transform(recipe), batch)
    channels = start.channels
    while True:
        for (first, second), *_ in batches:
            share = (time.perf_counter() - begun) / seconds
            if share >= 1:
                took = time.perf_counter() - begun
                return start, {"seconds": took, "epochs": seen / len(batches.dataset)}
            for group in optimizer.param_groups:
                group["lr"] = rates[int(share * _RATES)]
            loss = model(_channels(first, channels), _channels(second, channels))
            loss.backward()
            clip_gradients(list(model.trained()), recipe.optim.clip_norm)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            model.after_step()
            seen += len(first)


def _channels(views: Tensor, channels: int) -> Tensor:
    """One channel for encoders of gray pictures, since lightly reads every picture as RGB."""
    return views[:, :channels].contiguous(memory_format=torch.channels_last)


def _transform(recipe: Recipe) -> Any:
    from lightly.transforms import SimCLRTransform

    section = recipe.augment
    return SimCLRTransform(
        input_size=section.view_size,
        min_scale=section.crop_scale[0],
        cj_prob=section.jitter,
        cj_bright=section.brightness,
        cj_contrast=section.contrast,
        cj_sat=section.saturation,
        cj_hue=section.hue,
        cj_strength=1.0,
        random_gray_scale=section.grayscale,
        gaussian_blur=0.0,
        normalize=None,  # the encoder does it
    )


def judge(encoder: Encoder, split: LabeledSplit, recipe: Recipe, array: Any) -> dict[str, Any]:
    """Scores of the recipe's components of all levels, and of the last level."""
    train, section = ~split.test, recipe.encoder
    given = section.components, section.whitening, section.pooling
    wide = widen(encoder, "all", array[train], *given)
    found = {}
    for name, made in (("components", wide), ("last_level", encoder)):
        features = embed_pictures(made, array)
        scores = evaluate_features(
            features[train], split.labels[train], features[~train], split.labels[~train],
            classes=len(split.classes), shots=(1, 5, 10, 20), seed=recipe.run.seed,
        )  # fmt: skip
        found[name] = {
            "knn": scores["knn"]["balanced_accuracy"],
            "linear": scores["linear"]["balanced_accuracy"],
            **{f"{shots}-shot": value["mean"] for shots, value in scores["few_shot"].items()},
        }
    return found


def chosen(tuned: dict[str, list[dict[str, Any]]], methods: list[str]) -> dict[str, Any]:
    """The best settings of a study's grids for each method with a score."""
    best = {}
    for method in methods:
        tried = [row for row in tuned.get(method, []) if row["knn"] is not None]
        if tried:
            best[method] = max(tried, key=lambda row: row["knn"])["settings"]
    return best


def lacking(given: argparse.Namespace, best: dict[str, Any]) -> str | None:
    """An error message if sets, or rates of methods, are missing."""
    absent = [name for name in given.sets if not (given.data / name).is_dir()]
    if absent:
        return f"{given.data} has no {', '.join(absent)}: folders with train/CLASS/, test/CLASS/"
    unrated = [method for method in given.methods if method not in best]
    if unrated:
        return f"{given.costs} has no tuned.json of a study with rates for {', '.join(unrated)}"
    return None


def compare(name: str, given: argparse.Namespace, best: dict[str, Any]) -> None:
    """Runs all methods on one set, with a file for each; existing files are kept."""
    folder = given.data / name
    views = round(views_for(load_recipe(given.recipe).run.views, "cpu") * given.budget)
    settings = [f"run.seed={given.seed}", f"run.views={views}"]
    recipe = load_recipe(given.recipe, settings)
    split, _ = read_split(folder / "train", folder / "test", None, 0)
    pictures = load_pictures(split.paths, size=recipe.data.image_size, rule=recipe.data.resize)
    target = given.out / f"{name}-tinyssl-{given.budget:g}-s{given.seed}.json"
    if not target.exists():
        encoder, took = ours(folder / "train", given.recipe, settings)
        _keep(target, took, judge(encoder, split, recipe, pictures.array), settings)
    seconds = json.loads(target.read_text())["seconds"]
    for method in given.methods:
        target = given.out / f"{name}-{method}-{given.budget:g}-s{given.seed}.json"
        if target.exists():
            continue
        start = build_encoder(recipe, _training(pictures, split))
        encoder, took = theirs(method, folder / "train", start, recipe, best[method], seconds)
        _keep(target, took, judge(encoder, split, recipe, pictures.array), best[method])


def _training(pictures: Pictures, split: LabeledSplit) -> Pictures:
    return replace(pictures, array=pictures.array[~split.test])


def _keep(target: Path, took: dict[str, float], scores: dict[str, Any], settings: Any) -> None:
    result = took | {"scores": scores, "settings": settings, "machine": machine()}
    write_text(target, json.dumps(result, indent=1) + "\n")
    told = {key: round(100 * value, 1) for key, value in scores["components"].items()}
    print(
        f"{target.name}: {took['seconds']:.0f} s, {took['epochs']:.1f} epochs, {told}", flush=True
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("sets", nargs="+", help="folders in --data with train/CLASS/, test/CLASS/")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--costs", type=Path, required=True, help="a study's folder: tuned.json")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--methods", nargs="*", default=["simclr"], choices=list(PEERS))
    parser.add_argument("--recipe", default="mobilenetv3-small", help="a folder --out for each")
    parser.add_argument("--budget", type=float, default=1, help="of the recipe's views")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    tuned = given.costs / "tuned.json"
    best = chosen(json.loads(tuned.read_text()) if tuned.exists() else {}, given.methods)
    if told := lacking(given, best):
        parser.error(told)
    quiet()
    given.out.mkdir(parents=True, exist_ok=True)
    for name in given.sets:
        compare(name, given, best)


if __name__ == "__main__":
    main()
