"""The label curve: what its points mean, and that they follow from the labels."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from tests.making import label_points, make_run
from tests.test_evaluation import labels_csv
from tinyssl.curve_lines import METHODS
from tinyssl.curve_plot import curve_table, plot_curve
from tinyssl.errors import UsageError
from tinyssl.evaluation import evaluate
from tinyssl.label_curve import CurveWishes, label_curve
from tinyssl.labeled_split import read_split
from tinyssl.reporting.curve_chart import label_curve_chart

Folder = Callable[..., Path]
SHORT = ("network.views=32", "network.batch_size=16")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run", "mobilenetv3-small")


def split_of(labels: Path) -> Any:
    return read_split(None, None, labels, 0)[0]


def test_every_point_is_there_and_repeats(
    run: Path, picture_folder: Folder, tmp_path: Path
) -> None:
    labels = labels_csv(tmp_path / "labels.csv", picture_folder(per_class=12))
    wishes = CurveWishes(shots=(3, 1), select=("random", "typiclust"), draws=2, settings=SHORT)
    points = label_curve(run, split_of(labels), wishes)
    cells = [(p["select"], p["shots"], p["method"]) for p in points]
    assert cells == [
        (select, shots, method)
        for select in ("random", "typiclust")
        for shots in (1, 3)
        for method in METHODS
    ]
    for point in points:
        assert point["labels"] == 2 * point["shots"]
        assert point["draws"] == len(point["accuracies"]) == 2
        assert point["mean"] == pytest.approx(np.mean(point["accuracies"]))
        assert 1 <= point["classes"] <= 2
    twice = ("linear", "linear"), ("random", "random")
    linear = CurveWishes(shots=(3, 3), methods=twice[0], select=twice[1], draws=2)
    again = label_curve(run, split_of(labels), linear)
    assert again == [p for p in points if (p["select"], p["shots"], p["method"]) == cells[3]]


def test_more_labels_of_easy_pictures_are_all_right(
    run: Path, picture_folder: Folder, tmp_path: Path
) -> None:
    labels = labels_csv(tmp_path / "labels.csv", picture_folder(per_class=12))
    wishes = CurveWishes(shots=(9,), methods=("linear",), select=("random",), draws=2)
    (point,) = label_curve(run, split_of(labels), wishes)
    assert point["classes"] == 2
    assert min(point["accuracies"]) > 0.7  # all training pictures, bright against dark


def test_a_class_without_a_label_counts_as_wrong(
    run: Path, picture_folder: Folder, tmp_path: Path
) -> None:
    data = picture_folder(per_class=12)
    rare = next(iter(sorted((data / "dark").glob("*.png"))))
    kept = tmp_path / "labels.csv"
    labels_csv(kept, data, lambda i: "test" if i % 3 == 0 else "train")
    rows = kept.read_text().splitlines()
    # One dark picture to learn from among many bright ones: most choices of two have none.
    dark = [r for r in rows[1:] if "dark" in r]
    keep = [r for r in dark if str(rare) in r or r.endswith("test")]
    one = next(r for r in dark if r.endswith("train"))
    kept.write_text("\n".join([r for r in rows if r not in dark] + keep + [one]) + "\n")
    wishes = CurveWishes(shots=(1,), methods=("linear",), select=("random",), draws=10)
    (point,) = label_curve(run, split_of(kept), wishes)
    assert point["classes"] < 2
    assert point["accuracies"].count(0.5) >= 5


def test_scratch_does_not_start_from_the_run(
    run: Path, picture_folder: Folder, tmp_path: Path
) -> None:
    """Random weights of a draw's seed, so two runs of one architecture have equal lines."""
    data = picture_folder(per_class=12)
    labels = labels_csv(tmp_path / "labels.csv", data)
    wishes = CurveWishes(
        shots=(2,), methods=("scratch",), select=("random",), draws=2, settings=SHORT
    )
    other = make_run(tmp_path / "other", "mobilenetv3-small")
    state = (run / "encoder.safetensors").read_bytes()
    assert (other / "encoder.safetensors").read_bytes() == state
    from safetensors.numpy import load, save

    changed = {
        k: v if k in ("mean", "std") or v.dtype.kind != "f" else v * 1.1
        for k, v in load(state).items()
    }
    (other / "encoder.safetensors").write_bytes(save(changed))
    split = split_of(labels)
    assert label_curve(run, split, wishes) == label_curve(other, split, wishes)


def test_evaluate_writes_points_and_picture(
    run: Path, picture_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = labels_csv(tmp_path / "labels.csv", picture_folder(per_class=12))
    wishes = CurveWishes(shots=(1, 2), methods=("linear",), draws=2)
    result = evaluate(run, labels=labels, curve=wishes)
    assert json.loads((run / "eval.json").read_text())["curve"] == result["curve"]
    with Image.open(run / "label_curve.png") as picture:
        assert picture.size == (1050, 675)
        assert len(picture.convert("RGB").getcolors(2**16) or []) > 10
    assert len(label_curve_chart(result["curve"]).figure["data"]) == 2
    console = Console(width=80)
    with console.capture() as captured:
        console.print(curve_table(result["curve"]))
    assert all(len(line) <= 80 for line in captured.get().splitlines())
    assert "linear, kmeans" in captured.get()
    drawn = (run / "label_curve.png").read_bytes()
    monkeypatch.chdir(run)
    evaluate(".", labels=labels, curve=wishes)
    assert (run / "label_curve.png").read_bytes() == drawn  # with the run's name above it


@pytest.mark.parametrize("name", ["$1$ and $\\nope$", os.fsdecode(b"$\xff")])
def test_a_curve_of_a_run_of_any_name(name: str, tmp_path: Path) -> None:
    plot_curve(label_points(), name, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").is_file()


def test_shots_beyond_the_pictures_are_left_out(
    run: Path, picture_folder: Folder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    split = split_of(labels_csv(tmp_path / "labels.csv", picture_folder(per_class=12)))
    few = CurveWishes(shots=(2, 50), methods=("linear",), select=("random",), draws=2)
    assert [p["shots"] for p in label_curve(run, split, few)] == [2]
    assert "shots 50 left out" in caplog.text
    with pytest.raises(UsageError, match="10 a class of 2 classes are 20 labels, but there are 18"):
        label_curve(run, split, CurveWishes(shots=(10,)))


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"methods": ["probe"]}, "methods: got 'probe', allowed are linear, finetune, scratch"),
        ({"select": ["best"]}, "select: got 'best', allowed are kmeans, typiclust"),
        ({"methods": []}, "methods: got none"),
        ({"shots": [0]}, "shots: got"),
        ({"draws": 1}, "at least 2"),
    ],
)
def test_wrong_wishes_are_refused(wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        CurveWishes(**wrong).check(0)
