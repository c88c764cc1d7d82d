"""What a run took, told of this process alone."""

import subprocess
import sys


def test_peak_memory_is_this_processs_own() -> None:
    """A process that a larger one started is not as large for that."""
    own = "from tinyssl.machine import peak_memory; print(peak_memory())"
    code = f"import subprocess, sys; x = bytearray(700_000_000); x[::4096] = x[::4096]; {own}"
    child = f"; subprocess.run([sys.executable, '-c', {own!r}])"
    done = subprocess.run([sys.executable, "-c", code + child], capture_output=True, text=True)
    large, small = map(int, done.stdout.split())
    assert small + 600_000_000 < large
