"""Words that follow from figures."""

from dataclasses import replace
from typing import Any

import pytest

from tinyssl.reporting.verdict import (
    Judged,
    Score,
    best_of,
    finetuned_verdict,
    judged,
    label_free_verdict,
    label_verdict,
    recall_score,
    signed,
)

HEALTHY = {"rankme": 80.0, "bank_rank": 12.0, "bank_cosine": 0.1}


def figures(accuracy: float, *, tested: int = 1000) -> dict[str, Any]:
    right = round(accuracy * tested)
    matrix = [[right, tested - right], [tested - right, right]]
    return {
        "knn": {"confusion": matrix},
        "linear": {"confusion": matrix},
        "few_shot": {"10": {"mean": accuracy, "half_width": 0.02, "draws": 10}},
        "rankme": 40.0,
    }


def result(*, tested: int = 1000, **accuracies: float) -> dict[str, Any]:
    named = {name.replace("_", " "): figures(a, tested=tested) for name, a in accuracies.items()}
    return {"encoders": named, "classes": ["a", "b"], "train": 90, "test": 2 * tested}


def test_better_than_every_floor_is_yes() -> None:
    found = label_verdict(result(raw_pixels=0.5, random_weights=0.55, pretrained=0.8))
    assert found.level == "yes"
    assert found.headline == "Yes: clearly better than raw pixels and random weights."
    assert "k-NN +30.0" in found.sentences[0]
    assert "2,000 test pictures of 2 classes" in found.sentences[-1]


def test_better_than_one_floor_only_is_not_yes() -> None:
    found = label_verdict(result(raw_pixels=0.8, random_weights=0.5, pretrained=0.8))
    assert found.level == "partly"
    assert "clearly better than random weights" in found.headline
    assert "not clearly different from raw pixels" in found.headline
    assert "too close to call" in found.sentences[0]


def test_names_with_commas_are_told_apart() -> None:
    rivals = {"raw pixels": 0.5, "start, last level": 0.8, "start, frozen": 0.8}
    found = label_verdict(result(**rivals, adapted=0.8))
    assert "not clearly different from “start, last level” and “start, frozen”" in found.headline


@pytest.mark.parametrize(
    ("pixels", "random"), [(0.7, 0.7), (0.9, 0.5), (0.9, 0.9)], ids=["even", "worse", "far worse"]
)
def test_not_better_than_any_or_worse_than_one_floor_is_no(pixels: float, random: float) -> None:
    found = label_verdict(result(raw_pixels=pixels, random_weights=random, pretrained=0.7))
    assert found.level == "no"
    assert any("What to do: train longer" in sentence for sentence in found.sentences)


def test_what_started_from_weights_is_not_told_to_start_from_weights() -> None:
    told = [
        label_verdict(result(raw_pixels=0.7, **{name: 0.7})).sentences[-2]
        for name in ("pretrained", "adapted")
    ]
    assert ["--recipe adapt" in sentence for sentence in told] == [True, False]
    assert all("train longer" in sentence for sentence in told)


def test_a_better_baseline_takes_the_yes_away() -> None:
    scores = {"raw_pixels": 0.5, "random_weights": 0.5, "other": 0.9, "pretrained": 0.8}
    found = label_verdict(result(**scores))
    assert found.level == "partly"
    assert "worse than other" in found.headline


def test_what_is_worse_in_some_measure_only_is_told_so() -> None:
    found = result(raw_pixels=0.5, random_weights=0.5, other=0.5, pretrained=0.6)
    found["encoders"]["other"]["linear"] = figures(0.9)["linear"]
    found["encoders"]["random weights"]["knn"] = figures(0.9)["knn"]
    found["encoders"]["random weights"]["linear"] = figures(0.9)["linear"]
    assert label_verdict(found).headline == (
        "No: clearly better than raw pixels; but than random weights only in 10-shot; but than "
        "other only in k-NN and 10-shot; worse than random weights in k-NN and linear; worse than "
        "other in linear."
    )


def test_encoders_that_test_labels_trained_are_not_judged() -> None:
    scores = {"raw_pixels": 0.5, "random_weights": 0.5, "other": 0.9, "pretrained": 0.8}
    found = result(**scores)
    found["encoders"]["other"]["taught_by_test"] = 7
    verdict = label_verdict(found)
    assert verdict.level == "yes"
    assert "other is not compared: the labels of 7 test pictures trained it." in verdict.sentences
    found["encoders"]["pretrained"]["taught_by_test"] = 1500
    verdict = label_verdict(found)
    assert (verdict.level, "trained this encoder" in verdict.headline) == ("unknown", True)
    raw, random, taught, _ = judged(found)
    best = best_of(
        [taught, raw, replace(random, name="best", scores=judged(result(x=0.7))[0].scores)]
    )
    assert best.headline == "Best on average is best: clearly better than raw pixels."
    assert best_of([taught, raw]).level == "unknown"


def test_pictures_that_were_pretrained_on_are_told() -> None:
    found = result(raw_pixels=0.5, pretrained=0.8)
    assert "pretrained on" not in label_verdict(found).sentences[-1]
    text = label_verdict(found | {"pretrained_on": 1200}).sentences[-1]
    assert "1,200 of the test pictures were pretrained on, without their labels." in text


def test_few_shot_scores_are_as_unsure_as_their_test_pictures_are_few() -> None:
    halves = [
        judged(result(pretrained=0.6, tested=tested))[0].scores["10-shot"].half
        for tested in (18, 1000, 100_000)
    ]
    assert halves[0] > 12  # two classes of 18: 1.96 * sqrt(0.6 * 0.4 / 18 / 2) = 16, less a prior
    assert halves[0] > halves[1] > halves[2]
    assert halves[2] == pytest.approx(2.0, abs=0.1)  # of the draws


def test_classes_without_a_test_picture_are_told() -> None:
    found = result(raw_pixels=0.5, random_weights=0.55, pretrained=0.8)
    text = label_verdict(found | {"classes": ["a", "b", "c"]}).sentences[-1]
    assert "test pictures of 2 classes (no picture of the other 1)" in text


def test_few_test_pictures_leave_it_open() -> None:
    scores = {"raw_pixels": 0.6, "random_weights": 0.6, "pretrained": 0.7}
    wide, narrow = (judged(result(tested=n, **scores))[-1].scores["k-NN"].half for n in (20, 2000))
    assert wide > 5 * narrow
    found = label_verdict(result(tested=20, **scores))
    assert (found.level, "Not known: not clearly different" in found.headline) == ("unknown", True)
    assert "label more test pictures; with these a lead of 5 points" in found.sentences[2]
    even = result(tested=20, raw_pixels=0.7, random_weights=0.7, pretrained=0.7)
    assert label_verdict(even).level == "unknown"


def test_interval_of_recalls_covers_what_draws_do() -> None:
    """Against the spread of balanced accuracy over simulated test sets."""
    import numpy as np

    generator = np.random.default_rng(0)
    counts, truth = np.array([40, 160]), np.array([0.9, 0.6])
    hits = generator.binomial(counts, truth, size=(4000, 2))
    spread = 196 * (hits / counts).mean(axis=1).std()
    found = recall_score([[36, 4], [64, 96]])
    assert found.mean == pytest.approx(75)
    assert found.half == pytest.approx(spread, rel=0.1)


def test_a_class_without_errors_is_not_known_exactly() -> None:
    assert recall_score([[5, 0], [0, 5]]).half > 5
    assert recall_score([[5, 0], [0, 0]]).mean == 100


def test_differences_have_a_sign_only_outside_their_interval() -> None:
    assert (Score(70, 3) - Score(60, 4)).sign == 1
    assert (Score(60, 4) - Score(70, 3)).sign == -1
    assert (Score(70, 8) - Score(60, 8)).sign == 0
    assert signed(Score(-1.24, 2)) == "\N{MINUS SIGN}1.2 ± 2.0"


def test_without_labels_nothing_is_promised() -> None:
    found = label_free_verdict(HEALTHY, [7.5, 6.0], 2000, None)
    assert found.level == "unknown"
    assert "signs are healthy" in found.headline
    assert "80 dimensions" in found.sentences[0]
    assert "would cost 7.60" in found.sentences[1]


def test_retrieval_is_told_where_it_was_measured() -> None:
    found = label_free_verdict(HEALTHY | {"retrieval": 0.42}, [7.5, 6.0], 2000, None)
    assert "For 42 %" in found.sentences[1]


def test_a_loss_above_guessing_is_not_called_healthy() -> None:
    assert "train longer" in label_free_verdict(HEALTHY, [4.5, 4.4], 40, None).headline


def test_collapse_is_a_no() -> None:
    found = label_free_verdict(HEALTHY, [], None, "the features are collapsing")
    assert (found.level, found.sentences) == ("no", ["The features are collapsing."])


def test_a_fine_tuned_run_tells_its_held_out_folds() -> None:
    told: dict[str, Any] = {"recipe": "few-label", "labels": {"a": 5, "b": 5}, "held_out": {}}
    assert "nothing could be held out" in finetuned_verdict(told).headline
    told["held_out"] = {"few-label": {"balanced_accuracy": 0.8}}
    found = finetuned_verdict(told)
    assert "80.0 % on held-out folds" in found.headline
    assert "guessing would get 50.0 %" in found.sentences[0]
    assert "Too good" not in found.sentences[1]
    rare = finetuned_verdict(told | {"labels": {"a": 5, "b": 5, "c": 1}}).sentences[0]
    assert "11 labels of 3 classes (those with a single label are not measured)" in rare
    assert "guessing would get 50.0 %" in rare
    again = finetuned_verdict(told | {"taught": 12})
    assert "Too good: 12 of the labels had trained the encoder before." in again.sentences[1]


def test_runs_side_by_side() -> None:
    good, same, bad = (
        Judged(name, {"linear": Score(value, 2)}, None)
        for name, value in (("good", 80), ("same", 79), ("bad", 50))
    )
    found = best_of([bad, good, same])
    assert found.headline == (
        "Best on average is good: clearly better than bad; not clearly different from same."
    )
    assert best_of([bad, good]).level == "yes"


def test_the_best_on_average_may_be_clearly_worse_in_most_measures() -> None:
    lucky, steady = (
        Judged(n, {m: Score(v, 1) for m, v in zip(("k-NN", "linear"), values, strict=True)}, None)
        for n, values in (("lucky", (90, 60)), ("steady", (70, 65)))
    )
    found = best_of([lucky, steady])
    assert found.level == "partly"
    assert found.headline == (
        "Best on average is lucky: clearly better than steady only in k-NN; worse than steady in "
        "linear."
    )
