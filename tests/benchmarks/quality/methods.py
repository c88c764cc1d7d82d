"""What a study compares: each method makes features of a set's pictures, and says what it cost.

n = pictures of both parts, s = picture size, c = channels, d = feature width.
"""

import resource
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tests.benchmarks.quality.label_free import label_free
from tinyssl import pretrain
from tinyssl.build import augment_from
from tinyssl.config import Recipe, load_recipe
from tinyssl.data import Pictures, load_pictures
from tinyssl.encoder import Encoder, create_encoder, embed_pictures, widen
from tinyssl.labeled_split import LabeledSplit
from tinyssl.loader import epoch_order, generator_for
from tinyssl.schedule import warmup_cosine
from tinyssl.scoring import pixel_features
from tinyssl.train import parameter_groups
from tinyssl.weights import load_encoder, load_weights

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Made:
    """Features (n, d) and what they cost; seconds are of the processor, of training alone.

    `wide` are the features of all levels of a network (`encoder.widen`), else None; `seen` counts
    pictures; `label_free` holds the scores of `label_free.py`, of networks.
    """

    features: NDArray[np.float32]
    wide: NDArray[np.float32] | None = None
    seconds: float = 0.0
    seen: int = 0
    label_free: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Job:
    """One method on one set with one seed.

    Attributes:
        split: labeled pictures; training sees those of the training part, without labels.
        study: what all methods share: recipe, settings, image_size, peers.
        settings: of the method.
        seed: of everything random.
        seconds: of training, for peers; views follow from a short trial.
    """

    split: LabeledSplit
    study: Settings
    settings: Settings
    seed: int
    seconds: float

    def recipe(self) -> Recipe:
        """The recipe that all methods share, with the method's own settings."""
        return load_recipe(self.study["recipe"], self.overrides())

    def overrides(self) -> list[str]:
        """Settings of the study, of the method and, of an ablation, what it changes."""
        own = [*self.settings.get("settings", []), *self.settings.get("with", [])]
        return [*self.study["settings"], f"run.seed={self.seed}", *own]

    def pictures(self) -> Pictures:
        """Both parts, in the split's order."""
        data = self.recipe().data
        return load_pictures(self.split.paths, size=data.image_size, rule=data.resize)


def pixels(job: Job) -> Made:
    """The pictures themselves, small."""
    return Made(pixel_features(job.pictures().array))


def random_weights(job: Job) -> Made:
    """The network as it is made, normalized by the training pictures."""
    pictures = job.pictures()
    return _made(job, _encoder(job, pictures), pictures)


def weights(job: Job) -> Made:
    """Weights of a file, frozen; settings: backbone, file (beside the sets)."""
    pictures = job.pictures()
    encoder = create_encoder(job.settings["backbone"], channels=pictures.array.shape[3])
    load_weights(encoder, Path(job.study["data"]) / job.settings["file"])
    return _made(job, encoder, pictures)


def own(job: Job) -> Made:
    """tinyssl's recipe with the method's settings."""
    train = [str(p) for p, test in zip(job.split.paths, job.split.test, strict=True) if not test]
    with TemporaryDirectory() as folder:
        listed = Path(folder, "train.txt")
        listed.write_text("\n".join(train))
        overrides = [*job.overrides(), "run.watch_every=0", "encoder.levels=1"]
        begun = time.process_time()
        run = pretrain(listed, job.study["recipe"], Path(folder, "run"), overrides=overrides)
        seconds = time.process_time() - begun
        encoder, _ = load_encoder(run)
        epochs = int(load_recipe(run).run.epochs)
    return _made(job, encoder, job.pictures(), seconds, epochs * len(train))


def peer(job: Job) -> Made:
    """A method of lightly; settings: peer, lr (at batch 256), and those of the method."""
    from tests.benchmarks.quality.peers import PEERS

    pictures = job.pictures()
    recipe = job.recipe()

    def course(lr: float) -> _Course:
        torch.manual_seed(job.seed)
        made = PEERS[job.settings["peer"]](
            _encoder(job, pictures), recipe.head.hidden, recipe.head.width, job.settings
        )
        return _Course(made, pictures.array[~job.split.test], recipe, lr, job.seed)

    steps = max(1, int(job.seconds / course(1e-3).seconds_a_step()))
    training = course(float(job.settings["lr"]))
    begun = time.process_time()
    training.train(steps)
    seconds = time.process_time() - begun
    return _made(job, training.model.encoder, pictures, seconds, steps * training.batch)


class _Course:
    """Training of a peer: the recipe's views, batch and SGD, two views of each picture."""

    def __init__(
        self, model: Any, array: NDArray[Any], recipe: Recipe, lr: float, seed: int
    ) -> None:
        self.model, self.pictures, self.seed = model.train(), torch.from_numpy(array), seed
        self.batch = min(recipe.optim.batch_size, len(array))
        self.augment = augment_from(recipe)
        self.peak = lr * self.batch / 256
        groups = parameter_groups(model, recipe.optim.weight_decay)
        self.optimizer = torch.optim.SGD(groups, lr=self.peak, momentum=0.9, fused=True)

    def train(self, steps: int) -> None:
        """A warm-up of a tenth, then a cosine."""
        lrs = warmup_cosine(steps, steps // 10, self.peak)
        done, epoch = 0, 0
        while done < steps:
            for index in epoch_order(len(self.pictures), self.batch, self.seed, epoch):
                if done == steps:
                    return
                for group in self.optimizer.param_groups:
                    group["lr"] = lrs[done]
                self._step(index, done)
                done += 1
            epoch += 1

    def seconds_a_step(self, steps: int = 8) -> float:
        """Of the processor; leaves the model changed."""
        self._step(torch.arange(self.batch), 0)
        begun = time.process_time()
        for step in range(steps):
            self._step(torch.arange(self.batch), step)
        return (time.process_time() - begun) / steps

    def _step(self, index: torch.Tensor, step: int) -> None:
        draws = [generator_for(self.seed, step, stream=stream) for stream in (2, 3)]
        views = [self.augment(self.pictures[index], draw) for draw in draws]
        last = torch.channels_last
        loss = self.model(*(view.contiguous(memory_format=last) for view in views))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.trained(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.model.after_step()
        if not torch.isfinite(loss):
            raise FloatingPointError(f"the loss of step {step} is not finite")


def _made(
    job: Job, encoder: Encoder, pictures: Pictures, seconds: float = 0.0, seen: int = 0
) -> Made:
    train = pictures.array[~job.split.test]
    scores = label_free(encoder, augment_from(job.recipe()), train, job.seed)
    features = embed_pictures(encoder, pictures.array)
    wide = embed_pictures(widen(encoder, "all", train), pictures.array)
    return Made(features, wide, seconds, seen, scores)


def _encoder(job: Job, pictures: Pictures) -> Encoder:
    section = job.recipe().encoder
    mean, std = replace(pictures, array=pictures.array[~job.split.test]).statistics()
    return create_encoder(
        section.name,
        channels=pictures.array.shape[3],
        stem=section.stem,
        mean=mean,
        std=std,
        seed=job.seed,
    )


def peak_memory_mb() -> float:
    """Of this process since it began."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


KINDS: Mapping[str, Callable[[Job], Made]] = {
    "pixels": pixels,
    "random": random_weights,
    "weights": weights,
    "tinyssl": own,
    "peer": peer,
}
