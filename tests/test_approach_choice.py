"""From held-out logits to scores, a temperature and a choice."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score

from tinyssl.approach_choice import Judged, choose, judge_logits, leads
from tinyssl.calibration import log_loss


def test_scores_are_means_over_the_repeats() -> None:
    generator = np.random.default_rng(0)
    labels = generator.choice(3, 30, p=[0.6, 0.2, 0.2])
    logits = generator.normal(size=(2, 30, 3)).astype(np.float32)
    logits[:, np.arange(30), labels] += 1
    judged = judge_logits(logits, labels)
    each = [balanced_accuracy_score(labels, repeat.argmax(axis=1)) for repeat in logits]
    assert judged.scores["balanced_accuracy"] == pytest.approx(np.mean(each))
    assert judged.scores["accuracy"] == pytest.approx(
        np.mean([np.mean(repeat.argmax(axis=1) == labels) for repeat in logits])
    )
    by_hand = np.mean([log_loss(repeat, labels, judged.temperature) for repeat in logits])
    assert judged.scores["log_loss"] == pytest.approx(by_hand)
    assert judged.scores["log_loss"] <= judged.scores["log_loss_uncalibrated"]


def judged(**rights: list[int]) -> dict[str, Judged]:
    """Approaches by which of 20 pictures, all of one weight, they get right."""
    found = {}
    for name, right in rights.items():
        shares = np.zeros(20)
        shares[right] = 1 / 20
        share = len(right) / 20
        found[name] = Judged({"balanced_accuracy": share}, share, 1.0, shares)
    return found


@pytest.mark.parametrize(
    ("rights", "chosen"),
    [
        # Ahead by six, and wrong nowhere else.
        ({"linear": range(8), "semi": range(6), "network": range(14)}, "network"),
        # Ahead by two of twelve pictures on which they differ: chance.
        ({"linear": [*range(5), *range(12, 17)], "network": range(12)}, "linear"),
        ({"linear": range(12), "semi": range(9), "network": range(6)}, "linear"),
        ({"linear": range(9), "semi": range(12), "network": range(6)}, "semi"),
        ({"linear": range(12), "semi": range(12), "network": range(6)}, "linear"),
        ({"linear": range(12), "semi": range(12), "network": range(12)}, "linear"),
    ],
)
def test_the_network_only_where_it_leads_by_more_than_chance(
    rights: dict[str, Sequence[int]], chosen: str
) -> None:
    found = judged(**{name: list(right) for name, right in rights.items()})
    name, reason = choose(found)
    assert name == chosen
    for key, value in found.items():
        assert f"{key} {100 * value.scores['balanced_accuracy']:.1f}" in reason
    assert ("network leads" in reason) == (chosen == "network")


@pytest.mark.parametrize("right", range(19))
def test_the_first_wins_within_one_picture_however_shares_are_rounded(right: int) -> None:
    first, second, network = list(range(right)), list(range(right + 1)), [19]
    assert choose(judged(linear=first, semi=second, network=network))[0] == "linear"


def test_standard_error_against_resampling() -> None:
    """The chance that the reason tells is the spread of the lead over other draws of pictures."""
    generator = np.random.default_rng(0)
    labels = np.repeat([0, 1], 200)
    logits = generator.normal(size=(2, 1, 400, 2)).astype(np.float32)
    logits[:, 0, np.arange(400), labels] += 0.7
    logits[1, 0, np.arange(400), labels] += 2
    one, other = (judge_logits(each, labels) for each in logits)
    _, reason = choose({"linear": other, "network": one})
    told = float(reason.rpartition("(")[2].rstrip(")"))
    leads = []
    for _ in range(2000):
        rows = generator.integers(0, 400, 400)
        leads.append(100 * 400 * (other.shares - one.shares)[rows].mean())
    assert told == pytest.approx(np.std(leads), abs=0.15)


def test_shares_add_up_to_the_balanced_accuracy() -> None:
    generator = np.random.default_rng(1)
    labels = generator.choice(3, 40, p=[0.6, 0.3, 0.1])
    found = judge_logits(generator.normal(size=(3, 40, 3)).astype(np.float32), labels)
    assert found.shares.sum() == pytest.approx(found.scores["balanced_accuracy"])


def test_an_only_one_is_told_as_such() -> None:
    assert "the only one" in choose(judged(linear=[0]))[1]


def test_a_network_that_was_judged_on_fewer_draws_is_not_taken() -> None:
    found = judged(linear=list(range(8)), semi=list(range(6)), network=list(range(14)))
    found["linear"] = replace(found["linear"], repeats=2)
    name, reason = choose(found)
    assert name == "linear"
    assert reason.endswith("network does not lead on the first draw of the folds")


def test_only_who_is_above_all_others_leads() -> None:
    found = judged(linear=[0], semi=[0, 1], network=[0, 1])
    assert leads(found["semi"], [found["linear"]])
    assert not leads(found["network"], [found["linear"], found["semi"]])
    assert leads(found["linear"], [])


def test_the_lead_is_that_on_the_first_draw() -> None:
    labels = np.repeat([0, 1], 4)
    right = np.stack([np.eye(2)[labels], np.eye(2)[1 - labels]]).astype(np.float32)  # then wrong
    one = judge_logits(right, labels)
    assert (one.first, one.scores["balanced_accuracy"]) == (1.0, 0.5)
    half = judge_logits(np.eye(2, dtype=np.float32)[np.array([0, 0, 1, 1] * 2)][None], labels)
    assert leads(one, [half])
    assert not leads(half, [one])
