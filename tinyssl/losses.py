"""The loss terms, as pure functions of the cosines between a batch and the memory bank.

b = batch, k = scored rows of the bank (all of them, or the batch's own and a sample).
"""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, log_softmax


def instance_discrimination(
    scores: Tensor,
    target: Tensor,
    temperature: float,
    partner: Tensor | None = None,
    weight: Tensor | None = None,
    log_correction: Tensor | None = None,
) -> Tensor:
    """Cross-entropy with every picture as its own class: `mean_i -log softmax(s_i / tau)[y_i]`.

    Wu et al., arXiv:1805.01978, eq. 2. With CutMix (arXiv:1905.04899) the target is the mixture
    `weight_i * y_i + (1 - weight_i) * y_partner`.

    Args:
        scores: (b, k) cosines.
        target: (b,) integer column of each picture's own row.
        temperature: tau, above 0.
        partner: (b,) positions in the batch of the pictures that were mixed in.
        weight: (b,) share of the own picture in [0, 1]; goes with `partner`.
        log_correction: (k,) added to the logits; see `bank.Candidates`.

    Returns:
        Scalar, in nats.
    """
    logits = _logits(scores, temperature, log_correction)
    if partner is None or weight is None:
        return cross_entropy(logits, target)
    own = cross_entropy(logits, target, reduction="none")
    other = cross_entropy(logits, target[partner], reduction="none")
    return (weight * own + (1 - weight) * other).mean()


def near_discrimination(instance: Tensor, nearer: Tensor, temperature: float) -> Tensor:
    """Cross-entropy with near pictures as targets: `mean_i mean_m -log softmax(s_i / tau)[m]`.

    Close rows of a memory bank as targets are those of local aggregation (Zhuang et al.,
    arXiv:1903.12355); how they are found differs here, see `near.py`. The softmax is the same as
    that of instance discrimination, so only the target's cosine differs, and the denominator over
    a large bank is not computed twice.

    Args:
        instance: scalar, `instance_discrimination` of the same embeddings.
        nearer: (b,) mean cosine with the rows of near pictures, minus that with the own row.
        temperature: tau of `instance`.

    Returns:
        Scalar, in nats.
    """
    return instance - nearer.mean() / temperature


def self_distillation(
    scores: Tensor,
    temperature: float = 1.0,
    power: float = 0.5,
    log_correction: Tensor | None = None,
) -> Tensor:
    """Square-root-KL self-distillation: `mean_i KL(p_i || u_i)`, `u = p^power / sum(p^power)`.

    Cao & Wu, arXiv:2404.19289: the flattened distribution u is a target without gradient, which
    also pulls similar pictures closer.

    Args:
        scores: (b, k) cosines.
        temperature: of the softmax that gives p; the authors' code uses 1.
        power: below 1 flattens; 0.5 is the square root.
        log_correction: (k,) added to the logits; see `bank.Candidates`.

    Returns:
        Scalar, in nats.
    """
    log_p = log_softmax(_logits(scores, temperature, log_correction), dim=1)
    with torch.no_grad():
        # A sampled row stands for as many rows as its correction says, in u as in p.
        log_u = log_softmax(_logits(power * scores, temperature, log_correction), dim=1)
    return (log_p.exp() * (log_p - log_u)).sum(dim=1).mean()


def _logits(scores: Tensor, temperature: float, log_correction: Tensor | None) -> Tensor:
    logits = scores / temperature
    return logits if log_correction is None else logits + log_correction
