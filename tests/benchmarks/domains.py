"""What a recipe is worth on labeled picture sets: pretrain without labels, then judge.

    python -m tests.benchmarks.domains elpv --seeds 0 1 2 --out tests/benchmarks/results/elpv.json
    python -m tests.benchmarks.domains sets/xsdd --recipe adapt --out xsdd-adapt.json \
        encoder.init=weights.safetensors

A set is `elpv` (the demo) or a folder with train/CLASS/ and test/CLASS/. Pretraining sees the
training pictures only. Settings were chosen on training folds; the test rows only give the figures.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks.machine import machine
from tinyssl import evaluate, pretrain
from tinyssl.config import load_recipe
from tinyssl.console import print_result
from tinyssl.demo import demo
from tinyssl.evaluation import SHOTS, table


def judge(data: str, recipe: str, seed: int, settings: Sequence[str], out: Path) -> dict[str, Any]:
    """One run: pretraining and judgement, with the seconds that both took."""
    start = time.monotonic()
    if data == "elpv":
        result = demo(adapt=recipe == "adapt", seed=seed, out=out)
    else:
        overrides = [f"run.seed={seed}", *settings]
        run = pretrain(Path(data) / "train", recipe, out, overrides=overrides)
        result = evaluate(run, train=Path(data) / "train", test=Path(data) / "test", seed=seed)
        print_result(table(result))
    seconds = round(time.monotonic() - start, 1)
    result.pop("run"), result.pop("split")  # folders of the machine that measured
    return {"seed": seed, "seconds": seconds, "recipe": _recipe(out)} | result


def _recipe(run: Path) -> dict[str, Any]:
    """The run's settled recipe without the folders of the machine that measured."""
    values = load_recipe(run).model_dump()
    values["data"] |= {"sources": [], "holdout": None, "cache_dir": None}
    values["encoder"]["init"] = Path(values["encoder"]["init"]).name
    return values


def means(runs: Sequence[dict[str, Any]]) -> dict[str, dict[str, list[float]]]:
    """Mean and standard deviation over the runs, balanced accuracy in %, by encoder and score."""
    summary: dict[str, dict[str, list[float]]] = {}
    for name in runs[0]["encoders"]:
        scores: dict[str, list[float]] = {"knn": [], "linear": []}
        scores |= {f"{s}-shot": [] for s in SHOTS}
        for run in runs:
            found = run["encoders"][name]
            for key in ("knn", "linear"):
                scores[key].append(found[key]["balanced_accuracy"])
            for s in SHOTS:
                scores[f"{s}-shot"].append(found["few_shot"][str(s)]["mean"])
        summary[name] = {
            key: [round(100 * float(np.mean(v)), 2), round(100 * float(np.std(v)), 2)]
            for key, v in scores.items()
        }
    return summary


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", help="elpv, or a folder with train/ and test/ class folders")
    parser.add_argument("settings", nargs="*", help="section.key=value")
    parser.add_argument("--recipe", default="mobilenetv3-small")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    given = parser.parse_intermixed_args()
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in given.seeds:
            out = Path(folder) / f"seed-{seed}"
            runs.append(judge(given.data, given.recipe, seed, given.settings, out))
            summary = means(runs)
            result = {"machine": machine(), "set": Path(given.data).name, "means": summary}
            given.out.write_text(json.dumps(result | {"runs": runs}, indent=1) + "\n")
    for name, scores in summary.items():
        print(name, {key: f"{mean} ± {std}" for key, (mean, std) in scores.items()})


if __name__ == "__main__":
    main()
