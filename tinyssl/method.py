"""The method of arXiv:2404.19289: one view, one forward pass, a memory bank and loss terms.

b = batch, n = pictures, c = channels, d = embedding width.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from tinyssl.bank import Candidates, MemoryBank
from tinyssl.encoder import Encoder
from tinyssl.losses import instance_discrimination, near_discrimination, self_distillation


class Mix(NamedTuple):
    """A CutMix: (b,) positions of the partners, (b,) shares of the own picture."""

    partner: Tensor
    weight: Tensor


class Method(nn.Module):
    """Joins encoder, projection head, memory bank and losses.

    Pictures `near` each, (n, m) int64 numbers, get `near_weight` of the target.
    """

    near: Tensor | None

    def __init__(
        self,
        encoder: Encoder,
        head: nn.Module,
        bank: MemoryBank,
        *,
        temperature: float,
        distill_weight: float,
        distill_temperature: float,
        bank_rule: str,
        bank_momentum: float,
        bank_lr: float,
        near_weight: float = 0.0,
        near: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head
        self.bank = bank
        self.temperature = temperature
        self.distill_weight = distill_weight
        self.distill_temperature = distill_temperature
        self.bank_rule = bank_rule
        self.bank_momentum = bank_momentum
        self.bank_lr = bank_lr
        self.near_weight = near_weight
        self.register_buffer("near", near)
        self.network: Callable[[Tensor], Tensor] = self._network

    def compute_by(
        self, network: nn.Module, losses: Callable[..., dict[str, Tensor]] | None = None
    ) -> None:
        """Embeds with `network`, this encoder and head compiled or made data-parallel.

        Only its call is kept: as a submodule it would be in the state dict twice. `losses` replaces
        the method of that name.
        """
        self.network = network.__call__
        if losses is not None:
            setattr(self, "losses", losses)  # noqa: B010

    def project(self, pictures: Tensor) -> Tensor:
        """Pictures (b, c, h, w) in [0, 1] to unit float32 embeddings (b, d)."""
        return normalize(self.network(pictures).float(), dim=1)

    def _network(self, pictures: Tensor) -> Tensor:
        embeddings: Tensor = self.head(self.encoder(pictures))
        return embeddings

    def losses(
        self,
        z: Tensor,
        index: Tensor,
        candidates: Candidates | None = None,
        mix: Mix | None = None,
    ) -> dict[str, Tensor]:
        """The named, weighted loss terms of a batch; their sum is the loss.

        Args:
            z: (b, d) unit embeddings of one view per picture.
            index: (b,) distinct numbers of the pictures in the data set.
            candidates: the rows of the bank to score; all n when None.
            mix: how the views were mixed by CutMix, if they were.

        Returns:
            Weighted scalars in nats: `instance`, `near` if near pictures are known, and
            `distillation` unless its weight is 0.
        """
        rows, correction = (None, None) if candidates is None else candidates
        partner, weight = (None, None) if mix is None else mix
        target = index if rows is None else torch.arange(len(index), device=index.device)
        scores = self.bank.scores(z, rows)
        instance = instance_discrimination(
            scores, target, self.temperature, partner, weight, correction
        )
        terms = {"instance": instance}
        if self.near is not None:
            nearer = self._nearer(self.near, scores if rows is None else None, z, index, mix)
            near = near_discrimination(instance, nearer, self.temperature)
            terms = {
                "instance": (1 - self.near_weight) * instance,
                "near": self.near_weight * near,
            }
        if self.distill_weight:
            terms["distillation"] = self.distill_weight * self_distillation(
                scores, self.distill_temperature, log_correction=correction
            )
        return terms

    def _nearer(
        self, near: Tensor, scores: Tensor | None, z: Tensor, index: Tensor, mix: Mix | None
    ) -> Tensor:
        """(b,) input of `near_discrimination`; `scores` are those of all rows, if computed."""

        def nearer(pictures: Tensor) -> Tensor:
            rows = torch.cat([pictures.unsqueeze(1), near[pictures]], dim=1)
            found = self.bank.scores_each(z, rows) if scores is None else scores.gather(1, rows)
            return found[:, 1:].mean(dim=1) - found[:, 0]

        if mix is None:
            return nearer(index)
        return mix.weight * nearer(index) + (1 - mix.weight) * nearer(index[mix.partner])

    def update_bank(
        self,
        index: Tensor,
        z: Tensor,
        candidates: Candidates | None = None,
        weight: Tensor | None = None,
    ) -> None:
        """Updates the bank with the embeddings of a step, except those of mixed pictures.

        A mixed view shows two pictures and would move a row to between them. Near pictures do not
        matter here: rows are updated for instance discrimination alone.

        Args:
            index: (b,) distinct picture numbers.
            z: (b, d) unit embeddings.
            candidates: the rows that were scored; all n when None.
            weight: (b,) share of the own picture in a mixed view; 1 for all when None.
        """
        keep = torch.ones_like(z[:, 0]) if weight is None else (weight == 1).to(z.dtype)
        if self.bank_rule == "ema":
            self.bank.update_ema(index, z, self.bank_momentum, keep)
        else:
            self.bank.update_gradient(index, z, self.bank_lr, self.temperature, keep, candidates)
