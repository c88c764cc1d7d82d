"""The demo on its real pictures, with one epoch."""

import csv
import json
from pathlib import Path

import pytest

from tinyssl.demo import demo, elpv
from tinyssl.errors import UsageError

pytest.importorskip("elpv_dataset")


def test_pictures_and_classes_of_the_package() -> None:
    paths, names = elpv()
    assert len(paths) == len(names) == 2624
    assert sorted(set(names)) == ["mono-defective", "mono-sound", "poly-defective", "poly-sound"]
    assert all(path.is_file() for path in paths)


def test_demo_goes_the_whole_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = demo(out=tmp_path / "demo", epochs=1)
    assert list(result["encoders"]) == ["raw pixels", "random weights", "pretrained"]
    assert (result["train"], result["test"]) == (1969, 655)
    with (tmp_path / "demo-data" / "labels.csv").open() as file:
        held_out = {row["path"] for row in csv.DictReader(file) if row["split"] == "test"}
    seen = set((tmp_path / "demo-data" / "train.txt").read_text().split())
    assert (len(seen), len(held_out)) == (1969, 655)
    assert not seen & held_out
    told = capsys.readouterr().out
    assert "tinyssl pretrain pictures/ --recipe mobilenetv3-small --out runs/mine" in told
    assert max(map(len, told.splitlines())) <= 80
    assert json.loads((tmp_path / "demo" / "eval.json").read_text())["test"] == 655
    with pytest.raises(UsageError, match="is not empty"):
        demo(out=tmp_path / "demo")
