"""Scores that need no labels, to find out which of them predict accuracy.

n = pictures, d = feature width.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import normalize

from tinyssl.augment import Augment
from tinyssl.encoder import Encoder, embed_pictures
from tinyssl.loader import generator_for
from tinyssl.rows import spaced_rows
from tinyssl.scoring import rankme, retrieval
from tinyssl.watch import VIEWED


def label_free(
    encoder: Encoder, augment: Augment, pictures: NDArray[np.uint8], seed: int,
    device: torch.device,
) -> dict[str, float]:  # fmt: skip
    """Scores of features of 500 pictures and of two views of each.

    Features of views are centred by their mean and normalized, since all share a large mean.

    Args:
        encoder: left in evaluation mode.
        augment: makes the views.
        pictures: (n, s, s, c).
        seed: of the views.
        device: to compute on.

    Returns:
        `rankme`: of the pictures' uncentred features, Garrido et al., arXiv:2210.02885.
        `alignment`: mean squared distance of two views of a picture; lower is closer.
        `uniformity`: log of the mean of exp(-2 squared distance) over views of different pictures;
        lower is more even. Both Wang & Isola, arXiv:2005.10242, eqs. 8 and 9.
        `retrieval`: see `tinyssl.scoring.retrieval`.
    """
    chosen = pictures[spaced_rows(len(pictures), VIEWED)]
    plain = embed_pictures(encoder, chosen, device=device)
    draws = [generator_for(seed, 0, stream=stream) for stream in (11, 12)]
    with torch.no_grad():
        raw = torch.from_numpy(chosen).to(device)
        views = [encoder.eval()(augment(raw, draw)).float().cpu() for draw in draws]
    first, second = (normalize(x - x.mean(0), dim=1) for x in views)
    apart = torch.cdist(first, second).square()
    own = torch.eye(len(apart), dtype=torch.bool)
    return {
        "rankme": rankme(plain),
        "alignment": float(apart[own].mean()),
        "uniformity": float(apart[~own].mul(-2).exp().mean().log()),
        "retrieval": retrieval(views[0].numpy(), views[1].numpy()),
    }
