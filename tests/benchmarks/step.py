"""Speed of the whole pretraining loop relative to the network alone.

    python -m tests.benchmarks.step --out tests/benchmarks/results/step-cpu.json

In one process and in turn: an epoch of the real loop (gather from the cache, augment, forward,
losses, backward, step, bank, bookkeeping) against as many bare steps (forward, backward,
optimizer) of the same encoder and head on one prepared batch, and against as many bare steps with
torch's own convolutions, which a loop without tinyssl would use. Ratios are the loop's pictures/s
divided by the others'.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tests.benchmarks.machine import machine
from tinyssl.build import settle
from tinyssl.config import load_recipe
from tinyssl.data import Pictures
from tinyssl.recording import Recorded, RecordedStep
from tinyssl.run import Run
from tinyssl.run_folder import RunFolder
from tinyssl.small_maps import SmallMapConv2d
from tinyssl.train import Hooks, Progress, fit


def make_run(
    recipe_name: str, pictures: int, channels: int, folder: Path, device: str,
    settings: Sequence[str] = (),
) -> Run:  # fmt: skip
    recipe = load_recipe(recipe_name, ["run.epochs=1", "encoder.init=random", *settings])
    recipe = settle(recipe, pictures, channels)
    recipe.run.device = device
    side = recipe.data.image_size
    shape = (pictures, side, side, channels)
    array = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    names = [str(i) for i in range(pictures)]
    return Run(recipe, Pictures(array, names, names, [], "", folder), RunFolder(folder), None)


def cached_size(view_size: int) -> int:
    """Pixels a side of cached pictures for a view size: the recipes', or a seventh more."""
    return max(128, view_size * 8 // 7)


def loop_epoch(run: Run) -> float:
    """Seconds of one epoch of the real loop."""
    quiet = Hooks(
        log_step=lambda values: None,
        log_epoch=lambda row: None,
        save=lambda progress: None,
        watch=lambda: {},
        advance=lambda count: None,
        stop_signal=lambda: None,
    )
    start = time.perf_counter()
    fit(run.method, run.batches, run.plan, Progress(), quiet, run.take_step)
    _wait(run)
    return time.perf_counter() - start


def bare_step(run: Run) -> Callable[[Tensor], Any]:
    """Forward, backward and optimizer of the network alone, recorded if the run's steps are."""

    def step(views: Tensor) -> tuple[Tensor, ...]:
        with torch.autocast(views.device.type, torch.bfloat16, enabled=run.plan.bf16):
            out = run.method.network(views)
        out.float().square().mean().backward()
        run.optimizer.step()
        run.optimizer.zero_grad(set_to_none=True)
        return ()

    return Recorded(step) if isinstance(run.take_step, RecordedStep) else step


def bare_steps(run: Run, step: Callable[[Tensor], Any], views: Tensor) -> float:
    """Seconds of as many bare steps as an epoch has."""
    run.method.train()
    start = time.perf_counter()
    for _ in range(run.plan.steps_per_epoch):
        step(views)
    _wait(run)
    return time.perf_counter() - start


@contextmanager
def torchs_convolutions(network: nn.Module) -> Iterator[None]:
    """Disables `tinyssl.small_maps` in a network for the duration of the context."""
    quick = [module for module in network.modules() if type(module) is SmallMapConv2d]
    for module in quick:
        module.__class__ = nn.Conv2d
    try:
        yield
    finally:
        for module in quick:
            module.__class__ = SmallMapConv2d


def _wait(run: Run) -> None:
    if run.device.type == "cuda":
        torch.cuda.synchronize(run.device)


def measure(
    recipe: str, pictures: int, channels: int, rounds: int, device: str,
    settings: Sequence[str] = (),
) -> dict[str, Any]:  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        run = make_run(recipe, pictures, channels, Path(folder), device, settings)
        run._compile()  # only where run.compile asks for it
        order = torch.arange(run.plan.step_size).unsqueeze(0)
        views = next(iter(run.batches(order, 0)))[1].clone()
        bare = bare_step(run)

        def round_of() -> tuple[float, float, float]:
            loop, same = loop_epoch(run), bare_steps(run, bare, views)
            with torchs_convolutions(run.method.encoder):
                return loop, same, bare_steps(run, bare, views)

        for _ in range(3):  # compiles, records
            round_of()
        found = [round_of() for _ in range(rounds)]
    count = run.plan.steps_per_epoch * run.plan.step_size
    loops, bares, plains = (
        [count / seconds for seconds in part] for part in zip(*found, strict=True)
    )
    return {
        "recipe": recipe,
        "channels": channels,
        "batch": run.plan.step_size,
        "view_size": run.recipe.augment.view_size,
        "device": str(run.device),
        "bf16": run.plan.bf16,
        "compile": run.recipe.run.compile,
        "loop_pictures_per_s": loops,
        "bare_pictures_per_s": bares,
        "bare_of_torch_pictures_per_s": plains,
        **_ratios("ratio", loops, bares),
        **_ratios("ratio_to_torch", loops, plains),
        "n": rounds,
    }


def _ratios(name: str, loops: list[float], others: list[float]) -> dict[str, float]:
    found = [loop / other for loop, other in zip(loops, others, strict=True)]
    return {
        f"{name}_median": statistics.median(found),
        f"{name}_min": min(found),
        f"{name}_max": max(found),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--recipes", default="mobilenetv3-small,resnet18,adapt")
    parser.add_argument("--pictures", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="auto")
    given = parser.parse_args()
    results = []
    for recipe in given.recipes.split(","):
        for channels in (1, 3):
            found = measure(recipe, given.pictures, channels, given.rounds, given.device)
            results.append(found)
            print(
                f"{recipe}, {channels} channels: {found['ratio_median']:.3f} "
                f"({found['ratio_min']:.3f} to {found['ratio_max']:.3f}, n = {found['n']})",
                flush=True,
            )
    given.out.write_text(json.dumps({"machine": machine(), "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
