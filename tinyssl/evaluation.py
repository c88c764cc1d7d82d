"""`tinyssl eval`: one table of scores, the run's encoder beside its baselines."""

from __future__ import annotations

import os
from collections.abc import Sequence
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
from tinyssl.errors import JobError, UsageError
from tinyssl.files import (
    LARGEST_RESULT,
    json_text,
    read_json,
    refuse_other_table,
    sha256,
    writable,
    write_text,
)
from tinyssl.intervals import half_of_draws
from tinyssl.judged_encoders import (
    Contender,
    Embed,
    contenders,
    embedders,
    has_weights_of,
    some,
)
from tinyssl.label_curve import CurveWishes, label_curve
from tinyssl.labeled import RESULT as FINETUNED
from tinyssl.labeled import used_digests
from tinyssl.labeled_split import (
    SPLIT_COLUMNS,
    LabeledSplit,
    read_split,
    split_pictures,
    warn_of,
)
from tinyssl.own_pictures import own_pictures
from tinyssl.scoring import evaluate_features, retrieval, scores
from tinyssl.views import two_views
from tinyssl.watch import VIEWED
from tinyssl.weights import WEIGHTS, read_description

SHOTS = (1, 5, 10, 20)
RESULT_FILE, CURVE_FILE = "eval.json", "label_curve.png"


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
        labels: instead of the two: columns path,label and optionally split, or class folders;
            without a split a stratified one is drawn and written beside the result, as
            `eval_split.csv` beside `eval.json`.
        baselines: run folders or weight files for the run's architecture.
        draws: random choices of labels for each number of shots, at least 10.
        seed: of the draws, of the folds and of the random weights' baseline if the run has none.
        device: auto, cpu, cuda or cuda:N.
        out: where to write the result; `eval.json` in the run folder when None. Replaced if it
            is an earlier result.
        curve: draw accuracy over the number of labels too, see `label_curve`; the picture is
            written beside `eval.json` as `label_curve.png`, else with the result's name before it.

    Returns:
        What is written: `encoders` by name, see `evaluate_features`, and what was measured on.
        Where the run has a recipe with built-in augmentation, each encoder also has `retrieval`,
        of two such views of test pictures; see `tinyssl.scoring.retrieval`. `pretrained_on`
        counts the test pictures among the run's own, `taught_by_test` of an encoder those whose
        labels trained it, which makes its figures too good. Of a fine-tuned run
        with these classes there are the scores of its own `classifier`, with `curve` its points.

    Raises:
        UsageError: no encoder at `run`, labels that do not fit, fewer than 10 draws, or a curve
            that cannot be drawn, or no folder for `out`.
        JobError: the run's weights changed meanwhile.
    """
    _refuse(draws, curve)
    description = read_description(run)
    if not (Path(run) / WEIGHTS).is_file():
        raise UsageError(f"no weights at {Path(run) / WEIGHTS}; give the folder of a whole run")
    inputs = [] if labels is None else [labels]
    target = _target(out or Path(run) / RESULT_FILE, inputs)
    split, recorded = read_split(train, test, labels, seed, _split_file(target).name)
    if split.drawn:
        refuse_other_table(writable(_split_file(target), ".csv", inputs), SPLIT_COLUMNS)
    log.info(f"test pictures: {recorded}")
    pictures = split_pictures(split, description)
    warn_of(split, pictures.hashes)
    given = [baselines] if isinstance(baselines, str | Path) else list(baselines)
    result = _header(run, description, split, recorded, seed)
    judged = contenders(run, description, given, seed, unchanged=result["unchanged"])
    augment = augment_of_run(run)
    with progress("judging", 2 + len(judged), "encoders") as advance:
        for name, embed, array in embedders(judged, split, pictures, description, device):
            features = embed(array)
            found = _judge(features, split, draws, seed)
            result["encoders"][name] = found | _viewed(embed, array, split, augment, seed)
            advance(1)
    _refuse_changed(run, result["weights"])
    tested = {digest for digest, test in zip(pictures.hashes, split.test, strict=True) if test}
    _tell_taught(result["encoders"], judged, tested)
    result |= _own_classifier(run, split, tested, features)
    if curve is not None:
        result["curve"] = label_curve(run, split, curve, seed=seed, device=device)
    _write(result, split, target)
    return result


def _target(out: str | Path, inputs: Sequence[str | Path]) -> Path:
    target = writable(Path(out), ".json", inputs)
    if target.exists() and target.stat().st_size and not _is_result(target):
        raise UsageError(f"{target} is there and no result of tinyssl eval; name another --out")
    return target


def _split_file(target: Path) -> Path:
    """Named after the result, so that each has its own."""
    return target.with_name(f"{target.stem}_split.csv")


def _is_result(path: Path) -> bool:
    try:
        found = read_json(path, LARGEST_RESULT)
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and {"tinyssl", "encoders"} <= found.keys()


def _write(result: dict[str, Any], split: LabeledSplit, target: Path) -> None:
    """All that is left is written at the end: what fails before changes nothing."""
    if split.drawn:
        split.write(_split_file(target))
    write_text(target, json_text(result))
    log.info(f"wrote {target}")
    if "curve" in result:
        own = target.name == RESULT_FILE
        name = CURVE_FILE if own else f"{target.stem}_{CURVE_FILE}"
        _draw_curve(result["run"], result["curve"], target.with_name(name))


def _refuse(draws: int, curve: CurveWishes | None) -> None:
    if draws < 10:
        raise UsageError(f"draws: got {draws}; at least 10 are needed for an interval")
    if curve is not None:
        curve.check()


def _refuse_changed(run: str | Path, weights: str) -> None:
    """Raises JobError where a run that goes on meanwhile has left other weights."""
    if sha256(Path(run) / WEIGHTS) != weights:
        raise JobError(f"{run} changed while it was judged; judge it again when its run is done")


def _header(
    run: str | Path, description: dict[str, Any], split: LabeledSplit, recorded: str, seed: int
) -> dict[str, Any]:
    """What is judged and on what; `encoders` are still to come."""
    return {
        "tinyssl": __version__,
        "run": str(run),
        "weights": sha256(Path(run) / WEIGHTS),
        "unchanged": has_weights_of(run, str(description.get("init", "random"))),
        "classes": split.classes,
        "train": int((~split.test).sum()),
        "test": int(split.test.sum()),
        "fewest": int(np.unique(split.labels[~split.test], return_counts=True)[1].min()),
        "split": recorded,
        "seed": seed,
        **_pretrained_on(run, description, split),
        "encoders": {},
    }


def _pretrained_on(
    run: str | Path, description: dict[str, Any], split: LabeledSplit
) -> dict[str, int]:
    """How many test pictures the run was pretrained on, as far as its sources still tell."""
    finetuned = (Path(run) / FINETUNED).is_file()
    try:
        pretrained = description.get("init", "random") if finetuned else run
        seen = {os.path.realpath(path) for path in own_pictures(pretrained)}
    except UsageError:
        return {}
    tested = (path for path, test in zip(split.paths, split.test, strict=True) if test)
    return {"pretrained_on": sum(os.path.realpath(path) in seen for path in tested)}


def _tell_taught(encoders: dict[str, Any], judged: Sequence[Contender], tested: set[str]) -> None:
    """Notes and tells which encoders learned from labels of test pictures."""
    for contender in judged:
        taught = len(tested & contender.taught)
        if taught and contender.name in encoders:
            encoders[contender.name]["taught_by_test"] = taught
            log.warning(
                f"the labels of {taught} test pictures trained the encoder {contender.name!r}: "
                "its figures are too good; judge it on pictures that had no part in it"
            )


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
    shown = some(pictures, split.test, VIEWED)
    return {"retrieval": retrieval(*map(embed, two_views(shown, augment, seed)))}


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
    shown.caption = "\n".join(_notes(result, counts, shots[0]["draws"]))
    return shown


def _notes(result: dict[str, Any], counts: NDArray[Any], draws: int) -> list[str]:
    """What to know of the figures; `counts` are test pictures of each class."""
    encoders = result["encoders"]
    per_class = " to ".join(dict.fromkeys([f"{counts.min():,}", f"{counts.max():,}"]))
    notes = [
        f"{len(result['classes'])} classes, {result['train']:,} training and {result['test']:,} "
        f"test pictures ({per_class} a class).",
        f"Shots: mean of {draws} draws, seed {result['seed']}; ± 95 %, of draws and pictures.",
    ]
    if result["fewest"] < max(SHOTS):
        notes.append(f"A class has {result['fewest']:,} training pictures: more shots take all.")
    if all("retrieval" in found for found in encoders.values()):
        notes.append("views: % of views whose nearest other view is of the same picture.")
    if result.get("unchanged"):
        notes.append("The encoder is its start's, unchanged: only the classifier is the run's own.")
    if seen := result.get("pretrained_on"):
        notes.append(f"{seen:,} test pictures were pretrained on, without their labels.")
    for name, found in encoders.items():
        if taught := found.get("taught_by_test"):
            notes.append(f"Too good: labels of {taught:,} test pictures trained {name!r}.")
    if own := result.get("classifier"):
        seen = own["seen_in_finetuning"]
        notes.append(
            f"The run's own classifier: {100 * own['balanced_accuracy']:.1f} on the test pictures"
            + (f", too good: it was fine-tuned on {seen:,} of them." if seen else ".")
        )
    return notes


def _few_shot_cell(found: dict[str, Any], tested: NDArray[Any]) -> str:
    """Such as `53.0±5.6` or `53.0±12`; `tested` are test pictures of each class that has some."""
    half = 100 * half_of_draws(found["mean"], found["half_width"], tested)
    return f"{100 * found['mean']:.1f}±{half:.{0 if half >= 9.95 else 1}f}"


def _own_classifier(
    run: str | Path, split: LabeledSplit, tested: set[str], features: NDArray[np.float32]
) -> dict[str, Any]:
    """Scores of a fine-tuned run's `classifier` on the test rows; empty where there is none."""
    classifier = load_classifier(run)
    if classifier is None:
        return {}
    seen = len(tested & used_digests(run))
    if seen:
        log.warning(f"{seen} test pictures were used in fine-tuning; its figures are too good")
    if classifier.classes != split.classes:
        log.warning("the run's own classifier has other classes and is not judged")
        return {}
    shares = classifier.probabilities(torch.from_numpy(features[split.test])).numpy()
    found = scores(split.labels[split.test], shares.argmax(axis=1), len(split.classes))
    return {"classifier": found | {"seen_in_finetuning": seen}}
