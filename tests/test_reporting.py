"""Reports as files: what they hold, what they refuse, and that names stay text."""

import importlib.util
import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.making import HOSTILE, TINY, label_points, untrained_run
from tinyssl.cli import main
from tinyssl.data import pictures_for
from tinyssl.errors import JobError, UsageError
from tinyssl.evaluation import evaluate
from tinyssl.finetuning import finetune
from tinyssl.own_pictures import own_pictures
from tinyssl.pretraining import pretrain
from tinyssl.recipe_files import recipe_text
from tinyssl.reporting import page
from tinyssl.reporting.advice import advise, all_clear
from tinyssl.reporting.card import NOT_STATED, limits, read_card
from tinyssl.reporting.command import _judged_fairly, _verdict, report
from tinyssl.reporting.comparison import comparable, compare, different_settings
from tinyssl.reporting.gallery import FEATURES, Gallery, sample
from tinyssl.reporting.names import for_plot, short_names
from tinyssl.reporting.next_steps import judging
from tinyssl.reporting.pictures import map_thumbnails
from tinyssl.reporting.recipe_diff import Setting, nearest_recipe
from tinyssl.reporting.run_facts import RunFacts, read_run
from tinyssl.reporting.tiles import duration
from tinyssl.reporting.views import acting, views_of

pytest.importorskip("plotly")


@pytest.fixture
def place(hostile_place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TINYSSL_CACHE", str(hostile_place / "cache"))
    return hostile_place


@pytest.fixture
def written(hostile_report: Path) -> str:
    return hostile_report.read_text(encoding="utf-8")


class Outline(HTMLParser):
    """The tags, texts and JSON blocks of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.blocks: dict[str, str] = {}
        self._block = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._block = str(dict(attrs).get("id", "")) if tag == "script" else ""

    def handle_data(self, data: str) -> None:
        if self._block:
            self.blocks[self._block] = self.blocks.get(self._block, "") + data
        else:
            self.texts.append(data)


def test_pretraining_leaves_a_quick_report(place: Path) -> None:
    text = (place / "run" / "report.html").read_text(encoding="utf-8")
    assert re.search("Not known yet: it was not judged on labels|No: the features collapsed", text)
    assert "figure-loss" in text
    assert "What does augmentation do?" in text
    assert "map-data" not in Outline(text).blocks
    assert "1 files could not be read" in text


def test_report_answers_six_questions_in_order(written: str) -> None:
    asked = [
        "Did it work?", "How did it train?", "What does the encoder see?",
        "What does augmentation do?", "What runs on the device?", "Model card",
    ]  # fmt: skip
    places = [written.index(f"</span>{question}</h2>") for question in asked]
    assert places == sorted(places)


def test_map_holds_every_picture_with_its_neighbours(written: str) -> None:
    data = json.loads(Outline(written).blocks["map-data"])
    assert len(data["x"]) == len(data["thumbs"]) == len(data["names"]) == 25
    assert max(map(abs, data["x"] + data["y"])) == pytest.approx(1)
    assert all(row not in near for row, near in enumerate(data["near"]))
    assert all(0 <= other < 25 for near in data["near"] for other in near)
    assert all(thumb.startswith("data:image/webp;base64,") for thumb in data["thumbs"])
    assert any(HOSTILE in name for name in data["names"])
    assert data["classes"] == ["<b>dark & {{7*7}}", "bright"]


def test_names_stay_text(written: str) -> None:
    outline = Outline(written)
    assert not [tag for tag, attributes in outline.tags if "onerror" in attributes]
    assert not [1 for tag, attributes in outline.tags if attributes.get("src") == "x"]
    assert any(HOSTILE in text for text in outline.texts)
    assert any("<b>dark & {{7*7}}" in text for text in outline.texts)


def test_page_asks_for_nothing_outside_itself(written: str) -> None:
    for tag, attributes in Outline(written).tags:
        for key in ("src", "href", "srcset", "action"):
            value = attributes.get(key) or ""
            assert value.startswith(("data:", "#")) or not value, (tag, value)
    assert "@import" not in written
    assert not re.search(r"url\((?!data:)", written)


def test_every_picture_and_chart_has_words(written: str) -> None:
    tags = Outline(written).tags
    assert all(attributes.get("alt") for tag, attributes in tags if tag == "img")
    plots = [a for _, a in tags if "plot" in (a.get("class") or "").split()]
    assert len(plots) >= 4
    assert all(attributes.get("aria-label") for attributes in plots)


def test_features_are_kept_for_the_next_report(
    place: Path, written: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (place / "run" / FEATURES).is_file()
    monkeypatch.setattr(
        "tinyssl.reporting.gallery.embed_pictures", lambda *_, **__: pytest.fail("embedded again")
    )
    report(place / "run", labels=place / "pictures", out=place / "again.html")


def test_pictures_are_those_that_training_takes(place: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(place / "run", run)
    described = json.loads((run / "encoder.json").read_text()) | {"max_pixels": 10}
    (run / "encoder.json").write_text(json.dumps(described))
    with pytest.raises(JobError, match=r"none of the .* pictures can be read"):
        report(run, data=[place / "pictures"], out=tmp_path / "report.html")


def test_labels_with_a_split_and_scores(place: Path) -> None:
    rows = ["path,label,split"]
    for number, path in enumerate(sorted((place / "pictures").glob("*/[01]*.png"))):
        label = "bright" if "bright" in path.parent.name else "dark"
        label = label if number else "gray"  # a class without a test picture
        rows.append(f'"{path}",{label},{("train", "train", "test")[number % 3]}')
    (place / "labels.csv").write_text("\n".join(rows) + "\n")
    found = {
        "knn": {"confusion": [[9, 1], [2, 8]]},
        "linear": {"confusion": [[9, 1], [1, 9]], "C": 0.1},
        "few_shot": {"10": {"mean": 0.8, "half_width": 0.1, "draws": 10}},
        "retrieval": 0.4321,
    }
    result = {"train": 16, "test": 8, "classes": ["bright", "dark"], "split": "of labels.csv"}
    result["curve"] = label_points()
    result["encoders"] = {"raw pixels": found, "random weights": found, "pretrained": found}
    (place / "run" / "eval.json").write_text(json.dumps(result))
    try:
        out = report(place / "run", labels=place / "labels.csv", out=place / "scored.html")
    finally:
        (place / "run" / "eval.json").unlink()
    text = out.read_text(encoding="utf-8")
    assert "Measured on 8 test pictures of 2 classes" in text
    assert "not clearly different from raw pixels and random weights" in text
    assert "Which classes are taken for which" in text
    assert text.count("<td>\N{EN DASH}</td></tr>") == 1  # of no picture no share is right
    assert text.count("<td>43 %</td>") == 3
    assert json.loads(Outline(text).blocks["figure-scores"])["data"][-1]["name"] == "pretrained"
    assert len(json.loads(Outline(text).blocks["figure-labels"])["data"]) == 4
    assert "interval of 5 choices of pictures" in text


def test_no_picture_is_judged_by_a_fit_on_its_equal() -> None:
    def kept(test: list[bool] | None, *taught: str) -> list[int]:
        pictures: Any = SimpleNamespace(hashes=["a", "a", "b", "b", "c"])
        labels, split = np.array([0, 0, -1, 1, 1]), None if test is None else np.array(test)
        features = np.zeros((5, 2), np.float32)
        gallery = Gallery(pictures, [*"vwxyz"], labels, ["d", "e"], split, features, 5)
        return _judged_fairly(gallery, set(taught)).tolist()

    assert kept(None) == [0, -1, -1, 1, 1]
    assert kept(None, "c") == [0, -1, -1, 1, -1]
    assert kept([False, True, False, False, True]) == [0, 0, -1, 1, 1]
    assert kept([False, True, False, False, True], "b", "c") == [0, 0, -1, 1, -1]


@pytest.mark.parametrize(
    ("recipe", "told"),
    [("few-label-linear", "Nothing was augmented"), ("few-label", "what the network saw of them")],
)
def test_fine_tuned_run(place: Path, tmp_path: Path, recipe: str, told: str) -> None:
    short = ["network.views=16", "network.fold_views=16", "network.batch_size=8"]
    short += ["classifier.folds=2", "classifier.repeats=1"]
    run = finetune(
        place / "run", place / "pictures", out=tmp_path / "cls", recipe=recipe, overrides=short
    )
    text = report(run, labels=place / "pictures", out=tmp_path / "r.html").read_text("utf-8")
    assert "on held-out folds of its labels" in text
    assert "with 24 labels of 2 classes" in text
    assert "Scores on held-out folds of the labels" in text
    assert told in text
    assert "tinyssl finetune" in "".join(Outline(text).texts)


def test_the_own_classifier_has_an_interval(place: Path, tmp_path: Path) -> None:
    pictures = place / "pictures"
    run = finetune(place / "run", pictures, "few-label-linear", tmp_path / "cls")
    own = evaluate(run, train=pictures, test=pictures)["classifier"]
    text = report(run, out=tmp_path / "r.html").read_text("utf-8")
    found = re.search(
        r"own classifier: <strong>([\d.]+) <span class=\"pm\">± ([\d.]+)</span>", text
    )
    assert found is not None
    assert found[1] == f"{100 * own['balanced_accuracy']:.1f}"
    assert 0 < float(found[2]) < 50


def test_other_pictures_and_fewer_of_them(place: Path, tmp_path: Path) -> None:
    bright = place / "pictures" / "bright"
    out = report(place / "run", data=[bright], pictures=5, out=tmp_path / "r.html")
    text = out.read_text(encoding="utf-8")
    assert len(json.loads(Outline(text).blocks["map-data"])["x"]) == 5
    assert "evenly taken from 13" in text


def test_two_pictures_are_enough(place: Path, tmp_path: Path) -> None:
    two = sorted((place / "pictures" / "bright").glob("0[12].png"))
    out = report(place / "run", data=two, out=tmp_path / "r.html")
    assert len(json.loads(Outline(out.read_text("utf-8")).blocks["map-data"])["x"]) == 2


def test_wrong_use_is_one_clear_line(place: Path, tmp_path: Path) -> None:
    run = place / "run"
    with pytest.raises(UsageError, match="no encoder in"):
        report(tmp_path)
    with pytest.raises(UsageError, match="is a folder; name a file"):
        report(run, out=tmp_path)
    with pytest.raises(UsageError, match="there is no folder"):
        report(run, out=tmp_path / "no" / "r.html")
    with pytest.raises(UsageError, match="at least 2 are needed"):
        report(run, pictures=1)
    with pytest.raises(UsageError, match="workers: got -1; give 0"):
        report(run, workers=-1)
    with pytest.raises(UsageError, match="no bundle in"):
        report(run, bundle=tmp_path)
    with pytest.raises(UsageError, match="no encoder in"):
        compare([run, tmp_path], tmp_path / "c.html")
    with pytest.raises(UsageError, match="give at least 2"):
        compare([run], tmp_path / "c.html")


def test_command_line(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(place / "run")
    main(["report", "--compare", run, run, "--out", str(tmp_path / "c.html")])
    assert (tmp_path / "c.html").is_file()
    for arguments, told in (
        (["report", run, run], "several go with --compare"),
        (["report", "--compare", run, run, "--pictures", "5"], "leave out --pictures"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 2
        assert told in capsys.readouterr().err


def test_missing_extra_is_told_and_harms_no_run(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(page, "find_spec", lambda name: None if name == "plotly" else real(name))
    with pytest.raises(UsageError, match=r'needs plotly; install with: pip install "tinyssl\['):
        report(place / "run", out=tmp_path / "r.html")
    run = pretrain(place / "pictures", out=tmp_path / "run", overrides=TINY)
    assert (run / "encoder.safetensors").is_file()
    assert not (run / "report.html").exists()
    assert any("no report: plotly missing" in line.message for line in caplog.records)


def test_a_report_that_fails_harms_no_run(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise JobError("no space left")

    monkeypatch.setattr("tinyssl.reporting.command.write_page", fail)
    run = pretrain(place / "pictures", out=tmp_path / "run", overrides=TINY)
    assert (run / "encoder.safetensors").is_file()
    assert "no report: JobError: no space left" in (run / "train.log").read_text()


def test_comparison_shows_scores_curves_and_settings(place: Path, tmp_path: Path) -> None:
    other = pretrain(
        place / "pictures", out=tmp_path / "other", overrides=[*TINY, "optim.base_lr=0.05"]
    )
    out = compare([place / "run", other], tmp_path / "c.html")
    text = out.read_text(encoding="utf-8")
    assert "fewer than two of the runs were judged" in text
    traces = json.loads(Outline(text).blocks["figure-loss"])["data"]
    assert [trace["name"] for trace in traces] == ["run", "other"]
    facts = [read_run(place / "run"), read_run(other)]
    assert ("optim.base_lr", ["0.4", "0.05"]) in different_settings(facts)


def facts_of(**changes: Any) -> RunFacts:
    empty = RunFacts(
        path=Path("run"), encoder={"init": "random", "finished": True}, recipe={}, metrics=[],
        epochs=[], result={}, finetuned={}, machine={}, skipped=[], copies=[], digests={},
    )  # fmt: skip
    return replace(empty, **changes)


def curve(key: str, values: list[float]) -> list[dict[str, float | None]]:
    return [{"epoch": float(n), key: value} for n, value in enumerate(values, 1)]


HEALTHY = {"rankme": 50.0, "bank_rank": 40.0, "bank_cosine": 0.1}


def test_nothing_to_warn_of() -> None:
    assert advise(facts_of(), 2000, 0.0) == []
    assert all_clear(facts_of()) == "Nothing to warn of: no skipped files, few copies."
    watched = facts_of(metrics=[HEALTHY], epochs=curve("loss", [2, 1]))
    assert "no collapse, no skipped files, few copies, no sign of too long" in all_clear(watched)


@pytest.mark.parametrize(
    ("key", "told"), [("instance", "pushes a picture away"), ("near", "places of other near")]
)
def test_what_copies_do_depends_on_the_loss(key: str, told: str) -> None:
    facts = facts_of(copies=[["a", "b"]] * 30, epochs=curve(key, [2, 1]))
    (found,) = advise(facts, 2000, None)
    assert told in found.todo


@pytest.mark.parametrize(
    ("changes", "pictures", "near", "told"),
    [
        ({}, 60, None, "Only 60 pictures"),
        ({"skipped": [("a\udcff.png", "cut off")]}, 2000, None, "1 files could not be read"),
        ({"copies": [["a", "b", "c"]] * 30}, 2000, None, "60 pictures are exact copies"),
        ({}, 2000, 0.4, "40 % of the pictures nearly repeat"),
        ({"epochs": curve("knn", [0.5, 0.7, 0.66, 0.6])}, 2000, None, "best at epoch 2"),
        ({"epochs": curve("loss", [9, 5, 3] + [2.0] * 12)}, 2000, None, "the loss hardly moved"),
        (
            {"metrics": [{"rankme": 1.1, "bank_rank": 9.0, "bank_cosine": 0.1}]},
            2000, None, "features are collapsing",
        ),
        ({"result": {"test": 30, "encoders": {}}}, 2000, None, "Only 30 test pictures"),
        (
            {"result": {"test": 300, "test_in_training": 5, "encoders": {}}},
            2000, None, "5 test pictures are training pictures too",
        ),
        (
            {"result": {"test": 300, "classifier": {"seen_in_finetuning": 4}}},
            2000, None, "4 test pictures were used in fine-tuning",
        ),
        (
            {"result": {"test": 300, "encoders": {"a": {}, "b": {"taught_by_test": 5}}}},
            2000, None, "The labels of 5 test pictures trained this encoder",
        ),
    ],
)  # fmt: skip
def test_warnings_say_what_to_do(
    changes: dict[str, Any], pictures: int, near: float | None, told: str
) -> None:
    (advice,) = advise(facts_of(**changes), pictures, near)
    assert told in advice.what
    assert len(advice.todo) > 20


def test_a_steady_course_is_not_called_too_long() -> None:
    falling = [8 - 0.1 * n for n in range(20)]
    assert advise(facts_of(epochs=curve("loss", falling)), 2000, None) == []
    assert advise(facts_of(epochs=curve("knn", [0.5, 0.6, 0.7, 0.69])), 2000, None) == []


def test_runs_judged_on_other_pictures_are_not_compared() -> None:
    def judged_on(test: int) -> RunFacts:
        found = {"knn": {"confusion": [[test, 0], [0, 1]]}}
        return facts_of(
            result={"classes": ["a", "b"], "train": 9, "test": test + 1, "encoders": {"x": found}}
        )

    assert comparable([judged_on(5), judged_on(5), facts_of()])
    assert not comparable([judged_on(5), judged_on(6)])


def test_comparison_names_the_best_and_those_not_judged(place: Path, tmp_path: Path) -> None:
    runs = [shutil.copytree(place / "run", tmp_path / name) for name in ("good", "bad", "new")]
    for run, right in zip(runs, (90, 50), strict=False):
        matrix = [[right, 100 - right], [100 - right, right]]
        found = {"knn": {"confusion": matrix}, "linear": {"confusion": matrix}, "few_shot": {}}
        result = {"train": 50, "test": 200, "classes": ["a", "b"], "split": "of labels.csv"}
        seen = {"pretrained_on": 100 - right}
        (run / "eval.json").write_text(
            json.dumps(result | seen | {"encoders": {"pretrained": found}})
        )
    text = compare(runs, tmp_path / "c.html").read_text("utf-8")
    assert "Pretrained on test pictures, without labels: good on 10, bad on 50." in text
    assert "Best on average is good: clearly better than bad." in text
    assert "Measured on 200 test pictures of 2 classes" in text
    assert "Not judged on labels: new." in text


FINETUNED = {
    "run": "runs/mine", "recipe": "few-label", "reason": "as asked for", "labels": {"a": 2, "b": 2},
    "held_out": {"few-label": {"balanced_accuracy": 0.5, "accuracy": 0.5, "log_loss": 0.7}},
}  # fmt: skip
JUDGED = {"train": 2, "test": 2, "classes": ["a", "b"], "split": "of l.csv", "encoders": {}}


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("finetune.json", {k: v for k, v in FINETUNED.items() if k != "reason"}, "reason"),
        (
            "finetune.json",
            FINETUNED | {"held_out": {"few-label": {"balanced_accuracy": 0.5}}},
            "held_out.few-label.accuracy",
        ),
        ("eval.json", JUDGED | {"curve": [{"method": "linear", "mean": 0.5}]}, "curve.0.select"),
        ("eval.json", JUDGED | {"curve": [label_points()[0] | {"method": "x"}]}, "curve.0.method"),
        ("eval.json", JUDGED | {"encoders": {"a": {"knn": {"confusion": None}}}}, "encoders.a.knn"),
    ],
)
def test_results_that_lack_what_is_shown_are_told(
    name: str, content: dict[str, Any], told: str, place: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(place / "run", tmp_path / "run")
    (run / name).write_text(json.dumps(content))
    with pytest.raises(UsageError, match=f"{name} is damaged: {told}"):
        report(run, out=tmp_path / "r.html")


def test_results_without_k_nn_are_compared(place: Path, tmp_path: Path) -> None:
    runs = [shutil.copytree(place / "run", tmp_path / name) for name in ("one", "other")]
    linear = {"linear": {"confusion": [[9, 1], [2, 8]]}}
    (runs[0] / "eval.json").write_text(json.dumps(JUDGED | {"encoders": {"pretrained": linear}}))
    text = compare(runs, tmp_path / "c.html").read_text("utf-8")
    assert "fewer than two of the runs were judged" in text


def test_nearest_recipe_and_what_differs(place: Path) -> None:
    name, settings = nearest_recipe(read_run(place / "run").recipe)
    changed = {setting.key: setting.value for setting in settings if setting.changed}
    assert name == "mobilenetv3-small"
    assert changed["data.image_size"] == "32"
    assert "data.sources" not in changed
    assert "data.channels" not in changed  # auto, and settled when the run began


def test_a_run_called_like_a_recipe_is_shown_by_its_own(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(place / "run", tmp_path / "resnet18")
    monkeypatch.chdir(tmp_path)
    there, here = read_run(place / "run"), read_run("resnet18")
    assert here.recipe == there.recipe
    pictures = pictures_for(here.encoder, own_pictures("resnet18"))
    assert views_of(here, pictures) == views_of(there, pictures) != []


def test_card_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    path = tmp_path / "card.yaml"
    path.write_text("data_licence: CC0\n")
    assert (read_card(path).data_licence, read_card(path).author) == ("CC0", NOT_STATED)
    for text, told in (
        ("data_license: CC0", "did you mean data_licence"),
        ("author: 3", "give a text"),
        ("- author", "holds no fields"),
        ("a: [", "cannot be read"),
    ):
        path.write_text(text)
        with pytest.raises(UsageError, match=told):
            read_card(path)


@pytest.mark.parametrize(
    ("init", "told"),
    [("random", "It has seen 90 pictures;"), ("pretrained", "Besides those of its")],
)
def test_a_card_remembers_that_a_start_had_pictures_of_its_own(init: str, told: str) -> None:
    encoder = {"init": init, "image_size": 64, "channels": 3, "resize": "crop"}
    assert limits(facts_of(encoder=encoder), 90)[1].startswith(told)


def test_a_card_tells_what_a_model_was_measured_on() -> None:
    encoder = {"init": "random", "image_size": 64, "channels": 3, "resize": "crop"}

    def told(**changes: Any) -> str:
        return limits(facts_of(encoder=encoder, **changes), None)[-1]

    held_out = {"held_out": {"few-label": {"balanced_accuracy": 0.9}}}
    assert "nothing is known of its accuracy" in told()
    assert "nothing is known of its accuracy" in told(finetuned={"held_out": {}})
    assert "held-out folds of its own labels only" in told(finetuned=held_out)
    assert "on 48 test pictures;" in told(finetuned=held_out, result={"test": 48})


def test_sample_keeps_labeled_ones_and_order() -> None:
    paths = [f"{number:03}" for number in range(100)]
    kept = sample(paths, {"005", "006"}, 10)
    assert len(kept) == 10
    assert {"005", "006"} <= set(kept)
    assert kept == sorted(kept)
    assert len(sample(paths, set(paths), 10)) == 10
    assert sample(paths, set(), 100) == paths


def test_names() -> None:
    assert short_names(["/a/b/c.png", "/a/d.png"]) == ["b/c.png", "d.png"]
    assert short_names(["/a/b/c.png"]) == ["c.png"]
    assert short_names(["/a/\udcff.png", "/a/b"])[0] == "\ufffd.png"
    assert short_names(["/a/b.png", "a/b.png"]) == ["/a/b.png", "a/b.png"]  # as on two drives
    assert for_plot("<b>&") == "&lt;b&gt;&amp;"


def test_thumbnails_fit_their_budget() -> None:
    noise = np.random.default_rng(0).integers(0, 65536, (40, 96, 96, 3)).astype(np.uint16)
    large = map_thumbnails(noise, lambda _: None)
    small = map_thumbnails(noise, lambda _: None, budget=40 * 900)
    assert sum(map(len, small)) < sum(map(len, large)) / 2


@pytest.mark.parametrize(
    ("seconds", "told"), [(1.24, "1.2 s"), (173, "2 min 53 s"), (3700, "1 h 1 min")]
)
def test_durations(seconds: float, told: str) -> None:
    assert duration(seconds) == told


def test_next_step_is_a_command_to_paste(tmp_path: Path) -> None:
    facts = facts_of(path=Path("my run"), recipe={"data": {"sources": ["a b", "c"]}})
    _, commands = judging(facts, None) or ("", [])
    assert commands[0] == "tinyssl select 'my run' 'a b' c --budget 50 --out to_label.csv"
    _, commands = judging(facts, tmp_path) or ("", [])
    assert commands == [f"tinyssl eval 'my run' --labels {tmp_path}"]
    _, commands = judging(facts, "labels.csv") or ("", [])
    assert commands == ["tinyssl eval 'my run' --labels labels.csv"]
    _, commands = judging(facts_of(finetuned={"recipe": "few-label"}), None) or ("", [])
    assert commands == ["tinyssl eval run --labels labels.csv"]
    assert judging(facts_of(result={"encoders": {"pretrained": {}}}), None) is None


@pytest.mark.parametrize(("weight", "near"), [(0.7, True), (0.7, False), (0.0, False), (1.0, True)])
def test_guessing_is_compared_with_the_whole_loss(
    weight: float, near: bool, tmp_path: Path
) -> None:
    """The log has the loss times the share of the target that near pictures left to it."""
    run = untrained_run(tmp_path / "run")
    text = recipe_text("mobilenetv3-small").replace("near_weight: 0.7", f"near_weight: {weight}")
    (run / "recipe.yaml").write_text(text)
    logged = 5.0 * (1 - weight if near else 1)
    rows = f"epoch,instance,near\n1,{logged},{'1.0' if near else ''}\n"
    (run / "results.csv").write_text(rows)
    told = " ".join(_verdict(read_run(run), 100).sentences)
    assert ("The loss went from 5.00 to 5.00" in told) == (weight < 1)


def test_only_what_acts_on_the_pictures_is_told() -> None:
    given = {"hflip": "0.5", "hue": "0.1", "jitter": "0.8", "blur": "0.0", "blur_sigma": "[1,2]"}

    def told(channels: int = 3, **others: str) -> list[str]:
        values = given | others
        return acting([Setting(f"augment.{k}", v, v, False) for k, v in values.items()], channels)

    assert told() == ["hflip=0.5", "hue=0.1", "jitter=0.8"]
    assert told(channels=1) == ["hflip=0.5", "jitter=0.8"]
    assert told(jitter="0.0") == ["hflip=0.5"]
    assert told(pipeline="{'transform': 1}", view_size="32") == ["view_size=32", "pipeline=given"]


def test_a_page_that_tinyssl_did_not_make_stays(place: Path, tmp_path: Path) -> None:
    page, ours = tmp_path / "page.html", "would be lost; move it"
    page.write_text("<!doctype html><title>tinyssl, my notes</title>")
    with pytest.raises(UsageError, match=ours):
        report(place / "run", out=page)
    with pytest.raises(UsageError, match=ours):
        compare([place / "run", place / "run"], page)
    assert "my notes" in page.read_text()
    page.unlink()
    for _ in range(2):
        compare([place / "run", place / "run"], page)
