"""Runs that are killed at any moment end as if nothing had happened."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import killing
import pytest
from tinyssl.export.bundle import write_bundle

from tests.making import make_run
from tinyssl.embedding import embed
from tinyssl.errors import UsageError
from tinyssl.finetuning import finetune
from tinyssl.locks import locked
from tinyssl.pretraining import pretrain

Folder = Callable[..., Path]
SCRIPT = Path(killing.__file__)


def killed_runs(data: Path, work: Path, kills: int, seed: int) -> dict[str, Any]:
    work.mkdir()
    command = [sys.executable, str(SCRIPT), str(data), str(work), str(kills), str(seed)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    assert len(told["kills"]) == kills
    return told


@pytest.mark.parametrize(
    "kills", [4, pytest.param(30, marks=pytest.mark.slow)], ids=["few", "thirty"]
)
def test_killed_runs_end_with_the_same_weights(
    kills: int, picture_folder: Folder, tmp_path: Path
) -> None:
    told = killed_runs(picture_folder(per_class=6, side=20), tmp_path / "work", kills, seed=kills)
    assert told["failed"] == []
    assert told["differ"] == {}
    assert sum(status == -9 for _, _, status in told["kills"]) >= kills // 2


WRITE = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import killing
from tinyssl.export.bundle import write_bundle

out = Path(sys.argv[2])
def bundle(version):
    models = {f"{n}.onnx": bytes([version]) * 1000 for n in range(3)}
    write_bundle(out, models, bytes([version]), {"version": version}, {}, overwrite=True)
bundle(1)
events, _ = killing.count_events(lambda: bundle(1))
for event in range(1, events + 1, 3):
    assert killing.in_child(lambda: bundle(event % 200), event=event) in (0, -9)
    asides = sorted(out.parent.glob(".bundle.*.old"))
    where = out if out.exists() else asides[-1]
    found = {p.name: p.read_bytes()[:1] for p in where.iterdir() if p.suffix in (".onnx", ".npz")}
    assert len(found) == 4 and len(set(found.values())) == 1, (event, found)
    assert (where / "manifest.json").exists()
print(events)
"""


def test_a_bundle_is_whole_or_the_old_one_wherever_it_is_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITE, str(SCRIPT.parent), str(tmp_path / "bundle")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 20


def test_a_bundle_that_came_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    write_bundle(out, {"a.onnx": b"first"}, b"", {}, {})
    with pytest.raises(UsageError, match="is not empty"):
        write_bundle(out, {"a.onnx": b"second"}, b"", {}, {})
    assert (out / "a.onnx").read_bytes() == b"first"
    assert [p.name for p in tmp_path.glob(".bundle.*")] == []


@pytest.mark.parametrize("how", ["new", "overwrite", "resume"])
def test_two_runs_in_one_folder(how: str, picture_folder: Folder, tmp_path: Path) -> None:
    data, out = picture_folder(per_class=4, side=20), tmp_path / "run"
    if how == "resume":
        pretrain(data, out=out, overrides=killing.QUICK)
    out.mkdir(exist_ok=True)
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file() and p.name != "train.log"}
    with locked(out), pytest.raises(UsageError, match="in use by another tinyssl"):
        if how == "resume":
            pretrain(out=out, resume=True)
        else:
            pretrain(data, out=out, overrides=killing.QUICK, overwrite=how == "overwrite")
    assert before == {p: p.read_bytes() for p in before}


@pytest.mark.parametrize("verb", ["embed", "finetune"])
def test_two_others_in_one_place(verb: str, picture_folder: Folder, tmp_path: Path) -> None:
    data, run = picture_folder(per_class=4, side=20), make_run(tmp_path / "run", "test_resnet")
    held = tmp_path / ("f.npz.parts" if verb == "embed" else "out")
    held.mkdir()
    with locked(held), pytest.raises(UsageError, match="another tinyssl"):
        if verb == "embed":
            embed(run, data, tmp_path / "f.npz")
        else:
            finetune(run, data, "few-label-linear", held)
    there = {p.name for p in tmp_path.iterdir()}
    assert there - {"cache"} == {held.name, "pictures", "run"}
    assert list(held.iterdir()) == []
