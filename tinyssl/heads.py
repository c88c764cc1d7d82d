"""Projection heads: map features of the encoder to embeddings for the memory bank."""

from torch import nn


def projection_head(
    inputs: int, hidden: int, outputs: int, layers: int = 2, last_norm: bool = True
) -> nn.Sequential:
    """An MLP with batch norm and ReLU between its layers.

    Args:
        inputs: width of the encoder's features.
        hidden: width between layers.
        outputs: width d of the embedding.
        layers: number of linear layers, at least 1; the paper has 3.
        last_norm: batch norm without scale and shift after the last layer too (SimCLR's code). The
            embeddings of a batch are then spread around the origin, so that rows of the bank from
            earlier in training do not differ from those of now by a common shift.

    Returns:
        Module that takes (b, inputs) to (b, outputs).
    """
    modules: list[nn.Module] = []
    for _ in range(layers - 1):
        modules += [nn.Linear(inputs, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU(True)]
        inputs = hidden
    modules.append(nn.Linear(inputs, outputs, bias=not last_norm))
    if last_norm:
        modules.append(nn.BatchNorm1d(outputs, affine=False))
    return nn.Sequential(*modules)
