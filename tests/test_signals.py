"""Signals as wishes: which are heard."""

import os
import pickle
import pty
import signal
import sys
from pathlib import Path

import pytest

from tinyssl.errors import Interrupted
from tinyssl.signals import stop_signal


def test_an_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stop_signal() as stop:
            signal.raise_signal(signal.SIGINT)
            assert stop() is None
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
            signal.raise_signal(signal.SIGTERM)
            assert stop() == signal.SIGTERM
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # Python 3.12 and later
def test_a_closed_terminal_stops_what_can_still_save(tmp_path: Path) -> None:
    script = """
import sys, time
from pathlib import Path
from tinyssl.cli import _log_to_stderr
from tinyssl.console import log, progress
from tinyssl.signals import stop_signal
_log_to_stderr()
with progress("work", 10) as advance, stop_signal() as stop:
    print("begun", flush=True)
    while stop() is None:
        time.sleep(0.01)
    advance(10)
log.info("this is not seen")
print("nor is this", flush=True)
Path(sys.argv[1]).write_text(str(stop()))
"""
    child, terminal = pty.fork()
    if child == 0:
        os.execv(sys.executable, [sys.executable, "-c", script, str(tmp_path / "saved")])
    told = b""
    while b"begun" not in told:
        told += os.read(terminal, 1024)
    os.close(terminal)
    assert os.waitpid(child, 0) == (child, 0)
    assert (tmp_path / "saved").read_text() == str(int(signal.SIGHUP))


def test_an_interruption_crosses_processes() -> None:
    found = pickle.loads(pickle.dumps(Interrupted("stopped", signal.SIGTERM)))
    assert (str(found), found.signum, found.exit_status) == ("stopped", 15, 143)
