"""The study harness: cells that are missing run, kept encoders are judged anew, tables follow."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.benchmarks.quality.methods import Cost
from tests.benchmarks.quality.study import Cell, Study, _run
from tests.benchmarks.quality.tables import rows_of
from tests.making import TINY
from tinyssl.errors import JobError

METHODS = {
    "random": {"kind": "random"},
    "tinyssl": {"kind": "tinyssl", "budgets": [0.5, 1]},
    "supervised": {"kind": "supervised", "lr": 0.1},
}


@pytest.fixture
def place(picture_folder: Callable[..., Path], tmp_path: Path) -> Path:
    """Sets and results, and a YAML on top of another one."""
    picture_folder("sets/one/train", per_class=30)
    picture_folder("sets/one/test")
    values = {
        "recipe": "mobilenetv3-small", "device": "cpu", "components": 8, "views": 32,
        "settings": [s for s in TINY if not s.startswith("run.")],
        "sets": ["one"], "seeds": [0], "budgets": [1], "like": "tinyssl", "methods": METHODS,
    }  # fmt: skip
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(values))
    (tmp_path / "study.yaml").write_text("base: base.yaml\nmethods: [random, tinyssl]\n")
    (tmp_path / "kept").mkdir()
    return tmp_path


def study(place: Path, file: str = "study.yaml", out: str = "out", **more: Path) -> Study:
    (place / out).mkdir(exist_ok=True)
    made = Study(place / file, place / "sets", place / out, more.get("kept"))
    for name, method in made.uncosted():
        made.keep_cost(name, method, Cost(0.01, 700))
    return made


def test_what_is_missing_runs_and_what_is_there_does_not(place: Path) -> None:
    first, half, whole = study(place).missing()
    assert [(c.method, c.budget) for c in (first, half, whole)] == [
        ("random", 1), ("tinyssl", 0.5), ("tinyssl", 1),
    ]  # fmt: skip
    study(place).run(first)
    study(place).run(whole)
    assert study(place).missing() == [half]
    assert half in study(place, "base.yaml").missing()
    cells = [json.loads(file.read_text()) for file in (place / "out").glob("one-*.json")]
    seen = {cell["cell"]["method"]: cell["pictures_seen"] for cell in cells}
    assert seen == {"random": 0, "tinyssl": 60 * 5}
    rows = {row["method"]: row for row in rows_of(cells, study(place).memory)}
    assert {name: row["MB"] for name, row in rows.items()} == {"random": "", "tinyssl": 700}
    assert set(rows) == {"random", "tinyssl"}
    assert all(0 <= row["linear, comp."] <= 100 for row in rows.values())


def test_sets_and_rates_that_are_not_there_are_told(place: Path) -> None:
    values = yaml.safe_load((place / "base.yaml").read_text())
    values |= {"sets": ["one", "two"], "tune_sets": ["three"]}
    values["methods"]["simclr"] = {"kind": "peer", "peer": "simclr", "grid": {"lr": [0.1, 0.3]}}
    (place / "base.yaml").write_text(yaml.safe_dump(values))
    made = study(place, "study.yaml")
    assert "has no two: folders" in str(made.lacking(tune=False))
    assert "has no two, three: folders" in str(made.lacking(tune=True))
    for name in ("two", "three"):
        (place / "sets" / name).mkdir()
    assert made.lacking(tune=False) is None  # trains no method with a rate
    whole = study(place, "base.yaml")
    assert "no rate for simclr: --tune" in str(whole.lacking(tune=False))
    assert whole.lacking(tune=True) is None
    whole.keep("simclr", {"lr": 0.1}, None)  # diverged
    assert "no rate for simclr" in str(whole.lacking(tune=False))
    whole.keep("simclr", {"lr": 0.3}, 50.0)
    assert whole.lacking(tune=False) is None


def test_an_encoder_of_tinyssls_own_can_be_kept(place: Path) -> None:
    cell = Cell("one", "tinyssl", 0, 1)
    for out in ("out", "again"):
        study(place, out=out, kept=place / "kept").run(cell)
    trained, again = (json.loads(cell.file(place / out).read_text()) for out in ("out", "again"))
    for kind in ("knn", "linear", "few_shot"):
        assert again["scores_of_components"][kind] == trained["scores_of_components"][kind]


@pytest.mark.parametrize("change", ["method", "study"])
def test_kept_encoders_are_judged_again_and_those_of_other_settings_refused(
    change: str, place: Path
) -> None:
    cell = Cell("one", "supervised", 0, 1)
    study(place, "base.yaml", kept=place / "kept").run(cell)
    trained = json.loads(cell.file(place / "out").read_text())
    study(place, "base.yaml", out="again", kept=place / "kept").run(cell)
    again = json.loads(cell.file(place / "again").read_text())
    for part in ("scores", "scores_of_components"):
        for kind in ("knn", "linear", "few_shot"):
            assert again[part][kind] == trained[part][kind]
    assert again["seconds_beside_others"] == trained["seconds_beside_others"]

    values = yaml.safe_load((place / "base.yaml").read_text())
    if change == "method":
        values["methods"]["supervised"]["lr"] = 0.2
    else:
        values["settings"].append("encoder.residuals=timm")
    (place / "other.yaml").write_text(yaml.safe_dump(values))
    other = study(place, "other.yaml", out="other", kept=place / "kept")
    with pytest.raises(JobError, match="give another --encoders"):
        other.run(cell)
    given = (place / "other.yaml", place / "sets", place / "other", place / "kept")
    assert "has no result" in _run(given, cell)
    assert not cell.file(place / "other").exists()
