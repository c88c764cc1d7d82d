"""The linear classifier of a fine-tuned run: its files and its probabilities.

k = classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from tinyssl.errors import UsageError
from tinyssl.files import atomic
from tinyssl.weights import DESCRIPTION, read_description, read_safetensors

CLASSIFIER = "classifier.safetensors"


@dataclass(frozen=True)
class Classifier:
    """A linear classifier on the encoder's raw features, not scaled to unit length.

    Attributes:
        weight: (k, width) float32.
        bias: (k,) float32.
        temperature: () float32, above 0; logits are divided by it before the softmax.
        classes: k names.
    """

    weight: Tensor
    bias: Tensor
    temperature: Tensor
    classes: list[str]

    def probabilities(self, features: Tensor) -> Tensor:
        """(n, width) features to (n, k) probabilities."""
        logits = features @ self.weight.T + self.bias
        return torch.softmax(logits / self.temperature, dim=1)


def save_classifier(classifier: Classifier, folder: Path) -> None:
    """Writes `classifier.safetensors`; the class names go into `encoder.json`.

    Raises:
        JobError: the file cannot be written.
    """
    tensors = {
        "weight": classifier.weight.float().cpu().contiguous(),
        "bias": classifier.bias.float().cpu().contiguous(),
        "temperature": classifier.temperature.float().cpu().reshape(()),
    }
    with atomic(folder / CLASSIFIER) as file:
        file.write(save(tensors))


def load_classifier(run: str | Path) -> Classifier | None:
    """The classifier of a run folder on the CPU; None where the run was not fine-tuned.

    Raises:
        UsageError: no encoder there, or the classifier is damaged or does not fit it.
    """
    description = read_description(run)
    path = Path(run) / CLASSIFIER
    if not path.exists():
        return None
    tensors = read_safetensors(path)
    _refuse_misfit(path, tensors, description)
    return Classifier(
        tensors["weight"], tensors["bias"], tensors["temperature"], list(description["classes"])
    )


def _refuse_misfit(path: Path, tensors: dict[str, Tensor], description: dict[str, Any]) -> None:
    classes = description.get("classes")
    if not isinstance(classes, list):
        raise UsageError(f"{path.parent / DESCRIPTION} names no classes for {path.name}")
    count, width = len(classes), int(description["width"])
    wanted = {"weight": (count, width), "bias": (count,), "temperature": ()}
    found = {key: tuple(value.shape) for key, value in tensors.items()}
    if found != wanted:
        raise UsageError(f"{path} holds {found}, wanted is {wanted} for {count} classes")
    whole = all(t.dtype == torch.float32 and t.isfinite().all() for t in tensors.values())
    if not whole or tensors["temperature"] <= 0:
        raise UsageError(f"{path} is damaged: wanted are finite float32 numbers, temperature > 0")
