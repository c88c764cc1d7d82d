"""The memory bank: one unit-length row per picture, held in buffers.

Rows may be in half precision and on another device than the network. A step moves the rows that
it needs to the embeddings' dtype and device, and writes back the rows that it changes.

b = batch, n = pictures, d = embedding width, k = scored rows.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, one_hot


class Candidates(NamedTuple):
    """The rows that a step scores instead of the whole bank.

    rows: (b + sampled,) distinct row numbers; the batch's own come first, in batch order.
    log_correction: (b + sampled,) 0 for the batch's rows, `log((n - b) / sampled)` for the others:
        added to the logits, it makes the softmax's denominator an unbiased estimate of the one
        over all n rows (sampled softmax, Jean et al., arXiv:1412.2007, sec. 3).
    """

    rows: Tensor
    log_correction: Tensor

    def starting_at(self, first: int, batch: int) -> Candidates:
        """The same rows with the batch's own rotated so that the one at `first` comes first.

        A process that has a share of the batch then finds its own rows in front.
        """
        own, others = self.rows[:batch], self.rows[batch:]
        return self._replace(rows=torch.cat([own.roll(-first), others])) if first else self


class MemoryBank(nn.Module):
    """Rows `W`, (n, d) and of unit length, with their two update rules.

    Args:
        pictures: n.
        width: d.
        dtype: float32, or float16 for half the memory: rows are then rounded to 11 bits, and
            cosines of all rows on a GPU too.
    """

    rows: Tensor

    def __init__(self, pictures: int, width: int, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.register_buffer("rows", torch.zeros(pictures, width, dtype=dtype))

    def fill_random(self, generator: torch.Generator) -> None:
        """Draws every row uniformly from the unit sphere."""
        drawn = torch.randn(self.rows.shape, generator=generator, device=generator.device)
        self.rows.copy_(normalize(drawn, dim=1))

    def fill(self, index: Tensor, z: Tensor) -> None:
        """Sets rows `index`, (b,), to the unit features `z`, (b, d)."""
        self.rows[self._there(index)] = z.to(self.rows)

    def candidates(self, index: Tensor, sampled: int, generator: torch.Generator) -> Candidates:
        """Draws the rows to score: the batch's own and `sampled` others, none of them twice.

        One row is drawn from each of `sampled` strata of the rows outside the batch, on a circle
        turned at random so that all rows are equally likely: no sort of n numbers, no rejection.

        Args:
            index: (b,) distinct row numbers of the batch.
            sampled: how many other rows, 1 to n - b.
            generator: source of randomness.
        """
        others = len(self.rows) - len(index)
        device = generator.device
        draw = torch.rand(sampled + 1, generator=generator, device=device, dtype=torch.double)
        bounds = torch.arange(sampled + 1, device=device) * others // sampled
        within = (draw[:-1] * bounds.diff()).long()
        rank = (bounds[:-1] + within + (draw[-1] * others).long()) % others
        rank = rank.to(index.device, non_blocking=True)
        ordered = index.sort().values
        gaps = ordered - torch.arange(len(index), device=index.device)
        negatives = rank + torch.searchsorted(gaps, rank, right=True)
        correction = torch.zeros(len(index) + sampled, device=index.device)
        correction[len(index) :] = math.log(others / sampled)
        return Candidates(torch.cat([index, negatives]), correction)

    def scores(self, z: Tensor, rows: Tensor | None = None) -> Tensor:
        """Cosines of `z`, (b, d), with all rows, (b, n), or with the rows numbered, (b, k)."""
        if rows is not None:
            return z @ self._take(rows, z).T
        if self.rows.is_cuda and z.is_cuda and self.rows.dtype == torch.float16:
            half: Tensor = HalfCosines.apply(z, self.rows)
            return half  # without a copy of the bank; CPUs are slow at it
        return z @ self.rows.to(z).T

    def scores_each(self, z: Tensor, rows: Tensor) -> Tensor:
        """Cosines of each of `z`, (b, d), with rows of its own, numbered (b, m); (b, m)."""
        return torch.einsum("bd,bmd->bm", z, self._take(rows, z))

    def _take(self, rows: Tensor, like: Tensor) -> Tensor:
        return self.rows[self._there(rows)].to(like)

    def _there(self, rows: Tensor) -> Tensor:
        """Row numbers on the rows' device; copying from a GPU to the host synchronizes."""
        return rows.to(self.rows.device)

    @torch.no_grad()
    def update_ema(self, index: Tensor, z: Tensor, momentum: float, keep: Tensor) -> None:
        """`w_i <- normalize(m w_i + (1 - m) z_i)` for the batch (arXiv:1805.01978, sec. 3).

        Args:
            index: (b,) distinct row numbers.
            z: (b, d) unit features.
            momentum: m in [0, 1].
            keep: (b,) 1 for a row to move, 0 for one to leave (its picture was mixed).
        """
        old = self._take(index, z)
        step = ((1 - momentum) * keep).unsqueeze(1)
        self.fill(index, normalize(old + step * (z - old), dim=1))

    @torch.no_grad()
    def update_gradient(
        self,
        index: Tensor,
        z: Tensor,
        lr: float,
        temperature: float,
        keep: Tensor,
        candidates: Candidates | None = None,
    ) -> None:
        """`w_k <- normalize(w_k - lr dL/dw_k)` for every scored row (arXiv:2404.19289).

        `dL/dw_k = (1 / tau) sum_i (p_ik - y_ik) z_i` is the gradient of the batch's summed
        instance discrimination: the own row moves towards its feature by 1 - p, every other
        scored row away from it by p.

        Args:
            index: (b,) distinct row numbers.
            z: (b, d) unit features.
            lr: step size of the rows.
            temperature: tau of the loss.
            keep: (b,) 1 for a picture that counts, 0 for one that was mixed.
            candidates: the rows scored in this step; all n when None.
        """
        rows = None if candidates is None else candidates.rows
        logits = self.scores(z, rows) / temperature
        if candidates is None:
            target = index
        else:
            logits += candidates.log_correction
            target = torch.arange(len(index), device=index.device)
        difference = logits.softmax(dim=1) - one_hot(target, logits.shape[1])
        gradient = (difference * keep.unsqueeze(1)).T @ z / temperature
        if rows is None:
            self.rows.copy_(normalize(self.rows.to(z) - lr * gradient, dim=1))
        else:
            self.fill(rows, normalize(self._take(rows, z) - lr * gradient, dim=1))


class HalfCosines(torch.autograd.Function):
    """`z @ rows.T` in half precision: z (b, d), rows (n, d) float16 without gradient; (b, n).

    The gradient of a softmax over many rows has entries that float16 would round to 0. Those of
    each picture are multiplied so that their absolute values sum to 256, since neither they nor
    their product with unit rows can then overflow.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        return (z.half() @ rows.T).to(z.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (rows,) = ctx.saved_tensors
        total = gradient.abs().sum(dim=1, keepdim=True).clamp(min=1e-30)
        scaled = (gradient * (256 / total)).half()
        return (scaled @ rows).to(gradient.dtype) * (total / 256), None
