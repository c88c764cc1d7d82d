"""The schema of fine-tuning recipes, which are read like those of pretraining."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from tinyssl.config import (
    Count,
    NotNegative,
    Pair,
    Positive,
    Probability,
    Section,
    Views,
    recipe_values,
    validate,
)
from tinyssl.errors import UsageError

FOR_AUTO = ("few-label-linear", "few-label-semi", "few-label")  # the cheapest first


class Data(Section):
    """The list of labeled pictures; filled in when a run is made."""

    sources: list[str] = Field([], description="the run's own labels.csv")
    cache_dir: str | None = Field(None, description="null: the user's cache folder")


class Classifier(Section):
    """The linear classifier, and how it is evaluated."""

    method: Literal["linear", "network", "semi"] = Field("linear", description="what is trained")
    strength: Literal["auto"] | Positive = Field(
        "auto", description="C of the logistic fit; auto: chosen on folds"
    )
    folds: Annotated[int, Field(ge=2, le=20)] = Field(
        5, description="parts of the labels; fewer where a class has fewer pictures"
    )
    repeats: Literal["auto"] | Count = Field(
        "auto", description="times the folds are drawn anew; auto: more for few labels"
    )


class Network(Section):
    """Training of the whole network, for `method: network`."""

    views: Count = Field(8000, description="augmented views of the final training")
    fold_views: Count = Field(1500, description="of the training on each fold")
    batch_size: Annotated[int, Field(ge=2)] = 32
    lr: Positive = Field(1e-3, description="AdamW's, of the encoder's last layer")
    head_lr: Probability = Field(0.1, description="of the classifier, as a share of lr")
    layer_decay: Annotated[float, Field(gt=0, le=1)] = Field(
        0.7, description="rate of each layer over that of the next"
    )
    weight_decay: NotNegative = 0.05
    smoothing: Annotated[float, Field(ge=0, lt=1)] = Field(0.1, description="of the labels")
    average: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.2, description="share of the training that the mean of the weights spans"
    )
    batch_norm: Literal["frozen", "train"] = Field(
        "frozen", description="train: statistics of the small batches"
    )


class Augment(Views):
    """What the network sees of a picture, at the encoder's image size."""

    crop_scale: Pair = Field([0.5, 1.0], description="share of the area that a crop keeps")


class Unlabeled(Section):
    """Spreading of labels to pictures without one, for `method: semi`."""

    pictures: Annotated[int, Field(ge=1)] = Field(4000, description="at most; drawn if more")
    neighbours: Count = Field(10, description="of each picture in the graph")
    alpha: Annotated[float, Field(gt=0, lt=1)] = Field(0.9, description="how far labels travel")
    weight: Positive = Field(1.0, description="of all spread labels over all given ones")


class Run(Section):
    """Device, threads and seed."""

    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    workers: Annotated[int, Field(ge=0)] = Field(0, description="threads; 0: one a CPU core")


class FinetuneRecipe(Section):
    """A whole recipe for fine-tuning; every section has defaults."""

    task: Literal["finetune"] = "finetune"
    data: Data = Data()
    classifier: Classifier = Classifier()
    network: Network = Network()
    augment: Augment = Augment()
    unlabeled: Unlabeled = Unlabeled()
    run: Run = Run()


def load_finetune_recipe(recipe: str | Path, overrides: Sequence[str] = ()) -> FinetuneRecipe:
    """Reads a fine-tuning recipe by name or path and applies `section.key=value` overrides.

    Raises:
        UsageError: not a recipe, one for pretraining, an unknown or repeated key, or a value of
            the wrong type.
    """
    values = recipe_values(recipe, overrides)
    if "task" not in values:
        raise UsageError(
            f"recipe {recipe} is one for tinyssl pretrain; give auto, {', '.join(FOR_AUTO)}, or a "
            "file that says task: finetune"
        )
    return validate(FinetuneRecipe, values, str(recipe))
