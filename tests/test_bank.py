"""The bank's updates against loops and autograd, its sample of negatives against counting."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from tinyssl.bank import Candidates, HalfCosines, MemoryBank
from tinyssl.losses import instance_discrimination, self_distillation

N, D, TAU = 12, 4, 0.3


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def bank() -> MemoryBank:
    made = MemoryBank(N, D).double()
    made.fill_random(generator())
    return made


def batch(size: int = 5) -> tuple[Tensor, Tensor]:
    index = torch.randperm(N, generator=generator(1))[:size]
    z = torch.randn(size, D, generator=generator(2), dtype=torch.double)
    return index, normalize(z, dim=1)


def test_fill_random_gives_unit_rows() -> None:
    torch.testing.assert_close(bank().rows.norm(dim=1), torch.ones(N, dtype=torch.double))


def test_scores_are_cosines_with_all_or_some_rows() -> None:
    made, (_, z) = bank(), batch()
    naive = torch.tensor([[float(a @ b) for b in made.rows] for a in z], dtype=torch.double)
    torch.testing.assert_close(made.scores(z), naive)
    torch.testing.assert_close(made.scores(z, torch.tensor([7, 2])), naive[:, [7, 2]])
    rows = torch.randint(N, (5, 3), generator=generator(3))
    torch.testing.assert_close(made.scores_each(z, rows), naive.gather(1, rows))


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_ema_against_a_loop(momentum: float) -> None:
    made, (index, z) = bank(), batch()
    keep = torch.tensor([1, 1, 0, 1, 0], dtype=torch.double)
    expected = made.rows.clone()
    for i, row in enumerate(index.tolist()):
        if keep[i]:
            moved = momentum * expected[row] + (1 - momentum) * z[i]
            expected[row] = moved / moved.norm()
    made.update_ema(index, z, momentum, keep)
    torch.testing.assert_close(made.rows, expected)


def test_ema_with_momentum_one_moves_nothing() -> None:
    made, (index, z) = bank(), batch()
    before = made.rows.clone()
    made.update_ema(index, z, 1.0, torch.ones(5, dtype=torch.double))
    torch.testing.assert_close(made.rows, before)


@pytest.mark.parametrize("sampled", [None, 3])
def test_gradient_rule_is_a_step_of_autograd(sampled: int | None) -> None:
    made, (index, z) = bank(), batch()
    keep = torch.tensor([1, 0, 1, 1, 1], dtype=torch.double)
    candidates = None if sampled is None else made.candidates(index, sampled, generator(3))
    rows = made.rows.clone().requires_grad_()
    if candidates is None:
        logits, target, correction = z @ rows.T, index, None
    else:
        logits, target = z @ rows[candidates.rows].T, torch.arange(5)
        correction = candidates.log_correction
    total = torch.zeros((), dtype=torch.double)
    for i in range(5):
        one = instance_discrimination(
            logits[i : i + 1], target[i : i + 1], TAU, log_correction=correction
        )
        total = total + keep[i] * one
    (gradient,) = torch.autograd.grad(total, rows)
    expected = normalize(rows.detach() - 0.1 * gradient, dim=1)
    made.update_gradient(index, z, 0.1, TAU, keep, candidates)
    torch.testing.assert_close(made.rows, expected)


def test_gradient_rule_pulls_the_own_row_and_pushes_the_others() -> None:
    made, (index, z) = bank(), batch(1)
    before = made.scores(z)[0]
    made.update_gradient(index, z, 0.05, TAU, torch.ones(1, dtype=torch.double))
    change = made.scores(z)[0] - before
    assert change[index[0]] > 0
    assert (change[torch.arange(N) != index[0]] < 0).all()


@pytest.mark.parametrize("sampled", [1, 4, 6, 7])
def test_candidates_are_distinct_and_begin_with_the_batch(sampled: int) -> None:
    made, (index, _) = bank(), batch()
    for seed in range(50):
        rows, correction = made.candidates(index, sampled, generator(seed))
        assert rows[:5].tolist() == index.tolist()
        assert len(set(rows.tolist())) == 5 + sampled
        assert 0 <= int(rows.min()) <= int(rows.max()) < N
        assert correction[:5].eq(0).all()
        assert correction[5:].tolist() == pytest.approx([math.log(7 / sampled)] * sampled)


def test_every_other_row_is_drawn_equally_often() -> None:
    made, (index, _) = bank(), batch()
    draws = 4000
    rows = [made.candidates(index, 3, generator(s)).rows[5:] for s in range(draws)]
    counts = torch.bincount(torch.cat(rows), minlength=N)
    assert counts[index].eq(0).all()
    others = counts[[i for i in range(N) if i not in index.tolist()]].double() / draws
    assert others.tolist() == pytest.approx([3 / 7] * 7, abs=0.04)


def test_correction_makes_the_denominator_unbiased() -> None:
    made, (index, z) = bank(), batch()
    full = (made.scores(z) / TAU).exp().sum(1)
    draws = []
    for seed in range(4000):
        rows, correction = made.candidates(index, 2, generator(seed))
        draws.append((made.scores(z, rows) / TAU + correction).exp().sum(1))
    torch.testing.assert_close(torch.stack(draws).mean(0), full, rtol=0.03, atol=0)


def test_sampling_every_row_gives_the_full_loss() -> None:
    made, (index, z) = bank(), batch()
    rows, correction = made.candidates(index, N - 5, generator())
    assert sorted(rows.tolist()) == list(range(N))
    sampled = instance_discrimination(
        made.scores(z, rows), torch.arange(5), TAU, log_correction=correction
    )
    torch.testing.assert_close(sampled, instance_discrimination(made.scores(z), index, TAU))


def test_rows_travel_in_the_state_dict() -> None:
    made, other = bank(), MemoryBank(N, D).double()
    other.load_state_dict(made.state_dict())
    assert torch.equal(made.rows, other.rows)
    assert isinstance(made.candidates(torch.tensor([0]), 2, generator()), Candidates)


def moved(dtype: torch.dtype, rule: str, where: str = "cpu") -> tuple[Tensor, Tensor, Tensor]:
    """Scores of all rows and of some, and the rows after a step, as float32 on the CPU."""
    made = MemoryBank(200, 64, dtype)
    made.fill_random(generator())
    index = torch.arange(0, 40, 4)
    z = normalize(torch.randn(10, 64, generator=generator(2)), dim=1).to(where)
    candidates = made.candidates(index.to(where), 50, generator(3))
    scores, some = made.scores(z), made.scores(z, candidates.rows)
    keep = torch.ones(10, device=where)
    if rule == "ema":
        made.update_ema(index.to(where), z, 0.5, keep)
    else:
        made.update_gradient(index.to(where), z, 0.1, 0.2, keep, candidates)
        made.update_gradient(index.to(where), z, 0.1, 0.2, keep)
    assert (scores.dtype, made.rows.dtype) == (torch.float32, dtype)
    assert (scores.device.type, made.rows.device.type) == (where, "cpu")
    return scores.cpu(), some.cpu(), made.rows.float()


@pytest.mark.parametrize("rule", ["ema", "gradient"])
def test_half_precision_has_the_same_scores(rule: str) -> None:
    full, half = moved(torch.float32, rule), moved(torch.float16, rule)
    for one, other in zip(full, half, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-3)
        assert not torch.equal(one, other)
    torch.testing.assert_close(half[2].norm(dim=1), torch.ones(200), rtol=0, atol=1e-3)


def test_gradients_below_half_precision_are_kept() -> None:
    rows = normalize(torch.randn(60_000, 32, generator=generator(3)), dim=1).half()
    given = normalize(torch.randn(4, 32, generator=generator(4)), dim=1)

    def gradient(cosines: Callable[[Tensor], Tensor]) -> Tensor:
        z = given.clone().requires_grad_()
        (self_distillation(cosines(z)) / 64).backward()  # as the mean over a batch of 256
        assert z.grad is not None
        return z.grad

    exact = gradient(lambda z: z @ rows.float().T)
    plain = gradient(lambda z: (z.half() @ rows.T).float())
    kept = gradient(lambda z: HalfCosines.apply(z, rows))
    assert (kept - exact).norm() < 0.01 * exact.norm()
    assert (plain - exact).norm() > 0.1 * exact.norm()


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_gradients_of_any_size_stay_finite(size: float) -> None:
    rows = normalize(torch.ones(70_000, 8), dim=1).half()  # alike, as where training collapses
    z = torch.zeros(2, 8, requires_grad=True)
    HalfCosines.apply(z, rows).backward(torch.full((2, 70_000), size / 70_000))
    torch.testing.assert_close(z.grad, torch.full((2, 8), size * 8**-0.5), rtol=0.01, atol=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU beside the host")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("rule", ["ema", "gradient"])
def test_a_bank_on_the_host_has_the_same_scores(dtype: torch.dtype, rule: str) -> None:
    for one, other in zip(moved(dtype, rule), moved(dtype, rule, "cuda"), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=2e-3)


def test_a_share_finds_its_own_rows_in_front() -> None:
    made, (index, _) = bank(), batch()
    drawn = made.candidates(index, 4, generator())
    turned = drawn.starting_at(2, len(index))
    assert torch.equal(turned.rows[:3], index[2:])
    assert torch.equal(turned.rows.sort().values, drawn.rows.sort().values)
    assert torch.equal(turned.rows[5:], drawn.rows[5:])
    assert drawn.starting_at(0, len(index)) is drawn
