"""Other methods on our pictures, views and optimizer, with losses and heads of lightly (PyPI).

Every method sees two views of each picture in a step. The optimizers of the papers are not used:
all methods get SGD with a rate from the study's grid, so that only the method differs.
b = batch, d = feature width.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import lightly.loss as losses
import torch
from lightly.models import modules as heads
from lightly.models.utils import update_momentum
from torch import Tensor, nn

from tinyssl.encoder import Encoder

Settings = Mapping[str, Any]


class Peer(nn.Module):
    """A method: two views to a loss.

    Args:
        encoder: trained in place.
        hidden: width of heads.
        width: of embeddings.
        settings: of the study for this method; listed in the docstring of each.
    """

    averaged = False

    def __init__(self, encoder: Encoder, hidden: int, width: int, settings: Settings) -> None:
        super().__init__()
        self.encoder, self.settings = encoder, settings
        self.head = self.make_head(encoder.width, hidden, width)
        self.build(hidden, width)
        if self.averaged:
            slow_head = self.make_head(encoder.width, hidden, width)
            slow_head.load_state_dict(self.head.state_dict())
            self.slow = nn.ModuleList([copy.deepcopy(encoder), slow_head]).requires_grad_(False)

    def make_head(self, d: int, hidden: int, width: int) -> nn.Module:
        """The projection head on features of width d."""
        raise NotImplementedError

    def build(self, hidden: int, width: int) -> None:
        """Makes the other parts of the method."""
        raise NotImplementedError

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """(b, c, s, s) views to the loss."""
        raise NotImplementedError

    def embed(self, views: Tensor) -> Tensor:
        """(b, width) embeddings of the trained network."""
        return self.head(self.encoder(views))

    @torch.no_grad()
    def embed_slowly(self, views: Tensor) -> Tensor:
        """(b, width) embeddings of the running average of the network."""
        encoder, head = self.slow
        return head(encoder(views))

    def after_step(self) -> None:
        """Updates the running average."""
        if self.averaged:
            for model, slow in zip((self.encoder, self.head), self.slow, strict=True):
                update_momentum(model, slow, m=self.settings.get("momentum", 0.99))

    def trained(self) -> Iterator[nn.Parameter]:
        """The trainable parameters."""
        return (p for p in self.parameters() if p.requires_grad)


class SimCLR(Peer):
    """arXiv:2002.05709; temperature."""

    def make_head(self, d: int, hidden: int, width: int) -> nn.Module:
        return heads.SimCLRProjectionHead(d, hidden, width)

    def build(self, hidden: int, width: int) -> None:
        self.loss = losses.NTXentLoss(temperature=self.settings.get("temperature", 0.2))

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return self.loss(self.embed(first), self.embed(second))


class MoCo(Peer):
    """v2, arXiv:2003.04297; temperature, momentum, queue."""

    averaged = True

    def make_head(self, d: int, hidden: int, width: int) -> nn.Module:
        return heads.MoCoProjectionHead(d, hidden, width)

    def build(self, hidden: int, width: int) -> None:
        self.loss = losses.NTXentLoss(
            temperature=self.settings.get("temperature", 0.2),
            memory_bank_size=(self.settings.get("queue", 1024), width),
        )

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return self.loss(self.embed(first), self.embed_slowly(second))


class BYOL(Peer):
    """arXiv:2006.07733; momentum."""

    averaged = True

    def make_head(self, d: int, hidden: int, width: int) -> nn.Module:
        return heads.BYOLProjectionHead(d, hidden, width)

    def build(self, hidden: int, width: int) -> None:
        self.predictor = heads.BYOLPredictionHead(width, hidden, width)
        self.loss = losses.NegativeCosineSimilarity()

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        def half(one: Tensor, other: Tensor) -> Tensor:
            return self.loss(self.predictor(self.embed(one)), self.embed_slowly(other))

        return (half(first, second) + half(second, first)) / 2


class SimSiam(Peer):
    """arXiv:2011.10566."""

    def make_head(self, d: int, hidden: int, width: int) -> nn.Module:
        return heads.SimSiamProjectionHead(d, hidden, width)

    def build(self, hidden: int, width: int) -> None:
        self.predictor = heads.SimSiamPredictionHead(width, max(64, width // 4), width)
        self.loss = losses.NegativeCosineSimilarity()

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        one, other = self.embed(first), self.embed(second)
        forth = self.loss(self.predictor(one), other.detach())
        back = self.loss(self.predictor(other), one.detach())
        return (forth + back) / 2


class BarlowTwins(Peer):
    """arXiv:2103.03230."""

    def make_head(self, d: int, hidden: int, width: int) -> nn.Module:
        return heads.BarlowTwinsProjectionHead(d, hidden, width)

    def build(self, hidden: int, width: int) -> None:
        self.loss = losses.BarlowTwinsLoss()

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        # The loss sums over pairs of columns; divided by the width, one grid of rates suits all.
        return self.loss(self.embed(first), self.embed(second)) / self.encoder.width


class VICReg(Peer):
    """arXiv:2105.04906."""

    def make_head(self, d: int, hidden: int, width: int) -> nn.Module:
        return heads.BarlowTwinsProjectionHead(d, hidden, width)

    def build(self, hidden: int, width: int) -> None:
        self.loss = losses.VICRegLoss()

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return self.loss(self.embed(first), self.embed(second)) / 25


class DINO(Peer):
    """arXiv:2104.14294 with two global views; momentum, prototypes."""

    averaged = True

    def make_head(self, d: int, hidden: int, width: int) -> nn.Module:
        prototypes = self.settings.get("prototypes", 1024)
        return heads.DINOProjectionHead(d, hidden, 256, prototypes, batch_norm=True)

    def build(self, hidden: int, width: int) -> None:
        prototypes = self.settings.get("prototypes", 1024)
        self.loss = losses.DINOLoss(prototypes, warmup_teacher_temp_epochs=0)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        slow = [self.embed_slowly(view) for view in (first, second)]
        return self.loss(slow, [self.embed(view) for view in (first, second)], epoch=0)


class NNCLR(Peer):
    """arXiv:2104.14548; temperature, queue."""

    def make_head(self, d: int, hidden: int, width: int) -> nn.Module:
        return heads.NNCLRProjectionHead(d, hidden, width)

    def build(self, hidden: int, width: int) -> None:
        self.predictor = heads.NNCLRPredictionHead(width, hidden, width)
        self.support = heads.NNMemoryBankModule((self.settings.get("queue", 1024), width))
        self.loss = losses.NTXentLoss(temperature=self.settings.get("temperature", 0.2))

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        one, other = self.embed(first), self.embed(second)
        near_one = self.support(one.detach(), update=False)
        near_other = self.support(other.detach(), update=True)
        forth = self.loss(near_one, self.predictor(other))
        back = self.loss(near_other, self.predictor(one))
        return (forth + back) / 2


PEERS: Mapping[str, Callable[[Encoder, int, int, Settings], Peer]] = {
    "simclr": SimCLR,
    "moco": MoCo,
    "byol": BYOL,
    "simsiam": SimSiam,
    "barlowtwins": BarlowTwins,
    "vicreg": VICReg,
    "dino": DINO,
    "nnclr": NNCLR,
}
