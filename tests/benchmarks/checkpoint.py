"""Scores of a timm checkpoint as it is: its last features, pictures as timm's own transform.

    python -m tests.benchmarks.checkpoint sets/xsdd --weights weights.safetensors --seeds 0 1 2 \
        --out tests/benchmarks/results/checkpoint-xsdd.json

A set is a folder with train/CLASS/ and test/CLASS/. Features and pictures are those of timm's
documentation (no classifier, the transform of the model's own configuration), once at the
checkpoint's own size and once at each of --sizes; judged by what `tinyssl eval` judges with.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from tests.benchmarks.domains import means
from tests.benchmarks.machine import machine
from tinyssl.evaluation import SHOTS
from tinyssl.labeled_split import LabeledSplit, read_split
from tinyssl.scoring import evaluate_features

_BATCH = 8


def load_checkpoint(name: str, weights: Path) -> nn.Module:
    """timm's model without classifier, in evaluation mode."""
    model = timm.create_model(name)
    model.load_state_dict(load_file(weights))
    model.reset_classifier(0)  # type: ignore[operator]
    return model.eval()


@torch.inference_mode()
def features_of(model: nn.Module, paths: Sequence[Path], size: int | None) -> NDArray[np.float32]:
    """(n, d) features of picture files; at the checkpoint's own size when `size` is None."""
    config = timm.data.resolve_model_data_config(model)
    if size is not None:
        config["input_size"] = (3, size, size)
    transform: Any = timm.data.create_transform(**config, is_training=False)
    found = []
    for start in range(0, len(paths), _BATCH):
        read = [transform(Image.open(p).convert("RGB")) for p in paths[start : start + _BATCH]]
        found.append(model(torch.stack(read)).numpy())
    return np.concatenate(found)


def judge(features: NDArray[np.float32], split: LabeledSplit, seed: int) -> dict[str, Any]:
    """The scores of `tinyssl eval` with a seed."""
    train, test = ~split.test, split.test
    return evaluate_features(
        features[train], split.labels[train], features[test], split.labels[test],
        classes=len(split.classes), shots=SHOTS, seed=seed,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("set", type=Path, help="a folder with train/ and test/ class folders")
    parser.add_argument("--name", default="tf_efficientnet_lite0", help="of the model in timm")
    parser.add_argument("--weights", type=Path, required=True, help="safetensors, timm's names")
    parser.add_argument("--sizes", type=int, nargs="*", default=[192], help="beside its own")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    given = parser.parse_args()
    split, _ = read_split(given.set / "train", given.set / "test", None, 0)
    model = load_checkpoint(given.name, given.weights)
    features = {
        "own size" if size is None else f"{size} pixels": features_of(model, split.paths, size)
        for size in (None, *given.sizes)
    }
    runs = [
        {
            "seed": seed,
            "encoders": {name: judge(made, split, seed) for name, made in features.items()},
        }
        for seed in given.seeds
    ]
    summary = means(runs)
    result = {"machine": machine(), "name": given.name, "set": given.set.name, "means": summary}
    given.out.write_text(json.dumps(result | {"runs": runs}, indent=1) + "\n")
    for name, scores in summary.items():
        print(given.set.name, name, {key: one["mean"] for key, one in scores.items()})


if __name__ == "__main__":
    main()
