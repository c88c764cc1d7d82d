"""Signals as wishes: which are heard."""

import pickle
import signal

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


def test_an_interruption_crosses_processes() -> None:
    found = pickle.loads(pickle.dumps(Interrupted("stopped", signal.SIGTERM)))
    assert (str(found), found.signum, found.exit_status) == ("stopped", 15, 143)
