"""Training of a whole network: rates by depth, averaged weights, statistics left alone."""

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

from tinyssl.backbones import BACKBONES
from tinyssl.encoder import create_encoder
from tinyssl.errors import JobError
from tinyssl.tuning import (
    Course,
    WeightEMA,
    layer_depths,
    mean_decay,
    parameter_rates,
    picture_order,
    tune,
)


def course(**changes: object) -> Course:
    settings: dict[str, object] = {
        "lr": 0.01, "batch_size": 4, "head_lr": 0.5,
        "layer_decay": 0.5, "weight_decay": 0.01, "smoothing": 0.0, "average": 0.3,
        "frozen_batch_norm": True, "seed": 0,
    }  # fmt: skip
    return Course(**(settings | changes))


class Tiny(nn.Module):
    """Four convolutions with batch norm; says where its layers are as timm's models do."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv_stem = nn.Conv2d(3, 8, 3, 2)
        self.blocks = nn.Sequential(*(self._block() for _ in range(3)))

    @staticmethod
    def _block() -> nn.Module:
        return nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        return {"stem": r"^conv_stem", "blocks": r"^blocks\.(\d+)"}

    def forward(self, views: Tensor) -> Tensor:
        return self.blocks(self.conv_stem(views)).mean(dim=(2, 3))


TRUTH = np.arange(8) % 2


def dark_and_bright() -> Tensor:
    pictures = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    pictures[TRUTH == 1] *= 0.3
    return pictures


def run(encoder: nn.Module, given: Course, steps: int = 6) -> nn.Linear:
    pictures = dark_and_bright()
    head = nn.Linear(8, 2)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)

    def views(chosen: np.ndarray, step: int) -> Tensor:
        return pictures[torch.from_numpy(chosen)]

    tune(encoder, encoder, head, views, TRUTH, np.ones(8), given, steps, lambda _: None)
    return head


@pytest.mark.parametrize("name", BACKBONES)
def test_depths_rise_from_the_last_layer_to_the_stem(name: str) -> None:
    backbone = create_encoder(name, seed=0).backbone
    depths = layer_depths(backbone)
    assert set(depths) == {name for name, _ in backbone.named_parameters()}
    stem = next(key for key in depths if key.startswith(("conv_stem", "conv1")))
    assert depths[stem] == max(depths.values()) >= 4
    in_order = [depth for key, depth in depths.items() if key.startswith(("blocks", "layer"))]
    assert in_order == sorted(in_order, reverse=True)
    assert min(depths.values()) == 0


def test_a_model_without_layers_has_one_rate() -> None:
    assert set(layer_depths(nn.Linear(2, 2)).values()) == {0}


def test_every_parameter_has_one_group_and_its_rate() -> None:
    encoder = create_encoder("mobilenetv3-small", seed=0)
    head = nn.Linear(encoder.width, 3)
    groups = parameter_rates(encoder.backbone, head, course(layer_decay=0.25))
    shares = {id(p): g["share"] for g in groups for p in g["params"]}
    decays = {id(p): g["weight_decay"] for g in groups for p in g["params"]}
    assert len(shares) == sum(len(g["params"]) for g in groups)
    assert set(shares) == {id(p) for p in [*encoder.parameters(), *head.parameters()]}
    depths = layer_depths(encoder.backbone)
    for name, parameter in encoder.backbone.named_parameters():
        assert shares[id(parameter)] == pytest.approx(0.25 ** depths[name])
        assert decays[id(parameter)] == (0.01 if parameter.ndim > 1 else 0)
    assert shares[id(head.weight)] == 0.5


@pytest.mark.parametrize(("pictures", "batch"), [(5, 4), (50, 8), (3, 8)])
def test_pictures_are_seen_as_often(pictures: int, batch: int) -> None:
    order = picture_order(pictures, batch, 10, seed=0)
    counts = np.bincount(order.ravel(), minlength=pictures)
    assert order.shape == (10, batch)
    assert counts.max() - counts.min() <= 1


def test_average_is_the_recursion() -> None:
    module = nn.BatchNorm1d(1)
    average = WeightEMA(module, 0.9)
    expected = 1.0
    for value in (2.0, 5.0, -1.0):
        with torch.no_grad():
            module.weight.fill_(value)
            module.num_batches_tracked.fill_(int(value + 2))
        average.update(module)
        expected = 0.9 * expected + 0.1 * value
    assert float(average.mean["weight"]) == pytest.approx(expected)
    assert int(average.mean["num_batches_tracked"]) == 1


def test_the_mean_of_the_weights_spans_the_same_share_of_any_training() -> None:
    assert mean_decay(0.2, 250) == pytest.approx(0.98)
    assert mean_decay(0.2, 50) == pytest.approx(0.9)
    assert mean_decay(0.2, 3) == mean_decay(0.0, 100) == 0


def test_tuning_learns_and_leaves_statistics_alone() -> None:
    encoder = Tiny()
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    run(encoder, course(lr=0.003))
    after = encoder.state_dict()
    assert not encoder.training
    for key, value in before.items():
        same = torch.equal(value, after[key])
        assert same == ("running" in key or "tracked" in key), key


def test_statistics_move_where_they_are_told_to() -> None:
    encoder = Tiny()
    before = encoder.blocks[0][1].running_mean.clone()
    run(encoder, course(frozen_batch_norm=False))
    assert not torch.equal(before, encoder.blocks[0][1].running_mean)


def test_loss_falls_from_the_first_step_to_the_last() -> None:
    encoder = Tiny()
    head = run(encoder, course(lr=0.05, average=0.0, head_lr=1.0), steps=80)
    with torch.no_grad():
        logits = head(encoder(dark_and_bright()))
        loss = nn.functional.cross_entropy(logits, torch.from_numpy(TRUTH))
    assert float(loss) < 0.3 < np.log(2)


def test_early_layers_move_less() -> None:
    encoder = Tiny()
    before = {key: value.detach().clone() for key, value in encoder.named_parameters()}
    run(encoder, course(layer_decay=0.1, weight_decay=0.0, average=0.0))
    moved = {
        key: float((value.detach() - before[key]).abs().mean())
        for key, value in encoder.named_parameters()
    }
    # AdamW moves every weight by about its rate, whatever the gradient's size.
    assert moved["blocks.2.0.weight"] > 2 * moved["blocks.1.0.weight"] > 0
    assert moved["blocks.1.0.weight"] > 3 * moved["blocks.0.0.weight"] > 0


def test_same_seed_same_weights() -> None:
    ends = []
    for extra in range(2):
        encoder = Tiny()
        torch.manual_seed(extra)
        run(encoder, course())
        ends.append(encoder.state_dict())
    assert all(torch.equal(value, ends[1][key]) for key, value in ends[0].items())
    other = Tiny()
    run(other, course(seed=1))
    assert not torch.equal(other.conv_stem.weight, ends[0]["conv_stem.weight"])


def test_a_loss_that_is_not_finite_stops() -> None:
    encoder = Tiny()
    with torch.no_grad():
        encoder.conv_stem.weight.fill_(float("nan"))
    with pytest.raises(JobError, match=r"nan at step 0; lower network\.lr"):
        run(encoder, course())


def test_timm_still_names_stages() -> None:
    """What `layer_depths` leans on."""
    assert hasattr(timm.create_model("mobilenetv3_small_100"), "group_matcher")
