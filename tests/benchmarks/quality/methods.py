"""The methods of a study: each makes features of a set's pictures and reports its cost.

n = pictures of both parts, s = picture size, c = channels, d = feature width.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from tests.benchmarks.quality.label_free import label_free
from tests.benchmarks.step import loop_epoch, make_run
from tinyssl import pretrain
from tinyssl.build import augment_from, settle
from tinyssl.config import Recipe, load_recipe
from tinyssl.data import Pictures, load_pictures
from tinyssl.device import pick_device, use_bf16
from tinyssl.encoder import Encoder, create_encoder, embed_pictures, widen
from tinyssl.errors import JobError
from tinyssl.files import atomic
from tinyssl.labeled_split import LabeledSplit
from tinyssl.loader import epoch_order, generator_for, steps_in_epoch
from tinyssl.machine import peak_memory
from tinyssl.schedule import warmup_cosine
from tinyssl.scoring import pixel_features
from tinyssl.small_maps import quicken_small_maps
from tinyssl.train import parameter_groups
from tinyssl.weights import load_encoder, load_weights

Settings = Mapping[str, Any]


class Clock:
    """Seconds since its creation: processor time of this process or, on a GPU, wall-clock time."""

    def __init__(self, device: torch.device) -> None:
        self.gpu = device.type == "cuda"
        self.begun = self._now()

    def seconds(self) -> float:
        """Seconds so far, including pending work on a GPU."""
        return self._now() - self.begun

    def _now(self) -> float:
        if not self.gpu:
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()


@dataclass(frozen=True)
class Made:
    """Features (n, d) and their cost.

    `wide` are the features of all levels of a network (`encoder.widen`), `components` as many
    components of them as the study asks for, otherwise None; `steps` and `seen` count batches and
    pictures, `seconds` (`Clock`) are those of training, whatever else ran at the time; `label_free`
    has the scores of `label_free.py` for networks.
    """

    features: NDArray[np.float32]
    wide: NDArray[np.float32] | None = None
    components: NDArray[np.float32] | None = None
    steps: int = 0
    seen: int = 0
    seconds: float = 0.0
    label_free: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Job:
    """One method on one set with one seed.

    Attributes:
        split: labeled pictures; training sees those of the training part, without labels.
        study: shared by all methods: recipe, settings, device.
        settings: of the method.
        seed: of all random draws.
        share: of the recipe's steps that a peer takes, so that all train equally long.
        kept: file of the trained encoder; an existing one is not trained again.
    """

    split: LabeledSplit
    study: Settings
    settings: Settings
    seed: int
    share: float = 1.0
    kept: Path | None = None

    @property
    def device(self) -> torch.device:
        """Device of the networks."""
        return pick_device(self.study.get("device", "cpu"))

    @property
    def count(self) -> int:
        """Number of pictures to train on."""
        return int((~self.split.test).sum())

    def recipe(self) -> Recipe:
        """The recipe that all methods share, with the method's own settings."""
        return load_recipe(self.study["recipe"], self.overrides())

    def overrides(self) -> list[str]:
        """Settings of the study, of the method and, for an ablation, its changes."""
        own = [*self.settings.get("settings", []), *self.settings.get("with", [])]
        device = f"run.device={self.device}"
        return [*self.study["settings"], f"run.seed={self.seed}", device, *own]

    def steps(self) -> int:
        """Number of steps of the recipe on these pictures."""
        recipe = settle(self.recipe(), self.count, 3)
        return int(recipe.run.epochs) * steps_in_epoch(self.count, recipe.optim.batch_size)

    def pictures(self) -> Pictures:
        """Pictures of both parts, in the split's order."""
        data = self.recipe().data
        return load_pictures(self.split.paths, size=data.image_size, rule=data.resize)


class Cost(NamedTuple):
    """Seconds of a step, and peak memory in MB of a process that only trains."""

    seconds: float
    memory: int


def cost(job: Job) -> Cost:
    """Cost of a method's training, to be measured in a process of its own.

    Memory is what torch allocated on a GPU, otherwise all memory of the process.
    """
    seconds = _seconds_a_step(job)
    gpu = job.device.type == "cuda"
    peak = torch.cuda.max_memory_allocated() if gpu else peak_memory() or 0
    return Cost(seconds, round(peak / 1e6))


def _seconds_a_step(job: Job) -> float:
    """Seconds of a step, including the initialization of tinyssl's bank spread over its steps.

    The minimum of some rounds, since other work on the machine can only add time.
    """
    pictures = job.pictures()
    if job.settings["kind"] != "tinyssl":
        return _COURSES[job.settings["kind"]](job, pictures, 1e-3).seconds_a_step()
    with TemporaryDirectory() as folder:
        channels = pictures.array.shape[3]
        run = make_run(
            job.study["recipe"], job.count, channels, Path(folder), str(job.device), job.overrides()
        )
        run._find_near()  # part of the memory, but done once rather than every step
        run._compile()
        epoch = _least(job.device, lambda: loop_epoch(run))
        start = _least(job.device, run._start_bank)
        return epoch / run.plan.steps_per_epoch + start / job.steps()


def _least(device: torch.device, work: Callable[[], Any], rounds: int = 4) -> float:
    """Minimum seconds of the rounds after a first one for warm-up."""
    seconds = []
    for _ in range(rounds + 1):
        clock = Clock(device)
        work()
        seconds.append(clock.seconds())
    return min(seconds[1:])


def pixels(job: Job) -> Made:
    """Features that are the pictures themselves, reduced."""
    return Made(pixel_features(job.pictures().array))


def random_weights(job: Job) -> Made:
    """The untrained network, normalized by the training pictures."""
    pictures = job.pictures()
    return _made(job, pictures, _encoder(job, pictures))


def weights(job: Job) -> Made:
    """Frozen weights of a file; settings: backbone, file (in the folder of the sets)."""
    pictures = job.pictures()
    encoder = create_encoder(job.settings["backbone"], channels=pictures.array.shape[3])
    load_weights(encoder, Path(job.study["data"]) / job.settings["file"])
    return _made(job, pictures, encoder)


def own(job: Job) -> Made:
    """tinyssl's recipe with the method's settings."""
    return _trained_or_kept(job, job.pictures(), _own_encoder)


def _own_encoder(job: Job, _: Pictures) -> "Trained":
    train = [str(p) for p, test in zip(job.split.paths, job.split.test, strict=True) if not test]
    with TemporaryDirectory() as folder:
        listed = Path(folder, "train.txt")
        listed.write_text("\n".join(train))
        plain = ["encoder.levels=1", "encoder.components=0", "encoder.descriptors=false"]
        overrides = [*job.overrides(), *plain, "run.watch_every=0"]
        clock = Clock(job.device)
        run = pretrain(listed, job.study["recipe"], Path(folder, "run"), overrides=overrides)
        seconds = clock.seconds()
        encoder, _ = load_encoder(run)
        seen = int(load_recipe(run).run.epochs) * len(train)
    return Trained(encoder, job.steps(), seen, seconds)


def trained(job: Job) -> Made:
    """Training by our own loop; settings: lr (at batch 256).

    Either of a method of lightly (peer), with its name and its own settings, or of the network with
    the labels of all training pictures (supervised).
    """
    return _trained_or_kept(job, job.pictures(), _course_encoder)


def _course_encoder(job: Job, pictures: Pictures) -> "Trained":
    training = _COURSES[job.settings["kind"]](job, pictures, float(job.settings["lr"]))
    steps = max(1, round(job.share * job.steps()))
    clock = Clock(job.device)
    training.train(steps)
    seconds = clock.seconds()
    return Trained(training.model.encoder, steps, steps * training.batch, seconds)


class Trained(NamedTuple):
    """A one-level encoder, the batches and pictures that it was trained on, and the seconds."""

    encoder: Encoder
    steps: int
    seen: int
    seconds: float


def _trained_by(job: Job) -> str:
    """The settings of training that are not in a file's name (set, method, budget, seed)."""
    shared = {name: job.study[name] for name in ("recipe", "settings")}
    told = dict(job.settings) | shared | {"share": round(job.share, 6)}
    return json.dumps(told, sort_keys=True)


def _trained_or_kept(
    job: Job, pictures: Pictures, train: Callable[[Job, Pictures], Trained]
) -> Made:
    """Judges the encoder in the job's file; if there is none, trains it and saves it there."""
    if job.kept is None:
        return _made(job, pictures, *train(job, pictures))
    if not job.kept.exists():
        result = train(job, pictures)
        told = {name: str(value) for name, value in result._asdict().items() if name != "encoder"}
        told["settings"] = _trained_by(job)
        tensors = {k: v.cpu().contiguous() for k, v in result.encoder.state_dict().items()}
        with atomic(job.kept) as file:
            file.write(save(tensors, metadata=told))
    encoder = _encoder(job, pictures)
    encoder.load_state_dict(load_file(job.kept))
    with safe_open(job.kept, "pt") as file:
        told = file.metadata()
    if told["settings"] != _trained_by(job):
        raise JobError(f"{job.kept} was trained with {told['settings']}; give another --encoders")
    counts = int(told["steps"]), int(told["seen"]), float(told["seconds"])
    return _made(job, pictures, encoder.to(job.device).eval(), *counts)


def _supervised_course(job: Job, pictures: Pictures, lr: float) -> "_Course":
    torch.manual_seed(job.seed)
    labels = torch.from_numpy(job.split.labels[~job.split.test])
    model = _Supervised(_encoder(job, pictures), labels.to(job.device), len(job.split.classes))
    array = pictures.array[~job.split.test]
    return _SupervisedCourse(model, array, job.recipe(), lr, job.seed, job.device)


def _peer_course(job: Job, pictures: Pictures, lr: float) -> "_Course":
    from tests.benchmarks.quality.peers import PEERS

    recipe = job.recipe()
    torch.manual_seed(job.seed)
    made = PEERS[job.settings["peer"]](
        _encoder(job, pictures), recipe.head.hidden, recipe.head.width, job.settings
    )
    return _Course(made, pictures.array[~job.split.test], recipe, lr, job.seed, job.device)


class _Supervised(nn.Module):
    """A network with a linear classifier, classes weighted equally."""

    def __init__(self, encoder: Encoder, labels: Tensor, classes: int) -> None:
        super().__init__()
        self.encoder, self.labels = encoder, labels
        self.head = nn.Linear(encoder.width, classes)
        self.weight = len(labels) / (classes * labels.bincount(minlength=classes).float())

    def forward(self, view: Tensor, index: Tensor) -> Tensor:
        return cross_entropy(self.head(self.encoder(view)), self.labels[index], self.weight)

    def trained(self) -> Iterator[nn.Parameter]:
        return self.parameters()

    def after_step(self) -> None:
        """Does nothing: there are no running averages."""


class _Course:
    """Training with the recipe's views, batch, precision and SGD, on two views of each picture."""

    def __init__(
        self, model: Any, array: NDArray[Any], recipe: Recipe, lr: float, seed: int,
        device: torch.device,
    ) -> None:  # fmt: skip
        # Weights too: views of one channel do not determine the memory format to compute in.
        model = model.train().to(device, memory_format=torch.channels_last)
        quicken_small_maps(model)  # as in tinyssl's own runs
        self.model, self.seed, self.device = model, seed, device
        self.pictures = torch.from_numpy(array).to(device)
        self.bf16 = use_bf16(recipe.run.precision, device)
        self.batch = min(recipe.optim.batch_size, len(array))
        self.augment = augment_from(recipe)
        self.peak = lr * self.batch / 256
        groups = parameter_groups(model, recipe.optim.weight_decay)
        self.optimizer = torch.optim.SGD(groups, lr=self.peak, momentum=0.9, fused=True)

    def train(self, steps: int) -> None:
        """Trains with a warm-up of a tenth of the steps, then a cosine schedule."""
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
        """Seconds of a step; changes the model."""

        def some_steps() -> None:
            for step in range(steps):
                self._step(torch.arange(self.batch), step)

        return _least(self.device, some_steps) / steps

    def _step(self, index: torch.Tensor, step: int) -> None:
        given = self._inputs(index.to(self.device, non_blocking=True), step)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            loss = self.model(*given)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.trained(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.model.after_step()
        if step % 50 == 0 and not torch.isfinite(loss):
            raise FloatingPointError(f"the loss of step {step} is not finite")

    def _inputs(self, index: Tensor, step: int) -> tuple[Tensor, ...]:
        return self._view(index, step, 2), self._view(index, step, 3)

    def _view(self, index: Tensor, step: int, stream: int) -> Tensor:
        draw = generator_for(self.seed, step, stream=stream)
        view = self.augment(self.pictures[index], draw)
        return view.contiguous(memory_format=torch.channels_last)


class _SupervisedCourse(_Course):
    """Training on one view of each picture and its label."""

    def _inputs(self, index: Tensor, step: int) -> tuple[Tensor, ...]:
        return self._view(index, step, 2), index


_COURSES = {"peer": _peer_course, "supervised": _supervised_course}


def _made(
    job: Job, pictures: Pictures, encoder: Encoder, steps: int = 0, seen: int = 0,
    seconds: float = 0.0,
) -> Made:  # fmt: skip
    train = pictures.array[~job.split.test]
    scores = label_free(encoder, augment_from(job.recipe()), train, job.seed, job.device)
    count, section = job.study.get("components", 0), job.recipe().encoder

    def embedded(made: Encoder) -> NDArray[np.float32]:
        return embed_pictures(made, pictures.array, device=job.device)

    def widened(components: int) -> NDArray[np.float32]:
        given = components, section.whitening, section.pooling
        return embedded(widen(encoder, "all", train, *given))

    narrow = widened(count) if count else None
    return Made(embedded(encoder), widened(0), narrow, steps, seen, seconds, scores)


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
        residuals=section.residuals,
    )


KINDS: Mapping[str, Callable[[Job], Made]] = {
    "pixels": pixels,
    "random": random_weights,
    "weights": weights,
    "tinyssl": own,
    "peer": trained,
    "supervised": trained,
}
