"""The main job: what a run leaves, and that an interrupted one ends the same."""

import gc
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch.utils.data import get_worker_info

from tests.killing import metrics, results
from tests.making import make_run
from tests.test_evaluation import labels_csv
from tinyssl import run as module
from tinyssl.build import make_plan
from tinyssl.checkpoint import load_checkpoint, save_checkpoint
from tinyssl.config import load_recipe
from tinyssl.errors import Interrupted, JobError, UsageError
from tinyssl.finetuning import finetune
from tinyssl.loader import ResidentPictures
from tinyssl.locks import locked
from tinyssl.model import load
from tinyssl.pretraining import pretrain
from tinyssl.recipe_files import recipe_text
from tinyssl.reporting.advice import advise
from tinyssl.reporting.card import start_of
from tinyssl.reporting.run_facts import read_run
from tinyssl.sources import with_sources
from tinyssl.weights import read_description

Folder = Callable[..., Path]

QUICK = [
    "data.image_size=32",
    "augment.view_size=32",
    "head.hidden=32",
    "head.width=16",
    "optim.batch_size=6",
    "run.epochs=3",
    "run.log_every=2",
    "run.watch_every=1",
]


def last_wins(settings: list[str]) -> list[str]:
    return [f"{k}={v}" for k, v in dict(s.split("=", 1) for s in settings).items()]


def weights(run: Path) -> dict[str, torch.Tensor]:
    state = load_checkpoint(run / "checkpoints" / "last.pt")["method"]
    assert isinstance(state, dict)
    return state


def assert_same_run(one: Path, other: Path) -> None:
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert metrics(one) == metrics(other)
    assert results(one) == results(other)
    assert (one / "encoder.safetensors").read_bytes() == (
        other / "encoder.safetensors"
    ).read_bytes()


def stop_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sends this process SIGTERM in the middle of the given step, counted from here."""
    original = module.fit

    def fit(*arguments: Any) -> None:
        hooks = arguments[4]
        advance, done = hooks.advance, [0]

        def counted(pictures: int) -> None:
            advance(pictures)
            done[0] += 1
            if done[0] == step:
                os.kill(os.getpid(), signal.SIGTERM)

        hooks.advance = counted
        original(*arguments)

    monkeypatch.setattr(module, "fit", fit)


def stopped_at(
    step: int,
    data: Path,
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
    overrides: Sequence[str] = QUICK,
) -> None:
    """Leaves a run that was stopped there."""
    with monkeypatch.context() as patch:
        stop_at(step, patch)
        with pytest.raises(Interrupted):
            pretrain(data, out=out, overrides=overrides)


def test_run_folder_holds_what_it_promises(picture_folder: Folder, tmp_path: Path) -> None:
    data = picture_folder()
    (data / "broken.jpg").write_bytes(b"not a picture")
    (data / "copy.png").write_bytes((data / "dark" / "000.png").read_bytes())
    run = pretrain(data, out=tmp_path / "run", overrides=QUICK)
    names = {p.name for p in run.iterdir()}
    assert names >= {
        "recipe.yaml", "metrics.jsonl", "results.csv", "train.log", "checkpoints",
        "encoder.safetensors", "encoder.json", "skipped.csv", "duplicates.csv",
    }  # fmt: skip
    assert (run / "results.csv").read_text().startswith("epoch,time")
    assert len(results(run)) == 3
    assert "broken.jpg" in (run / "skipped.csv").read_text()
    assert "copy.png" in (run / "duplicates.csv").read_text()
    assert not list(run.rglob("*.tmp"))
    log = (run / "train.log").read_text()
    assert "training mobilenetv3_small_100" in log
    assert "1 files skipped" in log
    features = load(run).embed([data / "dark" / "001.png", data / "bright" / "001.png"])
    assert features.shape == (2, read_description(run)["width"])
    assert np.isfinite(features).all()


def test_a_finished_run_frees_its_pictures_at_once(picture_folder: Folder, tmp_path: Path) -> None:
    def alive() -> list[object]:
        return [x for x in gc.get_objects() if type(x) in (ResidentPictures, module.Run)]

    gc.collect()
    gc.disable()
    try:
        earlier = alive()  # held by what other tests left, such as a caught error
        pretrain(picture_folder(), out=tmp_path / "run", overrides=QUICK)
        assert len(alive()) == len(earlier)
    finally:
        gc.enable()


def test_saved_recipe_repeats_the_run(picture_folder: Folder, tmp_path: Path) -> None:
    first = pretrain(picture_folder(), out=tmp_path / "first", overrides=QUICK)
    again = pretrain(recipe=first / "recipe.yaml", out=tmp_path / "again")
    assert_same_run(first, again)


def test_views_that_are_all_mixed_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    for share in (0.5, 1):
        recipe = load_recipe("mobilenetv3-small", [f"augment.cutmix={share}", "run.epochs=1"])
        make_plan(recipe, 100, torch.device("cpu"))
        assert ("augment.cutmix=1 mixes all views" in caplog.text) == (share == 1)


@pytest.mark.parametrize(("epochs", "steps"), [(0, 0), (1, 2), (3, 4), (1e308, 4)])
def test_warm_up_is_a_fifth_of_the_run_at_most(epochs: float, steps: int) -> None:
    settings = [f"optim.warmup_epochs={epochs}", "optim.batch_size=50", "run.epochs=10"]
    plan = make_plan(load_recipe("mobilenetv3-small", settings), 100, torch.device("cpu"))
    assert (len(plan.lrs), plan.lrs.argmax()) == (20, steps)


def test_short_names_are_settings(picture_folder: Folder, tmp_path: Path) -> None:
    data = picture_folder()
    first = pretrain(data, out=tmp_path / "first", overrides=[*QUICK, "run.seed=3"])
    again = pretrain(data, out=tmp_path / "again", overrides=QUICK, seed=3)
    assert_same_run(first, again)
    with pytest.raises(UsageError, match="unknown setting epoch; did you mean epochs"):
        pretrain(data, out=tmp_path / "no", epoch=3)


def test_seed_changes_the_run(picture_folder: Folder, tmp_path: Path) -> None:
    data = picture_folder()
    first = pretrain(data, out=tmp_path / "first", overrides=QUICK)
    other = pretrain(data, out=tmp_path / "other", overrides=[*QUICK, "run.seed=1"])
    assert metrics(first) != metrics(other)


@pytest.mark.parametrize("step", [1, 3, 4, 8])
@pytest.mark.parametrize(
    "settings",
    [
        [],
        [
            "augment.cutmix=0.5",
            "bank.rule=gradient",
            "loss.distill_weight=5",
            "loss.near_weight=0.5",
        ],
        [
            "bank.negatives=5",
            "encoder.batch_norm=frozen",
            "encoder.blend=0.5",
            "optim.name=adamw",
            "loss.near_weight=0.3",
            "loss.near_by=start",
        ],
    ],
    ids=["plain", "cutmix-gradient", "sampled-frozen-blend"],
)
def test_resumed_run_equals_uninterrupted(
    step: int,
    settings: list[str],
    picture_folder: Folder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    data = picture_folder()
    whole = pretrain(data, out=tmp_path / "whole", overrides=[*QUICK, *settings])
    with monkeypatch.context() as patch:
        stop_at(step, patch)
        with pytest.raises(Interrupted, match="tinyssl pretrain --resume --out") as stopped:
            pretrain(data, out=tmp_path / "cut", overrides=[*QUICK, *settings])
    assert stopped.value.exit_status == 143
    load(tmp_path / "cut")
    assert "was stopped before its end" in caplog.text
    caplog.clear()
    cut = pretrain(out=tmp_path / "cut", resume=True)
    assert_same_run(whole, cut)
    load(cut)
    assert "was stopped before its end" not in caplog.text


def test_a_signal_at_an_epochs_end_is_saved_though_it_would_not_be(
    picture_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, settings = picture_folder(), [*QUICK, "run.save_every=3"]
    with monkeypatch.context() as patch:
        stop_at(3, patch)
        with pytest.raises(Interrupted, match="stopped after step 3, saved"):
            pretrain(data, out=tmp_path / "cut", overrides=settings)
    state = load_checkpoint(tmp_path / "cut" / "checkpoints" / "last.pt")
    assert state["progress"]["step"] == 3
    whole = pretrain(data, out=tmp_path / "whole", overrides=settings)
    assert_same_run(whole, pretrain(out=tmp_path / "cut", resume=True))


def test_resume_after_a_crash_between_checkpoints(
    picture_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lines written after the last checkpoint are dropped and written again, the same."""
    data = picture_folder()
    settings = [*QUICK, "run.save_every=2"]
    whole = pretrain(data, out=tmp_path / "whole", overrides=settings)
    checkpoints: dict[int, bytes] = {}
    original = module.Run._save

    def save(self: module.Run, progress: Any) -> None:
        original(self, progress)
        checkpoints[progress.step] = self.folder.checkpoint.read_bytes()

    with monkeypatch.context() as patch:
        patch.setattr(module.Run, "_save", save)
        cut = pretrain(data, out=tmp_path / "cut", overrides=settings)
    (cut / "checkpoints" / "last.pt").write_bytes(checkpoints[min(checkpoints)])
    with (cut / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "half a li')
    assert_same_run(whole, pretrain(out=cut, resume=True))


def test_resume_refuses_other_pictures(picture_folder: Folder, tmp_path: Path) -> None:
    data = picture_folder()
    run = pretrain(data, out=tmp_path / "run", overrides=QUICK)
    (data / "dark" / "000.png").rename(tmp_path / "kept.png")
    told = f"the pictures at {data} are not those that .* with {{}}; put them back"
    with pytest.raises(UsageError, match=told.format(r"\(16 then, 15 now\)")):
        pretrain(out=run, resume=True)
    (data / "dark" / "000.png").write_bytes((data / "dark" / "001.png").read_bytes())
    with pytest.raises(UsageError, match=told.format(r"\(as many, but others\)")):
        pretrain(out=run, resume=True)


def test_resume_of_a_finetuned_run(tmp_path: Path, picture_folder: Folder) -> None:
    first = make_run(tmp_path / "first", "test_resnet")
    run = finetune(first, picture_folder(), "few-label-linear", tmp_path / "cls")
    with pytest.raises(UsageError, match=r"is a fine-tuned run, .* with encoder\.init="):
        pretrain(out=run, resume=True)


def test_resume_without_the_labels_that_were_watched(
    picture_folder: Folder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    data = picture_folder()
    settings = [*QUICK, f"run.watch_labels={labels_csv(tmp_path / 'labels.csv', data)}"]
    stopped_at(4, data, tmp_path / "cut", monkeypatch, settings)
    (tmp_path / "labels.csv").unlink()
    cut = pretrain(out=tmp_path / "cut", resume=True)
    assert "labels.csv is gone: going on without k-NN accuracy" in caplog.text
    assert [row["knn"] != "" for row in results(cut)] == [True, False, False]


@pytest.mark.parametrize("left", ["", "epoch,ti", "epoch,ti1,2\n"])
def test_a_cut_header_of_results_is_written_anew(
    left: str, picture_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = picture_folder()
    whole = pretrain(data, out=tmp_path / "whole", overrides=QUICK)
    stopped_at(1, data, tmp_path / "cut", monkeypatch)
    (tmp_path / "cut" / "results.csv").write_text(left)
    assert_same_run(whole, pretrain(out=tmp_path / "cut", resume=True))


def test_a_run_that_is_still_training_is_not_called_stopped(
    picture_folder: Folder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    stopped_at(4, picture_folder(), tmp_path / "cut", monkeypatch)
    with locked(tmp_path / "cut"):
        load(tmp_path / "cut")
        assert "is still being trained" in caplog.text
        assert "Wait for it." in {a.todo for a in advise(read_run(tmp_path / "cut"), 16, None)}
    assert "stopped before its end" not in caplog.text


def test_resume_says_that_the_pictures_must_be_back(
    picture_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = picture_folder()
    whole = pretrain(data, out=tmp_path / "whole", overrides=QUICK)
    stopped_at(4, data, tmp_path / "cut", monkeypatch)
    data.rename(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match=r"no folder or file .*; --resume .* a link will do"):
        pretrain(out=tmp_path / "cut", resume=True)
    data.symlink_to(tmp_path / "elsewhere")
    assert_same_run(whole, pretrain(out=tmp_path / "cut", resume=True))


def test_resume_of_a_finished_run_changes_nothing(picture_folder: Folder, tmp_path: Path) -> None:
    run = pretrain(picture_folder(), out=tmp_path / "run", overrides=QUICK)
    (run / "report.html").write_text("made by tinyssl report")
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file() and p.name != "train.log"}
    pretrain(out=run, resume=True)
    assert before == {p: p.read_bytes() for p in before}


def test_resume_of_a_finished_run_writes_what_a_crash_left_out(
    picture_folder: Folder, tmp_path: Path
) -> None:
    run = pretrain(picture_folder(), out=tmp_path / "run", overrides=QUICK)
    (run / "machine.json").unlink()
    (run / "report.html").unlink()
    pretrain(out=run, resume=True)
    assert json.loads((run / "machine.json").read_text())["pictures"] == 16
    assert (run / "report.html").exists()


def test_resume_without_a_checkpoint_harms_no_encoder(
    picture_folder: Folder, tmp_path: Path
) -> None:
    run = pretrain(picture_folder(), out=tmp_path / "run", overrides=QUICK)
    (run / "checkpoints" / "last.pt").unlink()
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file() and p.name != "train.log"}
    with pytest.raises(UsageError, match=r"an encoder but no last\.pt to go on from; put .* back"):
        pretrain(out=run, resume=True)
    assert before == {p: p.read_bytes() for p in before}


def test_resume_does_not_pass_over_a_changed_recipe(picture_folder: Folder, tmp_path: Path) -> None:
    run = pretrain(picture_folder(), out=tmp_path / "run", overrides=QUICK)
    recipe = run / "recipe.yaml"
    text = recipe.read_text()
    recipe.write_text("# a note\n" + text)
    pretrain(out=run, resume=True)
    assert recipe.read_text().startswith("# a note")
    for changed in (text.replace("  temperature: ", "  temperature: 0.9 # was "), "run: [", "[]"):
        recipe.write_text(changed)
        with pytest.raises(UsageError, match=r"recipe\.yaml was changed, and --resume goes on"):
            pretrain(out=run, resume=True)
    recipe.unlink()
    pretrain(out=run, resume=True)
    assert recipe.read_text() == text


def test_an_empty_checkpoint(picture_folder: Folder, tmp_path: Path) -> None:
    run = pretrain(picture_folder(), out=tmp_path / "run", overrides=QUICK)
    (run / "checkpoints" / "last.pt").write_bytes(b"")
    with pytest.raises(UsageError, match="cut short; begin again with --overwrite, or put a copy"):
        pretrain(out=run, resume=True)


def test_resume_needs_the_starts_weights_no_more(
    picture_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = picture_folder()
    monkeypatch.chdir(tmp_path)
    pretrain(data, out="first", overrides=QUICK)
    settings = [*QUICK, "encoder.init=first"]
    whole = pretrain(data, out="whole", overrides=settings)
    with monkeypatch.context() as patch:
        stop_at(4, patch)
        with pytest.raises(Interrupted):
            pretrain(data, out="cut", overrides=settings)
    (tmp_path / "first").rename(tmp_path / "moved")
    assert_same_run(tmp_path / whole, pretrain(out="cut", resume=True))
    saved = read_description("cut")["init"]
    assert saved == str(tmp_path / "first")  # for whoever works in another folder


def test_checkpoint_of_another_version(picture_folder: Folder, tmp_path: Path) -> None:
    run = pretrain(picture_folder(), out=tmp_path / "run", overrides=QUICK)
    state = load_checkpoint(run / "checkpoints" / "last.pt")
    torch.save(state | {"format": 99}, run / "checkpoints" / "last.pt")
    with pytest.raises(UsageError, match="format 99, this tinyssl reads 1"):
        pretrain(out=run, resume=True)


def test_non_finite_loss_names_step_and_checkpoint(
    picture_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = module.augment_from

    def poisoned(*given: Any) -> Any:
        augment, calls = original(*given), [0]

        def views(pictures: torch.Tensor, generator: torch.Generator, *part: Any) -> torch.Tensor:
            calls[0] += 1
            made = augment(pictures, generator, *part)
            return made * float("nan") if calls[0] == 5 else made

        return views

    monkeypatch.setattr(module, "augment_from", poisoned)
    told = r"nan at step 5; the last good checkpoint is .*last\.pt.*the batch is .*\.png.* 2 more"
    with pytest.raises(JobError, match=told):
        pretrain(picture_folder(), out=tmp_path / "run", overrides=QUICK)
    log = (tmp_path / "run" / "train.log").read_text()
    (line,) = [line for line in log.splitlines() if "the batch that failed" in line]
    assert line.count(".png") == 5
    state = weights(tmp_path / "run")
    assert all(torch.isfinite(v).all() for v in state.values() if v.is_floating_point())


def test_a_full_gpu_is_no_fault(
    picture_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB. GPU 0 has 8.")

    monkeypatch.setattr(module, "fit", full)
    told = r"^CUDA out of memory\. Tried to allocate 9 GiB; lower optim\.batch_size .* a new run$"
    with pytest.raises(JobError, match=told):
        pretrain(picture_folder(), out=tmp_path / "run", overrides=QUICK)
    assert "ended: CUDA out of memory" in (tmp_path / "run" / "train.log").read_text()


def test_the_learning_rate_is_not_blamed_for_the_first_step(
    picture_folder: Folder, tmp_path: Path
) -> None:
    settings = [*QUICK, "loss.temperature=1e-45"]
    with pytest.raises(JobError, match=r"at step 1; .*raise loss\.temperature") as caught:
        pretrain(picture_folder(), out=tmp_path / "run", overrides=settings)
    assert "base_lr" not in str(caught.value)


def test_one_picture_is_refused(tmp_path: Path) -> None:
    Image.new("RGB", (40, 40), "red").save(tmp_path / "one.png")
    with pytest.raises(UsageError, match="at least 2"):
        pretrain(tmp_path / "one.png", out=tmp_path / "run", overrides=QUICK)
    assert not (tmp_path / "run").exists()


def poison_gradient(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes one weight's gradient infinite in a step."""
    original = module.build_method

    def poisoned(*arguments: Any) -> Any:
        method, calls = original(*arguments), [0]
        weight = next(p for p in method.encoder.parameters() if p.ndim > 1)

        def spoil(gradient: torch.Tensor) -> torch.Tensor:
            calls[0] += 1
            return gradient * float("inf") if calls[0] == step else gradient

        weight.register_hook(spoil)
        return method

    monkeypatch.setattr(module, "build_method", poisoned)


def test_a_gradient_that_is_not_finite_stops_before_any_harm(
    picture_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison_gradient(4, monkeypatch)
    with pytest.raises(JobError, match=r"gradient's norm is (nan|inf) at step 4; .*the batch is"):
        pretrain(picture_folder(), out=tmp_path / "run", overrides=QUICK)
    state = weights(tmp_path / "run")
    assert all(torch.isfinite(v).all() for v in state.values() if v.is_floating_point())


def test_a_gradient_that_is_seen_late_is_not_saved(
    picture_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU nobody waits for the norm: the last step before a save is the one to be missed."""
    monkeypatch.setattr("tinyssl.train._refuse_now", lambda *given: None)
    poison_gradient(6, monkeypatch)
    with pytest.raises(JobError, match=r"gradient's norm is (nan|inf) at step 6; .*the batch is"):
        pretrain(picture_folder(), out=tmp_path / "run", overrides=QUICK)
    state = weights(tmp_path / "run")
    assert all(torch.isfinite(v).all() for v in state.values() if v.is_floating_point())


@pytest.mark.parametrize("files", ["copies", "saved twice", "one colour"])
def test_pictures_that_are_all_the_same_are_refused(files: str, tmp_path: Path) -> None:
    data = tmp_path / "same"
    data.mkdir()
    for number in range(7):
        image = Image.new("RGB", (40, 40 + number * (files == "one colour")), "red")
        kind = {"compress_level": number} if files == "saved twice" else {}
        image.save(data / f"{number}.png", **kind)
    with pytest.raises(UsageError, match="all 7 pictures are the same at 32 pixels a side"):
        pretrain(data, out=tmp_path / "run", overrides=QUICK)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("count", "batch"), [(2, 128), (3, 128), (7, 128), (5, 2)])
def test_very_few_pictures(count: int, batch: int, tmp_path: Path) -> None:
    data = tmp_path / "few"
    data.mkdir()
    for number in range(count):
        Image.new("L", (40, 40), 50 * number).save(data / f"{number}.png")
    settings = last_wins([*QUICK, f"optim.batch_size={batch}"])
    run = pretrain(data, out=tmp_path / "run", overrides=settings)
    assert json.loads((run / "encoder.json").read_text())["channels"] == 1


def test_what_cannot_be_compiled_leaves_no_folder(picture_folder: Folder, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"run\.compile=graphs"):
        pretrain(picture_folder(), out=tmp_path / "run", overrides=[*QUICK, "run.compile=graphs"])
    assert not (tmp_path / "run").exists()


def test_collapse_is_told_in_words(
    tmp_path: Path, picture_folder: Folder, caplog: pytest.LogCaptureFixture
) -> None:
    """Distillation alone has a trivial solution: every picture the same."""
    settings = [*QUICK, "loss.distill_weight=3000", "run.epochs=20", "optim.base_lr=0.05"]
    pretrain(picture_folder(), out=tmp_path / "run", overrides=last_wins(settings))
    assert "collapsing" in caplog.text


def test_watched_labels_give_a_knn_curve(picture_folder: Folder, tmp_path: Path) -> None:
    data = picture_folder()
    settings = [*QUICK, f"run.watch_labels={labels_csv(tmp_path / 'labels.csv', data)}"]
    run = pretrain(data, out=tmp_path / "run", overrides=settings)
    assert all(0 <= float(row["knn"]) <= 1 for row in results(run))


@pytest.mark.parametrize(("every", "looked"), [(0, [False, False, True]), (2, [False, True, True])])
def test_the_end_is_always_watched(
    every: int, looked: list[bool], picture_folder: Folder, tmp_path: Path
) -> None:
    settings = last_wins([*QUICK, f"run.watch_every={every}"])
    run = pretrain(picture_folder(), out=tmp_path / "run", overrides=settings)
    assert [row["rankme"] != "" for row in results(run)] == looked


def test_overwrite_leaves_strangers_alone(picture_folder: Folder, tmp_path: Path) -> None:
    data = picture_folder()
    run = pretrain(data, out=tmp_path / "run", overrides=QUICK)
    (run / "notes.txt").write_text("mine")
    (run / "labels.csv").write_text("path,label\nmine.png,good\n")
    (run / "label_curve.png").write_text("of the old encoder")
    with pytest.raises(UsageError, match="not empty"):
        pretrain(data, out=run, overrides=QUICK)
    pretrain(data, out=run, overrides=QUICK, overwrite=True)
    assert (run / "notes.txt").read_text() == "mine"
    assert "mine.png" in (run / "labels.csv").read_text()
    assert not (run / "label_curve.png").exists()
    assert len(results(run)) == 3


def test_near_pictures_lie_in_the_checkpoint_and_are_checked(
    picture_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped_at(4, picture_folder(), tmp_path / "cut", monkeypatch)
    assert "finding 4 near pictures" in (tmp_path / "cut" / "train.log").read_text()
    file = tmp_path / "cut" / "checkpoints" / "last.pt"
    state = load_checkpoint(file)
    near = state["method"]["near"].clone()
    assert not (near == torch.arange(len(near))[:, None]).any()
    state["method"]["near"][0, 0] = len(near)
    save_checkpoint(file, state)
    with pytest.raises(UsageError, match=r"method.near: numbers of pictures outside 0 to"):
        pretrain(out=tmp_path / "cut", resume=True)
    state["method"]["near"].copy_(near)
    save_checkpoint(file, state)
    monkeypatch.setattr(module, "near_by_descriptors", None)  # not looked for again
    pretrain(out=tmp_path / "cut", resume=True)


def test_start_from_an_earlier_run(picture_folder: Folder, tmp_path: Path) -> None:
    data, given = picture_folder(), [*QUICK, "encoder.components=0"]
    first = pretrain(data, out=tmp_path / "first", overrides=given)
    settings = [*given, f"encoder.init={first}", "optim.base_lr=1e-9", "encoder.batch_norm=frozen"]
    second = pretrain(data, out=tmp_path / "second", overrides=settings)
    before, after = (load(run).encoder.state_dict() for run in (first, second))
    for key, value in before.items():
        torch.testing.assert_close(after[key], value, rtol=1e-4, atol=1e-6, msg=key)
    log = (second / "train.log").read_text()
    assert f"242 tensors for mobilenetv3_small_100 from {first}" in log


def test_weights_of_timm_are_told_with_their_licence(
    picture_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With random weights in place of the hub's."""
    create = timm.create_model
    monkeypatch.setattr(
        timm, "create_model", lambda *a, **k: create(*a, **{**k, "pretrained": False})
    )
    settings = [*QUICK, "encoder.init=pretrained"]
    run = pretrain(picture_folder(), out=tmp_path / "run", overrides=settings)
    told = "timm's mobilenetv3_small_100.lamb_in1k, licence apache-2.0"
    assert f"weights: {told}" in (run / "train.log").read_text()
    assert read_description(run)["weights"].startswith(told)
    assert start_of(read_run(run)).startswith(told)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # Python 3.12 and later
@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # two workers on one core
def test_albumentations_pipeline_in_workers(
    picture_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    import albumentations

    crop = albumentations.RandomResizedCrop(size=(32, 32), scale=(0.3, 1.0))
    pipeline = albumentations.Compose([crop, albumentations.HorizontalFlip(p=0.5)])
    albumentations.save(pipeline, tmp_path / "pipeline.json", data_format="json")
    data = picture_folder()
    settings = [*QUICK, f"augment.pipeline={tmp_path / 'pipeline.json'}"]
    alone = pretrain(data, out=tmp_path / "alone", overrides=[*settings, "run.workers=1"])
    helped = pretrain(data, out=tmp_path / "helped", overrides=[*settings, "run.workers=2"])
    assert metrics(alone) == metrics(helped)
    with monkeypatch.context() as patch:
        stop_at(4, patch)
        with pytest.raises(Interrupted):
            pretrain(data, out=tmp_path / "cut", overrides=[*settings, "run.workers=1"])
    (tmp_path / "pipeline.json").unlink()  # the run keeps what was in it
    assert_same_run(alone, pretrain(out=tmp_path / "cut", resume=True))


def test_filling_the_bank_is_shown(
    picture_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tinyssl.console._LINE_EVERY", 0)
    settings = last_wins([*QUICK, "run.epochs=1"])
    run = pretrain(picture_folder(), out=tmp_path / "run", overrides=settings)
    assert "bank: 16/16 pictures" in (run / "train.log").read_text()


@pytest.mark.parametrize(("given", "started"), [(0, 2), (5, 5)])
def test_processes_of_one_machine_share_its_cores(
    given: int, started: int, picture_folder: Folder, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    counts = []

    def noted(*arguments: Any) -> None:
        counts.append(arguments[-1])
        raise JobError("enough")

    pipeline = {"__class_fullname__": "RandomResizedCrop", "size": [32, 32], "p": 1.0}
    (tmp_path / "pipeline.json").write_text(json.dumps({"transform": pipeline}))
    settings = [*QUICK, f"augment.pipeline={tmp_path / 'pipeline.json'}", f"run.workers={given}"]
    monkeypatch.setattr(module, "PipelineBatches", noted)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    monkeypatch.setattr("os.cpu_count", lambda: 10)
    with pytest.raises(JobError, match="enough"):
        pretrain(picture_folder(per_class=20), out=tmp_path / "run", overrides=settings)
    assert counts == [started]


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # Python 3.12 and later
def test_a_killed_worker_is_told_in_a_line(
    picture_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(pipeline: Any, pictures: Any, seeds: list[int], *, view_size: int) -> torch.Tensor:
        if get_worker_info() is not None and checkpoint.exists():
            os.kill(os.getpid(), signal.SIGKILL)
        return torch.rand(len(pictures), 3, view_size, view_size)

    checkpoint = tmp_path / "run" / "checkpoints" / "last.pt"
    pipeline = {"__class_fullname__": "RandomResizedCrop", "size": [32, 32], "p": 1.0}
    (tmp_path / "pipeline.json").write_text(json.dumps({"transform": pipeline}))
    settings = [*QUICK, f"augment.pipeline={tmp_path / 'pipeline.json'}", "run.workers=1"]
    monkeypatch.setattr(module, "apply_pipeline", killed)
    told = r"^augment.pipeline: DataLoader worker \(pid.*; if memory was full.*; the last good"
    with pytest.raises(JobError, match=told):
        pretrain(picture_folder(), out=tmp_path / "run", overrides=settings)


def test_a_script_without_a_guard_begins_no_second_run(tmp_path: Path) -> None:
    """As on macOS and Windows, where processes that help import the user's script again."""
    script = """
import multiprocessing, sys, tinyssl
if __name__ == "__main__":
    helper = multiprocessing.get_context("spawn").Process(target=print)
    helper.start()
    helper.join()
else:
    tinyssl.pretrain(sys.argv[1], out=sys.argv[1], overwrite=True)
"""
    (tmp_path / "script.py").write_text(script)
    command = [sys.executable, str(tmp_path / "script.py"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert "UsageError: this script is being read again by a process" in done.stderr


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # Python 3.12 and later
@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # two workers on one core
def test_a_pipeline_that_does_not_fit_is_told_before_anything_is_written(
    picture_folder: Folder, tmp_path: Path
) -> None:
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    import albumentations

    crop = albumentations.Compose([albumentations.RandomResizedCrop(size=(20, 20))])
    albumentations.save(crop, tmp_path / "pipeline.json", data_format="json")
    settings = [*QUICK, f"augment.pipeline={tmp_path / 'pipeline.json'}"]
    with pytest.raises(UsageError, match=r"^augment.pipeline gives uint8 pictures of \(20, 20"):
        pretrain(picture_folder(), out=tmp_path / "run", overrides=settings)
    assert not (tmp_path / "run").exists()


def test_a_network_of_another_size_is_told_before_anything_is_written(
    picture_folder: Folder, tmp_path: Path
) -> None:
    settings = last_wins([*QUICK, "encoder.name=levit_128s", "encoder.levels=1"])
    with pytest.raises(UsageError, match="levit_128s takes no pictures of 32 pixels"):
        pretrain(picture_folder(), out=tmp_path / "run", overrides=settings)
    assert not (tmp_path / "run").exists()


def test_levels_that_a_network_lacks_are_refused_at_once(
    picture_folder: Folder, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=r"encoder.levels: got 9, .* has 1 to 6, or all"):
        pretrain(picture_folder(), out=tmp_path / "run", overrides=[*QUICK, "encoder.levels=9"])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["ctrl-c", "term"]
)
def test_signals_end_the_command_politely(
    signum: int, status: int, picture_folder: Folder, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    settings = [s for s in QUICK if "epochs" not in s]
    command = [sys.executable, "-m", "tinyssl", "pretrain", str(picture_folder()), "--out"]
    process = subprocess.Popen(
        [*command, str(out), "--epochs", "2000", *settings],
        stderr=subprocess.PIPE,
        text=True,
    )
    for _ in range(600):
        if (out / "metrics.jsonl").exists():
            break
        time.sleep(0.1)
    process.send_signal(signum)
    _, told = process.communicate(timeout=60)
    assert process.returncode == status
    assert f"tinyssl pretrain --resume --out {out}" in told
    assert "Traceback" not in told
    assert load_checkpoint(out / "checkpoints" / "last.pt")["progress"]["step"] > 0


@pytest.mark.parametrize(("residuals", "quiet"), [("zero", True), ("timm", False)])
def test_a_run_starts_as_its_recipe_says(
    picture_folder: Folder, tmp_path: Path, residuals: str, quiet: bool
) -> None:
    settings = last_wins([*QUICK, "run.epochs=1", f"encoder.residuals={residuals}"])
    run = pretrain(picture_folder(), out=tmp_path / "run", overrides=settings)
    start = load_checkpoint(run / "checkpoints" / "last.pt")["start"]
    scales = [value for key, value in start.items() if key.endswith("bn3.weight")]
    assert scales
    assert any(not scale.any() for scale in scales) == quiet


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="two GPUs")
def test_another_gpu_than_the_first(picture_folder: Folder, tmp_path: Path) -> None:
    runs = [
        pretrain(picture_folder(), out=tmp_path / name, overrides=[*QUICK, f"run.device=cuda:{n}"])
        for n, name in enumerate(("first", "second"))
    ]
    assert torch.cuda.current_device() == 1
    torch.cuda.set_device(0)
    for first, second in zip(*(weights(run).values() for run in runs), strict=True):
        torch.testing.assert_close(first.cpu(), second.cpu())


@pytest.mark.parametrize("name", ["checkpoints/theirs.pt", "train.log", "wandb/run-1/log"])
def test_what_no_run_left_is_not_replaced(
    name: str, picture_folder: Folder, tmp_path: Path
) -> None:
    """Other programs use such names as well."""
    out = tmp_path / "project"
    theirs = out / name
    theirs.parent.mkdir(parents=True)
    theirs.write_text("theirs")
    with pytest.raises(UsageError, match=f"holds {name.split('/')[0]}.*which no run of tinyssl"):
        pretrain(picture_folder(), out=out, overrides=QUICK, overwrite=True)
    assert theirs.read_text() == "theirs"


@pytest.mark.parametrize("how", ["resume", "overwrite", "own recipe"])
@pytest.mark.parametrize("kind", ["by hand", "bundled", "of a run"])
def test_a_recipe_alone_makes_no_run(
    kind: str, how: str, picture_folder: Folder, tmp_path: Path
) -> None:
    """Of files with names that a run has too, in a project where a recipe lies."""
    data, out = picture_folder(), tmp_path / "project"
    (out / "tensorboard").mkdir(parents=True)
    for name in ("results.csv", "eval.json", "tensorboard/events"):
        (out / name).write_text("theirs")
    text = f"data:\n  sources:\n  - {data}\nrun:\n  epochs: 1\n"
    if kind == "bundled":
        text = recipe_text("resnet18").replace("sources: []", f"sources: [{data}]")
    elif kind == "of a run":
        text = with_sources(load_recipe("resnet18", QUICK), data).to_yaml()
    (out / "recipe.yaml").write_text(text)
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    given = {"recipe": out / "recipe.yaml"} if how == "own recipe" else {}
    told = "holds (recipe.yaml|tensorboard), which no run of tinyssl left"
    with pytest.raises(UsageError, match=told):
        if how == "resume":
            pretrain(out=out, resume=True)
        else:
            pretrain(data, out=out, overrides=QUICK, overwrite=True, **given)
    assert before == {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}


def test_a_run_is_replaced_by_its_own_recipe(picture_folder: Folder, tmp_path: Path) -> None:
    whole = pretrain(picture_folder(), out=tmp_path / "whole", overrides=QUICK)
    again = pretrain(picture_folder("more"), out=tmp_path / "again", overrides=QUICK)
    (again / "recipe.yaml").write_bytes((whole / "recipe.yaml").read_bytes())
    pretrain(recipe=again / "recipe.yaml", out=again, overwrite=True)
    assert_same_run(whole, again)


def test_a_run_whose_recipe_was_edited_is_one_still(picture_folder: Folder, tmp_path: Path) -> None:
    run = pretrain(picture_folder(), out=tmp_path / "run", overrides=QUICK)
    text = (run / "recipe.yaml").read_text() + "# a note\n"
    (run / "recipe.yaml").write_text(text)
    pretrain(picture_folder("more"), out=run, overrides=QUICK, overwrite=True)
    assert "# a note" not in (run / "recipe.yaml").read_text()


@pytest.mark.parametrize("left", [[], ["skipped.csv"], ["train.log"]])
@pytest.mark.parametrize("how", ["resume", "overwrite"])
def test_a_run_that_had_hardly_begun_is_known(
    how: str, left: list[str], picture_folder: Folder, tmp_path: Path
) -> None:
    data = picture_folder()
    whole = pretrain(data, out=tmp_path / "whole", overrides=QUICK)
    cut = tmp_path / "cut"
    (cut / "checkpoints").mkdir(parents=True)
    for name in ("recipe.yaml", *left):
        (cut / name).write_bytes((whole / name).read_bytes())
    if how == "resume":
        pretrain(out=cut, resume=True)
    else:
        pretrain(data, out=cut, overrides=QUICK, overwrite=True)
    assert_same_run(whole, cut)


def test_what_is_read_is_not_replaced_by_the_run(picture_folder: Folder, tmp_path: Path) -> None:
    data, run = picture_folder(per_class=4), tmp_path / "run"
    pretrain(data, out=run, overrides=QUICK)
    rows = [f"{p},{p.parent.name},0" for p in sorted(data.rglob("*.png"))]
    (run / "labels.csv").write_text("\n".join(["path,label,digest", *rows]))
    (tmp_path / "link.csv").symlink_to(run / "labels.csv")
    for source, settings in (
        (run / "labels.csv", []), (tmp_path / "link.csv", []),
        (data, [f"run.watch_labels={run / 'labels.csv'}"]),
        (data, [f"data.holdout={run / 'labels.csv'}"]),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=r"csv is read here and would be lost with the run"):
            pretrain(source, out=run, overrides=[*QUICK, *settings], overwrite=True)
        assert (run / "labels.csv").exists()


def test_a_cache_in_a_new_run_is_refused_at_once(picture_folder: Folder, tmp_path: Path) -> None:
    settings = [*QUICK, f"data.cache_dir={tmp_path / 'run' / 'cache'}"]
    with pytest.raises(UsageError, match=r"data\.cache_dir .*cache lies in --out .*run"):
        pretrain(picture_folder(), out=tmp_path / "run", overrides=settings)
    assert not (tmp_path / "run").exists()


def test_an_out_that_cannot_be_made_is_told_before_pictures_are_read(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="file is no folder; name another"):
        pretrain(tmp_path / "no pictures", out=tmp_path / "file" / "run")


def test_home_is_known_in_out(
    picture_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert pretrain(picture_folder(), out="~/run", overrides=QUICK) == tmp_path / "run"


def test_the_start_is_not_replaced_by_the_run(picture_folder: Folder, tmp_path: Path) -> None:
    data = picture_folder()
    first = pretrain(data, out=tmp_path / "first", overrides=QUICK)
    (tmp_path / "link").symlink_to(first)
    before = (first / "encoder.safetensors").read_bytes()
    for start in (first, tmp_path / "link", first / "encoder.safetensors"):
        settings = [*QUICK, f"encoder.init={start}"]
        with pytest.raises(UsageError, match=r"is where encoder.init lies"):
            pretrain(data, out=first, overrides=settings, overwrite=True)
    assert (first / "encoder.safetensors").read_bytes() == before
