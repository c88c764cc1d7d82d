"""Signals as requests to stop that a loop can poll."""

from __future__ import annotations

import os
import signal
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from tinyssl.console import log

# That of a closed terminal is unknown to Windows.
_HANGUP: signal.Signals | None = getattr(signal, "SIGHUP", None)
_SIGNALS = [s for s in (signal.SIGINT, signal.SIGTERM, _HANGUP) if s is not None]


@contextmanager
def stop_signal() -> Iterator[Callable[[], int | None]]:
    """Turns the first SIGINT, SIGTERM or SIGHUP into a request to stop; a second one acts at once.

    Ignored signals stay ignored, as SIGINT is for background jobs of a shell.
    """
    caught: list[int] = []

    def remember(signum: int, frame: FrameType | None) -> None:
        caught.append(signum)
        if signum == _HANGUP:
            _leave_terminal()
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


def _leave_terminal() -> None:
    """Sends to nowhere what would be printed on a closed terminal, where printing fails."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # a stream without a file
            number = stream.fileno()
            # A closed terminal is none any more, so not isatty.
            if stat.S_ISCHR(os.fstat(number).st_mode):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, number)
                os.close(nowhere)
