"""Runs, checkpoints and encoders of strangers, whole files with odd content: one clear line."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import killing
import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from test_full_disk import quota

from tests.making import make_pictures, make_run
from tinyssl.classifier import load_classifier
from tinyssl.cli import main
from tinyssl.embedding import embed
from tinyssl.errors import JobError, UsageError
from tinyssl.pipeline import load_pipeline
from tinyssl.pretraining import pretrain
from tinyssl.reporting.card import read_card
from tinyssl.reporting.device_tables import find_bundle
from tinyssl.reporting.run_facts import read_run
from tinyssl.run import RESULT_COLUMNS
from tinyssl.run_folder import RunFolder
from tinyssl.tensor_file import read_tensors

Folder = Callable[..., Path]
State = dict[str, Any]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one epoch, `run/`, and its pictures; each test works on a copy of the run."""
    folder = tmp_path_factory.mktemp("stranger")
    settings = [s for s in killing.QUICK if "epochs" not in s]
    pretrain(make_pictures(folder / "data"), out=folder / "run", overrides=settings, epochs=2)
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished / "run", tmp_path / "run"))


def momenta(state: State) -> list[State]:
    return list(state["optimizer"]["state"].values())


def replace_momenta(make: Callable[[torch.Tensor], object]) -> Callable[[State], None]:
    def change(state: State) -> None:
        for values in momenta(state):
            values["momentum_buffer"] = make(values["momentum_buffer"])

    return change


def put(*places: Any) -> Callable[[State], None]:
    *path, last, value = places

    def change(state: State) -> None:
        inner = state
        for key in path:
            inner = inner[key]
        inner[last] = value

    return change


CHANGES: dict[str, Callable[[State], Any]] = {
    "no method": lambda state: state.pop("method"),
    "no progress": lambda state: state.pop("progress"),
    "no digest": lambda state: state.pop("digest"),
    "method is a number": put("method", 3),
    "weights missing": put("method", {}),
    "start of other shapes": put("start", {"mean": torch.zeros(9)}),
    "negative step": put("progress", "step", -5),
    "step beyond the end": put("progress", "step", 10**12),
    "step is a word": put("progress", "step", "x"),
    "seconds are none": put("progress", "seconds", float("nan")),
    "losses are words": put("progress", "epoch_sums", {"loss": "x"}),
    "other losses": put("progress", "window", [{"a": 1.0}]),
    "more progress": put("progress", "more", 1),
    "random state is short": put("rng", torch.zeros(3, dtype=torch.uint8)),
    "no groups": put("optimizer", "param_groups", []),
    "momenta of other shapes": replace_momenta(lambda old: torch.zeros(2)),
    "momenta without a shape": replace_momenta(lambda old: torch.zeros(())),
    "momenta that are not there": replace_momenta(lambda old: torch.zeros(()).expand(old.shape)),
    "sparse momenta": replace_momenta(lambda old: old.to_sparse()),
    "whole momenta": replace_momenta(lambda old: old.long()),
    "momenta of nobody": put("optimizer", "state", 99, {"momentum_buffer": torch.zeros(1)}),
}


@pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning")
@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_checkpoint_is_refused_and_nothing_is_lost(name: str, run: Path) -> None:
    path = run / "checkpoints" / "last.pt"
    state = torch.load(path, weights_only=True)
    CHANGES[name](state)
    torch.save(state, path)
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file() and p.name != "train.log"}
    with pytest.raises(UsageError):
        pretrain(out=run, resume=True)
    assert before == {p: p.read_bytes() for p in before}


def test_settings_of_the_optimizer_are_the_recipes(run: Path) -> None:
    path = run / "checkpoints" / "last.pt"
    state = torch.load(path, weights_only=True)
    whole = {key: value.clone() for key, value in state["method"].items()}
    for group in state["optimizer"]["param_groups"]:
        group.update(lr=9.0, momentum="x", weight_decay=1e9)
    torch.save(state, path)
    pretrain(out=run, resume=True)
    after = torch.load(path, weights_only=True)["method"]
    assert all(torch.equal(after[key], value) for key, value in whole.items())


def test_a_tensor_larger_than_its_file_is_not_made(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1).expand(1 << 40)}, tmp_path / "w.pth")
    with pytest.raises(UsageError, match="not wholly there"):
        read_tensors(tmp_path / "w.pth")


def test_garbled_logs_do_not_stop_a_run(run: Path) -> None:
    folder = RunFolder(run)
    kept = folder.metrics.read_bytes(), folder.results.read_bytes()
    odd = b'{}\n[1]\n{"step": "x"}\n\xff\xfe\n' + b"\0" * 50 + b"\n" + b"[" * 20_000 + b"\n"
    folder.metrics.write_bytes(kept[0] + odd)
    commas = b"," * kept[1].partition(b"\n")[0].count(b",")
    folder.results.write_bytes(kept[1] + b"x" + commas + b"\n\xff" + commas + b"\n\0\0")
    folder.forget_after(10**6, 10**6, RESULT_COLUMNS)
    assert (folder.metrics.read_bytes(), folder.results.read_bytes()) == kept


NESTED = b"[" * 100_000
ODD_JSON = [b"", b"\xff\xfe", NESTED, b"[1]", b"{}", b'{"encoders": 3, "held_out": [], "rows": 3}']


@pytest.mark.parametrize("name", ["eval.json", "finetune.json", "machine.json", "encoder.json"])
@pytest.mark.parametrize("content", ODD_JSON, ids=range(len(ODD_JSON)))
def test_damaged_json_of_a_run(name: str, content: bytes, run: Path) -> None:
    (run / name).write_bytes(content)
    if name == "machine.json" and content.startswith(b"{"):
        assert read_run(run).machine == json.loads(content)  # nothing in it is wanted
        return
    with pytest.raises(UsageError, match=name.replace(".", r"\.")):
        read_run(run)


@pytest.mark.parametrize(
    "confusion", [[], [[0, 0], [0, 0]], [[1, 2]], [[1, -2], [3, 4]], [["1"]], 3], ids=str
)
def test_evaluations_that_count_nothing(confusion: object, run: Path) -> None:
    found = {"encoders": {"a": {"knn": {"confusion": confusion}}}, "classes": ["x", "y"]}
    (run / "eval.json").write_text(json.dumps(found | {"train": 1, "test": 1, "split": ""}))
    with pytest.raises(UsageError, match=r"eval\.json is damaged: encoders\.a\.knn\.confusion"):
        read_run(run)


def test_evaluations_of_a_thousand_classes_are_read(run: Path) -> None:
    """Earlier ones have a line for each cell of their matrices, and more than 64 MiB."""
    found = {"encoders": {}, "classes": ["a"], "train": 1, "test": 1, "split": "s"}
    (run / "eval.json").write_text(json.dumps(found) + " " * (1 << 26))
    assert read_run(run).result == found


def test_odd_lines_of_a_run_are_passed_over(run: Path) -> None:
    before = read_run(run)
    with (run / "metrics.jsonl").open("ab") as file:
        file.write(b'{"rankme": "x"}\n{"rankme": 1}\n' + NESTED + b"\n")
    (run / "skipped.csv").write_text("a,b\n1,2\n")
    (run / "duplicates.csv").write_text("group\n1\n")
    after = read_run(run)
    assert after.last_look() == before.last_look()
    assert (after.skipped, after.copies) == ([], [])
    (run / "skipped.csv").write_text('path,reason\n"' + "x" * 200_000 + '",y\n')
    with pytest.raises(UsageError, match=r"skipped\.csv cannot be read: field larger"):
        read_run(run)


@pytest.mark.parametrize("content", [NESTED, b"{}", b'{"files": {"a.onnx": {"parity": {}}}}'])
def test_damaged_json_of_a_bundle(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(UsageError, match=r"manifest\.json"):
        find_bundle(tmp_path / "run", {}, tmp_path)


BOMB = "a: &a [x, x]\n" + "".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [*{chr(97 + n)}, *{chr(97 + n)}]\n" for n in range(24)
)


@pytest.mark.parametrize("text", [BOMB, "a: &a [*a]", "[" * 5000, "a: !!python/name:os.system"])
def test_yaml_that_grows(text: str, tmp_path: Path) -> None:
    (tmp_path / "file.yaml").write_text(text)
    with pytest.raises(UsageError, match="cannot read"):
        load_pipeline(tmp_path / "file.yaml")
    with pytest.raises(UsageError, match="cannot be read"):
        read_card(tmp_path / "file.yaml")


def test_aliases_are_read_where_they_stand_for_little(tmp_path: Path) -> None:
    albumentations = pytest.importorskip("albumentations")
    shared = albumentations.to_dict(albumentations.Compose([albumentations.HorizontalFlip()] * 2))
    twice = shared["transform"]["transforms"][0]
    shared["transform"]["transforms"] = [twice, twice]
    (tmp_path / "file.yaml").write_text(yaml.safe_dump(shared))
    assert "*id001" in (tmp_path / "file.yaml").read_text()
    assert len(load_pipeline(tmp_path / "file.yaml")) == 2


def with_weights(folder: Path, change: Callable[[torch.Tensor], torch.Tensor]) -> Path:
    run = make_run(folder, "test_resnet")
    state = load_file(run / "encoder.safetensors")
    last = next(key for key in reversed(state) if state[key].is_floating_point())
    state[last] = change(state[last])
    save_file(state, run / "encoder.safetensors")
    return run


@pytest.mark.parametrize("verb", ["embed", "select", "finetune", "report"])
def test_features_that_are_no_numbers_go_nowhere(
    verb: str, picture_folder: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = with_weights(tmp_path / "run", lambda t: t * float("nan"))
    (run / "recipe.yaml").write_text("{}")
    data, out = str(picture_folder()), tmp_path / "out"
    arguments = {
        "embed": ["embed", str(run), data, "--out", f"{out}.npz"],
        "select": ["select", str(run), data, "--budget", "2", "--out", f"{out}.csv"],
        "finetune": ["finetune", str(run), "--labels", data, "--out", str(out)],
        "report": ["report", str(run), "--data", data, "--out", f"{out}.html"],
    }
    with pytest.raises(SystemExit) as stopped:
        main(arguments[verb])
    assert stopped.value.code == 1
    assert "features that are not finite numbers" in capsys.readouterr().err
    assert [path.name for path in tmp_path.glob("out*") if path.suffix != ".parts"] == []


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0, -1.0])
def test_classifiers_without_a_temperature(value: float, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "test_resnet")
    description = json.loads((run / "encoder.json").read_text())
    (run / "encoder.json").write_text(json.dumps(description | {"classes": ["a", "b"]}))
    tensors = {"weight": torch.ones(2, description["width"]), "bias": torch.zeros(2)}
    save_file(tensors | {"temperature": torch.tensor(value)}, run / "classifier.safetensors")
    with pytest.raises(UsageError, match="temperature > 0"):
        load_classifier(run)


@pytest.mark.parametrize("damage", ["cut", "garbled", "emptied"])
def test_a_damaged_part_is_made_again(damage: str, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "test_resnet", components=0)  # a CSV of many features is long
    data = make_pictures(tmp_path / "data")
    whole = embed(run, data, tmp_path / "whole.npz").read()
    out = tmp_path / "f.csv"
    with pytest.raises(JobError, match="cannot write"), quota(120_000):  # its part is smaller
        embed(run, data, out)
    (part,) = (tmp_path / "f.csv.parts").glob("*.npz")
    good = part.read_bytes()
    half = len(good) // 2
    garbled = good[:half] + bytes(b ^ 255 for b in good[half : half + 64]) + good[half + 64 :]
    part.write_bytes({"cut": good[:half], "garbled": garbled, "emptied": b""}[damage])
    np.testing.assert_array_equal(embed(run, data, out).read().features, whole.features)
