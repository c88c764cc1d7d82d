"""Fine-tuning from few labels: what it leaves, what it refuses, and that it repeats."""

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from rich.console import Console

import tinyssl
from tinyssl import finetuning
from tinyssl.approaches import Network
from tinyssl.classifier import load_classifier
from tinyssl.data import load_pictures
from tinyssl.encoder import create_encoder, widen
from tinyssl.errors import UsageError
from tinyssl.evaluation import evaluate
from tinyssl.evaluation import table as evaluation_table
from tinyssl.finetune_config import FOR_AUTO, load_finetune_recipe
from tinyssl.finetuning import finetune, table
from tinyssl.labels import write_csv
from tinyssl.model import load
from tinyssl.own_pictures import own_pictures
from tinyssl.reporting.verdict import label_verdict
from tinyssl.scanning import scan
from tinyssl.weights import read_description, save_encoder

Folder = Callable[..., Path]
SHORT = [
    "network.views=16", "network.fold_views=8", "network.batch_size=8", "network.lr=1e-5",
    "classifier.folds=2", "classifier.repeats=1", "classifier.strength=0.03",
]  # fmt: skip
FILES = {
    "classifier.safetensors", "encoder.json", "encoder.safetensors", "finetune.json",
    "labels.csv", "recipe.yaml",
}  # fmt: skip


@pytest.fixture
def run(tmp_path: Path, picture_folder: Folder) -> Path:
    """An encoder of components, whose own pictures can be found."""
    folder = tmp_path / "run"
    folder.mkdir()
    own = picture_folder("own", per_class=9)
    pictures = load_pictures(scan([own]), size=32, rule="crop", channels=3).array
    encoder = create_encoder("mobilenetv3-small", seed=5).eval()
    wide = widen(encoder, 1, pictures, components=12, whitening=0.25)
    save_encoder(wide, folder, image_size=32, resize="crop", extra={"seed": 5, "whitening": 0.25})
    sources = {"data": {"sources": [str(own)]}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(sources))
    return folder


def result_of(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "finetune.json").read_text()))


@pytest.mark.parametrize("recipe", FOR_AUTO)
def test_every_recipe_leaves_a_whole_run(
    recipe: str, run: Path, picture_folder: Folder, tmp_path: Path
) -> None:
    data = picture_folder(per_class=6)
    out = finetune(run, data, recipe, tmp_path / "out", overrides=SHORT)
    assert {path.name for path in out.iterdir()} == FILES
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".out")]
    classifier = load_classifier(out)
    assert classifier is not None
    assert classifier.classes == ["bright", "dark"]
    pictures = sorted(data.rglob("*.png"))
    features = torch.from_numpy(load(out).embed(pictures, raw=True))
    named = [classifier.classes[i] for i in classifier.probabilities(features).argmax(dim=1)]
    assert np.mean([n == p.parent.name for n, p in zip(named, pictures, strict=True)]) > 0.9
    result = result_of(out)
    assert result["recipe"] == recipe
    assert result["labels"] == {"bright": 6, "dark": 6}
    assert float(classifier.temperature) == pytest.approx(result["temperature"])
    assert set(result["held_out"]) == {recipe}
    description = read_description(out)
    assert (description["components"], description["whitening"]) == (12, 0.25)
    # What export measures parity on, unless other pictures are given.
    assert own_pictures(out) == pictures
    assert result["unlabeled"] == (18 if recipe == "few-label-semi" else 0)


@pytest.mark.parametrize("recipe", FOR_AUTO)
def test_the_encoder_changes_only_where_it_is_trained(
    recipe: str, run: Path, picture_folder: Folder, tmp_path: Path
) -> None:
    data = picture_folder(per_class=3)
    out = finetune(run, data, recipe, tmp_path / "out", overrides=SHORT)
    before, after = (load(path).encoder.state_dict() for path in (run, out))
    changed = [key for key, value in before.items() if not torch.equal(value, after[key])]
    assert bool(changed) == (recipe == "few-label")
    assert not [key for key in changed if "running" in key]


@pytest.mark.parametrize(("recipe", "fits"), [("auto", 2), ("few-label", 4 + 1)])
def test_a_network_that_does_not_lead_is_spared_the_second_draw_of_the_folds(
    recipe: str, fits: int, run: Path, picture_folder: Folder, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    done: list[bool] = []
    fit = Network.fit

    def counted(self: Network, *given: Any, final: bool) -> Any:
        done.append(final)
        return fit(self, *given, final=final)

    monkeypatch.setattr(Network, "fit", counted)
    settings = [s.replace("repeats=1", "repeats=2") for s in SHORT]
    out = finetune(run, picture_folder(per_class=6), recipe, tmp_path / "out", overrides=settings)
    # Every approach knows dark from bright, so that none leads.
    assert len(done) == fits
    told = "few-label does not lead on the first draw of the folds"
    assert (told in result_of(out)["reason"]) == (recipe == "auto")


def test_auto_compares_all_three_and_says_why(
    run: Path, picture_folder: Folder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = finetune(run, picture_folder(per_class=6), out=tmp_path / "out", overrides=SHORT[:-1])
    result = result_of(out)
    assert list(result["held_out"]) == list(FOR_AUTO)
    accuracy = {key: s["balanced_accuracy"] for key, s in result["held_out"].items()}
    *cheap, network = accuracy.values()
    expected = network if result["recipe"] == "few-label" else max(cheap)
    assert expected - 1 / 12 < accuracy[result["recipe"]] <= expected
    assert f"recipe: {result['recipe']} (held-out balanced accuracy" in caplog.text
    chosen = load_finetune_recipe(out)
    assert chosen.classifier.strength != "auto"
    assert chosen.data.sources == [str(out.absolute() / "labels.csv")]
    console = Console(width=80)
    with console.capture() as captured:
        console.print(table(result))
    assert max(map(len, captured.get().splitlines())) <= 80
    assert all(name in captured.get() for name in FOR_AUTO)


@pytest.mark.parametrize("singles", [1, 2])
def test_one_label_of_a_class_falls_back_and_says_so(
    singles: int,
    run: Path,
    picture_folder: Folder,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    data = picture_folder(per_class=3)
    for name in ("dark", "bright")[:singles]:
        for picture in sorted((data / name).iterdir())[1:]:
            picture.unlink()
    out = finetune(run, data, out=tmp_path / "out")
    result = result_of(out)
    told = "dark has a single label" if singles == 1 else "bright, dark have a single label"
    assert result["recipe"] == "few-label-linear"
    assert told in result["reason"]
    assert (result["temperature"], result["held_out"]) == (1.0, {})
    assert "probabilities are not calibrated" in caplog.text


def test_a_class_with_one_label_keeps_no_other_from_being_judged(
    run: Path, picture_folder: Folder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = picture_folder(per_class=3)
    (data / "odd").mkdir()
    Image.fromarray(np.full((40, 40, 3), (250, 0, 0), np.uint8)).save(data / "odd" / "one.png")
    result = result_of(finetune(run, data, out=tmp_path / "out", overrides=SHORT))
    assert result["labels"] == {"bright": 3, "dark": 3, "odd": 1}
    assert result["folds"] == [2]
    assert list(result["held_out"]) == list(FOR_AUTO)
    assert result["held_out"]["few-label-linear"]["balanced_accuracy"] == 1
    assert result["temperature"] != 1
    assert "a single label of odd can be learned from but not held out" in caplog.text
    assert "scores are of the other 2 classes" in caplog.text
    assert "Scores are without odd: a single label." in str(table(result).caption)


def test_scores_like_those_of_guessing_are_told(
    run: Path, picture_folder: Folder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data, told = picture_folder(per_class=6), "is not clearly better than guessing"
    finetune(run, data, "few-label-linear", tmp_path / "good", overrides=SHORT)
    assert told not in caplog.text
    paths = scan([data])
    write_csv(tmp_path / "labels.csv", paths, ["a", "b"] * (len(paths) // 2))
    finetune(run, tmp_path / "labels.csv", "few-label-linear", tmp_path / "bad", overrides=SHORT)
    assert f"{told} among 2 classes (50.0 %)" in caplog.text


def test_asked_for_recipe_is_fitted_with_single_labels_too(
    run: Path, picture_folder: Folder, tmp_path: Path
) -> None:
    data = picture_folder(per_class=1)
    for recipe in FOR_AUTO:
        out = finetune(run, data, recipe, tmp_path / recipe, overrides=SHORT)
        assert result_of(out)["temperature"] == 1


def test_rare_class_is_not_drowned(run: Path, picture_folder: Folder, tmp_path: Path) -> None:
    """Noise alone: unweighted, 20 to 2 would call nearly all of them dark."""
    data = picture_folder(per_class=20)
    for picture in sorted((data / "bright").iterdir())[2:]:
        picture.unlink()
    for picture in sorted(data.rglob("*.png")):
        generator = np.random.default_rng(
            list(picture.name.encode() + picture.parent.name.encode())
        )
        noise = generator.integers(0, 255, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(noise).save(picture)
    out = finetune(run, data, "few-label-linear", tmp_path / "out", overrides=SHORT)
    classifier = load_classifier(out)
    assert classifier is not None
    generator = np.random.default_rng(0)
    noise = generator.integers(0, 255, (64, 32, 32, 3), dtype=np.uint8)
    shares = classifier.probabilities(torch.from_numpy(load(out).embed(noise, raw=True)))
    assert 0.25 < float(shares[:, 0].mean()) < 0.75


def test_same_seed_same_result(run: Path, picture_folder: Folder, tmp_path: Path) -> None:
    data = picture_folder(per_class=4)
    outs = [
        finetune(run, data, "few-label", tmp_path / name, overrides=SHORT, seed=seed)
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    for name in ("encoder.safetensors", "classifier.safetensors"):
        first, again, other = ((out / name).read_bytes() for out in outs)
        assert first == again
        assert first != other


def test_saved_recipe_repeats_the_run(run: Path, picture_folder: Folder, tmp_path: Path) -> None:
    data = picture_folder(per_class=4)
    one = finetune(run, data, "few-label", tmp_path / "one", overrides=SHORT)
    two = finetune(run, one / "labels.csv", one / "recipe.yaml", tmp_path / "two")
    for name in ("encoder.safetensors", "classifier.safetensors"):
        assert (one / name).read_bytes() == (two / name).read_bytes()


def test_a_tuned_run_is_judged_like_any(
    run: Path, picture_folder: Folder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data, other = picture_folder(per_class=6), picture_folder("other", per_class=5)
    out = finetune(run, data, "few-label", tmp_path / "out", overrides=SHORT)
    result = evaluate(out, train=data, test=other)
    assert list(result["encoders"]) == [
        "raw pixels",
        "descriptors",
        "random weights",
        "start, frozen",
        "adapted",
    ]
    assert np.sum(result["classifier"]["confusion"]) == 10
    assert result["classifier"]["balanced_accuracy"] > 0.8
    assert result["classifier"]["seen_in_finetuning"] == 0
    console = Console(width=80)
    with console.capture() as captured:
        console.print(evaluation_table(result))
    assert "The run's own classifier:" in captured.get()
    again = evaluate(out, train=other, test=data, baselines=[out])
    assert again["classifier"]["seen_in_finetuning"] == 12
    assert "12 test pictures were used in fine-tuning" in caplog.text
    taught = {name: found.get("taught_by_test") for name, found in again["encoders"].items()}
    assert taught == {**dict.fromkeys(list(taught)[:4]), "out": 12, "adapted": 12}
    assert "labels of 12 test pictures trained the encoder 'adapted'" in caplog.text
    found = label_verdict(again)
    assert found.level == "unknown"
    assert any(line.startswith("out is not compared: the labels of 12") for line in found.sentences)
    with console.capture() as captured:
        console.print(evaluation_table(again))
    assert "too good: it was fine-tuned on 12 of them." in " ".join(captured.get().split())


def test_what_an_encoder_learned_from_is_not_held_out(
    run: Path, picture_folder: Folder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data, other = picture_folder(per_class=6), picture_folder("other", per_class=5)
    frozen = finetune(run, data, "few-label-linear", tmp_path / "frozen", overrides=SHORT)
    finetune(frozen, data, "few-label-linear", tmp_path / "again", overrides=SHORT)
    assert "trained the encoder" not in caplog.text
    assert list(evaluate(frozen, train=data, test=other)["encoders"])[3:] == ["adapted"]
    trained = finetune(run, data, "few-label", tmp_path / "trained", overrides=SHORT)
    child = finetune(trained, other, "few-label-linear", tmp_path / "child", overrides=SHORT)
    assert "trained the encoder" not in caplog.text
    finetune(child, data, "few-label-linear", tmp_path / "third", overrides=SHORT)
    assert f"12 of these labels trained the encoder of {child} already" in caplog.text
    assert [result_of(f)["taught"] for f in (child, tmp_path / "third")] == [0, 12]
    evaluate(child, train=other, test=data)
    assert "12 test pictures were used in fine-tuning" in caplog.text


def test_a_run_that_was_fine_tuned_twice_knows_what_it_was_pretrained_on(
    run: Path, picture_folder: Folder, tmp_path: Path
) -> None:
    data, other = picture_folder(per_class=6), picture_folder("other", per_class=5)
    child = finetune(run, data, "few-label-linear", tmp_path / "child", overrides=SHORT)
    third = finetune(child, other, "few-label-semi", tmp_path / "third", overrides=SHORT)
    assert result_of(third)["unlabeled"] == 18
    assert evaluate(third, train=other, test=data)["pretrained_on"] == 0
    assert evaluate(third, train=other, test=tmp_path / "own")["pretrained_on"] == 18


def test_auto_takes_no_method(run: Path, picture_folder: Folder, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"classifier\.method goes with one --recipe"):
        finetune(run, picture_folder(), out=tmp_path / "o", overrides=["classifier.method=semi"])
    assert not (tmp_path / "o").exists()


def test_classifier_of_other_classes_is_not_judged(
    run: Path, picture_folder: Folder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = picture_folder(per_class=6)
    out = finetune(run, data, "few-label-linear", tmp_path / "out", overrides=SHORT)
    (data / "dark").rename(data / "black")
    assert "classifier" not in evaluate(out, train=data, test=data)
    assert "has other classes" in caplog.text
    assert "were used in fine-tuning" not in caplog.text


def test_unlabeled_copies_of_labeled_pictures_are_left_out(
    run: Path, picture_folder: Folder, tmp_path: Path
) -> None:
    data, more = picture_folder(per_class=4), picture_folder("more", per_class=7)
    shutil.copytree(data, more / "again")
    out = finetune(run, data, "few-label-semi", tmp_path / "out", unlabeled=more, overrides=SHORT)
    assert result_of(out)["unlabeled"] == 14
    few = [*SHORT, "unlabeled.pictures=5"]
    out = finetune(run, data, "few-label-semi", tmp_path / "b", unlabeled=more, overrides=few)
    assert result_of(out)["unlabeled"] <= 5


def test_auto_goes_without_pictures_that_are_gone(
    run: Path, picture_folder: Folder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.rmtree(tmp_path / "own")
    out = finetune(run, picture_folder(per_class=4), out=tmp_path / "out", overrides=SHORT)
    assert list(result_of(out)["held_out"]) == ["few-label-linear", "few-label"]
    assert "few-label-semi is not tried: the run's own pictures cannot be found" in caplog.text
    with pytest.raises(UsageError, match=r"no unlabeled pictures: .*give --unlabeled DIR"):
        finetune(run, picture_folder("b"), "few-label-semi", tmp_path / "semi")


@pytest.mark.parametrize("gone", [True, False], ids=["gone", "unreadable"])
def test_auto_goes_without_pictures_of_a_list_that_are_gone(
    gone: bool,
    run: Path,
    picture_folder: Folder,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    data, listed = picture_folder(per_class=4), tmp_path / "own.txt"
    pictures = sorted((tmp_path / "own").rglob("*.png"))
    listed.write_text("\n".join(map(str, pictures)))
    (run / "recipe.yaml").write_text(yaml.safe_dump({"data": {"sources": [str(listed)]}}))
    for path in pictures:
        path.unlink() if gone else path.write_text("no picture")
    out = finetune(run, data, out=tmp_path / "out", overrides=SHORT)
    assert list(result_of(out)["held_out"]) == ["few-label-linear", "few-label"]
    assert "few-label-semi is not tried: the run's own pictures cannot be found" in caplog.text
    told = "pictures of .* are gone, first" if gone else "none of the 18 pictures"
    with pytest.raises(UsageError, match=rf"{told} .*; give --unlabeled DIR"):
        finetune(run, data, "few-label-semi", tmp_path / "semi")
    for recipe in ("few-label-semi", "auto"):
        with pytest.raises(UsageError, match=r"^--unlabeled: none of the 18 pictures "):
            finetune(run, data, recipe, tmp_path / "semi", unlabeled=listed)
    with pytest.raises(UsageError, match=r"^--unlabeled: no folder or file nosuch; give one"):
        finetune(run, data, out=tmp_path / "semi", unlabeled="nosuch")


def test_used_folder_is_refused_or_replaced(
    run: Path, picture_folder: Folder, tmp_path: Path
) -> None:
    data, out = picture_folder(per_class=3), tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"is not empty; replace the run with --overwrite"):
        finetune(run, data, "few-label-linear", out)
    finetune(run, data, "few-label-linear", out, overwrite=True, overrides=SHORT)
    (out / "eval.json").write_text("{}")
    finetune(run, data, "few-label-linear", out, overwrite=True, overrides=SHORT)
    assert {path.name for path in out.iterdir()} == FILES | {"notes.txt"}
    (tmp_path / "link").symlink_to(run)
    for one, other in ((run, run), (tmp_path / "link", run), (run, tmp_path / "link")):
        with pytest.raises(UsageError, match="is the run itself"):
            finetune(one, data, out=other, overwrite=True)
    finetune(run, data, "few-label-linear", out, overwrite=True, overrides=SHORT)
    (out / "labels.csv").write_text("path,label\nmine.png,good\n")
    with pytest.raises(UsageError, match=r"labels.csv is none of tinyssl's; move it"):
        finetune(run, data, "few-label-linear", out, overwrite=True)
    assert "mine.png" in (out / "labels.csv").read_text()


def test_a_run_that_was_moved_has_its_labels_along(
    run: Path, picture_folder: Folder, tmp_path: Path
) -> None:
    data = picture_folder(per_class=3)
    made = finetune(run, data, "few-label-linear", tmp_path / "made", overrides=SHORT)
    own = own_pictures(made)
    moved = made.rename(tmp_path / "moved")
    assert own_pictures(moved) == own


def test_the_run_may_be_the_folder_one_is_in(
    run: Path, picture_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = picture_folder(per_class=3)
    monkeypatch.chdir(run)
    made = finetune(".", data, "few-label-linear", overrides=SHORT)
    assert made == run.with_name(f"{run.name}-cls")


def test_failed_job_leaves_the_old_run(run: Path, picture_folder: Folder, tmp_path: Path) -> None:
    data = picture_folder(per_class=3)
    out = finetune(run, data, "few-label-linear", tmp_path / "out", overrides=SHORT)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(tinyssl.JobError, match=r"lower network\.lr"):
        finetune(
            run, data, "few-label", out, overwrite=True, overrides=[*SHORT[:3], "network.lr=1e30"]
        )
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".out")]


def test_sigterm_leaves_nothing_behind(
    run: Path, picture_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = picture_folder(per_class=3)
    before = sorted(tmp_path.iterdir())
    monkeypatch.setattr(
        finetuning, "save_classifier", lambda *_: signal.raise_signal(signal.SIGTERM)
    )
    with pytest.raises(tinyssl.Interrupted, match="terminated; nothing was written") as stop:
        finetune(run, data, "few-label-linear", tmp_path / "out", overrides=SHORT)
    assert stop.value.exit_status == 143
    assert sorted(tmp_path.iterdir()) == before
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
