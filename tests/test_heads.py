"""Projection heads."""

import pytest
import torch
from torch import nn

from tinyssl.heads import projection_head


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("last_norm", [False, True])
def test_layers_and_widths(layers: int, last_norm: bool) -> None:
    head = projection_head(6, 8, 5, layers, last_norm)
    assert head(torch.rand(4, 6)).shape == (4, 5)
    assert sum(isinstance(module, nn.Linear) for module in head) == layers
    norms = layers - 1 + last_norm
    assert sum(isinstance(module, nn.BatchNorm1d) for module in head) == norms


def test_the_last_norm_spreads_embeddings_around_the_origin() -> None:
    torch.manual_seed(0)
    far = 5 + torch.rand(64, 6, generator=torch.Generator().manual_seed(0))
    z = projection_head(6, 8, 5, layers=1, last_norm=True)(far)
    torch.testing.assert_close(z.mean(dim=0), torch.zeros(5), atol=1e-5, rtol=0)
    torch.testing.assert_close(z.var(dim=0, unbiased=False), torch.ones(5), atol=1e-3, rtol=0)
    plain = projection_head(6, 8, 5, layers=1, last_norm=False)(far)
    assert plain.mean(dim=0).abs().max() > 0.5
