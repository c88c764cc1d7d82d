"""How the parts join: which terms there are, where gradients and the bank go."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from tinyssl.bank import MemoryBank
from tinyssl.encoder import Encoder
from tinyssl.heads import projection_head
from tinyssl.method import Method, Mix


def method(**changes: Any) -> Method:
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Conv2d(1, 6, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    backbone.num_features = 6  # type: ignore[assignment]
    encoder = Encoder(
        backbone, name="tiny", stem="standard", mean=torch.zeros(1), std=torch.ones(1)
    )
    settings: dict[str, Any] = {
        "temperature": 0.2,
        "distill_weight": 3.0,
        "distill_temperature": 1.0,
        "bank_rule": "ema",
        "bank_momentum": 0.5,
        "bank_lr": 0.1,
    }
    made = Method(encoder, projection_head(6, 8, 5), MemoryBank(10, 5), **settings | changes)
    made.bank.fill_random(torch.Generator().manual_seed(0))
    return made


def pictures(b: int = 4) -> tuple[Tensor, Tensor]:
    views = torch.rand(b, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    return views, torch.arange(b) * 2


def test_embeddings_are_unit_rows() -> None:
    z = method().project(pictures()[0])
    assert z.shape == (4, 5)
    torch.testing.assert_close(z.norm(dim=1), torch.ones(4))


@pytest.mark.parametrize(
    ("weight", "names"), [(0.0, {"instance"}), (2.0, {"instance", "distillation"})]
)
def test_terms(weight: float, names: set[str]) -> None:
    made = method(distill_weight=weight)
    views, index = pictures()
    assert made.losses(made.project(views), index).keys() == names


def test_distillation_weight_scales_its_term() -> None:
    views, index = pictures()
    one, five = method(distill_weight=1.0), method(distill_weight=5.0)
    first = one.losses(one.project(views), index)["distillation"]
    torch.testing.assert_close(five.losses(five.project(views), index)["distillation"], 5 * first)


def near_of_ten() -> Tensor:
    return (torch.arange(10)[:, None] + torch.tensor([1, 3])) % 10


@pytest.mark.parametrize("weight", [0.25, 1.0])
def test_near_pictures_get_their_share_of_the_target(weight: float) -> None:
    near = near_of_ten()
    made = method(near=near, near_weight=weight, distill_weight=0.0)
    views, index = pictures()
    z = made.project(views)
    share = torch.zeros(4, 10)
    share[torch.arange(4), index] += 1 - weight
    share.scatter_add_(1, near[index], torch.full((4, 2), weight / 2))
    terms = made.losses(z, index)
    assert terms.keys() == {"instance", "near"}
    expected = cross_entropy(made.bank.scores(z) / 0.2, share)
    torch.testing.assert_close(sum(terms.values()), expected)


def test_near_pictures_need_not_be_scored() -> None:
    """With every other row as a candidate a step's losses are those over the whole bank."""
    made = method(near=near_of_ten(), near_weight=0.5)
    views, index = pictures()
    z = made.project(views)
    every = made.bank.candidates(index, 6, torch.Generator().manual_seed(0))
    for name, term in made.losses(z, index).items():
        torch.testing.assert_close(made.losses(z, index, every)[name], term)


def test_mixed_pictures_have_the_near_ones_of_both() -> None:
    made = method(near=near_of_ten(), near_weight=1.0, distill_weight=0.0)
    views, index = pictures()
    z = made.project(views)
    mix = Mix(torch.tensor([1, 0, 3, 2]), torch.tensor([1.0, 0.6, 1.0, 0.0]))
    target = torch.tensor([index[0], index[1], index[2], index[2]])  # the last is all partner
    own = made.losses(z, target)["near"] * 4
    other = made.losses(z, index[[0, 0, 2, 2]])["near"] * 4
    found = made.losses(z, index, mix=mix)["near"] * 4
    torch.testing.assert_close(found, 0.6 * own + 0.4 * other)


@pytest.mark.parametrize("sampled", [None, 3])
def test_gradient_reaches_encoder_and_head_but_not_the_bank(sampled: int | None) -> None:
    made = method()
    views, index = pictures()
    candidates = None
    if sampled is not None:
        candidates = made.bank.candidates(index, sampled, torch.Generator().manual_seed(0))
    sum(made.losses(made.project(views), index, candidates).values()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in made.encoder.parameters())
    assert all(p.grad is not None for p in made.head.parameters())
    assert made.bank.rows.grad is None


@pytest.mark.parametrize("rule", ["ema", "gradient"])
def test_mixed_pictures_do_not_move_their_rows(rule: str) -> None:
    made = method(bank_rule=rule, bank_lr=1e-3)
    views, index = pictures()
    mix = Mix(torch.tensor([1, 0, 3, 2]), torch.tensor([1.0, 0.6, 1.0, 0.2]))
    before = made.bank.rows.clone()
    made.update_bank(index, made.project(views).detach(), weight=mix.weight)
    change = (made.bank.rows - before).norm(dim=1)
    if rule == "ema":
        assert change[index].gt(1e-4).tolist() == [True, False, True, False]
    else:
        clean = method(bank_rule=rule, bank_lr=1e-3)
        keep = [0, 2]
        clean.bank.update_gradient(
            index[keep], made.project(views).detach()[keep], 1e-3, 0.2, torch.ones(2)
        )
        torch.testing.assert_close(made.bank.rows, clean.bank.rows)


def test_bf16_autocast_stays_close() -> None:
    made = method()
    views, _ = pictures(8)
    with torch.autocast("cpu", torch.bfloat16):
        low = made.project(views)
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, made.project(views), atol=0.1, rtol=0)
