"""Signals as requests to stop that a loop can poll."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from tinyssl.console import log

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def stop_signal() -> Iterator[Callable[[], int | None]]:
    """Turns the first SIGINT or SIGTERM into a request to stop; a second one acts at once.

    Ignored signals stay ignored, as SIGINT is for background jobs of a shell.
    """
    caught: list[int] = []

    def remember(signum: int, frame: FrameType | None) -> None:
        caught.append(signum)
        signal.signal(signum, previous[signum])
        log.info("stopping after this step; again to stop at once")

    try:
        heard = [s for s in _SIGNALS if signal.getsignal(s) is not signal.SIG_IGN]
        previous = {int(s): signal.signal(s, remember) for s in heard}
    except ValueError:  # not the main thread, which alone handles signals
        previous = {}
    try:
        yield lambda: caught[0] if caught else None
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)
