"""Shared by all tests: small threads, a cache of their own, and a folder of pictures."""

import io
import os
import signal
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

# Before torch is loaded, and for the processes that tests start: what is so small is done before
# threads have met, and two processes of tests share the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from tests.making import FinishedDemo, make_hostile_run


@pytest.fixture(scope="session", autouse=True)
def _interrupts_are_heard() -> None:
    """A shell that starts the tests in the background has them, and what they start, ignore it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINYSSL_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def picture_folder(tmp_path: Path) -> Callable[..., Path]:
    """Makes a folder of class folders: bright and dark noise, told apart by any encoder."""

    def make(name: str = "pictures", per_class: int = 8, side: int = 40, mode: str = "RGB") -> Path:
        generator = np.random.default_rng(per_class)
        for label, low in (("dark", 0), ("bright", 128)):
            folder = tmp_path / name / label
            folder.mkdir(parents=True)
            for number in range(per_class):
                noise = generator.integers(low, low + 127, (side, side, 3), dtype=np.uint8)
                Image.fromarray(noise).convert(mode).save(folder / f"{number:03}.png")
        return tmp_path / name

    return make


@pytest.fixture(scope="session")
def finished_demo(tmp_path_factory: pytest.TempPathFactory) -> FinishedDemo:
    """Made once for all tests that look at it; none may change it."""
    pytest.importorskip("elpv_dataset")
    from tinyssl.demo import demo

    folder, told = tmp_path_factory.mktemp("demo"), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(told):
        patch.setenv("TINYSSL_CACHE", str(folder / "cache"))
        result = demo(out=folder / "demo", epochs=1)
    return FinishedDemo(folder / "demo", result, told.getvalue())


@pytest.fixture(scope="session")
def hostile_place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `pictures/`, whose names want to be code, and a run on them, `run/`."""
    folder = tmp_path_factory.mktemp("hostile")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TINYSSL_CACHE", str(folder / "cache"))
        make_hostile_run(folder)
    return folder


@pytest.fixture(scope="session")
def hostile_report(hostile_place: Path) -> Path:
    """The report of that run, labeled by its class folders."""
    pytest.importorskip("plotly")
    from tinyssl.reporting.command import report

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TINYSSL_CACHE", str(hostile_place / "cache"))
        pictures = hostile_place / "pictures"
        return report(hostile_place / "run", labels=pictures, out=hostile_place / "report.html")
