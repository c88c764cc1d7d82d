"""A full disk at every place that writes: one line with path and bytes, and nothing is lost."""

import os
import re
import resource
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import killing
import numpy as np
import pytest
import torch
from making import make_pictures, make_run
from tinyssl.export import build_engine
from tinyssl.export.bundle import write_bundle

from tinyssl.checkpoint import load_checkpoint, save_checkpoint
from tinyssl.data import load_pictures
from tinyssl.embedding import embed
from tinyssl.encoder import create_encoder
from tinyssl.errors import JobError, one_line
from tinyssl.feature_file import Features, read_features, write_features
from tinyssl.files import write_text
from tinyssl.pretraining import pretrain
from tinyssl.run_folder import RunFolder
from tinyssl.scanning import scan
from tinyssl.weights import load_encoder, save_encoder

Folder = Callable[..., Path]


@contextmanager
def quota(size: int) -> Iterator[None]:
    """No file may grow beyond `size` bytes: the system then says what it says of a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def told(path: Path, at_least: int) -> Iterator[None]:
    with pytest.raises(JobError) as caught:
        yield
    text = str(caught.value)
    assert str(path) in text
    assert one_line(text) == text
    needs = re.search(r"it needs ([\d,]+) bytes", text)
    assert needs is not None, text
    assert int(needs[1].replace(",", "")) >= at_least


def everything(folder: Path) -> dict[Path, bytes]:
    return {p: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_text(tmp_path: Path) -> None:
    write_text(tmp_path / "file", "old")
    with told(tmp_path / "file", 5000), quota(1000):
        write_text(tmp_path / "file", "x" * 5000)
    assert everything(tmp_path) == {tmp_path / "file": b"old"}


def test_a_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, {"a": torch.ones(3)})
    with told(path, 400_000), quota(10_000):
        save_checkpoint(path, {"a": torch.zeros(100_000)})
    assert torch.equal(load_checkpoint(path)["a"], torch.ones(3))
    assert list(tmp_path.iterdir()) == [path]


def test_an_encoder(tmp_path: Path) -> None:
    save_encoder(create_encoder("test_resnet", seed=0), tmp_path, image_size=16, resize="crop")
    before = everything(tmp_path)
    with told(tmp_path / "encoder.safetensors", 100_000), quota(10_000):
        save_encoder(create_encoder("test_resnet", seed=1), tmp_path, image_size=16, resize="crop")
    assert everything(tmp_path) == before
    load_encoder(tmp_path)


def test_a_cache(picture_folder: Folder, tmp_path: Path) -> None:
    root, files = tmp_path / "caches", scan([picture_folder()])
    load_pictures(files, size=16, rule="crop", cache_dir=root)
    before = everything(root)
    with told(root, 16 * 64 * 64 * 3), quota(20_000):
        load_pictures(files, size=64, rule="crop", cache_dir=root)
    assert everything(root) == before
    assert len(list(root.iterdir())) == 1


def test_logs(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    for step in range(2):
        run.log_metrics({"step": step})
    with told(run.metrics, 1), quota(run.metrics.stat().st_size + 3):
        run.log_metrics({"step": 2})
    run.log_epoch({"epoch": 1, "time": 0}, ["epoch", "time"])
    with told(run.results, 1), quota(run.results.stat().st_size + 1):
        run.log_epoch({"epoch": 2, "time": 0}, ["epoch", "time"])
    run.forget_after(1, 1, ["epoch", "time"])
    assert run.metrics.read_text() == '{"step": 0}\n{"step": 1}\n'
    assert run.results.read_text() == "epoch,time\n1,0\n"


def test_a_bundle(tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    write_bundle(out, {"a.onnx": b"old"}, b"golden", {}, {})
    before = everything(tmp_path)
    with told(out, 200_000), quota(100_000):
        write_bundle(out, {"a.onnx": b"x" * 200_000}, b"golden", {}, {}, overwrite=True)
    assert everything(tmp_path) == before


def test_an_engine(tmp_path: Path) -> None:
    engine = tmp_path / "encoder.engine"
    build_engine.write(engine, b"old")
    line = f"cannot write {engine}: .*; it needs 5,000 bytes"
    with pytest.raises(build_engine.BuildError, match=line), quota(1000):
        build_engine.write(engine, b"x" * 5000)
    assert everything(tmp_path) == {engine: b"old"}


@pytest.mark.parametrize("suffix", [".npz", ".csv", ".parquet"])
def test_features(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"f{suffix}"
    rows = np.random.default_rng(0).random((100, 200)).astype(np.float32)

    def write(count: int) -> None:
        names = [str(i) for i in range(count)]
        block = Features(names, names, rows[:count])
        write_features(path, [block], (count, 200), "float32", "key")

    write(2)
    with told(path, 80_000), quota(40_000):
        write(100)
    assert len(read_features(path).paths) == 2
    assert list(tmp_path.iterdir()) == [path]


def test_a_stopped_embedding_goes_on(tmp_path: Path) -> None:
    run, data = make_run(tmp_path / "run", "test_resnet"), make_pictures(tmp_path / "data")
    whole = embed(run, data, tmp_path / "whole.npz").read()
    out = tmp_path / "f.npz"
    with told(tmp_path, 1000), quota(1500):
        embed(run, data, out)
    assert not out.exists()
    np.testing.assert_array_equal(embed(run, data, out).read().features, whole.features)
    assert not (tmp_path / "f.npz.parts").exists()


def test_a_run_goes_on_when_there_is_space_again(picture_folder: Folder, tmp_path: Path) -> None:
    data = picture_folder(per_class=6, side=20)
    whole = pretrain(data, out=tmp_path / "whole", overrides=killing.QUICK)
    cut = tmp_path / "cut"
    with told(cut / "checkpoints" / "last.pt", 100_000), quota(50_000):
        pretrain(data, out=cut, overrides=killing.QUICK)
    assert not list(cut.rglob("*.tmp"))
    assert killing.differences(whole, pretrain(out=cut, resume=True)) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """32 MB; only root may mount it."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.parametrize("what", ["cache", "run"])
def test_a_disk_that_is_really_full(
    what: str, small_disk: Path, picture_folder: Folder, tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    data = picture_folder(per_class=6, side=20)
    settings: dict[str, Any] = {"overrides": [*killing.QUICK]}
    out = small_disk / "run" if what == "run" else tmp_path / "run"
    if what == "cache":
        settings["overrides"].append(f"data.cache_dir={small_disk}")
    filler = small_disk / "filler"
    space = os.statvfs(small_disk)
    leave = 100_000 if what == "run" else 4096  # enough for all but a checkpoint
    filler.write_bytes(b"\0" * (space.f_bavail * space.f_frsize - leave))
    with told(small_disk, 1000):
        pretrain(data, out=out, **settings)
    warned = f"MB, and {small_disk} has 0.0 MB free" in caplog.text
    assert warned == (what == "cache")
    filler.unlink()
    if what == "run":
        pretrain(out=out, resume=True)
    else:
        pretrain(data, out=out, **settings)
    assert (out / "encoder.safetensors").is_file()
