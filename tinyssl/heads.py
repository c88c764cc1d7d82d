"""Projection heads: from the encoder's features to the space of the memory bank."""

from torch import nn


def projection_head(inputs: int, hidden: int, outputs: int, layers: int = 3) -> nn.Sequential:
    """An MLP with batch norm and ReLU between its layers, linear at the end.

    Args:
        inputs: width of the encoder's features.
        hidden: width between layers.
        outputs: width d of the embedding.
        layers: number of linear layers, at least 1; the paper has 3.

    Returns:
        Module that takes (b, inputs) to (b, outputs).
    """
    modules: list[nn.Module] = []
    for _ in range(layers - 1):
        modules += [nn.Linear(inputs, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU(True)]
        inputs = hidden
    return nn.Sequential(*modules, nn.Linear(inputs, outputs))
