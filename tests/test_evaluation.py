"""The table of `tinyssl eval`: what is judged, beside what, and on which pictures."""

import csv
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from tinyssl.encoder import create_encoder, widen
from tinyssl.errors import JobError, UsageError
from tinyssl.evaluation import evaluate, table
from tinyssl.files import sha256
from tinyssl.judged_encoders import embedders, some
from tinyssl.label_curve import CurveWishes
from tinyssl.labeled_split import read_split
from tinyssl.recipe_files import recipe_text
from tinyssl.reporting.run_facts import read_run
from tinyssl.reporting.verdict import judged, label_verdict
from tinyssl.weights import save_encoder

Folder = Callable[..., Path]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run")


def make_run(folder: Path, backbone: str = "mobilenetv3-small", **extra: Any) -> Path:
    folder.mkdir(parents=True)
    encoder = create_encoder(backbone, seed=5)
    save_encoder(encoder, folder, image_size=32, resize="crop", extra={"seed": 5} | extra)
    return folder


def shown(result: dict[str, Any]) -> list[str]:
    """The lines of the table on a terminal of 80 columns."""
    console = Console(width=80)
    with console.capture() as captured:
        console.print(table(result))
    return [line.rstrip() for line in captured.get().splitlines()]


def labels_csv(path: Path, data: Path, split: Callable[[int], str] | None = None) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label"] + (["split"] if split else []))
        for number, picture in enumerate(sorted(data.rglob("*.png"))):
            given = [split(number)] if split else []
            writer.writerow([picture, picture.parent.name, *given])
    return path


def test_what_is_written(run: Path, picture_folder: Folder, tmp_path: Path) -> None:
    data = picture_folder(per_class=12)
    result = evaluate(run, labels=labels_csv(tmp_path / "labels.csv", data))
    assert json.loads((run / "eval.json").read_text()) == json.loads(json.dumps(result))
    assert list(result["encoders"]) == ["raw pixels", "descriptors", "random weights", "pretrained"]
    assert (result["train"], result["test"]) == (18, 6)
    for scores in result["encoders"].values():
        for classifier in ("knn", "linear"):
            assert set(scores[classifier]) >= {"accuracy", "balanced_accuracy", "macro_f1"}
            assert np.sum(scores[classifier]["confusion"]) == 6
        assert list(scores["few_shot"]) == ["1", "5", "10", "20"]
        assert all(s["draws"] == 10 for s in scores["few_shot"].values())
        assert scores["rankme"] >= 1
    # All draws of 10 and 20 of 9 rows are the same; six test pictures leave doubt all the same.
    assert result["encoders"]["pretrained"]["few_shot"]["20"]["half_width"] == 0
    assert "±0.0" not in " ".join(shown(result))
    assert "A class has 9 training pictures: more shots take all." in " ".join(shown(result))
    told = " ".join(shown(result | {"fewest": 1}))
    assert "A class has a single training picture: more shots take all." in told
    assert [list(encoder.scores) for encoder in judged(result)] == 4 * [
        ["k-NN", "linear", "1-shot", "5-shot"]  # the verdict knows of no 10 shots
    ]
    # The run holds the untrained network of its seed: the same features, the same scores.
    untrained, own = (result["encoders"][k] for k in ("random weights", "pretrained"))
    assert untrained["knn"] == own["knn"]


def test_views_are_looked_at_where_the_run_says_how_it_made_them(
    run: Path, picture_folder: Folder, tmp_path: Path
) -> None:
    labels = labels_csv(tmp_path / "labels.csv", picture_folder(per_class=12))
    unknown = evaluate(run, labels=labels, out=tmp_path / "unknown.json")
    assert not any("retrieval" in scores for scores in unknown["encoders"].values())
    (run / "recipe.yaml").write_text(recipe_text("mobilenetv3-small"))
    found = evaluate(run, labels=labels, out=tmp_path / "found.json")
    assert all(0 <= scores["retrieval"] <= 1 for scores in found["encoders"].values())
    lines = shown(found)
    assert len(lines) == len(shown(unknown)) + 1
    assert lines[1].endswith(" RankMe views")
    assert lines[-1].startswith("views: % of views")
    assert max(map(len, lines)) <= 80
    own, untrained = (found["encoders"][k] for k in ("pretrained", "random weights"))
    assert own["retrieval"] == untrained["retrieval"]
    kept = (run / "recipe.yaml").read_text()
    (run / "recipe.yaml").write_text(kept.replace("pipeline: null", "pipeline: mine.yaml"))
    theirs = evaluate(run, labels=labels, out=tmp_path / "theirs.json")
    assert not any("retrieval" in scores for scores in theirs["encoders"].values())


def test_drawn_split_is_recorded_and_gives_the_same_again(
    run: Path, picture_folder: Folder, tmp_path: Path
) -> None:
    data = picture_folder(per_class=12)
    seed: Any = np.int64(0)  # as in a loop over an array of seeds
    first = evaluate(run, labels=labels_csv(tmp_path / "labels.csv", data), seed=seed)
    again = evaluate(run, labels=run / "eval_split.csv", out=tmp_path / "again.json")
    for name, scores in first["encoders"].items():
        assert scores["knn"] == again["encoders"][name]["knn"]
    with (run / "eval_split.csv").open() as file:
        rows = list(csv.DictReader(file))
    for label in ("bright", "dark"):
        assert sum(r["label"] == label and r["split"] == "test" for r in rows) == 3


def test_no_draw_depends_on_the_order_of_the_labels(picture_folder: Folder, tmp_path: Path) -> None:
    labels = labels_csv(tmp_path / "labels.csv", picture_folder(per_class=12))
    header, *rows = labels.read_text().splitlines()
    (tmp_path / "b.csv").write_text("\n".join([header, *reversed(rows)]))
    one, other = (read_split(None, None, path, 0)[0] for path in (labels, tmp_path / "b.csv"))
    assert one.paths == other.paths
    assert np.array_equal(one.test, other.test)
    assert np.array_equal(one.labels, other.labels)


def test_a_drawn_split_does_not_part_copies(
    run: Path, picture_folder: Folder, tmp_path: Path
) -> None:
    data = picture_folder(per_class=9)
    for picture in list(data.rglob("*.png")):
        shutil.copy(picture, picture.with_name(f"copy-{picture.name}"))
    labels = labels_csv(tmp_path / "labels.csv", data)
    result = evaluate(run, labels=labels)
    split, _ = read_split(None, None, run / "eval_split.csv", 0)
    digests = [sha256(path) for path in split.paths]
    trained = {digest for digest, test in zip(digests, split.test, strict=True) if not test}
    tested = {digest for digest, test in zip(digests, split.test, strict=True) if test}
    assert trained.isdisjoint(tested)
    assert np.bincount(split.labels[split.test]).tolist() == [4, 4]
    assert (result["test"], result["test_in_training"]) == (8, 0)


def test_given_split_and_class_folders_judge_the_same(
    run: Path, picture_folder: Folder, tmp_path: Path
) -> None:
    data = picture_folder(per_class=12)
    held_out = labels_csv(tmp_path / "l.csv", data, lambda i: "test" if i % 3 == 0 else "train")
    by_csv = evaluate(run, labels=held_out, out=tmp_path / "a.json")
    for number, picture in enumerate(sorted(data.rglob("*.png"))):
        folder = tmp_path / ("test" if number % 3 == 0 else "train") / picture.parent.name
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(picture, folder)
    by_folders = evaluate(
        run, train=tmp_path / "train", test=tmp_path / "test", out=tmp_path / "b.json"
    )
    assert by_csv["classes"] == by_folders["classes"]
    for name, scores in by_csv["encoders"].items():
        assert scores["knn"]["confusion"] == by_folders["encoders"][name]["knn"]["confusion"]


def test_baselines_of_equal_names_all_have_a_row(
    run: Path, picture_folder: Folder, tmp_path: Path
) -> None:
    others = [make_run(tmp_path / "a" / "best", "resnet18"), make_run(tmp_path / "b" / "best")]
    others.append(make_run(tmp_path / "descriptors"))
    labels = labels_csv(tmp_path / "labels.csv", picture_folder(per_class=12))
    result = evaluate(run, labels=labels, baselines=[*others, others[1] / "encoder.safetensors"])
    names = ["best", str(others[1]), str(others[2]), "encoder.safetensors"]
    assert list(result["encoders"])[3:] == [*names, "pretrained"]
    assert result["encoders"]["best"]["width"] == 512
    assert result["encoders"]["descriptors"]["width"] != 1024  # those without a network
    twins = [result["encoders"][name]["knn"] for name in names[1:]]
    assert twins[0] == twins[1] == twins[2]


@pytest.mark.parametrize(
    ("whiten_by", "trained", "width", "theirs"),
    [("all", 16, 8, 1704), ("all", 6, 5, 1704), ("near", 16, 8, 8)],
)
def test_other_weights_get_components_as_pictures_and_whitening_allow(
    whiten_by: str, trained: int, width: int, theirs: int, picture_folder: Folder, tmp_path: Path
) -> None:
    data, folder = picture_folder(per_class=12), tmp_path / "run"
    folder.mkdir()
    pictures = np.random.default_rng(0).integers(0, 256, (24, 32, 32, 3), dtype=np.uint8)
    wide = widen(create_encoder("mobilenetv3-small", seed=5).eval(), "all", pictures, 8, 0.25)
    extra = {"seed": 5, "whitening": 0.25, "whiten_by": whiten_by}
    save_encoder(wide, folder, image_size=32, resize="crop", extra=extra)
    split = labels_csv(
        tmp_path / "labels.csv", data, lambda n: "train" if n % 12 < trained // 2 else "test"
    )
    weights = make_run(tmp_path / "other") / "encoder.safetensors"
    encoders = evaluate(folder, labels=split, baselines=[weights])["encoders"]
    assert encoders["random weights"]["width"] == width
    assert encoders[weights.name]["width"] == theirs
    assert encoders["pretrained"]["width"] == 8


def test_start_of_an_adapted_run_is_judged_too(
    run: Path, picture_folder: Folder, tmp_path: Path
) -> None:
    adapted = make_run(tmp_path / "adapted", "resnet18", init=str(run))
    labels = labels_csv(tmp_path / "labels.csv", picture_folder(per_class=12))
    result = evaluate(adapted, labels=labels)
    rows = ["raw pixels", "descriptors", "random weights", "start, frozen", "adapted"]
    assert list(result["encoders"]) == rows
    itself = evaluate(run, labels=labels)["encoders"]["pretrained"]
    assert result["encoders"]["start, frozen"]["knn"] == itself["knn"]
    assert result["encoders"]["start, frozen"]["width"] == itself["width"]


def test_weights_that_a_run_started_from_have_a_row_of_their_last_level(
    picture_folder: Folder, tmp_path: Path
) -> None:
    plain, folder = make_run(tmp_path / "plain"), tmp_path / "run"
    folder.mkdir()
    pictures = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)
    wide = widen(create_encoder("mobilenetv3-small", seed=5).eval(), 3, pictures)
    extra = {"init": str(plain / "encoder.safetensors"), "seed": 5}
    save_encoder(wide, folder, image_size=32, resize="crop", extra=extra)
    labels = labels_csv(tmp_path / "labels.csv", picture_folder(per_class=12))
    found = evaluate(folder, labels=labels)["encoders"]
    assert list(found)[2:] == ["random weights", "start, last level", "start, frozen", "adapted"]
    own = evaluate(plain, labels=labels)["encoders"]["pretrained"]
    assert {**found["start, last level"], "seconds": 0} == {**own, "seconds": 0}
    assert found["start, frozen"]["width"] == wide.width > own["width"]


def test_what_makes_figures_doubtful_is_told(
    run: Path, picture_folder: Folder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = picture_folder(per_class=6)
    result = evaluate(run, train=data, test=data)
    assert "12 test pictures are training pictures too (equal files)" in caplog.text
    assert "Too good: 12 test pictures are training pictures too." in shown(result)
    told = label_verdict(json.loads((run / "eval.json").read_text())).sentences[-1]
    assert "Too good: 12 of the test pictures are training pictures too (equal files)." in told
    labels = labels_csv(tmp_path / "labels.csv", data, lambda n: "test" if n > 8 else "train")
    evaluate(run, labels=labels)
    assert "no test picture of bright: balanced accuracy is that of the other 1 of 2" in caplog.text
    with pytest.raises(UsageError, match="there is no folder"):
        evaluate(run, labels=labels, out=tmp_path / "nowhere" / "eval.json")


@pytest.mark.parametrize("init", ["gone.safetensors", "pretrained"])
def test_a_start_out_of_reach_costs_its_row_only(
    init: str,
    picture_folder: Folder,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import timm

    create = timm.create_model

    def offline(*given: Any, pretrained: bool = False, **more: Any) -> Any:
        if pretrained:
            raise OSError("no network")
        return create(*given, **more)

    monkeypatch.setattr(timm, "create_model", offline)
    adapted = make_run(tmp_path / "adapted", init=init)
    labels = labels_csv(tmp_path / "labels.csv", picture_folder(per_class=12))
    result = evaluate(adapted, labels=labels)
    assert list(result["encoders"]) == ["raw pixels", "descriptors", "random weights", "adapted"]
    assert "the table has no row for" in caplog.text


def test_table_shows_every_row_in_80_columns(
    run: Path, picture_folder: Folder, tmp_path: Path
) -> None:
    labels = labels_csv(tmp_path / "labels.csv", picture_folder(per_class=12))
    result = evaluate(run, labels=labels)
    lines = shown(result)
    assert max(map(len, lines)) <= 80
    for name, scores in result["encoders"].items():
        (line,) = [line for line in lines if line.startswith(name)]
        assert f"{100 * scores['knn']['balanced_accuracy']:.1f}" in line
    assert any("2 classes, 18 training and 6 test pictures (3 a class)" in x for x in lines)


@pytest.mark.parametrize(
    "case", ["draws", "seed", "both", "neither", "unreadable", "unseen", "one class"]
)
def test_wrong_input_is_told_and_nothing_written(
    case: str, run: Path, picture_folder: Folder, tmp_path: Path
) -> None:
    data = picture_folder()
    labels: Path | None = labels_csv(tmp_path / "labels.csv", data)
    more: dict[str, Any] = {}
    if case == "draws":
        more, told = {"draws": 3}, "got 3; at least 10"
    elif case == "seed":
        more, told = {"seed": 2**31}, "seed: got 2147483648; give 0 to 2147483647"
    elif case == "both":
        more, told = {"train": data, "test": data}, "either --labels"
    elif case == "neither":
        labels, told = None, "either --labels"
    elif case == "unreadable":
        (data / "dark" / "003.png").write_bytes(b"gone")
        told = "1 labeled pictures cannot be read; first: .*003.png"
    elif case == "unseen":
        labels = labels_csv(
            tmp_path / "l.csv", data, lambda number: "test" if number < 8 else "train"
        )
        told = "1 classes have test pictures but no training picture"
    else:
        labels, told = labels_csv(tmp_path / "l.csv", data / "dark"), "1 classes and 2 test"
    with pytest.raises(UsageError, match=told):
        evaluate(run, labels=labels, **more)
    assert not (run / "eval.json").exists()


def test_files_of_others_stay(run: Path, picture_folder: Folder, tmp_path: Path) -> None:
    data = picture_folder(per_class=12)
    labels = labels_csv(tmp_path / "eval_split.csv", data)
    mine, notes = tmp_path / "mine.json", tmp_path / "b_split.csv"
    mine.write_text('{"my": "settings"}')
    notes.write_text("path,label,split,note\n")
    before = {path: path.read_bytes() for path in (labels, mine, notes)}
    for name, told in (
        ("mine.json", "no result of tinyssl eval"),
        ("eval.json", "is read here and would be lost"),
        ("b.json", "its first line is not path,label,split"),
    ):
        with pytest.raises(UsageError, match=told):
            evaluate(run, labels=labels, out=tmp_path / name)
    assert {path: path.read_bytes() for path in before} == before
    (tmp_path / "a.json").touch()
    result = evaluate(run, labels=labels, out=tmp_path / "a.json")
    assert result["split"] == "25 % stratified, seed 0, in a_split.csv"
    assert evaluate(run, labels=tmp_path / "a_split.csv", out=tmp_path / "a.json")["test"] == 6


def test_pictures_that_were_pretrained_on_are_counted(
    run: Path, picture_folder: Folder, tmp_path: Path
) -> None:
    data = picture_folder(per_class=12)
    split = labels_csv(tmp_path / "l.csv", data, lambda n: "test" if n % 3 == 0 else "train")
    recipe = recipe_text("mobilenetv3-small")
    for sources, seen in (([data], 8), ([data / "dark"], 4), ([tmp_path / "gone"], None)):
        told = recipe.replace("sources: []", f"sources: [{', '.join(map(str, sources))}]")
        assert told != recipe
        (run / "recipe.yaml").write_text(told)
        result = evaluate(run, labels=split)
        assert result.get("pretrained_on") == seen
        lines = f"{seen} test pictures were pretrained on, without their labels."
        assert (lines in shown(result)) == (seen is not None)


def test_a_run_that_goes_on_meanwhile_has_no_figures(
    run: Path, picture_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def meanwhile(*given: Any) -> Any:
        yield from embedders(*given)
        other = create_encoder("mobilenetv3-small", seed=6)
        save_encoder(other, run, image_size=32, resize="crop")

    monkeypatch.setattr("tinyssl.evaluation.embedders", meanwhile)
    labels = labels_csv(tmp_path / "labels.csv", picture_folder(per_class=12))
    with pytest.raises(JobError, match="changed while it was judged; judge it again when"):
        evaluate(run, labels=labels)
    assert not (run / "eval.json").exists()


def test_a_baseline_that_is_not_there_is_told_before_any_is_judged(
    run: Path, picture_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tinyssl.evaluation.embedders", lambda *_: pytest.fail("began to judge"))
    labels = labels_csv(tmp_path / "labels.csv", picture_folder(per_class=12))
    with pytest.raises(UsageError, match=r"no weights at .*/gone; give a file or a run folder"):
        evaluate(run, labels=labels, baselines=tmp_path / "gone")


@pytest.mark.parametrize(
    ("wishes", "told"),
    [
        ({"draws": 11}, "seed: got 2147483638; give 0 to 2147483637, as each of 11 curve draws"),
        ({"shots": [10]}, "10 a class of 2 classes are 20 labels, but there are 18 training"),
        ({"shots": [1], "settings": ["network.view=3"]}, "network.view"),
        ({"shots": [1]}, "label_curve.png is a folder"),
    ],
)
def test_a_curve_that_cannot_be_is_told_before_anything_is_judged(
    wishes: dict[str, Any],
    told: str,
    run: Path,
    picture_folder: Folder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tinyssl.evaluation.embedders", lambda *_: pytest.fail("began to judge"))
    labels = labels_csv(tmp_path / "labels.csv", picture_folder(per_class=12))
    (run / "label_curve.png").mkdir()
    with pytest.raises(UsageError, match=told):
        evaluate(run, labels=labels, seed=2**31 - 10, curve=CurveWishes(**wishes))


def test_a_baseline_takes_no_other_row(
    run: Path, picture_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run(tmp_path / "pretrained", "resnet18")
    monkeypatch.chdir(tmp_path)
    labels = labels_csv(tmp_path / "labels.csv", picture_folder(per_class=12))
    rows = evaluate(run, labels=labels, baselines=["pretrained", "pretrained"])["encoders"]
    assert list(rows)[3:] == [str(tmp_path / "pretrained"), "pretrained"]
    monkeypatch.chdir(make_run(tmp_path / "other"))
    assert list(evaluate(run, labels=labels, baselines=".")["encoders"])[3:] == [
        "other",
        "pretrained",
    ]
    assert [found["width"] for found in rows.values()][3:] == [512, 1024]


def test_some_pictures_are_those_of_all_that_are_wanted() -> None:
    pictures, wanted = np.arange(40).reshape(10, 2, 2), np.arange(10) % 3 == 0
    assert np.array_equal(some(pictures, wanted, 9), pictures[wanted])
    assert np.array_equal(some(pictures, wanted, 2), pictures[[0, 9]])


def test_scores_of_other_weights_are_not_the_runs(
    run: Path, picture_folder: Folder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A run that goes on after it was judged has other weights in the end."""
    evaluate(run, labels=labels_csv(tmp_path / "labels.csv", picture_folder(per_class=12)))
    (run / "recipe.yaml").write_text(recipe_text("mobilenetv3-small"))
    assert len(read_run(run).result["encoders"]) == 4
    save_encoder(create_encoder("mobilenetv3-small", seed=6), run, image_size=32, resize="crop")
    assert read_run(run).result == {}
    assert "eval.json is of weights that the run had earlier" in caplog.text


def test_a_run_without_weights_is_told_before_anything_is_written(
    run: Path, picture_folder: Folder, tmp_path: Path
) -> None:
    (run / "encoder.safetensors").unlink()
    os.mkfifo(run / "encoder.safetensors")  # a stranger's folder must not hang the command
    before = sorted(run.iterdir())
    with pytest.raises(UsageError, match="no weights at"):
        evaluate(run, labels=labels_csv(tmp_path / "labels.csv", picture_folder(per_class=4)))
    assert sorted(run.iterdir()) == before


def test_a_refused_evaluation_changes_nothing(
    run: Path, picture_folder: Folder, tmp_path: Path
) -> None:
    labels = labels_csv(tmp_path / "labels.csv", picture_folder(per_class=12))
    evaluate(run, labels=labels)
    before = {path: path.read_bytes() for path in (*run.iterdir(), labels)}
    other = make_run(tmp_path / "other", "resnet18") / "encoder.safetensors"
    for wrong in ({"baselines": [other]}, {"out": labels}, {"seed": 3, "baselines": str(other)}):
        with pytest.raises(UsageError):
            evaluate(run, labels=labels, **wrong)
    assert {path: path.read_bytes() for path in (*run.iterdir(), labels)} == before
