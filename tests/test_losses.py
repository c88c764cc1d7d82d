"""Both terms against naive loops and explicit detaching, in float64."""

import math

import pytest
import torch
from torch import Tensor

from tinyssl.losses import instance_discrimination, near_discrimination, self_distillation


def cosines(b: int = 5, k: int = 9) -> Tensor:
    drawn = torch.rand(b, k, generator=torch.Generator().manual_seed(b + k), dtype=torch.double)
    return (2 * drawn - 1).requires_grad_()


def probabilities(row: list[float], temperature: float) -> list[float]:
    exponentials = [math.exp(s / temperature) for s in row]
    return [e / sum(exponentials) for e in exponentials]


@pytest.mark.parametrize("temperature", [0.07, 0.2, 1.0])
def test_instance_discrimination_is_minus_log_of_the_own_probability(temperature: float) -> None:
    scores, target = cosines(), torch.tensor([3, 0, 8, 1, 4])
    rows = scores.tolist()
    expected = [
        -math.log(probabilities(row, temperature)[y])
        for row, y in zip(rows, target.tolist(), strict=True)
    ]
    loss = instance_discrimination(scores, target, temperature)
    assert loss.item() == pytest.approx(sum(expected) / 5)


def test_mixture_weighs_both_pictures() -> None:
    scores, target = cosines(), torch.tensor([3, 0, 8, 1, 4])
    partner, weight = torch.tensor([1, 2, 0, 4, 3]), torch.tensor([1, 0.5, 0.25, 0, 0.9])
    weight = weight.double()
    total = 0.0
    for i, row in enumerate(scores.tolist()):
        p = probabilities(row, 0.2)
        own, other = target[i].item(), target[partner[i]].item()
        share = weight[i].item()
        total += -share * math.log(p[int(own)]) - (1 - share) * math.log(p[int(other)])
    loss = instance_discrimination(scores, target, 0.2, partner, weight)
    assert loss.item() == pytest.approx(total / 5)


def test_near_pictures_share_the_target() -> None:
    scores, near = cosines(), torch.tensor([[3, 1], [0, 2], [8, 7], [1, 5], [4, 3]])
    expected = [instance_discrimination(scores, target, 0.2).item() for target in near.T]
    own = torch.tensor([1, 0, 2, 8, 3])
    nearer = scores.gather(1, near).mean(1) - scores.gather(1, own[:, None])[:, 0]
    found = near_discrimination(instance_discrimination(scores, own, 0.2), nearer, 0.2)
    assert found.item() == pytest.approx(sum(expected) / 2)


def test_log_correction_counts_a_row_as_many() -> None:
    """A column corrected by log(3) stands for three equal columns."""
    scores, target = cosines(4, 3), torch.tensor([0, 1, 0, 1])
    correction = torch.tensor([0.0, 0.0, math.log(3)], dtype=torch.double)
    repeated = torch.cat([scores, scores[:, 2:], scores[:, 2:]], dim=1)
    for loss in (
        lambda s, c: instance_discrimination(s, target, 0.2, log_correction=c),
        lambda s, c: self_distillation(s, 0.2, log_correction=c),
    ):
        assert loss(scores, correction).item() == pytest.approx(loss(repeated, None).item())


@pytest.mark.parametrize("temperature", [0.2, 1.0])
@pytest.mark.parametrize("power", [0.5, 0.25])
def test_self_distillation_is_kl_to_the_flattened(temperature: float, power: float) -> None:
    scores = cosines()
    total = 0.0
    for row in scores.tolist():
        p = probabilities(row, temperature)
        flat = [value**power for value in p]
        u = [value / sum(flat) for value in flat]
        total += sum(a * math.log(a / b) for a, b in zip(p, u, strict=True))
    assert self_distillation(scores, temperature, power).item() == pytest.approx(total / 5)


def test_no_gradient_flows_through_the_flattened_target() -> None:
    scores = cosines()
    (found,) = torch.autograd.grad(self_distillation(scores, 0.5), scores)

    def kl(stop: bool) -> Tensor:
        p = (scores / 0.5).softmax(1)
        u = p.sqrt() / p.sqrt().sum(1, keepdim=True)
        (gradient,) = torch.autograd.grad(
            (p * (p.log() - (u.detach() if stop else u).log())).sum(1).mean(), scores
        )
        return gradient

    torch.testing.assert_close(found, kl(stop=True))
    assert not torch.allclose(found, kl(stop=False))


def test_distillation_is_zero_only_for_a_flat_row() -> None:
    flat = torch.full((3, 7), 0.4, dtype=torch.double)
    assert self_distillation(flat, 0.1).item() == pytest.approx(0)
    assert self_distillation(cosines(), 0.1).item() > 0.1
