"""Scores of a recipe on labeled picture sets: pretrain without labels, then evaluate.

    python -m tests.benchmarks.domains elpv --seeds 0 1 2 --out tests/benchmarks/results/elpv.json
    python -m tests.benchmarks.domains sets/xsdd --recipe adapt --out xsdd-adapt.json \
        encoder.init=weights.safetensors

A set is `elpv` (the demo) or a folder with train/CLASS/ and test/CLASS/. Pretraining sees the
training pictures only. Settings were chosen on training folds; test pictures are used for the
figures alone. The demo takes no settings.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks.machine import machine
from tinyssl import evaluate, pretrain
from tinyssl.config import load_recipe
from tinyssl.console import print_result
from tinyssl.demo import demo
from tinyssl.evaluation import SHOTS, table
from tinyssl.intervals import interval


def judge(data: str, recipe: str, seed: int, settings: Sequence[str], out: Path) -> dict[str, Any]:
    """One run: pretraining and evaluation, with the seconds of both together."""
    start = time.monotonic()
    if data == "elpv":
        result = demo(adapt=recipe == "adapt", seed=seed, out=out)
    else:
        overrides = [f"run.seed={seed}", *settings]
        run = pretrain(Path(data) / "train", recipe, out, overrides=overrides)
        result = evaluate(run, train=Path(data) / "train", test=Path(data) / "test", seed=seed)
        print_result(table(result))
    seconds = round(time.monotonic() - start, 1)
    result.pop("run"), result.pop("split")  # folders of this machine
    return {"seed": seed, "seconds": seconds, "recipe": _recipe(out)} | result


def _recipe(run: Path) -> dict[str, Any]:
    """The run's final recipe without the folders of this machine."""
    values = load_recipe(run).model_dump()
    values["data"] |= {"sources": [], "holdout": None, "cache_dir": None}
    values["encoder"]["init"] = Path(values["encoder"]["init"]).name
    return values


def means(runs: Sequence[dict[str, Any]]) -> dict[str, dict[str, dict[str, float | None]]]:
    """Mean balanced accuracy of the runs and its 95 % half-width in %, by encoder and score.

    A single run has no half-width, None.
    """
    summary = {}
    for name in runs[0]["encoders"]:
        found = [run["encoders"][name] for run in runs]
        scores = {key: [f[key]["balanced_accuracy"] for f in found] for key in ("knn", "linear")}
        scores |= {f"{s}-shot": [f["few_shot"][str(s)]["mean"] for f in found] for s in SHOTS}
        summary[name] = {
            key: {
                "mean": round(100 * one.mean, 2),
                "half_width": round(100 * one.half_width, 2) if len(runs) > 1 else None,
            }
            for key, one in ((key, interval(values)) for key, values in scores.items())
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
    if given.data == "elpv" and (
        given.settings or given.recipe not in ("mobilenetv3-small", "adapt")
    ):
        parser.error("elpv is the demo, mobilenetv3-small or adapt as they are: give a folder")
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in given.seeds:
            out = Path(folder) / f"seed-{seed}"
            runs.append(judge(given.data, given.recipe, seed, given.settings, out))
            summary = means(runs)
            result = {"machine": machine(), "set": Path(given.data).name, "means": summary}
            given.out.write_text(json.dumps(result | {"runs": runs}, indent=1) + "\n")
    for name, scores in summary.items():
        told = {key: f"{one['mean']} ± {one['half_width']}" for key, one in scores.items()}
        print(name, told)


if __name__ == "__main__":
    main()
