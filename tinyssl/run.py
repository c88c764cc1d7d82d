"""One run of pretraining: its parts, built from a resolved recipe, and the files it writes."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tinyssl import __version__, distributed, labels
from tinyssl.augment import Augment
from tinyssl.backbones import levels_of, timm_weights
from tinyssl.build import augment_from, build_encoder, build_method, build_optimizer, make_plan
from tinyssl.checkpoint import save_checkpoint
from tinyssl.compiling import compiled, settle_compile, settle_recording
from tinyssl.config import Recipe
from tinyssl.console import Advance, log, progress
from tinyssl.data import Pictures, worker_count, write_skipped
from tinyssl.device import keep_freed_memory, memory_told, training_device
from tinyssl.encoder import Encoder, check_sizes, create_encoder, embed_pictures
from tinyssl.errors import (
    Interrupted,
    JobError,
    NonFinite,
    TinysslError,
    UsageError,
    a_few,
    first_line,
)
from tinyssl.files import write_text
from tinyssl.loader import PipelineBatches, ResidentPictures, generator_for, steps_in_epoch
from tinyssl.loggers import Log, open_loggers
from tinyssl.machine import MACHINE, machine_facts
from tinyssl.near import near_by_descriptors, near_by_start
from tinyssl.pipeline import apply_pipeline, load_pipeline
from tinyssl.recording import RecordedStep, recorded_views
from tinyssl.resuming import restore
from tinyssl.run_folder import HELD_OUT, RunFolder, resume_command
from tinyssl.signals import stop_signal
from tinyssl.sources import duplicates_csv, held_out_csv
from tinyssl.train import Batches, Hooks, Progress, TakeStep, fit, start_bank, train_step
from tinyssl.views import two_views
from tinyssl.watch import collapse_warning, watch
from tinyssl.weights import save_encoder, widen_like

RESULT_COLUMNS = [
    "epoch", "time", "loss", "instance", "near", "distillation", "lr", "pictures_per_s",
    "rankme", "bank_rank", "bank_cosine", "retrieval", "knn",
]  # fmt: skip
_HELPERS = (
    "if memory was full, give run.workers=1 in a new run; in a script of yours on macOS or Windows "
    'call tinyssl below `if __name__ == "__main__":`'
)
_TAKE_LESS = "lower optim.batch_size or run.gpu_share, or give bank.device=host, in a new run"


class Run:
    """One pretraining run: its parts, built from a resolved recipe, and its files."""

    def __init__(
        self,
        recipe: Recipe,
        pictures: Pictures,
        folder: RunFolder,
        state: dict[str, Any] | None,
    ) -> None:
        keep_freed_memory()
        torch.manual_seed(recipe.run.seed)
        # Otherwise convolutions on a GPU differ from run to run; those on a CPU never do.
        torch.backends.cudnn.deterministic = True
        self.recipe = recipe
        self.pictures = pictures
        self.folder = folder
        self.device = training_device(recipe.run.device)
        # A pipeline makes its views from the cache, by processes that need no GPU.
        share = recipe.run.gpu_share if recipe.augment.pipeline is None else None
        self.resident = ResidentPictures(pictures.array, self.device, share)
        self.augment: Augment | None = None
        self.pipeline: PipelineBatches | None = None
        self.plan = make_plan(recipe, len(pictures.paths), self.device)
        self.batches = self._batches()
        self.labels = _watch_labels(recipe.run.watch_labels, pictures, resumed=state is not None)
        encoder = build_encoder(recipe, pictures, filled=state is None)
        levels_of(encoder.backbone, encoder.name, recipe.encoder.levels)  # fail before training
        check_sizes(encoder, {recipe.augment.view_size, recipe.data.image_size})
        self.start = {key: value.clone() for key, value in encoder.state_dict().items()}
        with memory_told(_TAKE_LESS):
            self.method = build_method(recipe, encoder, len(pictures.paths), self.device)
        whole = torch.nn.Sequential(encoder, self.method.head)
        self.network = distributed.data_parallel(whole, self.device)
        self.method.compute_by(self.network)
        self.optimizer = build_optimizer(recipe, self.method)
        self.take_step: TakeStep = partial(train_step, self.method, self.optimizer, self.plan)
        self.progress = Progress()
        if state is not None:
            self._restore(state)
        left = self.plan.steps - self.progress.step
        self.compiling = settle_compile(recipe.run.compile, self.device, left)
        self.recording = settle_recording(
            recipe.run.compile, self.device, distributed.world_size(), recipe.bank.device
        )

    def create_folder(self, held: ExitStack, overwrite: bool) -> None:
        """Locks the folder and writes what is known before training."""
        self.folder.create(held, overwrite)
        write_text(self.folder.recipe, self.recipe.to_yaml())
        write_skipped(self.folder.skipped, self.pictures.skipped)
        write_text(self.folder.duplicates, duplicates_csv(self.pictures))
        if self.recipe.data.holdout is not None:
            write_text(self.folder.path / HELD_OUT, held_out_csv(self.recipe, self.pictures))

    def go(self) -> Path:
        """Trains to the end, or raises after saving; see `pretrain`."""
        try:
            with memory_told(_TAKE_LESS):
                self._go()
        except TinysslError as error:
            log.debug(f"ended: {error}")  # for train.log; the caller is told by the error
            raise
        finally:
            if self.pipeline is not None:
                self.pipeline.close()
        return self.folder.path

    def _go(self) -> None:
        plan, done = self.plan, self.progress.step
        total, size = plan.steps, plan.step_size
        if done >= total:
            if distributed.is_main():
                self._save_encoder()  # it may be missing after the last checkpoint
            if not (self.folder.path / MACHINE).exists():
                self._save_facts()
            log.info(f"{self.folder.path}: all {plan.epochs} epochs are done; nothing to resume")
            return
        self._tell_start(done)
        if done == 0:
            self._find_near()
            self._start_bank()
        self._compile()
        with (
            self._loggers(done) as log_too,
            progress("training", total * size, "pictures", done * size) as advance,
            stop_signal() as stop,
        ):
            hooks = self._hooks(log_too, advance, stop)
            try:
                fit(self.method, self.batches, plan, self.progress, hooks, self.take_step)
            except NonFinite as error:
                told = f"{self._last_good()}; {_cause(error)}; {self._batch(error)}"
                raise JobError(f"{error}; {told}") from error
            except JobError as error:
                raise JobError(f"{error}; {self._last_good()}") from error
            except RuntimeError as error:
                if not str(error).startswith("DataLoader worker"):
                    raise
                told = f"{first_line(error).rstrip('. ')}; {_HELPERS}; {self._last_good()}"
                raise JobError(f"augment.pipeline: {told}") from error
            except Interrupted as error:
                how = resume_command(self.folder.path)
                raise Interrupted(f"{error}, saved; go on with: {how}", error.signum) from None
        self._save_facts()
        log.info(f"done: {self.folder.path / 'encoder.safetensors'}")

    def _save_facts(self) -> None:
        if distributed.is_main():
            facts = machine_facts(self.device, self.progress.seconds)
            facts["pictures"] = len(self.pictures.paths)
            write_text(self.folder.path / MACHINE, json.dumps(facts, indent=1) + "\n")

    def _compile(self) -> None:
        """To be called once the bank is filled, whose last batches may have other sizes."""
        setting = self.recipe.run.compile
        wanted, reason = self.compiling
        log.info(f"{'compiling network and loss' if wanted else 'not compiling'} ({reason})")
        if wanted:
            self.method.compute_by(*compiled(self.network, self.method.losses, setting))
        if self.recording:
            log.info("steps are replayed as CUDA graphs")
            self.take_step = RecordedStep(self.method, self.optimizer, self.plan)
            if self.augment is not None:
                self.augment.compute_by(recorded_views)

    def _loggers(self, done: int) -> AbstractContextManager[Log]:
        names = self.recipe.run.loggers if distributed.is_main() else []
        return open_loggers(names, self.folder.path, self.recipe.to_yaml(), done)

    def _hooks(self, log_too: Log, advance: Advance, stop: Callable[[], int | None]) -> Hooks:
        if not distributed.is_main():
            return Hooks(_nothing, _nothing, _nothing, dict, advance, stop)

        def log_step(line: dict[str, Any]) -> None:
            self.folder.log_metrics(line)
            log_too(line)

        return Hooks(
            log_step=log_step,
            log_epoch=self._log_epoch,
            save=self._save,
            watch=self._watch,
            advance=advance,
            stop_signal=stop,
        )

    def _find_near(self) -> None:
        near, section = self.method.near, self.recipe.loss
        if near is None:
            return
        pictures, encoder, count = self.pictures.array, self.method.encoder, near.shape[1]
        if section.near_by == "start":
            log.info(f"finding {count} near pictures of each by features from the starting weights")
            found = near_by_start(pictures, encoder, count, self.recipe.encoder.levels)
        else:
            log.info(f"finding {count} near pictures of each by their descriptors")
            found = near_by_descriptors(pictures, encoder, count)
        near.copy_(found)
        distributed.as_on_main(near)  # unlike processors may round to other neighbours

    def _start_bank(self) -> None:
        if self.recipe.bank.start == "random":
            self.method.bank.fill_random(generator_for(self.plan.seed, 0, stream=3))
            return
        count, batch = len(self.pictures.paths), self.plan.batch_size
        order = torch.tensor_split(torch.arange(count), steps_in_epoch(count, batch))
        with progress("bank", count) as advance:

            def whole() -> Iterator[tuple[Tensor, Tensor]]:
                for index, pictures in self.resident.batches(order, distributed.share):
                    yield index, to_unit(pictures)
                    advance(len(index))

            start_bank(self.method, whole(), self.plan.frozen_batch_norm)

    def _batches(self) -> Batches:
        if self.recipe.augment.pipeline is not None:
            return self._pipeline_batches()
        # Not by way of self, which would keep all of a finished run until garbage is collected.
        resident, seed = self.resident, self.recipe.run.seed
        # In the network's dtype, or a GPU would hold the views twice.
        dtype = torch.bfloat16 if self.plan.bf16 else torch.float32
        augment = self.augment = augment_from(self.recipe, dtype)

        def batches(order: Tensor, step: int) -> Iterator[tuple[Tensor, Tensor]]:
            raws = resident.batches(order, distributed.share)
            for position, (index, raw) in enumerate(raws):
                generator = generator_for(seed, step + position, stream=1)
                views = augment(raw, generator, distributed.share(len(index)), len(index))
                yield index, views.contiguous(memory_format=torch.channels_last)

        return batches

    def _pipeline_batches(self) -> Batches:
        section, seed = self.recipe.augment, self.recipe.run.seed
        pipeline = load_pipeline(section.pipeline or {})
        # Not a closure, since spawned processes need to unpickle it.
        apply = partial(apply_pipeline, pipeline, view_size=section.view_size)
        apply(self.pictures.array[:1], [0])  # so that errors are not raised in a worker
        beside = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # each has workers of its own
        workers = self.recipe.run.workers or max(1, worker_count(0) // beside)
        count = min(workers, self.plan.steps_per_epoch)
        made = self.pipeline = PipelineBatches(self.pictures.array, apply, count)
        device = self.device

        def batches(order: Tensor, step: int) -> Iterator[tuple[Tensor, Tensor]]:
            seeds = torch.stack(
                [
                    torch.randint(2**31, index.shape, generator=generator_for(seed, number, 1))
                    for number, index in enumerate(order, step)
                ]
            )
            own = distributed.share(order.shape[1])
            batches_made = made(order[:, own], seeds[:, own])
            for index, (_, views) in zip(order.to(device), batches_made, strict=True):
                views = views.to(device).contiguous(memory_format=torch.channels_last)
                yield index, views

        return batches

    def _watch(self) -> dict[str, float]:
        values = watch(
            lambda rows: self._embed(self.pictures.array[rows]),
            self._bank_rows,
            len(self.pictures.paths),
            self.labels,
            None if self.augment is None else self._embed_views,
        )
        warning = collapse_warning(values)
        if warning:
            log.warning(warning)
        return values

    def _bank_rows(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        bank = self.method.bank.rows
        chosen = bank[torch.from_numpy(rows).to(bank.device)]
        found: NDArray[np.float32] = chosen.float().cpu().numpy()
        return found

    def _embed(self, pictures: NDArray[Any]) -> NDArray[np.float32]:
        return embed_pictures(self.method.encoder, pictures, device=self.device, finite=False)

    def _embed_views(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        augment = augment_from(self.recipe)  # the run's own may be recorded for its batches
        first, second = two_views(self.pictures.array, augment, self.recipe.run.seed)
        return self._embed(first), self._embed(second)

    def _log_epoch(self, row: dict[str, Any]) -> None:
        self.folder.log_epoch(row, RESULT_COLUMNS)

    def _save(self, progress: Progress) -> None:
        state = {
            "tinyssl": __version__,
            "recipe": self.recipe.to_yaml(),
            "digest": self.pictures.digest,
            "progress": vars(progress),
            "method": self.method.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "start": self.start,
            "rng": torch.get_rng_state(),
        }
        save_checkpoint(self.folder.checkpoint, state)
        self._save_encoder()

    def _save_encoder(self) -> None:
        """Saves the current encoder; all levels, whose statistics take time, only at the end."""
        encoder, wanted = self._blended(), self.recipe.encoder
        finished = self.progress.step >= self.plan.steps
        if finished:
            encoder = widen_like(encoder, wanted.model_dump(), self.pictures.array)
            if encoder.components < wanted.components:
                kept = f"{encoder.components} components" if encoder.components else "all"
                log.info(
                    f"features: {kept} instead of encoder.components={wanted.components}; so few "
                    "pictures have no more, or none worth having"
                )
        save_encoder(
            encoder,
            self.folder.path,
            image_size=self.recipe.data.image_size,
            resize=self.recipe.data.resize,
            extra={
                "init": wanted.init,
                "weights": timm_weights(wanted.name) if wanted.init == "pretrained" else None,
                "whitening": wanted.whitening,
                "whiten_by": wanted.whiten_by,
                "seed": self.recipe.run.seed,
                "dtype": self.pictures.array.dtype.name,
                "max_pixels": self.recipe.data.max_pixels,
                "finished": finished,
            },
        )

    def _blended(self) -> Encoder:
        """The encoder, or its blend with the starting weights if the recipe asks for one."""
        encoder, share = self.method.encoder, self.recipe.encoder.blend
        if share == 1:
            return encoder
        blended = create_encoder(encoder.name, channels=encoder.channels, stem=encoder.stem)
        end = {key: value.cpu() for key, value in encoder.state_dict().items()}
        mixed = {
            key: torch.lerp(self.start[key], value, share) if value.is_floating_point() else value
            for key, value in end.items()
        }
        blended.load_state_dict(mixed)
        return blended

    def _restore(self, state: dict[str, Any]) -> None:
        if state.get("digest") != self.pictures.digest:
            now, then = len(self.pictures.paths), _pictures_of(state)
            counts = f"{then:,} then, {now:,} now" if then != now else "as many, but others"
            raise UsageError(
                f"the pictures at {a_few(self.recipe.data.sources)} are not those that "
                f"{self.folder.path} was started with ({counts}); put them back, or start a new run"
            )
        try:
            self.progress = restore(state, self.method, self.optimizer, self.plan.steps)
        except ValueError as error:
            raise UsageError(
                f"{self.folder.checkpoint} is damaged or of another run ({error}); begin again "
                "with --overwrite, or put a copy of it back"
            ) from None
        self.start = state["start"]
        epochs = self.progress.step // self.plan.steps_per_epoch
        if distributed.is_main():
            self.folder.forget_after(self.progress.step, epochs, RESULT_COLUMNS)

    def _tell_start(self, done: int) -> None:
        plan, encoder = self.plan, self.method.encoder
        words = "resuming" if done else "training"
        scored = "all rows" if plan.negatives is None else f"{plan.negatives:,} sampled rows"
        bank = self.method.bank.rows
        scored += f" ({bank.nbytes / 2**20:,.0f} MiB {self.recipe.bank.dtype} on {bank.device})"
        log.info(
            f"{words} {encoder.name} ({_millions(encoder)}) from {self.recipe.encoder.init} on "
            f"{plan.pictures:,} pictures, {plan.epochs} epochs of {plan.steps_per_epoch} steps, "
            f"{'bf16' if plan.bf16 else 'fp32'} on {self.device}, bank: {scored}"
        )
        if distributed.world_size() > 1:
            log.info(
                f"{distributed.world_size()} processes share each batch of {plan.step_size}; "
                f"batch norm: {self.recipe.encoder.batch_norm}"
            )
        views, size = self.recipe.augment.view_size, self.recipe.data.image_size
        if views > size:
            log.warning(
                f"augment.view_size={views} is above data.image_size={size}: views are blown up; "
                f"give augment.view_size={size} or less"
            )
        log.info(self.resident.told)
        log.info(f"tinyssl {__version__}, torch {torch.__version__}, {platform.platform()}")

    def _last_good(self) -> str:
        if self.folder.checkpoint.exists():
            return f"the last good checkpoint is {self.folder.checkpoint}"
        return "no checkpoint was written before it"

    def _batch(self, error: NonFinite) -> str:
        names = [self.pictures.paths[number] for number in error.index]
        log.debug(f"the batch that failed: {', '.join(names)}")  # all of it in train.log
        return f"the batch is {a_few(names)}{' in train.log' if len(names) > 3 else ''}"


def _pictures_of(state: Mapping[str, Any]) -> int:
    """Number of pictures of a checkpoint's run, the rows of its bank; 0 if damaged."""
    method = state.get("method")
    rows = method.get("bank.rows") if isinstance(method, dict) else None
    return len(rows) if isinstance(rows, Tensor) and rows.ndim else 0


def _cause(error: NonFinite) -> str:
    if error.step > 1:
        return "lower optim.base_lr"
    return "no weight had changed yet: raise loss.temperature, or look at encoder.init"


def _nothing(value: object) -> None:
    """In place of what only the main process writes."""


def to_unit(pictures: Tensor) -> Tensor:
    """(b, h, w, c) integers to (b, c, h, w) floats in [0, 1]."""
    scale = torch.iinfo(pictures.dtype).max
    return pictures.permute(0, 3, 1, 2).float() / scale


def _watch_labels(
    path: str | None, pictures: Pictures, *, resumed: bool
) -> NDArray[np.int64] | None:
    """Class numbers in the order of the pictures; -1 where the file has no label."""
    if path is None:
        return None
    if resumed and not Path(path).exists():  # they are not trained on
        log.warning(f"run.watch_labels {path} is gone: going on without k-NN accuracy")
        return None
    table = labels.from_csv(path)
    names = {name: number for number, name in enumerate(sorted(set(table.labels)))}
    by_path = {str(p): names[name] for p, name in zip(table.paths, table.labels, strict=True)}
    found = np.array([by_path.get(p, -1) for p in pictures.paths])
    if len(set(found[found >= 0])) < 2:
        raise UsageError(f"run.watch_labels {path} labels fewer than 2 classes of these pictures")
    return found


def _millions(module: torch.nn.Module) -> str:
    return f"{sum(p.numel() for p in module.parameters()) / 1e6:.1f} M weights"
