"""Builds the training of a network from a fine-tuning recipe."""

from __future__ import annotations

import torch

from tinyssl.approaches import Linear, Network
from tinyssl.build import augment_of
from tinyssl.finetune_config import FinetuneRecipe
from tinyssl.labeled import Labeled
from tinyssl.tuning import Course


def build_network(
    recipe: FinetuneRecipe,
    linear: Linear,
    labeled: Labeled,
    image_size: int,
    device: torch.device,
) -> Network:
    """Training of the whole network by a recipe, starting at a linear fit on the same pictures."""
    section = recipe.network
    kept = section.model_dump(exclude={"views", "fold_views", "batch_norm"})
    frozen = section.batch_norm == "frozen"
    return Network(
        linear,
        labeled,
        augment_of(recipe.augment, image_size),
        Course(frozen_batch_norm=frozen, seed=recipe.run.seed, **kept),
        fold_views=section.fold_views,
        views=section.views,
        device=device,
    )
