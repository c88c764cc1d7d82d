"""Accuracy over the number of labels, by fitting method and by selection of pictures.

n = training pictures, m = test pictures, d = feature width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyssl.approaches import Approach, Linear
from tinyssl.choosing import METHODS as SELECTIONS
from tinyssl.choosing import choose
from tinyssl.console import Advance, log, progress
from tinyssl.curve_lines import METHODS
from tinyssl.device import training_device
from tinyssl.encoder import Encoder, embed_pictures
from tinyssl.errors import UsageError
from tinyssl.files import as_list
from tinyssl.finetune_build import build_network
from tinyssl.finetune_config import FinetuneRecipe, load_finetune_recipe
from tinyssl.folds import repeats_for, stratified_folds
from tinyssl.intervals import interval
from tinyssl.labeled import Labeled, smallest_class
from tinyssl.labeled_split import LabeledSplit, split_pictures
from tinyssl.probing import FALLBACK_STRENGTH, choose_strength
from tinyssl.scoring import scores
from tinyssl.weights import load_encoder, random_like

SHOTS = (1, 2, 5, 10, 20, 50)
_FOLDS = 5

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class CurveWishes:
    """Settings of a label curve.

    Attributes:
        shots: labels a class on average: `shots * classes` pictures are chosen, of any class.
        methods: of `tinyssl.curve_lines.METHODS`: a linear classifier on the frozen encoder,
            recipe few-label, or few-label from random weights. One named twice counts once.
        select: of `tinyssl.choosing.METHODS`: how pictures to label are chosen; as `methods`.
        draws: for every point, at least 2; each with another seed.
        settings: `section.key=value` on top of recipe few-label.
    """

    shots: Sequence[int] = SHOTS
    methods: Sequence[str] = tuple(METHODS)
    select: Sequence[str] = ("random", "kmeans")
    draws: int = 5
    settings: Sequence[str] = ()

    def check(self, seed: int) -> None:
        """Raises UsageError for unknown or impossible settings; `seed` is of the first draw."""
        _refuse_unknown("methods", self.methods, tuple(METHODS))
        _refuse_unknown("select", self.select, tuple(SELECTIONS))
        if not self.shots or min(self.shots) < 1:
            raise UsageError(f"shots: got {list(self.shots)}; give numbers from 1")
        if self.draws < 2:
            raise UsageError(f"curve draws: got {self.draws}; an interval needs at least 2")
        if seed + self.draws > 2**31:
            raise UsageError(
                f"seed: got {seed}; give 0 to {2**31 - self.draws}, as each of {self.draws} curve "
                "draws has the next one"
            )
        _recipe("finetune", seed, self.settings)


def label_curve(
    run: str | Path,
    split: LabeledSplit,
    wishes: CurveWishes,
    *,
    seed: int = 0,
    device: str = "auto",
) -> list[dict[str, Any]]:
    """Balanced accuracy on the test pictures for every selection, number of labels and method.

    As in practice, no selection knows the classes; a class without a label is never predicted,
    and its test pictures count as wrong.

    Args:
        run: a run folder.
        split: pictures are labeled from its training part, and scored on its test part.
        wishes: settings; shots that need more labels than there are pictures are left out.
        seed: of the choices, fits and random weights; draw i uses seed + i.
        device: auto, cpu, cuda or cuda:N.

    Returns:
        JSON-ready points: select, shots, labels, method, accuracies (of the draws, in [0, 1]),
        mean, half_width (95 %), draws, classes (that have a label, mean of the draws).

    Raises:
        UsageError: unknown methods, no run, or too few pictures for any of the shots.
    """
    wishes.check(seed)
    shots = _possible(wishes.shots, split)
    bench = _Bench(run, split, wishes.settings, seed, device)
    cells = list(product(dict.fromkeys(wishes.select), shots))
    methods = list(dict.fromkeys(wishes.methods))
    steps = sum(bench.cost(method) for method in methods) * len(cells) * wishes.draws
    points = []
    with progress("label curve", steps, "steps") as advance:
        for select, shot in cells:
            drawn = list(bench.draws(select, shot * len(split.classes), wishes.draws))
            for method in methods:
                found = [bench.accuracy(method, rows, s, advance) for s, rows in drawn]
                points.append(_point(select, shot, method, drawn, found, split))
    return points


class _Bench:
    """The pictures of a split and their features; fits on any rows of its training part."""

    def __init__(
        self,
        run: str | Path,
        split: LabeledSplit,
        settings: Sequence[str],
        seed: int,
        device: str,
    ) -> None:
        self.device, self.seed, self.split = training_device(device), seed, split
        self.encoder, self.description = load_encoder(run)
        pictures = split_pictures(split, self.description)
        self.array, self.paths, self.digests = pictures.array, pictures.paths, pictures.hashes
        self.features = embed_pictures(self.encoder, self.array, device=self.device)
        self.train, self.test = np.flatnonzero(~split.test), np.flatnonzero(split.test)
        self.settings = settings
        self.network = _recipe("finetune", seed, settings).network

    def cost(self, method: str) -> int:
        """Progress steps of a fit."""
        if method == "linear":
            return 1
        return max(1, round(self.network.views / self.network.batch_size))

    def draws(self, select: str, labels: int, draws: int) -> Iterator[tuple[int, Rows]]:
        """Yields seeds, and the rows of the labeled pictures."""
        for seed in range(self.seed, self.seed + draws):
            chosen = choose(self.features[self.train], labels, method=select, seed=seed)
            yield seed, np.sort(self.train[chosen])

    def accuracy(self, method: str, rows: Rows, seed: int, advance: Advance) -> float:
        """Balanced accuracy on the test pictures of one fit."""
        classes, labels = np.unique(self.split.labels[rows], return_inverse=True)
        if len(classes) == 1:
            predicted = np.repeat(classes, len(self.test))
            advance(self.cost(method))
        else:
            approach = self._approach(method, rows, labels, seed)
            fitted = approach.fit(np.arange(len(rows)), advance, final=True)
            features = self._test_features(fitted.encoder)
            predicted = classes[fitted.plane.logits(features).argmax(axis=1)]
        truth = self.split.labels[self.test]
        return float(scores(truth, predicted, len(self.split.classes))["balanced_accuracy"])

    def _approach(self, method: str, rows: Rows, labels: Rows, seed: int) -> Approach:
        encoder, features = self.encoder, self.features[rows]
        if method == "scratch":
            encoder = random_like(self.description, seed, "zero")
            features = embed_pictures(encoder, self.array[rows], device=self.device)
        linear = Linear(encoder, features, labels, _strength(features, labels, seed))
        if method == "linear":
            return linear
        labeled = Labeled(
            np.asarray(self.array[rows]),
            [self.paths[row] for row in rows],
            [self.digests[row] for row in rows],
            labels,
            [str(number) for number in range(int(labels.max()) + 1)],
        )
        size = int(self.description["image_size"])
        return build_network(
            _recipe(method, seed, self.settings), linear, labeled, size, self.device
        )

    def _test_features(self, encoder: Encoder) -> NDArray[np.float32]:
        if encoder is self.encoder:
            return self.features[self.test]
        return embed_pictures(encoder, self.array[self.test], device=self.device)


def _recipe(method: str, seed: int, settings: Sequence[str]) -> FinetuneRecipe:
    settings = [f"run.seed={seed}", *as_list(settings)]
    if method == "scratch":  # random weights have no batch-norm statistics worth keeping
        settings.append("network.batch_norm=train")
    return load_finetune_recipe("few-label", settings)


def _strength(features: NDArray[np.float32], labels: Rows, seed: int) -> float:
    smallest = smallest_class(labels)
    if smallest < 2:
        return FALLBACK_STRENGTH
    repeats = repeats_for("auto", len(labels))
    folds = stratified_folds(labels, min(_FOLDS, smallest), repeats, seed)
    return choose_strength(features, labels, folds)


def _point(
    select: str,
    shots: int,
    method: str,
    drawn: Sequence[tuple[int, Rows]],
    accuracies: Sequence[float],
    split: LabeledSplit,
) -> dict[str, Any]:
    known = [len(np.unique(split.labels[rows])) for _, rows in drawn]
    return {
        "select": select,
        "shots": shots,
        "labels": shots * len(split.classes),
        "method": method,
        "accuracies": list(accuracies),
        "classes": float(np.mean(known)),
        **vars(interval(accuracies)),
    }


def refuse_too_many(shots: Sequence[int], split: LabeledSplit) -> None:
    """Raises UsageError where there are too few training pictures for any of the shots."""
    there, classes = int((~split.test).sum()), len(split.classes)
    if min(shots) * classes > there:
        raise UsageError(
            f"shots: {min(shots)} a class of {classes} classes are {min(shots) * classes} labels, "
            f"but there are {there} training pictures"
        )


def _possible(shots: Sequence[int], split: LabeledSplit) -> list[int]:
    refuse_too_many(shots, split)
    there, classes = int((~split.test).sum()), len(split.classes)
    kept = sorted({shot for shot in shots if shot * classes <= there})
    left_out = sorted(set(shots) - set(kept))
    if left_out:
        told = ", ".join(map(str, left_out))
        log.warning(f"shots {told} left out: there are only {there} training pictures")
    return kept


def _refuse_unknown(name: str, given: Sequence[str], allowed: Sequence[str]) -> None:
    unknown = [value for value in given if value not in allowed]
    if unknown or not given:
        told = repr(unknown[0]) if unknown else "none"
        raise UsageError(f"{name}: got {told}, allowed are {', '.join(allowed)}")
