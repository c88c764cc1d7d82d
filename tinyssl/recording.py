"""CUDA graphs: one launch in place of hundreds.

A step of a small network is some 700 kernels of microseconds each, which take longer to launch than
to run. Recorded once, they are replayed by a single call (NVIDIA, "CUDA Graphs").
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from tinyssl.augment import MakeViews
from tinyssl.bank import Candidates
from tinyssl.console import log
from tinyssl.errors import first_line
from tinyssl.method import Method, Mix
from tinyssl.train import Plan, draw_for_step, optimize, set_rate

# Calls before recording, in which libraries choose kernels and the optimizer makes its state.
WARM_UP = 3
Compute = Callable[..., tuple[Tensor, ...]]


class Recorded:
    """A function of tensors on one GPU, run normally at first and then replayed.

    Results are overwritten by the next replay. The function runs normally for inputs of other
    shapes than the recorded ones, and if it cannot be recorded.

    Args:
        compute: takes tensors and returns a tuple of them; never synchronizes with the GPU.
    """

    def __init__(self, compute: Compute) -> None:
        self.compute = compute
        self.calls = 0
        self.given: tuple[Tensor, ...] = ()
        self.made: tuple[Tensor, ...] = ()
        self.graph: Any = None
        self.stream: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]

    def __call__(self, *given: Tensor) -> tuple[Tensor, ...]:
        self.calls += 1
        if self.calls <= WARM_UP:
            return self._warm_up(given)
        if self.calls == WARM_UP + 1:
            self._record(given)
        if self.graph is None or not self._fits(given):
            return self.compute(*given)
        for kept, new in zip(self.given, given, strict=True):
            kept.copy_(new, non_blocking=True)
        self.graph.replay()
        return self.made

    def _warm_up(self, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Runs on the stream of the later recording, since gradients are tied to a stream."""
        current = torch.cuda.current_stream()
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            made = self.compute(*given)
        current.wait_stream(self.stream)
        return made

    def _record(self, given: tuple[Tensor, ...]) -> None:
        """Records if possible; recording computes nothing."""
        torch.cuda.synchronize()
        torch.cuda.empty_cache()  # a graph has its own memory pool
        kept = tuple(tensor.clone() for tensor in given)
        graph = torch.cuda.CUDAGraph()
        generator = torch.cuda.default_generators[torch.cuda.current_device()]
        draws = generator.clone_state()
        try:
            with (
                uncollected(),
                torch.cuda.stream(torch.cuda.current_stream()),  # a failure would leave its own
                # Other threads may be sending pictures meanwhile.
                torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"),
            ):
                self.made = self.compute(*kept)
        except RuntimeError as error:
            log.warning(f"not recorded as a CUDA graph, so slower: {first_line(error)}")
            generator.graphsafe_set_state(draws)  # it would wait for the end of the recording
            return
        self.graph, self.given = graph, kept

    def _fits(self, given: tuple[Tensor, ...]) -> bool:
        return all(
            kept.shape == new.shape and kept.dtype == new.dtype
            for kept, new in zip(self.given, given, strict=True)
        )


@contextmanager
def uncollected() -> Iterator[None]:
    """Collects Python's garbage, and keeps new garbage to the end.

    A recording fails if an earlier graph is freed meanwhile, and only the collector frees graphs of
    earlier runs, since recorded functions belong to what holds the recording.
    """
    gc.collect()
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def recorded_views(compute: MakeViews) -> MakeViews:
    """The function that makes views on a GPU, as a CUDA graph."""
    recorded = Recorded(lambda *given: (compute(*given),))
    return lambda pictures, packed: recorded(pictures, packed)[0]


class RecordedStep:
    """`train_step` of a method and a plan as a CUDA graph.

    Args:
        method: whose steps are recorded, on a GPU.
        optimizer: of its encoder and head.
        plan: the run's course.
    """

    def __init__(self, method: Method, optimizer: torch.optim.Optimizer, plan: Plan) -> None:
        self.method, self.optimizer, self.plan = method, optimizer, plan
        self.rate = torch.zeros((), device=method.bank.rows.device)
        self.names: list[str] = []
        self.recorded = Recorded(self._compute)

    def __call__(self, index: Tensor, views: Tensor, step: int) -> dict[str, Tensor]:
        mix, views, candidates = draw_for_step(self.method, index, views, self.plan, step)
        rate = float(self.plan.lrs[step])
        self.rate.fill_(rate)
        drawn = [tensor for pair in (mix, candidates) if pair is not None for tensor in pair]
        (terms,) = self.recorded(index, views, *drawn)
        set_rate(self.optimizer, rate)
        return dict(zip(self.names, terms.clone(), strict=True))

    def _compute(self, index: Tensor, views: Tensor, *drawn: Tensor) -> tuple[Tensor]:
        mix = Mix(*drawn[:2]) if self.plan.cutmix > 0 else None
        candidates = None if self.plan.negatives is None else Candidates(*drawn[-2:])
        set_rate(self.optimizer, self.rate)
        self.optimizer.zero_grad(set_to_none=True)  # a failed recording may have left some
        terms = optimize(self.method, self.optimizer, index, views, self.plan, mix, candidates)
        self.names = list(terms)
        return (torch.stack(list(terms.values())),)
