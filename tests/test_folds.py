"""Folds: whole, stratified, the same for the same seed."""

import numpy as np
import pytest

from tinyssl.folds import held_out, repeats_for, stratified_folds


@pytest.mark.parametrize("folds", [2, 3, 5])
def test_every_row_is_held_out_once_and_classes_are_shared_out(folds: int) -> None:
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [5, 9, 23]))
    for parts in stratified_folds(labels, folds, 3, seed=1):
        assert sorted(np.concatenate([outside for _, outside in parts])) == list(range(37))
        for inside, outside in parts:
            assert not set(inside) & set(outside)
            assert len(inside) + len(outside) == 37
            assert abs(len(outside) - 37 / folds) < 1
            for c, count in enumerate((5, 9, 23)):
                assert abs(np.sum(labels[outside] == c) - count / folds) < 1


def test_the_only_row_of_a_class_is_never_held_out() -> None:
    labels = np.array([2, 0, 1, 0, 3, 1, 0, 1])
    for parts in stratified_folds(labels, 3, 2, seed=0):
        assert held_out(parts).tolist() == [1, 2, 3, 5, 6, 7]
        for inside, outside in parts:
            assert {0, 4} < set(inside)
            assert sorted([*inside, *outside]) == list(range(8))
            assert sorted(labels[outside]) == [0, 1]


def test_seed_and_repeat_decide() -> None:
    labels = np.arange(40) % 4
    one, two = stratified_folds(labels, 3, 2, seed=0)
    assert not np.array_equal(one[0][1], two[0][1])
    again = stratified_folds(labels, 3, 2, seed=0)
    assert all(np.array_equal(a[1], b[1]) for a, b in zip(two, again[1], strict=True))
    other = stratified_folds(labels, 3, 1, seed=1)[0]
    assert not np.array_equal(one[0][1], other[0][1])


def test_few_labels_are_folded_more_often() -> None:
    assert [repeats_for("auto", n) for n in (10, 50, 500)] == [2, 2, 1]
    assert repeats_for(7, 500) == 7
