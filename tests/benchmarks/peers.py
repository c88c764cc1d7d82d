"""An epoch of lightly's SimCLR, MoCo and SimSiam, each as in its documentation.

lightly 1.5 and newer, from PyPI: `LightlyDataset` of picture files, its transform for two views, a
`DataLoader` with one worker per core, the model and loss of `examples/pytorch`. Only what both
sides share here differs: the backbone (timm's, 3 channels), view size, batch and precision.
"""

import copy
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from tests.benchmarks.machine import cores

METHODS = ("simclr", "moco", "simsiam")


class Peer:
    """A method of lightly with its data, ready for epochs.

    Args:
        method: one of `METHODS`.
        pictures: a folder of picture files.
        backbone: name in timm.
        size: pixels a side of the views.
        batch: pictures a step.
        device: cpu or cuda.
        bf16: use autocast.
    """

    def __init__(
        self, method: str, pictures: Path, backbone: str, size: int, batch: int, device: str,
        bf16: bool,
    ) -> None:  # fmt: skip
        encoder = timm.create_model(backbone, num_classes=0)
        width = int(getattr(encoder, "head_hidden_size", None) or encoder.num_features)
        model, transform, self.loss = _PARTS[method](encoder, width, size)
        self.model = model.to(device)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.06)
        self.loader = loader(pictures, transform, batch)
        self.device, self.bf16, self.batch = device, bf16, batch

    def epoch(self) -> tuple[float, int]:
        """Seconds and pictures of one epoch."""
        start = time.perf_counter()
        count = 0
        for batch in self.loader:
            first, second = (view.to(self.device, non_blocking=True) for view in batch[0])
            with torch.autocast(self.device, torch.bfloat16, enabled=self.bf16):
                loss = self.loss(self.model, first, second)
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            count += len(first)
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start, count


def loader(pictures: Path, transform: Any, batch: int) -> Any:
    from lightly.data import LightlyDataset

    return torch.utils.data.DataLoader(
        LightlyDataset(str(pictures), transform=transform),
        batch_size=batch, shuffle=True, drop_last=True, num_workers=cores(),
    )  # fmt: skip


Parts = tuple[nn.Module, Any, Callable[[Any, Tensor, Tensor], Tensor]]


def _simclr(encoder: nn.Module, width: int, size: int) -> Parts:
    from lightly.loss import NTXentLoss
    from lightly.models.modules.heads import SimCLRProjectionHead
    from lightly.transforms import SimCLRTransform

    model = nn.Sequential(encoder, SimCLRProjectionHead(width, width, 128))
    criterion = NTXentLoss()
    transform = SimCLRTransform(input_size=size, gaussian_blur=0.0)
    return model, transform, lambda made, first, second: criterion(made(first), made(second))


def _moco(encoder: nn.Module, width: int, size: int) -> Parts:
    from lightly.loss import NTXentLoss
    from lightly.models.modules.heads import MoCoProjectionHead
    from lightly.models.utils import deactivate_requires_grad, update_momentum
    from lightly.transforms import MoCoV2Transform

    model = nn.ModuleDict({"query": nn.Sequential(encoder, MoCoProjectionHead(width, width, 128))})
    model["key"] = copy.deepcopy(model["query"])
    deactivate_requires_grad(model["key"])
    criterion = NTXentLoss(memory_bank_size=(4096, 128))

    def loss(made: Any, first: Tensor, second: Tensor) -> Tensor:
        update_momentum(made["query"], made["key"], m=0.99)
        query = made["query"](first)
        with torch.no_grad():
            key = made["key"](second)
        return criterion(query, key)

    return model, MoCoV2Transform(input_size=size, gaussian_blur=0.0), loss


def _simsiam(encoder: nn.Module, width: int, size: int) -> Parts:
    from lightly.loss import NegativeCosineSimilarity
    from lightly.models.modules.heads import SimSiamPredictionHead, SimSiamProjectionHead
    from lightly.transforms import SimSiamTransform

    projection = nn.Sequential(encoder, SimSiamProjectionHead(width, 512, 128))
    model = nn.ModuleDict(
        {"projection": projection, "prediction": SimSiamPredictionHead(128, 64, 128)}
    )
    criterion = NegativeCosineSimilarity()

    def loss(made: Any, first: Tensor, second: Tensor) -> Tensor:
        z0, z1 = made["projection"](first), made["projection"](second)
        p0, p1 = made["prediction"](z0), made["prediction"](z1)
        return 0.5 * (criterion(z0.detach(), p1) + criterion(z1.detach(), p0))

    return model, SimSiamTransform(input_size=size, gaussian_blur=0.0), loss


_PARTS: dict[str, Callable[[nn.Module, int, int], Parts]] = {
    "simclr": _simclr,
    "moco": _moco,
    "simsiam": _simsiam,
}


def quiet() -> None:
    """Silences lightly and Lightning, which warn of each other's versions."""
    warnings.simplefilter("ignore")
