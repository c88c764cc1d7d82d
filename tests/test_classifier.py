"""The classifier's file: what is written is read, and what does not fit is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.making import untrained_run
from tinyssl.classifier import Classifier, load_classifier, save_classifier
from tinyssl.errors import UsageError


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return untrained_run(tmp_path, "mobilenetv3-small", classes=["a", "b", "c"])


def some() -> Classifier:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(3, 1024, generator=generator) / 32
    return Classifier(weight, torch.tensor([0.1, 0, -0.1]), torch.tensor(2.0), ["a", "b", "c"])


def test_round_trip(run: Path) -> None:
    save_classifier(some(), run)
    tensors = load_file(run / "classifier.safetensors")
    assert {key: (tuple(t.shape), t.dtype) for key, t in tensors.items()} == {
        "weight": ((3, 1024), torch.float32),
        "bias": ((3,), torch.float32),
        "temperature": ((), torch.float32),
    }
    found = load_classifier(run)
    assert found is not None
    assert found.classes == ["a", "b", "c"]
    assert torch.equal(found.weight, some().weight)
    assert float(found.temperature) == 2


def test_probabilities_are_softmax_over_the_temperature() -> None:
    features = np.random.default_rng(0).normal(size=(5, 1024)).astype(np.float32)
    classifier = some()
    logits = (features @ classifier.weight.numpy().T + classifier.bias.numpy()) / 2
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert classifier.probabilities(torch.from_numpy(features)).numpy() == pytest.approx(
        expected, abs=1e-5
    )


def test_a_run_without_one_has_none(run: Path) -> None:
    assert load_classifier(run) is None


@pytest.mark.parametrize("case", ["no run", "damaged", "width", "classes", "names"])
def test_what_does_not_fit_is_refused(case: str, run: Path) -> None:
    save_classifier(some(), run)
    path, description = run / "classifier.safetensors", run / "encoder.json"
    told = "wanted is"
    if case == "no run":
        description.unlink()
        told = "no encoder in"
    elif case == "damaged":
        path.write_bytes(path.read_bytes()[:50])
        told = "not a safetensors file"
    elif case == "width":
        save_file(load_file(path) | {"weight": torch.zeros(3, 9)}, path)
    else:
        content = json.loads(description.read_text())
        content["classes"] = ["a", "b"] if case == "classes" else None
        description.write_text(json.dumps(content))
        told = "wanted is" if case == "classes" else "classes is 'None'"
    with pytest.raises(UsageError, match=told):
        load_classifier(run)
