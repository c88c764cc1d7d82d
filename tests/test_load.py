"""Many pictures and many epochs: memory stays where it was."""

import subprocess
import sys
from pathlib import Path

import killing
import numpy as np
import pytest
from PIL import Image

JOB = """
import json, sys
from pathlib import Path

def memory(what):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(what))

data, out, epochs, settings = sys.argv[1], Path(sys.argv[2]), sys.argv[3], sys.argv[4:]
from tinyssl.embedding import embed
from tinyssl.encoder import create_encoder
from tinyssl.pretraining import pretrain
create_encoder("test_resnet")
start = memory("VmHWM")
run = pretrain(data, out=out / "run", overrides=[*settings, f"run.epochs={epochs}"])
trained = memory("VmHWM")
embed(run, data, out / "features.npz")
print(json.dumps([start, trained, memory("VmHWM")]))
"""


def peaks(data: Path, out: Path, epochs: int, *settings: str) -> list[float]:
    """MB at most: after loading the network, after training, after embedding."""
    out.mkdir()
    given = {s.partition("=")[0] for s in (*settings, "run.epochs", "run.workers")}
    quick = [s for s in killing.QUICK if s.partition("=")[0] not in given]
    command = [sys.executable, "-c", JOB, str(data), str(out), str(epochs), *quick, *settings]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [float(value) for value in done.stdout.strip("[]\n").split(",")]


def make(folder: Path, count: int) -> Path:
    """Small pictures in one folder, all different."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(count):
        array = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(array).save(folder / f"{number:06}.png", compress_level=1)
    return folder


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_hundred_thousand_pictures(tmp_path: Path) -> None:
    data = make(tmp_path / "data", 100_000)
    start, trained, embedded = peaks(data, tmp_path / "out", 1, "optim.batch_size=256")
    print(f"{start:.0f} MB loaded, {trained:.0f} trained, {embedded:.0f} embedded")
    assert max(trained, embedded) - start < 2048


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_does_not_grow_with_the_epochs(tmp_path: Path) -> None:
    data = make(tmp_path / "data", 100)
    few = peaks(data, tmp_path / "few", 5)[1]
    many = peaks(data, tmp_path / "many", 50)[1]
    print(f"{few:.0f} MB after 5 epochs, {many:.0f} after 50")
    assert many - few < 50
