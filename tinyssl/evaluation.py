"""`tinyssl eval`: one table of scores, the run's encoder beside its baselines."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.table import Table

from tinyssl import __version__
from tinyssl.augment import Augment
from tinyssl.build import augment_of_run
from tinyssl.classifier import load_classifier
from tinyssl.console import log, progress
from tinyssl.curve_lines import Points
from tinyssl.curve_plot import plot_curve
from tinyssl.describing import DescriptorFeatures
from tinyssl.device import keep_freed_memory, pick_device
from tinyssl.encoder import LOOKED_AT, Encoder, create_encoder, embed_pictures
from tinyssl.errors import JobError, UsageError
from tinyssl.files import sha256, writable, write_text
from tinyssl.intervals import half_of_draws
from tinyssl.label_curve import CurveWishes, label_curve
from tinyssl.labeled import used_digests
from tinyssl.labeled_split import (
    SPLIT_FILE,
    LabeledSplit,
    read_split,
    split_pictures,
    warn_of,
)
from tinyssl.rows import spaced_rows
from tinyssl.scoring import evaluate_features, pixel_features, retrieval, scores
from tinyssl.views import two_views
from tinyssl.watch import VIEWED
from tinyssl.weights import (
    WEIGHTS,
    load_encoder,
    load_weights,
    random_like,
    read_description,
    widen_like,
)

SHOTS = (1, 5, 10, 20)
CURVE_FILE = "label_curve.png"
FLOORS = ("raw pixels", "descriptors")  # rows that need no network


def evaluate(
    run: str | Path,
    *,
    train: str | Path | None = None,
    test: str | Path | None = None,
    labels: str | Path | None = None,
    baselines: str | Path | Sequence[str | Path] = (),
    draws: int = 10,
    seed: int = 0,
    device: str = "auto",
    out: str | Path | None = None,
    curve: CurveWishes | None = None,
) -> dict[str, Any]:
    """Judges a run's encoder beside raw pixels, descriptors, random weights, its start and others.

    Args:
        run: a run folder.
        train: a folder of class folders to fit the classifiers on; goes with `test`.
        test: a folder of class folders to measure on.
        labels: instead of the two: columns path,label and optionally split; without a
            split a stratified one is drawn and written beside `eval.json`.
        baselines: run folders or weight files for the run's architecture.
        draws: random choices of labels for each number of shots, at least 10.
        seed: of the draws, of the folds and of the random weights' baseline if the run has none.
        device: auto, cpu, cuda or cuda:N.
        out: where to write the result; `eval.json` in the run folder when None.
        curve: draw accuracy over the number of labels too, see `label_curve`; the picture is
            written beside the result as `label_curve.png`.

    Returns:
        What is written: `encoders` by name, see `evaluate_features`, and what was measured on.
        Where the run has a recipe with built-in augmentation, each encoder also has `retrieval`,
        of two such views of test pictures; see `tinyssl.scoring.retrieval`. Of a fine-tuned run
        with these classes there are the scores of its own `classifier`, with `curve` its points.

    Raises:
        UsageError: no encoder at `run`, labels that do not fit, fewer than 10 draws, or a curve
            that cannot be drawn, or no folder for `out`.
    """
    _refuse(draws, curve)
    description = read_description(run)
    if not (Path(run) / WEIGHTS).is_file():
        raise UsageError(f"no weights at {Path(run) / WEIGHTS}; give the folder of a whole run")
    target = writable(Path(out or Path(run) / "eval.json"), ".json", [labels] if labels else [])
    split, recorded = read_split(train, test, labels, seed)
    log.info(f"test pictures: {recorded}")
    encoders = _encoders(run, description, baselines, seed)
    result = _header(run, split, recorded, seed)
    augment = augment_of_run(run)
    with progress("judging", 2 + len(encoders), "encoders") as advance:
        for name, embed, pictures in _embedders(encoders, split, description, device):
            features = embed(pictures)
            found = _judge(features, split, draws, seed)
            result["encoders"][name] = found | _viewed(embed, pictures, split, augment, seed)
            advance(1)
    result |= _own_classifier(run, split, description, features)
    if curve is not None:
        result["curve"] = label_curve(run, split, curve, seed=seed, device=device)
    _write(result, split, target)
    return result


def _write(result: dict[str, Any], split: LabeledSplit, target: Path) -> None:
    """All that is left is written at the end: what fails before changes nothing."""
    if "curve" in result:
        _draw_curve(result["run"], result["curve"], target.with_name(CURVE_FILE))
    if split.drawn:
        split.write(target.parent / SPLIT_FILE)
    write_text(target, json.dumps(result, indent=1) + "\n")
    log.info(f"wrote {target}")


def _refuse(draws: int, curve: CurveWishes | None) -> None:
    if draws < 10:
        raise UsageError(f"draws: got {draws}; at least 10 are needed for an interval")
    if curve is not None:
        curve.check()


def _header(run: str | Path, split: LabeledSplit, recorded: str, seed: int) -> dict[str, Any]:
    """What is judged and on what; `encoders` are still to come."""
    return {
        "tinyssl": __version__,
        "run": str(run),
        "weights": sha256(Path(run) / WEIGHTS),
        "classes": split.classes,
        "train": int((~split.test).sum()),
        "test": int(split.test.sum()),
        "fewest": int(np.unique(split.labels[~split.test], return_counts=True)[1].min()),
        "split": recorded,
        "seed": seed,
        "encoders": {},
    }


def _draw_curve(run: str | Path, points: Points, picture: Path) -> None:
    plot_curve(points, f"{Path(run).name}: accuracy over labels", picture)
    log.info(f"wrote {picture}")


def _judge(features: NDArray[Any], split: LabeledSplit, draws: int, seed: int) -> dict[str, Any]:
    return evaluate_features(
        features[~split.test],
        split.labels[~split.test],
        features[split.test],
        split.labels[split.test],
        classes=len(split.classes),
        shots=SHOTS,
        draws=draws,
        seed=seed,
    )


def _viewed(
    embed: Embed, pictures: NDArray[Any], split: LabeledSplit, augment: Augment | None, seed: int
) -> dict[str, float]:
    """The score of two views of some test pictures, where it is known how to make them."""
    if augment is None:
        return {}
    shown = _some(pictures, split.test, VIEWED)
    return {"retrieval": retrieval(*map(embed, two_views(shown, augment, seed)))}


def _some(pictures: NDArray[Any], wanted: NDArray[np.bool_], most: int) -> NDArray[Any]:
    """Evenly spaced ones of those wanted: all of them would be read from the cache and copied."""
    rows = np.flatnonzero(wanted)
    return pictures[rows[spaced_rows(len(rows), most)]]


def table(result: dict[str, Any], title: str = "Balanced accuracy, %") -> Table:
    """The scores of `evaluate` as a table of balanced accuracies in percent."""
    shown = Table(
        title=title,
        title_justify="left",
        caption_justify="left",
        box=SIMPLE_HEAD,
        show_edge=False,
        padding=0,  # the box puts a space between columns; more would not fit 80 of them
    )
    shown.add_column("", overflow="fold")
    viewed = all("retrieval" in found for found in result["encoders"].values())
    label_free = ("RankMe", "views") if viewed else ("RankMe",)
    for column in ("k-NN", "linear", "1-shot", "5-shot", "10-shot", "20-shot", *label_free):
        shown.add_column(column, justify="right", no_wrap=True)
    counts = np.sum(next(iter(result["encoders"].values()))["knn"]["confusion"], axis=1)
    for name, found in result["encoders"].items():
        shots = [found["few_shot"][str(s)] for s in SHOTS]
        shown.add_row(
            name,
            f"{100 * found['knn']['balanced_accuracy']:.1f}",
            f"{100 * found['linear']['balanced_accuracy']:.1f}",
            *(_few_shot_cell(s, counts[counts > 0]) for s in shots),
            f"{found['rankme']:.0f}",
            *([f"{100 * found['retrieval']:.0f}"] if viewed else []),
        )
    shown.caption = (
        f"{len(result['classes'])} classes, {result['train']:,} training and {result['test']:,} "
        f"test pictures ({counts.min():,} to {counts.max():,} a class).\n"
        f"Shots: mean of {shots[0]['draws']} draws, seed {result['seed']}; "
        "± 95 %, of draws and pictures."
    )
    if result["fewest"] < max(SHOTS):
        shown.caption += (
            f"\nA class has {result['fewest']:,} training pictures: more shots take all."
        )
    if viewed:
        shown.caption += "\nviews: % of views whose nearest other view is of the same picture."
    if "classifier" in result:
        accuracy = 100 * result["classifier"]["balanced_accuracy"]
        shown.caption += f"\nThe run's own classifier: {accuracy:.1f} on the test pictures."
    return shown


def _few_shot_cell(found: dict[str, Any], tested: NDArray[Any]) -> str:
    """Such as `53.0±5.6` or `53.0±12`; `tested` are test pictures of each class that has some."""
    half = 100 * half_of_draws(found["mean"], found["half_width"], tested)
    return f"{100 * found['mean']:.1f}±{half:.{0 if half >= 9.95 else 1}f}"


Build = Callable[[], tuple[Encoder, dict[str, Any]]]
Embed = Callable[[NDArray[Any]], NDArray[np.float32]]


def _encoders(
    run: str | Path,
    description: dict[str, Any],
    baselines: str | Path | Sequence[str | Path],
    seed: int,
) -> dict[str, Build]:
    """How to get each encoder of the table, in the order of its rows, the run's last."""
    own_seed = int(description.get("seed", seed))
    encoders: dict[str, Build] = {
        "random weights": lambda: (random_like(description, own_seed), description)
    }
    init = str(description.get("init", "random"))
    if init not in ("random", "pretrained") and not Path(init).exists():
        log.warning(f"the run's start {init} is no longer there; the table has no row for it")
    elif init != "random":
        encoders["start, frozen"] = partial(_start, description, init)
    own = "pretrained" if init == "random" else "adapted"
    given = [baselines] if isinstance(baselines, str | Path) else baselines
    for path in map(Path, given):
        taken = path.name in {*FLOORS, own, *encoders}
        # Weights from elsewhere keep all features: components cost ImageNet's in 10-shot.
        theirs = description | {"components": 0, "descriptors": False}
        build = partial(_start, theirs, str(path))
        encoders[str(path) if taken else path.name] = build
    encoders[own] = lambda: load_encoder(run)
    return encoders


def _from_init(description: dict[str, Any], init: str) -> Encoder:
    pretrained = init == "pretrained"
    encoder = create_encoder(
        description["name"],
        channels=description["channels"],
        stem=description["stem"],
        pretrained=pretrained,
    )
    if not pretrained:
        load_weights(encoder, init)
    return encoder


def _start(description: dict[str, Any], init: str) -> tuple[Encoder, dict[str, Any]]:
    """An earlier run's encoder with the features that it had, or weights for this architecture."""
    if init != "pretrained" and (Path(init) / WEIGHTS).exists():
        return load_encoder(init)
    return _from_init(description, init), description


def _embedders(
    encoders: dict[str, Build], split: LabeledSplit, description: dict[str, Any], device: str
) -> Iterator[tuple[str, Embed, NDArray[Any]]]:
    """Name, how to get features, and the split's pictures as wanted, of pixels and each encoder."""
    chosen = pick_device(device)
    keep_freed_memory()
    pictures = split_pictures(split, description)
    warn_of(split, pictures.hashes)
    yield FLOORS[0], pixel_features, pictures.array
    shown = _some(pictures.array, ~split.test, LOOKED_AT)
    described = DescriptorFeatures(shown, description["mean"], description["std"], chosen)
    yield FLOORS[1], described, pictures.array
    for name, build in encoders.items():
        try:
            encoder, own = build()
        except JobError as error:  # the start came from a hub that is out of reach now
            log.warning(f"the table has no row for {name!r}: {error}")
            continue
        array = split_pictures(split, own).array
        if not encoder.standardized:
            # A network made for this table has one level and nothing else: it gets as many.
            encoder = widen_like(encoder, own, _some(array, ~split.test, LOOKED_AT))
        yield name, partial(embed_pictures, encoder, device=chosen), array


def _own_classifier(
    run: str | Path, split: LabeledSplit, description: dict[str, Any], features: NDArray[np.float32]
) -> dict[str, Any]:
    """Scores of a fine-tuned run's `classifier` on the test rows; empty where there is none."""
    classifier = load_classifier(run)
    if classifier is None:
        return {}
    digests = np.array(split_pictures(split, description).hashes)[split.test]
    seen = len(set(digests) & used_digests(run))
    if seen:
        log.warning(f"{seen} test pictures were used in fine-tuning; its figures are too good")
    if classifier.classes != split.classes:
        log.warning("the run's own classifier has other classes and is not judged")
        return {}
    shares = classifier.probabilities(torch.from_numpy(features[split.test])).numpy()
    found = scores(split.labels[split.test], shares.argmax(axis=1), len(split.classes))
    return {"classifier": found | {"seen_in_finetuning": seen}}
