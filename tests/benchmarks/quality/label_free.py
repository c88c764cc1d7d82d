"""Scores that need no labels, to see which of them tells how good features are.

n = pictures, d = feature width.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import normalize

from tinyssl.augment import Augment
from tinyssl.encoder import Encoder, embed_pictures
from tinyssl.loader import generator_for
from tinyssl.scoring import rankme

PICTURES = 500


def label_free(
    encoder: Encoder, augment: Augment, pictures: NDArray[np.uint8], seed: int
) -> dict[str, float]:
    """Scores of features of pictures (n, s, s, c) and of two views of 500 of them.

    Features are centred by the pictures' mean and normalized, since all share a large mean.

    Returns:
        `rankme`: of the uncentred features, Garrido et al., arXiv:2210.02885.
        `alignment`: mean squared distance of two views of a picture; lower is closer.
        `uniformity`: log of the mean of exp(-2 squared distance) over pairs of pictures; lower is
        more even. Both Wang & Isola, arXiv:2005.10242, eqs. 8 and 9.
        `retrieval`: how often a view's nearest among the pictures is its own, of 500 pictures.
    """
    rows = np.unique(np.linspace(0, len(pictures) - 1, PICTURES).astype(int))
    chosen = np.ascontiguousarray(pictures[rows])
    features = torch.from_numpy(embed_pictures(encoder, chosen))
    draws = [generator_for(seed, 0, stream=stream) for stream in (11, 12)]
    with torch.no_grad():
        views = [encoder.eval()(augment(torch.from_numpy(chosen), draw)) for draw in draws]
    mean = features.mean(0)
    unit, first, second = (normalize(x - mean, dim=1) for x in (features, *views))
    distances = torch.cdist(unit, unit).square()
    off_diagonal = distances[~torch.eye(len(unit), dtype=torch.bool)]
    nearest = (first @ unit.T).argmax(1)
    return {
        "rankme": rankme(features.numpy()),
        "alignment": float((first - second).square().sum(1).mean()),
        "uniformity": float(off_diagonal.mul(-2).exp().mean().log()),
        "retrieval": float((nearest == torch.arange(len(unit))).float().mean()),
    }
