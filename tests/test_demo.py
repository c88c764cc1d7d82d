"""The demo on its real pictures, with one epoch."""

import csv
import json
from pathlib import Path

import pytest

from tests.making import FinishedDemo
from tinyssl.demo import demo, elpv
from tinyssl.errors import UsageError

pytest.importorskip("elpv_dataset")


def test_pictures_and_classes_of_the_package() -> None:
    paths, names = elpv()
    assert len(paths) == len(names) == 2624
    assert sorted(set(names)) == ["mono-defective", "mono-sound", "poly-defective", "poly-sound"]
    assert all(path.is_file() for path in paths)


def test_demo_goes_the_whole_way(finished_demo: FinishedDemo) -> None:
    run, result = finished_demo.run, finished_demo.result
    work = run.with_name("demo-data")
    assert list(result["encoders"]) == ["raw pixels", "descriptors", "random weights", "pretrained"]
    assert (result["train"], result["test"]) == (1969, 655)
    with (work / "labels.csv").open() as file:
        held_out = {row["path"] for row in csv.DictReader(file) if row["split"] == "test"}
    seen = set((work / "train.txt").read_text().split())
    assert (len(seen), len(held_out)) == (1969, 655)
    assert not seen & held_out
    told = finished_demo.told
    assert "tinyssl pretrain pictures/ --recipe mobilenetv3-small --out runs/mine" in told
    assert max(map(len, told.splitlines())) <= 80
    assert json.loads((run / "eval.json").read_text())["test"] == 655
    with pytest.raises(UsageError, match="is not empty"):
        demo(out=run)


@pytest.mark.parametrize("name", ["labels.csv", "train.txt", "card.yaml"])
def test_files_of_yours_stay(name: str, tmp_path: Path) -> None:
    own = tmp_path / "solar-data" / name
    own.parent.mkdir()
    own.write_text("mine")
    with pytest.raises(UsageError, match=f"solar-data/{name} is there, is not what this demo"):
        demo(out=tmp_path / "solar")
    assert own.read_text() == "mine"
    assert [path.name for path in tmp_path.rglob("*")] == ["solar-data", name]


def test_demo_leaves_a_report_below_8_mb(finished_demo: FinishedDemo) -> None:
    pytest.importorskip("plotly")
    page = finished_demo.run / "report.html"
    text = page.read_text(encoding="utf-8")
    assert page.stat().st_size < 8e6
    assert "2,624 pictures lie on a map" in text
    assert "CC BY-NC-SA 4.0" in text
