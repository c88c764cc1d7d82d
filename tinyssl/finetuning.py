"""`tinyssl finetune`: from few labels to a run folder with an encoder and a classifier."""

from __future__ import annotations

import json
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.table import Table

from tinyssl import __version__
from tinyssl.approach_choice import Judged, choose, judge_logits, leads
from tinyssl.approaches import Approach, Linear, Semi, held_out_logits
from tinyssl.classifier import Classifier, save_classifier
from tinyssl.config import shortcuts
from tinyssl.console import log, progress, score_table
from tinyssl.data import pictures_for
from tinyssl.device import keep_freed_memory, memory_told, torch_put_back, training_device
from tinyssl.encoder import Encoder, embed_pictures
from tinyssl.errors import NothingReadable, UsageError, a_few
from tinyssl.files import as_list, json_text, with_name, write_text
from tinyssl.finetune_build import build_network
from tinyssl.finetune_config import FOR_AUTO, FinetuneRecipe, load_finetune_recipe
from tinyssl.folds import Fold, held_out, repeats_for, stratified_folds
from tinyssl.intervals import half_of_shares
from tinyssl.labeled import RESULT, pretrained, read_labeled, shaped_by
from tinyssl.own_pictures import own_pictures
from tinyssl.probing import FALLBACK_STRENGTH, choose_strength
from tinyssl.run_folder import LABELS, RunFolder
from tinyssl.scanning import scan
from tinyssl.signals import unwound_by_term
from tinyssl.weights import load_encoder, save_encoder


def finetune(
    run: str | Path,
    labels: str | Path,
    recipe: str | Path = "auto",
    out: str | Path | None = None,
    *,
    unlabeled: str | Path | Sequence[str | Path] | None = None,
    overrides: Sequence[str] = (),
    overwrite: bool = False,
    **settings: object,
) -> Path:
    """Fits a classifier to a run's encoder from few labels, and writes a run folder.

    Args:
        run: a run folder.
        labels: a CSV with the columns path,label, or a folder of class folders.
        recipe: name of a bundled recipe, a YAML file, or `auto`: the bundled one that is best on
            held-out folds of the labels; few-label only if it is clearly best (see `choose`).
        out: the new run folder; the run's name with `-cls` when None.
        unlabeled: further pictures of the domain, for `few-label-semi`; those that the run was
            pretrained on when None.
        overrides: `section.key=value` settings on top of the recipe, one or several.
        overwrite: replace an earlier run in `out`.
        settings: device, workers, seed: short for the overrides `run.device=...` and so on.

    Returns:
        The new run folder.

    Raises:
        UsageError: wrong input; nothing was written.
        JobError: training failed; nothing was written.
        Interrupted: SIGTERM or SIGHUP; nothing was written.
    """
    target = RunFolder(out if out is not None else f"{with_name(run)}-cls")
    if os.path.realpath(target.path) == os.path.realpath(run):
        raise UsageError(f"--out {target.path} is the run itself; name another folder")
    if overwrite:
        target.refuse_to_lose_labels()
        target.refuse_to_replace()
    else:
        target.refuse_if_used(resumable=False)
    given = [*as_list(overrides), *shortcuts(settings)]
    names = FOR_AUTO if str(recipe) == "auto" else (str(recipe),)
    recipes = {name: load_finetune_recipe(name, given) for name in names}
    if len({recipe.classifier.method for recipe in recipes.values()}) < len(recipes):
        raise UsageError("classifier.method goes with one --recipe; auto compares all of them")
    less = memory_told("lower network.batch_size, or give run.device=cpu")
    with torch_put_back(), less, _workplace(target.path) as folder:
        with unwound_by_term("terminated; nothing was written"):
            job = _Job(run, labels, recipes, None if unlabeled is None else as_list(unlabeled))
            job.finish(folder, target.path)
        with ExitStack() as held:
            target.create(held, overwrite, resumable=False)
            _move(folder, target.path)
    log.info(f"done: {target.path / 'classifier.safetensors'}")
    return target.path


def read_result(run: str | Path) -> dict[str, Any]:
    """The content of a fine-tuned run's `finetune.json`."""
    return dict(json.loads((Path(run) / RESULT).read_text(encoding="utf-8")))


def table(result: dict[str, Any]) -> Table:
    """Held-out scores of `finetune.json` as a table."""
    columns = ("balanced accuracy", "accuracy", "log loss", "temperature")
    shown = score_table("Held-out folds of the labels, %", columns)
    for name, found in result["held_out"].items():
        shown.add_row(
            name,
            f"{100 * found['balanced_accuracy']:.1f}",
            f"{100 * found['accuracy']:.1f}",
            f"{found['log_loss']:.3f}",
            f"{found['temperature']:.2f}",
        )
    shown.caption = f"{result['recipe']}: {result['reason']}."
    if single := _with_one(result["labels"]):
        shown.caption += f" Scores are without {a_few(single)}: a single label."
    return shown


def _with_one(counts: Mapping[str, int]) -> list[str]:
    """Classes with a single label, which is learned from and never held out."""
    return [name for name, count in counts.items() if count == 1]


class _Job:
    """One fine-tuning: reads and checks all input, then fits and writes."""

    def __init__(
        self,
        run: str | Path,
        labels: str | Path,
        recipes: dict[str, FinetuneRecipe],
        unlabeled: list[str | Path] | None,
    ) -> None:
        self.start = time.monotonic()
        keep_freed_memory()
        self.run = Path(run)
        self.recipes = dict(recipes)
        first = next(iter(recipes.values()))
        self.device = training_device(first.run.device)
        self.seed = first.run.seed
        torch.manual_seed(self.seed)
        # Otherwise convolutions on a GPU differ from run to run; those on a CPU never do.
        torch.backends.cudnn.deterministic = True
        encoder, self.description = load_encoder(run)
        self.encoder: Encoder = encoder.to(self.device)
        self.cache = None if first.data.cache_dir is None else Path(first.data.cache_dir)
        self.workers = first.run.workers
        self.labeled = read_labeled(
            labels, self.description, cache_dir=self.cache, workers=self.workers
        )
        self.shaped_by = shaped_by(run)
        self.taught = len(self.shaped_by.intersection(self.labeled.digests))
        self.features = embed_pictures(self.encoder, self.labeled.array, device=self.device)
        self.folds, self.why_no_folds = self._draw_folds(first)
        self.unlabeled, self.why_not_semi = self._read_unlabeled(unlabeled)
        self._tell()

    def finish(self, folder: Path, out: Path) -> None:
        """Evaluates the approaches, fits the chosen one on all labels and writes it to `folder`."""
        approaches = self._approaches()
        judged = self._judge(approaches)
        name, reason = self._choice(approaches, judged)
        log.info(f"recipe: {name} ({reason})")
        if name in judged:
            self._warn_of_chance(judged[name].scores["balanced_accuracy"])
        with progress("fitting", approaches[name].cost[1], "steps") as advance:
            every = np.arange(len(self.labeled.labels))
            fitted = approaches[name].fit(every, advance, final=True)
        temperature = judged[name].temperature if name in judged else 1.0
        if name not in judged:
            log.warning(f"probabilities are not calibrated: {self.why_no_folds}")
        classifier = Classifier(
            torch.from_numpy(fitted.plane.weight),
            torch.from_numpy(fitted.plane.bias),
            torch.tensor(temperature),
            self.labeled.classes,
        )
        self._write(folder, out, name, reason, judged, fitted.encoder, classifier)

    def _read_unlabeled(
        self, given: Sequence[str | Path] | None
    ) -> tuple[NDArray[np.float32] | None, str]:
        """Features of the unlabeled pictures, or the reason for none."""
        self.unlabeled_from = [os.path.abspath(path) for path in given or []]
        semi = [r for r in self.recipes.values() if r.classifier.method == "semi"]
        if not semi or (len(self.recipes) > 1 and not self.folds):
            if given is not None:
                log.warning("--unlabeled is for few-label-semi; the pictures are not used")
            return None, ""
        try:
            paths = own_pictures(pretrained(self.run)) if given is None else scan(given)
            return self._embed_unlabeled(paths, semi[0].unlabeled.pictures)
        except (UsageError, NothingReadable) as error:
            if given is not None:
                raise UsageError(f"--unlabeled: {error}") from None
            if len(self.recipes) == 1:
                raise UsageError(f"no unlabeled pictures: {error}; give --unlabeled DIR") from None
            return None, f"the run's own pictures cannot be found ({error})"

    def _embed_unlabeled(
        self, paths: list[Path], limit: int
    ) -> tuple[NDArray[np.float32] | None, str]:
        if len(paths) > limit:
            drawn = np.random.default_rng(self.seed).permutation(len(paths))[:limit]
            paths = [paths[row] for row in sorted(drawn)]
        with progress("reading", len(paths)) as advance:
            pictures = pictures_for(
                self.description,
                paths,
                cache_dir=self.cache,
                workers=self.workers,
                progress=advance,
            )
        known = set(self.labeled.digests)
        rows = [row for row, digest in enumerate(pictures.hashes) if digest not in known]
        if not rows:
            return None, "every picture of the run has a label"
        with progress("embedding", len(rows)) as advance:
            array = np.asarray(pictures.array[rows])
            found = embed_pictures(self.encoder, array, device=self.device, progress=advance)
        return found, ""

    def _draw_folds(self, recipe: FinetuneRecipe) -> tuple[list[list[Fold]], str]:
        labels, section = self.labeled.labels, recipe.classifier
        counts = np.bincount(labels)
        shared = counts[counts > 1]
        if len(shared) < 2:
            single = _with_one(self.labeled.counts())
            have = "has" if len(single) == 1 else "have"
            return [], f"{a_few(single)} {have} a single label, so that nothing can be held out"
        folds = min(section.folds, int(shared.min()))
        repeats = repeats_for(section.repeats, len(labels))
        return stratified_folds(labels, folds, repeats, self.seed), ""

    def _approaches(self) -> dict[str, Approach]:
        """The approaches of the recipes that can be fitted, in order."""
        auto = len(self.recipes) > 1
        found: dict[str, Approach] = {}
        for name, recipe in self.recipes.items():
            method = recipe.classifier.method
            if auto and method != "linear" and not self.folds:
                continue
            if method == "semi" and self.unlabeled is None:
                if not auto:
                    raise UsageError(f"{self.why_not_semi}; give --unlabeled DIR")
                log.warning(f"{name} is not tried: {self.why_not_semi}")
                continue
            found[name] = self._approach(recipe)
        return found

    def _approach(self, recipe: FinetuneRecipe) -> Approach:
        strength = self._strength(recipe)
        labels = self.labeled.labels
        linear = Linear(self.encoder, self.features, labels, strength)
        if recipe.classifier.method == "linear":
            return linear
        if recipe.classifier.method == "semi":
            section = recipe.unlabeled
            assert self.unlabeled is not None
            return Semi(
                self.encoder,
                self.features,
                labels,
                self.unlabeled,
                strength=strength,
                neighbours=section.neighbours,
                alpha=section.alpha,
                weight=section.weight,
            )
        size = int(self.description["image_size"])
        return build_network(recipe, linear, self.labeled, size, self.device)

    def _strength(self, recipe: FinetuneRecipe) -> float:
        given = recipe.classifier.strength
        return self._chosen_strength if given == "auto" else given

    @cached_property
    def _chosen_strength(self) -> float:
        if not self.folds:
            return FALLBACK_STRENGTH
        return choose_strength(self.features, self.labeled.labels, self.folds)

    def _judge(self, approaches: dict[str, Approach]) -> dict[str, Judged]:
        """Held-out scores of every approach; empty where nothing can be held out."""
        fits = sum(len(parts) for parts in self.folds)
        if not fits:
            return {}
        judged: dict[str, Judged] = {}
        total = fits * sum(approach.cost[0] for approach in approaches.values())
        with progress("judging", total, "steps") as advance:
            for name, approach in approaches.items():
                judged[name] = self._judge_one(name, approach, judged, advance)
        return judged

    def _judge_one(
        self,
        name: str,
        approach: Approach,
        others: Mapping[str, Judged],
        advance: Callable[[int], None],
    ) -> Judged:
        """Uses all draws of the folds, but for a network that does not lead on the first only that.

        The network takes almost all of the time, and has to lead clearly to be chosen.
        """
        labels = self.labeled.labels[held_out(self.folds[0])]
        classes = len(self.labeled.classes)
        logits = held_out_logits(approach, self.folds[:1], classes, advance)
        found, rest = judge_logits(logits, labels), self.folds[1:]
        is_network = self.recipes[name].classifier.method == "network"
        if not rest:
            return found
        if is_network and not leads(found, others.values()):
            advance(approach.cost[0] * sum(len(parts) for parts in rest))
            return found
        more = held_out_logits(approach, rest, classes, advance)
        return judge_logits(np.concatenate([logits, more]), labels)

    def _warn_of_chance(self, accuracy: float) -> None:
        """Warns where the 95 % interval of the held-out pictures reaches what guessing gives."""
        counts = np.bincount(self.labeled.labels[held_out(self.folds[0])])
        counts = counts[counts > 0]
        half, guessed = half_of_shares(accuracy * counts, counts), 1 / len(counts)
        if accuracy - half <= guessed:
            log.warning(
                f"held-out balanced accuracy {100 * accuracy:.1f} ± {100 * half:.1f} % is not "
                f"clearly better than guessing among {len(counts)} classes "
                f"({100 * guessed:.1f} %): label more pictures before predictions are relied on"
            )

    def _choice(
        self, approaches: dict[str, Approach], judged: dict[str, Judged]
    ) -> tuple[str, str]:
        """The chosen recipe and the reason."""
        if len(self.recipes) == 1:
            return next(iter(approaches)), "as asked for"
        if not judged:
            return next(iter(approaches)), self.why_no_folds
        return choose(judged)

    def _write(
        self,
        folder: Path,
        out: Path,
        name: str,
        reason: str,
        judged: dict[str, Judged],
        encoder: Encoder,
        classifier: Classifier,
    ) -> None:
        write_text(folder / LABELS, self.labeled.to_csv())
        write_text(folder / "recipe.yaml", self._settled(name, out).to_yaml())
        save_classifier(classifier, folder)
        save_encoder(
            encoder,
            folder,
            image_size=self.description["image_size"],
            resize=self.description["resize"],
            extra={
                "init": str(self.run.absolute()),
                "seed": self.seed,
                "dtype": self.description["dtype"],
                "max_pixels": self.description["max_pixels"],
                "whitening": self.description["whitening"],
                "whiten_by": self.description["whiten_by"],
                "classes": self.labeled.classes,
            },
        )
        result = {
            "tinyssl": __version__,
            "run": str(self.run),
            "recipe": name,
            "reason": reason,
            "labels": self.labeled.counts(),
            "taught": self.taught,
            "unlabeled_from": self.unlabeled_from,
            "unlabeled": 0 if self.unlabeled is None else len(self.unlabeled),
            "folds": [len(parts) for parts in self.folds],
            "held_out": {key: value.scores for key, value in judged.items()},
            "temperature": float(classifier.temperature),
            "encoder_learned": sorted(self._learned(name)),
            "seconds": round(time.monotonic() - self.start, 1),
            "versions": {"torch": torch.__version__, "python": platform.python_version()},
        }
        write_text(folder / RESULT, json_text(result))

    def _learned(self, name: str) -> set[str]:
        """Digests of all pictures whose labels the encoder was trained on."""
        trained = self.recipes[name].classifier.method == "network"
        return self.shaped_by | (set(self.labeled.digests) if trained else set())

    def _settled(self, name: str, out: Path) -> FinetuneRecipe:
        recipe = self.recipes[name]
        classifier = recipe.classifier.model_copy(update={"strength": self._strength(recipe)})
        data = recipe.data.model_copy(update={"sources": [str(out.absolute() / LABELS)]})
        return recipe.model_copy(update={"classifier": classifier, "data": data})

    def _tell(self) -> None:
        counts = self.labeled.counts()
        low, high = min(counts.values()), max(counts.values())
        spread = f"{low}" if low == high else f"{low} to {high}"
        others = "" if self.unlabeled is None else f", {len(self.unlabeled):,} without a label"
        log.info(
            f"{sum(counts.values()):,} labeled pictures of {len(counts)} classes "
            f"({spread} a class){others}"
        )
        if self.taught:
            log.warning(
                f"{self.taught} of these labels trained the encoder of {self.run} already: "
                "held-out scores and probabilities are too good; fine-tune the pretrained run "
                "instead"
            )
        if self.folds:
            log.info(f"judging on {len(self.folds)} x {len(self.folds[0])} folds of the labels")
            if single := _with_one(counts):
                log.warning(
                    f"a single label of {a_few(single)} can be learned from but not held out: "
                    f"scores are of the other {len(counts) - len(single)} classes"
                )


@contextmanager
def _workplace(out: Path) -> Iterator[Path]:
    """A temporary folder beside `out`, so that `out` is complete or absent."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}-"))
    except OSError as error:
        raise UsageError(f"--out {out} cannot be made: {error.strerror}") from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _move(folder: Path, out: Path) -> None:
    """Moves the encoder's description last: without it a folder is no run to any verb.

    The recipe comes first: it marks a folder that `--overwrite` may replace.
    """
    order = {"recipe.yaml": 0, "encoder.json": 2}
    for path in sorted(folder.iterdir(), key=lambda path: order.get(path.name, 1)):
        path.replace(out / path.name)
