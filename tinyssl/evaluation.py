"""`tinyssl eval`: one table of scores, the run's encoder beside its baselines."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.table import Table

from tinyssl import __version__
from tinyssl.augment import Augment
from tinyssl.build import augment_of_run
from tinyssl.classifier import load_classifier
from tinyssl.console import log, progress, score_table
from tinyssl.curve_plot import plot_curve
from tinyssl.errors import JobError, UsageError, refuse_seed
from tinyssl.files import (
    LARGEST_RESULT,
    as_list,
    json_text,
    read_json,
    refuse_other_table,
    sha256,
    with_name,
    writable,
    write_text,
)
from tinyssl.intervals import half_of_draws
from tinyssl.judged_encoders import Contender, Embed, contenders, embedders, has_weights_of, some
from tinyssl.label_curve import CurveWishes, label_curve, refuse_too_many
from tinyssl.labeled import pretrained, pretrained_before, used_digests
from tinyssl.labeled_split import (
    SPLIT_COLUMNS,
    LabeledSplit,
    copies_together,
    read_split,
    split_pictures,
    warn_of,
)
from tinyssl.own_pictures import copies, own_pictures, without
from tinyssl.scoring import evaluate_features, retrieval, scores
from tinyssl.views import two_views
from tinyssl.watch import VIEWED
from tinyssl.weights import read_description, weights_file

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
    """Evaluates a run's encoder beside pixels, descriptors, random weights, its start and others.

    Args:
        run: a run folder.
        train: a folder of class folders to fit the classifiers on; goes with `test`.
        test: a folder of class folders to evaluate on.
        labels: instead of these two: a CSV path,label[,split], or class folders; without a split a
            stratified one is drawn and written beside the result, as
            `eval_split.csv` beside `eval.json`.
        baselines: run folders or weight files for the run's architecture.
        draws: random choices of labels for each number of shots, at least 10.
        seed: of the draws, of the folds and of the random weights' baseline if the run has none.
        device: auto, cpu, cuda or cuda:N.
        out: where to write the result; `eval.json` in the run folder when None. Replaced if it
            is an earlier result.
        curve: also draw accuracy over the number of labels, see `label_curve`; the plot is written
            beside `eval.json` as `label_curve.png`, or prefixed with another result's name.

    Returns:
        The content of the written file: scores of `encoders` by name, see `evaluate_features`, and
        the data they were measured on. If the run's recipe has built-in augmentation, encoders
        also have `retrieval` of two such views of test pictures, see `tinyssl.scoring.retrieval`.
        `pretrained_on` counts test pictures that the run was pretrained on, `test_in_training`
        those that are training pictures too (equal files), and an encoder's
        `taught_by_test` those whose labels it was trained on, which makes its scores too good. A
        fine-tuned run with these classes has scores of its `classifier`, and `curve` has points.

    Raises:
        UsageError: no encoder at `run`, labels that do not fit, fewer than 10 draws, an impossible
            seed or curve, or no folder for `out`.
        JobError: the run's weights changed meanwhile.
    """
    _refuse(draws, seed, curve)
    description = read_description(run)
    weights_file(run)  # missing ones are told before anything is computed
    inputs = [] if labels is None else [labels]
    target = _target(out or Path(run) / RESULT_FILE, inputs)
    split, recorded = read_split(train, test, labels, seed, _split_file(target).name)
    _refuse_beside(target, split, curve, inputs)
    log.info(f"test pictures: {recorded}")
    pictures = split_pictures(split, description)
    split = copies_together(split, pictures.hashes, seed)
    result = _header(run, description, split, recorded, seed)
    result |= {"test_in_training": warn_of(split, pictures.hashes)}
    judged = contenders(run, description, as_list(baselines), seed, unchanged=result["unchanged"])
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


def _refuse_beside(
    target: Path, split: LabeledSplit, curve: CurveWishes | None, inputs: Sequence[str | Path]
) -> None:
    """Raises UsageError where files beside the result cannot be written, or the curve not drawn."""
    if split.drawn:
        refuse_other_table(writable(_split_file(target), ".csv", inputs), SPLIT_COLUMNS)
    if curve is not None:
        refuse_too_many(curve.shots, split)
        writable(_curve_file(target), ".png", inputs)


def _curve_file(target: Path) -> Path:
    """The picture of the label curve beside a result; prefixed if that has a name of its own."""
    own = target.name == RESULT_FILE
    return target.with_name(CURVE_FILE if own else f"{target.stem}_{CURVE_FILE}")


def _split_file(target: Path) -> Path:
    """The split beside a result, with a name of its own for each result."""
    return target.with_name(f"{target.stem}_split.csv")


def _is_result(path: Path) -> bool:
    try:
        found = read_json(path, LARGEST_RESULT)
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and {"tinyssl", "encoders"} <= found.keys()


def _write(result: dict[str, Any], split: LabeledSplit, target: Path) -> None:
    """Writes all files at the end, so that an earlier failure changes nothing."""
    if split.drawn:
        split.write(_split_file(target))
    write_text(target, json_text(result))
    log.info(f"wrote {target}")
    if "curve" in result:
        picture = _curve_file(target)
        name = with_name(result["run"]).name
        plot_curve(result["curve"], f"{name}: accuracy over labels", picture)
        log.info(f"wrote {picture}")


def _refuse(draws: int, seed: int, curve: CurveWishes | None) -> None:
    if draws < 10:
        raise UsageError(f"draws: got {draws}; at least 10 are needed for an interval")
    refuse_seed(seed)
    if curve is not None:
        curve.check(seed)


def _refuse_changed(run: str | Path, weights: str) -> None:
    """Raises JobError where a run that goes on meanwhile has left other weights."""
    if sha256(weights_file(run)) != weights:
        raise JobError(f"{run} changed while it was judged; judge it again when its run is done")


def _header(
    run: str | Path, description: dict[str, Any], split: LabeledSplit, recorded: str, seed: int
) -> dict[str, Any]:
    """The run and the data of a result, with `encoders` still empty."""
    return {
        "tinyssl": __version__,
        "run": str(run),
        "weights": sha256(weights_file(run)),
        "unchanged": has_weights_of(run, description["init"]),
        "classes": split.classes,
        "train": int((~split.test).sum()),
        "test": int(split.test.sum()),
        "fewest": int(np.unique(split.labels[~split.test], return_counts=True)[1].min()),
        "split": recorded,
        "seed": int(seed),  # numpy's integers are no JSON
        **_pretrained_on(run, split),
        "encoders": {},
    }


def _pretrained_on(run: str | Path, split: LabeledSplit) -> dict[str, int]:
    """Number of test pictures, or exact copies, that the run was pretrained on, if still known.

    Those that runs were pretrained on which it started from count too, as far as they are known.
    """
    own = pretrained(run)
    try:
        seen = own_pictures(own)
    except UsageError:
        return {}
    for earlier in pretrained_before(own):
        with suppress(UsageError):
            seen = [*seen, *own_pictures(earlier)]
    tested = [Path(path) for path, test in zip(split.paths, split.test, strict=True) if test]
    unseen = without(tested, seen)
    return {"pretrained_on": len(tested) - len(unseen) + len(copies(unseen, seen))}


def _tell_taught(encoders: dict[str, Any], judged: Sequence[Contender], tested: set[str]) -> None:
    """Records and warns of encoders that were trained on labels of test pictures."""
    for contender in judged:
        taught = len(tested & contender.taught)
        if taught and contender.name in encoders:
            encoders[contender.name]["taught_by_test"] = taught
            log.warning(
                f"the labels of {taught} test pictures trained the encoder {contender.name!r}: "
                "its figures are too good; judge it on pictures that had no part in it"
            )


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
    """Retrieval between two views of some test pictures; empty without an augmentation."""
    if augment is None:
        return {}
    shown = some(pictures, split.test, VIEWED)
    return {"retrieval": retrieval(*map(embed, two_views(shown, augment, seed)))}


def table(result: dict[str, Any], title: str = "Balanced accuracy, %") -> Table:
    """The scores of `evaluate` as a table of balanced accuracies in percent."""
    viewed = all("retrieval" in found for found in result["encoders"].values())
    few_shot = [f"{shots}-shot" for shots in SHOTS]
    columns = ["k-NN", "linear", *few_shot, "RankMe", *(["views"] if viewed else [])]
    shown = score_table(title, columns)
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
    """Notes on the figures; `counts` are the test pictures of each class."""
    encoders = result["encoders"]
    per_class = " to ".join(dict.fromkeys([f"{counts.min():,}", f"{counts.max():,}"]))
    notes = [
        f"{len(result['classes'])} classes, {result['train']:,} training and {result['test']:,} "
        f"test pictures ({per_class} a class).",
        f"Shots: mean of {draws} draws, seed {result['seed']}; ± 95 %, of draws and pictures.",
    ]
    if result["fewest"] < max(SHOTS):
        fewest = result["fewest"]
        many = f"{fewest:,} training pictures" if fewest > 1 else "a single training picture"
        notes.append(f"A class has {many}: more shots take all.")
    if all("retrieval" in found for found in encoders.values()):
        notes.append("views: % of views whose nearest other view is of the same picture.")
    if result.get("unchanged"):
        notes.append("The encoder is its start's, unchanged: only the classifier is the run's own.")
    if both := result.get("test_in_training"):
        notes.append(f"Too good: {both:,} test pictures are training pictures too.")
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
    """Such as `53.0±5.6` or `53.0±12`; `tested` are the nonzero test counts of classes."""
    half = 100 * half_of_draws(found["mean"], found["half_width"], tested)
    return f"{100 * found['mean']:.1f}±{half:.{0 if half >= 9.95 else 1}f}"


def _own_classifier(
    run: str | Path, split: LabeledSplit, tested: set[str], features: NDArray[np.float32]
) -> dict[str, Any]:
    """Scores of a fine-tuned run's `classifier` on the test rows; empty where there is none."""
    classifier = load_classifier(run)
    if classifier is None:
        return {}
    if classifier.classes != split.classes:
        log.warning("the run's own classifier has other classes and is not judged")
        return {}
    seen = len(tested & used_digests(run))
    if seen:
        log.warning(f"{seen} test pictures were used in fine-tuning; its figures are too good")
    shares = classifier.probabilities(torch.from_numpy(features[split.test])).numpy()
    found = scores(split.labels[split.test], shares.argmax(axis=1), len(split.classes))
    return {"classifier": found | {"seen_in_finetuning": seen}}
