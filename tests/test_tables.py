"""The tables that are kept are those that the code makes of the cells beside them."""

import json
import re
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from tests.benchmarks.quality import own_table, tables
from tests.benchmarks.quality.criterion import all_correlations
from tinyssl.errors import UsageError

RESULTS = Path(__file__).parent / "benchmarks" / "results"
README = Path(__file__).parent.parent / "README.md"
BENCHMARKS = RESULTS.parent / "README.md"
# Rows of the README's table of what recipes are worth: the files' recipe, the encoder's name there.
WORTH = {
    "raw pixels": ("mobilenetv3-small", "raw pixels"),
    "descriptors": ("mobilenetv3-small", "descriptors"),
    "random weights, MobileNetV3-small": ("mobilenetv3-small", "random weights"),
    "`mobilenetv3-small`": ("mobilenetv3-small", "pretrained"),
    "random weights, ResNet-18": ("resnet18", "random weights"),
    "`resnet18`": ("resnet18", "pretrained"),
    "random weights, EfficientNet-Lite0": ("adapt", "random weights"),
    "ImageNet weights, EfficientNet-Lite0, frozen": ("adapt", "start, frozen"),
    "the same as timm gives them: last features, 224 pixels": ("checkpoint", "own size"),
    "`adapt`": ("adapt", "adapted"),
}
# Rows of the README's table against other methods: method, share of the time, way of the own loop.
STUDIED = {
    "tinyssl": ("near", 1, "tinyssl"),
    "tinyssl, `loss.near_weight=0`": ("tinyssl", 1, "nonear"),
    "tinyssl, half the time": ("near", 0.5, "tinyssl, 0.5 of the time"),
    "tinyssl, `loss.near_weight=0`, half the time": ("tinyssl", 0.5, "nonear, 0.5 of the time"),
    "SimCLR": ("simclr", 1, "simclr"),
    "VICReg": ("vicreg", 1, "vicreg"),
    "NNCLR": ("nnclr", 1, "nnclr"),
    "MoCo v2": ("moco", 1, "moco"),
    "Barlow Twins": ("barlowtwins", 1, "barlowtwins"),
    "BYOL": ("byol", 1, "byol"),
    "SimSiam": ("simsiam", 1, "simsiam"),
    "DINO": ("dino", 1, "dino"),
    "random weights": ("random", 1, ""),
}
# Rows of the benchmarks' table of what recipes are worth, in order: what, and over what.
SMALL, OTHER = ("mobilenetv3-small", "pretrained"), ("resnet18", "pretrained")
SPREAD: list[tuple[tuple[str, str], tuple[str, str] | None]] = [
    (SMALL, None),
    (SMALL, ("mobilenetv3-small", "random weights")),
    (SMALL, ("mobilenetv3-small", "descriptors")),
    (OTHER, None),
    (OTHER, ("resnet18", "random weights")),
    (OTHER, ("resnet18", "descriptors")),
    (OTHER, SMALL),
    (("adapt", "adapted"), None),
    (("adapt", "adapted"), ("checkpoint", "own size")),
    (("adapt", "adapted"), ("checkpoint", "192 pixels")),
    (("adapt", "adapted"), ("adapt", "start, frozen")),
]
SETS = ("elpv", "xsdd", "trashnet", "clothing", "cifar10")
STUDIES = sorted(file.parent for file in RESULTS.glob("quality*/table.csv"))
OWN_LOOPS = sorted(RESULTS.glob("quality-own-loop*"))


def test_there_are_studies() -> None:
    assert len(STUDIES) == 7
    assert len(OWN_LOOPS) == 2


@pytest.mark.parametrize("folder", STUDIES, ids=lambda folder: folder.name)
def test_a_study_has_the_tables_of_its_cells(folder: Path) -> None:
    assert tables.tables(folder) == (folder / "table.md").read_text()
    rows = tables.as_csv(tables.read_rows(folder)).splitlines()
    assert len(rows) == len((folder / "table.csv").read_text().splitlines())


@pytest.mark.parametrize("folder", OWN_LOOPS, ids=lambda folder: folder.name)
def test_own_loops_have_the_table_of_their_runs(folder: Path) -> None:
    assert own_table.tables(own_table.read(folder)) == (folder / "table.md").read_text()


def test_correlations_are_those_of_methods_without_ablations() -> None:
    folder = RESULTS / "quality"
    kept = json.loads((folder / "criterion.json").read_text())
    found = all_correlations(tables.read(folder))
    assert found["cells"] == kept["cells"] == 120
    for within in ("methods", "ours"):
        for score, columns in kept[within].items():
            assert found[within][score] == pytest.approx(columns)


@pytest.mark.parametrize("row", WORTH)
def test_the_readme_tells_what_recipes_are_worth_as_it_was_measured(row: str) -> None:
    recipe, encoder = WORTH[row]
    for name, cell in zip(SETS, shown(row), strict=True):
        if not cell:
            continue
        runs = [run["encoders"][encoder] for run in runs_of(name, recipe)]
        assert len(runs) == 3
        scores = zip(*map(three_scores, runs), strict=True)
        means = [100 * statistics.fmean(score) for score in scores]
        assert [float(x) for x in cell.split(" / ")] == pytest.approx(means, abs=0.051)


@pytest.mark.parametrize("row", STUDIED)
def test_the_readme_tells_how_methods_compare_as_it_was_measured(row: str) -> None:
    method, budget, way = STUDIED[row]
    photos, four = RESULTS / "quality-photos", RESULTS / "quality-statistics"
    rows = [*tables.read_rows(four), *tables.read_rows(photos), *tables.means_of(tables.read(four))]
    found = {r["set"]: r for r in rows if (r["method"], r["budget"]) == (method, budget)}
    told = [" / ".join(f"{found[name][c]:.1f}" for c in tables.COMPONENTS) for name in SETS]
    mean = [f"{found['mean'][c]:.1f} ± {found['mean'][f'{c} ±']:.1f}" for c in tables.COMPONENTS]
    memory = found["clothing"]["MB"]
    own = own_table.read(RESULTS / "quality-own-loop").get(way, {})
    alone = own_table.told(own_table.means_over(list(SETS), own, "components")[1])
    assert shown(row) == [*told, " / ".join(mean), f"{memory:,}" if memory else "", alone]


@pytest.mark.parametrize("row", [row for row, (_, _, way) in STUDIED.items() if way])
def test_own_loops_are_told_as_they_were_measured(row: str) -> None:
    results = own_table.read(RESULTS / "quality-own-loop")[STUDIED[row][2]]

    def told(sets: Sequence[str], level: str) -> str:
        return own_table.told(own_table.means_over(list(sets), results, level)[1])

    cells = [re.sub(r" ± [0-9.]+", "", told([name], "components")) for name in SETS]
    seeds, means = len(results["elpv"]), [told(SETS, level) for level in own_table.LEVELS]
    assert shown(f"{row} | {seeds}", BENCHMARKS) == [str(seeds), *cells, *means]


def test_spreads_of_recipes_are_told_as_they_were_measured() -> None:
    table = BENCHMARKS.read_text().split("| mean of these | cifar10 |")[1].split("\n\n")[0]
    for line, (what, over) in zip(table.splitlines()[2:], SPREAD, strict=True):
        cells = [cell.strip() for cell in line.strip("|").split("|")[1:]]
        found = [differences(name, what, over) for name in SETS[:4]]
        found.append(np.mean(found, axis=0))
        if cells[-1]:
            found.append(differences("cifar10", what, over))
        for cell, values in zip(cells, found, strict=False):
            assert cell in ("", own_table.told(values).replace("-0.0 ±", "0.0 ±"))


@pytest.mark.parametrize("encoder", ["adapted", "start, frozen", "random weights"])
def test_whitening_by_near_pictures_is_told_as_it_was_measured(encoder: str) -> None:
    page = " ".join(BENCHMARKS.read_text().split())

    def told(runs: Callable[[str], list[dict]]) -> str:
        found = [runs(name) for name in SETS[:4]]
        assert [len(seeds) for seeds in found] == [3] * 4
        scores = [three_scores(run["encoders"][encoder]) for seeds in found for run in seeds]
        return " / ".join(f"{100 * score:.1f}" for score in np.mean(scores, axis=0))

    def by_levels(name: str) -> list[dict]:
        return json.loads((RESULTS / f"adapt-three-levels-{name}.json").read_text())["runs"]

    assert f"from {told(by_levels)} to {told(lambda name: runs_of(name, 'adapt'))}" in page


def test_projections_of_frozen_features_are_told_as_they_were_measured() -> None:
    kept = json.loads((RESULTS / "near-whitening-folds.json").read_text())["pictures"]
    table = BENCHMARKS.read_text().split("| on 100 | on 50 |\n")[1].split("\n\n")[0]
    for line, row in zip(table.splitlines()[1:], kept["all"]["xsdd"], strict=True):
        cells = [cell.strip() for cell in line.strip("|").split("|")[1:]]
        for cell, fitted in zip(cells, ("all", "200", "100", "50"), strict=True):
            scores = np.mean([list(of_set[row].values()) for of_set in kept[fitted].values()], 0)
            assert [float(x) for x in cell.split(" / ")] == pytest.approx(scores, abs=0.051)


def test_what_components_add_to_the_last_features_is_told_as_it_was_measured() -> None:
    over = ("adapt", "start, frozen"), ("adapt", "start, last level")
    knn, linear, shots = np.mean([differences(name, *over) for name in SETS[:4]], axis=(0, 1))
    told = f"{knn:.1f} points of k-NN, {linear:.1f} of the probe and {shots:.1f} of 10-shot"
    assert told in " ".join(README.read_text().split())


def test_features_of_few_pictures_are_told_as_they_were_measured() -> None:
    page = " ".join(BENCHMARKS.read_text().split())
    kept = json.loads((RESULTS / "few-pictures-components.json").read_text())["pictures"]
    for sets in (of_row for rows in kept.values() for of_row in rows.values()):
        means = np.mean([list(scores.values()) for scores in sets.values()], axis=0)
        assert " / ".join(f"{mean:.1f}" for mean in means) in page


def differences(name: str, what: tuple[str, str], over: tuple[str, str] | None) -> np.ndarray:
    """Three scores in % of what was run, (seeds, 3), less those of `over`, seed by seed."""
    ours, *theirs = (
        100 * np.array([three_scores(run["encoders"][one[1]]) for run in runs_of(name, one[0])])
        for one in (what, over)
        if one
    )
    return ours - theirs[0] if theirs else ours


def shown(row: str, page: Path = README) -> list[str]:
    """The cells of a row of a page, after the first."""
    (line,) = [x for x in page.read_text().splitlines() if x.startswith(f"| {row} | ")]
    return [cell.strip() for cell in line.strip("|").split("|")[1:]]


def runs_of(name: str, recipe: str) -> list[dict]:
    if recipe == "checkpoint":
        return json.loads((RESULTS / f"checkpoint-{name}.json").read_text())["runs"]
    further = json.loads((RESULTS / f"domains-{name}-{recipe}.json").read_text())["runs"]
    if recipe in ("resnet18", "adapt"):
        return further
    first = json.loads((RESULTS / f"eval-{name}-{recipe}.json").read_text())
    return [first, *further]


def three_scores(found: dict) -> tuple[float, float, float]:
    linear, knn = found["linear"]["balanced_accuracy"], found["knn"]["balanced_accuracy"]
    return knn, linear, found["few_shot"]["10"]["mean"]


@pytest.mark.parametrize("read", [tables.read, own_table.read])
def test_an_empty_folder_is_told(read: Callable[[Path], object], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"has no .*SET-METHOD-BUDGET-sSEED\.json"):
        read(tmp_path)


def test_changes_are_of_the_sets_and_seeds_that_both_have() -> None:
    def cell(name: str, method: str, seed: int, score: float, budget: float = 1) -> dict:
        kind = "peer" if method == "simclr" else "tinyssl"
        shot = {"10": {"mean": score}}
        one = {"balanced_accuracy": score}
        return {
            "cell": {"set": name, "method": method, "seed": seed, "budget": budget},
            "settings": {"kind": kind}, "scores_of_all_levels": None,
            "scores": {"knn": one, "linear": one, "few_shot": shot},
        }  # fmt: skip

    cells = [
        cell("a", "tinyssl", 0, 0.5), cell("b", "tinyssl", 0, 0.7),
        cell("a", "simclr", 0, 0.4), cell("b", "simclr", 0, 0.4),
        cell("a", "tinyssl", 1, 0.9), cell("a", "simclr", 1, 0.1),  # a seed without set b
        cell("a", "tinyssl", 0, 0.3, budget=0.5),  # a half without set b
    ]  # fmt: skip
    (row,) = tables.changes_of(cells, "simclr")
    assert (row["method"], row["budget"], row["seeds"]) == ("tinyssl", 1, 1)
    assert row["k-NN"] == pytest.approx(20)
    assert tables.changes_of(cells, "tinyssl") == []
