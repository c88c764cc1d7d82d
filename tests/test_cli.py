"""The command line as a user meets it: one clear line and an exit status, nothing half-written."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.making import untrained_run
from tests.test_evaluation import labels_csv
from tinyssl.cli import cli, main

Folder = Callable[..., Path]
TINY = ["data.image_size=32", "augment.view_size=32", "head.hidden=16", "head.width=8"]


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    status = 0
    try:
        main([str(a) for a in arguments])
    except SystemExit as stop:
        status = int(stop.code or 0)
    out, err = capsys.readouterr()
    return status, out, err


@pytest.mark.parametrize("verb", cli.commands)
def test_every_verb_has_help_with_an_example(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, verb, "--help")
    assert status == 0
    assert f"\n  tinyssl {verb}" in out
    assert max(map(len, out.splitlines())) <= 80


def test_nothing_given_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys) == run(capsys, "--help")


def test_whole_way_from_pictures_to_table(
    capsys: pytest.CaptureFixture[str],
    picture_folder: Folder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = picture_folder(per_class=12)
    out = tmp_path / "run"
    status, told, _ = run(
        capsys, "pretrain", data, "--out", out, "--epochs", 2, "--batch-size", 8, *TINY
    )
    assert status == 0
    assert f"tinyssl eval {out}" in told
    with monkeypatch.context() as patch:
        patch.setenv("RANK", "1")  # as torchrun tells the second process
        assert run(capsys, "pretrain", "--resume", "--out", out)[:2] == (0, "")
    labels = labels_csv(tmp_path / "labels.csv", data)
    status, table, _ = run(capsys, "eval", out, "--labels", labels)
    assert status == 0
    for row in ("raw pixels", "descriptors", "random weights", "pretrained"):
        assert row in table
    assert max(map(len, table.splitlines())) <= 80
    assert json.loads((out / "eval.json").read_text())["classes"] == ["bright", "dark"]


def test_what_was_held_out_is_what_to_judge_by(
    capsys: pytest.CaptureFixture[str],
    picture_folder: Folder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whether it was given as an option or a setting, or earlier."""
    data, out = picture_folder(per_class=8), tmp_path / "run"
    monkeypatch.chdir(tmp_path)
    labels_csv(tmp_path / "my labels.csv", data, lambda n: ("test", "train")[n % 4 > 0])
    held = "data.holdout=my labels.csv"
    given = [data, "--out", out, "--epochs", 1, "--batch-size", 8, *TINY, held]
    for arguments in (given, ["--resume", "--out", out]):
        status, told, _ = run(capsys, "pretrain", *arguments)
        assert status == 0
        assert f"tinyssl eval {out} --labels 'my labels.csv'" in told


def test_few_labels_to_predictions(
    capsys: pytest.CaptureFixture[str], picture_folder: Folder, tmp_path: Path
) -> None:
    data = picture_folder(per_class=4)
    run_folder = untrained_run(tmp_path / "run", "mobilenetv3-small")
    given = ["--labels", data, "--recipe", "few-label-linear", "classifier.folds=2"]
    status, out, _ = run(capsys, "finetune", run_folder, *given, "--seed", 3)
    assert status == 0
    assert "few-label-linear" in out
    assert f"next: tinyssl predict {run_folder}-cls" in out
    assert max(map(len, out.splitlines()[:-1])) <= 80
    csv = tmp_path / "p.csv"
    status, out, _ = run(capsys, "predict", f"{run_folder}-cls", data, "--out", csv)
    assert (status, out) == (0, f"wrote {csv}: 8 pictures\n")
    (data / "dark" / "000.png").write_bytes(b"gone")
    given = ["--out", csv, "--overwrite"]
    status, out, err = run(capsys, "predict", f"{run_folder}-cls", data, *given)
    assert status == 1
    assert f"wrote {csv}: 7 pictures" in out
    assert "1 pictures could not be read; all others are in" in err.splitlines()[-1]
    assert len(csv.read_text().splitlines()) == 8


def test_checks_reports_and_draws(
    capsys: pytest.CaptureFixture[str], picture_folder: Folder, tmp_path: Path
) -> None:
    data = picture_folder()
    (data / "empty.png").touch()
    (data / "copy.png").write_bytes((data / "dark" / "001.png").read_bytes())
    grid = tmp_path / "grid.png"
    status, out, _ = run(capsys, "checks", data, "--augment", grid, "--rows", 3, *TINY)
    assert status == 0
    assert "17 readable" in out
    assert "empty.png: empty file" in out
    assert "1 exact, in 1 groups" in out
    with Image.open(grid) as image:
        assert image.height == 3 * 36 + 4


@pytest.mark.parametrize("preset", ["natural", "industrial", "aligned"])
def test_checks_draws_every_preset(
    preset: str, capsys: pytest.CaptureFixture[str], picture_folder: Folder, tmp_path: Path
) -> None:
    grid = tmp_path / "grid.png"
    settings = [f"augment.preset={preset}", *TINY]
    assert run(capsys, "checks", picture_folder(), "--augment", grid, *settings)[0] == 0
    assert grid.stat().st_size > 1000


@pytest.mark.parametrize(
    ("given", "found"),
    [({}, "3000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, "")],
)
def test_threads_wait_politely_unless_told_otherwise(given: dict[str, str], found: str) -> None:
    """Set before torch is loaded: its OpenMP reads the environment then, and never again."""
    code = (
        "import os, sys; from tinyssl.cli import main; assert 'torch' not in sys.modules; "
        "main(['recipes']); print('spins:' + os.environ.get('GOMP_SPINCOUNT', ''))"
    )
    names = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    clean = {key: value for key, value in os.environ.items() if key not in names}
    ran = subprocess.run(
        [sys.executable, "-c", code], env=clean | given, capture_output=True, text=True, check=True
    )
    assert ran.stdout.splitlines()[-1] == f"spins:{found}"


def test_recipes_lists_and_prints(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "recipes")
    assert status == 0
    assert "resnet18-small" in out
    assert "few-label-semi" in out
    status, out, _ = run(capsys, "recipes", "resnet18-small")
    assert out.startswith("# ")
    assert "stem: small" in out


def test_select_and_embed(
    capsys: pytest.CaptureFixture[str], picture_folder: Folder, tmp_path: Path
) -> None:
    data, model = picture_folder(), untrained_run(tmp_path / "run")
    given = [model, data, "--budget", 4, "--out", tmp_path / "l.csv"]
    status, told, _ = run(capsys, "select", *given)
    assert status == 0
    assert (
        told.splitlines()[0] == f"wrote {tmp_path / 'l.csv'} and {tmp_path / 'l.png'}: 4 pictures"
    )
    assert f"tinyssl finetune {model} --labels {tmp_path / 'l.csv'}" in told
    given = [*given[:-1], tmp_path / "m.csv", "--copy-to", tmp_path / "chosen"]
    status, told, _ = run(capsys, "select", *given)
    assert f"copied them to {tmp_path / 'chosen'}\n" in told
    assert len(list((tmp_path / "chosen").iterdir())) == 4
    query = data / "dark" / "000.png"
    wishes = ["--nearest", query, "--k", 3, "--duplicates", "--outliers"]
    status, told, _ = run(capsys, "embed", model, data, "--out", tmp_path / "f.npz", *wishes)
    assert status == 0
    lines = told.splitlines()
    assert lines[:2] == [f"{tmp_path / 'f.npz'}: 16 x 96 features", f"nearest to {query}"]
    assert [line.split()[0] for line in lines[2:5]] == ["1", "2", "3"]
    for name in ("nearest", "duplicates", "outliers"):
        assert f"wrote {tmp_path / f'f.{name}.csv'}: " in told
    status, _, err = run(capsys, "embed", model, data, "--out", tmp_path / "f.txt")
    assert (status, len(err.splitlines())) == (2, 1)
    assert "must end in" in err


@pytest.mark.parametrize(
    ("wish", "told"),
    [
        (["--nearest", "broken.png"], "picture broken.png cannot be used: broken data"),
        (["--duplicates"], "g.duplicates.csv is there and would be lost"),
        (["--outliers", "--nearest", "gray.png"], "g.outliers.csv is there and would be lost"),
    ],
)
def test_embed_refuses_wishes_before_the_work(
    wish: list[str], told: str, capsys: pytest.CaptureFixture[str], picture_folder: Folder,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    data, model = picture_folder(), untrained_run(tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    picture = (data / "dark" / "000.png").read_bytes()
    Path("broken.png").write_bytes(picture[: len(picture) // 2])
    Image.new("L", (40, 40)).save("gray.png")
    for name in ("duplicates", "outliers"):
        Path(f"g.{name}.csv").write_text("group,path,mine\n")
    status, _, err = run(capsys, "embed", model, data, "--out", "g.npz", *wish)
    assert (status, len(err.splitlines())) == (2, 1)
    assert told in err
    assert not Path("g.npz").exists()


def test_a_query_may_have_all_the_pixels_that_the_run_allows(
    capsys: pytest.CaptureFixture[str], picture_folder: Folder, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    data, model = picture_folder(), untrained_run(tmp_path / "run", max_pixels=10_000)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 200)  # Pillow refuses twice as many
    query, out = data / "dark" / "000.png", tmp_path / "f.npz"
    status, _, err = run(capsys, "embed", model, data, "--out", out, "--nearest", query)
    assert status == 0, err


def wrong_uses(good: Path, tmp: Path) -> dict[str, tuple[list[object], str]]:
    empty, used, no_pictures = tmp / "empty", tmp / "used", tmp / "texts"
    for folder in (empty, used, no_pictures):
        folder.mkdir(exist_ok=True)
    (used / "something.txt").write_text("x")
    (no_pictures / "a.txt").write_text("x")
    out = tmp / "out"
    return {
        "nothing given": (["pretrain", "--out", out], "no pictures given"),
        "missing folder": (["pretrain", tmp / "nope", "--out", out], "no folder or file"),
        "empty folder": (["pretrain", empty, "--out", out], "no pictures in"),
        "folder without pictures": (["pretrain", no_pictures, "--out", out], "no pictures in"),
        "wrong key": (["pretrain", good, "--out", out, "optim.lr=1"], "unknown key optim.lr"),
        "wrong type": (["pretrain", good, "--out", out, "--epochs", "many"], "got 'many'"),
        "used out": (["pretrain", good, "--out", used], "is not empty"),
        "unknown backbone": (
            ["pretrain", good, "--out", out, "encoder.name=mobilnetv3"], "did you mean"),
        "unknown recipe": (["pretrain", good, "--out", out, "--recipe", "best"], "bundled:"),
        "wrong channels": (
            ["pretrain", good, "--out", out, "data.channels=4"], "3 channels, data.channels is 4"),
        "unknown device": (
            ["pretrain", good, "--out", out, "--device", "gpu7"], "allowed: auto, cpu, cuda"),
        "device without values": (
            ["pretrain", good, "--out", out, "--device", "meta"], "allowed: auto, cpu, cuda"),
        "endless run": (["pretrain", good, "--out", out, "--epochs", 10**12], "100,000,000 steps"),
        "list without a name": (
            ["select", empty, good, "--budget", "1", "--out", "/"], "must end in .csv"),
        "negative seed": (["eval", used, "--labels", "x.csv", "--seed", -1], "x>=0"),
        "negative workers": (["embed", used, good, "--out", out, "--workers", -1], "x>=0"),
        "no rows": (["checks", good, "--augment", out, "--rows", 0], "x>=1"),
        "unknown option": (["pretrain", good, "--epoch", "3"], "--epochs"),
        "no run": (["eval", empty, "--labels", "x.csv"], "no encoder in"),
        "no run to tune": (
            ["finetune", empty, "--labels", good, "--out", out], "no encoder in"),
        "no labels": (["finetune", empty, "--out", out], "--labels"),
        "two runs": (["finetune", empty, used, "--labels", good], "takes one RUN, got 2"),
        "recipe for pretraining": (
            ["finetune", empty, "--labels", good, "--recipe", "resnet18", "--out", out],
            "is one for tinyssl pretrain"),
        "recipe for fine-tuning": (
            ["pretrain", good, "--recipe", "few-label", "--out", out], "for tinyssl finetune"),
        "no run to predict": (["predict", empty, good, "--out", out], "no encoder in"),
        "nothing to resume": (["pretrain", "--resume", "--out", out], "no checkpoint at"),
        "unfit weights": (
            ["pretrain", good, "--out", out, f"encoder.init={used / 'something.txt'}"],
            "not opened"),
        "no weights": (["pretrain", good, "--out", out, "encoder.init=nope.pth"], "no weights at"),
        "no small stem": (
            ["pretrain", good, "--out", out, "encoder.stem=small",
             "encoder.name=vit_tiny_patch16_224"], "use encoder.stem=standard"),
    }  # fmt: skip


CASES = (
    "nothing given", "missing folder", "empty folder", "folder without pictures", "wrong key",
    "wrong type", "used out", "unknown backbone", "unknown recipe", "wrong channels",
    "unknown device", "device without values", "endless run", "list without a name",
    "negative seed", "negative workers", "no rows",
    "unknown option", "no run", "nothing to resume", "unfit weights",
    "no weights", "no small stem", "no run to tune", "no labels", "two runs",
    "recipe for pretraining", "recipe for fine-tuning", "no run to predict",
)  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_wrong_use_gets_one_line_and_leaves_nothing(
    case: str, capsys: pytest.CaptureFixture[str], picture_folder: Folder, tmp_path: Path
) -> None:
    uses = wrong_uses(picture_folder(), tmp_path)
    assert set(uses) == set(CASES)
    arguments, told = uses[case]
    status, _, err = run(capsys, *arguments)
    last = err.strip().splitlines()[-1]
    assert status in (1, 2)
    assert last.startswith("tinyssl: ")
    assert told in last
    assert "Traceback" not in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("verb", ["pretrain", "finetune", "embed", "select", "report"])
def test_names_too_long_for_the_file_system(
    verb: str, capsys: pytest.CaptureFixture[str], picture_folder: Folder, tmp_path: Path
) -> None:
    data, run_folder = picture_folder(), untrained_run(tmp_path / "run")
    (run_folder / "recipe.yaml").write_text("{}")
    arguments: dict[str, list[Any]] = {
        "pretrain": [data],
        "finetune": [run_folder, "--labels", data],
        "embed": [run_folder, data],
        "select": [run_folder, data, "--budget", "2"],
        "report": [run_folder, "--data", data],
    }
    ending = {"embed": ".npz", "select": ".csv"}.get(verb, "")
    status, _, err = run(capsys, verb, *arguments[verb], "--out", tmp_path / ("n" * 300 + ending))
    assert status in (1, 2)
    assert "too long" in err.splitlines()[-1]
    assert "fault" not in err


@pytest.mark.parametrize(
    ("verb", "given", "told"),
    [
        ("pretrain", "epochs=3", "give --epochs 3"),
        ("pretrain", "batch_size=3", "give --batch-size 3"),
        ("pretrain", "views=3", "give run.views=3"),
        ("pretrain", "lr=3", "give bank.lr=3 or optim.base_lr=3"),
        ("checks", "epochs=3", "give run.epochs=3"),
        ("finetune", "views=3", "give network.views=3"),
        ("pretrain", "nothing=3", "/nothing=3; give one that exists"),
    ],
)
def test_a_setting_without_its_section(
    verb: str, given: str, told: str, capsys: pytest.CaptureFixture[str], picture_folder: Folder
) -> None:
    data = picture_folder()
    more = ["--labels", data] if verb == "finetune" else []
    status, _, error = run(capsys, verb, data, given, *more)
    assert status == 2
    assert told in error.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["pretrain", "", "--out", "run"], "argument 2 is empty"),
        (["eval", "run", "--labels", ""], "argument 4 is empty"),
        (["eval", "run", "--labels="], "--labels= is empty"),
    ],
)
def test_an_unset_variable_is_not_the_current_folder(
    arguments: list[str],
    told: str,
    capsys: pytest.CaptureFixture[str],
    picture_folder: Folder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(picture_folder())
    status, _, error = run(capsys, *arguments)
    assert status == 2
    assert f"{told}, as with an unset variable; give a value" in error
    assert not Path("run").exists()


def test_home_is_known_in_every_out(
    capsys: pytest.CaptureFixture[str],
    picture_folder: Folder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No shell puts it in after `=`."""
    monkeypatch.setenv("HOME", str(tmp_path))
    model = untrained_run(tmp_path / "run")
    status, told, _ = run(capsys, "embed", model, picture_folder(), "--out=~/f.npz")
    assert status == 0
    assert str(tmp_path / "f.npz") in told
    assert (tmp_path / "f.npz").exists()


@pytest.mark.parametrize(
    ("encoding", "shown"), [("latin-1", "\\U0001f4f7"), ("utf-8", "\U0001f4f7")]
)
def test_names_that_a_terminal_cannot_show_are_escaped(
    encoding: str, shown: str, tmp_path: Path
) -> None:
    code = "from tinyssl.cli import main; main(['checks', '--cache', '\U0001f4f7'])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        env=os.environ | {"PYTHONIOENCODING": encoding},
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode(encoding) == f"0 caches, 0.0 MB, in {shown}\n"


def test_what_ascii_lacks_is_escaped_in_the_locale_c() -> None:
    """Where Python's standard output is ASCII, and keeps odd bytes of names."""
    code = r"from tinyssl.cli import _print_any_name; _print_any_name(); print('5 \xb1 1')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        env=os.environ | {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
    )
    assert done.stdout.split() == [b"5", rb"\xb1", b"1"], done.stderr


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tinyssl", "--debug", "pretrain", str(tmp_path / "nope")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert "Traceback" in done.stderr
    assert "no folder or file" in done.stderr


def test_setting_and_path_are_told_apart(
    capsys: pytest.CaptureFixture[str], picture_folder: Folder
) -> None:
    data = picture_folder("a.b=c")
    status, _, _ = run(capsys, "checks", data)
    assert status == 0
    told = "wrong" * 100  # longer than a file's name may be
    status, _, error = run(capsys, "pretrain", data, f"augment.preset={told}")
    assert status == 2
    assert "augment.preset" in error
